"""Putting adapters into a model, and taking them out again."""

import contextlib
import random
import warnings

import keras
import numpy as np
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether import compiled
from keras_ether import freezing
from keras_ether import methods
from keras_ether import planning
from keras_ether import transformers_export
from keras_ether.adapter import Adapter
from keras_ether.layers import kinds
from keras_ether.targets import walk


def apply(
    model,
    rank_blocks: int = 4,
    method: str = "ether",
    targets=None,
    exclude=None,
    side: str | None = None,
    trainable=None,
    dropout: float = 0.0,
    seed: int | None = None,
):
    """Adapts a built model in place with ETHER or ETHER+.

    Each target layer computes `activation((x H) W G + b)`, with its kernel `W`
    frozen and block-diagonal `H` and `G` made of trained vectors (Bini et al.,
    ICML 2024, sections 3.2 to 3.4). In a convolution, `H` acts on the channels
    and `G` on the filters; an embedding has only `G`. Afterwards these vectors
    train, and the weights that a KerasHub task has outside its `backbone`;
    nothing else does, batch normalization's moving statistics included.

    A compiled model can be fitted as it is: its compiled functions and the
    state of its optimizer start anew. Pass the outermost compiled model, since
    a compiled model around the one passed can't be found from inside and has to
    be compiled again. ETHER wants higher learning rates than full fine-tuning
    does: with Adam, 1e-2 for `"ether"` and 2e-3 for `"ether+"` are good first
    tries.

    Args:
        model: A built Keras model, KerasHub backbone or task, or layer.
        rank_blocks: Integer, number of diagonal blocks `n` of `H` and `G`. It
            must divide every transformed dimension. It does not change the
            count of ETHER's trained numbers. Defaults to 4.
        method: `"ether"`, blocks `I − 2 û ûᵀ`, `d` numbers for a `(d, f)`
            kernel; `"ether+"`, blocks `I − û ûᵀ + v̂ v̂ᵀ`, `2 (d + f)` numbers,
            which start at the identity; or one of the paper's baselines,
            `"oft"` and `"naive"`. Defaults to `"ether"`.
        targets: Which layers. `None`, the default, takes those that KerasHub
            gives LoRA (query and value projections), or where there are none,
            all linear layers. `"all-linear"`: every `Dense` and `EinsumDense`.
            `"all"`: every layer that can be adapted, convolutions and
            embeddings too. Another string: a regular expression for whole layer
            paths, as `keras_ether.plan` prints them. A list: layer names. A
            callable: `(layer_path, layer) -> bool`.
        exclude: Which of these not, in the same forms. Defaults to `None`.
        side: `"input"`, `"output"`, `"both"`, or `None` for the method's own:
            both for `"ether+"`, else the input; the output of an embedding.
        trainable: List of layer names or patterns, layers that stay trainable
            and get no adapter: a new head in a model without a `backbone`, say.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the vectors' start and for dropout.

    Returns:
        The model passed.

    Raises:
        ValueError: if an argument is out of its range, if no layer matches, or
            if one that does can't be adapted: it is not built, has an adapter
            or LoRA already, shares its kernel, or has a dimension that
            `rank_blocks` does not divide. The model is then as it was.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((16,)),
    ...     keras.layers.Dense(32, activation="relu"),
    ...     keras.layers.Dense(3, name="head"),
    ... ])
    >>> model = keras_ether.apply(model, rank_blocks=4, trainable=["head"])
    >>> sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    115
    """
    plan = planning.make_plan(
        model,
        rank_blocks=rank_blocks,
        method=method,
        targets=targets,
        exclude=exclude,
        side=side,
        trainable=trainable,
        dropout=dropout,
        seed=seed,
    )
    # Whatever can fail, for want of memory say, is done before the first layer
    # is touched.
    reset = compiled.Reset(model)
    # `keras.utils.set_random_seed` seeds Python's generator, and Keras's own
    # seeds are signed integers of 32 bits.
    rng = np.random.default_rng(
        random.getrandbits(64) if seed is None else seed
    )
    seeds = rng.integers(2**31, size=len(plan.targets))
    adapters = [
        _build_adapter(
            target,
            method=method,
            rank_blocks=rank_blocks,
            side=target.side,
            dropout=dropout,
            seed=int(target_seed),
        )
        for target, target_seed in zip(plan.targets, seeds, strict=True)
    ]
    _freeze_all_but(model, plan)
    for target, adapter in zip(plan.targets, adapters, strict=True):
        layer = target.layer
        layer.__class__ = kinds.adapted_class(layer)
        internals.add_sublayer(layer, kinds.ADAPTER, adapter)
    for part in [model, *walk(model).values()]:
        transformers_export.suspend(part)
    reset()
    _warn_of_outer_model(model)
    _warn_of_frozen_head(model)
    _warn_of_low_rate(model, methods.get(method))
    return model


