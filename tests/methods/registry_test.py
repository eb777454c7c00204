import dataclasses

import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether import methods
from keras_ether.adapters.adapter_config import AdapterConfig
from tests import models


def test_unknown_method_is_an_error():
    with pytest.raises(ValueError, match=r"\['ether', .*method='lora'"):
        methods.get("lora")
    with pytest.raises(ValueError, match="method=None"):
        methods.get(None)


OWN = ["ether", "ether+", "oft", "naive"]


@pytest.mark.parametrize("name", OWN)
def test_own_methods_are_not_replaced(name):
    method = methods.get(name)
    other = dataclasses.replace(method, learning_rate=1.0)
    with pytest.raises(ValueError, match=f"own methods.*name='.*{name[-4:-1]}"):
        methods.register(other)
    assert methods.get(name) is method


def deviation(method, weights):
    """The blocks of some weights, less the identity."""
    left, right = method.factors(*map(ops.convert_to_tensor, weights))
    left = ops.convert_to_numpy(left)
    assert method.thin == (right is not None)
    if right is None:
        return left
    return np.einsum("nkw,nkv->nwv", left, ops.convert_to_numpy(right))


@pytest.mark.parametrize("strength", [None, 0.5, "learned"])
@pytest.mark.parametrize("name", OWN)
def test_own_methods_have_the_traits_that_they_declare(name, strength, rng):
    method = methods.with_strength(methods.get(name), strength)
    start = list(method.initial(3, 4, rng).values())
    assert [w.shape[1:] for w in start] == list(method.shapes_of(4))
    assert method.starts_at_identity == (not deviation(method, start).any())
    zeros = [np.zeros_like(w) for w in start]
    assert method.identity_at_zero == (not deviation(method, zeros).any())
    moved = [w + rng.standard_normal(w.shape, "float32") for w in start]
    blocks = deviation(method, moved)
    alone = [deviation(method, [w[i : i + 1] for w in moved]) for i in range(3)]
    np.testing.assert_allclose(blocks, np.concatenate(alone), atol=1e-6)
    product = blocks + np.eye(4)
    product = product @ np.swapaxes(product, -1, -2)
    is_orthogonal = np.allclose(product, np.eye(4), atol=1e-5)
    assert method.orthogonal == is_orthogonal


def test_vectors_start_about_0_58_long(rng):
    (u,) = methods.get("ether").start(4, 1000, rng)
    assert u.shape == (4, 1000)
    assert np.abs(u).max() <= 1 / np.sqrt(1000)
    np.testing.assert_allclose(
        np.linalg.norm(u, axis=-1), 1 / np.sqrt(3), rtol=0.05
    )


@pytest.mark.parametrize(
    ("name", "strength", "rates"),
    [
        ("ether", None, [5e-3, 7.071e-3, 1e-2, 1e-2]),
        ("ether+", None, [1e-3, 1.414e-3, 2e-3, 2e-3]),
        ("ether", 0.5, [5e-3, 7.071e-3, 1e-2, 1e-2]),
        ("ether", "learned", [5e-2] * 4),
        ("oft", None, [1e-3] * 4),
    ],
)
def test_a_step_turns_vectors_of_few_blocks_further(name, strength, rates):
    method = methods.with_strength(methods.get(name), strength)
    found = [method.learning_rate_for(blocks) for blocks in (1, 2, 4, 32)]
    np.testing.assert_allclose(found, rates, rtol=2e-3)


@pytest.fixture
def householder_pair():
    """A product of two reflections, as CONTRIBUTING says to add a method."""

    def factors(u, v):
        from keras_ether.ops.reflections import unit

        u, v = unit(u), unit(v)
        # (I − 2uuᵀ)(I − 2vvᵀ) = I + [u, v]ᵀ [−2u + 4(u·v)v, −2v]
        inner = ops.sum(u * v, axis=-1, keepdims=True)
        return (
            ops.stack([u, v], axis=1),
            ops.stack([-2 * u + 4 * inner * v, -2 * v], axis=1),
        )

    def start(blocks, width, rng):
        shape = (blocks, width)
        return tuple(rng.normal(size=shape).astype("float32") for _ in "uv")

    name = "householder pair"
    yield methods.register(
        methods.Method(
            name=name,
            factors=factors,
            weights=("u", "v"),
            start=start,
            side="input",
            orthogonal=True,
            learning_rate=1e-2,
            identity_at_zero=True,
        )
    )
    del methods.METHODS[name]


def test_a_cell_that_is_run_again_replaces_its_method(householder_pair):
    again = dataclasses.replace(householder_pair, side="output")
    assert methods.register(again) is again
    assert methods.get(again.name) is again
    model = keras_ether.apply(
        models.mlp(), method=again.name, trainable=["head"]
    )
    assert model.layers[0].ether.config.side == "output"


def test_functions_of_a_method_are_not_run_to_learn_about_it(
    householder_pair, rng
):
    """They may be slow or random, so their traits are declared."""

    def refuse(*arguments):
        raise AssertionError("It is not called.")

    method = dataclasses.replace(
        householder_pair, factors=refuse, start=refuse, name="declared"
    )
    methods.register(method)
    try:
        keras_ether.plan(models.mlp(), method="declared", print_fn=str)
        config = AdapterConfig("declared", 2, side="both")
        assert config.parameters((3, 4, 6)) == 3 * 2 * (4 + 6)
    finally:
        del methods.METHODS["declared"]


def test_start_of_other_shapes_than_declared_is_an_error(householder_pair):
    methods.register(
        dataclasses.replace(
            householder_pair, shapes=lambda width: ((2, width), (width,))
        )
    )
    model = models.mlp()
    with pytest.raises(ValueError, match=r"householder.*\(4, 2, 4\).*`shapes`"):
        keras_ether.apply(model, method=householder_pair.name, trainable="head")


@pytest.mark.once
def test_bank_of_a_new_method(householder_pair, rng):
    model = keras_ether.apply(
        models.mlp(), method=householder_pair.name, trainable=["head"]
    )
    bank = keras_ether.AdapterBank(model, capacity=2)
    bank.add("a", model)
    x = models.inputs_of("mlp", rng)
    ids = bank.ids(["a"] * len(x))
    found = bank.model({"inputs": x, "adapter_id": ids})
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), models.call(model, x), atol=1e-5
    )
    undeclared = dataclasses.replace(householder_pair, identity_at_zero=False)
    methods.register(undeclared)
    model = keras_ether.apply(
        models.mlp(), method=undeclared.name, trainable=["head"]
    )
    with pytest.raises(ValueError, match="identity_at_zero"):
        keras_ether.AdapterBank(model, capacity=2)


def test_new_method_needs_a_formula_and_a_registration(householder_pair, rng):
    model = models.mlp()
    x = models.inputs_of("mlp", rng)
    keras_ether.apply(model, method=householder_pair.name, trainable=["head"])
    adapter = model.layers[0].ether
    base = models.values([model.layers[0].base_kernel])[0]
    folded = adapter.fold(ops.array(base))
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.matmul(ops.transpose(folded), folded)),
        base.T @ base,
        atol=1e-5,
    )
    models.compile_and_fit(model, x, run_eagerly=False)
    active = models.call(model, x)
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)
