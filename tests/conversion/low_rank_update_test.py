import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.surgery import verbs
from tests import dense_oracle
from tests import models
from tests import quantized_models
from tests import tuned

L = keras.layers
# Layer, shape of its inputs, and its kernel as a `(d, f)` matrix.
LAYERS = {
    "dense": (lambda: L.Dense(12), (2, 8), lambda w: w),
    "split": (
        lambda: L.EinsumDense("btd,dnh->btnh", (3, 2, 6)),
        (2, 3, 8),
        lambda w: w.reshape(8, 12),
    ),
    "heads first": (
        lambda: L.EinsumDense("btd,ndh->btnh", (3, 2, 6)),
        (2, 3, 8),
        lambda w: w.transpose(1, 0, 2).reshape(8, 12),
    ),
    "join": (
        lambda: L.EinsumDense("btnh,nhd->btd", (3, 12)),
        (2, 3, 2, 4),
        lambda w: w.reshape(8, 12),
    ),
    "embedding": (lambda: L.Embedding(10, 12), (2, 3), lambda w: w),
}
RANKS = {
    ("ether", "input"): 1,
    ("ether", "output"): 1,
    ("ether", "both"): 2,
    ("ether+", "input"): 2,
    ("ether+", "output"): 2,
    ("ether+", "both"): 4,
}


def model_around(layer, shape):
    ids = isinstance(layer, L.Embedding)
    dtype = "int32" if ids else "float32"
    inputs = keras.Input(batch_shape=shape, dtype=dtype)
    return keras.Model(inputs, layer(inputs))


def adapted(make, shape, method="ether", side=None, blocks=2):
    layer = make()
    model = model_around(layer, shape)
    keras_ether.apply(
        model,
        method=method,
        side=side,
        rank_blocks=blocks,
        targets="all",
        trainable=[],
        seed=0,
    )
    tuned.move(model.trainable_weights, seed=1)
    return model, layer


def vectors(layer):
    return {
        name: np.array(ops.convert_to_numpy(vector))
        for name, vector in layer.ether.vectors.items()
    }


def sweep():
    """Every kind and every side once, all pairs nightly."""
    for kind in LAYERS:
        for method, side in RANKS:
            if kind == "embedding" and side != "output":
                continue
            quick = kind == "dense" or (
                kind == "heads first" and (method, side) == ("ether+", "both")
            )
            marks = [] if quick else [pytest.mark.nightly]
            yield pytest.param(kind, method, side, marks=marks)


@pytest.mark.filterwarnings("ignore:.*is frozen now")
@pytest.mark.parametrize(
    "blocks", [2, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 4))]
)
@pytest.mark.parametrize(("kind", "method", "side"), list(sweep()))
def test_a_product_of_the_smallest_rank(kind, method, side, blocks):
    make, shape, matrix = LAYERS[kind]
    model, layer = adapted(make, shape, method, side, blocks)
    ((a, b),) = keras_ether.lora_factors(model).values()
    assert a.shape[1] == b.shape[0] == blocks * RANKS[method, side]
    kernel = matrix(np.array(ops.convert_to_numpy(layer.base_kernel)))
    update = (
        dense_oracle.effective_kernel(method, vectors(layer), kernel) - kernel
    )
    np.testing.assert_allclose(a @ b, update, atol=1e-6)
    # None smaller would do.
    singular = np.linalg.svd(update, compute_uv=False)
    assert np.sum(singular > 1e-6) == min(a.shape[1], *kernel.shape)


@pytest.mark.filterwarnings("ignore:.*is frozen now")
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_each_expert_of_a_bank(method):
    def make():
        return L.EinsumDense("ebd,edf->ebf", (2, 6))

    model, layer = adapted(make, (3, 2, 8), method)
    ((a, b),) = keras_ether.lora_factors(model).values()
    kernel = np.array(ops.convert_to_numpy(layer.base_kernel))
    assert len(a) == len(b) == len(kernel) == 3
    for i, expert in enumerate(kernel):
        own = {k: v[2 * i : 2 * i + 2] for k, v in vectors(layer).items()}
        update = dense_oracle.effective_kernel(method, own, expert) - expert
        np.testing.assert_allclose(a[i] @ b[i], update, atol=1e-6)


@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_a_whole_model_by_path(method):
    model = tuned.adapted("functional", method)
    factors = keras_ether.lora_factors(model)
    assert factors.keys() == verbs.adapted_layers(model).keys()
    bases = {
        path: np.array(ops.convert_to_numpy(layer.base_kernel))
        for path, layer in verbs.adapted_layers(model).items()
    }
    layers = verbs.adapted_layers(model)
    keras_ether.merge(model)
    for path, (a, b) in factors.items():
        merged = np.array(ops.convert_to_numpy(layers[path].kernel))
        update = (a @ b).reshape(merged.shape)
        np.testing.assert_allclose(bases[path] + update, merged, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is frozen now")
@pytest.mark.parametrize("kind", ["int8 weights only", "int4"])
def test_quantized_kernels(kind):
    layer = L.Dense(12, name="target", use_bias=False)
    model = model_around(layer, (8, 8))
    quantized_models.quantize(model, quantized_models.INTEGERS[kind]())
    # The rows of the kernel that the layer computes with, by its own call.
    kernel = models.call(model, np.eye(8, dtype="float32"))
    arguments = {"targets": ["target"], "trainable": []}
    keras_ether.apply(model, method="ether+", rank_blocks=2, **arguments)
    tuned.move(model.trainable_weights, seed=1)
    ((a, b),) = keras_ether.lora_factors(model).values()
    update = (
        dense_oracle.effective_kernel("ether+", vectors(layer), kernel) - kernel
    )
    np.testing.assert_allclose(a @ b, update, atol=1e-5)


@pytest.mark.once
def test_what_has_no_factors_is_named():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 8)),
            L.Conv2D(8, 2, name="conv"),
            L.Flatten(),
            L.Dense(8, name="dense"),
            L.Dense(8, name="turned"),
        ]
    )
    keras_ether.apply(model, targets=["conv", "dense"], trainable=["turned"])
    with pytest.raises(ValueError, match=r"'conv': the kernel of a conv.*skip"):
        keras_ether.lora_factors(model)
    factors = keras_ether.lora_factors(model, skip=["conv"])
    assert factors.keys() == {"dense"}
    with pytest.raises(ValueError, match=r"Received: 'cnov'. Adapted"):
        keras_ether.lora_factors(model, skip=["cnov"])
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        keras_ether.lora_factors(models.mlp())


@pytest.mark.once
@pytest.mark.parametrize("method", ["oft", "naive"])
def test_methods_of_full_rank_are_named(method):
    model = tuned.adapted("mlp", method)
    with pytest.raises(ValueError, match=f"'{method}' has blocks of full rank"):
        keras_ether.lora_factors(model)


@pytest.mark.once
def test_rank():
    model = tuned.adapted("mlp")
    for a, b in keras_ether.lora_factors(model).values():
        assert a.shape[-1] == b.shape[-2] == 2
