"""Makes the notebooks from their paired scripts, and runs them.

    python examples/build_notebooks.py
    python examples/build_notebooks.py classify_text
    python examples/build_notebooks.py --text classify_text

The text and the code of `NAME.ipynb` stand in `notebooks/NAME.py`, which is
what one edits. The notebook is run from top to bottom in an empty folder, on
JAX unless `KERAS_BACKEND` says otherwise, and is written with what it shows.
Warnings and notes on stderr are printed here and left out there. With `--text`
nothing is run: the text is made anew, and the outputs stay, if the code is the
one that gave them.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
import nbclient
import nbformat
from PIL import Image

EXAMPLES = Path(__file__).parent
SCRIPTS = EXAMPLES / "notebooks"
# Bytes of a picture.
LARGEST = 95_000
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def read_script(path: Path) -> nbformat.NotebookNode:
    """A notebook without outputs, the same one at each call."""
    notebook = jupytext.read(path)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def execute(
    notebook: nbformat.NotebookNode, folder: Path, backend: str
) -> None:
    """Runs a notebook in a folder, on the package of this checkout."""
    root = EXAMPLES.parent.resolve()
    paths = [str(root), str(root / "examples"), os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "IPYTHONDIR": str(folder / ".ipython"),
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    nbclient.NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=environment)


def tidy(notebook: nbformat.NotebookNode) -> list[str]:
    """Leaves out what differs from run to run; returns what was on stderr."""
    notes = []
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                notes.append(output.text)
                continue
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_palette(
                    output.data["image/png"]
                )
            kept.append(output)
        cell.outputs = kept
    notebook.metadata = nbformat.from_dict(METADATA)
    return notes


def put_cover_first(notebook: nbformat.NotebookNode) -> None:
    """Attaches the picture of the cell tagged "cover" to the first cell."""
    for cell in notebook.cells:
        if "cover" not in cell.metadata.get("tags", []):
            continue
        (picture,) = [
            output.data["image/png"]
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        ]
        attached = {"cover.png": {"image/png": picture}}
        notebook.cells[0].attachments = nbformat.from_dict(attached)


def with_palette(png: str) -> str:
    """A picture, in base64, of 256 colours, or as many as there is room for."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    colors, size = 256, LARGEST + 1
    while size > LARGEST:
        buffer = io.BytesIO()
        picture.quantize(colors).save(buffer, "png", optimize=True)
        colors, size = colors // 2, len(buffer.getvalue())
    return base64.b64encode(buffer.getvalue()).decode()


def check_paths(notebook: nbformat.NotebookNode) -> None:
    """Raises a `ValueError` if an output names a folder of this machine."""
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    found = re.search(r"/(home|root|tmp|usr|work|Users)/[^\"\\]*", str(outputs))
    if found:
        raise ValueError(f"An output names a folder: {found[0]}")


def take_outputs(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Puts the outputs of a notebook that was run into one of the same code.

    Raises:
        ValueError: if a cell of code differs.
    """
    run = nbformat.read(path, as_version=4)
    pairs = [
        [cell for cell in cells if cell.cell_type == "code"]
        for cells in (notebook.cells, run.cells)
    ]
    for cell, done in zip(*pairs, strict=True):
        if cell.source != done.source:
            raise ValueError(f"This code has not been run:\n{cell.source}")
        cell.outputs, cell.execution_count = done.outputs, done.execution_count


def build(name: str, text_only: bool = False) -> None:
    """Makes one notebook."""
    notebook = read_script(SCRIPTS / f"{name}.py")
    if text_only:
        take_outputs(notebook, EXAMPLES / f"{name}.ipynb")
    else:
        with tempfile.TemporaryDirectory() as folder:
            backend = os.environ.get("KERAS_BACKEND", "jax")
            execute(notebook, Path(folder), backend)
    for note in tidy(notebook):
        print(note, file=sys.stderr)
    put_cover_first(notebook)
    check_paths(notebook)
    target = EXAMPLES / f"{name}.ipynb"
    nbformat.write(notebook, target)
    print(f"{target.name}: {target.stat().st_size / 1e3:.0f} KB")


def main() -> None:
    """Makes the notebooks named on the command line, or all."""
    names = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    asked = [name for name in sys.argv[1:] if name != "--text"]
    for name in asked or names:
        build(name, text_only="--text" in sys.argv)


if __name__ == "__main__":
    main()
