"""What an adapter can be asked for, and the errors otherwise."""

import numpy as np

from keras_ether import methods
from keras_ether.ops import values


def quantizing_error(layer_path, mode) -> ValueError:
    """The error of quantizing a layer that has an adapter."""
    return ValueError(
        f"Layer '{layer_path}' has an ETHER adapter and can't be quantized. "
        "Quantize the model first and apply ETHER to the quantized model, or "
        "call `keras_ether.merge(model)` before quantizing. Received: "
        f"mode={mode!r}"
    )


def check_arguments(method, rank_blocks, side, dropout, seed):
    """Checks what `Adapter` takes.

    Returns:
        `(rank_blocks, dropout, seed)` as numbers of plain Python, which files
        and configurations can hold.

    Raises:
        ValueError: for the first argument out of its range.
    """
    methods.get(method)
    blocks = values.integer(rank_blocks)
    if blocks is None or blocks <= 0:
        raise ValueError(
            "`rank_blocks` must be a positive integer. Received: "
            f"rank_blocks={rank_blocks!r}"
        )
    if side is not None and side not in methods.SIDES:
        raise ValueError(
            f"`side` must be one of {methods.SIDES}, or None for the method's "
            f"own. Received: side={side!r}"
        )
    probability = values.real(dropout)
    if probability is None or not 0 <= probability < 1:
        raise ValueError(
            "`dropout` must be a number of at least 0 and less than 1. "
            f"Received: dropout={dropout!r}"
        )
    number = values.integer(seed)
    if seed is not None and (number is None or number < 0):
        raise ValueError(
            "`seed` must be a non-negative integer or None. Received: "
            f"seed={seed!r}"
        )
    return blocks, probability, number


def check_boolean(value, argument: str) -> bool:
    """The boolean that a value is.

    Args:
        value: What was passed.
        argument: String, the argument's name.

    Raises:
        ValueError: if it is none. Whatever Python takes for true is not meant
            so: a path or a number in the place of a flag is a mistake.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(
            f"`{argument}` must be True or False. Received: "
            f"{argument}={value!r}"
        )
    return bool(value)


def check_function(value, argument: str):
    """A function, or `None` if none was passed.

    Args:
        value: What was passed.
        argument: String, the argument's name.

    Raises:
        ValueError: if it can't be called.
    """
    if value is not None and not callable(value):
        raise ValueError(
            f"`{argument}` must be a function, or None for the default. "
            f"Received: {argument}={value!r}"
        )
    return value


def check_blocks(layer_path, sizes, method, rank_blocks, side):
    """Raises a `ValueError` if the blocks don't fit a transformed side.

    They don't if their number does not divide it, or if blocks so narrow could
    not train: a unit vector of one number is 1 or −1.

    Args:
        layer_path: String that names the layer in the message.
        sizes: `(experts, inputs, outputs)` of the kernel.
        method: String, name of the method.
        rank_blocks: Integer, number of blocks.
        side: Side, or `None` for the method's own.
    """
    _, inputs, outputs = sizes
    side = side or methods.get(method).side
    transformed = {"input": [inputs], "output": [outputs]}.get(
        side, [inputs, outputs]
    )
    width = methods.get(method).min_width
    fitting = [
        n
        for n in range(1, min(transformed) // width + 1)
        if all(size % n == 0 for size in transformed)
    ]
    if rank_blocks in fitting:
        return
    if all(size % rank_blocks == 0 for size in transformed):
        problem = "gives blocks of one number, which never train, in"
    else:
        problem = "does not divide"
    near = sorted(sorted(fitting, key=lambda n: abs(n - rank_blocks))[:4])
    counts = f"Block counts near it that fit: {near}. Or" if near else "Either"
    raise ValueError(
        f"`rank_blocks={rank_blocks}` {problem} layer '{layer_path}', "
        f"whose kernel has d={inputs} inputs and f={outputs} outputs "
        f"(method='{method}' transforms side='{side}'). {counts} leave the "
        "layer out with `exclude`, or keep it trainable with `trainable`."
    )
