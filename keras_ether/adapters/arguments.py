"""Checks of the flags and functions that users pass."""

from collections.abc import Callable
from typing import Any

import numpy as np


def check_boolean(value: Any, argument: str) -> bool:
    """The value of an argument as a boolean.

    Raises:
        ValueError: if it is not one. Other truthy values are rejected: a path
            or a number instead of a flag is a mistake.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(
            f"`{argument}` must be True or False. Received: "
            f"{argument}={value!r}"
        )
    return bool(value)


def check_function(value: Any, argument: str) -> Callable | None:
    """The value of an argument as a function, or `None` if it has none.

    Raises:
        ValueError: if it can't be called.
    """
    if value is not None and not callable(value):
        raise ValueError(
            f"`{argument}` must be a function, or None for the default. "
            f"Received: {argument}={value!r}"
        )
    return value
