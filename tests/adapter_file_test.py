"""Adapter files on disk. What makes them up, and two thousand damaged ones."""

import copy
import json
import os
import random
import signal
import struct
import time

import numpy as np
import pytest
import safetensors.numpy

from keras_ether import adapter_file
from keras_ether import adapter_header
from keras_ether.adapter_file import AdapterFile


def content():
    """A small file with something in each of its sections."""
    header = {
        "format": "keras_ether.adapter",
        "format_version": 1,
        "adapters": [
            {
                "method": "ether",
                "rank_blocks": 2,
                "side": "input",
                "dropout": 0.0,
                "layers": {"body/first": "0" * 16},
            },
            {
                "method": "ether+",
                "rank_blocks": 1,
                "side": "output",
                "dropout": 0.5,
                "layers": {"body/second": "f" * 16},
            },
        ],
        "weights": {"head": ["kernel"], "": ["scale"]},
        "trainable": ["head"],
        "base": "a" * 16,
        "versions": {"keras": "3.15.1"},
        "metadata": {"note": "ein Wörtchen", "list": [1, 2.5, None, True]},
        "training": {
            "epoch": 1,
            "batch": 0,
            "step": 3,
            "best": 0.25,
            "optimizer": "SGD",
            "optimizer_variables": 1,
            "random_states": {"body/first/ether": 1},
            "global_generators": 1,
        },
    }
    tensors = {
        "adapter/body/first/input_u": np.ones((2, 2), "float32"),
        "adapter/body/second/output_u": np.ones((1, 3), "float32"),
        "adapter/body/second/output_v": np.ones((1, 3), "float32"),
        "weights/head/kernel": np.arange(3).astype("bfloat16"),
        "weights/scale": np.array(2.0, "float16"),
        "optimizer/0": np.array(7, "int32"),
        "random_states/body/first/ether/0": np.array([1, 2], "int64"),
        "global_generators/0": np.zeros((5,), "uint8"),
    }
    return AdapterFile(header, tensors)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    adapter_file.write(path, content())
    return path


def test_read_gives_what_was_written(path):
    found, expected = adapter_file.read(path), content()
    assert len(found.header.pop("sha256")) == 64
    assert found.header == expected.header
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert found.tensors[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found.tensors[name], value)


def test_equal_contents_are_equal_files(path):
    first = path.read_bytes()
    adapter_file.write(path, content())
    assert path.read_bytes() == first


@pytest.mark.parametrize("name", ["a.keras", "a", b"a.safetensors"])
def test_other_suffixes_are_an_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"end in '\.safetensors'"):
        adapter_file.write(name, content())
    assert os.listdir(tmp_path) == []


def test_what_would_not_be_read_is_not_written(path):
    before = path.read_bytes()
    bad = content()
    bad.tensors["weights/head/kernel"][0] = np.nan
    with pytest.raises(ValueError, match=r"'weights/head/kernel'.*not finite"):
        adapter_file.write(path, bad)
    bad = content()
    del bad.tensors["optimizer/0"]
    with pytest.raises(
        ValueError, match=r"lacks the tensors \['optimizer/0'\]"
    ):
        adapter_file.write(path, bad)
    assert path.read_bytes() == before


def test_files_of_others(tmp_path):
    path = tmp_path / "a.safetensors"
    for data, message in (
        (b"", "cut short"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "cut short, or not a safetensors"),
        (
            safetensors.numpy.save({"x": np.ones(3)}),
            "not an adapter file of keras_ether",
        ),
        (
            safetensors.numpy.save({"x": np.ones(3)}, {"format": "pt"}),
            "not an adapter file of keras_ether",
        ),
        (
            safetensors.numpy.save({}, {"keras_ether": "{}"}),
            "not that of an adapter file",
        ),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"a.safetensors'.*{message}"):
            adapter_file.read(path)


def test_giant_header_is_not_read(path):
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2**33))
        # A hole: the file is as long as it says, and holds nothing.
        file.truncate(2**33 + 8)
    with pytest.raises(ValueError, match="header is 8,589,934,592 bytes long"):
        adapter_file.read(path)


def refused(path, data, known):
    """Whether `read` refuses a file clearly, or it says what `known` says."""
    path.write_bytes(data)
    try:
        found = adapter_file.read(path)
    except ValueError as error:
        assert str(path) in str(error)
        return True
    # A byte of white space, say, that means nothing.
    assert found.header == known.header
    for name, value in known.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value)
    return False


