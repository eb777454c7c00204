import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops.matrix_view import MatrixView
from tests import dense_oracle

# Equation, shape of the input, shape of the kernel, (e, d, f).
CASES = {
    "dense": ("...d,df->...f", (2, 3, 4), (4, 6), (1, 4, 6)),
    "dense of a matrix": ("...d,df->...f", (2, 4), (4, 6), (1, 4, 6)),
    "query": ("abc,cde->abde", (2, 3, 4), (4, 2, 3), (1, 4, 6)),
    "attention output": ("abde,dec->abc", (2, 3, 2, 4), (2, 4, 6), (1, 8, 6)),
    "query of Gemma": ("btd,ndh->btnh", (2, 3, 4), (2, 4, 3), (1, 4, 6)),
    "output of Gemma": ("btnh,nhd->btd", (2, 3, 2, 4), (2, 4, 6), (1, 8, 6)),
    "experts": ("eti,eio->eto", (2, 3, 4), (2, 4, 6), (2, 4, 6)),
    "experts apart": ("tei,ieo->teo", (3, 2, 4), (4, 2, 6), (2, 4, 6)),
    "contracted first": ("dbt,df->btf", (4, 2, 3), (4, 6), (1, 4, 6)),
    "other order": ("bhnt,nhf->btf", (2, 4, 2, 3), (2, 4, 6), (1, 8, 6)),
    "ellipsis at the end": ("bd...,df->bf...", (2, 4, 3), (4, 6), (1, 4, 6)),
    "spaces": ("b d , d f -> b f", (2, 4), (4, 6), (1, 4, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_sizes(case):
    equation, _, kernel_shape, sizes = CASES[case]
    assert MatrixView(equation).sizes(kernel_shape) == sizes


@pytest.mark.parametrize("case", CASES)
def test_activations_and_kernel_agree(case, rng):
    """`(x H) W G` by activations is `x (H W G)` by the kernel."""
    equation, input_shape, kernel_shape, (e, d, f) = CASES[case]
    view = MatrixView(equation)
    equation = equation.replace(" ", "")
    x = rng.standard_normal(input_shape).astype("float32")
    kernel = rng.standard_normal(kernel_shape).astype("float32")
    h = dense_oracle.block_diagonal(rng.standard_normal((e, d, d)))
    g = dense_oracle.block_diagonal(rng.standard_normal((e, f, f)))

    def times(matrix):
        return lambda rows: ops.matmul(rows, ops.array(matrix, "float32"))

    y = ops.einsum(
        equation, view.map_inputs(times(h), ops.array(x)), ops.array(kernel)
    )
    y = view.map_outputs(times(g), y)
    folded = view.map_kernel_inputs(times(h.T), ops.array(kernel))
    folded = view.map_kernel_outputs(times(g), folded)
    assert folded.shape == kernel.shape
    expected = np.einsum(equation, x, ops.convert_to_numpy(folded))
    assert y.shape == expected.shape
    np.testing.assert_allclose(ops.convert_to_numpy(y), expected, atol=1e-3)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.startswith("experts")]
)
def test_matrices_multiply_as_the_layer_does(case, rng):
    equation, input_shape, kernel_shape, _ = CASES[case]
    view = MatrixView(equation)
    x, kernel = (
        ops.array(rng.standard_normal(shape), "float32")
        for shape in (input_shape, kernel_shape)
    )
    rows, matrix = view.inputs_matrix(x), view.kernel_matrix(kernel)
    for found, expected in (
        (rows @ matrix, view.outputs_matrix(view.product(x, kernel))),
        (view.from_inputs_matrix(rows, x), x),
        (view.from_kernel_matrix(matrix, kernel_shape), kernel),
    ):
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (found, expected)), rtol=1e-4, atol=1e-5
        )


def test_dynamic_batch_in_a_functional_graph():
    view = MatrixView("abde,dec->abc")
    x = keras.Input((None, 2, 4))
    assert view.map_inputs(lambda rows: rows * 2.0, x).shape[2:] == (2, 4)
