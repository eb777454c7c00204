"""A process that reads saved models, on the backend of KERAS_BACKEND.

It takes a JSON file with a list of entries and writes to another one what it
found. First it reads the files as plain models, where `keras_ether` can't be
imported; then those entries that say so into adapted models.
"""

# ruff: noqa: E402

import json
import sys
from pathlib import Path

# An import is an error now.
sys.modules["keras_ether"] = None

import keras
import numpy as np

from tests import models
from tests.saving import files


def distance(model, entry):
    arrays = dict(np.load(entry["arrays"]))
    expected = arrays.pop("expected")
    x = arrays["x"] if set(arrays) == {"x"} else arrays
    return float(np.abs(files.call(model, x) - expected).max())


def read_plain(entry):
    model = files.load_plain(
        entry["how"], entry["path"], models.ALL[entry["name"]]
    )
    # Batch normalization's statistics and a seed's state never train.
    kernels = [v for v in model.variables if v.name in ("kernel", "bias")]
    return {
        "distance": distance(model, entry),
        "trainable": all(variable.trainable for variable in kernels),
    }


def read_adapted(entry):
    """Over the same base, but with other vectors to begin with; or with none.

    Models made before have counted up the names of layers.
    """
    import keras_ether
    from tests import tuned

    base = tuned.base(entry["name"])
    base.load_weights(entry["base"])
    loaded = keras_ether.load_adapter(base, entry["adapter"])
    model = tuned.adapted(entry["name"], entry["method"], seed=7)
    model.load_weights(entry["base"])
    files.load_into(model, entry["how"], entry["path"])
    saved = np.load(entry["weights"])
    return {
        "distance": distance(model, entry),
        "loaded": distance(loaded, entry),
        "bits": all(
            np.array_equal(keras.ops.convert_to_numpy(v), saved[str(i)])
            for i, v in enumerate(model.weights)
        ),
    }


entries = json.loads(Path(sys.argv[1]).read_text())
found = {}
for entry in entries:
    try:
        found[entry["id"]] = read_plain(entry)
    except (TypeError, ValueError) as error:
        found[entry["id"]] = {"error": str(error)}
assert sys.modules["keras_ether"] is None
del sys.modules["keras_ether"]
for entry in entries:
    if entry["resumes"]:
        found[entry["id"]]["adapted"] = read_adapted(entry)
Path(sys.argv[2]).write_text(json.dumps(found))
