"""Adapter files on disk, and more than five thousand damaged ones."""

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

from keras_ether.saving import adapter_file
from keras_ether.saving import adapter_header
from tests.adapter_files import content
from tests.adapter_files import refused

# Bytes and NumPy.
pytestmark = pytest.mark.once

U = "adapter/body/first/input_u"


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


@pytest.mark.parametrize("name", ["a.keras", "a"])
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
        (b"", "truncated"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "truncated, or not a safetensors"),
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
            "not a header of an adapter file",
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
