import re

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.adapters import kinds
from keras_ether.surgery import targets
from keras_ether.surgery.layer_tree import LayerTree
from tests import checks
from tests import models

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
]


def paths(model, **kwargs):
    report = keras_ether.plan(model, rank_blocks=1, print_fn=str, **kwargs)
    return [row.path for row in report.rows]


@pytest.mark.parametrize("name", models.ALL)
def test_paths_do_not_depend_on_what_was_built_before(name):
    first = list(LayerTree(models.ALL[name]()).layers)
    for _ in range(3):
        keras.layers.Dense(1), keras.layers.LayerNormalization()
    assert list(LayerTree(models.ALL[name]()).layers) == first
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(
    "name", ["GPT2Backbone", "Conv2DTranspose", "ABCd3Ef", "T5_Block", "Ünd2X"]
)
def test_names_that_keras_made_up_are_known(name):
    layer_class = type(name, (keras.layers.Dense,), {})
    layers = [layer_class(2) for _ in range(3)]
    models_of = [keras.Sequential([keras.Input((4,)), y]) for y in layers]
    paths = {tuple(LayerTree(model).layers) for model in models_of}
    assert len({layer.name for layer in layers}) == 3
    assert len(paths) == 1


def test_every_layer_stands_in_the_walk_once():
    model = models.functional()
    layers = list(LayerTree(model).layers.values())
    assert len({id(layer) for layer in layers}) == len(layers)
    assert {id(v) for layer in layers for v in layer.variables} == {
        id(v) for v in model.variables
    }


def test_equal_names_get_a_count():
    class Pair(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.a = keras.layers.Dense(2, name="x")
            self.b = keras.layers.Dense(2, name="x")
            self.c = keras.layers.Dense(2, name="x_1")

        def build(self, shape):
            for layer in (self.a, self.b, self.c):
                layer.build(shape)

    pair = Pair()
    pair.build((None, 2))
    assert list(LayerTree(pair).layers) == ["x", "x_1", "x_1_1"]
    assert paths(pair, targets=["x"]) == ["x", "x_1"]


BERT_LAYER = "bert_backbone/transformer_layer_0/self_attention_layer"


ARGUMENTS = ("targets", "exclude", "trainable")


class Table(keras.layers.Layer):
    """A layer with a matrix, of no kind that can be adapted."""

    def build(self, shape):
        self.table = self.add_weight(shape=(8, 8))

    def call(self, x):
        return ops.matmul(x, self.table)


def blocks():
    """Two blocks with equal names inside, and what can't be a target."""

    def block(name):
        return keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(8, name="query"),
                keras.layers.Dense(8, name="value"),
                keras.layers.LayerNormalization(name="norm"),
            ],
            name=name,
        )

    return keras.Sequential(
        [
            keras.Input((8,)),
            block("block_0"),
            block("block_1"),
            keras.layers.Dropout(0.1, name="drop"),
            Table(name="table"),
            keras.layers.Dense(8, name="out"),
        ]
    )


BLOCKS = [f"block_{i}/{name}" for i in (0, 1) for name in ("query", "value")]


