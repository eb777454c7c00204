"""The compiled state of models whose layers change under them."""

import keras

from keras_ether import _keras_internals as internals
from keras_ether.targets import walk

FUNCTIONS = (
    "train_function",
    "test_function",
    "predict_function",
    "generate_function",
)


class Reset:
    """Starts the compiled state of a model and of the models in it anew.

    What can fail, making the optimizers again, is done when this object is
    made; calling it puts them in.

    Args:
        model: A Keras model or layer.
    """

    def __init__(self, model):
        self.model = model
        self.optimizers = [
            (part, _made_again(part.optimizer))
            for part in _models(model)
            if part.compiled and getattr(part.optimizer, "built", False)
        ]

    def __call__(self):
        drop_functions(self.model)
        for model, optimizer in self.optimizers:
            # As `compile` does, out of sight of the trackers.
            object.__setattr__(model, "optimizer", optimizer)
        for layer in [self.model, *walk(self.model).values()]:
            internals.renew_torch_parameters(layer)
        for model in _models(self.model):
            internals.forget_compiled_trainable_state(model)


def drop_functions(model):
    """Drops compiled functions, so that the next call traces the model anew."""
    for part in _models(model):
        for name in FUNCTIONS:
            if getattr(part, name, None) is not None:
                setattr(part, name, None)


def constant_learning_rate(model) -> float | None:
    """The rate that a model is compiled with, unless it follows a schedule."""
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return None
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = inner.get_config().get("learning_rate")
    return rate if isinstance(rate, float) else None


def _made_again(optimizer):
    with internals.strategy_scope(optimizer):
        return type(optimizer).from_config(optimizer.get_config())


def _models(model):
    return [
        part
        for part in [model, *walk(model).values()]
        if isinstance(part, keras.Model)
    ]
