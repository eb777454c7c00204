"""Arrays of a GGUF file, the format of llama.cpp, as float32."""

from pathlib import Path

import numpy as np


class GGUFFile:
    """Settings and dequantized weights of a GGUF file.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path):
        try:
            import gguf  # Of llama.cpp's authors.
        except ImportError as error:
            raise ImportError(
                "Reading the file of this model needs `pip install gguf`."
            ) from error

        reader = gguf.GGUFReader(path)
        self.settings = {k: v.contents() for k, v in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def names(self) -> list[str]:
        return list(self._tensors)

    def array(self, name: str) -> np.ndarray:
        """A weight, outputs first as in PyTorch."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        # GGUF names the axes from the last to the first.
        shape = [int(size) for size in tensor.shape[::-1]]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        return np.ascontiguousarray(values, dtype="float32")
