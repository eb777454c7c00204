"""The plan of a change: the adapter of each layer, and what trains."""

import inspect
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import eligibility
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.ops.conv_view import ConvView
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.surgery import targets as targets_lib
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.targets import Selection
from keras_ether.surgery.targets import Targets
from keras_ether.types import Layer
from keras_ether.types import Variable


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter, with its view and config."""

    path: str
    layer: Layer
    view: MatrixView | ConvView
    kernel_shape: tuple[int, ...]
    config: AdapterConfig

    @classmethod
    def of(cls, path: str, layer: Layer, config: AdapterConfig) -> "Target":
        """The target for a layer of a known kind.

        Raises:
            ValueError: if the layer has no such side, or the blocks don't fit.
        """
        config = kinds.config_for(layer, config)
        view, kernel_shape = kinds.view_of(layer), kinds.kernel_shape(layer)
        config = config.for_sizes(view.sizes(kernel_shape))
        target = cls(path, layer, view, kernel_shape, config)
        config.check_fits(path, target.sizes)
        return target

    @property
    def sizes(self) -> tuple[int, int, int]:
        """`(experts, d, f)` of its kernel."""
        return self.view.sizes(self.kernel_shape)


@dataclass(frozen=True)
class Plan:
    """What `apply` or `load_adapter` does to one model, after every check.

    Attributes:
        tree: The layers of the model.
        targets: The layers that get an adapter.
        trainable: Ids of the layers that stay trainable: the head, the layers
            that the user named, and those with LoRA that trains.
        trained: Further variables that train, of layers with an adapter.
        reasons: The reasons why candidates are left out, by path.
    """

    tree: LayerTree
    targets: tuple[Target, ...]
    trainable: frozenset[int]
    trained: tuple[Variable, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tree: LayerTree,
        configs: Mapping[str, AdapterConfig],
        trainable: Iterable[Layer],
        trained: Iterable[Variable] = (),
    ) -> "Plan":
        """The plan of adapters whose configs are given by path.

        Raises:
            ValueError: if a layer can't have its adapter.
        """
        chosen = {path: tree.layers[path] for path in configs}
        for path, layer in chosen.items():
            reason = _refusal(layer, configs[path])
            if reason is not None:
                raise ValueError(f"Layer '{path}' can't be adapted: {reason}.")
        _check_unshared(tree, chosen)
        targets = tuple(
            Target.of(path, layer, configs[path])
            for path, layer in chosen.items()
        )
        return cls(tree, targets, frozenset(map(id, trainable)), tuple(trained))


def make_plan(
    tree: LayerTree,
    config: AdapterConfig,
    targets: Targets = None,
    exclude: Targets = None,
    trainable: Targets = None,
) -> Plan:
    """Resolves and checks the arguments of `keras_ether.apply`."""
    selected = targets_lib.checked(targets, "targets")
    left_out = targets_lib.checked(exclude, "exclude")
    left_trainable = targets_lib.checked(trainable, "trainable")
    layers = tree.without_adapters
    named = targets_lib.match_with_inner(tree, {}, left_trainable, "trainable")
    for path in sorted(named & layers.keys()):
        if kinds.is_adapted(layers[path]):
            raise ValueError(
                f"Layer '{path}' can't be kept trainable: it has an ETHER "
                "adapter already. Call `keras_ether.merge` or "
                f"`keras_ether.remove` first. Received: trainable={trainable!r}"
            )
    reasons = {
        path: "kept trainable"
        for path, layer in layers.items()
        if path in named or freezing.is_kept_trainable(layer)
    } | {p: "in the head" for p, y in layers.items() if id(y) in tree.head}
    candidates = {
        path: layer
        for path, layer in layers.items()
        if kinds.kind_of(layer) and path not in reasons
    }
    matched, by_name = targets_lib.match(tree, candidates, selected)
    excluded = targets_lib.match_with_inner(
        tree, candidates, left_out, "exclude"
    )
    _check_named(tree, candidates, reasons, selected, excluded)
    reasons |= dict.fromkeys(matched & excluded, "excluded")
    chosen = {p: y for p, y in candidates.items() if p in matched - excluded}
    refused = _refused(chosen, config, by_name)
    reasons |= refused
    chosen = {p: layer for p, layer in chosen.items() if p not in refused}
    if not chosen:
        raise ValueError(
            f"No layer of model '{tree.model.name}' matches "
            f"targets={targets!r}, exclude={exclude!r}. Layers that could "
            f"have matched: {targets_lib.shorten(candidates) or 'none'}."
        )
    _check_unshared(tree, chosen)
    config = config.for_network(len(chosen) + len(tree.adapted))
    resolved = tuple(Target.of(p, y, config) for p, y in chosen.items())
    lora = [path for path, layer in layers.items() if _trains_lora(layer)]
    reasons = dict.fromkeys(lora, "LoRA is enabled on it") | reasons
    left = (named & layers.keys()).union(lora)
    head = tree.head | {id(layers[path]) for path in left}
    return Plan(tree, resolved, head, reasons=reasons)


def warn_of_frozen_head(plan: Plan) -> None:
    """Warns if the last linear layer of a plain model won't train."""
    model = plan.tree.model
    if hasattr(model, "backbone") or hasattr(model, "default_lora_layer_names"):
        return
    # A tied embedding table computes the logits.
    ends = internals.last_operations(model)
    if any(isinstance(y, keras.layers.ReversibleEmbedding) for y in ends):
        return
    linear = [
        (path, layer)
        for path, layer in plan.tree.layers.items()
        if kinds.is_linear(layer)
    ]
    path, last = linear[-1] if linear else (None, None)
    if last is None or last is model:
        return
    if id(last) in plan.trainable or freezing.is_kept_trainable(last):
        return
    warnings.warn(
        f"The kernel of '{path}', the last linear layer of model "
        f"'{model.name}', is frozen now. If this layer is a new head, pass "
        f"`trainable=[{last.name!r}]` to train it.",
        stacklevel=4,
    )


