"""What accelerators are given to compile, found on a CPU by `jax.export`."""

import re

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.methods import METHODS

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="lowers by JAX"
)
PLATFORMS = ("tpu", "cuda")


def lowered(function, *arguments):
    """The text of a function lowered for all of `PLATFORMS` at once."""
    import jax
    from jax import export

    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), arguments
    )
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    return exported.mlir_module()


def model_of(method, blocks):
    """A layer of each form: wide, square, narrow, over several axes."""
    x = keras.Input((6, 16))
    y = keras.layers.Dense(32, activation="relu")(x)
    y = keras.layers.EinsumDense("btd,dnh->btnh", (None, 4, 8))(y)
    y = keras.layers.EinsumDense("btnh,nhm->btm", (None, 16), bias_axes="m")(y)
    model = keras.Model(x, keras.layers.Dense(4, name="head")(y))
    keras_ether.apply(
        model,
        method=method,
        rank_blocks=blocks,
        targets="all-linear",
        exclude=["head"],
        seed=0,
        trainable=["head"],
    )
    return model


def values(model):
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    return tuple([v.value for v in group] for group in groups)


@pytest.mark.parametrize(
    ("method", "blocks", "policy"),
    [
        *((method, 2, "bfloat16") for method in METHODS),
        ("ether", 1, "bfloat16"),
        ("ether+", 8, "bfloat16"),
        ("ether", 2, "float32"),
        ("ether+", 2, "float32"),
    ],
    indirect=["policy"],
)
def test_a_training_step_and_predict(method, blocks, policy):
    model = model_of(method, blocks)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    x, y = np.ones((8, 6, 16), "float32"), np.ones((8, 6, 4), "float32")
    model.optimizer.build(model.trainable_variables)
    state = values(model)
    for text in (
        lowered(model.train_step, state, (x, y)),
        lowered(
            lambda *state: model.stateless_call(*state, training=False),
            *state[:2],
            x,
        ),
    ):
        assert "f64" not in text
        assert "dot_general" in text


@pytest.mark.parametrize("policy", ["bfloat16"], indirect=True)
def test_generate(policy):
    from keras_hub.models import Llama3Backbone
    from keras_hub.models import Llama3CausalLM

    backbone = Llama3Backbone(
        vocabulary_size=32,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
    )
    model = Llama3CausalLM(backbone, preprocessor=None)
    model.compile(keras.optimizers.Adam(1e-2))
    for method in METHODS:
        keras_ether.apply(
            model, method=method, rank_blocks=2, targets="all-linear", seed=0
        )
        variables = model.variables

        def generate(state, tokens, model=model, variables=variables):
            pairs = list(zip(variables, state, strict=True))
            with keras.StatelessScope(pairs):
                inputs = {"token_ids": tokens, "padding_mask": tokens > 0}
                return model.generate_step(inputs)["token_ids"]

        tokens = np.array([[1, 2, 0, 0]], "int32")
        text = lowered(generate, [v.value for v in variables], tokens)
        assert "f64" not in text
        assert re.search(r"stablehlo\.while", text)
        keras_ether.remove(model)


PRODUCT = re.compile(r"stablehlo\.dot_general[^\n]*")


@pytest.mark.parametrize("policy", ["float32"], indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_what_merging_writes_is_no_product_of_bfloat16(method, policy):
    """As a TPU would compute float32 unless it is told otherwise."""
    dense = keras_ether.layers.EtherDense(
        12, method=method, side="both", rank_blocks=2, seed=0
    )
    dense.build((None, 8))
    kernel = dense.base_kernel.value
    for fold in (dense.ether.fold, dense.ether.unfold):
        products = PRODUCT.findall(lowered(fold, kernel))
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in p for p in products)
    # Norms are sums.
    if method in ("ether", "ether+"):
        text = lowered(lambda: dense.ether.trained_factors("input"))
        assert not PRODUCT.search(text)
