import warnings

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import dense_oracle
from tests import kinds
from tests import models

pytestmark = [
    # PyTorch about Keras's own reversed call of an int8 table.
    pytest.mark.filterwarnings("ignore:(?s).*The use of `x.T`"),
]
METHODS = ["ether", "ether+", "oft", "naive"]
IDS = np.array([[1, 2, 0], [9, 1, 3]], "int32")


def reversible(**kwargs):
    layer = keras_hub.layers.ReversibleEmbedding(
        10,
        8,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
        name="target",
        **kwargs,
    )
    layer.build()
    return layer


def numpy_of(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


@pytest.mark.parametrize("method", METHODS)
def test_both_directions_are_those_of_explicit_matrices(method, rng):
    layer = reversible(logit_soft_cap=5.0)
    keras_ether.apply(layer, method=method, rank_blocks=2)
    vectors = kinds.randomize(layer, rng)
    base = models.values([layer.base_kernel])[0]
    g = dense_oracle.side_matrix(method, vectors, "output")
    effective = base @ g
    np.testing.assert_allclose(
        numpy_of(layer.embeddings), effective, rtol=1e-3, atol=1e-4
    )
    h = rng.standard_normal((2, 3, 8)).astype("float32")
    logits = 5 * np.tanh(h @ effective.T / 5)
    for training in (False, True):
        np.testing.assert_allclose(
            numpy_of(layer(IDS, training=training)),
            effective[IDS],
            rtol=1e-3,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            numpy_of(layer(h, reverse=True, training=training)),
            logits,
            rtol=1e-3,
            atol=1e-3,
        )


def test_untied_reverse_matrix_stays_as_it_is(rng):
    layer = reversible(tie_weights=False)
    h = rng.standard_normal((2, 3, 8)).astype("float32")
    rows, logits = numpy_of(layer(IDS)), numpy_of(layer(h, reverse=True))
    keras_ether.apply(layer, rank_blocks=2, method="ether")
    assert np.abs(numpy_of(layer(IDS)) - rows).max() > 1e-3
    np.testing.assert_array_equal(numpy_of(layer(h, reverse=True)), logits)
    keras_ether.merge(layer)
    np.testing.assert_array_equal(numpy_of(layer(h, reverse=True)), logits)


def test_language_model_s_head_is_adapted_with_its_embedding(rng):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=10,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=4,
    )
    model = keras_hub.models.GPT2CausalLM(backbone)
    x = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_ether.apply(
            model, targets=["token_embedding"], rank_blocks=2, method="ether"
        )
    active = models.call(model, x)
    table_ = model.backbone.token_embedding
    effective = numpy_of(table_.embeddings)
    with keras_ether.disabled(model):
        assert np.abs(models.call(model, x) - active).max() > 1e-3
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)
    np.testing.assert_allclose(numpy_of(table_.embeddings), effective)


@pytest.mark.parametrize("reverse_dtype", [None, "float32"])
def test_16_bits(reverse_dtype, rng):
    layer = reversible(dtype="bfloat16", reverse_dtype=reverse_dtype)
    h = rng.standard_normal((2, 3, 8)).astype("float32")
    rows, logits = layer(IDS), layer(h, reverse=True)
    keras_ether.apply(layer, method="ether+", rank_blocks=2)
    for before, now in (
        (rows, layer(IDS)),
        (logits, layer(h, reverse=True)),
    ):
        assert now.dtype == before.dtype
        np.testing.assert_array_equal(numpy_of(now), numpy_of(before))


@pytest.mark.parametrize("kind", kinds.EMBEDDINGS)
def test_masks_pass_through(kind):
    classes = {
        "embedding": keras.layers.Embedding,
        "reversible": keras_hub.layers.ReversibleEmbedding,
    }
    inputs = keras.Input((3,), dtype="int32")
    x = classes[kind](10, 8, mask_zero=True, name="target")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    keras_ether.apply(model, targets="all", rank_blocks=2)
    np.testing.assert_allclose(
        models.call(model, np.array([[1, 2, 0]], "int32")),
        numpy_of(model.get_layer("target")(IDS[:1, :2])).mean(axis=1),
        atol=1e-6,
    )


def test_input_side_is_refused():
    model = kinds.model_of("embedding")
    with pytest.raises(ValueError, match=r"'target'.*has no input side"):
        keras_ether.apply(model, targets=["target"], side="input")
    report = keras_ether.plan(
        model, targets="all", side="input", rank_blocks=2, print_fn=str
    )
    assert [row.path for row in report.rows] == ["head"]
    assert report.skipped[0].reason == "it has no input side"
    with pytest.raises(ValueError, match=r"'target'.*no input side.*='input'"):
        keras_ether.layers.EtherEmbedding(10, 8, side="input", name="target")


@pytest.mark.parametrize("side", [None, "output", "both"])
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_output_is_the_only_side(method, side):
    layer = reversible()
    report = keras_ether.plan(
        layer, method=method, side=side, rank_blocks=2, print_fn=str
    )
    assert report.rows[0].side == "output"
    assert report.trainable == (8 if method == "ether" else 16)


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("kind", kinds.EMBEDDINGS)
def test_quantized_table_trains_and_stays(kind, mode):
    classes = {
        "embedding": keras.layers.Embedding,
        # The class of KerasHub has no `quantize` of its own.
        "reversible": keras.layers.ReversibleEmbedding,
    }
    layer = classes[kind](10, 8, name="target")
    inputs = keras.Input((3,), dtype="int32")
    x = layer(inputs)
    if kind == "reversible":
        x = layer(keras.ops.tanh(x * 10), reverse=True)
    model = keras.Model(inputs, x)
    layer.quantize(mode)
    base = models.call(model, IDS)
    codes = models.values(layer.weights)
    keras_ether.apply(model, targets="all", method="ether+", rank_blocks=2)
    np.testing.assert_array_equal(models.call(model, IDS), base)
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.train_on_batch(IDS, np.ones_like(base))
    assert np.abs(models.call(model, IDS) - base).max() > 1e-4
    for now, before in zip(models.values(layer.weights), codes, strict=False):
        np.testing.assert_array_equal(now, before)
    keras_ether.remove(model)
    np.testing.assert_array_equal(models.call(model, IDS), base)


def test_quantized_directions_agree(rng):
    """`h Gᵀ` is what the quantized table sees in reverse."""
    layer = keras.layers.ReversibleEmbedding(10, 8)
    layer.build()
    layer.quantize("int8")
    h = rng.standard_normal((2, 8)).astype("float32")
    keras_ether.apply(layer, method="naive", rank_blocks=2)
    vectors = kinds.randomize(layer, rng)
    g = dense_oracle.side_matrix("naive", vectors, "output")
    rows, logits = numpy_of(layer(IDS)), numpy_of(layer(h, reverse=True))
    keras_ether.remove(layer)
    np.testing.assert_allclose(rows, numpy_of(layer(IDS)) @ g, atol=1e-5)
    expected = numpy_of(layer((h @ g.T).astype("float32"), reverse=True))
    np.testing.assert_allclose(logits, expected, atol=1e-3)
