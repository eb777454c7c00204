import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.adapters import kinds
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


class HelperReadsKernel(keras.layers.Dense):
    def call(self, inputs):
        return ops.tanh(self.product(inputs))

    def product(self, inputs):
        return ops.matmul(inputs, self.kernel)


class SameCall(keras.layers.Dense):
    pass


class StandardizedConv(keras.layers.Conv2D):
    """A `convolution_op` of its own, as Keras documents it."""

    def convolution_op(self, inputs, kernel):
        mean = ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, kernel - mean)


class ConvReadsKernel(keras.layers.Conv2DTranspose):
    def call(self, inputs):
        return ops.conv_transpose(inputs, ops.tanh(self.kernel))


class SameConvTranspose(keras.layers.Conv2DTranspose):
    pass


class ReadsTable(keras.layers.Embedding):
    def call(self, inputs):
        ids = ops.cast(inputs, "int32")
        return ops.tanh(ops.take(self.embeddings, ids, axis=0))


class CallsReversible(keras.layers.ReversibleEmbedding):
    def call(self, inputs, reverse=False):
        return 2.0 * super().call(inputs, reverse=reverse)


class ReadsBoth(keras.layers.Dense):
    def call(self, inputs):
        assert inputs.shape[-1] == self.kernel.shape[0]
        return ops.matmul(inputs, self._kernel) + self.bias


class Normalized(keras.layers.Dense):
    @property
    def kernel(self):
        return self._kernel / ops.norm(self._kernel)


class ReadsPrivateTable(keras.layers.Embedding):
    def call(self, inputs):
        return ops.take(self._embeddings, inputs, axis=0)


def model_of(layer):
    return keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(4)])


SUBCLASSES = {
    ReadsKernel: (lambda: ReadsKernel(8, name="own"), (8,)),
    CallsSuper: (lambda: CallsSuper(8, name="own"), (8,)),
    HelperReadsKernel: (lambda: HelperReadsKernel(8, name="own"), (8,)),
    SameCall: (lambda: SameCall(8, name="own"), (8,)),
    StandardizedConv: (lambda: StandardizedConv(4, 2, name="own"), (2, 2, 4)),
    ConvReadsKernel: (lambda: ConvReadsKernel(4, 2, name="own"), (2, 2, 4)),
    SameConvTranspose: (lambda: SameConvTranspose(4, 2, name="own"), (2, 2, 4)),
    ReadsTable: (lambda: ReadsTable(10, 8, name="own"), (3,)),
    CallsReversible: (lambda: CallsReversible(10, 8, name="own"), (3,)),
}


