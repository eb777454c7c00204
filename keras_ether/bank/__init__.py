"""Many adapters on one base: each example of a batch uses its own.

`AdapterBank` holds stacks of vectors and heads, with a row for each adapter,
and a model around the model that was passed. A trial run checks that this model
computes each example of a batch separately.
"""

from keras_ether.bank.adapter_bank import AdapterBank

__all__ = ["AdapterBank"]
