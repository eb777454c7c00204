"""A copy of an adapted model is the same adapted model, or an error."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether import methods
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.surgery.layer_tree import LayerTree
from tests import checks
from tests import kinds as k
from tests import models
from tests import quantized_models as qm

pytestmark = checks.WITHOUT_ADVICE


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def within(model):
    """As part of something that Python copies by itself."""
    return copy.deepcopy({"models": [model, 1]})["models"][0]


WAYS = {
    "deepcopy": copy.deepcopy,
    # Keras's copies are deep, always.
    "copy": copy.copy,
    "pickle": pickled,
    "in a list": within,
}


def build(name):
    """Without dropout, which draws from a global generator on PyTorch."""
    if name != "bert":
        return models.ALL[name]()
    return models.keras_hub.models.BertTextClassifier(
        models.bert_backbone(dropout=0.0), num_classes=4, dropout=0.0
    )


def adapt(model, **kwargs):
    arguments = {"rank_blocks": 2, "seed": 0, "trainable": None} | kwargs
    if arguments["trainable"] is None and not hasattr(model, "backbone"):
        arguments["trainable"] = ["head"]
    return keras_ether.apply(model, **arguments)


def adapters(model):
    return {
        path: layer.ether
        for path, layer in LayerTree(model).by_path.items()
        if kinds.is_adapted(layer)
    }


def check_same(found, model):
    """All that a copy must have, and nothing of it shared."""
    assert found is not model
    assert adapters(found).keys() == adapters(model).keys() != set()
    for path, adapter in adapters(model).items():
        other = adapters(found)[path]
        for name in ("config", "seed"):
            assert getattr(other, name) == getattr(adapter, name)
    mine, theirs = (LayerTree(m).by_path for m in (found, model))
    assert list(mine) == list(theirs)
    for path, layer in theirs.items():
        assert mine[path] is not layer
        assert type(mine[path]) is type(layer)
        for state in (
            freezing.is_kept_trainable,
            freezing.is_frozen,
            freezing.flags_before,
            lambda y: [v.trainable for v in (y, *freezing.own_variables(y))],
        ):
            assert state(mine[path]) == state(layer)
    for mine, theirs in zip(found.variables, model.variables, strict=True):
        assert mine is not theirs
        assert mine.path == theirs.path
        assert mine.dtype == theirs.dtype
        assert mine.trainable == theirs.trainable
    checks.equal(found.variables, model.variables)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        assert found.optimizer is not optimizer
        assert type(found.optimizer) is type(optimizer)
        checks.equal(found.optimizer.variables, optimizer.variables)


@pytest.mark.by_turns
@pytest.mark.parametrize(("name", "way"), k.sweep(*WAYS, kinds=models.ALL))
def test_copy_is_the_same_adapted_model(way, name, rng):
    model, x = build(name), models.inputs_of(name, rng)
    adapt(model, dropout=0.2)
    model(x, training=True)
    found = WAYS[way](model)
    check_same(found, model)
    np.testing.assert_array_equal(models.call(found, x), models.call(model, x))


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("name", "method"), k.sweep("ether", "ether+", kinds=models.ALL)
)
def test_copy_trains_on_as_the_original_would(method, name, rng):
    model, x = build(name), models.inputs_of(name, rng)
    adapt(model, method=method, dropout=0.2)
    models.compile_and_fit(model, x)
    found = copy.deepcopy(model)
    check_same(found, model)
    before = models.call(model, x)
    models.fit(found, x)
    np.testing.assert_array_equal(models.call(model, x), before)
    models.fit(model, x)
    check_same(found, model)
    assert np.abs(models.call(found, x) - before).max() > 1e-4


@pytest.mark.parametrize("name", models.ALL)
def test_verbs_work_on_copies(name, rng, tmp_path):
    plain, x = build(name), models.inputs_of(name, rng)
    flags = [v.trainable for v in plain.variables]
    base = models.values(plain.variables)
    model = adapt(plain)
    active = models.call(model, x)
    merged, removed = pickled(model), copy.deepcopy(model)
    with keras_ether.disabled(merged):
        disabled = models.call(merged, x)
    keras_ether.merge(merged)
    np.testing.assert_allclose(models.call(merged, x), active, atol=1e-5)
    path = tmp_path / "a.ether.safetensors"
    keras_ether.save_adapter(removed, path)
    keras_ether.remove(removed)
    np.testing.assert_array_equal(models.call(removed, x), disabled)
    checks.equal(removed.variables, base)
    for found in (merged, removed):
        assert [v.trainable for v in found.variables] == flags
        assert not any(kinds.is_adapted(y) for y in found.layers)
    keras_ether.load_adapter(removed, path)
    np.testing.assert_array_equal(models.call(removed, x), active)
    # The original knows nothing of it.
    np.testing.assert_array_equal(models.call(model, x), active)
    assert adapters(model)


@pytest.mark.by_turns
@pytest.mark.parametrize(("kind", "method"), k.sweep("ether", "ether+"))
def test_every_kind_of_layer(method, kind, rng):
    model, x = k.model_of(kind), k.inputs_of(kind, rng)
    adapt(model, method=method, targets=["target"])
    layer = model.get_layer("target")
    k.randomize(layer, rng)
    for found in (copy.deepcopy(model), pickled(model)):
        check_same(found, model)
        np.testing.assert_array_equal(
            models.call(found, x), models.call(model, x)
        )
    alone = pickled(layer)
    check_same(alone, layer)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(alone(x)), ops.convert_to_numpy(layer(x))
    )
    keras_ether.remove(alone)
    assert type(alone) is layer.plain_class
    assert all(v.trainable for v in alone.variables)


def test_parts_and_adapters_alone(rng):
    model, x = models.subclassed(), models.inputs_of("subclassed", rng)
    adapt(model, method="ether+", dropout=0.5)
    container = model.attention
    found = copy.deepcopy(container)
    check_same(found, container)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(found(x, x)), ops.convert_to_numpy(container(x, x))
    )
    adapter = model.blocks[0].ether
    for found in (copy.deepcopy(adapter), pickled(adapter)):
        assert found.seed == adapter.seed
        assert list(found.vectors) == list(adapter.vectors)
        checks.equal(found.variables, adapter.variables)


def outer_of(inner):
    """A model two levels around an inner one, with layers of its own."""
    inputs = keras.Input(inner.input_shape[1:])
    x = keras.layers.Dense(6, name="on_top")(inner(inputs))
    middle = keras.Model(inputs, x, name="middle")
    return keras.Sequential(
        [keras.Input(inner.input_shape[1:]), middle, keras.layers.Dense(4)]
    )


@pytest.mark.by_turns
@pytest.mark.parametrize("way", WAYS)
def test_model_built_around_an_adapted_one(way, rng):
    inner = adapt(models.mlp())
    outer, x = outer_of(inner), models.inputs_of("mlp", rng)
    models.compile_and_fit(outer, x)
    found = WAYS[way](outer)
    check_same(found, outer)
    models.fit(found, x)
    models.fit(outer, x)
    check_same(found, outer)
    keras_ether.merge(found)
    assert all(
        v.trainable or "moving" in v.path or "seed" in v.path
        for v in found.variables
    )


def test_compiled_model_within_a_compiled_one(rng):
    x = models.inputs_of("mlp", rng)
    inner = adapt(models.mlp())
    models.compile_and_fit(inner, x)
    outer = outer_of(inner)
    models.compile_and_fit(outer, x)
    found = copy.deepcopy(outer)
    check_same(found, outer)
    same = found.layers[0].get_layer(inner.name)
    check_same(same, inner)


@pytest.mark.parametrize(
    ("config", "kind"),
    k.sweep(*("dense", "split", "embedding"), kinds=[*qm.INTEGERS, "float8"]),
)
def test_quantized_kernels(kind, config, rng):
    if config == "float8":
        if kind == "embedding":
            pytest.skip("Keras has no float8 embedding")
        make = keras.quantizers.Float8QuantizationConfig
    else:
        make = qm.INTEGERS[config]
    model = keras.Sequential([qm.layer_of(kind)])
    x = qm.inputs_of(kind, rng)
    model.build(x.shape)
    qm.quantize(model, make())
    adapt(model, targets="all", rank_blocks=1, trainable=())
    for found in (copy.deepcopy(model), pickled(model)):
        check_same(found, model)
        np.testing.assert_array_equal(
            models.call(found, x), models.call(model, x)
        )
    keras_ether.remove(found)
    keras_ether.remove(model)
    checks.equal(found.variables, model.variables)


@pytest.mark.once
@pytest.mark.parametrize("mode", ["gptq", "awq"])
def test_calibrated_kernels_are_an_error_as_in_keras(mode, rng):
    model, x = qm.calibrated(mode), qm.ids_of(rng)
    layer = model.get_layer("block").wide
    with pytest.raises(ValueError, match="could not be loaded"):
        copy.deepcopy(layer)
    adapt(model, targets="block/(split|join|wide)")
    before = models.call(model, x)
    for part in (layer, model):
        with (
            keras.saving.custom_object_scope({"Block": qm.Block}),
            pytest.raises(ValueError, match=f"'{part.name}' can't be copied"),
        ):
            copy.deepcopy(part)
    np.testing.assert_array_equal(models.call(model, x), before)


def standalone():
    L = keras_ether.layers
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            L.EtherEmbedding(12, 8, rank_blocks=2),
            L.EtherConv1D(8, 3, rank_blocks=2, dropout=0.5, seed=3),
            L.EtherEinsumDense("btd,df->btf", (4, 8), rank_blocks=2),
            keras.layers.Flatten(),
            L.EtherDense(8, rank_blocks=2, method="ether+"),
            keras.layers.Dense(4, name="head"),
        ]
    )


@pytest.mark.by_turns
@pytest.mark.parametrize("way", WAYS)
def test_layers_of_their_own(way, rng):
    model = standalone()
    x = rng.integers(12, size=(8, 6))
    models.compile_and_fit(model, x)
    found = WAYS[way](model)
    check_same(found, model)
    models.fit(found, x)
    models.fit(model, x)
    check_same(found, model)
    layer = model.layers[-2]
    check_same(WAYS[way](layer), layer)


def test_adapters_of_both_sorts(rng):
    model, x = standalone(), rng.integers(12, size=(8, 6))
    keras_ether.apply(model, targets=["head"], rank_blocks=2)
    found = pickled(model)
    check_same(found, model)
    np.testing.assert_array_equal(models.call(found, x), models.call(model, x))


@pytest.mark.parametrize("make", [models.mlp, models.subclassed])
def test_plain_models_are_left_to_keras(make):
    model = make()
    found = copy.deepcopy(model)
    assert not vars(found).keys() ^ vars(model).keys()
    checks.equal(found.weights, model.weights)


def test_flags_set_by_hand_are_copied(rng):
    model = adapt(models.mlp())
    first, second, head = (
        model.get_layer(name) for name in ("first", "second", "head")
    )
    first.bias.trainable = True
    second.ether.trainable = False
    head.trainable = False
    found = copy.deepcopy(model)
    check_same(found, model)
    keras_ether.remove(found)
    keras_ether.remove(model)
    assert [v.trainable for v in found.variables] == [
        v.trainable for v in model.variables
    ]


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: keras.optimizers.AdamW(0.01, gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(0.01)
        ),
        lambda: keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(0.1, 10)
        ),
    ],
)
def test_optimizers(optimizer, rng):
    model, x = adapt(models.mlp()), models.inputs_of("mlp", rng)
    model.compile(optimizer(), "mse", metrics=["mae"])
    y = np.zeros((8, 4))
    model.fit(x, y, verbose=0)
    found = copy.deepcopy(model)
    check_same(found, model)
    for each in (model, found):
        each.fit(x, y, verbose=0, shuffle=False)
    check_same(found, model)
    assert found.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


def test_rate_set_on_the_optimizer_is_copied(rng):
    model, x = adapt(models.mlp()), models.inputs_of("mlp", rng)
    models.compile_and_fit(model, x)
    model.optimizer.learning_rate = 0.123
    found = copy.deepcopy(model)
    assert float(found.optimizer.learning_rate) == np.float32(0.123)


def test_sampler_of_a_language_model_is_copied():
    from tests.hub import tasks

    task, _, _ = tasks.causal_lm()
    adapt(task, rank_blocks=1)
    task.compile(sampler=models.keras_hub.samplers.BeamSampler(num_beams=3))
    found = copy.deepcopy(task)
    assert found.sampler.get_config() == task.sampler.get_config()
    assert found.preprocessor.tokenizer.get_vocabulary() == (
        task.preprocessor.tokenizer.get_vocabulary()
    )


@keras.saving.register_keras_serializable(package="tests")
class OwnCompile(models.Subclassed):
    def compile(self, second_optimizer):
        super().compile("sgd", "mse")
        self.second_optimizer = second_optimizer


def test_compile_that_keras_cannot_call_is_warned_of():
    model = OwnCompile()
    model.build((None, 6, 16))
    model.compile(keras.optimizers.SGD())
    adapt(model)
    with pytest.warns(UserWarning, match="`compile\\(\\)` method is custom"):
        found = copy.deepcopy(model)
    assert not found.compiled


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float16"])
def test_dtypes(policy, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = adapt(models.mlp())
        found = copy.deepcopy(model)
    finally:
        keras.config.set_dtype_policy(before)
    check_same(found, model)


def test_lora_on_other_layers(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    model.get_layer("head").enable_lora(2)
    adapt(model, targets=["first", "second"])
    models.compile_and_fit(model, x)
    found = copy.deepcopy(model)
    check_same(found, model)
    np.testing.assert_array_equal(models.call(found, x), models.call(model, x))


def test_copy_within_disabled_is_an_error():
    model = adapt(models.mlp())
    with (
        keras_ether.disabled(model),
        pytest.raises(ValueError, match=r"'first' would stay disabled"),
    ):
        copy.deepcopy(model)


@keras.saving.register_keras_serializable(package="tests")
class Forgetful(keras.Model):
    """Its configuration does not say how many layers it has."""

    def __init__(self, count=1, **kwargs):
        super().__init__(**kwargs)
        self.parts = [keras.layers.Dense(8) for _ in range(count)]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)
        self.built = True

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def get_config(self):
        return {"name": self.name}


def test_configuration_that_makes_another_model_is_an_error():
    model = Forgetful(2)
    model.build((None, 8))
    adapt(model, trainable=["dense"])
    with pytest.raises(ValueError, match="can't be copied"):
        copy.deepcopy(model)


def test_optimizer_of_other_variables_is_an_error(rng):
    model, x = adapt(models.mlp()), models.inputs_of("mlp", rng)
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build([keras.Variable(np.ones(3))])
    model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match=r"can't be copied: its optimizer"):
        copy.deepcopy(model)
    models.compile_and_fit(model, x)
    check_same(copy.deepcopy(model), model)


def test_optimizer_of_a_model_around_that_was_adapted_anew(rng):
    inner = adapt(models.mlp())
    outer, x = outer_of(inner), models.inputs_of("mlp", rng)
    models.compile_and_fit(outer, x)
    keras_ether.remove(inner)
    keras_ether.apply(inner, seed=1)
    check_same(copy.deepcopy(outer), outer)


def test_copy_refuses_what_the_original_refuses():
    found = copy.deepcopy(adapt(models.bert()))
    with pytest.raises(ValueError, match="can't be quantized"):
        found.quantize("int8")
    with pytest.raises(ValueError, match="LoRA"):
        found.backbone.enable_lora(2)
    with pytest.raises(ValueError, match="already"):
        keras_ether.apply(found)


def test_saved_models_are_plain_still(rng, tmp_path):
    model, x = adapt(models.mlp()), models.inputs_of("mlp", rng)
    found = copy.deepcopy(model)
    found.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert not any(kinds.is_adapted(layer) for layer in loaded.layers)
    np.testing.assert_allclose(
        models.call(loaded, x), models.call(model, x), atol=1e-5
    )


def test_pickle_in_another_process(rng, tmp_path):
    model, x = adapt(models.mlp()), models.inputs_of("mlp", rng)
    models.compile_and_fit(model, x)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((model, model.get_layer("second"), x)))
    code = f"""