def counted_on():
    """Three layers named as in a process that made another one before."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            *(keras.layers.Dense(8, name=f"dense_{i}") for i in (1, 2, 3)),
        ]
    )
    every = [path for path in LayerTree(model).layers if "dense" in path]
    return model, ["dense_1", "dense_2", "dense_3"], every


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_entry_is_a_name_before_it_is_a_path(argument):
    model, names, every = counted_on()
    # Also the path of the second layer.
    assert names[0] == every[1]
    meant = paths(model, **{argument: [names[0]]})
    assert meant == (every[:1] if argument == "targets" else every[1:])
    # A path that no layer has as its name.
    meant = paths(model, **{argument: [every[0]]})
    assert meant == (every[:1] if argument == "targets" else every[1:])


def test_name_of_a_layer_that_cannot_be_a_target_is_no_path():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8),
            keras.layers.Dropout(0.1, name="dense"),
        ]
    )
    assert "dense" in LayerTree(model).layers
    with pytest.raises(ValueError, match=r"of class Dropout.*no kernel"):
        paths(model, targets=["dense"])
    assert paths(model, exclude=["dense"]) == paths(model)
    assert paths(model, trainable=["dense"]) == paths(model)


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("form", [list, tuple, set, iter, np.array])
def test_forms_of_a_list(form, argument):
    entries = form(["query", "block_1/value"])
    meant = ["block_0/query", "block_1/query", "block_1/value"]
    if argument == "targets":
        assert paths(blocks(), targets=entries) == meant
    else:
        others = {"targets": "block.*", argument: entries}
        assert paths(blocks(), **others) == ["block_0/value"]


def check_refused(model, message, **kwargs):
    """The same error from both verbs, and the model as it was."""
    before = checks.state(model)
    for verb in (keras_ether.plan, keras_ether.apply):
        with pytest.raises(ValueError, match=message):
            verb(model, rank_blocks=1, **kwargs)
    checks.unchanged(model, before)


@pytest.mark.parametrize(
    ("entry", "near"),
    [
        ("qeury", "Near it: 'query'"),
        ("block_0/quary", "Near it: .*'block_0/query'"),
        ("zzz", "Layers: 'block_0"),
    ],
)
@pytest.mark.parametrize("others", [[], ["query"]], ids=["alone", "among"])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_entry_that_means_no_layer_is_an_error(argument, others, entry, near):
    message = f"`{argument}` names no layer of the model: '{entry}'. {near}"
    check_refused(blocks(), message, **{argument: [*others, entry]})


@pytest.mark.parametrize(
    "pattern", ["block_2/.*", "", "all_linear", "value|norm"]
)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_pattern_that_means_no_layer_is_an_error(argument, pattern):
    message = f"`{argument}` names no layer.*: '{re.escape(pattern)}'"
    check_refused(blocks(), message, **{argument: pattern})


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize(
    "entry", ["query", "block_0", "block_0/query", ".*/query", "dense_1"]
)
def test_a_string_is_a_list_of_one(entry, argument):
    model = counted_on()[0] if entry == "dense_1" else blocks()
    if (entry, argument) == ("block_0", "targets"):
        check_refused(model, "'block_0'.*no kernel", targets=entry)
        return
    one, other = (
        paths(model, **{"targets": "all-linear", argument: form})
        for form in (entry, [entry])
    )
    assert one == other
    assert one != paths(model, targets="all-linear")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, ["out", 2]) for name in ARGUMENTS),
        *((name, keras.layers.Dense) for name in ARGUMENTS),
        *((name, keras.layers.Dense(2)) for name in ARGUMENTS),
        *((name, [keras.layers.Dense(2)]) for name in ARGUMENTS),
        ("trainable", lambda path, layer: True),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_forms_are_errors(argument, value):
    """Besides those of `wrong_types_test`."""
    message = f"`{argument}` must be .*list.*Received: {argument}="
    check_refused(blocks(), message, **{argument: value})


@pytest.mark.parametrize("others", [[], ["query"]], ids=["alone", "among"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("drop", "'drop' of class Dropout.*no kernel"),
        ("norm", "'block_0/norm' of class LayerNormalization.*no kernel"),
        ("block_1/norm", "'block_1/norm' of class LayerN.*no kernel"),
        ("table", "'table' of class Table.*no adapter for its kind"),
        ("block_1", "no kernel of its own.*'block_1/query', 'block_1/value'"),
        ("out", "'out' of class Dense.*it is kept trainable"),
    ],
)
def test_target_that_cannot_be_one_is_an_error(entry, message, others):
    check_refused(
        blocks(), message, targets=[*others, entry], trainable=["out"]
    )


def test_layer_of_the_head_is_no_target():
    message = "'logits' of class Dense.*it is in the head"
    check_refused(models.bert(), message, targets=["query", "logits"])


def test_layer_kept_by_the_last_apply_is_no_target():
    model = blocks()
    keras_ether.apply(model, rank_blocks=1, targets=["query"], trainable="out")
    assert paths(model, exclude=["query"]) == [BLOCKS[1], BLOCKS[3]]
    check_refused(model, "it is kept trainable", targets=["value", "out"])


def test_one_of_equal_names_is_target_enough():
    model = blocks()
    assert paths(model, targets=["query"], trainable=["block_1"]) == [BLOCKS[0]]
    assert paths(model, targets=["query"], exclude=["block_1"]) == [BLOCKS[0]]
    wrapped = keras.Sequential(
        [
            keras.Input((3, 8)),
            keras.layers.TimeDistributed(
                keras.layers.Dense(8, name="same"), name="same"
            ),
        ]
    )
    assert paths(wrapped, targets=["same"]) == ["same/same"]


def test_container_of_the_name_of_a_target_is_not_passed_over():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.Sequential(
                [keras.Input((8,)), keras.layers.Dense(8, name="inside")],
                name="same",
            ),
            keras.Sequential(
                [keras.Input((8,)), keras.layers.Dense(8, name="same")],
                name="other",
            ),
        ]
    )
    check_refused(model, "'same' of class Sequential", targets=["same"])
    assert paths(model, targets=["other/same"]) == ["other/same"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["block_0"], [*BLOCKS[2:], "out"]),
        ("block_0", [*BLOCKS[2:], "out"]),
        (r"block_\d", ["out"]),
        (["block_0", "block_1/query"], [BLOCKS[3], "out"]),
        # What would not be adapted anyway.
        (["drop", "table", "norm"], [*BLOCKS, "out"]),
        ("drop|table", [*BLOCKS, "out"]),
        ([], [*BLOCKS, "out"]),
        (lambda path, layer: layer.name == "query", [*BLOCKS[1::2], "out"]),
    ],
    ids=lambda value: "function" if callable(value) else str(value),
)
def test_exclude_takes_all_below(exclude, left):
    assert paths(blocks(), targets="all", exclude=exclude) == left


def test_exclude_of_all_leaves_nothing():
    with pytest.raises(ValueError, match="No layer of model"):
        paths(blocks(), targets="all", exclude="all-linear")


@pytest.mark.parametrize("argument", ["exclude", "trainable"])
def test_layer_in_two_containers_is_below_both(argument):
    shared = keras.layers.Dense(8, name="shared")
    model = keras.Sequential(
        [
            keras.Input((8,)),
            *(
                keras.Sequential([keras.Input((8,)), shared], name=name)
                for name in ("first", "second")
            ),
            keras.layers.Dense(8, name="out"),
        ]
    )
    assert paths(model) == ["first/shared", "out"]
    assert paths(model, **{argument: ["second"]}) == ["out"]


def test_names_that_a_model_gives_lora_may_be_missing():
    class Named(keras.Sequential):
        def default_lora_layer_names(self):
            return ["query", "missing", "norm", "block_1/value"]

    model = Named([keras.Input((8,)), *blocks().layers])
    assert paths(model) == [BLOCKS[0], BLOCKS[2], BLOCKS[3]]


def test_adapters_are_no_layers_to_name():
    model = blocks()
    keras_ether.apply(model, rank_blocks=1, targets=["query"])
    for argument in ARGUMENTS:
        message = f"`{argument}` names no layer"
        check_refused(model, message, **{argument: ["ether"]})


def test_names_paths_and_patterns_for_whole_paths():
    model = models.bert()
    assert len(paths(model, targets=["query", "value"])) == 2
    query, key = f"{BERT_LAYER}/query", f"{BERT_LAYER}/key"
    assert paths(model, targets=[query]) == [query]
    assert paths(model, targets=r".*layer_0/.*/(query|key)") == [query, key]
    with pytest.raises(ValueError, match="names no layer"):
        paths(model, targets="quer")


def test_predicate_is_asked_about_adaptable_layers_only():
    model = models.bert()
    asked = []

    def predicate(path, layer):
        asked.append(layer)
        return path.endswith("key")

    assert len(paths(model, targets=predicate)) == 1
    assert all(kinds.kind_of(layer) for layer in asked)
    assert model.output_dense not in asked


def test_all_linear_means_dense_and_einsum_only():
    model = models.functional()
    assert paths(model, targets="all") == paths(model, targets="all-linear")
    model = models.bert()
    every = set(paths(model, targets="all"))
    linear = set(paths(model, targets="all-linear"))
    assert len(linear) == 6 + 1
    assert {path.rpartition("/")[2] for path in every - linear} == {
        "token_embedding",
        "segment_embedding",
    }


def test_default_is_all_linear_or_else_everything():
    assert paths(models.mlp()) == ["first", "second", "head"]
    model = keras.Sequential(
        [
            keras.Input((3, 3, 4)),
            keras.layers.Conv2D(4, 2, name="a"),
            keras.layers.DepthwiseConv2D(2, name="b"),
        ]
    )
    assert paths(model) == ["a"]


ATTENTIONS = {
    "multi-head": lambda: keras.layers.MultiHeadAttention(2, 4, name="a"),
    "no bias": lambda: keras.layers.MultiHeadAttention(
        2, 4, use_bias=False, name="a"
    ),
    "flash": lambda: keras.layers.MultiHeadAttention(
        2, 4, flash_attention=True, name="a"
    ),
    "grouped query": lambda: keras.layers.GroupQueryAttention(
        4, 2, 1, name="a"
    ),
}


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_projections_inside_attention_are_found(attention):
    class Two(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first = ATTENTIONS[attention]()
            self.second = ATTENTIONS[attention]()

        def build(self, shape):
            self.first.build(shape, shape)
            self.second.build(shape, shape)

    model = Two()
    model.build((None, 3, 8))
    names = ("query", "key", "value", "attention_output")
    assert paths(model) == [
        f"{part}/{name}" for part in ("a", "a_1") for name in names
    ]
    assert paths(model, targets=["query"]) == ["a/query", "a_1/query"]


def test_grouped_query_attention_computes_with_its_adapters(rng):
    layer = keras.layers.GroupQueryAttention(4, 2, 1, name="a")
    x = rng.standard_normal((2, 3, 8)).astype("float32")
    base = ops.convert_to_numpy(layer(x, x))
    keras_ether.apply(layer, rank_blocks=2, seed=0, method="ether")
    active = ops.convert_to_numpy(layer(x, x))
    assert np.abs(active - base).max() > 1e-3
    keras_ether.merge(layer)
    merged = ops.convert_to_numpy(layer(x, x))
    np.testing.assert_allclose(merged, active, atol=1e-5)


def test_layers_inside_wrappers_are_found(rng):
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            keras.layers.TimeDistributed(keras.layers.Dense(4, name="d")),
            keras.layers.Bidirectional(keras.layers.LSTM(2, name="lstm")),
        ]
    )
    report = keras_ether.plan(
        model, targets="all", rank_blocks=2, print_fn=str, method="ether"
    )
    assert [row.path for row in report.rows] == ["time_distributed/d"]
    assert [(s.path, s.layer_class) for s in report.skipped] == [
        ("bidirectional/forward_lstm/lstm_cell", "LSTMCell"),
        ("bidirectional/backward_lstm/lstm_cell", "LSTMCell"),
    ]
    x = rng.standard_normal((2, 3, 4)).astype("float32")
    base = models.call(model, x)
    keras_ether.apply(
        model, targets="all", rank_blocks=2, seed=0, method="ether"
    )
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-4
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)


def test_banks_of_experts_are_adapted_or_named():
    backbone = keras_hub.models.MixtralBackbone(
        vocabulary_size=10,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=8,
        num_experts=2,
        top_k=1,
        sliding_window=4,
    )
    printed = []
    report = keras_ether.plan(
        backbone, targets="all", rank_blocks=2, print_fn=printed.append
    )
    assert report.skipped
    assert {s.layer_class for s in report.skipped} == {"MixtralMoeExperts"}
    _, *passages = printed[0].split("Not adapted")
    assert len(passages) == 1
    assert "{0,1}" in passages[0] or "{0..1}" in passages[0]


def test_trainable_takes_names_patterns_and_whole_parts():
    model = models.subclassed()
    attention = "multi_head_attention"
    assert paths(model, trainable=["head", attention]) == ["dense", "dense_1"]
    assert paths(model, trainable=r"dense.*") == [
        f"{attention}/query",
        f"{attention}/key",
        f"{attention}/value",
        f"{attention}/attention_output",
        "head",
    ]


def test_head_is_what_stands_outside_the_backbone():
    model = models.bert()
    head = LayerTree(model).head
    assert id(model.output_dense) in head
    inside = LayerTree(model.backbone).all_layers
    assert head.isdisjoint(map(id, inside))
    assert not LayerTree(models.mlp()).head


def test_container_around_the_backbone_is_no_head():
    class Wrapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.backbone = models.mlp()
            self.around = keras.Sequential([keras.Input((16,)), self.backbone])
            self.top = keras.layers.Dense(2, name="top")
            self.top.build((None, 4))
            self.built = True

    model = Wrapped()
    assert LayerTree(model).head == {id(model.top)}


def test_a_single_layer_is_a_model_too():
    layer = keras.layers.Dense(4, name="only")
    layer.build((None, 8))
    keras_ether.apply(layer, rank_blocks=2)
    assert kinds.is_adapted(layer)
    keras_ether.remove(layer)
    assert type(layer) is keras.layers.Dense


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (2, "'0', '1'"),
        (3, "'0', '1', '2'"),
        (10, "'0', '1', '2', and 7 more"),
    ],
)
def test_lists_in_messages_are_shortened(count, text):
    assert targets.shorten(map(str, range(count)), most=3) == text
