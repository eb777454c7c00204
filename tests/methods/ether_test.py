import keras
import numpy as np
import pytest
from keras import ops

from keras_ether import methods
from keras_ether.methods import ether
from tests import backends

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="the closed forms are for eager PyTorch",
)

PLAIN = {
    "ether": ether._reflection_plain,
    "ether+": ether._difference_of_projections_plain,
}


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("method", PLAIN)
def test_closed_forms_are_the_formulas(method, blocks, rng):
    names = methods.get(method).weights
    weights = [
        rng.standard_normal((blocks, 5)).astype("float32") for _ in names
    ]
    found = methods.get(method).factors(*map(ops.array, weights))
    expected = PLAIN[method](*map(ops.array, weights))
    upstream = [
        ops.array(rng.standard_normal(f.shape), "float32") for f in expected
    ]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), 1e-5, 1e-6)

    def loss(formula):
        return lambda *weights: sum(
            ops.sum(f * g)
            for f, g in zip(formula(*weights), upstream, strict=True)
        )

    for a, b in zip(
        backends.gradients(loss(methods.get(method).factors), weights),
        backends.gradients(loss(PLAIN[method]), weights),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)


@pytest.mark.parametrize("trained", [(0,), (1,), (0, 1)])
def test_only_what_is_trained_gets_a_second_derivative(trained, rng):
    import torch

    weights = [
        torch.tensor(rng.standard_normal((2, 3)), dtype=torch.float32)
        for _ in "uv"
    ]
    for i in trained:
        weights[i].requires_grad_(True)
    wanted = [weights[i] for i in trained]

    def second(formula):
        left, right = formula(*weights)
        value = (left * left.flip(-1) + right**3).sum()
        first = torch.autograd.grad(value, wanted, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), wanted)

    torch.testing.assert_close(
        second(ether.ether_plus_factors),
        second(ether._difference_of_projections_plain),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("method", "most"), [("ether", (4, 3)), ("ether+", (5, 6))]
)
def test_few_operations_are_started(method, most, rng):
    import torch

    from benchmarks.kernels import counter

    weights = [
        torch.randn(4, 8, requires_grad=True)
        for _ in methods.get(method).weights
    ]
    with counter() as forward:
        factors = methods.get(method).factors(*weights)
    upstream = [torch.randn(f.shape) for f in factors]
    with counter() as backward:
        torch.autograd.grad(factors, weights, upstream)
    found = tuple(sum(c.counts.values()) for c in (forward, backward))
    assert found == most, (forward.counts, backward.counts)