@pytest.mark.by_turns
@pytest.mark.filterwarnings("ignore:.*is frozen now")
@pytest.mark.parametrize("layer_class", SUBCLASSES)
def test_subclass_is_adapted(layer_class, rng):
    make, shape = SUBCLASSES[layer_class]
    layer = make()
    model = keras.Sequential(
        [
            keras.Input(shape),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    if isinstance(layer, keras.layers.Embedding):
        x = rng.integers(0, 10, (4, *shape))
    else:
        x = rng.standard_normal((4, *shape)).astype("float32")
    base = models.call(model, x)
    keras_ether.apply(model, targets=["own"], method="ether+", rank_blocks=2)
    np.testing.assert_array_equal(models.call(model, x), base)
    models.compile_and_fit(model, x)
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-4
    keras_ether.merge(model)
    assert type(layer) is layer_class
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)


def test_subclass_that_does_not_read_its_kernel_is_refused_by_name():
    table = ReadsPrivateTable(10, 8, name="own")
    table.build()
    model = model_of(ReadsPrivateKernel(8, name="own"))
    for refused, message in (
        (table, r"'own'.*ReadsPrivateTable does not read `self.embeddings`"),
        (model, r"'own'.*`call` of ReadsPrivateKernel does not read"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_ether.apply(refused, targets=["own"])
    report = keras_ether.plan(model, targets="all-linear", print_fn=str)
    assert [row.path for row in report.rows] == ["dense"]
    assert "does not read `self.kernel`" in report.skipped[0].reason


@pytest.mark.parametrize(
    ("layer_class", "message"),
    [
        (ReadsBoth, "ReadsBoth does not read `self.kernel` alone"),
        (Normalized, "its `kernel` is no variable, but computed"),
        (keras.layers.Dense, "it has an attribute `ether` of its own"),
    ],
)
def test_layer_with_another_meaning_of_a_name_is_refused(layer_class, message):
    model = model_of(layer_class(8, name="own"))
    if layer_class is keras.layers.Dense:
        model.layers[0].ether = "the user's"
    with pytest.raises(
        ValueError, match=f"'own' can't be adapted: .*{message}"
    ):
        keras_ether.apply(model, targets=["own"])
    # Of layers that are not named it is left out.
    report = keras_ether.plan(model, targets="all-linear", print_fn=str)
    assert [row.path for row in report.rows] == ["dense"]
    if layer_class is keras.layers.Dense:
        assert model.layers[0].ether == "the user's"


def test_subclass_that_folds_has_no_dropout():
    model = model_of(ReadsKernel(8, name="own"))
    with pytest.raises(ValueError, match=r"'own'.*excludes `dropout`"):
        keras_ether.apply(model, targets=["own"], dropout=0.1)


def test_adapted_layer_passes_for_its_class():
    model = models.mlp()
    keras_ether.apply(model, trainable=["head"])
    layer = model.layers[0]
    assert isinstance(layer, keras.layers.Dense)
    assert layer.plain_class is keras.layers.Dense
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


def test_layer_with_an_adapter_has_no_lora():
    for layer, shape in (
        (keras.layers.Conv2D(4, 2, name="own"), (1, 2, 2, 4)),
        (keras.layers.Embedding(10, 4, name="own"), (1, 3)),
    ):
        layer.build(shape)
        keras_ether.apply(layer, rank_blocks=2)
        with pytest.raises(ValueError, match="'own' has an ETHER adapter"):
            layer.enable_lora(2)
        keras_ether.remove(layer)
        layer.enable_lora(2)
        with pytest.raises(ValueError, match=r"'own'.*LoRA"):
            keras_ether.apply(layer)


OTHERS = {
    "depthwise": (
        keras.layers.DepthwiseConv2D(2, name="own"),
        (1, 3, 3, 4),
        "a depthwise kernel mixes no channels",
    ),
    "separable": (
        keras.layers.SeparableConv1D(4, 2, name="own"),
        (1, 3, 4),
        "its two kernels are one operation",
    ),
    "single channels": (
        keras.layers.Conv2D(8, 2, groups=4, name="own"),
        (1, 3, 3, 4),
        "each of its groups has a single channel",
    ),
    "recurrent cell": (
        keras.layers.LSTMCell(4, name="own"),
        (1, 4),
        "no adapter for its kind",
    ),
    "positions": (
        keras_hub.layers.PositionEmbedding(4, name="own"),
        (1, 3, 4),
        "no adapter for its kind",
    ),
}


@pytest.mark.filterwarnings("ignore:.*is frozen now")
@pytest.mark.parametrize("case", OTHERS)
def test_what_cannot_be_adapted_is_named_with_the_reason(case):
    layer, shape, reason = OTHERS[case]
    layer.build(shape)
    other = keras.layers.Dense(8, name="other")
    other.build((None, 8))

    class Both(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.own, self.other = layer, other
            self.built = True

    model = Both()
    with pytest.raises(ValueError, match=f"'own'.*can't be adapted: {reason}"):
        keras_ether.apply(model, targets=["own", "other"])
    report = keras_ether.plan(model, targets="all", print_fn=str)
    assert [row.path for row in report.rows] == ["other"]
    assert [(s.path, s.reason) for s in report.skipped] == [("own", reason)]
    keras_ether.apply(model, targets="all")
    report = keras_ether.summary(model, print_fn=str)
    assert [s.path for s in report.skipped] == ["own"]


def test_kind_is_that_of_the_nearest_base():
    assert kinds.kind_of(SameCall(2)).layer_class is keras.layers.Dense
    assert kinds.kind_of(
        keras_hub.layers.ReversibleEmbedding(10, 8)
    ) is kinds.kind_of(keras.layers.ReversibleEmbedding(10, 8))
    assert kinds.kind_of(keras.layers.ReLU()) is None