import pickle, numpy, keras
with open({str(path)!r}, "rb") as file:
    model, layer, x = pickle.load(file)
numpy.save({str(tmp_path / "y.npy")!r}, model.predict(x, verbose=0))
assert layer.ether.built
import keras_ether
keras_ether.merge(model)
keras_ether.remove(layer)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(
        np.load(tmp_path / "y.npy"), model.predict(x, verbose=0)
    )


torch_only = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="it is PyTorch's"
)


def parameters(model):
    return [(name, p.shape) for name, p in model.named_parameters()]


@torch_only
@pytest.mark.parametrize("name", models.ALL)
def test_parameters_of_a_copy_pair(name, rng):
    model = adapt(build(name))
    found = copy.deepcopy(model)
    assert parameters(found) == parameters(model)
    found.load_state_dict(model.state_dict())
    outer = models.keras.Sequential([model]) if name == "mlp" else None
    if outer is not None:
        outer.build((None, 16))
        assert parameters(copy.deepcopy(outer)) == parameters(outer)


@torch_only
@pytest.mark.parametrize("name", models.ALL)
def test_averaged_model(name, rng):
    import torch

    model, x = adapt(build(name)), models.inputs_of(name, rng)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    states = []
    for _ in range(2):
        for variable in model.trainable_variables:
            variable.assign(rng.standard_normal(variable.shape))
        states.append(models.values(model.variables))
        averaged.update_parameters(model)
    means = [
        (a + b) / 2 if a.dtype.kind == "f" else a
        for a, b in zip(*states, strict=True)
    ]
    found = models.values(averaged.module.variables)
    for mine, mean in zip(found, means, strict=True):
        np.testing.assert_allclose(mine, mean, rtol=1e-5, atol=1e-6)
    for variable, mean in zip(model.variables, found, strict=True):
        variable.assign(mean)
    outputs = averaged(x, training=False).detach().numpy()
    np.testing.assert_allclose(outputs, models.call(model, x), atol=1e-6)


