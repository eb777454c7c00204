import warnings

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.surgery.verbs import adapted_layers
from tests import checks
from tests import kinds
from tests import models
from tests import quantized_models as qm

pytestmark = [
    pytest.mark.filterwarnings("ignore:These layers stay trainable"),
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optim"),
    pytest.mark.filterwarnings("ignore:.compile.*was not called as part"),
]
INTEGERS = ["int4 by 3", pytest.param("int8", marks=pytest.mark.nightly)]
ROUNDED = r"The file holds the kernel of '.*' rounded to int\d again.*error of"


def base(config, seed=0):
    keras.utils.set_random_seed(seed)
    return qm.quantize(models.functional(), qm.INTEGERS[config]())


def fine_tuned(config, method="ether", seed=0, base_seed=None):
    model = base(config, seed if base_seed is None else base_seed)
    keras_ether.apply(
        model,
        method=method,
        rank_blocks=2,
        targets=["shared", "split", "join"],
        seed=seed,
        trainable=["head"],
    )
    rng = np.random.default_rng(seed)
    for layer in adapted_layers(model).values():
        kinds.randomize(layer, rng)
    return model


def save(model, path):
    with pytest.warns(UserWarning, match=ROUNDED) as caught:
        model.save(path) if path.suffix == ".keras" else model.save_weights(
            path
        )
    said = [str(w.message) for w in caught if "The file" in str(w.message)]
    assert len(said) == len(adapted_layers(model))


@pytest.fixture
def x(rng):
    return models.inputs_of("functional", rng)


@pytest.mark.parametrize("config", INTEGERS)
def test_plain_model_reads_the_fine_tuned_kernel(config, x, tmp_path):
    model = fine_tuned(config)
    save(model, tmp_path / "model.weights.h5")
    plain = base(config)
    before = models.call(plain, x)
    plain.load_weights(tmp_path / "model.weights.h5")
    active, read = models.call(model, x), models.call(plain, x)
    # What merging gives, to the bit.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_ether.merge(model, requantize=True)
    np.testing.assert_allclose(read, models.call(model, x), atol=1e-6)
    error = np.abs(read - active).max()
    assert error < (0.05 if config == "int8" else 0.5)
    assert error < np.abs(before - active).max()


