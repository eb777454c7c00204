"""What `apply` does where no method is named."""

import keras
import numpy as np
import pytest

import keras_ether
from tests import models
from tests import tuned

COMMON = {"rank_blocks": 2, "trainable": ["head"], "seed": 0}


def config_of(**arguments):
    model = tuned.base("mlp")
    planned = keras_ether.plan(model, print_fn=str, **COMMON, **arguments)
    keras_ether.apply(model, **COMMON, **arguments)
    rows = keras_ether.summary(model, print_fn=str).rows
    assert rows == planned.rows
    (config,) = {row.config for row in rows}
    return config.method, config.side, config.strength, config.rate_multiplier


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("ether+", "input", "learned", 100.0)),
        ({"side": "both"}, ("ether+", "both", "learned", 100.0)),
        ({"strength": 0.5}, ("ether+", "input", 0.5, 1.0)),
        # A method that is named is the paper's.
        ({"method": "ether+"}, ("ether+", "both", None, 1.0)),
        ({"method": "ether"}, ("ether", "input", None, 1.0)),
        ({"method": "ether", "side": "both"}, ("ether", "both", None, 1.0)),
    ],
)
def test_what_is_not_given_is_that_of_the_setting(arguments, expected):
    assert config_of(**arguments) == expected


@pytest.mark.once
def test_a_table_has_its_only_side():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Embedding(4, 8),
            keras.layers.Dense(4),
            keras.layers.Dense(2, name="head"),
        ]
    )
    keras_ether.apply(model, targets="all", **COMMON)
    rows = keras_ether.summary(model, print_fn=str).rows
    assert [row.side for row in rows] == ["output", "input"]
    assert {row.config.strength for row in rows} == {"learned"}


@pytest.mark.filterwarnings("ignore:.*is frozen now")
def test_it_learns_at_adams_default_rate_from_the_pretrained_model(rng):
    x = models.inputs_of("mlp", rng, samples=64)
    model = tuned.base("mlp")
    base = models.call(model, x)
    # The head stays, so that what is learned is the adapters'.
    keras_ether.apply(model, rank_blocks=2, targets=["first", "second"], seed=0)
    np.testing.assert_array_equal(models.call(model, x), base)
    y = np.tanh(base[:, ::-1])
    model.compile("adam", "mse", run_eagerly=True)
    history = model.fit(
        x, y, batch_size=16, epochs=10, shuffle=False, verbose=0
    )
    losses = history.history["loss"]
    assert losses[-1] < 0.5 * losses[0]