def warn_of_integer_head(plan: Plan) -> None:
    """Warns if trainable layers have integer kernels."""
    fixed = [
        path
        for path, layer in plan.tree.layers.items()
        if id(layer) in plan.trainable
        and getattr(layer, "quantization_mode", None) in quantized_kernel.CODES
        and not _trains_lora(layer)
    ]
    if fixed:
        warnings.warn(
            "These layers stay trainable, but their kernels are quantized to "
            f"integers, which can't train: {targets_lib.shorten(fixed)}. "
            "Quantize the model without its head, for example by "
            "`model.backbone.quantize(...)`.",
            stacklevel=4,
        )


def _check_named(
    tree: LayerTree,
    candidates: dict[str, Layer],
    reasons: dict[str, str],
    targets: Selection,
    excluded: set[str],
) -> None:
    """Raises a `ValueError` if an entry names a layer that can't be a target.

    If several layers have the name, one target among them is enough, unless
    another one has kernels that would be left out unnoticed.
    """
    if targets is None or callable(targets):
        return
    layers = tree.without_adapters
    for entry in targets:
        paths = targets_lib.named(layers, entry) - excluded
        meant = paths & candidates.keys()
        for path in (p for p in layers if p in paths - meant):
            below = tree.with_inner({path}) & candidates.keys()
            inside = [p for p in layers if p in below - excluded]
            unknown = path not in reasons and eligibility.why_unknown(
                layers[path]
            )
            if meant and not unknown and (not inside or below & meant):
                continue
            reason = unknown or "it has no kernel of its own"
            if path in reasons:
                reason = f"it is {reasons[path]}, so it trains as it is"
            elif inside:
                shown = targets_lib.shorten(inside, most=4)
                reason += f". Name the layers inside it: {shown}"
            raise ValueError(
                f"Layer '{path}' of class {layers[path].__class__.__name__}, "
                f"which `targets` names, can't be adapted: {reason}. Received: "
                f"targets={targets!r}"
            )


def _refused(
    chosen: dict[str, Layer], config: AdapterConfig, by_name: set[str]
) -> dict[str, str]:
    """Reasons by path, for layers that can't have an adapter.

    A layer that the user named gives an error, as does one that already has an
    adapter of any sort; others are left out.
    """
    adapted = [p for p, layer in chosen.items() if kinds.is_adapted(layer)]
    if adapted:
        raise ValueError(
            "These layers have an ETHER adapter already: "
            f"{targets_lib.shorten(adapted)}. Leave them out with `exclude`, "
            "or call `keras_ether.merge` or `keras_ether.remove` first."
        )
    refused = {}
    for path, layer in chosen.items():
        reason = _refusal(layer, config)
        if reason is None:
            continue
        if path in by_name or getattr(layer, "lora_enabled", False):
            raise ValueError(f"Layer '{path}' can't be adapted: {reason}.")
        refused[path] = reason
    return refused


def _refusal(layer: Layer, config: AdapterConfig) -> str | None:
    """The reason why a layer can't have an adapter, or `None`."""
    if kinds.kind_of(layer) is None:
        return eligibility.why_unknown(layer) or "it has no kernel of its own"
    reason = eligibility.refusal_reason(layer, config)
    return reason or eligibility.why_constant(layer, config)


def _trains_lora(layer: Layer) -> bool:
    """Whether a layer has LoRA that was not frozen."""
    return getattr(layer, "lora_enabled", False) and bool(
        layer.trainable_variables
    )


def _check_unshared(tree: LayerTree, chosen: dict[str, Layer]) -> None:
    """Raises a `ValueError` if something else computes with a target's kernel.

    That may be another layer, or a function or an operation of a functional
    model that holds the variable.
    """
    owners: dict[int, list[str]] = {}
    for path, layer in tree.by_path.items():
        held = [
            *((path or layer.name, v) for v in internals.held_variables(layer)),
            *internals.variables_in_calls(layer),
        ]
        if isinstance(layer, keras.layers.Lambda):
            held += [(path, v) for v in _variables_of(layer.function)]
        for owner, variable in held:
            if len(variable.shape) > 1:
                owners.setdefault(id(variable), []).append(owner)
    for paths in owners.values():
        if len(paths) > 1 and not chosen.keys().isdisjoint(paths):
            raise ValueError(
                f"These layers share one kernel: {targets_lib.shorten(paths)}. "
                "Merging an adapter of one layer would change the others. "
                "Leave these layers out with `exclude`."
            )


def _variables_of(function: Callable) -> list[Variable]:
    """The variables that a function refers to."""
    if not inspect.isfunction(function):
        return []
    found = inspect.getclosurevars(function)
    values = [*found.nonlocals.values(), *found.globals.values()]
    return [v for v in values if isinstance(v, keras.Variable)]