@pytest.mark.nightly
@pytest.mark.parametrize("config", ["int4"])
def test_keras_file_loads_as_the_plain_model(config, x, tmp_path):
    model = fine_tuned(config, "ether+")
    save(model, tmp_path / "model.keras")
    plain = keras.models.load_model(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_ether.merge(model, requantize=True)
    np.testing.assert_allclose(
        models.call(plain, x), models.call(model, x), atol=1e-6
    )
    assert plain.get_layer("shared").quantization_mode == config


@pytest.mark.parametrize("method", ["ether", "ether+"])
@pytest.mark.parametrize("config", INTEGERS)
def test_over_the_same_base_everything_is_restored(config, method, x, tmp_path):
    model = fine_tuned(config, method)
    save(model, tmp_path / "model.weights.h5")
    other = fine_tuned(config, method, seed=1, base_seed=0)
    other.load_weights(tmp_path / "model.weights.h5")
    checks.equal(other.weights, models.values(model.weights))


@pytest.mark.parametrize(
    ("config", "method"), [("int8", "ether"), ("int4", "ether+")]
)
def test_over_another_base_predictions_are_kept(config, method, x, tmp_path):
    model = fine_tuned(config, method)
    save(model, tmp_path / "model.weights.h5")
    other = fine_tuned(config, method, seed=1)
    with pytest.warns(UserWarning, match="saved over another base kernel"):
        other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(
        models.call(other, x),
        models.call(model, x),
        atol=0.05 if config == "int8" else 0.5,
    )


@pytest.mark.nightly
def test_base_checkpoint_loads_as_one(x, tmp_path):
    plain = base("int8")
    plain.save_weights(tmp_path / "base.weights.h5")
    model = fine_tuned("int8", seed=1)
    model.load_weights(tmp_path / "base.weights.h5")
    with keras_ether.disabled(model):
        np.testing.assert_array_equal(
            models.call(model, x), models.call(plain, x)
        )


@pytest.mark.nightly
def test_file_of_another_adapter_leaves_the_codes(x, tmp_path):
    save(fine_tuned("int8"), tmp_path / "model.weights.h5")
    other = fine_tuned("int8", "ether+", seed=1)
    shared = other.get_layer("shared").weights[:3]
    codes = models.values(shared)
    with pytest.raises(ValueError, match=r"/ether.*Received: method='ether'"):
        other.load_weights(tmp_path / "model.weights.h5")
    checks.equal(shared, codes)


@pytest.mark.nightly
def test_disabled_saves_the_base(x, tmp_path):
    model = fine_tuned("int8")
    with keras_ether.disabled(model):
        model.save_weights(tmp_path / "base.weights.h5")
        expected = models.call(model, x)
    plain = base("int8")
    plain.load_weights(tmp_path / "base.weights.h5")
    np.testing.assert_array_equal(models.call(plain, x), expected)


@pytest.mark.parametrize(
    ("kind", "mode"), [("embedding", "int4"), ("untied", "int8")]
)
def test_tables(kind, mode, tmp_path):
    def make():
        keras.utils.set_random_seed(0)
        layer = qm.layer_of(kind)
        layer.quantize(mode)
        model = keras.Sequential([keras.Input((10,), dtype="int32"), layer])
        return model, layer

    ids = np.arange(10)[None]
    model, _ = make()
    keras_ether.apply(model, rank_blocks=2, targets="all", seed=0)
    with pytest.warns(UserWarning, match=ROUNDED):
        model.save_weights(tmp_path / "model.weights.h5")
    plain, _ = make()
    plain.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(
        models.call(plain, ids),
        models.call(model, ids),
        atol=1e-3 if mode == "int8" else 0.01,
    )
    other, _ = make()
    keras_ether.apply(other, rank_blocks=2, targets="all", seed=1)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(
        models.call(other, ids), models.call(model, ids)
    )


@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_float8_file(method, x, tmp_path):
    """A float kernel: the file holds it folded, with the scales it has."""

    def make(seed=0):
        keras.utils.set_random_seed(0)
        model = models.functional()
        model.quantize("float8")
        plain = models.values(model.weights)
        keras_ether.apply(
            model,
            method=method,
            rank_blocks=2,
            targets=["shared", "split"],
            seed=seed,
            trainable=["head"],
        )
        return model, plain

    model, _ = make()
    # TensorFlow has no eager steps of Keras's float8.
    models.compile_and_fit(model, x, run_eagerly=False)
    model.save_weights(tmp_path / "model.weights.h5")
    plain = models.functional()
    plain.quantize("float8")
    plain.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(
        models.call(plain, x), models.call(model, x), atol=1e-6
    )
    other, _ = make(seed=1)
    other.load_weights(tmp_path / "model.weights.h5")
    checks.equal(other.weights, models.values(model.weights))


def calibrated(mode, seed=0):
    model = qm.calibrated(mode)
    keras_ether.apply(
        model,
        rank_blocks=2,
        targets=["split", "join", "wide"],
        seed=seed,
        trainable=["head"],
    )
    return model


@pytest.mark.parametrize("mode", ["gptq", "awq"])
def test_calibrated_kernels_have_adapter_files_only(mode, rng, tmp_path):
    model, ids = calibrated(mode), qm.ids_of(rng)
    for layer in adapted_layers(model).values():
        kinds.randomize(layer, rng)
    for name in ("model.weights.h5", "model.keras"):
        save = model.save if name.endswith("keras") else model.save_weights
        with pytest.raises(ValueError, match=rf"{mode}.*`keras_ether.save_ad"):
            save(tmp_path / name)
    path = tmp_path / "m.ether.safetensors"
    keras_ether.save_adapter(model, path)
    expected = models.call(model, ids)
    keras_ether.load_adapter(keras_ether.remove(model), path)
    np.testing.assert_array_equal(models.call(model, ids), expected)
