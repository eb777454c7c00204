"""Whole models: which layers, putting adapters in and taking them out.

The verbs `apply`, `merge`, `remove`, `disabled` and `strength`, the tables
`plan` and `summary`, and what they need: targets, flags, compiled state,
undoing. It knows `keras_ether.adapters`, and nothing of files of adapters.
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
