"""Forged headers: whole files with a right checksum and a wrong content."""

import copy
import json

import numpy as np
import pytest
import safetensors.numpy

from keras_ether.saving import adapter_file
from tests.adapter_files import content
from tests.adapter_files import refused

pytestmark = pytest.mark.once


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    adapter_file.write(path, content())
    return path


def forge(change):
    """A file with a right checksum, after `change(header, tensors)`."""
    header = copy.deepcopy(content().header)
    tensors = dict(content().tensors)
    replaced = change(header, tensors)
    header = header if replaced is None else replaced
    if isinstance(header, dict):
        header["sha256"] = adapter_file.digest_of(header, tensors)
    text = json.dumps(header)
    return safetensors.numpy.save(tensors, {"keras_ether": text})


def setting(*keys, value):
    def change(header, tensors):
        inner = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def removing(key):
    def change(header, tensors):
        del header[key]

    return change


def renaming(*keys, old, new):
    """Another name in the header, and of the tensors that go with it."""

    def change(header, tensors):
        inner = header
        for key in keys:
            inner = inner[key]
        inner[new] = inner.pop(old)
        for name in list(tensors):
            if f"/{old}/" in name:
                tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def tensor(name, value):
    def change(header, tensors):
        tensors[name] = value

    return change


def without(name):
    def change(header, tensors):
        del tensors[name]

    return change


U = "adapter/body/first/input_u"
NASTY_NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "body/../first",
    "body//first",
    "body/./first",
    "body\\first",
    "C:\\first",
    "first\0",
    "first\n",
    "\u202efirst",
    "x" * 2_000,
]
WRONG_VALUES = [None, True, 1, -1, 2.5, "text", [], [1], {}, {"a": 1}, 10**30]


def forgeries():
    yield "adapters empty", setting("adapters", value=[])
    yield "no header", lambda header, tensors: []
    header = content().header
    for key in header:
        yield f"{key} missing", removing(key)
        for value in WRONG_VALUES:
            # An empty list may be a right value; metadata may be anything.
            if type(value) is not type(header[key]) or value == 10**30:
                yield f"{key}={value!r:.40}", setting(key, value=value)
    for section, place in (
        (("adapters", 0), header["adapters"][0]),
        (("training",), header["training"]),
    ):
        for key, right in place.items():
            for value in WRONG_VALUES:
                numbers = {type(right), type(value)} <= {int, float}
                if type(value) is not type(right) and not numbers:
                    best = key == "best" and value is None
                    if not best:
                        yield (
                            f"{key}={value!r:.40}",
                            setting(*section, key, value=value),
                        )
    for name in NASTY_NAMES:
        yield (
            f"layer {name!r:.40}",
            renaming("adapters", 0, "layers", old="body/first", new=name),
        )
        yield f"head {name!r:.40}", renaming("weights", old="head", new=name)
        yield f"tensor {name!r:.40}", tensor(name, np.ones(3))
        yield (
            f"weight {name!r:.40}",
            setting("weights", "head", value=["kernel", name]),
        )
        yield f"kept {name!r:.40}", setting("trainable", value=[name])
    for key, value in (
        ("method", "lora"),
        ("rank_blocks", 0),
        ("rank_blocks", -4),
        ("side", "left"),
        ("dropout", 1.0),
        ("dropout", -0.5),
        ("layers", {"body/first": "0" * 15}),
        ("layers", {"body/first": "g" * 16}),
        ("layers", {"body/second": "0" * 16}),
        ("layers", {"body/third": "0" * 16}),
    ):
        yield f"{key}={value!r}", setting("adapters", 0, key, value=value)
    for name in (U, "weights/head/kernel", "optimizer/0"):
        yield f"{name} missing", without(name)
        for dtype in ("float64", "int8", "uint16", "bool", "complex64"):
            if name == U:
                yield f"{name} {dtype}", tensor(name, np.ones((2, 2), dtype))
        for value in (np.nan, np.inf, -np.inf):
            bad = np.array([1.0, value], "float32")
            yield f"{name} {value}", tensor(name, bad)
    for bits, dtype in ((0x7FA00000, "float32"), (0x7FA0, "bfloat16")):
        bits = np.array([0, bits], f"uint{8 * np.dtype(dtype).itemsize}")
        yield f"signalling NaN {dtype}", tensor(U, bits.view(dtype))
    yield "complex weight", tensor("weights/scale", np.ones((), "complex64"))
    yield "extra tensor", tensor("weights/head/bias", np.ones(3, "float32"))
    yield "weight twice", setting("weights", "head", value=["kernel", "kernel"])
    yield "kept twice", setting("trainable", value=["head", "head"])
    yield "kept adapted", setting("trainable", value=["body/first"])
    yield "format", setting("format", value="other")
    yield "version 1 with its fields", setting("format_version", value=1)
    yield "version 4", setting("format_version", value=4)
    for value in ("much", 0.0, 2.0, True, [0.5]):
        yield (
            f"strength {value}",
            setting("adapters", 1, "strength", value=value),
        )
    yield "narrow side", setting("adapters", 0, "side", value="narrow")
    yield "more states", setting("training", "random_states", value={"a": 2})
    yield (
        "very many states",
        setting("training", "random_states", value={"a": 2**62}),
    )
    yield (
        "very many variables",
        setting("training", "optimizer_variables", value=2**62),
    )
    yield "negative step", setting("training", "step", value=-1)
    yield "versions", setting("versions", value={"keras": 3})
    yield "unknown field", setting("code", value="import os")
    yield "NaN", setting("metadata", value={"a": float("nan")})


FORGERIES = list(forgeries())


def test_forged_files(path):
    assert not refused(path, forge(lambda h, t: None), adapter_file.read(path))
    known = adapter_file.read(path)
    assert len(FORGERIES) > 250
    for name, change in FORGERIES:
        try:
            data = forge(change)
        except ValueError:
            # The checksum of what JSON can't hold.
            assert name == "NaN"
            continue
        assert refused(path, data, known), name
