"""Banks for tests, and what each of their adapters answers alone."""

import contextlib

import keras
import numpy as np
from keras import ops

import keras_ether
from tests import models
from tests import tuned

# The adapters of the examples of a batch.
NAMES = ["a0", "a1", None, "a1", "a0", None, "a1", "a0"]
# The seed of the adapted model that a bank is made of.
HOST = 9


def of(make, adapters=2, capacity=4):
    """A bank of adapters `a0`, `a1`..., and adapted models of these values.

    Args:
        make: Function from a seed of the adapter to an adapted model.
        adapters: How many.
        capacity: The bank's.
    """
    alone = [made(make, seed) for seed in range(adapters)]
    bank = keras_ether.AdapterBank(made(make, HOST), capacity)
    for i, model in enumerate(alone):
        bank.add(f"a{i}", model)
    return bank, alone


def base_of(make):
    """The base of the bank that `of` makes, without any adapter."""
    return keras_ether.remove(made(make, HOST))


def made(make, seed):
    """The model that `make` makes of a seed of the adapter."""
    # Of one base, whatever the seed.
    keras.utils.set_random_seed(0)
    return make(seed)


def bank_of(name="mlp", method="ether", adapters=2, capacity=4):
    """The same, of a model of `models.ALL`."""
    return of(
        lambda seed: tuned.adapted(name, method, seed=seed), adapters, capacity
    )


def chain(shape, *steps, seed=None, **arguments):
    """A model of one step after the other, adapted but for its `head`.

    Args:
        shape: Shape of the inputs.
        *steps: Layers, and functions of a tensor.
        seed: Of the values by which all that trains has moved, `None` for the
            initial values.
        **arguments: Of `apply`.
    """
    x = inputs = keras.Input(shape)
    for step in steps:
        x = step(x)
    model = keras.Model(inputs, x)
    arguments = {"rank_blocks": 2, "trainable": ["head"], "seed": 0} | arguments
    keras_ether.apply(model, **arguments)
    if seed is not None:
        tuned.move(model.trainable_weights, seed)
    return model


class Around(keras.layers.Layer):
    """A layer that calls a Dense layer within a function of its inputs."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def build(self, shape):
        width = shape[-1]
        self.inner = keras.layers.Dense(width, activation="tanh", name="inner")
        self.inner.build(shape)

    def call(self, x):
        return self.function(x, self.inner)

    def compute_output_shape(self, shape):
        return shape


def turned(x, inner):
    """For `Around`, with the examples in another order."""
    return ops.flip(inner(ops.flip(x, axis=0)), axis=0)


def recorded(layer):
    """A layer's call, recorded once by the backend's compiler."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda x: layer(x))
    import tensorflow as tf

    return tf.function(lambda x: layer(x))


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = list(batches)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def with_ids(x, ids):
    """The inputs of a bank's model."""
    x = dict(x) if isinstance(x, dict) else {"inputs": x}
    return {**x, "adapter_id": ids}


def plain(name, method="ether"):
    """The base of `bank_of`, without any adapter."""
    return base_of(lambda seed: tuned.adapted(name, method, seed=seed))


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


def check(found, wanted, names, atol=1e-5, **tolerance):
    """Checks answers, which for the base have to be equal to the bit."""
    np.testing.assert_allclose(found, wanted, atol=atol, **tolerance)
    is_base = [name is None for name in names]
    np.testing.assert_array_equal(found[is_base], wanted[is_base])


def check_calls(bank, alone, base, x, atol=1e-5):
    """Checks what each adapter of `of` answers in one batch of eight."""
    wanted = expected(NAMES, alone, base, lambda m: models.call(m, x))
    check(call(bank, x, NAMES), wanted, NAMES, atol)


def outer(bank):
    """A model of a user's around a bank's."""
    inputs = {
        "inputs": keras.Input((16,), name="inputs"),
        "adapter_id": keras.Input((), dtype="int32", name="adapter_id"),
    }
    return keras.Model(inputs, bank.model(inputs))


def call(bank, x, names):
    return models.call(bank.model, with_ids(x, bank.ids(names)))


def row(bank, name):
    """All values of an adapter, by tensor name."""
    return bank.model.values(bank.model.table.row(name))


@contextlib.contextmanager
def unchanged(*variables):
    """Checks that a block leaves the values of variables."""
    before = models.values(variables)
    try:
        yield
    finally:
        for a, b in zip(before, models.values(variables), strict=True):
            np.testing.assert_array_equal(a, b)
