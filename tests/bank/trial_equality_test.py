"""Whether outputs of a trial agree, and of which examples they are."""

import numpy as np
import pytest

from keras_ether.bank import trial
from keras_ether.bank.trial import COARSE
from keras_ether.bank.trial import FINE

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("size", "tolerance", "strays", "agree"),
    [
        (40, FINE, 0, True),
        (40, FINE, 1, False),
        (40, COARSE, 4, True),
        (40, COARSE, 5, False),
        (5, COARSE, 1, False),
    ],
)
def test_few_strays_where_numbers_are_rounded(
    rng, size, tolerance, strays, agree
):
    wanted = rng.normal(size=(size, 6)).astype("float32")
    found = wanted.copy()
    found[:strays] += 10
    assert trial.are_equal([found], [wanted], tolerance) == agree


def test_each_example_has_the_outputs_of_its_row():
    rows = np.array([2, 0, 1, 2, 0])
    asked = []

    def outputs(row, places):
        asked.append((row, places.tolist()))
        return [10 * row + places]

    (found,) = trial.of_each(rows, outputs)
    assert asked == [(0, [1, 4]), (1, [2]), (2, [0, 3])]
    np.testing.assert_array_equal(found, 10 * rows + np.arange(5))
