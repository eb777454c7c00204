"""Adapting a model, and merging, removing or disabling its adapters."""

import contextlib
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from keras_ether.adapters import arguments
from keras_ether.adapters import changes
from keras_ether.adapters import freezing
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.adapter import Adapter
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.adapters.adapter_config import checked_seed
from keras_ether.surgery import insertion
from keras_ether.surgery import peft_names
from keras_ether.surgery import planning
from keras_ether.surgery.insertion import build_adapters
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.layer_tree import adapted_layers
from keras_ether.surgery.layer_tree import adapted_tree
from keras_ether.surgery.layer_tree import check_not_disabled
from keras_ether.surgery.layer_tree import tree_of
from keras_ether.surgery.targets import Targets
from keras_ether.types import Layer
from keras_ether.types import Variable


@peft_names.with_peft_errors
def apply(
    model: Layer,
    rank_blocks: int = 4,
    method: str | None = None,
    targets: Targets = None,
    exclude: Targets = None,
    side: str | None = None,
    trainable: Targets = None,
    dropout: float = 0.0,
    seed: int | None = None,
    strength: float | str | None = None,
) -> Layer:
    """Adapts a built model in place with ETHER or ETHER+.

    Without a `method`, `apply` uses the recommended setting: ETHER+ on the
    input side of each kernel, with a learned strength
    (`benchmarks/RESULTS.md`). `method` selects a method of the paper.

    Each target layer computes `activation((x H) W G + b)`. Its kernel `W` is
    frozen. The block-diagonal `H` and `G` are made of trained vectors (Bini et
    al., ICML 2024, sections 3.2 to 3.4). With one side, the other matrix is the
    identity: the default has only `H`. In a convolution, `H` acts on the
    channels and `G` on the filters. An embedding has only `G`.

    After `apply`, the vectors and learned strengths train. The weights of a
    KerasHub task outside its `backbone`, and the layers in `trainable`, train
    too. Layers with enabled LoRA train as before. All other weights are frozen,
    and so are the moving statistics of batch normalization.

    A compiled model, or another model that contains a changed layer, works
    without a new `compile`: its functions are traced again, and the state of
    its optimizer is reset. A KerasHub task compiles itself with a rate for full
    fine-tuning, which is too low here.

    With a learned strength, try `compile("adam")` first, for a model of any
    depth. Convolutions may need a lower rate. For the paper's methods, start
    Adam at 1e-2 with `"ether"` and at 2e-3 with `"ether+"`; with one block,
    start at half of that. `fit` and `train_on_batch` warn once if the rate, or
    the highest rate of its schedule, is below a tenth of the value for the
    method.

    Args:
        model: A built Keras model, KerasHub backbone or task, or layer.
        rank_blocks: Integer, number of diagonal blocks `n` of `H` and `G`. It
            must divide every transformed dimension. Each block must have at
            least two entries, since one entry could not train. ETHER's
            vectors have as many parameters for every `n`; a learned strength
            adds one per block. Defaults to 4.
        method: `"ether"`, blocks `I − 2 û ûᵀ`, `d` parameters for a `(d, f)`
            kernel; `"ether+"`, blocks `I − û ûᵀ + v̂ v̂ᵀ`, which start at the
            identity, `2 (d + f)` parameters; or one of the paper's baselines,
            `"oft"` and `"naive"`. `None`, the default, is
            `"ether+"` with `side="single"` and `strength="learned"`: `2 d`
            parameters, plus one per block. If you pass `side` or `strength`,
            your value is used instead.
        targets: The layers to adapt. `None`, the default, selects the layers
            that KerasHub adapts with LoRA (query and value projections), or
            else all linear layers, or else all layers that can be adapted.
            `"all-linear"` selects every `Dense` and `EinsumDense`, and `"all"`
            convolutions and embeddings too. These three leave out layers that
            are not built. Any other string is a layer's name, or else a path as
            `keras_ether.plan` prints it, or else a regular expression for whole
            paths. A list holds such strings. A callable has the signature
            `(layer_path, layer) -> bool`.
        exclude: The layers to leave out, in the same forms, with all layers
            inside them. Defaults to `None`.
        side: `"input"`, `"output"`, `"both"`, `"narrow"` for the shorter of the
            two, or `"single"` for the input side, or the output side of an
            embedding. `None`, the default, is `"both"` if `method="ether+"`,
            and else `"single"`. An embedding uses its output side, its only
            one, with every `side` except `"input"`. `"input"` leaves embeddings
            out, or is an error if you select one by name.
        trainable: Names, paths or regular expressions, as in `targets`. These
            layers and all layers inside them stay trainable and get no adapter.
            Use it for a new head in a model without a `backbone`.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the initial vectors and for dropout.
        strength: `None`, `"learned"` or a number in `(0, 1]`: the `s` of blocks
            `I + s (block − I)`. `"learned"` trains one `s` per block, which
            starts at 0. Training then starts at the pretrained model, for every
            method, and the distance of a block from the identity keeps the
            paper's bound. The trained variable is `t` in `s = tanh(κ t)`, and
            the initial vectors are `κ` times shorter, so that Adam's default
            learning rate suits them. `κ` is 1,800 divided by the number of
            adapted kernels, at most 100. Defaults to `None`: 1, as in the
            paper, if `method` is given, and else `"learned"`.

    Returns:
        The model passed.

    Raises:
        ValueError: if an argument is out of its range, if no layer matches, if
            a string names no layer, or if a layer that you select by name,
            path, pattern or callable can't be adapted. Also if a layer that
            matches has an adapter or LoRA already, shares its kernel, or has a
            dimension that `rank_blocks` does not divide. An error leaves the
            model unchanged.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((16,)),
    ...     keras.layers.Dense(32, activation="relu"),
    ...     keras.layers.Dense(3, name="head"),
    ... ])
    >>> model = keras_ether.apply(model, rank_blocks=4, trainable=["head"])
    >>> sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    135
    """
    config = AdapterConfig.from_arguments(
        method, rank_blocks, side, dropout, strength
    )
    seed = checked_seed(seed)
    tree = tree_of(model)
    check_not_disabled(tree, "apply")
    plan = planning.make_plan(tree, config, targets, exclude, trainable)
    # `keras.utils.set_random_seed` seeds Python's generator, and Keras's own
    # seeds are signed integers of 32 bits.
    rng = np.random.default_rng(
        random.getrandbits(64) if seed is None else seed
    )
    seeds = rng.integers(2**31, size=len(plan.targets)).tolist()
    adapters = build_adapters(
        plan,
        lambda target: Adapter(target.config, seeds.pop(0)),
    )
    # Warnings may be errors, so they precede any change.
    planning.warn_of_frozen_head(plan)
    planning.warn_of_integer_head(plan)
    with changes.all_or_none() as made:
        insertion.put_in(made, plan, adapters)
    return model


