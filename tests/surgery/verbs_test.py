import warnings

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.adapters import kinds
from keras_ether.surgery.layer_tree import LayerTree
from tests import checks
from tests import dense_oracle
from tests import models
from tests import tuned

METHODS = ["ether", "ether+", "oft", "naive"]
pytestmark = [
    *checks.WITHOUT_ADVICE,
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
]


@pytest.fixture(params=models.ALL)
def model_name(request):
    return request.param


@pytest.fixture
def model(model_name):
    return models.ALL[model_name]()


@pytest.fixture
def x(model_name, rng):
    return models.inputs_of(model_name, rng)


def head_of(model):
    """What `apply` must be told to keep trainable."""
    return None if hasattr(model, "backbone") else ["head"]


def apply(model, **kwargs):
    kwargs = {"targets": "all-linear", "rank_blocks": 2, "seed": 0} | kwargs
    return keras_ether.apply(model, trainable=head_of(model), **kwargs)


@pytest.mark.by_turns
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_life_of_an_adapter(model, x, method):
    check_life(model, x, method)


@pytest.mark.by_turns
@pytest.mark.parametrize("method", ["oft", "naive"])
def test_life_of_a_baseline(method, rng):
    check_life(models.mlp(), models.inputs_of("mlp", rng), method)


def check_life(model, x, method):
    """Apply, train, disable, merge; apply again, train, remove."""
    base_weights = models.values(model.weights)
    base_flags = [v.trainable for v in model.variables]
    base = models.call(model, x)

    assert apply(model, method=method) is model
    head = model.get_layer("logits" if hasattr(model, "backbone") else "head")
    moving = {id(v) for v in [*head.variables, *tuned.vectors_of(model)]}
    assert {id(v) for v in model.trainable_variables} == moving
    before = models.values(model.weights)
    started = models.call(model, x)
    if method == "ether":
        assert np.abs(started - base).max() > 1e-3
    else:
        np.testing.assert_array_equal(started, base)
    # Once compiled, once not, on TensorFlow too.
    eagerly = models.EAGERLY and method == "ether"
    models.compile_and_fit(model, x, run_eagerly=eagerly)
    for variable, value in zip(model.weights, before, strict=True):
        moved = not np.array_equal(models.values([variable])[0], value)
        assert moved == (id(variable) in moving), variable.path
    active = models.call(model, x)
    assert np.abs(active - started).max() > 1e-4
    np.testing.assert_allclose(model.predict(x, verbose=0), active, atol=1e-5)
    assert keras_ether.merge(model) is model
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0), active, atol=1e-5)
    assert [v.trainable for v in model.variables] == base_flags
    assert not LayerTree(model).adapted

    for variable, value in zip(model.weights, base_weights, strict=True):
        variable.assign(value)
    apply(model, method=method)
    with keras_ether.disabled(model):
        np.testing.assert_array_equal(models.call(model, x), base)
    models.compile_and_fit(model, x)
    assert keras_ether.remove(model) is model
    for variable, value in zip(model.weights, base_weights, strict=True):
        if id(variable) not in moving:
            np.testing.assert_array_equal(models.values([variable])[0], value)
    assert [v.trainable for v in model.variables] == base_flags


@pytest.mark.parametrize("side", [None, "input", "output", "both"])
@pytest.mark.parametrize("method", METHODS)
def test_kernel_is_what_explicit_matrices_give(method, side):
    model = models.functional()
    apply(model, method=method, side=side)
    for layer in LayerTree(model).adapted.values():
        for vector in layer.ether.vectors.values():
            vector.assign(np.random.default_rng(1).normal(size=vector.shape))
        vectors = {
            n: models.values([v])[0] for n, v in layer.ether.vectors.items()
        }
        base = models.values([layer.base_kernel])[0]
        _, d, f = layer.ether.view.sizes(base.shape)
        expected = dense_oracle.effective_kernel(
            method, vectors, base.reshape(d, f)
        )
        kernel = ops.convert_to_numpy(layer.kernel)
        assert kernel.shape == base.shape
        np.testing.assert_allclose(
            kernel.reshape(d, f), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "model_name",
    [
        # To compile it takes longer than all others together.
        pytest.param(name, marks=pytest.mark.nightly)
        if name == "bert" and keras.backend.backend() != "torch"
        else name
        for name in models.ALL
    ],
    indirect=True,
)
def test_fit_goes_on_without_a_new_compile(model, x):
    models.compile_and_fit(model, x, run_eagerly=False)
    model.predict(x, verbose=0)
    optimizer = model.optimizer
    apply(model, method="ether+")
    before = models.values(model.trainable_variables)
    frozen = models.values(model.non_trainable_variables)
    y = np.arange(8) % 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    after = models.values(model.trainable_variables)
    assert any(
        not np.array_equal(a, b) for a, b in zip(before, after, strict=True)
    )
    for variable, value in zip(
        model.non_trainable_variables, frozen, strict=True
    ):
        if "seed" not in variable.path:
            np.testing.assert_array_equal(models.values([variable])[0], value)
    assert model.optimizer is optimizer
    np.testing.assert_allclose(
        model.predict(x, verbose=0), models.call(model, x), atol=1e-5
    )
    keras_ether.merge(model)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)


