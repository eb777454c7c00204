"""Many adapters on one base: each example of a batch uses its own.

`AdapterBank` holds stacks of vectors and heads, with a row for each adapter,
and a model around the one that it was made from. A trial certifies that this
model keeps the examples of a batch apart. The modules here use adapters,
surgery and adapter files.
"""

from keras_ether.bank.adapter_bank import AdapterBank

__all__ = ["AdapterBank"]
