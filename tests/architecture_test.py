"""The subpackages, and which may import which."""

import ast
import pathlib
import subprocess
import sys

import pytest

import keras_ether

pytestmark = pytest.mark.once

PACKAGE = pathlib.Path(keras_ether.__file__).parent
# What each subpackage may import, besides itself and the modules in BELOW.
BELOW = {"version", "types", "_keras_internals", "_torch_internals"}
SUBPACKAGES = {
    "ops": set(),
    "methods": {"ops"},
    "adapters": {"ops", "methods"},
    "layers": {"ops", "methods", "adapters"},
    "surgery": {"ops", "methods", "adapters"},
    "saving": {"ops", "methods", "adapters", "surgery"},
    "conversion": {"ops", "methods", "adapters", "surgery", "saving"},
    "diagnostics": {"ops", "methods", "adapters", "surgery"},
    "bank": {"ops", "methods", "adapters", "surgery", "saving"},
    "callbacks": {"ops", "methods", "adapters", "surgery", "saving"},
}
# What single modules import when a function needs it, or on that backend only.
EXTRAS = {
    "_torch_internals": {"torch"},
    "ops.custom_gradient": {"jax", "torch"},
    "ops.backend": {"jax", "torch"},
    "ops.fingerprint": {"jax"},
    "ops.placement": {"jax"},
    "ops.traced": {"jax", "tensorflow", "torch"},
    "bank.data_checks": {"tensorflow", "torch"},
    "saving.torch_generators": {"torch"},
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


def subpackage_of(module):
    """The name of a module's subpackage, or of the module in BELOW."""
    return module.removeprefix("keras_ether").lstrip(".").partition(".")[0]


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, path in modules() if name]
)
def test_arrows_between_subpackages(name, path):
    subpackage = subpackage_of(name)
    known = BELOW | SUBPACKAGES.get(subpackage, set()) | {subpackage}
    for imported in imports(path):
        if imported.startswith("keras_ether."):
            assert subpackage_of(imported) in known, (
                f"{name} imports {imported}"
            )


def test_every_subpackage_has_a_docstring():
    for subpackage in SUBPACKAGES:
        path = PACKAGE / subpackage
        path = (
            path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        )
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_subpackage_is_missing():
    assert {
        subpackage_of(name) for name, _ in modules() if name
    } == BELOW | set(SUBPACKAGES)


@pytest.mark.parametrize(("name", "path"), modules())
def test_only_public_keras_and_no_backend_is_imported(name, path):
    for imported in imports(path):
        root = imported.partition(".")[0]
        allowed = {"keras", "keras_ether", "numpy", "safetensors"}
        allowed |= EXTRAS.get(name, set())
        if name == "_keras_internals":
            # Within functions that only that backend reaches.
            allowed.add("torch")
        assert root in allowed | set(sys.stdlib_module_names)
        assert not imported.startswith("keras.src")


def test_private_names_of_pytorch_are_in_one_file():
    for name, path in modules():
        if name == "_torch_internals":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        known = {
            alias.asname or alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] == "torch"
            for alias in node.names
        } | {"torch"}
        assert not any(map(is_private, known)), name
        for node in nodes:
            if isinstance(node, ast.Attribute):
                root, *parts = ast.unparse(node).split(".")
                private = root in known and any(map(is_private, parts))
                assert not private, f"{name} uses {ast.unparse(node)}"


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


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