def test_truncated_at_every_length(path):
    known, data = adapter_file.read(path), path.read_bytes()
    assert len(data) > 1_500
    for length in range(len(data)):
        assert refused(path, data[:length], known), length
    assert refused(path, data + b"\0", known)


def test_any_byte_changed(path):
    """Each byte by one of its bits, and by any other value."""
    known, data = adapter_file.read(path), path.read_bytes()
    rng = random.Random(0)
    accepted = 0
    for place in range(len(data)):
        for value in (
            data[place] ^ (1 << rng.randrange(8)),
            rng.choice([v for v in range(256) if v != data[place]]),
        ):
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            accepted += not refused(path, changed, known)
    assert accepted <= 3


def test_stretches_overwritten_removed_and_repeated(path):
    known, data = adapter_file.read(path), path.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.randrange(1, 400))
        part = data[start:end]
        for changed in (rng.randbytes(len(part)), b"", part * 2):
            assert refused(path, data[:start] + changed + data[end:], known)


def forge(change):
    """A file with a right checksum, after `change(header, tensors)`."""
    header = copy.deepcopy(content().header)
    tensors = dict(content().tensors)
    replaced = change(header, tensors)
    header = header if replaced is None else replaced
    if isinstance(header, dict):
        header["sha256"] = adapter_file._digest(header, tensors)
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
    yield "complex weight", tensor("weights/scale", np.ones((), "complex64"))
    yield "extra tensor", tensor("weights/head/bias", np.ones(3, "float32"))
    yield "weight twice", setting("weights", "head", value=["kernel", "kernel"])
    yield "kept twice", setting("trainable", value=["head", "head"])
    yield "kept adapted", setting("trainable", value=["body/first"])
    yield "format", setting("format", value="other")
    yield "version 2", setting("format_version", value=2)
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


def raw(metadata: str, tensors="", data=b""):
    """A file by its outer header's text."""
    text = f'{{"__metadata__":{metadata}{tensors}}}'.encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format": NaN}',
        '{"format":"keras_ether.adapter","format":"x"}',
        '{"format":"\\ud800"}',
        "1" * 5_000,
        "null",
        '"keras_ether.adapter"',
        "__import__('os').system('false')",
    ],
)
def test_headers_that_are_no_headers(text, path):
    known = adapter_file.read(path)
    inner = json.dumps({"keras_ether": text})
    assert refused(path, raw(inner), known)
    # And as the outer one.
    assert refused(path, raw(text), known)


def test_tensors_that_are_no_tensors(path):
    known, data = adapter_file.read(path), path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    outer = json.loads(data[8 : 8 + length])
    payload = data[8 + length :]
    for change in (
        {"dtype": "F99"},
        {"dtype": "F8_E4M3"},
        {"dtype": 3},
        {"shape": [4, 2]},
        {"shape": [-1, 4]},
        {"shape": [2**62, 2**62]},
        {"shape": "2"},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": [16, 0]},
        {"data_offsets": [-16, 0]},
        {"data_offsets": [8, 24]},
        {"data_offsets": []},
    ):
        changed = copy.deepcopy(outer)
        changed[U] |= change
        text = json.dumps(changed).encode()
        forged = struct.pack("<Q", len(text)) + text + payload
        assert refused(path, forged, known), change
    twice = data[8 : 8 + length].rstrip()[:-1] + (
        f',"{U}":{json.dumps(outer[U])}}}'.encode()
    )
    forged = struct.pack("<Q", len(twice)) + twice + payload
    assert refused(path, forged, known)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_killed_writer_leaves_a_whole_adapter_file(path):
    rng = random.Random(0)
    steps = set()
    for _ in range(60):
        writer = os.fork()
        if not writer:
            _write_for_ever(path)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        steps.add(adapter_file.read(path).header["training"]["step"])
    assert len(steps) > 1
    assert len(os.listdir(path.parent)) > 1


def _write_for_ever(path):
    """What a killed process does: it returns to no test."""
    try:
        while True:
            found = adapter_file.read(path)
            found.header["training"]["step"] += 1
            adapter_file.write(path, found)
    finally:
        os._exit(1)


def test_header_of_a_tensorless_section_is_checked_before_the_data(path):
    """A header that promises other tensors is refused without reading them."""
    header = content().header
    header["sha256"] = "0" * 64
    text = json.dumps({"keras_ether": adapter_header.to_text(header)})
    with pytest.raises(ValueError, match="lacks the tensors"):
        path.write_bytes(raw(text))
        adapter_file.read(path)
