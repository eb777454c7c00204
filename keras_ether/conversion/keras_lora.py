"""Adapters as Keras's own LoRA.

Keras adds `lora_kernel_a @ lora_kernel_b` to a kernel, a product over the
kernel's last axis. The axes of `a` are all axes of the kernel but the last,
then the rank. So Keras sees a query kernel `(d, heads, width)` as a `(d ·
heads, width)` matrix. An update of rank `r` in the `(d, heads · width)` matrix
has rank `r · heads` there, or less. The rank is at most `width`, and an output
block within one head adds only to that head's rank. Its exact rank is found
from the factors.
"""

import math

import keras
import numpy as np

from keras_ether.adapters import changes
from keras_ether.adapters import freezing
from keras_ether.conversion import low_rank_update
from keras_ether.ops import memory
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.surgery import compiled_state
from keras_ether.surgery import containers
from keras_ether.surgery import insertion
from keras_ether.surgery import targets as targets_lib
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.layer_tree import adapted_tree
from keras_ether.surgery.layer_tree import check_not_disabled
from keras_ether.types import Layer
from keras_ether.types import Model

# Relative to the largest singular value; the products are taken in float64, of
# float32 factors.
TOLERANCE = 1e-12


def to_lora(model: Layer) -> Layer:
    """Turns a model's adapters into enabled LoRA of Keras, in place.

    The predictions stay the same. The model then supports everything that
    Keras's LoRA supports: KerasHub's `backbone.save_lora_weights`, training
    `lora_kernel_a` and `lora_kernel_b`, and merging by `quantize` or `save`.

    In a KerasHub backbone, its own `enable_lora` enables LoRA and freezes all
    other weights. All layers then have one rank, the largest that a layer
    needs, padded with zeros. Layers with the same names as adapted layers have
    LoRA too, with zero updates. In other models each layer has the rank that it
    needs. The `trainable` flags there become those from before `apply`, except
    for the kernels with LoRA.

    The rank of a `Dense` kernel is the one of `keras_ether.lora_factors`. Keras
    splits the kernel of an `EinsumDense` before its last axis. So a query
    kernel of shape `(d, heads, width)` has a rank up to `heads` times as high,
    and at most `width`.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter, or if an adapter can't be LoRA:
            `keras_ether.lora_factors` refuses it, or its kernel is quantized,
            constrained or an embedding. Also if an adapted layer stays frozen,
            because other adapters of the same `apply` are outside of `model`,
            or another adapted model contains the layer. An error leaves the
            model unchanged.

    Example:

    >>> model = keras_ether.to_lora(model)
    >>> model.layers[0].lora_rank
    4
    """
    tree = adapted_tree(model)
    layers = tree.adapted
    low_rank_update.check(layers, _refusal)
    check_not_disabled(tree, "to_lora")
    factors = {
        path: _keras_factors(layer)
        for path, layer in memory.one_by_one(layers.items())
    }
    backbone = _backbone_around(model, layers)
    with changes.all_or_none() as made:
        insertion.take_out(made, tree)
        _check_thawed(layers)
        for part in tree.all_layers:
            made.make(containers.Contents(part))
        for variable in model.variables:
            made.make(changes.Flag(variable, variable.trainable))
        if backbone is None:
            for path, layer in layers.items():
                layer.enable_lora(factors[path][0].shape[-1])
        else:
            rank = max(a.shape[-1] for a, _ in factors.values())
            names = sorted({layer.name for layer in layers.values()})
            backbone.enable_lora(rank, names)
        for path, layer in layers.items():
            a, b = factors[path]
            more = layer.lora_rank - a.shape[-1]
            layer.lora_kernel_a.assign(
                np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)])
            )
            layer.lora_kernel_b.assign(np.pad(b, ((0, more), (0, 0))))
        compiled_state.reset(made, tree)
    return model


def _refusal(layer: Layer) -> str | None:
    if not isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
        return "Keras's LoRA files hold only Dense and EinsumDense layers"
    if layer.quantization_mode is not None:
        return f"the kernel is quantized to {layer.quantization_mode}"
    if layer.kernel_constraint is not None:
        return "Keras has no LoRA for a kernel with a constraint"
    return None


def _check_thawed(layers: dict[str, Layer]) -> None:
    """Raises a `ValueError` if a layer without its adapter stays frozen."""
    frozen = [path for path, y in layers.items() if freezing.is_frozen(y)]
    if frozen:
        raise ValueError(
            "These layers can't have LoRA yet, because they stay frozen in a "
            f"model that has other adapters: {targets_lib.shorten(frozen)}. "
            "Pass the model that contains all of these adapters, or call "
            "`keras_ether.merge` or `keras_ether.remove` for the others first."
        )


def _backbone_around(model: Layer, layers: dict[str, Layer]) -> Model | None:
    """The KerasHub backbone that holds all adapted layers, or `None`."""
    for owner in (model, getattr(model, "backbone", None)):
        if hasattr(owner, "enable_lora") and hasattr(
            owner, "save_lora_weights"
        ):
            inside = {id(layer) for layer in LayerTree(owner).all_layers}
            if all(id(layer) in inside for layer in layers.values()):
                return owner
    return None


def _keras_factors(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """`lora_kernel_a` and `lora_kernel_b` of the smallest rank, float32."""
    adapter = layer.ether
    view, shape = adapter.view, adapter.kernel_shape
    a, b = (f.astype("float64") for f in low_rank_update.factors_of(layer))
    if a.ndim == 2:
        a, b = a[None], b[None]
    a, b = _split_before_last(view, shape, a, b)
    orthogonal, upper = np.linalg.qr(a)
    u, sizes, v = np.linalg.svd(upper @ b, full_matrices=False)
    rank = max(1, int(np.sum(sizes > TOLERANCE * sizes[0])))
    # Both factors share the singular values, so that neither is tiny.
    roots = np.sqrt(sizes[:rank])
    a = orthogonal @ u[:, :rank] * roots
    b = roots[:, None] * v[:rank]
    a = a.reshape(*shape[:-1], rank)
    return a.astype("float32"), b.astype("float32")


def _split_before_last(
    view: MatrixView, shape: tuple[int, ...], a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The product `a b` of each expert, as one over the kernel's last axis.

    Returns:
        Matrices of shapes `(size of all axes but the last, r)` and
        `(r, size of the last)`.
    """
    experts, _, f = view.sizes(shape)
    height, width = math.prod(shape[:-1]), shape[-1]
    slices = experts * (f // width)
    labels = view.experts + view.rows + view.columns
    size_of = dict(zip(view.kernel, shape, strict=True)) | {view.kernel[-1]: -1}

    def in_kernel_order(matrices: np.ndarray) -> np.ndarray:
        axes = [labels.index(label) for label in view.kernel]
        parts = matrices.reshape([size_of[label] for label in labels])
        return parts.transpose(axes).reshape(height, -1)

    if view.kernel[-1] not in view.columns or a.shape[2] * slices >= width:
        # The update itself, times the identity.
        return in_kernel_order(a @ b), np.eye(width)
    # Each expert and each of the other outputs has its own columns and rows.
    rank = a.shape[2]
    ones = np.eye(slices).reshape(experts, slices // experts, -1)
    wide = in_kernel_order(np.einsum("edr,ecs->edcsr", a, ones))
    parts = b.reshape(experts, rank, slices // experts, width)
    rows = np.swapaxes(parts, 1, 2).reshape(slices * rank, width)
    return wide, rows