def test_disabled_resets_compiled_functions(model, x):
    base = model.predict(x, verbose=0)
    apply(model)
    active = model.predict(x, verbose=0)
    with keras_ether.disabled(model) as inside:
        assert inside is model
        np.testing.assert_array_equal(model.predict(x, verbose=0), base)
        with keras_ether.disabled(model):
            pass
        np.testing.assert_array_equal(model.predict(x, verbose=0), base)
    np.testing.assert_array_equal(model.predict(x, verbose=0), active)


def test_training_step_right_after_apply():
    """A step must not find one buffer under two variables (JAX donates)."""
    model = models.mlp()
    model.compile("adam", "mse")
    keras_ether.apply(model, method="ether+", trainable=["head"])
    u, v = models.values(model.layers[0].ether.vectors.values())[:2]
    np.testing.assert_array_equal(u, v)
    loss = model.train_on_batch(np.ones((4, 16)), np.ones((4, 4)))
    assert np.all(np.isfinite(loss))


def test_backbone_alone_and_a_model_around_it(rng):
    backbone = models.bert_backbone()
    keras_ether.apply(backbone, targets="all-linear", rank_blocks=2)
    task = keras_hub.models.BertTextClassifier(backbone, num_classes=4)
    x = models.inputs_of("bert", rng)
    head = {id(v) for v in task.output_dense.variables}
    report = keras_ether.summary(task, print_fn=str)
    assert report.head == 16 * 4 + 4
    assert head <= {id(v) for v in task.trainable_variables}
    before = models.values(backbone.non_trainable_weights)
    models.compile_and_fit(task, x)
    checks.equal(backbone.non_trainable_weights, before)
    active = models.call(task, x)
    keras_ether.merge(task)
    np.testing.assert_allclose(models.call(task, x), active, atol=1e-5)


def test_model_around_an_adapted_part_is_fitted_as_it_is(rng):
    task = models.bert()
    x = models.inputs_of("bert", rng)
    models.compile_and_fit(task, x)
    keras_ether.apply(task.backbone)
    assert type(task.output_dense) is keras.layers.Dense
    frozen = models.values(task.backbone.non_trainable_weights)
    models.fit(task, x)
    checks.equal(task.backbone.non_trainable_weights, frozen)


def test_head_of_a_task_trains_and_is_no_target():
    task = models.bert()
    keras_ether.apply(task, targets="all")
    assert type(task.output_dense) is keras.layers.Dense
    assert all(v.trainable for v in task.output_dense.variables)
    keras_ether.remove(task)
    # By default, those of KerasHub's LoRA.
    adapted = LayerTree(keras_ether.apply(task)).adapted
    assert len(adapted) == 2
    assert {path.rpartition("/")[2] for path in adapted} == {"query", "value"}


@pytest.mark.parametrize(
    "trainable", [(["head"], None), (None, ["head"])], ids=str
)
def test_second_apply_adds_to_the_first(trainable):
    model = models.mlp()
    flags = [v.trainable for v in model.variables]
    keras_ether.apply(
        model, targets=["first"], trainable=trainable[0], method="ether"
    )
    head = model.get_layer("head")
    assert len(head.trainable_variables) == (2 if trainable[0] else 0)
    keras_ether.apply(
        model, targets=["second"], trainable=trainable[1], method="ether+"
    )
    assert len(head.trainable_variables) == 2
    report = keras_ether.summary(model, print_fn=str)
    assert [row.method for row in report.rows] == ["ether", "ether+"]
    assert report.head == 8 * 4 + 4
    keras_ether.remove(model)
    assert [v.trainable for v in model.variables] == flags


