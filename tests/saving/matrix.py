"""What becomes of a saved model, by how it was saved and how it is loaded.

The tests hold every cell; the README shows the table.
"""

SAVED = {
    "keras": '`model.save("m.keras")`',
    "weights": '`save_weights("m.weights.h5")`',
    "sharded": '`save_weights("m.weights.json", max_shard_size=...)`',
    "preset": "`save_to_preset(folder)` of KerasHub",
}
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
