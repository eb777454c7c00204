import json
from fractions import Fraction

import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops import values


@pytest.mark.parametrize(
    "value",
    [2, np.int8(2), np.int64(2), np.uint32(2), np.array(2), ops.array(2)],
    ids=lambda value: type(value).__name__,
)
def test_integers_become_plain(value):
    found = values.integer(value)
    assert type(found) is int
    assert found == 2


@pytest.mark.parametrize(
    "value",
    [None, True, np.True_, np.array(True), ops.array(True), 2.0, "2", [2]],
    ids=repr,
)
def test_what_is_no_integer(value):
    assert values.integer(value) is None


@pytest.mark.parametrize(
    "value",
    [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), Fraction(1, 2)],
    ids=lambda value: type(value).__name__,
)
def test_real_numbers_become_plain(value):
    found = values.real(value)
    assert type(found) is float
    assert found == 0.5
    assert values.real(np.int64(0)) == 0.0


@pytest.mark.parametrize(
    "value",
    [None, True, np.True_, 0.5j, np.complex64(0.5), "0.5", [0.5], 10**400],
    ids=lambda value: repr(value)[:9],
)
def test_what_is_no_real_number(value):
    assert values.real(value) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_value_of_a_variable_is_an_array_of_its_own(dtype):
    variable = keras.Variable(np.ones((2, 3)), dtype=dtype, trainable=False)
    for source in (variable, variable.value):
        array = values.to_numpy(source)
        assert type(array) is np.ndarray
        assert array.dtype.name == dtype
        array[:] = 2
        np.testing.assert_array_equal(values.to_numpy(variable), 1)


def test_only_variables_and_tensors_are_turned_into_arrays():
    text = json.dumps({})
    assert values.as_array(text) is text
    for value in (keras.Variable(1.0), ops.array(1.0)):
        assert type(values.as_array(value)) is np.ndarray
