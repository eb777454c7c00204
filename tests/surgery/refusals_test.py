import warnings

import keras
import numpy as np
import pytest

import keras_ether
from tests import models
from tests import quantized_models as qm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
]
CONFIGS = {
    "int8": keras.quantizers.Int8QuantizationConfig,
    "int4": keras.quantizers.Int4QuantizationConfig,
    "float8": keras.quantizers.Float8QuantizationConfig,
    "gptq": lambda: keras.quantizers.GPTQConfig(["a"], qm.Tokenizer()),
    "awq": lambda: keras.quantizers.AWQConfig(["a"], qm.Tokenizer()),
}


def adapted(**kwargs):
    model = models.mlp()
    # The first layer has no adapter and would be quantized before the error.
    return keras_ether.apply(
        model, targets=["second"], trainable=["head"], **kwargs
    )


WAYS = {
    "model": lambda model, mode: model.quantize(mode, CONFIGS[mode]()),
    "model by config": lambda model, mode: model.quantize(
        config=CONFIGS[mode]()
    ),
    "filters": lambda model, mode: model.quantize(
        mode, CONFIGS[mode](), filters="second"
    ),
    "layer": lambda model, mode: model.get_layer("second").quantize(
        mode, CONFIGS[mode]()
    ),
    "layer, unchecked": lambda model, mode: model.get_layer("second").quantize(
        mode, CONFIGS[mode](), type_check=False
    ),
}


@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("way", WAYS)
def test_quantizing_is_an_error_and_changes_nothing(way, mode, rng):
    model, x = adapted(), models.inputs_of("mlp", rng)
    before = models.call(model, x)
    with pytest.raises(ValueError, match=r"second' has.*Quantize the model"):
        WAYS[way](model, mode)
    np.testing.assert_array_equal(models.call(model, x), before)
    assert {layer.quantization_mode for layer in model.layers} == {None}


@pytest.mark.parametrize("mode", ["int8", "int4", "float8", "gptq/4/8"])
def test_dtype_policy_that_quantizes_is_an_error(mode, rng):
    model, x = adapted(), models.inputs_of("mlp", rng)
    before = models.call(model, x)
    layer = model.get_layer("second")
    with pytest.raises(ValueError, match=r"second' has.*Quantize the model"):
        layer.dtype_policy = f"{mode}_from_float32"
    assert layer.dtype_policy.name == "float32"
    np.testing.assert_array_equal(models.call(model, x), before)
    layer.dtype_policy = "mixed_bfloat16"
    assert layer.compute_dtype == "bfloat16"


def test_standalone_layer_is_not_quantized():
    layer = keras_ether.layers.EtherDense(4, rank_blocks=2)
    layer.build((None, 8))
    with pytest.raises(ValueError, match=r"ether_dense.*can't be quantized"):
        layer.quantize("int8")


def test_model_around_is_an_error():
    inner = adapted()
    inputs = keras.Input((16,))
    outer = keras.Model(inputs, inner(inputs))
    with pytest.raises(ValueError, match=r"second' has.*Quantize the model"):
        outer.quantize("int8")


@pytest.mark.parametrize("verb", ["merge", "remove"])
def test_quantizing_afterwards(verb):
    plain, model = models.mlp(), adapted()
    getattr(keras_ether, verb)(model)
    assert vars(model).keys() == vars(plain).keys()
    assert vars(model.layers[2]).keys() == vars(plain.layers[2]).keys()
    model.quantize("int8")
    assert model.layers[2].quantization_mode == "int8"


def test_quantizing_after_a_part_was_merged():
    inner = models.mlp()
    inputs = keras.Input((16,))
    outer = keras.Model(inputs, inner(inputs))
    keras_ether.apply(outer, targets=["second"], trainable=["head"])
    keras_ether.merge(inner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outer.quantize("int8")
    assert inner.get_layer("second").quantization_mode == "int8"
