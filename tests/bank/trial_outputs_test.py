"""Whether outputs of a trial agree, and of which examples they are."""

import numpy as np
import pytest

from keras_ether.bank import trial_outputs
from keras_ether.bank.trial_outputs import COARSE
from keras_ether.bank.trial_outputs import FINE

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("tolerance", "strays", "agree"),
    [(FINE, 0, True), (FINE, 1, False), (COARSE, 4, True), (COARSE, 5, False)],
)
def test_few_strays_where_numbers_are_rounded(rng, tolerance, strays, agree):
    wanted = rng.normal(size=(40, 6)).astype("float32")
    found = wanted.copy()
    found[:strays] += 10
    assert trial_outputs.are_equal([found], [wanted], tolerance) == agree


def test_no_stray_among_few_examples(rng):
    wanted = rng.normal(size=(5, 6)).astype("float32")
    found = wanted.copy()
    found[2] += 10
    assert not trial_outputs.are_equal([found], [wanted], COARSE)


def test_each_example_has_the_outputs_of_its_row():
    rows = np.array([2, 0, 1, 2, 0])
    asked = []

    def outputs(row, places):
        asked.append((row, places.tolist()))
        return [10 * row + places]

    (found,) = trial_outputs.of_each(rows, outputs)
    assert asked == [(0, [1, 4]), (1, [2]), (2, [0, 3])]
    np.testing.assert_array_equal(found, 10 * rows + np.arange(5))
