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
        _set_optimizers(self.optimizers)
        for layer in [self.model, *walk(self.model).values()]:
            internals.renew_torch_parameters(layer)
        for model in _models(self.model):
            internals.forget_compiled_trainable_state(model)


class Snapshot:
    """The optimizers of a model and of the models in it, to be put back.

    Args:
        model: A Keras model or layer.
    """

    def __init__(self, model):
        self.optimizers = [
            (part, part.optimizer, part.optimizer.built)
            for part in _models(model)
            if part.compiled and part.optimizer is not None
        ]

    def restore(self):
        """Puts them back; one that was not built then is made again."""
        _set_optimizers(
            (part, optimizer if built else _made_again(optimizer))
            for part, optimizer, built in self.optimizers
        )


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


def _set_optimizers(pairs):
    for model, optimizer in pairs:
        # As `compile` does, out of sight of the trackers.
        object.__setattr__(model, "optimizer", optimizer)


def _made_again(optimizer):
    with internals.strategy_scope(optimizer):
        return type(optimizer).from_config(optimizer.get_config())


def _models(model):
    return [
        part
        for part in [model, *walk(model).values()]
        if isinstance(part, keras.Model)
    ]
