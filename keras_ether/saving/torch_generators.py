"""PyTorch's global random generators, and their states.

The list is empty on other backends.
"""

from typing import Any

import keras
import numpy as np

from keras_ether import _keras_internals as internals


def global_generators() -> list[Any]:
    """The global generators that Keras uses besides its own seeds.

    On PyTorch a `Dropout` without a seed draws from the device's global
    generator; other backends have none.

    Returns:
        List of `torch.Generator`.
    """
    if keras.config.backend() != "torch":
        return []
    import torch

    device = internals.torch_device()
    if not device.startswith("cuda"):
        return [torch.default_generator]
    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def generator_state(generator: Any) -> np.ndarray:
    """The state of a generator, an array of bytes."""
    return generator.get_state().numpy()


def set_generator_state(generator: Any, state: np.ndarray) -> None:
    """Sets the state of a generator.

    Raises:
        ValueError: if the state is invalid. The generator is unchanged.
    """
    import torch

    value = torch.from_numpy(state.copy())
    try:
        torch.Generator(device=generator.device).set_state(value)
    except RuntimeError as error:
        raise ValueError(f"it is not a generator's state ({error})") from None
    generator.set_state(value)


class GeneratorState:
    """Sets the state of a generator, as a change."""

    def __init__(self, generator: Any, state: np.ndarray) -> None:
        self.generator, self.state = generator, state
        self.before: list[np.ndarray] = []

    def do(self) -> None:
        self.before = [generator_state(self.generator)]
        set_generator_state(self.generator, self.state)

    def undo(self) -> None:
        if self.before:
            set_generator_state(self.generator, self.before.pop())
