"""Adapting a model, and the ways back: merging, removing, disabling."""

import contextlib
import random
import warnings

import numpy as np
from keras import ops

from keras_ether.adapters import arguments
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters import start
from keras_ether.ops import values
from keras_ether.surgery import compiled_state
from keras_ether.surgery import insertion
from keras_ether.surgery import planning
from keras_ether.surgery import undo
from keras_ether.surgery.targets import walk


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
    tries. If the rate is below a tenth of that where training starts, `fit` and
    `train_on_batch` warn of it once.

    Args:
        model: A built Keras model, KerasHub backbone or task, or layer.
        rank_blocks: Integer, number of diagonal blocks `n` of `H` and `G`. It
            must divide every transformed dimension, and leave two entries or
            more to a block: one could not train. It does not change the count
            of ETHER's trained parameters. Defaults to 4.
        method: `"ether"`, blocks `I − 2 û ûᵀ`, `d` parameters for a `(d, f)`
            kernel; `"ether+"`, blocks `I − û ûᵀ + v̂ v̂ᵀ`, `2 (d + f)`
            parameters, which start at the identity; or one of the paper's
            baselines, `"oft"` and `"naive"`. Defaults to `"ether"`.
        targets: Which layers. `None`, the default, takes those that KerasHub
            gives LoRA (query and value projections), or where there are none,
            all linear layers. `"all-linear"`: every `Dense` and `EinsumDense`.
            `"all"`: every layer that can be adapted, convolutions and
            embeddings too. Another string: a regular expression for whole layer
            paths, as `keras_ether.plan` prints them. A list: layer names, or
            where no layer has that name, paths. A callable:
            `(layer_path, layer) -> bool`.
        exclude: Which of these not, in the same forms; a layer that holds
            others stands for all inside it. Defaults to `None`.
        side: `"input"`, `"output"`, `"both"`, or `None` for the method's own:
            both for `"ether+"`, else the input; the output of an embedding.
        trainable: List of layer names, paths or regular expressions for whole
            paths: layers that stay trainable with all inside them and get no
            adapter, a new head in a model without a `backbone`, say.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the vectors' start and for dropout.

    Returns:
        The model passed.

    Raises:
        ValueError: if an argument is out of its range, if no layer matches, if
            an entry of a list names no layer or one that can't be a target, or
            if a layer that matches can't be adapted: it is not built, has an
            adapter or LoRA already, shares its kernel, or has a dimension that
            `rank_blocks` does not fit. The model is then as it was.

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
    # `keras.utils.set_random_seed` seeds Python's generator, and Keras's own
    # seeds are signed integers of 32 bits.
    rng = np.random.default_rng(
        random.getrandbits(64) if seed is None else values.integer(seed)
    )
    seeds = rng.integers(2**31, size=len(plan.targets))
    adapters = insertion.build_adapters(model, plan, seeds.tolist())
    # Warnings may be errors: they come before anything is touched.
    insertion.warn_of_outer_model(model)
    _warn_of_frozen_head(model, plan)
    with undo.on_error(model):
        insertion.put_in(model, plan, adapters)
    return model


def merge(model, requantize: bool = False):
    """Folds a model's adapters into its kernels.

    The layers are ordinary ones again, of the classes that they had, and the
    `trainable` flags are what they were before `apply`.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        requantize: Boolean, whether merged int8 and int4 kernels may be rounded
            to such codes again, by the quantizers that they had. A warning then
            says by how much that changes them. Float8 kernels are not rounded
            by merging; GPTQ and AWQ kernels can't be merged. Defaults to
            `False`.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter, or if one stands around a quantized
            kernel that can't be merged into. The model is then as it was.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    >>> model = keras_ether.merge(keras_ether.apply(model))
    >>> model.count_params()
    68
    """
    layers = adapted_layers(model)
    requantize = arguments.check_boolean(requantize, "requantize")
    quantized_kernel.check_mergeable(layers, requantize)
    insertion.warn_of_outer_model(model)
    rounded = {
        path: quantized_kernel.round_effective(layer)
        for path, layer in layers.items()
        if layer.quantization_mode in quantized_kernel.INTEGERS
    }
    if rounded:
        errors = {path: codes.error for path, codes in rounded.items()}
        warnings.warn(quantized_kernel.describe_merge(errors), stacklevel=2)
    with undo.on_error(model) as back:
        for path, layer in layers.items():
            for variable, value in _merged(layer, rounded.get(path)):
                undo.assign(back, variable, value)
            insertion.take_out(layer)
        insertion.thaw(model)
        compiled_state.reset(model)
    return model


