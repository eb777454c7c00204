"""The formulas once more, with explicit matrices in float64.

Written from the paper's equations and sharing nothing with the package. Vectors
are given as `{"input_u": array, ...}`, as an adapter names them; their first
axis is the blocks.
"""

import functools

import numpy as np


def unit(u):
    norm = np.linalg.norm(u)
    return u / norm if norm else u


def ether_block(u):
    u = unit(u)
    return np.eye(len(u)) - 2 * np.outer(u, u)


def ether_plus_block(u, v):
    u, v = unit(u), unit(v)
    return np.eye(len(u)) - np.outer(u, u) + np.outer(v, v)


def oft_block(r):
    identity = np.eye(len(r))
    skew = (r - r.T) / 2
    return (identity + skew) @ np.linalg.inv(identity - skew)


def naive_block(matrix):
    return matrix


BLOCKS = {
    "ether": (ether_block, ("u",)),
    "ether+": (ether_plus_block, ("u", "v")),
    "oft": (oft_block, ("r",)),
    "naive": (naive_block, ("matrix",)),
}


def block_diagonal(blocks):
    width = len(blocks[0])
    matrix = np.zeros((len(blocks) * width, len(blocks) * width))
    for i, block in enumerate(blocks):
        matrix[i * width : (i + 1) * width, i * width : (i + 1) * width] = block
    return matrix


def side_matrix(method, vectors, side):
    """The whole block-diagonal matrix of one side, or None."""
    _, names = BLOCKS[method]
    if f"{side}_{names[0]}" not in vectors:
        return None
    arrays = [np.asarray(vectors[f"{side}_{n}"], "float64") for n in names]
    return matrix_of(method, *((a.tobytes(), a.shape) for a in arrays))


# Finite differences of a kernel ask for the same matrices thousands of times.
@functools.lru_cache(maxsize=8)
def matrix_of(method, *contents):
    block, _ = BLOCKS[method]
    arrays = [np.frombuffer(data).reshape(shape) for data, shape in contents]
    blocks = [block(*rows) for rows in zip(*arrays, strict=True)]
    matrix = block_diagonal(blocks)
    matrix.flags.writeable = False
    return matrix


def effective_kernel(method, vectors, kernel):
    """`H W G` of a `(d, f)` kernel."""
    kernel = np.asarray(kernel, "float64")
    h = side_matrix(method, vectors, "input")
    g = side_matrix(method, vectors, "output")
    if h is not None:
        kernel = h @ kernel
    if g is not None:
        kernel = kernel @ g
    return kernel
