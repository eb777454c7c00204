"""Comparisons of values, bit for bit, and of a model before and after."""

import numpy as np
import pytest

from keras_ether.surgery.layer_tree import LayerTree
from tests import models

# For tests of something else than what `apply` and `fit` advise.
WITHOUT_ADVICE = [
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
]


def equal(found, expected, message=""):
    """Variables or arrays have the values of others."""
    pairs = zip(models.values(found), models.values(expected), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other, message)


def state(model):
    """Everything of a model that a verb could change, for `unchanged`."""
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", None)
    owners = LayerTree(model).all_layers
    owners += [o for o in (optimizer, inner) if o is not None]
    variables = list(model.variables)
    if optimizer is not None:
        variables += optimizer.variables
    found = [(o, type(o), _structure(vars(o), frozenset())) for o in owners]
    for variable in variables:
        asks = getattr(variable.value, "requires_grad", None)
        found.append((id(variable), variable.path, variable.trainable, asks))
    return found, models.values(variables)


def unchanged(model, before):
    """A model is as it was: its objects are the same, and their values."""
    after = state(model)
    for then, now in zip(before[0], after[0], strict=True):
        assert then == now
    for then, now in zip(before[1], after[1], strict=True):
        assert then.dtype == now.dtype
        np.testing.assert_array_equal(now, then)


def _structure(value, seen):
    """A value's identity, and of containers what is in them."""
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    if id(value) in seen:
        return id(value)
    if isinstance(value, dict):
        seen = seen | {id(value)}
        # The order of attributes means nothing.
        inside = {k: _structure(v, seen) for k, v in value.items()}
        return id(value), inside
    if isinstance(value, (list, tuple)):
        seen = seen | {id(value)}
        # A tuple that Keras makes anew has the same parts.
        own = None if isinstance(value, tuple) else id(value)
        return own, [_structure(v, seen) for v in value]
    if isinstance(value, set):
        return id(value), sorted(map(hash, value))
    if type(value).__name__ == "TrackableReference":
        # TensorFlow's record of an attribute.
        return value.name, id(value.ref)
    if type(value).__name__ == "Tracker":
        return _structure(vars(value), seen | {id(value)})
    return id(value)
