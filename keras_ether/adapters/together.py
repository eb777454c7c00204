"""The factors of all kernels of a call at once, on eager PyTorch.

Vectors are so small that the operations which make factors of them take as long
to start there as a layer's own products. So the first adapted layer that runs
within a call of a model makes the factors of all adapters of its shapes below
that model, and leaves them with Keras's record of the call, where the others
find them. They last as long as the call: no layer keeps any, and a call in
another thread has its own.

A layer takes only what it would compute itself: factors of the tensors that it
has now, unchanged since, and with a gradient where one may be asked for. (What
PyTorch can't see is a change in place, by `.data`, in the middle of a call.)
"""

import functools
from typing import TYPE_CHECKING
from typing import Any

from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether import methods
from keras_ether.ops import stacked
from keras_ether.ops.backend import is_eager_torch
from keras_ether.ops.backend import not_compiled
from keras_ether.ops.backend import tensor
from keras_ether.ops.block_diagonal import arrange
from keras_ether.ops.block_diagonal import with_arranged
from keras_ether.types import Arrays
from keras_ether.types import Factors
from keras_ether.types import Tensor

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter

MEMO = "ether_factors"


def factors_of_sides(
    adapter: "Adapter", dtype: Any
) -> tuple[Factors | None, Factors | None] | None:
    """The factors of either side as they act, if a call's layers share them.

    Args:
        adapter: The `Adapter` of the layer that runs.
        dtype: The dtype that they are to have.

    Returns:
        The factors of the inputs and those of the outputs, `None` for a side
        that is not transformed; or `None` where the layer is to compute them.
    """
    if not is_eager_torch():
        return None
    return _shared(adapter, dtype)


@not_compiled
def _shared(
    adapter: "Adapter", dtype: Any
) -> tuple[Factors | None, Factors | None] | None:
    mode = stacked.mode_of_results(adapter.strength.value)
    call = internals.current_call()
    if mode is None or call is None:
        return None
    of_modes = vars(call).setdefault(MEMO, {})
    if mode not in of_modes:
        below = internals.everything_in(call.entry_layer)
        of_modes[mode] = _members(
            [layer for layer in below if type(layer) is type(adapter)]
        )
    found: dict[str, Factors | None] = dict.fromkeys(("input", "output"))
    for side in adapter.widths:
        member = of_modes[mode].get((id(adapter), side))
        if member is None or not member.consists_of(_arrays(adapter, side)):
            return None
        factors = member.factors(dtype)
        if factors is None:
            return None
        found[side] = factors
    return found["input"], found["output"]


def _members(adapters: list["Adapter"]) -> dict[tuple[int, str], "_Member"]:
    """The sides of adapters whose factors may be made with those of others."""
    found: dict[tuple[int, str], _Member] = {}
    groups: dict[tuple, _Alike] = {}
    for adapter in adapters:
        method = adapter.method
        if not (adapter.built and method.thin and method.independent):
            continue
        for side in adapter.widths:
            arrays = _arrays(adapter, side)
            if any(map(stacked.has_hooks, arrays)):
                continue
            kinds = [stacked.kind(array) for array in arrays]
            key = (adapter.method, *kinds)
            group = groups.setdefault(key, _Alike(adapter.method))
            found[id(adapter), side] = _Member(group, arrays)
    return found


def _arrays(adapter: "Adapter", side: str) -> list[Tensor]:
    """What the factors are made of, the strength last."""
    return [tensor(v) for v in (*adapter.vectors_of(side), adapter.strength)]


class _Alike:
    """Sides of one method and shape, by the arrays of each."""

    def __init__(self, method: methods.Method) -> None:
        self.method = method
        self.arrays: list[list[Tensor]] = []
        self.states: list[list[tuple]] = []
        self._factors: dict[Any, list[Factors] | None] = {}

    def add(self, arrays: list[Tensor]) -> None:
        self.arrays.append(arrays)
        self.states.append([stacked.state(array) for array in arrays])

    def is_unchanged(self, place: int) -> bool:
        """Whether the arrays in this place are as they were."""
        now = [stacked.state(array) for array in self.arrays[place]]
        return now == self.states[place]

    def factors(self, dtype: Any) -> list[Factors] | None:
        """The factors of all, made when first asked for; `None` of one alone.

        Nor are they made if an array is not there but while its layer runs.
        """
        if dtype not in self._factors:
            places = range(len(self.arrays))
            shares = len(places) > 1 and all(map(self.is_unchanged, places))
            self._factors[dtype] = self._make(dtype) if shares else None
        return self._factors[dtype]

    def _make(self, dtype: Any) -> list[Factors]:
        found = stacked.of_all(
            functools.partial(_factors, self.method, dtype),
            [[*vectors, s.reshape(1)] for *vectors, s in self.arrays],
        )
        return [
            (with_arranged(left, p), with_arranged(right, q))
            for left, right, p, q in found
        ]


class _Member:
    """One of a group."""

    def __init__(self, group: _Alike, arrays: list[Tensor]) -> None:
        self.group = group
        self.place = len(group.arrays)
        group.add(arrays)

    def consists_of(self, arrays: list[Tensor]) -> bool:
        """Whether these are its arrays, unchanged since."""
        own = self.group.arrays[self.place]
        return all(
            now is array for now, array in zip(arrays, own, strict=True)
        ) and self.group.is_unchanged(self.place)

    def factors(self, dtype: Any) -> Factors | None:
        factors = self.group.factors(dtype)
        return None if factors is None else factors[self.place]


def _factors(method: methods.Method, dtype: Any, *arrays: Tensor) -> Arrays:
    """`(left, right)` of many kernels, the first axis, and both arranged."""
    *weights, strength = arrays
    left, right = (
        factor.unflatten(0, (len(strength), -1))
        for factor in method.factors(*weights)
    )
    left = ops.cast(left * strength.reshape(-1, 1, 1, 1), dtype)
    right = ops.cast(right, dtype)
    return left, right, arrange(left), arrange(right)