@pytest.fixture
def replaced():
    """A method, and a function that registers another one of its name."""
    ether = methods.get("ether")
    method = methods.register(dataclasses.replace(ether, name="mine"))

    def halved(u):
        left, right = ether.factors(u)
        return left * 0.5, right

    yield (
        method.name,
        lambda **fields: methods.register(
            dataclasses.replace(
                method, factors=halved, orthogonal=False, **fields
            )
        ),
    )
    del methods.METHODS[method.name]


def layer_of(method):
    layer = keras_ether.layers.EtherDense(8, method=method, seed=0)
    return keras.Sequential([keras.Input((16,)), layer])


@pytest.mark.once
@pytest.mark.parametrize("strength", [None, "learned"])
@pytest.mark.parametrize("way", [keras_ether.copy, copy.deepcopy])
def test_copy_has_the_method_of_the_original(way, strength, replaced, rng):
    name, replace = replaced
    x = models.inputs_of("mlp", rng)
    model = adapt(build("mlp"), method=name, strength=strength)
    own = layer_of(name)
    for part in (model, own):
        for variable in part.trainable_variables:
            variable.assign(variable + 0.3)
    expected = [models.call(part, x) for part in (model, own)]
    replace()
    for part, outputs in zip((model, own), expected, strict=True):
        found = way(part)
        np.testing.assert_array_equal(models.call(found, x), outputs)
        again = way(found)
        np.testing.assert_array_equal(models.call(again, x), outputs)
    adapter = model.get_layer("first").ether
    assert way(adapter).method is adapter.method


