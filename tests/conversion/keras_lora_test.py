import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.surgery import verbs
from tests import exported_models
from tests import models
from tests import tuned
from tests.conversion.low_rank_update_test import LAYERS
from tests.conversion.low_rank_update_test import adapted
from tests.exported_models import EXPORTED

L = keras.layers
KINDS = {
    **{kind: LAYERS[kind][:2] for kind in LAYERS if kind != "embedding"},
    "experts": (lambda: L.EinsumDense("ebd,edf->ebf", (2, 6)), (3, 2, 8)),
    "outputs first": (lambda: L.EinsumDense("btd,fd->btf", (3, 6)), (2, 3, 8)),
}


def numpy(x):
    return np.array(ops.convert_to_numpy(x))


@pytest.mark.by_turns
@pytest.mark.filterwarnings("ignore:.*is frozen now")
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        pytest.param(
            kind,
            method,
            marks=[]
            if method == "ether+" or kind == "split"
            else [pytest.mark.nightly],
        )
        for kind in KINDS
        for method in ("ether", "ether+")
    ],
)
def test_the_same_kernel_of_the_smallest_rank(kind, method):
    make, shape = KINDS[kind]
    model, layer = adapted(make, shape, method, blocks=1)
    base, effective = numpy(layer.base_kernel), numpy(layer.kernel)
    assert keras_ether.to_lora(model) is model
    assert layer.lora_enabled
    assert type(layer) in (L.Dense, L.EinsumDense)
    np.testing.assert_allclose(numpy(layer.kernel), effective, atol=1e-5)
    np.testing.assert_array_equal(numpy(layer._kernel), base)
    update = (effective.astype("float64") - base).reshape(-1, base.shape[-1])
    sizes = np.linalg.svd(update, compute_uv=False)
    assert layer.lora_rank == np.sum(sizes > 1e-5 * sizes[0])


@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("functional", marks=pytest.mark.nightly)]
)
def test_a_whole_model(name):
    model = tuned.adapted(name, "ether+")
    x = models.inputs_of(name, np.random.default_rng(0))
    active = models.call(model, x)
    layers = verbs.adapted_layers(model)
    keras_ether.to_lora(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=2e-5)
    for layer in layers.values():
        assert not layer._kernel.trainable
        assert layer.lora_kernel_a.trainable
    before = models.values([v.lora_kernel_b for v in layers.values()])
    models.compile_and_fit(model, x, epochs=1)
    after = models.values([v.lora_kernel_b for v in layers.values()])
    for one, other in zip(before, after, strict=True):
        assert np.abs(one - other).max() > 1e-4


@pytest.mark.filterwarnings("ignore:.*learning rate of")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_of_keras_hub(tmp_path):
    entry = EXPORTED["Llama3"]
    task, other = entry.task(), entry.task()
    x = entry.inputs()
    keras_ether.apply(task, rank_blocks=2, seed=0)
    tuned.move(tuned.vectors_of(task), seed=1)
    active = exported_models.keras_logits(task, x)
    assert len(keras_ether.lora_factors(task)) == 2
    keras_ether.to_lora(task)
    found = exported_models.keras_logits(task, x)
    np.testing.assert_allclose(found, active, atol=1e-5)
    assert len(task.trainable_weights) == 4
    path = str(tmp_path / "m.lora.h5")
    task.backbone.save_lora_weights(path)
    other.backbone.load_lora_weights(path)
    found = exported_models.keras_logits(other, x)
    np.testing.assert_allclose(found, active, atol=1e-5)


@pytest.mark.once
def test_what_can_not_be_lora_is_named():
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            L.Embedding(10, 8, name="embedding"),
            L.Dense(8, name="held", kernel_constraint="non_neg"),
            L.Dense(4, name="head"),
        ]
    )
    keras_ether.apply(model, targets="all", trainable=["head"], rank_blocks=2)
    with pytest.raises(
        ValueError, match=r"'embedding': Keras's.*'held': Keras has no LoRA"
    ):
        keras_ether.to_lora(model)
    assert len(verbs.adapted_layers(model)) == 2
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        keras_ether.to_lora(models.mlp())


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*is frozen now")
def test_an_adapter_at_its_start_has_rank_one():
    model = keras.Sequential([keras.Input((8,)), L.Dense(8)])
    keras_ether.apply(model, method="ether+", rank_blocks=2, targets=["dense"])
    (layer,) = verbs.adapted_layers(model).values()
    keras_ether.to_lora(model)
    assert layer.lora_rank == 1
    assert not (numpy(layer.lora_kernel_a) @ numpy(layer.lora_kernel_b)).any()
