"""The life of an adapter with a strength, or on the narrow side."""

import copy

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.layers import EtherDense
from tests import checks
from tests import models
from tests import tuned

# The arguments, and whether training starts at the pretrained model.
VARIANTS = {
    "learned": ({"method": "ether", "strength": "learned"}, True),
    "learned, both sides": (
        {"method": "ether", "strength": "learned", "side": "both"},
        True,
    ),
    "learned ether+": ({"method": "ether+", "strength": "learned"}, True),
    "learned oft": ({"method": "oft", "strength": "learned"}, True),
    "half": ({"method": "ether", "strength": 0.5}, False),
    "narrow": ({"method": "ether", "side": "narrow"}, False),
}
# A few run on every backend, all of them on one.
EVERYWHERE = ("learned ether+", "half")
EACH = [
    name if name in EVERYWHERE else pytest.param(name, marks=pytest.mark.once)
    for name in VARIANTS
]
COMMON = {"targets": "all-linear", "trainable": ["head"], "rank_blocks": 2}


def adapted(name, **changed):
    arguments, _ = VARIANTS[name]
    model = tuned.base("mlp")
    return keras_ether.apply(model, seed=0, **COMMON, **arguments, **changed)


def moved(name, seed=1, **changed):
    model = adapted(name, **changed)
    tuned.move(model.trainable_weights, seed)
    return model


@pytest.mark.by_turns
@pytest.mark.parametrize("name", EACH)
def test_life(name, rng, tmp_path):
    _, exact_start = VARIANTS[name]
    x = models.inputs_of("mlp", rng)
    plain = tuned.base("mlp")
    base = models.call(plain, x)
    arguments = COMMON | VARIANTS[name][0]
    planned = keras_ether.plan(plain, print_fn=str, **arguments)
    model = adapted(name)
    found = keras_ether.summary(model, print_fn=str)
    assert found.rows == planned.rows
    assert np.array_equal(models.call(model, x), base) == exact_start

    model.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=True)
    before = models.values(model.trainable_weights)
    # The first step moves the strengths alone.
    for _ in range(2):
        model.train_on_batch(x, np.ones((len(x), 4), "float32"))
    for variable, value in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(*models.values([variable]), value)
    active = models.call(model, x)

    path = tmp_path / "m.ether.safetensors"
    keras_ether.save_adapter(model, path)
    other = keras_ether.load_adapter(tuned.base("mlp"), path)
    np.testing.assert_array_equal(models.call(other, x), active)
    assert keras_ether.summary(other, print_fn=str).rows == found.rows
    np.testing.assert_array_equal(models.call(copy.deepcopy(model), x), active)
    with keras_ether.disabled(model):
        off = models.call(model, x)
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)
    keras_ether.remove(other)
    np.testing.assert_array_equal(models.call(other, x), off)


@pytest.mark.parametrize("name", EACH)
def test_weights_files(name, rng, tmp_path):
    x = models.inputs_of("mlp", rng)
    model, path = moved(name), tmp_path / "m.weights.h5"
    active = models.call(model, x)
    model.save_weights(path)
    again = adapted(name)
    again.load_weights(path)
    np.testing.assert_array_equal(models.call(again, x), active)
    plain = tuned.base("mlp")
    plain.load_weights(path)
    np.testing.assert_allclose(models.call(plain, x), active, atol=1e-5)
    ether = keras_ether.apply(tuned.base("mlp"), method="ether", **COMMON)
    if name != "narrow":
        with pytest.raises(ValueError, match="don't fit this model"):
            ether.load_weights(path)


def test_what_can_not_be_taken_out_is_an_error(tmp_path):
    path = tmp_path / "m.weights.h5"
    moved("half").save_weights(path)
    other = tuned.base("mlp", seed=5)
    keras_ether.apply(other, **COMMON, **VARIANTS["half"][0])
    layer = other.get_layer("first")
    kept = [layer.base_kernel, *layer.ether.vectors.values()]
    before = models.values(kept)
    with pytest.raises(ValueError, match=r"strength=0\.5' can't be inverted"):
        other.load_weights(path)
    checks.equal(kept, before)


