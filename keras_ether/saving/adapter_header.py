"""The header of an adapter file: its fields, and every check of it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from typing import NoReturn

from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.fingerprint import sampled_fingerprint

# JSON: see `FIELDS`.
Header = dict[str, Any]

FORMAT = "keras_ether.adapter"
FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
# Since this version fingerprints count every entry of the base.
WHOLE_BASE_VERSION = 3

FIELDS = {
    "format": str,
    "format_version": int,
    "adapters": list,
    "weights": dict,
    "trainable": list,
    "base": str,
    "versions": dict,
    "metadata": dict,
    "sha256": str,
}
GROUP_FIELDS = {
    "method": str,
    "rank_blocks": int,
    "side": str,
    "dropout": (int, float),
    "layers": dict,
}
# By the version that added them.
LATER_FIELDS: dict[int, dict[str, Any]] = {
    2: {"strength": (int, float, str, type(None))},
    3: {"rate_multiplier": (int, float)},
}
SIDES = ("input", "output", "both")
TRAINING_FIELDS = {
    "epoch": int,
    "batch": int,
    "step": int,
    "best": (int, float, type(None)),
    "optimizer": str,
    "optimizer_variables": int,
    "random_states": dict,
    "global_generators": int,
}
FINGERPRINT = re.compile("[0-9a-f]{16}")
LONGEST_NAME = 1_000
# Rejects implausible counts early: a list of their names would be large.
MOST_VARIABLES = 1_000_000


def to_text(header: dict) -> str:
    """The canonical JSON text of a header."""
    return json.dumps(
        header, sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def from_text(text: str) -> dict:
    """Reads JSON, stricter than Python does.

    Raises:
        ValueError: if it is not JSON, repeats a key, or holds a number that
            JSON doesn't know.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON ({error})") from None


def check(header: Any) -> None:
    """Checks a header, without the tensors.

    Raises:
        ValueError: if anything is missing, unknown or out of its range.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError("its header is not a header of an adapter file")
    version = header.get("format_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise ValueError(
            f"its format_version is {version!r}, but this version of "
            f"keras_ether reads {READABLE_VERSIONS}"
        )
    group_fields: dict[str, Any] = dict(GROUP_FIELDS)
    for since, fields in LATER_FIELDS.items():
        group_fields |= fields if version >= since else {}
    training = {"training": dict} if "training" in header else {}
    _check_fields(header, FIELDS | training, "header")
    seen: set[str] = set()
    for group in header["adapters"]:
        _check_group(group, group_fields, seen)
    if not seen:
        raise ValueError("its header names no adapter")
    for path, names in header["weights"].items():
        check_path(path)
        _check_names(names, f"weights of '{path}'")
    _check_names(header["trainable"], "trainable layers", paths=True)
    twice = seen.intersection(header["trainable"])
    if twice:
        raise ValueError(f"'{min(twice)}' is both adapted and trainable")
    _check_fingerprint(header["base"])
    for name, value in header["versions"].items():
        if not isinstance(value, str):
            raise ValueError(f"the version of {name!r} is {value!r}")
    if training:
        _check_training(header["training"])


@dataclass(frozen=True)
class Group:
    """Adapted layers of one config, with the fingerprints of their bases."""

    config: AdapterConfig
    layers: dict[str, str]


def groups_of(header: Header) -> list[Group]:
    """The groups of adapted layers of a header."""
    return [
        Group(_config_of(entry), entry["layers"])
        for entry in header["adapters"]
    ]


def layers_of(header: Header) -> dict[str, Group]:
    """The adapted layers of a header, each path with its group."""
    return {path: group for group in groups_of(header) for path in group.layers}


def digest_of_base(header: Header) -> Callable:
    """The function that made the fingerprints in a header."""
    if header["format_version"] < WHOLE_BASE_VERSION:
        return sampled_fingerprint
    return fingerprint


def tensor_name(*parts: str) -> str:
    """The name of a tensor, `section/layer path/name`."""
    return "/".join(part for part in parts if part)


def tensor_names(header: dict) -> set[str]:
    """The names of all tensors that belong to a header."""
    names = {
        tensor_name("adapter", path, f"{side}_{weight}")
        for path, group in layers_of(header).items()
        for side in ("input", "output")
        if group.config.transforms(side)
        for weight in group.config.variant.weights
    }
    names |= {
        tensor_name("weights", path, name)
        for path, own in header["weights"].items()
        for name in own
    }
    training = header.get("training")
    if training:
        names |= {
            f"optimizer/{i}" for i in range(training["optimizer_variables"])
        }
        names |= {
            tensor_name("random_states", path, str(i))
            for path, count in training["random_states"].items()
            for i in range(count)
        }
        names |= {
            f"global_generators/{i}"
            for i in range(training["global_generators"])
        }
    return names


def check_path(path: Any) -> None:
    """Raises a `ValueError` for a value that can't be the path of a layer."""
    if path == "":
        return
    segments = path.split("/") if isinstance(path, str) else [""]
    if (
        len(path) > LONGEST_NAME
        or not path.isprintable()
        or "\\" in path
        or any(segment in ("", ".", "..") for segment in segments)
    ):
        raise ValueError(f"{_shown(path)} is not the path of a layer")


def _check_fields(value: Any, fields: dict[str, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"its {where} is {_shown(value)}")
    missing, unknown = fields.keys() - value.keys(), value.keys() - fields
    if missing or unknown:
        raise ValueError(
            f"its {where} lacks {sorted(missing)} and has the unknown "
            f"{_shown(sorted(unknown))}"
        )
    for name, kind in fields.items():
        # In Python, True is an integer.
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise ValueError(f"its {where} has {name}={_shown(value[name])}")


def _check_group(group: Any, fields: dict, seen: set[str]) -> None:
    _check_fields(group, fields, "group of adapters")
    _config_of(group)
    if group["side"] not in SIDES:
        raise ValueError(f"its side is {_shown(group['side'])}, not {SIDES}")
    for path, digest in group["layers"].items():
        check_path(path)
        if path in seen:
            raise ValueError(f"layer '{path}' is listed twice")
        seen.add(path)
        _check_fingerprint(digest)


def _config_of(group: dict[str, Any]) -> AdapterConfig:
    return AdapterConfig(**{n: v for n, v in group.items() if n != "layers"})


def _check_names(names: Any, what: str, paths: bool = False) -> None:
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(f"its {what} are {_shown(names)}")
    for name in names:
        check_path(name)
        if not paths and (not name or "/" in name):
            raise ValueError(f"its {what} are {_shown(names)}")


def _check_fingerprint(value: Any) -> None:
    if not isinstance(value, str) or not FINGERPRINT.fullmatch(value):
        raise ValueError(f"{_shown(value)} is not a fingerprint")


def _check_training(training: Any) -> None:
    _check_fields(training, TRAINING_FIELDS, "state of training")
    counts = {
        name: training[name]
        for name, kind in TRAINING_FIELDS.items()
        if kind is int
    }
    for path, count in training["random_states"].items():
        check_path(path)
        counts[f"random states of '{path}'"] = count
    for name, count in counts.items():
        if type(count) is not int or not count >= 0:
            raise ValueError(f"its {name} is {_shown(count)}")
    variables = (
        training["optimizer_variables"],
        training["global_generators"],
        *training["random_states"].values(),
    )
    if sum(variables) > MOST_VARIABLES:
        raise ValueError("its state of training has too many variables")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has an entry twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"its header holds the number {name}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