def remove(model, reset_head: bool = False):
    """Drops a model's adapters: the base model again, bit for bit.

    The `trainable` flags are what they were before `apply`. The head, and other
    layers that trained in full, keep what they have learned, unless
    `reset_head` is set. Set it in a cross-validation: the next `apply` then
    starts from a model that has seen none of the data. In the memory of the
    host, `apply` keeps a copy of the weights of these layers for it.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        reset_head: Boolean, whether the layers that `apply` (or
            `load_adapter`) left trainable, the head of a KerasHub task and
            those named by `trainable`, get the weights back that they had
            then. Defaults to `False`.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter, or if `reset_head` is set and no
            layer of the model trains beside the adapters. The model is then as
            it was.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((16,)),
    ...     keras.layers.Dense(8),
    ...     keras.layers.Dense(4, name="head"),
    ... ])
    >>> for fold in range(3):
    ...     model = keras_ether.apply(model, trainable=["head"])
    ...     model.compile(keras.optimizers.Adam(1e-2), "mse")
    ...     history = model.fit(x, x[:, :4], verbose=0)
    ...     model = keras_ether.remove(model, reset_head=True)
    """
    layers = adapted_layers(model)
    reset_head = arguments.check_boolean(reset_head, "reset_head")
    head = _head_assignments(model) if reset_head else []
    insertion.warn_of_outer_model(model)
    with undo.on_error(model) as back:
        for variable, value in head:
            undo.assign(back, variable, value)
        for layer in layers.values():
            insertion.take_out(layer)
        insertion.thaw(model)
        compiled_state.reset(model)
    return model


@contextlib.contextmanager
def disabled(model):
    """Lets a model compute as its base model within a `with` block.

    The switch is a variable of each adapter, so nothing is compiled again, and
    the block may stand in a loss, in a callback of `fit`, or in a `tf.function`
    of your own: a reference model for distillation or preference tuning costs
    no second copy. It is the model's switch: what other threads ask of the same
    model meanwhile is answered by the base too. A `jax.jit` of your own that
    calls the model directly holds all its variables as constants, this one
    too: pass them by `model.stateless_call`, or open the block inside.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.

    Raises:
        ValueError: if there is no adapter.

    Example:

    >>> with keras_ether.disabled(model):
    ...     before = model.predict(x, verbose=0)
    """
    layers = adapted_layers(model)
    with contextlib.ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(layer.ether.switched_off())
        yield model


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


def _head_assignments(model):
    """Pairs of variable and value that put the head back to its start."""
    owners = {"": model, **walk(model)}
    pairs = [
        pair
        for path, layer in owners.items()
        if start.is_remembered(layer)
        for pair in start.assignments(path or layer.name, layer)
    ]
    if not pairs:
        raise ValueError(
            f"Model '{model.name}' has no head that could be reset: nothing in "
            "it trained but its adapters. If it is a part of a model that has "
            "one, pass that model. Received: reset_head=True"
        )
    return pairs


def _merged(layer, codes):
    """Pairs of variable and value that fold a layer's adapter in."""
    if codes is not None:
        return codes.assignments(layer)
    kernel = layer.base_kernel
    return [(kernel, layer.ether.fold(ops.convert_to_tensor(kernel)))]


def _warn_of_frozen_head(model, plan):
    """Says so where the last linear layer of a plain model won't train."""
    if hasattr(model, "backbone") or hasattr(model, "default_lora_layer_names"):
        return
    linear = [
        (path, layer)
        for path, layer in walk(model).items()
        if kinds.kind_of(layer) and kinds.kind_of(layer).linear
    ]
    path, last = linear[-1] if linear else (None, None)
    if last is None or last is model:
        return
    if id(last) in plan.kept or freezing.is_kept(last):
        return
    warnings.warn(
        f"The kernel of '{path}', the last linear layer of model "
        f"'{model.name}', is frozen now. If it is a new head that has yet to "
        f"be trained, pass `trainable=[{last.name!r}]`.",
        stacklevel=3,
    )
