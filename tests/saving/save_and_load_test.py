import os
import random
import warnings

import keras
import keras_hub
import numpy as np
import pytest

import keras_ether
from keras_ether.saving import adapter_file
from keras_ether.saving.adapter_file import AdapterFile
from tests import checks
from tests import kinds as kinds_of_layers
from tests import models

pytestmark = [
    pytest.mark.filterwarnings("ignore:These layers stay trainable"),
    *checks.WITHOUT_ADVICE,
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
]


def make(name, seed=0):
    keras.utils.set_random_seed(seed)
    return models.ALL[name]()


def randomize(model, seed=1):
    """Any values for what trains, as training would give them."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if not variable.overwrite_with_gradient:
            variable.assign(0.3 * rng.standard_normal(variable.shape))
    return model


def adapted(name="mlp", **kwargs):
    kwargs = {
        "targets": "all-linear",
        "rank_blocks": 2,
        "trainable": None if name == "bert" else ["head"],
    } | kwargs
    return randomize(
        keras_ether.apply(make(name), **{"method": "ether"} | kwargs)
    )


def check_loads(model, fresh, x, path):
    """Adapters go by a file from one model to another one, which is as it."""
    keras_ether.save_adapter(model, path)
    assert keras_ether.load_adapter(fresh, path) is fresh
    np.testing.assert_array_equal(models.call(fresh, x), models.call(model, x))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.ether.safetensors"


@pytest.mark.parametrize(
    ("name", "method"),
    [("mlp", "ether"), *((name, "ether+") for name in models.ALL)],
)
def test_file_makes_a_base_the_fine_tuned_model(name, method, rng, path):
    model, fresh = adapted(name, method=method), make(name)
    check_loads(model, fresh, models.inputs_of(name, rng), path)
    assert [v.trainable for v in fresh.variables] == [
        v.trainable for v in model.variables
    ]
    flags = [v.trainable for v in make(name).variables]
    keras_ether.merge(fresh)
    assert [v.trainable for v in fresh.variables] == flags


def test_loaded_adapters_train(rng, path):
    keras_ether.save_adapter(adapted(), path)
    model = make("mlp")
    x = models.inputs_of("mlp", rng)
    models.compile_and_fit(model, x, run_eagerly=False)
    model.set_weights(make("mlp").get_weights())
    keras_ether.load_adapter(model, path)
    before = models.values(model.weights)
    trainable = {id(v) for v in model.trainable_weights}
    # Without a new `compile`.
    models.fit(model, x)
    for variable, value in zip(model.weights, before, strict=True):
        moved = not np.array_equal(*models.values([variable]), value)
        assert moved == (id(variable) in trainable), variable.path


@pytest.mark.parametrize("kind", kinds_of_layers.LAYERS)
def test_every_kind_of_layer(kind, rng, path):
    keras.utils.set_random_seed(0)
    model = kinds_of_layers.model_of(kind)
    keras_ether.apply(
        model, targets="all", trainable=["head"], rank_blocks=2, method="ether+"
    )
    randomize(model)
    keras.utils.set_random_seed(0)
    fresh = kinds_of_layers.model_of(kind)
    check_loads(model, fresh, kinds_of_layers.inputs_of(kind, rng), path)


def test_several_configurations_in_one_file(rng, path):
    model = make("mlp")
    keras_ether.apply(
        model,
        targets=["first"],
        trainable=["head"],
        dropout=0.25,
        method="ether",
    )
    keras_ether.apply(
        model, targets=["second"], method="ether+", rank_blocks=2, side="output"
    )
    randomize(model)
    fresh = make("mlp")
    check_loads(model, fresh, models.inputs_of("mlp", rng), path)
    rows = keras_ether.summary(fresh, print_fn=str).rows
    assert rows == keras_ether.summary(model, print_fn=str).rows
    assert [row.method for row in rows] == ["ether", "ether+"]
    assert [layer.ether.config.dropout for layer in fresh.layers[::2][:2]] == [
        0.25,
        0,
    ]


def test_header(path):
    model = adapted("bert", method="ether+", dropout=0.1)
    keras_ether.save_adapter(model, path, metadata={"task": "A", "n": [1, 2.5]})
    header = keras_ether.read_adapter_header(path)
    (group,) = header["adapters"]
    assert group["method"] == "ether+"
    assert group["rank_blocks"] == 2
    assert group["side"] == "both"
    assert group["dropout"] == 0.1
    block = "bert_backbone/transformer_layer_0/self_attention_layer"
    assert f"{block}/query" in group["layers"]
    assert header["weights"] == {"logits": ["kernel", "bias"]}
    assert header["trainable"] == ["logits"]
    assert header["metadata"] == {"task": "A", "n": [1, 2.5]}
    assert header["versions"]["keras_ether"] == keras_ether.__version__
    assert header["versions"]["keras"] == keras.__version__
    assert header["versions"]["backend"] == keras.backend.backend()
    assert header["format_version"] == 3


@pytest.mark.parametrize(
    "metadata",
    [
        "text",
        {1: 2},
        {"a": {1, 2}},
        {"a": (1, 2)},
        {"a": float("nan")},
        {"a": b""},
    ],
)
def test_bad_metadata(metadata, path):
    with pytest.raises(ValueError, match="`metadata` must be a dictionary"):
        keras_ether.save_adapter(adapted(), path, metadata=metadata)
    assert not path.exists()


def test_place_that_is_no_place_is_named(tmp_path):
    model = adapted()
    path = tmp_path / "nowhere" / "m.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"no folder.*create it"
    ) as error:
        keras_ether.save_adapter(model, path)
    assert error.value.filename == str(path)
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a folder.*m\.safetensors"):
        keras_ether.save_adapter(model, tmp_path / "m.safetensors")


def test_numbers_of_numpy_are_plain_in_the_file(path):
    model = adapted(
        rank_blocks=np.int64(2), dropout=np.float32(0.25), seed=np.uint32(1)
    )
    keras_ether.save_adapter(model, path)
    (group,) = keras_ether.read_adapter_header(path)["adapters"]
    assert (group["rank_blocks"], group["dropout"]) == (2, 0.25)
    fresh = keras_ether.load_adapter(make("mlp"), path)
    assert fresh.layers[0].ether.config.dropout == 0.25


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras copies tensors itself"
)
def test_no_variable_is_handed_to_numpy(rng, path):
    model = adapted(dropout=0.25)
    model.compile("sgd", "mse")
    x = models.inputs_of("mlp", rng)
    saver = keras_ether.callbacks.AdapterCheckpoint(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "__array__ implementation")
        keras_ether.save_adapter(model, path)
        keras_ether.load_adapter(model, path)
        model.fit(x, x[:, :4], verbose=0, callbacks=[saver])
        keras_ether.callbacks.resume(model, path)


def test_model_without_an_adapter(path):
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        keras_ether.save_adapter(make("mlp"), path)
    assert not path.exists()


def test_value_that_is_not_finite_is_not_saved(path):
    model = adapted()
    keras_ether.save_adapter(model, path)
    before = path.read_bytes()
    model.layers[0].ether.input_u.assign(np.full((2, 8), np.inf))
    with pytest.raises(ValueError, match=r"adapter/first/input_u.*not finite"):
        keras_ether.save_adapter(model, path)
    assert path.read_bytes() == before


def test_onto_the_same_adapters_fills_them(rng, path):
    x = models.inputs_of("mlp", rng)
    model = adapted()
    keras_ether.save_adapter(model, path)
    expected = models.call(model, x)
    models.compile_and_fit(model, x)
    flags = [v.trainable for v in model.variables]
    optimizer = model.optimizer
    assert np.abs(models.call(model, x) - expected).max() > 1e-3
    keras_ether.load_adapter(model, path)
    np.testing.assert_array_equal(models.call(model, x), expected)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert [v.trainable for v in model.variables] == flags
    assert model.optimizer is optimizer
    other = adapted(dropout=0.5)
    keras_ether.load_adapter(other, path)
    assert other.layers[0].ether.config.dropout == 0.5
    np.testing.assert_array_equal(models.call(other, x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ether+"}, "'first' has method='ether\\+'.*'ether'"),
        ({"rank_blocks": 4}, "'first' has .*rank_blocks=4.*rank_blocks=2"),
        ({"side": "output"}, "'first' has .*side='output'.*side='input'"),
        ({"targets": ["first"]}, "'second' has no adapter"),
        ({"trainable": ["head", "batch_normalization"]}, "file has no.*gamma"),
    ],
)
def test_onto_other_adapters_is_an_error(arguments, message, path):
    keras_ether.save_adapter(adapted(), path)
    model = adapted(**arguments)
    before = checks.state(model)
    with pytest.raises(ValueError, match=f"m.ether.*does not fit.*{message}"):
        keras_ether.load_adapter(model, path)
    checks.unchanged(model, before)


def test_batch_normalization_of_the_head_travels(rng, path):
    x = models.inputs_of("mlp", rng)
    kept = ["head", "batch_normalization"]
    model = adapted(targets=["first", "second"], trainable=kept)
    models.compile_and_fit(model, x)
    check_loads(model, make("mlp"), x, path)


def test_another_base_is_an_error_that_says_so(rng, path):
    keras_ether.save_adapter(adapted(), path)
    model = make("mlp", seed=1)
    before = checks.state(model)
    with pytest.raises(ValueError, match=r"'first' and 1 more.*check_base=Fal"):
        keras_ether.load_adapter(model, path)
    checks.unchanged(model, before)
    with pytest.warns(UserWarning, match="another base.*loaded because"):
        keras_ether.load_adapter(model, path, check_base=False)
    now = models.values([model.layers[0].ether.input_u])[0]
    then = models.values([adapted().layers[0].ether.input_u])[0]
    np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.layers[2].kernel, "weights of 'second' differ"),
        (lambda m: m.layers[0].bias, "weights of 'first' differ"),
        (lambda m: m.layers[1].gamma, "weights or shapes of other layers"),
    ],
)
def test_one_changed_number_of_the_base_is_found(change, message, path):
    keras_ether.save_adapter(adapted(), path)
    model = make("mlp")
    variable = change(model)
    value = models.values([variable])[0]
    value.flat[-1] += 1e-3
    variable.assign(value)
    with pytest.raises(ValueError, match=message):
        keras_ether.load_adapter(model, path)


def test_new_head_of_the_base_is_not_part_of_the_base(rng, path):
    keras_ether.save_adapter(adapted(), path)
    model = make("mlp")
    model.layers[3].kernel.assign(np.ones((8, 4)))
    keras_ether.load_adapter(model, path)
    x = models.inputs_of("mlp", rng)
    np.testing.assert_array_equal(
        models.call(model, x), models.call(adapted(), x)
    )


def test_other_shapes_and_layers_are_named(path):
    keras_ether.save_adapter(adapted(), path)

    def mlp(width=32, classes=4, names=("first", "second")):
        return keras.Sequential(
            [
                keras.Input((16,)),
                keras.layers.Dense(width, name=names[0]),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(8, use_bias=False, name=names[1]),
                keras.layers.Dense(classes, name="head"),
            ]
        )

    norm = keras.layers.LayerNormalization()
    norm.build((None, 16))
    for model, message in (
        (mlp(width=64), r"second/input_u.*shape \(2, 32\).*\(2, 16\)"),
        (mlp(classes=3), r"weights/head/kernel.*\(8, 3\).*\(8, 4\)"),
        (
            mlp(names=("first", "other")),
            "the layers 'second', which.*Its layers: .*'other'",
        ),
        (norm, "the layers 'first', 'second'.*It holds no layers"),
        (mlp(width=31), "'second'.*d=31"),
    ):
        before = checks.state(model)
        with pytest.raises(ValueError, match=message):
            keras_ether.load_adapter(model, path, check_base=False)
        checks.unchanged(model, before)


def test_unbuilt_model(path):
    keras_ether.save_adapter(adapted(), path)
    with pytest.raises(ValueError, match="is not built"):
        keras_ether.load_adapter(
            keras.Sequential([keras.layers.Dense(4)]), path
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits(dtype, rng, path):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = adapted()
        keras_ether.save_adapter(model, path)
        tensors = adapter_file.read(path).tensors
        assert tensors["weights/head/kernel"].dtype.name == dtype
        assert tensors["adapter/first/input_u"].dtype.name == "float32"
        fresh = keras_ether.load_adapter(make("mlp"), path)
        checks.equal(fresh.weights, model.weights)
    finally:
        keras.config.set_dtype_policy(previous)
    # The same values in another dtype are the same base.
    wide = make("mlp")
    for variable, value in zip(
        wide.weights,
        models.values(v for v in model.weights if "ether" not in v.path),
        strict=True,
    ):
        variable.assign(value.astype("float32"))
    keras_ether.load_adapter(wide, path)
    x = models.inputs_of("mlp", rng)
    np.testing.assert_allclose(
        models.call(wide, x), models.call(model, x).astype("float32"), atol=0.1
    )


@pytest.mark.parametrize(
    "mode",
    ["int8", pytest.param("int4", marks=pytest.mark.nightly), "float8"],
)
def test_quantized_base(mode, rng, path):
    def base(seed=0):
        model = make("mlp", seed)
        model.quantize(mode)
        return model

    x = models.inputs_of("mlp", rng)
    model = keras_ether.apply(base(), trainable=["head"])
    if mode == "float8":
        # Its scales move in training, which TensorFlow has to compile.
        models.compile_and_fit(model, x, run_eagerly=False)
    randomize(model)
    keras_ether.save_adapter(model, path)
    fresh = keras_ether.load_adapter(base(), path)
    checks.equal(fresh.weights, model.weights)
    with pytest.raises(ValueError, match="another base"):
        keras_ether.load_adapter(base(seed=1), path)


def test_layers_of_their_own_are_filled(rng, path):
    def model():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.Input((16,)),
                keras_ether.layers.EtherDense(8, name="a"),
                keras.layers.Dense(4),
            ]
        )

    x = models.inputs_of("mlp", rng)
    check_loads(randomize(model()), model(), x, path)


def test_task_around_an_adapted_backbone(rng, path):
    def task(backbone):
        return keras_hub.models.BertTextClassifier(backbone, num_classes=4)

    keras.utils.set_random_seed(0)
    backbone = models.bert_backbone()
    keras_ether.apply(backbone)
    model = randomize(task(backbone))
    keras.utils.set_random_seed(0)
    fresh = task(models.bert_backbone())
    check_loads(model, fresh, models.inputs_of("bert", rng), path)


def forged_for_a_model():
    """Files that are whole, and wrong for the model."""

    def shape(h, t):
        t["adapter/first/input_u"] = np.ones((4, 4), "float32")

    def head_shape(h, t):
        t["weights/head/kernel"] = np.ones((8, 5), "float32")

    def head_dtype(h, t):
        t["weights/head/bias"] = np.ones(4, "int32")

    def head_too_large(h, t):
        t["weights/head/bias"] = np.full(4, 1e300)

    def no_head(h, t):
        h["weights"], h["trainable"] = {}, []
        del t["weights/head/kernel"], t["weights/head/bias"]

    def part_of_head(h, t):
        h["weights"] = {"head": ["kernel"]}
        del t["weights/head/bias"]

    def unknown_weight(h, t):
        h["weights"]["head"] = ["kernel", "bias", "other"]
        t["weights/head/other"] = np.ones(4, "float32")

    def unknown_layer(h, t):
        layers = h["adapters"][0]["layers"]
        layers["third"] = layers["first"]
        t["adapter/third/input_u"] = t["adapter/first/input_u"]

    def layer_without_kernel(h, t):
        layers = h["adapters"][0]["layers"]
        layers["batch_normalization"] = layers["first"]
        t["adapter/batch_normalization/input_u"] = t["adapter/first/input_u"]

    def unknown_kept(h, t):
        h["trainable"].append("third")

    def divisor(h, t):
        h["adapters"][0]["rank_blocks"] = 5

    def huge_divisor(h, t):
        h["adapters"][0]["rank_blocks"] = 10**30

    def base(h, t):
        h["base"] = "0" * 16

    return [f for f in locals().values() if callable(f)]


@pytest.mark.parametrize("forge", forged_for_a_model())
@pytest.mark.parametrize("filled", [False, True])
def test_file_forged_for_a_model_leaves_it(forge, filled, path):
    model = adapted()
    keras_ether.save_adapter(model, path)
    content = adapter_file.read(path)
    if not filled:
        model = make("mlp")
    tensors = dict(content.tensors)
    forge(content.header, tensors)
    adapter_file.write(path, AdapterFile(content.header, tensors))
    before = checks.state(model)
    with pytest.raises(ValueError, match=r"m\.ether\.safetensors"):
        keras_ether.load_adapter(model, path)
    checks.unchanged(model, before)


def test_damaged_files_leave_the_model(path):
    keras_ether.save_adapter(adapted(), path)
    data = path.read_bytes()
    model = make("mlp")
    model.compile("adam", "mse")
    before = checks.state(model)
    rng = random.Random(0)
    for _ in range(200):
        place = rng.randrange(len(data))
        flipped = bytes([data[place] ^ (1 << rng.randrange(8))])
        for damaged in (
            data[:place],
            data[:place] + flipped + data[place + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"m\.ether\.safetensors"):
                keras_ether.load_adapter(model, path)
    checks.unchanged(model, before)
    path.write_bytes(data)
    keras_ether.load_adapter(model, path)


@pytest.mark.once
def test_all_linear_maps_of_minilm_are_less_than_100_kb(path):
    model = keras_hub.models.BertTextClassifier(
        keras_hub.models.BertBackbone(
            # Its words and places are no part of the file.
            vocabulary_size=100,
            max_sequence_length=8,
            num_layers=6,
            num_heads=12,
            hidden_dim=384,
            intermediate_dim=1536,
        ),
        num_classes=2,
    )
    keras_ether.apply(model, targets="all-linear", method="ether")
    keras_ether.save_adapter(model, path, metadata={"task": "sentiment"})
    assert os.path.getsize(path) < 100_000
