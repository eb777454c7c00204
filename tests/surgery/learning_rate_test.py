"""The highest rate of an optimizer: what low rates are told of by."""

import keras
import pytest

from keras_ether.surgery import learning_rate

optimizers = keras.optimizers


class Own(optimizers.SGD):
    """An optimizer whose rate is not the one that it was given."""

    @property
    def learning_rate(self):
        return 0.5


CASES = {
    "Adam": (lambda: optimizers.Adam(2e-3), 2e-3),
    "loss scale": (
        lambda: optimizers.LossScaleOptimizer(optimizers.Adam(2e-3)),
        2e-3,
    ),
    "schedule": (
        lambda: optimizers.Adam(
            optimizers.schedules.PiecewiseConstantDecay([900], [1e-6, 2e-3])
        ),
        2e-3,
    ),
    "function": (lambda: optimizers.Adam(lambda: 2e-3), None),
    "own": (lambda: Own(2e-3), None),
    "by variable": (
        lambda: optimizers.MultiOptimizer(
            optimizers.OptimizerMap(
                optimizers.Adam(1e-4), {"v": optimizers.SGD(2e-3)}
            )
        ),
        2e-3,
    ),
    "none": (lambda: None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_highest(name):
    make, expected = CASES[name]
    variable = keras.Variable([0.0, 1.0], name="v")
    found = learning_rate.highest_for(make(), variable)
    assert found == (expected and pytest.approx(expected))
