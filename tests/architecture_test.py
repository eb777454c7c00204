"""The rooms of the package, and which may know which."""

import ast
import pathlib
import subprocess
import sys

import pytest

import keras_ether

PACKAGE = pathlib.Path(keras_ether.__file__).parent
# Lowest first: a module imports only what stands before it.
ORDER = [
    "version",
    "_keras_internals",
    "quick_ops",
    "custom_gradient",
    "thin_factors",
    "reflections",
    "baselines",
    "matrix_view",
    "product",
    "conv_view",
    "methods",
    "values",
    "fingerprint",
    "quantized",
    "plain_file",
    "adapter",
    "adapted",
    "adapted_conv",
    "adapted_embedding",
    "shadowing",
    "freezing",
    "quantized_file",
    "layers.kinds",
    "layers.standalone",
    "layers.ether_dense",
    "layers.ether_einsum_dense",
    "layers.ether_conv1d",
    "layers.ether_conv2d",
    "layers.ether_conv3d",
    "layers.ether_embedding",
    "layers",
    "targets",
    "guard",
    "planning",
    "report",
    "overview",
    "attributes",
    "slots",
    "undo",
    "compiled",
    "transformers_export",
    "torch_parameters",
    "insertion",
    "surgery",
    "versions",
    "atomic_file",
    "adapter_header",
    "adapter_file",
    "model_state",
    "filling",
    "saving",
    "copies",
    "training_state",
    "callbacks",
    "diagnostics.measures",
    "diagnostics.diagnosis",
    "diagnostics.logger",
    "diagnostics.plots",
    "diagnostics",
]
# What single modules import when a function needs it, or on that backend only.
EXTRAS = {
    "custom_gradient": {"torch"},
    "quick_ops": {"torch"},
    "diagnostics.logger": {"tensorboard"},
    "diagnostics.plots": {"matplotlib"},
}


def modules():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found.append((name, path))
    return found


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def test_every_module_has_its_place():
    assert {name for name, _ in modules() if name} == set(ORDER)


@pytest.mark.parametrize(("name", "path"), modules())
def test_arrows_run_one_way(name, path):
    known = ORDER[: ORDER.index(name)] if name else ORDER
    for imported in imports(path):
        if not imported.startswith("keras_ether"):
            continue
        target = imported.removeprefix("keras_ether").lstrip(".")
        assert any(
            target == other or target.startswith(f"{other}.") for other in known
        ), f"{name} imports {imported}"


@pytest.mark.parametrize(("name", "path"), modules())
def test_only_public_keras_and_no_backend_is_imported(name, path):
    for imported in imports(path):
        root = imported.partition(".")[0]
        allowed = {"keras", "keras_ether", "numpy", "rich", "safetensors"}
        allowed |= EXTRAS.get(name, set())
        if name == "_keras_internals":
            # Within functions that only that backend reaches.
            allowed.add("torch")
        assert root in allowed | set(sys.stdlib_module_names)
        assert not imported.startswith("keras.src")


def test_importing_takes_no_more_than_it_must():
    """Neither KerasHub nor anything that only one function needs."""
    code = """
import sys, keras, numpy
before = set(sys.modules)
import keras_ether
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(new - set(sys.stdlib_module_names))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert done.stdout.strip().splitlines()[-1] == "{'keras_ether'}"


def test_no_file_is_too_long_to_be_read_in_one_sitting():
    for name, path in modules():
        assert len(path.read_text().splitlines()) <= 350, name
