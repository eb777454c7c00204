"""What every test shares. The backend is the one that KERAS_BACKEND names."""

import atexit
import collections
import gc
import os
import shutil
import tempfile
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tensors are tiny here, and the threads of several workers stand in each
# other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without oneDNN, which it leaves out on processors without AVX-512, TensorFlow
# has no convolutions for channels that come first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    # For tests of distributions. All others use the first of these devices.
    "--xla_force_host_platform_device_count=8 "
    # What is compiled runs once or twice: on JAX, optimizing took half of the
    # time of all tests.
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true "
    # They take a quarter of the time that is left.
    "--xla_cpu_use_fusion_emitters=false",
)

# Tests build the same models again and again, and workers the same ones. JAX
# then finds the machine code in a folder, which goes with the run; one that is
# named here stays for the next run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="jax_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Not Keras, which the process that hands tests out to others does without.
import numpy as np
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Runs once what does not depend on the backend, and cases by turns."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        return
    once = [item for item in items if item.get_closest_marker("once")]
    config.hook.pytest_deselected(items=once)
    items[:] = [item for item in items if item not in once]

    places = collections.Counter()
    for item in items:
        if not item.get_closest_marker("by_turns"):
            continue
        if item.get_closest_marker("nightly"):
            continue
        place = places[item.function]
        places[item.function] += 1
        # In turns such that each backend has each value of two parameters.
        if (place % 4 in (0, 3)) != (backend == "jax"):
            item.add_marker("nightly")


@pytest.fixture(autouse=True, scope="module")
def freeze_what_stays():
    """Spares garbage collections what imports and compilers keep.

    To walk through that took a third of the time of quick tests, and more of
    those that quantize, which has Keras collect garbage layer by layer.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def search_what_is_new(monkeypatch):
    """Spares every verb the search for models among what imports made.

    It takes a third of a second, which is more than most tests do.
    """
    from keras_ether.surgery import outer_layers

    nothing_is_frozen = types.SimpleNamespace(
        get_freeze_count=lambda: 0,
        unfreeze=lambda: None,
        get_objects=gc.get_objects,
        isenabled=gc.isenabled,
        disable=gc.disable,
        enable=gc.enable,
    )
    monkeypatch.setattr(outer_layers, "gc", nothing_is_frozen)


@pytest.fixture(autouse=True)
def seed():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def policy(request):
    """Sets the dtype policy that the test's parameter names."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
