"""A trial without data: whether every layer sees the batch on its first axis."""

import keras


# Batches to try: one that no axis of the inputs has.
PRIMES = (13, 17, 19, 23, 29)


def check_every_layer(model, structure):
    """Raises a `ValueError` for the first layer that can't be served.

    Args:
        model: A `BankModel`. Where its base does not tell its inputs, there is
            nothing to try, and the first call finds out.
        structure: The bank's `Structure`.
    """
    sizes = set()
    specs = model.input_specs(lambda shape, dtype, name: sizes.update(shape))
    if specs is None:
        return
    batch = next(prime for prime in PRIMES if prime not in sizes)
    specs = model.input_specs(
        lambda shape, dtype, name: keras.KerasTensor(shape, dtype, name=name),
        batch,
    )
    model(specs)