def test_frozen_before_apply_is_frozen_after_remove():
    task = models.bert()
    task.backbone.trainable = False
    keras_ether.apply(task, method="ether")
    assert len(task.trainable_variables) == 2 + 2
    keras_ether.remove(task)
    assert not task.backbone.trainable
    assert len(task.trainable_variables) == 2


@pytest.mark.parametrize("how", ["apply", "load_adapter", "copy"])
def test_head_of_a_frozen_model_trains_until_remove(how, tmp_path):
    """What `trainable` or a file names trains, whatever it did before."""
    model = models.mlp()
    model.trainable = False
    keras_ether.apply(model, trainable=["head"], method="ether")
    if how == "load_adapter":
        keras_ether.save_adapter(model, tmp_path / "m.safetensors")
        keras_ether.remove(model)
        keras_ether.load_adapter(model, tmp_path / "m.safetensors")
    elif how == "copy":
        model = keras_ether.copy(model)
    assert all(v.trainable for v in model.get_layer("head").weights)
    assert len(model.trainable_variables) == 2 + 2
    assert not model.get_layer("head").get_config().get("trainable")
    keras_ether.remove(model)
    assert not model.get_layer("head").trainable
    assert not model.trainable_variables


def test_variable_of_a_head_that_was_frozen_alone_stays_frozen():
    model = models.mlp()
    model.get_layer("head").bias.trainable = False
    keras_ether.apply(model, trainable=["head"], method="ether")
    assert not model.get_layer("head").bias.trainable
    assert model.get_layer("head").kernel.trainable


@pytest.mark.parametrize("of", ["apply", "keras"])
def test_seed_fixes_the_start(of):
    starts = []
    for seed in (1, 1, 2):
        model = models.mlp()
        keras.utils.set_random_seed(seed if of == "keras" else 0)
        keras_ether.apply(
            model,
            seed=seed if of == "apply" else None,
            trainable=["head"],
            method="ether",
        )
        starts.append(models.values(model.layers[0].ether.vectors.values())[0])
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    lengths = np.linalg.norm(starts[0].reshape(4, 4), axis=-1)
    assert 0.2 < lengths.mean() < 0.9


@pytest.mark.parametrize(
    "integer", [np.int8, np.int64, np.uint32, np.array], ids=repr
)
def test_numbers_of_numpy_are_those_of_python(integer):
    options = {"method": "ether+", "trainable": ["head"]}
    one, other = models.mlp(), models.mlp()
    keras_ether.apply(
        one,
        rank_blocks=integer(2),
        seed=integer(3),
        dropout=np.float32(0.25),
        **options,
    )
    keras_ether.apply(other, rank_blocks=2, seed=3, dropout=0.25, **options)
    adapters = [model.layers[0].ether for model in (one, other)]
    for values in zip(
        *((*a.config.to_dict().values(), a.seed) for a in adapters), strict=True
    ):
        now, expected = values
        assert type(now) is type(expected)
        assert now == expected
    for pair in zip(*(a.vectors.values() for a in adapters), strict=True):
        np.testing.assert_array_equal(*models.values(pair))
    for report in (
        keras_ether.summary(one, print_fn=str),
        keras_ether.plan(models.mlp(), rank_blocks=integer(2), print_fn=str),
    ):
        assert type(report.rows[0].rank_blocks) is int
        assert type(report.trainable) is int


def test_dropout_makes_blocks_the_identity_in_training_only(rng):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    x = rng.standard_normal((4, 8)).astype("float32")
    base = models.call(model, x)
    keras_ether.apply(model, rank_blocks=2, dropout=0.5, seed=0, method="ether")
    active = models.call(model, x)
    np.testing.assert_array_equal(models.call(model, x), active)
    layer = model.layers[0]
    kernel = models.values([layer.base_kernel])[0]
    bias = models.values([layer.bias])[0]
    h = dense_oracle.side_matrix(
        "ether",
        {n: models.values([v])[0] for n, v in layer.ether.vectors.items()},
        "input",
    )
    allowed = []
    for first in (False, True):
        for second in (False, True):
            kept = np.eye(8)
            if first:
                kept[:4, :4] = h[:4, :4]
            if second:
                kept[4:, 4:] = h[4:, 4:]
            allowed.append(x @ kept @ kernel + bias)
    np.testing.assert_allclose(allowed[0], base, atol=1e-5)
    seen = set()
    for _ in range(40):
        y = ops.convert_to_numpy(model(x, training=True))
        distances = [np.abs(y - a).max() for a in allowed]
        assert min(distances) < 1e-4
        seen.add(int(np.argmin(distances)))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("verb", ["merge", "remove", "disabled"])
