import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether import targets
from keras_ether.layers import kinds
from tests import models

pytestmark = pytest.mark.filterwarnings("ignore:.*is frozen now")


def paths(model, **kwargs):
    report = keras_ether.plan(model, rank_blocks=1, print_fn=str, **kwargs)
    return [row.path for row in report.rows]


@pytest.mark.parametrize("name", models.ALL)
def test_paths_do_not_depend_on_what_was_built_before(name):
    first = list(targets.walk(models.ALL[name]()))
    for _ in range(3):
        keras.layers.Dense(1), keras.layers.LayerNormalization()
    assert list(targets.walk(models.ALL[name]())) == first
    assert len(set(first)) == len(first)


def test_every_layer_stands_in_the_walk_once():
    model = models.functional()
    layers = list(targets.walk(model).values())
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
    assert list(targets.walk(pair)) == ["x", "x_1", "x_1_1"]
    assert paths(pair, targets=["x"]) == ["x", "x_1"]


BERT_LAYER = "bert_backbone/transformer_layer_0/self_attention_layer"


def test_list_matches_names_and_paths():
    model = models.bert()
    assert len(paths(model, targets=["query", "value"])) == 2
    assert paths(model, targets=[f"{BERT_LAYER}/query"]) == [
        f"{BERT_LAYER}/query"
    ]


def test_pattern_matches_whole_paths():
    model = models.bert()
    assert paths(model, targets=r".*layer_0/.*/(query|key)") == [
        f"{BERT_LAYER}/query",
        f"{BERT_LAYER}/key",
    ]
    with pytest.raises(ValueError, match="No layer"):
        paths(model, targets="query")


def test_predicate_is_asked_about_adaptable_layers_only():
    model = models.bert()
    asked = []

    def predicate(path, layer):
        asked.append(layer)
        return path.endswith("key")

    assert len(paths(model, targets=predicate)) == 1
    assert all(kinds.kind_of(layer) for layer in asked)
    assert model.output_dense not in asked


def test_exclude_takes_the_same_forms():
    model = models.bert()
    every = paths(model, targets="all-linear")
    assert len(every) == 6 + 1
    for exclude in (
        ["key"],
        ".*/key",
        lambda path, layer: layer.name == "key",
    ):
        some = paths(model, targets="all-linear", exclude=exclude)
        assert some == [path for path in every if not path.endswith("key")]


def test_all_is_every_kind_that_can_be_adapted():
    model = models.functional()
    assert paths(model, targets="all") == paths(model, targets="all-linear")


def test_all_linear_means_dense_and_einsum_only():
    model = models.bert()
    every = set(paths(model, targets="all"))
    linear = set(paths(model, targets="all-linear"))
    assert {path.rpartition("/")[2] for path in every - linear} == {
        "token_embedding",
        "segment_embedding",
    }


def test_default_is_everything_where_nothing_is_linear():
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
    keras_ether.apply(layer, rank_blocks=2, seed=0)
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
    report = keras_ether.plan(model, targets="all", rank_blocks=2, print_fn=str)
    assert [row.path for row in report.rows] == ["time_distributed/d"]
    assert [(s.path, s.layer_class) for s in report.skipped] == [
        ("bidirectional/forward_lstm/lstm_cell", "LSTMCell"),
        ("bidirectional/backward_lstm/lstm_cell", "LSTMCell"),
    ]
    x = rng.standard_normal((2, 3, 4)).astype("float32")
    base = models.call(model, x)
    keras_ether.apply(model, targets="all", rank_blocks=2, seed=0)
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
    lines = [line for line in printed[0].splitlines() if "Not adapted" in line]
    assert len(lines) == 1
    assert "{0,1}" in lines[0] or "{0..1}" in lines[0]


def test_default_of_a_plain_model_is_all_linear():
    assert paths(models.mlp()) == ["first", "second", "head"]


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
    head = targets.head_of(model)
    assert id(model.output_dense) in head
    assert id(model.backbone) not in head
    assert not head & {
        id(layer) for layer in targets.walk(model.backbone).values()
    }
    assert targets.head_of(models.mlp()) == set()


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
    assert targets.head_of(model) == {id(model.top)}


def test_a_single_layer_is_a_model_too():
    layer = keras.layers.Dense(4, name="only")
    layer.build((None, 8))
    keras_ether.apply(layer, rank_blocks=2)
    assert kinds.is_adapted(layer)
    keras_ether.remove(layer)
    assert type(layer) is keras.layers.Dense
