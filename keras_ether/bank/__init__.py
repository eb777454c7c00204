"""Many adapters on one base: every example its own, in one batch.

`AdapterBank` holds stacks of vectors and heads, a row for each adapter, and a
model around the one that it was made from. It knows adapters, surgery and
adapter files.
"""

from keras_ether.bank.adapter_bank import AdapterBank

__all__ = ["AdapterBank"]
