import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether import methods
from tests import models


def test_unknown_method_is_an_error():
    with pytest.raises(ValueError, match=r"\['ether', .*method='lora'"):
        methods.get("lora")
    with pytest.raises(ValueError, match="method=None"):
        methods.get(None)


def test_name_taken_is_an_error():
    with pytest.raises(ValueError, match="'ether' is registered already"):
        methods.register(methods.get("ether"))


@pytest.mark.parametrize("name", ["ether+", "oft", "naive"])
def test_start_is_the_identity(name, rng):
    method = methods.get(name)
    left, right = method.factors(*method.start(3, 4, rng))
    x = ops.array(rng.standard_normal((2, 12)), "float32")
    from keras_ether.ops.reflections import multiply

    y = ops.convert_to_numpy(multiply(x, left, right))
    np.testing.assert_array_equal(y, ops.convert_to_numpy(x))


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
        )
    )
    del methods.METHODS[name]


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
