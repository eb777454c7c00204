"""Adapted layers whose activations are computed again in the backward pass."""

import keras
import numpy as np
import pytest

import keras_ether
from tests import kinds
from tests import models

BACKEND = keras.backend.backend()
MODES = {
    "full": {"mode": "full"},
    "activations": {"mode": "activations"},
    "larger than": {"mode": "larger_than", "output_size_threshold": 1},
    "list of layers": {"mode": "list_of_layers", "layer_names": ["target"]},
}


def fit(model, x, y, run_eagerly=False, **arguments):
    """The losses of an adapted model."""
    keras_ether.apply(
        model, rank_blocks=2, trainable=["head"], seed=0, **arguments
    )
    model.compile(keras.optimizers.SGD(0.05), "mse", run_eagerly=run_eagerly)
    models.build_optimizer(model)
    history = model.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0)
    return history.history["loss"]


def losses(kind, method, dropout, scope=None, run_eagerly=False):
    keras.utils.set_random_seed(1)
    if scope is None:
        model = kinds.model_of(kind)
    else:
        with keras.RematScope(**MODES[scope]):
            layer = kinds.layer_of(kind)
        model = kinds.model_of(kind, layer)
    x = kinds.inputs_of(kind, np.random.default_rng(0))
    return fit(
        model,
        x,
        np.ones((len(x), 2), "float32"),
        run_eagerly,
        targets=["target"],
        method=method,
        side="both",
        dropout=dropout,
    )


@pytest.mark.by_turns
@pytest.mark.filterwarnings("ignore:.*must be floating")
@pytest.mark.parametrize(
    ("kind", "scope"),
    [
        *((kind, "full") for kind in kinds.LAYERS),
        *kinds.sweep("activations", "larger than", "list of layers"),
    ],
)
def test_losses_are_those_without(kind, scope):
    method = "ether+" if scope == "full" else "ether"
    dropout = 0.5 if scope in ("full", "list of layers") else 0.0
    # TensorFlow compiles what is computed again, of each mode.
    expected = losses(kind, method, dropout, None, models.EAGERLY)
    eagerly = models.EAGERLY and dropout > 0
    found = losses(kind, method, dropout, scope, eagerly)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("scope", ["full", "activations"])
def test_attention(scope):
    """Its inner layers are called by it, with an outer `training`."""
    if BACKEND == "tensorflow" and scope == "full":
        pytest.skip("Keras can't rematerialize it: it takes keyword arguments")

    def run(scope):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4, 8))
        if scope is None:
            layer = keras.layers.MultiHeadAttention(2, 4)
        else:
            with keras.RematScope(**MODES[scope]):
                layer = keras.layers.MultiHeadAttention(2, 4)
        outputs = keras.layers.Dense(2, name="head")(layer(inputs, inputs))
        model = keras.Model(inputs, outputs)
        x = np.random.default_rng(0).standard_normal((4, 4, 8))
        x = x.astype("float32")
        return fit(model, x, x[..., :2], method="ether+")

    np.testing.assert_allclose(run(scope), run(None), rtol=1e-4)


def deep_stack(scope, method):
    """Layers whose outputs need not be kept for the backward pass."""
    layers = [keras.Input((64,))]
    for i in range(6):
        with keras.RematScope(mode=scope):
            layers.append(keras.layers.Dense(64, "gelu", name=f"d{i}"))
    model = keras.Sequential([*layers, keras.layers.Dense(2, name="head")])
    return keras_ether.apply(
        model, method=method, rank_blocks=4, trainable=["head"]
    )


@pytest.mark.skipif(BACKEND != "torch", reason="counts what PyTorch keeps")
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_less_is_kept_in_memory(method):
    import torch

    def kept(scope):
        model = deep_stack(scope, method)
        x = torch.randn(512, 64)
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x, training=True)
        y.sum().backward()
        return sum(storages.values())

    assert kept("full") < 0.5 * kept(None)


@pytest.mark.skipif(BACKEND != "jax", reason="of what JAX keeps")
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_fewer_values_are_kept_on_jax(method):
    import jax

    def kept(scope):
        model = deep_stack(scope, method)
        fixed = [v.value for v in model.non_trainable_variables]

        def outputs(trained):
            x = np.ones((512, 64), "float32")
            return model.stateless_call(trained, fixed, x, training=True)[0]

        trained = [v.value for v in model.trainable_variables]
        _, backward = jax.vjp(outputs, trained)
        arrays = {id(a): a.size for a in jax.tree.leaves(backward)}
        return sum(arrays.values())

    assert kept("full") < 0.5 * kept(None)


def test_scope_of_a_mixed_policy():
    def run(scope):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((8,))
        with keras.RematScope(mode=scope):
            layer = keras.layers.Dense(8, name="a", dtype="mixed_bfloat16")
        model = keras.Model(
            inputs, keras.layers.Dense(2, name="head")(layer(inputs))
        )
        x = models.inputs_of("mlp", np.random.default_rng(0))[:, :8]
        return fit(model, x, x[:, :2], method="ether+")

    np.testing.assert_allclose(run("full"), run(None), rtol=1e-3)
