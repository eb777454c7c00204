"""Whole models: choosing layers, inserting adapters and removing them.

This subpackage has `apply`, `merge`, `remove`, `disabled` and `strength`, the
tables `plan` and `summary`, and their parts: targets, flags, compiled state,
undoing. It depends on `keras_ether.adapters`, not on adapter files.
"""

from keras_ether.surgery.plan_and_summary import plan
from keras_ether.surgery.plan_and_summary import summary
from keras_ether.surgery.strength import strength
from keras_ether.surgery.verbs import apply
from keras_ether.surgery.verbs import disabled
from keras_ether.surgery.verbs import merge
from keras_ether.surgery.verbs import remove

__all__ = [
    "apply",
    "disabled",
    "merge",
    "plan",
    "remove",
    "strength",
    "summary",
]