def merge(model: Layer, requantize: bool = False) -> Layer:
    """Folds a model's adapters into its kernels.

    Afterwards the model is an ordinary Keras model. Its layers have their plain
    classes and their `trainable` flags from before `apply`.

    If you pass a part of an adapted model, its layers stay frozen until the
    last adapter of the same `apply` is merged or removed. The flags are then
    restored in the whole model.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        requantize: Boolean, whether to quantize merged int8 and int4 kernels
            again, with their own quantizers. A warning then states the rounding
            errors. Merging does not round float8 kernels. GPTQ and AWQ kernels
            can't be merged. Defaults to `False`.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter, if an adapter transforms a quantized
            kernel that can't be merged, or within `keras_ether.disabled`. An
            error leaves the model unchanged.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    >>> model = keras_ether.merge(keras_ether.apply(model))
    >>> model.count_params()
    68
    """
    tree = adapted_tree(model)
    layers = tree.adapted
    requantize = arguments.check_boolean(requantize, "requantize")
    check_not_disabled(tree, "merge")
    quantized_kernel.check_mergeable(layers, requantize)
    rounded = {
        path: quantized_kernel.round_effective(layer)
        for path, layer in layers.items()
        if layer.quantization_mode in quantized_kernel.INTEGERS
    }
    if rounded:
        errors = {path: codes.error for path, codes in rounded.items()}
        warnings.warn(quantized_kernel.describe_merge(errors), stacklevel=2)
    with changes.all_or_none() as made:
        for path, layer in layers.items():
            for variable, value in _merged(layer, rounded.get(path)):
                made.assign(variable, value)
        insertion.take_out(made, tree)
    return model


def remove(model: Layer, reset_head: bool = False) -> Layer:
    """Removes a model's adapters, which restores the base model bit for bit.

    `remove` also restores the `trainable` flags from before `apply`, as
    `keras_ether.merge` does. The head, and other layers that trained in full,
    keep their trained weights, unless `reset_head` is set. Set it in
    cross-validation, so that the next `apply` starts from a model that has seen
    none of the data. To allow this, `apply` keeps a copy of the weights of
    these layers in host memory.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        reset_head: Boolean, whether to restore the weights of the layers that
            `apply` (or `load_adapter`) left trainable: the head of a KerasHub
            task, the layers in `trainable` and those with LoRA. Defaults to
            `False`.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter, if `reset_head` is set and no layer
            of the model trains besides the adapters, or within
            `keras_ether.disabled`. An error leaves the model unchanged.

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
    tree = adapted_tree(model)
    reset_head = arguments.check_boolean(reset_head, "reset_head")
    check_not_disabled(tree, "remove")
    head = _head_assignments(tree) if reset_head else []
    with changes.all_or_none() as made:
        for variable, value in head:
            made.assign(variable, value)
        insertion.take_out(made, tree)
    return model


@contextlib.contextmanager
def disabled(model: Layer) -> Iterator[Layer]:
    """Disables a model's adapters within a `with` block.

    Within the block the model computes as its base model. The switch is a
    variable of each adapter, so nothing is compiled again. You may use the
    block in a loss, in a callback of `fit`, or in your own `tf.function`. A
    reference model for distillation or preference tuning needs no second copy.

    The switch belongs to the model: other threads that call the same model
    during the block also get the base, and `get_weights` includes the switch.
    If your own `jax.jit` calls the model directly, all variables are constants
    in it, including the switch. Pass the variables with
    `model.stateless_call`, or open the block inside.

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


def _head_assignments(tree: LayerTree) -> list[tuple[Variable, np.ndarray]]:
    """Pairs of variable and value that put the head back to its start."""
    pairs = [
        pair
        for path, layer in tree.by_path.items()
        if freezing.is_kept_trainable(layer)
        for pair in freezing.start_assignments(path or layer.name, layer)
    ]
    if not pairs:
        raise ValueError(
            f"Model '{tree.model.name}' has no head to reset: only its "
            "adapters trained. If the head is in an outer model, pass the "
            "outer model. Received: reset_head=True"
        )
    return pairs


def _merged(
    layer: Layer, codes: quantized_kernel.Rounded | None
) -> list[tuple[Variable, Any]]:
    """Pairs of variable and value that fold a layer's adapter in."""
    if codes is not None:
        return codes.assignments(layer)
    kernel = layer.base_kernel
    # Computed when it is assigned: one folded kernel at a time is in memory.
    return [(kernel, lambda: layer.ether.fold(ops.convert_to_tensor(kernel)))]
