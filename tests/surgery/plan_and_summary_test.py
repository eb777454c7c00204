import keras
import keras_hub
import numpy as np
import pytest

import keras_ether
from keras_ether.surgery.layer_tree import LayerTree
from tests import models


@pytest.mark.filterwarnings("ignore:.*learning rate of 5e-05")
@pytest.mark.parametrize("method", ["ether", "ether+", "oft", "naive"])
def test_plan_tells_what_summary_will(method):
    model = models.bert()
    layers = LayerTree(model).layers.values()
    classes = [type(layer) for layer in layers]
    printed = []
    arguments = {"targets": "all-linear", "rank_blocks": 4, "method": method}
    planned = keras_ether.plan(model, print_fn=printed.append, **arguments)
    assert [
        type(layer) for layer in LayerTree(model).layers.values()
    ] == classes
    keras_ether.apply(model, **arguments)
    found = keras_ether.summary(model, print_fn=printed.append)
    assert planned.rows == found.rows
    tables = [text.partition("Not adapted")[0] for text in printed]
    assert tables[0] == tables[1]
    for name in ("trainable", "head", "frozen", "percentage", "bytes"):
        assert getattr(planned, name) == getattr(found, name)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_weights)
    assert found.trainable + found.head == trained
    total = sum(
        int(np.prod(v.shape))
        for v in model.weights
        if v.name != "ether_strength"
    )
    assert found.trainable + found.head + found.frozen == total
    assert found.percentage == pytest.approx(100 * trained / total)


@pytest.fixture
def columns(monkeypatch):
    """Sets how wide the terminal is."""

    def set_columns(count):
        monkeypatch.setenv("COLUMNS", str(count))

    return set_columns


def test_table_reads_well(capsys, columns):
    columns(80)
    model = models.mlp()
    keras_ether.apply(
        model, method="ether+", targets=["first"], trainable="head"
    )
    keras_ether.summary(model)
    assert capsys.readouterr().out == (
        "Layer  Kernel   Method  Side  Blocks  Layers  Parameters\n"
        "────────────────────────────────────────────────────────\n"
        "first  16 x 32  ether+  both       4       1          96\n"
        "Adapters:               96 parameters in 1 layer (0.4 KB)\n"
        "Head:                   36 parameters\n"
        "Frozen:                928 parameters\n"
        "Trainable:         12.453 %\n"
        "Not adapted, not a target: second (Dense)\n"
        "Not adapted, kept trainable: head (Dense)\n"
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_table_fits_the_terminal(width, columns):
    columns(width)
    arguments = {"rank_blocks": 2, "targets": "all-linear", "print_fn": str}
    task = models.bert()
    report = keras_ether.plan(task, **arguments, method="ether")
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= width
    # Whatever is cut into lines is there.
    text = str(report).replace("\n", "").replace(" ", "")
    for row in (*report.rows, *report.skipped):
        assert row.path in text
    task = keras_ether.apply(
        task, rank_blocks=2, targets="all-linear", method="ether"
    )
    found = keras_ether.diagnostics.diagnose(task, print_fn=str)
    # Nine columns; 80 have room for them.
    assert max(map(len, str(found).splitlines())) <= max(width, 80)


def test_path_has_a_line_of_its_own_where_it_is_long(columns):
    columns(80)
    report = keras_ether.plan(
        models.bert_backbone(),
        rank_blocks=2,
        print_fn=str,
        method="ether",
    )
    assert str(report).splitlines()[:5] == [
        "Layer",
        "  Kernel      Method  Side   Blocks  Layers  Parameters",
        "─" * 55,
        "transformer_layer_0/self_attention_layer/query",
        "  16 x 2 x 8  ether   input       2       1          16",
    ]


def test_rows_that_differ_in_an_index_only_are_one_line(columns):
    columns(200)
    backbone = models.bert_backbone(num_layers=3)
    report = keras_ether.plan(
        backbone, rank_blocks=2, print_fn=str, method="ether"
    )
    assert len(report.rows) == 6
    lines = str(report).splitlines()[2:4]
    assert [line.split()[0] for line in lines] == [
        f"transformer_layer_{{0..2}}/self_attention_layer/{name}"
        for name in ("query", "value")
    ]
    assert [line.split()[-2:] for line in lines] == [["3", "48"]] * 2
    exclude = ".*layer_1/.*"
    report = keras_ether.plan(
        backbone,
        rank_blocks=2,
        exclude=exclude,
        print_fn=str,
        method="ether",
    )
    assert "transformer_layer_{0,2}/" in str(report).splitlines()[2]


def test_skipped_layers_have_reasons():
    model = models.bert()
    report = keras_ether.plan(
        model, targets="all-linear", exclude=["key"], print_fn=str
    )
    reasons = {
        row.path.rpartition("/")[2]: row.reason for row in report.skipped
    }
    assert reasons["key"] == "excluded"
    assert reasons["logits"] == "in the head"
    assert reasons["token_embedding"] == "not a target"
    assert reasons["position_embedding"] == "no adapter for its kind"


@pytest.fixture(scope="module")
def deberta_v3_base():
    """The real configuration, except for the vocabulary's size."""
    return keras_hub.models.DebertaV3Backbone(
        vocabulary_size=8,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_sequence_length=8,
        bucket_size=4,
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("method", "numbers"), [("ether", 82_944), ("ether+", 331_776)]
)
def test_numbers_of_deberta_v3_base(deberta_v3_base, method, numbers):
    report = keras_ether.plan(
        deberta_v3_base, method=method, targets="all-linear", print_fn=str
    )
    assert len(report.rows) == 12 * 6
    assert report.trainable == numbers


@pytest.fixture(scope="module")
def llama_2_7b_layer():
    """One of its 32 layers, at its real width."""
    return keras_hub.models.LlamaBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_query_heads=32,
        num_key_value_heads=32,
        hidden_dim=4096,
        intermediate_dim=11008,
        dtype="bfloat16",
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("method", "numbers"), [("ether", 262_144), ("ether+", 1_048_576)]
)
@pytest.mark.parametrize("rank_blocks", [1, 32])
def test_numbers_of_llama_2_7b(llama_2_7b_layer, method, numbers, rank_blocks):
    report = keras_ether.plan(
        llama_2_7b_layer, method=method, rank_blocks=rank_blocks, print_fn=str
    )
    names = [row.path.rpartition("/")[2] for row in report.rows]
    assert names == ["query", "value"]
    assert 32 * report.trainable == numbers


def test_weights_of_the_model_itself_are_named():
    class Bank(keras.layers.Layer):
        def build(self, shape):
            self.bank = self.add_weight(shape=(2, 3, 4), name="bank")
            self.dense = keras.layers.Dense(4, name="dense")
            self.dense.build(shape)

    model = Bank(name="mine")
    model.build((None, 4))
    report = keras_ether.plan(model, rank_blocks=2, print_fn=str)
    assert [row.path for row in report.rows] == ["dense"]
    assert [(s.path, s.reason) for s in report.skipped] == [
        ("mine", "no adapter for its kind")
    ]
