"""Counts of trained numbers on real models against the paper's formula."""

import pytest

from tests.hub import real_width

# Shapes alone count.
pytestmark = pytest.mark.once


def marked(name, entry):
    return pytest.param(
        name, marks=() if entry.cheap else [pytest.mark.nightly]
    )


@pytest.mark.parametrize("method", ["ether", "ether+"])
@pytest.mark.parametrize(
    "name", [marked(*item) for item in real_width.ENTRIES.items()]
)
def test_numbers_are_what_the_formula_says(name, method):
    entry = real_width.ENTRIES[name]
    rows = entry.rows(method)
    assert sum(times for _, times in rows) == len(entry.maps)
    assert sum(
        row.parameters * times for row, times in rows
    ) == real_width.formula(method, entry.maps)
