"""Another start for head and vectors: no fold of a cross-validation leaks."""

import copy

import keras_hub
import numpy as np
import pytest

import keras_ether
from keras_ether.adapters import freezing
from keras_ether.surgery.layer_tree import LayerTree
from tests import checks
from tests import models

pytestmark = pytest.mark.filterwarnings("ignore:.*is frozen now")


def train(model, x, seed=0, **kwargs):
    arguments = {"rank_blocks": 2, "targets": "all-linear", "seed": seed}
    keras_ether.apply(model, **(arguments | kwargs))
    models.compile_and_fit(model, x)
    return model


def bert_without_dropout():
    return keras_hub.models.BertTextClassifier(
        models.bert_backbone(dropout=0), num_classes=4, dropout=0
    )


@pytest.mark.parametrize(
    ("name", "make", "trainable"),
    [
        ("bert", bert_without_dropout, None),
        ("mlp", models.mlp, ["head", "batch_normalization"]),
    ],
)
def test_every_fold_is_the_first(name, make, trainable, rng):
    model, x = make(), models.inputs_of(name, rng)
    before = models.values(model.weights)
    losses = []
    for _ in range(2):
        train(model, x, trainable=trainable)
        head = model.layers[-1]
        assert np.abs(models.values(head.weights)[0] - before[-2]).max() > 1e-4
        losses.append(model.evaluate(x, np.zeros(8), verbose=0))
        keras_ether.remove(model, reset_head=True)
        checks.equal(model.weights, before)
    assert losses[0] == losses[1]
    assert not any(map(freezing.is_kept_trainable, LayerTree(model).all_layers))


def test_head_stays_as_it_has_learned_otherwise(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    train(model, x, trainable=["head"])
    learned = models.values(model.get_layer("head").weights)
    keras_ether.remove(model)
    checks.equal(model.get_layer("head").weights, learned)
    # The start that counts is that of the next `apply`.
    train(model, x, trainable=["head"])
    keras_ether.remove(model, reset_head=True)
    checks.equal(model.get_layer("head").weights, learned)


def test_start_is_that_of_the_first_of_several_applies(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    before = models.values(model.weights)
    train(model, x, targets=["first"], trainable=["head"])
    train(model, x, targets=["second"], method="ether+")
    keras_ether.remove(model, reset_head=True)
    checks.equal(model.weights, before)


def test_start_of_a_loaded_adapter_is_the_base(tmp_path, rng):
    path = tmp_path / "m.ether.safetensors"
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    base = copy.deepcopy(model)
    keras_ether.save_adapter(train(model, x, trainable=["head"]), path)
    before = models.values(base.weights)
    # The head is no part of the base by which a file knows it.
    keras_ether.load_adapter(base, path)
    keras_ether.remove(base, reset_head=True)
    checks.equal(base.weights, before)


def test_copies_remember_too(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    before = models.values(model.weights)
    twin = copy.deepcopy(train(model, x, trainable=["head"]))
    keras_ether.remove(twin, reset_head=True)
    checks.equal(twin.weights, before)


def test_only_the_head_is_copied_to_the_memory_of_the_host():
    task = keras_ether.apply(models.bert(), rank_blocks=2)
    remembered = {
        path: freezing.start_of(part)
        for path, part in LayerTree(task).layers.items()
        if freezing.start_of(part)
    }
    assert list(remembered) == ["logits"]
    assert [type(value) for value in remembered["logits"]] == [np.ndarray] * 2


def test_errors_leave_the_model_as_it_was(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    train(model, x, targets=["first"])
    before = models.values(model.weights)
    with pytest.raises(ValueError, match="only its adapters trained"):
        keras_ether.remove(model, reset_head=True)
    with pytest.raises(ValueError, match="`reset_head` must be True or False"):
        keras_ether.remove(model, reset_head="yes")
    checks.equal(model.weights, before)
    assert keras_ether.summary(model, print_fn=str).rows


def test_part_without_the_head_is_an_error():
    task = keras_ether.apply(models.bert(), rank_blocks=2)
    with pytest.raises(ValueError, match="pass the outer model"):
        keras_ether.remove(task.backbone, reset_head=True)


def test_head_of_other_shapes_is_an_error(rng):
    model = keras_ether.apply(
        models.mlp(), targets=["first"], trainable=["head"]
    )
    model.get_layer("head").enable_lora(2)
    with pytest.raises(ValueError, match="'head' can't be reset"):
        keras_ether.remove(model, reset_head=True)
