import contextlib

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.surgery import verbs
from tests import checks
from tests import kinds
from tests import models
from tests import tuned

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    pytest.mark.filterwarnings("ignore:.*learning rate of 5e-05"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optim"),
    pytest.mark.filterwarnings("ignore:.compile.*was not called as part"),
]
METHODS = ["ether", "ether+", "oft", "naive"]


def adapted(name, method, seed=0):
    return keras_ether.apply(
        models.ALL[name](),
        method=method,
        targets="all-linear",
        rank_blocks=2,
        seed=seed,
    )


def fine_tuned(name, method, seed=0):
    """As after training: parameters have moved, and an optimizer is there."""
    model = adapted(name, method, seed)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    tuned.move(model.trainable_variables, seed)
    return model


@pytest.fixture
def x(rng):
    return models.inputs_of("functional", rng)


@pytest.mark.parametrize(
    ("name", "method"),
    kinds.sweep(
        *("ether", "ether+"), kinds=["bert", "functional", "subclassed"]
    ),
)
def test_weights_file_read_by_a_plain_model(name, method, rng, tmp_path):
    x = models.inputs_of(name, rng)
    model = fine_tuned(name, method)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    plain = models.ALL[name]()
    plain.load_weights(path)
    np.testing.assert_allclose(
        models.call(plain, x), models.call(model, x), atol=1e-5
    )


@pytest.mark.parametrize("name", ["bert", "functional", "subclassed"])
def test_keras_file_loads_as_the_plain_model(name, rng, tmp_path):
    x = models.inputs_of(name, rng)
    model = adapted(name, "ether")
    models.compile_and_fit(model, x)
    path = tmp_path / "model.keras"
    model.save(path)
    plain = keras.models.load_model(path)
    np.testing.assert_allclose(
        models.call(plain, x), models.call(model, x), atol=1e-5
    )
    with pytest.raises(ValueError, match="no ETHER adapter"):
        keras_ether.merge(plain)


@pytest.mark.parametrize("method", METHODS)
def test_over_the_same_base_everything_is_restored_to_the_bit(method, tmp_path):
    model = fine_tuned("functional", method)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    saved = models.values(model.weights)
    for vector in tuned.vectors_of(model):
        vector.assign(np.ones(vector.shape))
    model.load_weights(path)
    checks.equal(model.weights, saved)


@pytest.mark.parametrize("method", METHODS)
def test_over_another_base_predictions_are_kept(x, method, tmp_path):
    model = fine_tuned("functional", method)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    keras.utils.set_random_seed(1)
    other = fine_tuned("functional", method, seed=1)
    if method in ("ether", "oft"):
        other.load_weights(path)
    else:
        with pytest.warns(UserWarning, match="over another base"):
            other.load_weights(path)
    np.testing.assert_allclose(
        models.call(other, x), models.call(model, x), atol=1e-4
    )
    if method == "ether+":
        for layer in verbs.adapted_layers(other).values():
            u, v = models.values(layer.ether.vectors.values())[:2]
            np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (0.0, "are those of the file's base without the adapter.*disabled"),
        (0.5, "are those of the fine-tuned model at strength 0.5,"),
        (1.0, "are those of the fine-tuned model.$"),
    ],
)
def test_the_warning_says_what_the_base_is(strength, message, x, tmp_path):
    model, path = fine_tuned("functional", "ether+"), tmp_path / "m.weights.h5"
    with contextlib.ExitStack() as stack:
        if strength:
            keras_ether.strength(model, strength)
        else:
            stack.enter_context(keras_ether.disabled(model))
        model.save_weights(path)
        expected = models.call(model, x)
    other = adapted("functional", "ether+", seed=1)
    for layer in verbs.adapted_layers(other).values():
        layer.base_kernel.assign(layer.base_kernel * 0.5)
    with pytest.warns(UserWarning, match=message):
        other.load_weights(path)
    np.testing.assert_allclose(models.call(other, x), expected, atol=1e-5)


def test_file_without_vectors_is_a_base_checkpoint(x, tmp_path):
    plain = models.functional()
    path = tmp_path / "base.weights.h5"
    plain.save_weights(path)
    keras.utils.set_random_seed(1)
    model = fine_tuned("functional", "ether")
    vectors = models.values(tuned.vectors_of(model))
    model.load_weights(path)
    with keras_ether.disabled(model):
        np.testing.assert_allclose(
            models.call(model, x), models.call(plain, x), atol=1e-6
        )
    checks.equal(tuned.vectors_of(model), vectors)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.filterwarnings("ignore:The file holds the kernel")
@pytest.mark.parametrize("mode", [None, "bfloat16", "int8", "int4", "float8"])
def test_files_get_values_and_no_variables(mode):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(
                16, dtype="bfloat16" if mode == "bfloat16" else None
            ),
        ]
    )
    if mode not in (None, "bfloat16"):
        model.quantize(mode)
    keras_ether.apply(model, rank_blocks=2, dropout=0.1)
    for layer in (model.layers[0], model.layers[0].ether):
        store = {}
        layer.save_own_variables(store)
        assert store
        for value in store.values():
            assert type(value) is np.ndarray


@pytest.mark.parametrize("other", [{"method": "ether+"}, {"rank_blocks": 4}])
def test_file_of_another_adapter_is_an_error(other, tmp_path):
    model = fine_tuned("mlp", "ether")
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    arguments = {"targets": ["second"], "method": "ether", "rank_blocks": 2}
    second = models.mlp()
    keras_ether.apply(second, **(arguments | other))
    base = models.values([second.layers[2].base_kernel])[0]
    with pytest.raises(ValueError, match=r"second/ether.*Received: method='"):
        second.load_weights(path)
    now = models.values([second.layers[2].base_kernel])[0]
    np.testing.assert_array_equal(now, base)
