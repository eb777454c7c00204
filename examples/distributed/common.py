"""What the examples here share: a model, data, and losses side by side."""

import keras
import numpy as np

TOLERANCE = 1e-4


def make_model():
    """A small classifier that stands for a pretrained one."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((32,)),
            keras.layers.Dense(64, activation="gelu", name="first"),
            keras.layers.Dense(64, activation="gelu", name="second"),
            keras.layers.Dense(4, name="head"),
        ]
    )


def make_data():
    """Made-up examples of four classes, `(x, y)`."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 32)).astype("float32")
    return x, (x[:, 0] > 0) + 2 * (x[:, 1] > 0)


def report(one, several, devices):
    """Prints losses of one device and of several side by side.

    Args:
        one: Losses by epoch on one device.
        several: Losses by epoch on several.
        devices: String, what the several are.

    Raises:
        SystemExit: if they are not the same.
    """
    print(f"\n{'epoch':5}  {'one device':>12}  {devices:>12}")
    for epoch, losses in enumerate(zip(one, several, strict=True), start=1):
        print(f"{epoch:5}  {losses[0]:12.6f}  {losses[1]:12.6f}")
    difference = max(abs(a - b) for a, b in zip(one, several, strict=True))
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"The losses differ by {difference:.1e}, which is more than "
            f"{TOLERANCE:.0e}."
        )
    print(
        f"The losses on {devices} are those on one device: the largest "
        f"difference is {difference:.1e}."
    )
