"""Adapters as folders that PEFT and vLLM read."""

import json
import os
import tempfile
from typing import Any

import numpy as np

from keras_ether import version
from keras_ether.adapters import kinds
from keras_ether.conversion import low_rank_update
from keras_ether.conversion import model_card
from keras_ether.conversion import probes
from keras_ether.saving import atomic_write
from keras_ether.saving import contents
from keras_ether.saving.adapter_file import path_of
from keras_ether.surgery import targets as targets_lib
from keras_ether.surgery.layer_tree import adapted_tree
from keras_ether.types import Layer
from keras_ether.types import Model

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
PREFIX = "base_model.model."
# The end of the name of a layer's kernel.
WEIGHT = ".weight"
# The ranks for which vLLM allocates memory.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def export_to_peft(
    task: Model,
    folder: str | os.PathLike,
    base_model_name_or_path: str | None = None,
    skip: list[str] | None = None,
) -> None:
    """Writes a task's adapters as a LoRA folder for PEFT and vLLM.

    The updates of ETHER and ETHER+ have low rank (see
    `keras_ether.lora_factors`), so the folder represents the adapters exactly,
    for the same base model in `transformers`. The folder holds
    `adapter_config.json`, `adapter_model.safetensors` and a model card,
    `README.md`. All kernels have one rank: 8, 16, 32, 64, 128, 256, 320 or 512.
    Smaller ranks are padded with zeros.

    KerasHub's own `export_to_transformers` gives the names and layouts of the
    kernels in `transformers`. It runs once, on a small model of the same
    layers, and writes to a temporary folder next to `folder`. To export the
    base itself, use `keras_ether.remove(task).export_to_transformers(...)`.

    Args:
        task: An adapted KerasHub task that has `export_to_transformers`: a
            causal language model of Gemma, GPT-2, Llama 3, Mistral, Qwen, or
            others that the installed KerasHub exports.
        folder: String or `PathLike`. A missing folder is created; in an
            existing one only the three files above are replaced.
        base_model_name_or_path: String, the name of the base on Hugging Face's
            hub, or a folder with the base. It is written to
            `adapter_config.json`. If it is an existing folder, the names of the
            kernels are checked against it. Defaults to `None`.
        skip: List of names or paths of layers whose adapters, or trained
            weights, are left out, or `None`. Defaults to `None`.

    Raises:
        ValueError: if there is no adapter, if KerasHub has no exporter for the
            task, if an adapter has no low-rank form (embeddings, convolutions,
            the methods `"oft"` and `"naive"`), if other weights train too, if a
            rank is above 512, or if a kernel is not in the base's folder.
            Nothing is written then.

    Example:

    ```python
    keras_ether.export_to_peft(
        causal_lm, "adapter", base_model_name_or_path="meta-llama/Llama-3.2-1B"
    )
    ```
    """
    folder = path_of(folder, "folder")
    base = base_model_name_or_path
    if base is not None and not isinstance(base, str):
        raise ValueError(
            "`base_model_name_or_path` must be a string or None. Received: "
            f"base_model_name_or_path={base!r}"
        )
    skip = low_rank_update.checked_skip(skip)
    layers = _exportable(task, skip)
    parent = os.path.dirname(os.path.abspath(folder))
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as passing:
        locations = probes.locations_of(task, layers, passing)
        loader = model_card.loader_of(passing)
    loose = [p for p, y in locations.items() if not y.tensor.endswith(WEIGHT)]
    if loose:
        raise ValueError(
            f"The kernels of {targets_lib.shorten(loose)} are exported as "
            "parameters that are not the weight of a layer, which LoRA can't "
            "adapt. Pass these names as `skip` to leave them out."
        )
    tensors: dict[str, list] = {}
    for path, location in locations.items():
        tensors.setdefault(location.tensor, []).append((location, layers[path]))
    flags = {location.is_transposed for location in locations.values()}
    if len(flags) > 1:
        raise ValueError(
            f"'{type(task).__name__}' is exported with kernels of both "
            "layouts, which a LoRA folder can't hold."
        )
    modules = {
        name.removesuffix(WEIGHT): _factors(*own)
        for name, own in tensors.items()
    }
    if base is not None:
        _check_base(base, tensors)
    rank = _rank(modules)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": list(modules),
        "fan_in_fan_out": not flags.pop(),
        "bias": "none",
    }
    arrays = {}
    for module, (a, b) in modules.items():
        a, b = _padded(a, rank), _padded(b.T, rank).T
        arrays[f"{PREFIX}{module}.lora_A{WEIGHT}"] = np.ascontiguousarray(a)
        arrays[f"{PREFIX}{module}.lora_B{WEIGHT}"] = np.ascontiguousarray(b)
    card = model_card.of_peft_folder(
        config, layers, max(len(a) for a, _ in modules.values()), loader
    )
    _write(folder, config, arrays, card)


