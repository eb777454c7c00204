"""The warning of a learning rate that is far too low, where training starts.

KerasHub tasks compile themselves with rates of full fine-tuning, and a model
may be compiled before or after `apply`, so the rate that counts is known only
when `fit` or `train_on_batch` is called. Both call `make_train_function`, the
method which Keras offers for overriding. It is shadowed on each model of the
tree, and does nothing more than compare one number, once for each optimizer.

A compiled model that is built around an adapted one afterwards is not reached.
A hook for that one would have to be on `keras.Model` itself, and would change
models that have nothing to do with this package.
"""

import functools
import inspect
import warnings
import weakref

import keras
import numpy as np

from keras_ether import methods
from keras_ether.adapters import kinds
from keras_ether.adapters import shadowing
from keras_ether.surgery import compiled_state
from keras_ether.surgery.targets import walk

START = "make_train_function"
# A rate is low if it is below the method's own by more than this factor.
FACTOR = 10
# The line to be named in a warning is the first outside these.
INSIDE = ("keras", "keras_hub", "keras_ether")


def put_up(model):
    """Has the models of a tree compare their learning rate before training.

    Args:
        model: A Keras model or layer, adapted.
    """
    for part in [model, *walk(model).values()]:
        if isinstance(part, keras.Model):
            shadowing.shadow(
                part, START, functools.partial(_start, weakref.ref(part), [])
            )


def take_down(model):
    """Undoes `put_up`.

    Args:
        model: A Keras model or layer.
    """
    for part in [model, *walk(model).values()]:
        shadowing.restore(part, START)


def _start(model, seen, make_train_function, *args, **kwargs):
    """Warns once for each optimizer, and goes on as the model would."""
    owner = model()
    optimizer = getattr(owner, "optimizer", None)
    is_new = optimizer is not None and all(o() is not optimizer for o in seen)
    if is_new:
        _warn(owner)
        seen[:] = [weakref.ref(optimizer)]
    return make_train_function(*args, **kwargs)


def _warn(model):
    rate = compiled_state.constant_learning_rate(model)
    names = {
        layer.ether.method
        for layer in walk(model).values()
        if kinds.is_adapted(layer) and layer.ether.trainable_weights
    }
    if rate is None or not names:
        return
    method = max((methods.get(n) for n in names), key=lambda m: m.learning_rate)
    # The optimizer's is a float32.
    if rate >= np.float32(method.learning_rate / FACTOR):
        return
    warnings.warn(
        f"Model '{model.name}' trains with a learning rate of {rate:g}, which "
        f"is low for '{method.name}': its vectors would hardly move. Around "
        f"{method.learning_rate:g} is a good first try with Adam: "
        "`model.compile(...)` it with that.",
        stacklevel=_level_of_user(),
    )


def _level_of_user():
    """The `stacklevel` of the first caller outside Keras and this package."""
    frame, level = inspect.currentframe().f_back, 1
    while frame.f_back is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in INSIDE:
            break
        frame, level = frame.f_back, level + 1
    return level
