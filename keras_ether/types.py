"""The types in the signatures of this package."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import TypeAlias

import keras

# The base class of layer mixins, which use a layer's attributes on `self`. With
# `KERAS_NNX_ENABLED` an object's class can't be changed to a class with other
# bases.
LayerMixin: TypeAlias = keras.layers.Layer
Layer: TypeAlias = keras.layers.Layer
Model: TypeAlias = keras.Model
Optimizer: TypeAlias = keras.optimizers.Optimizer
Variable: TypeAlias = keras.Variable
# A tensor of the current backend, or a value that `keras.ops` converts to a
# tensor.
Tensor: TypeAlias = Any
# `None` where a size is not known yet.
Shape: TypeAlias = tuple[int | None, ...]
# `(left, right)` of a side's blocks, see `keras_ether.ops.reflections`. `right`
# is `None` for methods whose blocks have no thin factors.
Factors: TypeAlias = tuple[Tensor, Tensor | None]
# The factors of an adapter by side, `None` for one that is not transformed.
Sides: TypeAlias = dict[str, Factors | None]
# Types of a custom gradient, see `keras_ether.ops.custom_gradient`: arguments
# or tangents, where a zero tangent is `None`; the intermediate values that the
# derivative uses; and a gradient of each argument, or a function that computes
# it.
Arrays: TypeAlias = Sequence[Tensor]
Saved: TypeAlias = tuple[tuple[Tensor, ...], ...]
Gradients: TypeAlias = tuple[Tensor | Callable[[], Tensor], ...]
# `(experts, d, f)` of a kernel.
Sizes: TypeAlias = tuple[int, int, int]