def _exportable(task: Model, skip: list[str] | None) -> dict:
    """The adapted layers to export, by path."""
    if not hasattr(type(task), probes.EXPORT) or not hasattr(task, "backbone"):
        raise ValueError(
            "`task` must be a KerasHub task that has `export_to_transformers`, "
            f"such as a causal language model. Received: task={task!r} of type "
            f"{type(task).__name__}"
        )
    tree = adapted_tree(task)
    adapted = tree.adapted
    by_path = tree.by_path
    trained = {p: by_path[p] for p in contents.other_trained_weights(by_path)}
    layers = low_rank_update.without({**adapted, **trained}, skip)
    unsupported = [path for path in layers if path in trained]
    if unsupported:
        raise ValueError(
            f"The weights of {targets_lib.shorten(unsupported)} train too, but "
            "a LoRA folder can't hold them. Pass these names as `skip` to "
            "leave them out."
        )
    low_rank_update.check(layers, _refusal)
    if not layers:
        raise ValueError("`skip` leaves no adapter to export.")
    return layers


def _refusal(layer: Layer) -> str | None:
    view = layer.ether.view
    if view.sizes(layer.ether.kernel_shape)[0] > 1:
        return "its kernel has experts, which are more than one matrix"
    kind = kinds.kind_of(layer)
    if kind is None or not kind.linear:
        return "LoRA folders hold no embeddings"
    return None


def _factors(*own: Any) -> tuple[np.ndarray, np.ndarray]:
    """`lora_A` and `lora_B` of one tensor, from those of its kernels.

    `lora_A` is `(rank, inputs)` and `lora_B` `(outputs, rank)`, for both
    layouts of the tensor. The ranks of kernels in one tensor (GPT-2's query,
    key and value) add up, with zeros outside each kernel.
    """
    first = own[0][0]
    # The shape and starts of the matrix in Keras's layout.
    turn = -1 if first.is_transposed else 1
    d, f = first.shape[::turn]
    a_parts, b_parts = [], []
    for location, layer in own:
        a, b = low_rank_update.factors_of(layer)
        top, left = location.start[::turn]
        wide_a = np.zeros((a.shape[1], d), "float32")
        wide_b = np.zeros((f, b.shape[0]), "float32")
        wide_a[:, top : top + a.shape[0]] = a.T
        wide_b[left : left + b.shape[1]] = b.T
        a_parts.append(wide_a)
        b_parts.append(wide_b)
    return np.concatenate(a_parts), np.concatenate(b_parts, axis=1)


def _rank(modules: dict[str, tuple[np.ndarray, np.ndarray]]) -> int:
    """The next rank of `RANKS` that holds all factors."""
    largest = max(len(a) for a, _ in modules.values())
    for rank in RANKS:
        if largest <= rank:
            return rank
    name = next(m for m, (a, _) in modules.items() if len(a) == largest)
    raise ValueError(
        f"The update of '{name}' has rank {largest}, but vLLM takes LoRA of "
        f"rank {RANKS[-1]} at most. The rank grows with `rank_blocks`. Merge "
        "the model and export it instead."
    )


def _padded(rows: np.ndarray, rank: int) -> np.ndarray:
    return np.pad(rows, ((0, rank - len(rows)), (0, 0)))


def _check_base(folder: str, tensors: dict) -> None:
    """Checks a folder of the base, if it is one, for the kernels' names."""
    from safetensors import safe_open

    found = {}
    if os.path.isdir(folder):
        for entry in sorted(os.listdir(folder)):
            if entry.endswith(".safetensors"):
                path = os.path.join(folder, entry)
                with safe_open(path, framework="numpy") as file:
                    for name in file.keys():  # noqa: SIM118 - no dictionary
                        found[name] = tuple(file.get_slice(name).get_shape())
    if not found:
        return
    for name, own in tensors.items():
        if found.get(name) != own[0][0].shape:
            raise ValueError(
                f"The base in '{folder}' has no tensor '{name}' of shape "
                f"{own[0][0].shape}. Received: {found.get(name)}. The adapter "
                "would have no effect on this base."
            )


def _write(
    folder: str,
    config: dict[str, Any],
    arrays: dict[str, np.ndarray],
    card: str,
) -> None:
    from safetensors.numpy import save

    os.makedirs(folder, exist_ok=True)
    metadata = {"format": "pt", "keras_ether": version.__version__}
    files = {
        WEIGHTS: save(arrays, metadata),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        CARD: card.encode(),
    }
    for name, data in files.items():
        atomic_write.write(os.path.join(folder, name), data)