@pytest.mark.once
def test_copy_where_the_new_method_has_other_weights(replaced, rng):
    name, replace = replaced
    x = models.inputs_of("mlp", rng)
    model = adapt(build("mlp"), method=name)
    expected = models.call(model, x)
    replace(weights=("other",))
    found = keras_ether.copy(model)
    np.testing.assert_array_equal(models.call(found, x), expected)


@pytest.mark.once
def test_pickle_of_a_replaced_method_is_an_error(replaced):
    name, replace = replaced
    model = adapt(build("mlp"), method=name)
    assert pickled(model).get_layer("first").ether.config.method == name
    adapter = model.get_layer("first").ether
    replace()
    for part, path in ((model, "first"), (adapter, "ether")):
        with pytest.raises(ValueError, match=f"'{path}' can't be .*'mine'"):
            pickle.dumps(part)


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        "State",
        "_LayerState",
        "AdapterState",
        "_Compiled",
        "_rebuild",
        "_rebuild_adapter",
    ],
)
def test_names_in_earlier_pickles_remain(name):
    found = pickle.loads(f"ckeras_ether.saving.copies\n{name}\n.".encode())
    assert callable(found)


def test_pickle_of_an_adapter_has_the_arguments_of_earlier_ones():
    adapter = adapt(build("mlp")).get_layer("first").ether
    rebuild, (state,) = adapter.__reduce__()
    names = {"config", "seed", "built", "layers", "name"}
    assert state.__getstate__().keys() == names
    twin = rebuild(state)
    for one, other in zip(adapter.weights, twin.weights, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (one, other)))
