"""Losses that are reduced over each adapter's own examples, as if alone.

Keras reduces a loss over a batch, with the masks and the sample weights of the
whole batch. Here the same is done over the examples of each adapter. The
gradient is that of the sum of these losses, in which every adapter has its own
part. The value that Keras logs is their mean over all examples.
"""

import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_ether import _keras_internals as internals
from keras_ether.bank import step as steps
from keras_ether.bank.inputs import differ
from keras_ether.bank.step import Step
from keras_ether.ops import traced
from keras_ether.ops.values import to_numpy
from keras_ether.types import Tensor

MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
# Of an axis whose size is not known, where a loss is tried.
SIZE = 5


def own_losses(loss: Any) -> Any:
    """The argument `loss` of `compile`, with an `OwnLoss` for each loss in it.

    Raises:
        ValueError: for a loss whose reduction is not known.
    """
    return tree.map_structure(
        lambda part: (
            part
            if part is None or isinstance(part, OwnLoss)
            else OwnLoss(internals.loss_of(part))
        ),
        loss,
    )


class OwnLoss(keras.losses.Loss):
    """A loss, reduced over the examples of each adapter in a training step."""

    def __init__(self, loss: keras.losses.Loss) -> None:
        known = type(loss).__call__ is keras.losses.Loss.__call__
        if not known or loss.reduction not in ("sum", *MEANS):
            raise ValueError(
                f"Adapters of a bank can't train with loss '{loss.name}': it "
                f"must reduce the batch by one of {['sum', *MEANS]}, in "
                f"Keras's own `__call__`. Received: {type(loss).__name__} with "
                f"reduction={loss.reduction!r}"
            )
        super().__init__(name=loss.name, reduction=loss.reduction)
        self.loss = loss
        self._tried: set[tuple] = set()

    @property
    def dtype(self) -> str:
        return self.loss.dtype

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.loss.call(y_true, y_pred)

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Tensor | None = None
    ) -> Tensor:
        step = steps.current()
        if step is None:
            return self.loss(y_true, y_pred, sample_weight)
        convert = lambda x: ops.convert_to_tensor(x, dtype=self.dtype)  # noqa: E731
        in_mask = internals.mask_of(y_pred)
        y_true = tree.map_structure(convert, y_true)
        y_pred = tree.map_structure(convert, y_pred)
        values = self.call(y_true, y_pred)
        if not len(values.shape) or differ(values.shape[0], step.row.shape[0]):
            raise ValueError(
                f"Loss '{self.name}' must have one value per example. "
                f"Received: values of shape {tuple(values.shape)}"
            )
        self._try(y_true, y_pred)
        masks = [
            ops.cast(mask, self.dtype)
            for mask in (in_mask, internals.mask_of(values))
            if mask is not None
        ]
        return _reduced(
            convert(values),
            functools.reduce(ops.multiply, masks) if masks else None,
            None if sample_weight is None else convert(sample_weight),
            self.reduction,
            step,
        )

    def _try(self, y_true: Any, y_pred: Any) -> None:
        """Raises a `ValueError` if an example changes another one's value."""
        shapes = tuple(
            tuple(size or SIZE for size in x.shape[1:])
            for x in tree.flatten((y_true, y_pred))
        )
        if shapes in self._tried:
            return
        rng = np.random.default_rng(0)

        def draw(shape: tuple) -> np.ndarray:
            return rng.uniform(0.1, 0.9, shape).astype("float32")

        seconds = [draw(shape) for shape in shapes]

        def of_second() -> np.ndarray:
            """The value of the second of two examples; the first is drawn."""
            arrays = [
                ops.convert_to_tensor(
                    np.stack([draw(shape), second]), dtype=self.dtype
                )
                for shape, second in zip(shapes, seconds, strict=True)
            ]
            given = tree.pack_sequence_as((y_true, y_pred), arrays)
            with traced.same_draws():
                return to_numpy(self.call(*given))[1:]

        with traced.eagerly(), traced.no_gradient():
            one, other = of_second(), of_second()
        if not np.allclose(one, other, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"Loss '{self.name}' compares or mixes the examples of a "
                "batch, so adapters of a bank can't train with it. Pass a loss "
                "whose value for an example depends on that example alone."
            )
        self._tried.add(shapes)


def _reduced(
    values: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    reduction: str,
    step: Step,
) -> Tensor:
    """As `keras.losses` reduces values, over the examples of each adapter."""
    ones = ops.ones_like(ops.cast(step.row, values.dtype))
    count = step.sum_of_own(ones * _inner_size(values))
    if mask is not None:
        if reduction in ("sum_over_batch_size", "mean"):
            # Valid entries count as many times as makes up for the others.
            total = step.sum_of_own(ones * _inner_size(mask))
            valid = step.sum_of_own(_inner_sum(mask))
            factor = ops.divide_no_nan(total, valid)
            mask = mask * _like(factor, mask)
        if weights is None:
            weights = mask
        else:
            mask, weights = _same_rank(mask, weights)
            weights = weights * mask
    if weights is not None:
        values, weights = _same_rank(values, weights)
        values = values * weights
        if reduction == "mean_with_sample_weight":
            count = step.sum_of_own(_inner_sum(weights))
    sums = _inner_sum(values)
    if reduction == "sum":
        shown = ops.sum(sums)
    else:
        sums = ops.divide_no_nan(sums, count)
        shown = ops.mean(sums * step.sum_of_own(ones))
    own = ops.sum(ops.where(step.trains, sums, 0))
    return own + ops.stop_gradient(shown - own)


def _inner_size(x: Tensor) -> Any:
    sizes = ops.shape(x)[1:]
    if all(isinstance(size, int) for size in sizes):
        return math.prod(sizes)
    return ops.cast(ops.prod(ops.stack(list(sizes))), x.dtype)


def _inner_sum(x: Tensor) -> Tensor:
    return ops.sum(x, axis=tuple(range(1, len(x.shape)))) if x.shape[1:] else x


def _like(of_example: Tensor, x: Tensor) -> Tensor:
    return ops.reshape(of_example, (-1,) + (1,) * (len(x.shape) - 1))


def _same_rank(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As Keras fits values and weights whose ranks differ by one."""
    if len(x.shape) == len(y.shape) + 1 and x.shape[-1] == 1:
        return (x, y[..., None]) if len(y.shape) == 1 else (x[..., 0], y)
    if len(y.shape) == len(x.shape) + 1 and y.shape[-1] == 1:
        return (x[..., None], y) if len(x.shape) == 1 else (x, y[..., 0])
    return x, y