def test_verbs_without_an_adapter_are_errors(verb):
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        result = getattr(keras_ether, verb)(models.mlp())
        result.__enter__()


def bad_arguments():
    """Values of a wrong type are in `wrong_types_test`."""
    return {
        "method": ({"method": "lora"}, "'ether+'.*Received: method='lora'"),
        "blocks": ({"rank_blocks": 0}, "positive integer.*rank_blocks=0"),
        "blocks NumPy bool": ({"rank_blocks": np.True_}, "rank_blocks="),
        "blocks NumPy float": ({"rank_blocks": np.float32(2)}, "rank_blocks="),
        "side": ({"side": "left"}, "'input', 'output', 'both'.*side='left'"),
        "dropout": ({"dropout": 1.0}, "less than 1.*dropout=1.0"),
        "dropout NaN": ({"dropout": np.float32("nan")}, "number of.*dropout="),
        "seed": ({"seed": -1}, "non-negative.*seed=-1"),
        "seed NumPy": ({"seed": np.int64(-1)}, "non-negative.*seed="),
        "regex": ({"targets": "("}, "not a valid regular expression"),
        "no match": ({"targets": ["nothing"]}, "'first', 'second'"),
        "excluded": ({"exclude": "all"}, "No layer.*matches"),
        "trainable": ({"trainable": ["nothing"]}, "names no layer.*'first'"),
        "divisor": (
            {"rank_blocks": 5},
            r"'first'.*d=16 inputs and f=32 outputs.*\[1, 2, 4, 8\]",
        ),
        "divisor of the output": (
            {"rank_blocks": 16, "method": "ether+", "targets": ["second"]},
            r"'second'.*d=32.*f=8.*\[1, 2, 4\]",
        ),
        "blocks of one number": (
            {"rank_blocks": 16, "targets": ["first"]},
            r"blocks of width 1, which never train, in layer 'first'.*d=16"
            r".*fit: \[1, 2, 4, 8\]",
        ),
        "an output of one number": (
            {"rank_blocks": 8, "method": "ether+", "targets": ["second"]},
            r"never train, in layer 'second'.*f=8.*fit: \[1, 2, 4\]",
        ),
    }


@pytest.fixture(scope="module")
def trained():
    """One model for all errors, since they leave it as it was."""
    model = models.mlp()
    models.compile_and_fit(
        model, models.inputs_of("mlp", np.random.default_rng(0))
    )
    return model


@pytest.mark.parametrize("case", bad_arguments())
def test_bad_argument_is_one_clear_error(case, trained):
    arguments, message = bad_arguments()[case]
    before = checks.state(trained)
    for verb in (keras_ether.apply, keras_ether.plan):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            verb(trained, **arguments)
        checks.unchanged(trained, before)


def test_one_number_is_no_block():
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(8, name="wide"),
            keras.layers.Dense(8, name="square"),
        ]
    )
    with pytest.raises(ValueError, match=r"'wide'.*'ether' can't train on a s"):
        keras_ether.apply(
            model, rank_blocks=1, targets=["wide"], method="ether"
        )
    report = keras_ether.plan(
        model, rank_blocks=1, print_fn=str, method="ether"
    )
    assert [row.path for row in report.rows] == ["square"]
    assert "side of width 1" in report.skipped[0].reason
    # A number that is no unit vector does train.
    keras_ether.apply(model, method="naive", rank_blocks=1, targets=["wide"])


def test_apply_replaces_and_copies_no_kernel():
    model = models.mlp()
    # The variables themselves, and the memory in them.
    before = [(id(v), id(v.value)) for v in model.variables]
    keras_ether.apply(
        model, method="ether+", rank_blocks=2, targets="all-linear"
    )
    vectors = {
        id(variable)
        for layer in LayerTree(model).adapted.values()
        for variable in layer.ether.variables
    }
    after = [(id(v), id(v.value)) for v in model.variables]
    assert [pair for pair in after if pair[0] not in vectors] == before