@pytest.mark.by_turns
@pytest.mark.parametrize("name", ["learned", "learned ether+"])
def test_banks(name, rng):
    x = models.inputs_of("mlp", rng, samples=3)
    alone = [moved(name, seed) for seed in (1, 2)]
    bank = keras_ether.AdapterBank(moved(name, 3), capacity=3)
    for i, model in enumerate(alone):
        bank.add(f"a{i}", model)
    bank.add("fresh")
    inputs = {"inputs": x, "adapter_id": bank.ids(["a0", None, "a1"])}
    found = models.call(bank.model, inputs)
    expected = [
        models.call(alone[0], x)[0],
        models.call(keras_ether.remove(moved(name, 3)), x)[1],
        models.call(alone[1], x)[2],
    ]
    # The base row keeps the base's own head.
    for row in (0, 2):
        np.testing.assert_allclose(found[row], expected[row], atol=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_updates_of_low_rank(name):
    model = moved(name)
    layer = model.get_layer("first")
    if "oft" in name:
        with pytest.raises(ValueError, match="blocks of full rank"):
            keras_ether.lora_factors(model)
        return
    kernel = np.array(keras.ops.convert_to_numpy(layer.base_kernel))
    a, b = keras_ether.lora_factors(model)["first"]
    folded = keras.ops.convert_to_numpy(layer.kernel)
    np.testing.assert_allclose(kernel + a @ b, folded, atol=1e-5)
    ranks = {"learned ether+": 8, "learned, both sides": 4}
    assert a.shape[1] == ranks.get(name, 2)


@pytest.mark.filterwarnings("ignore:These layers stay trainable")
@pytest.mark.parametrize("name", ["learned ether+", "half"])
def test_quantized_bases(name, rng):
    x = models.inputs_of("mlp", rng)
    model = tuned.base("mlp")
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.quantize("int8")
    base = models.call(model, x)
    arguments, exact_start = VARIANTS[name]
    keras_ether.apply(model, seed=0, **COMMON, **arguments)
    if exact_start:
        np.testing.assert_array_equal(models.call(model, x), base)
    tuned.move(model.trainable_weights, 1)
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-3
    with keras_ether.disabled(model):
        off = models.call(model, x)
    assert np.abs(off - active).max() > 1e-3


@pytest.mark.parametrize("name", EACH)
def test_diagnosis_and_strength_of_the_whole(name, rng):
    x = models.inputs_of("mlp", rng)
    model = moved(name)
    rows = keras_ether.diagnostics.diagnose(model, print_fn=str).rows
    if "oft" not in name:
        for row in rows:
            found = [*row.input_distances, *row.output_distances]
            assert 0 < max(found) <= 2.0 + 1e-5
    active = models.call(model, x)
    keras_ether.strength(model, 0.5)
    half = models.call(model, x)
    assert np.abs(half - active).max() > 1e-4
    keras_ether.strength(model, 1.0)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_layers_of_their_own(name, rng):
    arguments, exact_start = VARIANTS[name]
    keras.utils.set_random_seed(0)
    layer = EtherDense(12, rank_blocks=2, dropout=0.5, seed=0, **arguments)
    x = rng.standard_normal((3, 8)).astype("float32")
    y = layer(x)
    again = EtherDense.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again(x)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(again(x)), keras.ops.convert_to_numpy(y)
    )
    plain = keras.ops.matmul(x, layer.base_kernel) + layer.bias
    near = np.allclose(*map(keras.ops.convert_to_numpy, (y, plain)), atol=1e-6)
    assert near == exact_start


@pytest.mark.once
@pytest.mark.parametrize(("units", "side"), [(16, "input"), (4, "output")])
def test_the_narrow_side(units, side):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(units),
            keras.layers.Dense(1, name="head"),
        ]
    )
    arguments = COMMON | {"side": "narrow", "method": "ether+"}
    planned = keras_ether.plan(model, print_fn=str, **arguments)
    (row,) = planned.rows
    assert (row.side, row.parameters) == (side, 2 * min(units, 8))
    keras_ether.apply(model, **arguments)
    assert keras_ether.summary(model, print_fn=str).rows == planned.rows


@pytest.mark.once
def test_the_narrow_side_of_a_table_is_its_output():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(4, 8)])
    keras_ether.apply(model, side="narrow", targets="all")
    (row,) = keras_ether.summary(model, print_fn=str).rows
    assert row.side == "output"


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"strength": 0.0}, "above 0 and at most 1. Received: strength=0.0"),
        ({"strength": "learn"}, "Received: strength='learn'"),
    ],
)
def test_bad_arguments(arguments, text):
    model = tuned.base("mlp")
    with pytest.raises(ValueError, match=text):
        keras_ether.apply(model, **COMMON, **arguments)
    with pytest.raises(ValueError, match=text):
        EtherDense(4, **arguments)
