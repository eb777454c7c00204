import json

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.diagnostics import diagnose
from tests import checks
from tests import dense_oracle
from tests import kinds
from tests import models
from tests.diagnostics.measures_test import oracle_energy

# Every kind with both sides, and every method.
CASES = [(kind, "ether+") for kind in kinds.LAYERS] + [
    ("dense", method) for method in ("ether", "oft", "naive")
]


def neurons_of(kind, kernel):
    """Groups of neurons of a layer in `kinds`, as columns, by hand."""
    if kind == "einsum":
        return [kernel.reshape(kernel.shape[0], -1)]
    if kind == "groups":
        filters = kernel.reshape(-1, 8)
        return [filters[:, :4], filters[:, 4:]]
    if "transposed" in kind:
        kernel = np.moveaxis(kernel, -2, -1)
    return [kernel.reshape(-1, kernel.shape[-1])]


def adapted(kind, method, rng):
    model = kinds.model_of(kind)
    keras_ether.apply(
        model, method=method, targets="all", trainable=["head"], rank_blocks=2
    )
    layer = model.get_layer("target")
    return model, layer, kinds.randomize(layer, rng)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_every_kind_and_method(kind, method, rng):
    model, layer, vectors = adapted(kind, method, rng)
    (row,) = diagnose(model, print_fn=str).rows
    assert (row.path, row.method) == ("target", method)
    block, names = dense_oracle.BLOCKS[method]
    for side, found in (
        ("input", row.input_distances),
        ("output", row.output_distances),
    ):
        if f"{side}_{names[0]}" not in vectors:
            assert found == ()
            continue
        weights = zip(
            *(vectors[f"{side}_{name}"].astype("float64") for name in names),
            strict=True,
        )
        matrices = [block(*rows) for rows in weights]
        expected = [np.linalg.norm(m - np.eye(len(m))) for m in matrices]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    before, after = (
        models.values([layer.base_kernel])[0],
        layer.ether.fold(keras.ops.convert_to_tensor(layer.base_kernel)),
    )
    after = np.array(keras.ops.convert_to_numpy(after))
    moved = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert row.kernel_distance == pytest.approx(moved, rel=1e-4)
    for found, kernel in (
        (row.energy_before, before),
        (row.energy_after, after),
    ):
        expected = sum(map(oracle_energy, neurons_of(kind, kernel)))
        assert found == pytest.approx(expected, rel=1e-4)
    assert row.energy_change == pytest.approx(
        row.energy_after / row.energy_before - 1
    )


@pytest.mark.parametrize(
    ("kind", "method", "kept"),
    [
        ("dense", "ether", True),
        ("dense", "oft", True),
        ("dense", "naive", False),
        ("groups", "ether", True),
        ("conv2d transposed", "ether", True),
    ],
)
def test_orthogonal_inputs_keep_the_energy(kind, method, kept, rng):
    model, _, _ = adapted(kind, method, rng)
    (row,) = diagnose(model, print_fn=str).rows
    assert (abs(row.energy_change) < 1e-4) == kept


def test_bank_of_experts(rng):
    bank = keras_ether.layers.EtherEinsumDense(
        "ebd,edf->ebf", (None, 4), method="ether+", rank_blocks=2
    )
    bank.build((3, None, 6))
    kinds.randomize(bank, rng)
    kernel = models.values([bank.base_kernel])[0]
    (row,) = diagnose(bank, print_fn=str).rows
    assert len(row.input_distances) == len(row.output_distances) == 6
    expected = sum(oracle_energy(expert) for expert in kernel)
    assert row.energy_before == pytest.approx(expected, rel=1e-5)


def test_the_model_stays_and_disabled_adapters_are_measured(rng):
    model = models.mlp()
    keras_ether.apply(model, targets="all-linear", trainable="head")
    x = models.inputs_of("mlp", rng)
    outputs, weights = models.call(model, x), models.values(model.weights)
    found = diagnose(model, print_fn=str)
    with keras_ether.disabled(model):
        assert diagnose(model, print_fn=str) == found
    np.testing.assert_array_equal(models.call(model, x), outputs)
    checks.equal(model.weights, weights)


@pytest.mark.parametrize(
    ("method", "distance"), [("ether", 2.0), ("ether+", 0.0)]
)
def test_the_start(method, distance):
    model = keras_ether.apply(
        models.mlp(), method=method, targets="all-linear", trainable="head"
    )
    for row in diagnose(model, print_fn=str).rows:
        blocks = row.input_distances + row.output_distances
        np.testing.assert_allclose(blocks, distance, atol=1e-6)
        if method == "ether+":
            assert row.kernel_distance == row.energy_change == 0.0


def test_records_are_json():
    model = keras_ether.apply(models.bert_backbone())
    found = diagnose(model, print_fn=str)
    records = json.loads(json.dumps(found.records()))
    assert [r["path"] for r in records] == [r.path for r in found.rows]
    assert len(records[0]["input_distances"]) == 4


def test_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    model = models.mlp()
    layer = model.get_layer("second")
    layer.kernel.assign(np.eye(32, 8))
    keras_ether.apply(
        model,
        targets=["second"],
        rank_blocks=1,
        trainable="head",
        method="ether",
    )
    layer.ether.input_u.assign(np.eye(1, 32))
    diagnose(model)
    note = (
        "‖H − I‖ and ‖G − I‖ are those of the block furthest from the "
        "identity.\n"
    )
    assert capsys.readouterr().out == (
        "Layer   Kernel  Method  Blocks  ‖H − I‖  ‖G − I‖  "
        "‖W' − W‖ / ‖W‖  Energy  after   change\n"
        "──────────────────────────────────────────────────────────"
        "──────────────────────────────\n"
        "second  32 x 8  ether        1   2.0000           "
        "        0.7071    19.8   19.8  +0.000%\n" + note
    )
    without = str(diagnose(model, energy=False, print_fn=str))
    assert "Energy" not in without
    assert "0.7071" in without


def test_quantized_kernels_have_distances_from_the_identity_only():
    model = models.mlp()
    model.get_layer("first").quantize("int8")
    keras_ether.apply(
        model, targets=["first"], trainable="head", method="ether"
    )
    found = diagnose(model, print_fn=str)
    np.testing.assert_allclose(found.rows[0].input_distances, 2.0, atol=1e-6)
    assert found.rows[0].kernel_distance is None
    assert found.rows[0].energy_change is None
    assert "2.0000" in str(found)


def test_without_adapters():
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        diagnose(models.mlp(), print_fn=str)