def test_no_layer_model_or_unbuilt_model_is_an_error():
    with pytest.raises(ValueError, match=r"Keras model or layer.*'model'"):
        keras_ether.apply("model")
    model = keras.Sequential([keras.layers.Dense(4)])
    with pytest.raises(ValueError, match=f"'{model.name}' is not built"):
        keras_ether.apply(model)


def test_unbuilt_layer_is_named():
    class Half(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.early = keras.layers.Dense(4, name="early")
            self.late = keras.layers.Dense(4, name="late")

        def build(self, input_shape):
            self.early.build(input_shape)

    model = Half()
    model.build((None, 4))
    with pytest.raises(ValueError, match="'late' can't be adapted: it is not"):
        keras_ether.apply(model, targets=["late"])
    report = keras_ether.plan(model, rank_blocks=2, print_fn=str)
    assert [row.path for row in report.rows] == ["early"]


def test_layer_with_lora_is_an_error_both_ways():
    model = models.mlp()
    model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match=r"'first'.*LoRA"):
        keras_ether.apply(model)
    assert not kinds.is_adapted(model.layers[2])
    keras_ether.apply(model, targets=["second"], trainable=["head"])
    with pytest.raises(ValueError, match="'second' has an ETHER adapter"):
        model.layers[2].enable_lora(2)


LORA = r"ETHER adapters.*Enable LoRA first.*keras_ether\.merge"


@pytest.mark.parametrize("targets", [None, "all-linear", ["query"], ".*dense"])
@pytest.mark.parametrize("verb", ["merge", "remove"])
def test_lora_of_a_backbone_is_an_error_until_the_way_back(verb, targets):
    model = keras_ether.apply(models.bert(), targets=targets, rank_blocks=2)
    before = checks.state(model)
    for names in (None, ["key"], ["attention_output"]):
        with pytest.raises(ValueError, match=f"bert_backbone.*{LORA}"):
            model.backbone.enable_lora(2, names)
    checks.unchanged(model, before)
    getattr(keras_ether, verb)(model)
    plain = models.bert()
    for each in (model, plain):
        each.backbone.enable_lora(2)
    assert [v.trainable for v in model.variables] == [
        v.trainable for v in plain.variables
    ]


def test_lora_of_every_frozen_layer_is_an_error():
    model = keras_ether.apply(models.bert(), rank_blocks=2)
    before = checks.state(model)
    refused = 0
    for layer in model._flatten_layers():
        if hasattr(layer, "enable_lora") and layer.name != "logits":
            with pytest.raises(ValueError, match=r"LoRA.*keras_ether\.merge"):
                layer.enable_lora(2)
            refused += 1
    assert refused > 8
    checks.unchanged(model, before)
    keras_ether.remove(model)
    model.backbone.get_layer("token_embedding").enable_lora(2)


