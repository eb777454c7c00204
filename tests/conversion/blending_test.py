import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.surgery import verbs
from keras_ether.surgery.layer_tree import LayerTree
from tests import models
from tests import quantized_models
from tests import tuned


def written(path, method="ether", seed=0, **kwargs):
    """A file, and what each layer of the merged model holds."""
    model = tuned.adapted("mlp", method, seed)
    keras_ether.save_adapter(model, path)
    return weights_of(keras_ether.merge(model))


def weights_of(model):
    return {
        f"{name}/{v.name}": np.array(ops.convert_to_numpy(v))
        for name, layer in LayerTree(model).layers.items()
        for v in layer.weights
    }


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.5, -1.0), (0.0, 1.0)])
def test_a_weighted_sum_of_deviations(weights, tmp_path):
    base = weights_of(tuned.base("mlp"))
    files = [tmp_path / f"{name}.ether.safetensors" for name in "ab"]
    tuned_a = written(files[0], "ether", seed=1)
    tuned_b = written(files[1], "ether+", seed=2)
    model = tuned.base("mlp")
    flags = [v.trainable for v in model.variables]
    found = keras_ether.blend(model, dict(zip(files, weights, strict=True)))
    assert found is model
    for name, value in weights_of(model).items():
        expected = (
            base[name]
            + weights[0] * (tuned_a[name] - base[name])
            + weights[1] * (tuned_b[name] - base[name])
        )
        np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=name)
    assert [v.trainable for v in model.variables] == flags
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        verbs.adapted_layers(model)


def test_zero_is_the_base_to_the_bit_and_compiles_nothing_again(tmp_path):
    path = tmp_path / "a.ether.safetensors"
    tuned_a = written(path)
    model = tuned.base("mlp")
    x = models.inputs_of("mlp", np.random.default_rng(0))
    before = model.predict(x, verbose=0)
    function = model.predict_function
    keras_ether.blend(model, {str(path): 0})
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    keras_ether.blend(model, {str(path): 1})
    assert model.predict_function is function
    for name, value in weights_of(model).items():
        np.testing.assert_allclose(value, tuned_a[name], atol=1e-5)
    merged = models.call(model, x)
    np.testing.assert_allclose(model.predict(x, verbose=0), merged, atol=1e-5)


@pytest.mark.once
def test_other_layers_in_each_file(tmp_path):
    files = {}
    for name in ("first", "second"):
        model = tuned.base("mlp")
        keras_ether.apply(model, targets=[name], trainable=["head"], seed=0)
        files[name] = tmp_path / f"{name}.ether.safetensors"
        keras_ether.save_adapter(model, files[name])
        keras_ether.merge(model)
        files[name] = files[name], weights_of(model)[f"{name}/kernel"]
    model = keras_ether.blend(
        tuned.base("mlp"), {path: 1.0 for path, _ in files.values()}
    )
    for name, (_, kernel) in files.items():
        found = weights_of(model)[f"{name}/kernel"]
        np.testing.assert_allclose(found, kernel, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3), (0.5, 0.4, 0.2)])
def test_kernels_that_are_trained_themselves(weights, tmp_path):
    """Beside an adapter in one file, without one in another, and as usual."""
    base = weights_of(tuned.base("mlp"))
    files, deviations = {}, []
    for i, weight in enumerate(weights):
        model = tuned.base("mlp")
        targets, train = [
            (["first", "second"], ["head"]),
            (["first"], ["second", "head"]),
            (["first", "second"], ["head"]),
        ][i]
        keras_ether.apply(model, targets=targets, trainable=train, seed=i)
        if i == 0:
            model.trainable = True
        tuned.move(model.trainable_variables, i)
        path = tmp_path / f"{i}.ether.safetensors"
        keras_ether.save_adapter(model, path)
        found = weights_of(keras_ether.merge(model))
        deviations.append({n: found[n] - base[n] for n in base})
        files[path] = weight
    model = keras_ether.blend(tuned.base("mlp"), files)
    for name, value in weights_of(model).items():
        expected = base[name] + sum(
            weight * deviation[name]
            for weight, deviation in zip(weights, deviations, strict=True)
        )
        np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=name)


@pytest.mark.once
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        *(({"a": w}, "'a' must be a finite") for w in ("1", None, np.nan)),
        ({}, "`weights` must be a dictionary"),
    ],
)
def test_what_are_no_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        keras_ether.blend(tuned.base("mlp"), weights)


@pytest.mark.once
def test_models_that_can_not_be_blended_into(tmp_path):
    path = tmp_path / "a.ether.safetensors"
    written(path)
    adapted = tuned.adapted("mlp")
    with pytest.raises(ValueError, match=r"without adapters.*remove` first"):
        keras_ether.blend(adapted, {path: 1.0})
    other = tuned.base("mlp", seed=9)
    before = models.values(other.variables)
    with pytest.raises(ValueError, match="another base"):
        keras_ether.blend(other, {path: 1.0})
    for value, variable in zip(before, other.variables, strict=True):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(variable))
    with pytest.warns(UserWarning, match="another base"):
        keras_ether.blend(other, {path: 1.0}, check_base=False)
    quantized = quantized_models.quantize(
        tuned.base("mlp"), keras.quantizers.Int8QuantizationConfig()
    )
    with pytest.warns(UserWarning, match="quantized to integers.*'head'"):
        keras_ether.apply(quantized, rank_blocks=2, trainable=["head"])
    keras_ether.save_adapter(quantized, path)
    keras_ether.remove(quantized)
    with pytest.raises(ValueError, match=r"'first' is quantized to int8"):
        keras_ether.blend(quantized, {path: 1.0})
