"""Banks for tests, and what each of their adapters answers alone."""

import numpy as np

import keras_ether
from tests import models
from tests import tuned


def bank_of(name="mlp", method="ether", adapters=2, capacity=4):
    """A bank of adapters `a0`, `a1`..., and adapted models of these values."""
    alone = [tuned.adapted(name, method, seed=s) for s in range(adapters)]
    host = tuned.adapted(name, method, seed=9)
    bank = keras_ether.AdapterBank(host, capacity)
    for i, model in enumerate(alone):
        bank.add(f"a{i}", model)
    return bank, alone


def with_ids(x, ids):
    """The inputs of a bank's model."""
    x = dict(x) if isinstance(x, dict) else {"inputs": x}
    return {**x, "adapter_id": ids}


def plain(name, method="ether"):
    """The base, as it is without any adapter."""
    return keras_ether.remove(tuned.adapted(name, method, seed=9))


def expected(names, alone, base, answer):
    """What each example's adapter answers alone.

    Args:
        names: A name for each example, `None` for the base.
        alone: The models of `bank_of`.
        base: The base model.
        answer: Function from a model to its answers for all examples.
    """
    answers = {f"a{i}": answer(model) for i, model in enumerate(alone)}
    answers[None] = answer(base)
    return np.stack([answers[name][i] for i, name in enumerate(names)])


def call(bank, x, names):
    return models.call(bank.model, with_ids(x, bank.ids(names)))
