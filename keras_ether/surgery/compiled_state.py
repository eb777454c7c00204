"""The compiled state of models whose layers change under them."""

import keras

from keras_ether import _keras_internals as internals
from keras_ether.ops.values import to_numpy
from keras_ether.surgery import slots
from keras_ether.surgery.targets import walk

FUNCTIONS = (
    "train_function",
    "test_function",
    "predict_function",
    "generate_function",
)


def reset(model):
    """Has a model, and the models in it, go on from the layers of now.

    Their functions are traced anew. Their optimizers stay, with all that was
    set on them, and only their slots start anew.

    Args:
        model: A Keras model or layer.
    """
    drop_functions(model)
    for optimizer in slots.optimizers_of(model):
        slots.drop(optimizer)
    for layer in [model, *walk(model).values()]:
        internals.renew_torch_parameters(layer)
    for part in _models(model):
        internals.forget_compiled_trainable_state(part)


def drop_functions(model, names=FUNCTIONS):
    """Drops compiled functions, so that the next call traces the model anew."""
    for part in _models(model):
        for name in names:
            if getattr(part, name, None) is not None:
                setattr(part, name, None)


def constant_learning_rate(model) -> float | None:
    """The rate that a model is compiled with, unless it follows a schedule."""
    optimizer = getattr(model, "optimizer", None)
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return None
    rate = internals.rate_set(optimizer)
    # A schedule is a user's function, for `fit` to call; and an optimizer that
    # chooses among others has none.
    if not isinstance(rate, keras.Variable):
        return None
    if getattr(optimizer, "learning_rate", None) is not rate:
        return None
    return float(to_numpy(rate))


def _models(model):
    return [
        part
        for part in [model, *walk(model).values()]
        if isinstance(part, keras.Model)
    ]