def merge(model):
    """Folds a model's adapters into its kernels.

    The layers are ordinary ones again, of the classes that they had, and the
    `trainable` flags are what they were before `apply`.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter, or if one stands around a quantized
            kernel. The model is then as it was.
    """
    layers = adapted_layers(model)
    for path, layer in layers.items():
        if layer.quantization_mode is not None:
            raise ValueError(
                f"Layer '{path}' can't be merged: its kernel is quantized "
                f"('{layer.quantization_mode}'), and rounding the product to "
                "that precision would change what was trained. Keep the "
                "adapter active, or call `keras_ether.remove`."
            )
    reset = compiled.Reset(model)
    for layer in layers.values():
        kernel = layer.base_kernel
        kernel.assign(layer.ether.fold(ops.convert_to_tensor(kernel)))
        _take_out_adapter(layer)
    _thaw_all(model)
    reset()
    return model


def remove(model):
    """Drops a model's adapters: the base model again, bit for bit.

    The head keeps what it has learned. The `trainable` flags are what they were
    before `apply`.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter.
    """
    layers = adapted_layers(model)
    reset = compiled.Reset(model)
    for layer in layers.values():
        _take_out_adapter(layer)
    _thaw_all(model)
    reset()
    return model


@contextlib.contextmanager
def disabled(model):
    """Lets a model compute as its base model within a `with` block.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.

    Raises:
        ValueError: if there is no adapter.

    Example:

    >>> with keras_ether.disabled(model):
    ...     before = model.predict(x, verbose=0)
    """
    adapters = [layer.ether for layer in adapted_layers(model).values()]
    active = [adapter.active for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.active = False
        compiled.drop_functions(model)
        yield model
    finally:
        for adapter, was_active in zip(adapters, active, strict=True):
            adapter.active = was_active
        compiled.drop_functions(model)


def adapted_layers(model) -> dict:
    """The layers of a model that have an adapter, by path.

    Raises:
        ValueError: if there is none.
    """
    planning.check_built(model)
    layers = {
        path: layer
        for path, layer in walk(model).items()
        if kinds.is_adapted(layer)
    }
    if not layers:
        raise ValueError(
            f"Model '{model.name}' has no ETHER adapter. Call "
            "`keras_ether.apply(model)` first."
        )
    return layers


def _build_adapter(target, **arguments):
    adapter = Adapter(**arguments)
    # As if built by the layer itself, so that the rules of a layout map for the
    # layer find the vectors.
    parent, _, name = (target.layer.path or target.layer.name).rpartition("/")
    with keras.name_scope(name, override_parent=parent):
        adapter.build(target.view, target.kernel_shape)
    return adapter


def _take_out_adapter(layer):
    plain_class = kinds.plain_class(layer)
    internals.remove_sublayer(layer, kinds.ADAPTER)
    layer.__class__ = plain_class


def _freeze_all_but(model, plan):
    """Freezes all but the kept layers, and what holds what trains."""
    targets = {id(target.layer) for target in plan.targets}
    holds = {}

    def trains(layer):
        if id(layer) not in holds:
            parts = [trains(part) for part in internals.children(layer)]
            holds[id(layer)] = (
                any(parts)
                or id(layer) in targets | plan.kept
                or kinds.is_adapted(layer)
                or freezing.is_kept(layer)
            )
        return holds[id(layer)]

    for layer in [model, *walk(model).values()]:
        if id(layer) in plan.kept:
            freezing.keep(layer)
        elif not freezing.is_kept(layer) and not kinds.is_adapter(layer):
            freezing.freeze(layer, trainable=trains(layer))


def _thaw_all(model):
    for layer in [model, *walk(model).values()]:
        freezing.thaw(layer)
        transformers_export.resume(layer)


def _warn_of_outer_model(model):
    """Says what to do about a compiled model that can't be found from here."""
    if isinstance(model, keras.Model) and internals.is_called_in_another_model(
        model
    ):
        warnings.warn(
            f"Model '{model.name}' is part of another model. If that one is "
            "compiled, call `compile(...)` on it again before it is used: its "
            "compiled functions and its optimizer know nothing of the change. "
            "Or pass it, the outermost model, instead.",
            stacklevel=3,
        )


def _warn_of_frozen_head(model):
    """Says so where the last linear layer of a plain model does not train."""
    if hasattr(model, "backbone") or hasattr(model, "default_lora_layer_names"):
        return
    linear = [
        (path, layer)
        for path, layer in walk(model).items()
        if kinds.kind_of(layer) and kinds.kind_of(layer).linear
    ]
    path, last = linear[-1] if linear else (None, None)
    if last is None or last is model or freezing.is_kept(last):
        return
    warnings.warn(
        f"The kernel of '{path}', the last linear layer of model "
        f"'{model.name}', is frozen now. If it is a new head that has yet to "
        f"be trained, pass `trainable=[{last.name!r}]`.",
        stacklevel=3,
    )


def _warn_of_low_rate(model, method):
    rate = compiled.constant_learning_rate(model)
    if rate is not None and rate < method.learning_rate / 10:
        warnings.warn(
            f"Model '{model.name}' is compiled with a learning rate of "
            f"{rate:g}, which is low for '{method.name}'. Around "
            f"{method.learning_rate:g} is a good first try with Adam: "
            "`model.compile(...)` it anew.",
            stacklevel=3,
        )