def test_lora_of_a_kept_layer_trains(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    keras_ether.apply(
        model, targets=["second"], trainable=["head"], method="ether"
    )
    model.get_layer("head").enable_lora(2)
    models.compile_and_fit(model, x)
    assert {v.path.rpartition("/")[2] for v in model.trainable_variables} == {
        "input_u",
        "bias",
        "lora_kernel_a",
        "lora_kernel_b",
    }
    assert np.abs(models.values([model.get_layer("head").lora_kernel_b])).max()


def test_lora_that_was_enabled_first_trains_as_before(tmp_path, rng):
    """With a model, its file and `remove`."""

    def base():
        keras.utils.set_random_seed(0)
        model = models.bert()
        model.backbone.enable_lora(2)
        return model

    model, x = base(), models.inputs_of("bert", rng)
    flags = [v.trainable for v in model.variables]
    trained, start = model.trainable_variables, models.values(model.weights)
    report = keras_ether.plan(
        model, targets=["key"], rank_blocks=2, print_fn=str
    )
    assert "LoRA is enabled on it" in {y.reason for y in report.skipped}
    keras_ether.apply(model, targets=["key"], rank_blocks=2, seed=0)
    found = {id(v) for v in model.trainable_variables}
    layers = LayerTree(model).adapted.values()
    vectors = {id(v) for y in layers for v in y.ether.vectors.values()}
    assert found == vectors | {id(v) for v in trained}
    before = models.values(trained)
    models.compile_and_fit(model, x)
    for one, other in zip(models.values(trained), before, strict=True):
        assert np.abs(one - other).max()
    keras_ether.save_adapter(model, tmp_path / "a.safetensors")
    loaded = keras_ether.load_adapter(base(), tmp_path / "a.safetensors")
    checks.equal(loaded.trainable_variables, model.trainable_variables)
    keras_ether.remove(model, reset_head=True)
    assert [v.trainable for v in model.variables] == flags
    checks.equal(model.weights, start)


def test_lora_that_was_frozen_stays_as_it_is():
    model = models.mlp()
    first = model.get_layer("first")
    first.enable_lora(2)
    first.trainable = False
    keras_ether.apply(model, targets=["second"], trainable=["head"])
    assert first.trainable_variables == []


def test_lora_of_a_part_beside_the_adapters_is_an_error():
    """A part without adapters, frozen by `apply` on the whole."""
    inputs = keras.Input((16,))
    left, right = models.mlp(), models.mlp()
    outer = keras.Model(
        inputs, keras.layers.Add()([left(inputs), right(inputs)])
    )
    keras_ether.apply(
        outer,
        targets=f"{left.name}/.*|.*/second",
        rank_blocks=2,
        exclude=lambda path, layer: layer in right.layers,
    )
    first = right.get_layer("first")
    with pytest.raises(ValueError, match=f"'first' is part of.*{LORA}"):
        first.enable_lora(2)
    # No adapter is left of those that froze it.
    keras_ether.merge(left)
    first.enable_lora(2)
    assert first.lora_kernel_a.trainable


def test_adapting_twice_is_an_error():
    model = models.mlp()
    keras_ether.apply(model, targets=["first"], trainable=["head"])
    with pytest.raises(ValueError, match="already: 'first'"):
        keras_ether.apply(model, trainable=["head"])
    assert not kinds.is_adapted(model.layers[2])


def test_tied_kernels_are_an_error():
    a, b = keras.layers.Dense(8, name="a"), keras.layers.Dense(8, name="b")
    model = keras.Sequential([keras.Input((8,)), a, b])
    b._tracker.unlock()
    b._kernel = a._kernel
    with pytest.raises(ValueError, match="share one kernel: 'a', 'b'"):
        keras_ether.apply(model)
    assert not kinds.is_adapted(a)


def test_remote_adapter_paths_stand_under_their_layer():
    task = models.bert()
    keras_ether.apply(task, rank_blocks=2)
    for layer in LayerTree(task).adapted.values():
        prefix = layer.base_kernel.path.rpartition("/")[0]
        for name, vector in layer.ether.vectors.items():
            assert vector.path == f"{prefix}/ether/{name}"


def test_an_adapted_layer_can_not_be_kept_trainable():
    model = models.mlp()
    keras_ether.apply(model, targets=["first"], rank_blocks=2)
    with pytest.raises(ValueError, match="'first' can't be kept trainable"):
        keras_ether.apply(
            model, targets=["second"], trainable=["first"], rank_blocks=2
        )
    assert not kinds.is_adapted(model.get_layer("second"))


def test_a_head_of_integers_is_said_not_to_train():
    task = classifier_of_integers(filters=None)
    with pytest.warns(UserWarning, match="can't train: 'logits'") as found:
        keras_ether.apply(task, seed=0)
    assert [w.filename for w in found] == [__file__]
    task = classifier_of_integers(filters="query|value")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_ether.apply(task, seed=0)


def classifier_of_integers(filters):
    task = models.bert()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task.quantize("int8", filters=filters)
    return task


@pytest.mark.once
@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_table_is_the_head_of_what_it_reads(tied):
    ids = keras.Input((4,), dtype="int32")
    table = keras.layers.ReversibleEmbedding(10, 8, name="table")
    hidden = keras.layers.Dense(8, name="last")(table(ids))
    outputs = table(hidden, reverse=True) if tied else hidden
    model = keras.Model(ids, outputs)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        keras_ether.apply(model, rank_blocks=2)
    said = [str(warning.message) for warning in found]
    assert any("'last', the last linear" in text for text in said) == (not tied)
