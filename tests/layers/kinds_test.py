import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.layers import kinds
from tests import models


class ReadsKernel(keras.layers.Dense):
    def call(self, inputs):
        return ops.relu(ops.matmul(inputs, self.kernel)) + self.bias


@keras.saving.register_keras_serializable(package="tests")
class CallsSuper(keras.layers.Dense):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs)


class ReadsPrivateKernel(keras.layers.Dense):
    def call(self, inputs):
        return ops.matmul(inputs, self._kernel)


class SameCall(keras.layers.Dense):
    pass


def model_of(layer):
    return keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(4)])


@pytest.mark.filterwarnings("ignore:.*is frozen now")
@pytest.mark.parametrize("layer_class", [ReadsKernel, CallsSuper, SameCall])
def test_subclass_is_adapted(layer_class, rng):
    layer = layer_class(8, name="own")
    model = model_of(layer)
    x = rng.standard_normal((4, 8)).astype("float32")
    base = models.call(model, x)
    keras_ether.apply(model, targets=["own"], method="ether+")
    np.testing.assert_array_equal(models.call(model, x), base)
    models.compile_and_fit(model, x)
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-4
    keras_ether.merge(model)
    assert type(layer) is layer_class
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)


def test_subclass_that_does_not_read_its_kernel_is_refused_by_name():
    model = model_of(ReadsPrivateKernel(8, name="own"))
    message = r"'own'.*`call` of ReadsPrivateKernel does not read"
    with pytest.raises(ValueError, match=message):
        keras_ether.apply(model, targets=["own"])
    report = keras_ether.plan(model, targets="all-linear", print_fn=str)
    assert [row.path for row in report.rows] == ["dense"]
    assert "does not read `self.kernel`" in report.skipped[0].reason


def test_subclass_that_folds_has_no_dropout():
    model = model_of(ReadsKernel(8, name="own"))
    with pytest.raises(ValueError, match=r"'own'.*without `dropout`"):
        keras_ether.apply(model, targets=["own"], dropout=0.1)


def test_adapted_layer_passes_for_its_class():
    model = models.mlp()
    keras_ether.apply(model, trainable=["head"])
    layer = model.layers[0]
    assert isinstance(layer, keras.layers.Dense)
    assert layer.__class__ is keras.layers.Dense
    assert type(layer).__name__ == "Dense"
    assert kinds.is_adapted(layer)
    config = keras.saving.serialize_keras_object(layer)
    assert (config["module"], config["class_name"]) == ("keras.layers", "Dense")
    copy = keras.models.clone_model(model)
    assert type(copy.layers[0]) is keras.layers.Dense


def test_registered_subclass_is_saved_under_its_registered_name(rng, tmp_path):
    model = model_of(CallsSuper(8, name="own"))
    x = rng.standard_normal((4, 8)).astype("float32")
    keras_ether.apply(model, targets=["own"], trainable=["dense"])
    model.save(tmp_path / "model.keras")
    plain = keras.models.load_model(tmp_path / "model.keras")
    assert type(plain.layers[0]) is CallsSuper
    np.testing.assert_allclose(
        models.call(plain, x), models.call(model, x), atol=1e-5
    )


def test_kind_is_that_of_the_nearest_base():
    assert kinds.kind_of(SameCall(2)).layer_class is keras.layers.Dense
    assert kinds.kind_of(keras.layers.ReLU()) is None
