"""One call for many, on PyTorch."""

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="of eager PyTorch"
)


def double_and_scale(u, scale):
    """`(2 u, scale · unit(u), u²)` of members of two rows each."""
    from keras_ether.ops.unit import unit

    parts = (2.0 * u, scale * unit(u), u * u)
    return tuple(part.unflatten(0, (-1, 2)) for part in parts)


@pytest.fixture
def members(rng):
    import torch

    def draw(*shape):
        array = rng.standard_normal(shape).astype("float32")
        return torch.tensor(array, requires_grad=True)

    return [(draw(2, 5), draw(2, 1)) for _ in range(3)]


def found_and_expected(members):
    from keras_ether.ops import stacked

    expected = []
    for member in members:
        alone = double_and_scale(*(a.repeat(3, 1) for a in member))
        expected.append([part[0] for part in alone])
    return stacked.of_all(double_and_scale, members), expected


@pytest.mark.parametrize("with_gradient", [True, False])
def test_equals_a_call_for_each(members, with_gradient):
    import torch

    with torch.set_grad_enabled(with_gradient):
        found, expected = found_and_expected(members)
    for parts, alone in zip(found, expected, strict=True):
        assert all(part.requires_grad == with_gradient for part in parts)
        torch.testing.assert_close(list(parts), alone, rtol=0, atol=0)


def loss_of(parts, upstream):
    return sum(
        (part * u).sum() for part, u in zip(parts, upstream, strict=True)
    )


def test_gradients_are_those_of_each_and_none_of_the_unused(members, rng):
    import torch

    upstream = torch.tensor(rng.standard_normal((3, 2, 5)), dtype=torch.float32)
    found, expected = found_and_expected(members)
    # Of the first all, of the second the last two parts, of the third none.
    for i, first in ((0, 0), (1, 1)):
        loss_of(found[i][first:], upstream[first:]).backward()
        arrays = members[i]
        alone = torch.autograd.grad(
            loss_of(expected[i][first:], upstream[first:]), arrays
        )
        torch.testing.assert_close([a.grad for a in arrays], list(alone))
    assert all(array.grad is None for array in members[2])


def test_a_weight_that_no_used_output_depends_on(members):
    found, _ = found_and_expected(members)
    found[1][0].sum().backward()
    u, scale = members[1]
    np.testing.assert_array_equal(u.grad, 2.0)
    assert scale.grad is None


def test_second_derivative(members):
    import torch

    found, expected = found_and_expected(members)
    derivatives = []
    for parts in (found[1], expected[1]):
        first = torch.autograd.grad(
            (parts[1] ** 3).sum() + parts[2].sum(),
            members[1],
            create_graph=True,
        )
        total = sum((g**2).sum() for g in first)
        derivatives.append(torch.autograd.grad(total, members[1]))
    torch.testing.assert_close(*derivatives)


def test_several_upstream_gradients_at_once(members):
    import torch

    found, expected = found_and_expected(members)
    upstream = torch.eye(10).reshape(10, 2, 5)
    gradients = [
        torch.autograd.grad(
            parts[1],
            members[0],
            upstream,
            retain_graph=True,
            is_grads_batched=True,
        )
        for parts in (found[0], expected[0])
    ]
    torch.testing.assert_close(*gradients)


def test_state_changes_with_a_tensor():
    import torch

    from keras_ether.ops import stacked

    x = torch.zeros(2)
    seen = [stacked.state(x)]
    assert stacked.state(x) == seen[0]

    def replace():
        x.data = torch.zeros(2)

    for change in (lambda: x.add_(1.0), replace, lambda: x.requires_grad_()):
        change()
        assert stacked.state(x) not in seen
        seen.append(stacked.state(x))
    with torch.inference_mode():
        assert stacked.state(torch.zeros(2))[0] == 0


def test_second_derivative_after_a_change_is_refused(members):
    import torch

    found, _ = found_and_expected(members)
    with torch.no_grad():
        members[1][0].add_(1.0)
    # As PyTorch refuses it, but for a first derivative at the values of then.
    (first,) = torch.autograd.grad(
        found[1][2].sum(), members[1][0], retain_graph=True
    )
    torch.testing.assert_close(first, 2.0 * (members[1][0] - 1.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(found[1][2].sum(), members[1][0], create_graph=True)


def test_gradients_can_be_changed_in_place(members):
    import torch

    found, _ = found_and_expected(members)
    gradients = [
        torch.autograd.grad(parts[0].sum(), member[0], create_graph=True)[0]
        for parts, member in zip(found, members, strict=True)
    ]
    gradients[0].mul_(3.0)
    gradients[1].detach_()
    for gradient, expected in zip(gradients, (6.0, 2.0, 2.0), strict=True):
        np.testing.assert_array_equal(gradient.detach(), expected)


def test_unused_members_have_no_gradient_of_a_gradient(members):
    import torch

    found, _ = found_and_expected(members)
    arrays = [array for member in members for array in member]
    first = torch.autograd.grad(
        (found[0][2] ** 2).sum(), arrays, create_graph=True, allow_unused=True
    )
    assert [g is not None for g in first] == [True] + [False] * 5
    second = torch.autograd.grad(
        (first[0] ** 2).sum(), arrays, allow_unused=True
    )
    assert [g is not None for g in second] == [True] + [False] * 5


def test_results_may_not_be_kept_where_functions_run_again():
    import torch

    from keras_ether.ops.stacked import mode_of_results

    x = torch.ones(2, requires_grad=True)
    assert mode_of_results(x) == (True, False)
    with torch.no_grad():
        assert mode_of_results(x) == (False, False)
    with torch.inference_mode():
        assert mode_of_results(x) == (False, True)
    found = []

    def function(x):
        found.append(mode_of_results(x))
        return x * x

    y = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
    y.sum().backward()
    torch.func.grad(lambda x: function(x).sum())(x)
    torch.compile(function, backend="eager")(x)
    assert found == [None] * 4
