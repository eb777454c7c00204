"""A small adapter file, and what it takes to judge damaged ones."""

import numpy as np

from keras_ether.saving import adapter_file
from keras_ether.saving.adapter_file import AdapterFile


def content():
    """A small file with something in each of its sections."""
    header = {
        "format": "keras_ether.adapter",
        "format_version": 3,
        "adapters": [
            {
                "method": "ether",
                "rank_blocks": 2,
                "side": "input",
                "dropout": 0.0,
                "strength": "learned",
                "rate_multiplier": 8.5,
                "layers": {"body/first": "0" * 16},
            },
            {
                "method": "ether+",
                "rank_blocks": 1,
                "side": "output",
                "dropout": 0.5,
                "strength": None,
                "rate_multiplier": 1.0,
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
        "adapter/body/first/input_strength": np.ones((2, 1), "float32"),
        "adapter/body/second/output_u": np.ones((1, 3), "float32"),
        "adapter/body/second/output_v": np.ones((1, 3), "float32"),
        "weights/head/kernel": np.arange(3).astype("bfloat16"),
        "weights/scale": np.array(2.0, "float16"),
        "optimizer/0": np.array(7, "int32"),
        "random_states/body/first/ether/0": np.array([1, 2], "int64"),
        "global_generators/0": np.zeros((5,), "uint8"),
    }
    return AdapterFile(header, tensors)


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
