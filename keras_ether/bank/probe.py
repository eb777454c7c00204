"""A trial, without data, of whether each example can have its own adapter."""

from typing import Any

import keras

from keras_ether.adapters.per_example import NoExamplesError
from keras_ether.bank.bank_model import BankModel
from keras_ether.bank.structure import Structure

# Batch sizes, of which the first that differs from all axes of the inputs is
# taken; and lengths for axes of unknown size, a short one for models with a
# longest sequence and a long one for images.
BATCHES = (13, 17, 19, 23, 29)
LENGTHS = (8, 64)


def check_every_layer(model: BankModel, structure: Structure) -> None:
    """Raises a `ValueError` for the first layer that can't be served.

    Nothing is checked where the base's inputs are unknown, or it takes none of
    the lengths tried. The first call then raises the error.

    Args:
        model: A `BankModel`.
        structure: The bank's `Structure`.
    """
    for length in LENGTHS:
        asked = _asked(model, length)
        if asked is None:
            continue
        for path, own in structure.heads.items():
            if id(structure.layers[path]) not in asked:
                raise ValueError(
                    f"Layer '{path}' trains as a whole, and adapters can't "
                    "each have their own: the model's call does not call it, "
                    f"though it may read {sorted(own)}."
                )
        return


def _asked(model: BankModel, length: int) -> set[int] | None:
    """The ids of the layers that asked for weights, `None` if the trial fails.

    Raises:
        NoExamplesError: if the leading axis of a layer is not the batch.
    """
    batch = _unlike_any_axis(model, length)
    specs = model.input_specs(
        lambda shape, dtype, name: keras.KerasTensor(
            [length if size is None else size for size in shape],
            dtype,
            name=name,
        ),
        batch,
    )
    if specs is None:
        return None
    trial = _Trial(model)
    try:
        trial(specs)
    except NoExamplesError:
        raise
    except Exception:
        # The model may not take this length, which does not concern a bank.
        return None
    return trial.asked


def _unlike_any_axis(model: BankModel, length: int) -> int:
    sizes: set[int | None] = {length}
    model.input_specs(lambda shape, dtype, name: sizes.update(shape))
    return next(batch for batch in BATCHES if batch not in sizes)


class _Trial(keras.layers.Layer):
    """Calls a bank's base for examples, and records which layers asked."""

    def __init__(self, model: BankModel) -> None:
        super().__init__(dtype=model.dtype_policy)
        # Hidden from Keras's trackers: the model is not part of this layer.
        self.__dict__["model"] = model
        self.__dict__["asked"] = set()
        self.built = True

    def call(self, inputs: dict[str, Any]) -> Any:
        outputs, examples = self.model.call_for(inputs)
        self.asked.update(examples.asked)
        return outputs
