"""A trial without data: whether each example can have an adapter in a model."""

from typing import Any

import keras

from keras_ether.adapters.per_example import NoExamplesError
from keras_ether.bank.bank_model import BankModel
from keras_ether.bank.structure import Structure

# A batch that no axis of the inputs has, and lengths of axes that may be any:
# short ones for models with a longest sequence, long ones for images.
BATCHES = (13, 17, 19, 23, 29)
LENGTHS = (8, 64)


def check_every_layer(model: BankModel, structure: Structure) -> None:
    """Raises a `ValueError` for the first layer that can't be served.

    Where the base does not tell its inputs, or fits none of the tried, there is
    nothing to learn, and the first call finds out.

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
                    f"have one each: the model's call does not call it, though "
                    f"it may read {sorted(own)}."
                )
        return


def _asked(model: BankModel, length: int) -> set[int] | None:
    """The ids of the layers that asked for their weights, `None` for failure.

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
        # Not a length that the model takes, say: nothing that concerns a bank.
        return None
    return trial.asked


def _unlike_any_axis(model: BankModel, length: int) -> int:
    sizes: set[int | None] = {length}
    model.input_specs(lambda shape, dtype, name: sizes.update(shape))
    return next(batch for batch in BATCHES if batch not in sizes)


class _Trial(keras.layers.Layer):
    """Calls a bank's base for examples, and keeps which layers asked."""

    def __init__(self, model: BankModel) -> None:
        super().__init__(dtype=model.dtype_policy)
        # Out of sight of the trackers: it is not part of this layer.
        self.__dict__["model"] = model
        self.__dict__["asked"] = set()
        self.built = True

    def call(self, inputs: dict[str, Any]) -> Any:
        outputs, examples = self.model.call_for(inputs)
        self.asked.update(examples.asked)
        return outputs
