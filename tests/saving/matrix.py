"""What becomes of a saved model, by how it was saved and how it is loaded.

The tests hold every cell; examples/SAVING.md shows the table.
"""

SAVED = ("keras", "weights", "sharded", "preset")
LOADED = {
    "plain": "as a plain model",
    "same base": "into an adapted model over the same base",
    "other base": "into an adapted model over another base",
}
FINE_TUNED = "the fine-tuned predictions"
RESUMED = "base, vectors and head, bit for bit"
MOVED = (
    "the fine-tuned predictions; for ETHER+ the fine-tuned kernels become the "
    "base, with a warning"
)
BASE = "the fine-tuned model becomes the base under the adapters"

CELLS = {
    ("active", "plain"): FINE_TUNED,
    ("active", "same base"): RESUMED,
    ("active", "other base"): MOVED,
    ("merged", "plain"): FINE_TUNED,
    ("merged", "same base"): BASE,
    ("merged", "other base"): BASE,
}


def as_markdown():
    """The table that examples/SAVING.md shows."""
    states = {"active": "with adapters active", "merged": "merged"}
    heads = ["loaded", *(f"saved {text}" for text in states.values())]
    rows = [heads, ["---"] * len(heads)]
    rows += [
        [text, *(CELLS[state, loaded] for state in states)]
        for loaded, text in LOADED.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
