"""The names that users of LoRA and PEFT would pass to `apply`."""

import functools
from collections.abc import Callable
from typing import ParamSpec
from typing import TypeVar

BLOCKS = (
    "Use `rank_blocks`, the number of diagonal blocks. It is not a rank: more "
    "blocks don't train more parameters"
)
SCALE = (
    "An update has no scale to tune: the default "
    '(`strength="learned"`) trains the strength of each block'
)
NAMES = {
    "r": BLOCKS,
    "rank": BLOCKS,
    "lora_rank": BLOCKS,
    "alpha": SCALE,
    "lora_alpha": SCALE,
    "target_modules": "Use `targets`",
    "exclude_modules": "Use `exclude`",
    "modules_to_save": "Use `trainable`",
    "lora_dropout": "Use `dropout`",
}
PAGE = "examples/FROM_PEFT.md"

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def with_peft_errors(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result]:
    """Makes `apply` or `plan` raise an error for an argument of PEFT.

    It is a `TypeError`, as Python's for an unknown argument, and gives the name
    here.
    """

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for name in kwargs:
            if name in NAMES:
                raise TypeError(
                    f"`{function.__name__}` has no argument '{name}'. "
                    f"Received: {name}={kwargs[name]!r}. {NAMES[name]}. "
                    f"See {PAGE}."
                )
        return function(*args, **kwargs)

    return checked
