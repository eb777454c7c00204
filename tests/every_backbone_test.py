"""The life of an adapter in every backbone of KerasHub.

One backbone of each family is tested by default on PyTorch, where that is
quickest, a third of these on JAX and another on TensorFlow, and all on each
backend with `-m nightly`.
"""

import keras
import pytest

import keras_ether
from tests import backends
from tests import hub_backbones
from tests import models
from tests.hub.entry import build
from tests.hub.probe import Probe
from tests.hub.probe import assert_equal
from tests.hub.probe import assert_moves
from tests.hub.probe import distance
from tests.hub.probe import vectors_of

# What KerasHub's own code warns of.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*however, the layer does not have a `build",
        ".*looks like it has unbuilt state",
        ".*was passed an input with a mask attached to it",
        ".*'rwkv_ops' package is not installed",
        "Using a non-tuple sequence for multidimensional indexing",
        "(?s).*Explicitly requested dtype int64",
    )
]


def marked(name, entry):
    slow = entry.eager and keras.backend.backend() == "jax"
    marks = [] if entry.quick and not slow else [pytest.mark.nightly]
    return pytest.param(name, marks=marks)


NAMES = [marked(*item) for item in hub_backbones.ENTRIES.items()]


@pytest.fixture
def entry(name):
    entry = hub_backbones.ENTRIES[name]
    if keras.backend.backend() == "torch" and entry.torch_needs:
        pytest.importorskip(entry.torch_needs)
    return entry


def test_every_exported_backbone_has_an_entry():
    assert hub_backbones.exported() == set(hub_backbones.ENTRIES)


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_default_targets_match_something(name, entry):
    model = build(name, entry)
    options = {"rank_blocks": entry.rank_blocks, "exclude": entry.exclude}
    planned = keras_ether.plan(model, print_fn=str, **options)
    every = keras_ether.plan(
        model, targets="all", rank_blocks=1, print_fn=str, exclude=entry.exclude
    )
    assert {row.path for row in planned.rows} <= {
        row.path for row in every.rows
    }
    keras_ether.apply(model, **options)
    assert keras_ether.summary(model, print_fn=str).rows == planned.rows


def lives():
    """Every backbone with both methods; of the quick ones each with one."""
    quick = [param for param in NAMES if not param.marks]
    third = {"jax": 0, "tensorflow": 1}.get(keras.backend.backend())
    for param in NAMES:
        for i, method in enumerate(("ether", "ether+")):
            place = quick.index(param) if param in quick else None
            chosen = place is not None and place % 2 == i
            if third is not None:
                chosen = chosen and place % 3 == third
            marks = [] if chosen else [pytest.mark.nightly]
            yield pytest.param(*param.values, method, marks=marks)


@pytest.mark.parametrize(("name", "method"), list(lives()))
def test_life_of_an_adapter(name, entry, method, monkeypatch):
    exact = method == "ether+" and compiled_alike(entry)
    if exact:
        backends.compile_models_as_users_do(monkeypatch)
    model, x = build(name, entry), entry.inputs()
    base_weights = models.values(model.weights)
    base = Probe(model, entry.eager).outputs(x)

    adapt(model, entry, method)
    probe = Probe(model, entry.eager)
    started = probe.outputs(x)
    if exact:
        assert_equal(started, base)
    elif method == "ether+":
        assert distance(started, base) < 1e-6
    else:
        assert distance(started, base) > 1e-3
    if entry.learns:
        assert_moves(lambda: probe.train_on_batch(x), probe, vectors_of(probe))
        assert distance(probe.outputs(x), started) > 1e-5
    active = probe.outputs(x)
    keras_ether.merge(model)
    assert distance(Probe(model, entry.eager).outputs(x), active) < 1e-4

    for variable, value in zip(model.weights, base_weights, strict=True):
        variable.assign(value)
    adapt(model, entry, method)
    keras_ether.remove(model)
    assert_equal(models.values(model.weights), base_weights)
    assert_equal(Probe(model, entry.eager).outputs(x), base)


def compiled_alike(entry):
    """Whether the same operations give the same bits, adapters or none."""
    return entry.exact_on_jax or keras.backend.backend() != "jax"


def adapt(model, entry, method):
    options = {
        "rank_blocks": entry.rank_blocks,
        "method": method,
        "targets": entry.targets,
        "exclude": entry.exclude,
    }
    keras_ether.apply(model, seed=0, **options)
