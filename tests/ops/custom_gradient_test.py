import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops.custom_gradient import with_gradient
from tests import backends


def cube_and_scale(calls):
    """`scale · x³`, whose gradients are by hand and count their calls."""

    def forward(x, scale):
        square = x * x
        calls.append("forward")
        return scale * square * x, ((square,), ())

    def backward(arguments, kept, upstream):
        (x, scale), ((square,), nothing) = arguments, kept
        assert len(nothing) == 0

        def d_scale():
            calls.append("scale")
            return ops.sum(upstream * square * x)

        return 3.0 * upstream * scale * square, d_scale

    return with_gradient(forward, backward)


@pytest.fixture
def x(rng):
    return rng.standard_normal(5).astype("float32")


def test_gradients_are_those_by_hand(x):
    function = cube_and_scale([])

    def loss(x, scale):
        return ops.sum(function(x, scale) * ops.arange(5, dtype="float32"))

    dx, d_scale = backends.gradients(loss, [x, np.float32(2.0)])
    np.testing.assert_allclose(dx, 6.0 * np.arange(5) * x**2, rtol=1e-5)
    np.testing.assert_allclose(d_scale, (np.arange(5) * x**3).sum(), rtol=1e-4)


def test_second_derivative_knows_where_what_is_kept_comes_from(x):
    function = cube_and_scale([])

    def loss(x):
        return ops.sum(function(x, ops.array(2.0)))

    found = backends.squared_gradient_derivative(loss, [x])
    # The gradient is 6 x², so its square is 36 x⁴.
    np.testing.assert_allclose(found, 144.0 * x**3, rtol=1e-4)


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="compilers leave out what nobody asks for",
)
def test_eager_pytorch_computes_no_more_than_is_asked_for(x):
    import torch

    calls = []
    function = cube_and_scale(calls)
    x = torch.tensor(x, requires_grad=True)
    y = function(x, torch.tensor(2.0)).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert calls == ["forward"]
    torch.testing.assert_close(x.grad, 12.0 * x.detach() ** 2)
    scale = torch.tensor(2.0, requires_grad=True)
    function(x, scale).sum().backward()
    assert calls == ["forward", "forward", "scale"]


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="of PyTorch's saved tensors"
)
def test_what_is_kept_can_be_put_elsewhere_meanwhile(x):
    """As checkpointing and offloading do, by hooks on saved tensors."""
    import torch

    saved = []

    def pack(tensor):
        saved.append(tensor.shape)
        return tensor.numpy(force=True)

    x = torch.tensor(x, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        y = cube_and_scale([])(x, torch.tensor([2.0]))
    assert saved == [x.shape, (1,), x.shape]
    y.sum().backward()
    torch.testing.assert_close(x.grad, 6.0 * x.detach() ** 2)
