import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.adapters import quantized_kernel
from keras_ether.surgery.verbs import adapted_layers
from tests import checks
from tests import kinds
from tests import models
from tests import quantized_models as qm

pytestmark = [
    pytest.mark.filterwarnings("ignore:These layers stay trainable"),
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    pytest.mark.filterwarnings("ignore:.*passed to the model"),
]
METHODS = ["ether", "ether+"]
COMPILED = keras.backend.backend() != "torch"
SLOW = ["join", "reversible", "untied"]
PAIRS = [
    ("int8", "ether"),
    ("int4", "ether+"),
    pytest.param("int8", "ether+", marks=pytest.mark.nightly),
    pytest.param("int4", "ether", marks=pytest.mark.nightly),
]
KINDS = [
    pytest.param(kind, marks=pytest.mark.nightly if kind in SLOW else ())
    for kind in qm.LAYERS
]


def numpy_of(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def kernel_of(layer):
    return layer.embeddings if hasattr(layer, "embeddings") else layer.kernel


# Keras's zero points do not reach far enough for a small group of one sign.
@pytest.mark.parametrize("config", ["int8", "int4 by channel"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_of_codes(kind, config):
    """Close to the kernel before; rounding it again gives the same codes."""
    layer = qm.layer_of(kind)
    kernel = numpy_of(kernel_of(layer))
    layer.quantize(config=qm.INTEGERS[config]())
    numbers = quantized_kernel.dequantize(layer)
    step = np.abs(kernel).max() / (120 if "int8" in config else 7)
    np.testing.assert_allclose(numpy_of(numbers), kernel, atol=step)
    rounded = quantized_kernel.requantize(layer, numbers)
    assert rounded.error < 1e-5
    for variable in quantized_kernel.code_variables(layer):
        value, now = rounded.values[variable.name], numpy_of(variable)
        assert value.dtype == now.dtype
        np.testing.assert_allclose(value, now, rtol=1e-5)


@pytest.mark.parametrize("config", ["int8 weights only", "int4 by 3"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_that_the_layer_computes_with(kind, config, rng):
    layer = qm.layer_of(kind)
    layer.quantize(config=qm.INTEGERS[config]())
    x = qm.inputs_of(kind, rng)
    expected = numpy_of(layer(x))
    plain = qm.layer_of(kind)
    kernel_of(plain).assign(quantized_kernel.dequantize(layer))
    np.testing.assert_allclose(numpy_of(plain(x)), expected, atol=1e-5)


def test_quantizers_of_the_layer_round_again():
    """Here one scale for the whole kernel, and not one for each output."""
    layer = qm.layer_of("dense")
    config = keras.quantizers.Int8QuantizationConfig(
        keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-3, 3))
    )
    layer.quantize(config=config)
    rounded = quantized_kernel.requantize(
        layer, quantized_kernel.dequantize(layer)
    )
    assert set(np.unique(rounded.values["kernel"])) <= set(range(-3, 4))


def test_error_is_the_distance_relative_to_the_norm(rng):
    layer = qm.layer_of("split")
    layer.quantize("int4")
    kernel = rng.standard_normal((8, 2, 4)).astype("float32")
    rounded = quantized_kernel.requantize(layer, ops.array(kernel))
    rounded.assign_to(layer)
    distance = numpy_of(quantized_kernel.dequantize(layer)) - kernel
    expected = np.linalg.norm(distance) / np.linalg.norm(kernel)
    assert rounded.error == pytest.approx(expected, rel=1e-4)
    assert 0.02 < rounded.error < 0.15


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("mode", "method"), [*PAIRS, ("float8", "ether"), ("float8", "ether+")]
)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_base_trains_and_stays(mode, method, rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    model.quantize(mode)
    first = model.layers[0]
    codes = models.values(first.weights[:1])
    base = models.call(model, x)
    keras_ether.apply(model, method=method, trainable=["head"])
    if method == "ether+":
        np.testing.assert_array_equal(models.call(model, x), base)
    assert np.abs(numpy_of(first.kernel)).max() > 0
    history = models.compile_and_fit(model, x, run_eagerly=False)
    assert np.all(np.isfinite(history.history["loss"]))
    for vector in models.values(first.ether.vectors.values()):
        assert np.all(np.isfinite(vector))
    checks.equal(first.weights[:1], codes)
    keras_ether.remove(model)
    checks.equal(first.weights[:1], codes)


@pytest.mark.parametrize(("mode", "method"), PAIRS)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_merge_rounds_again_on_request_and_says_the_error(mode, method, rng):
    model, x = models.functional(), models.inputs_of("functional", rng)
    model.quantize(mode)
    keras_ether.apply(
        model, method=method, rank_blocks=2, targets=["shared", "split"]
    )
    for layer in adapted_layers(model).values():
        kinds.randomize(layer, rng)
    active, weights = models.call(model, x), models.values(model.weights)
    message = rf"'shared'.*quantized \('{mode}'\).*requantize=True"
    with pytest.raises(ValueError, match=message):
        keras_ether.merge(model)
    checks.equal(model.weights, weights)
    effective = {
        path: numpy_of(layer.ether.fold(quantized_kernel.dequantize(layer)))
        for path, layer in adapted_layers(model).items()
    }
    with pytest.warns(UserWarning, match="Merged kernels were ") as caught:
        keras_ether.merge(model, requantize=True)
    (warning,) = [w for w in caught if "Merged kernels" in str(w.message)]
    for path, kernel in effective.items():
        layer = model.get_layer(path)
        assert type(layer).__module__.startswith("keras.")
        distance = numpy_of(quantized_kernel.dequantize(layer)) - kernel
        error = np.linalg.norm(distance) / np.linalg.norm(kernel)
        (said,) = re.findall(rf"([\d.]+)% in '{path}'", str(warning.message))
        assert error == pytest.approx(float(said) / 100, abs=1e-4)
        assert 0 < error < (0.01 if mode == "int8" else 0.15)
    tolerance = 0.05 if mode == "int8" else 0.5
    np.testing.assert_allclose(models.call(model, x), active, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "mode"), [("embedding", "int4"), ("untied", "int8")]
)
def test_merge_of_a_table(kind, mode, rng):
    layer = qm.layer_of(kind)
    layer.quantize(mode)
    keras_ether.apply(layer, method="ether", rank_blocks=2, targets="all")
    rows = numpy_of(layer(np.arange(10)))
    with pytest.warns(UserWarning, match="Merged kernels were rounded"):
        keras_ether.merge(layer, requantize=True)
    tolerance = 1e-3 if mode == "int8" else 0.01
    merged = numpy_of(layer(np.arange(10)))
    np.testing.assert_allclose(merged, rows, atol=tolerance)
    assert np.abs(merged - rows).max() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_merged_float8_computes_the_same(method, rng):
    """Its kernel is of floats, rounded by scales that followed the adapter."""
    model, x = models.functional(), models.inputs_of("functional", rng)
    model.quantize("float8")
    keras_ether.apply(
        model, method=method, rank_blocks=2, targets=["shared", "split"]
    )
    # Keras's float8 has no gradient in TensorFlow's eager steps.
    models.compile_and_fit(model, x, run_eagerly=False)
    scale = numpy_of(model.get_layer("shared").kernel_scale)
    assert scale != 1
    active = models.call(model, x)
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_float8_draws_dropout(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    model.quantize("float8")
    keras_ether.apply(
        model,
        targets=["first"],
        rank_blocks=1,
        dropout=0.5,
        trainable=["head"],
        method="ether",
    )
    layer = model.layers[0]
    seen = {
        float(np.abs(numpy_of(layer(x, training=True))).sum())
        for _ in range(20)
    }
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("mode", "method"),
    [
        # Keras's calibration takes long to compile.
        pytest.param(
            "gptq", "ether+", marks=pytest.mark.nightly if COMPILED else ()
        ),
        ("awq", "ether"),
    ],
)
def test_calibrated_base_trains_and_stays(mode, method, rng):
    model, x = qm.calibrated(mode), qm.ids_of(rng)
    base, weights = models.call(model, x), models.values(model.weights)
    keras_ether.apply(
        model,
        method=method,
        rank_blocks=2,
        targets=["split", "join", "wide"],
        trainable=["head"],
    )
    layers = adapted_layers(model)
    assert [p.rpartition("/")[2] for p in layers] == ["split", "join", "wide"]
    sizes = [y.ether.view.sizes(y.ether.kernel_shape) for y in layers.values()]
    assert sizes == [(1, 8, 8), (1, 8, 8), (1, 8, 16)]
    if method == "ether+":
        np.testing.assert_array_equal(models.call(model, x), base)
    history = models.compile_and_fit(model, x)
    assert np.all(np.isfinite(history.history["loss"]))
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-3
    with pytest.raises(ValueError, match=rf"quantized \('{mode}'\) with calib"):
        keras_ether.merge(model, requantize=True)
    np.testing.assert_array_equal(models.call(model, x), active)
    keras_ether.remove(model)
    names = [v.path for v in model.weights]
    assert any("quantized" in n or "kernel_scale" in n for n in names)
    for variable, now, before in zip(
        model.weights, models.values(model.weights), weights, strict=True
    ):
        if not variable.path.startswith("head"):
            np.testing.assert_array_equal(now, before)


def test_gptq_of_eight_bits_has_its_kernel_elsewhere(rng):
    model = qm.calibrated("gptq", weight_bits=8)
    report = keras_ether.plan(
        model, rank_blocks=2, trainable=["head"], print_fn=str
    )
    shapes = [row.kernel_shape for row in report.rows]
    assert shapes == [(8, 2, 4), (2, 4, 8), (8, 16)]


def test_layer_marked_and_not_calibrated_is_an_error():
    """Keras leaves layers outside the blocks that it calibrates so."""
    model = models.mlp()
    config = keras.quantizers.GPTQConfig(None, None, group_size=4)
    model.layers[0].quantize("gptq", config=config)
    with pytest.raises(ValueError, match=r"'first'.*was not calibrated"):
        keras_ether.apply(model, targets=["first"])
