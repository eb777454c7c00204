"""Where ETHER is the wrong tool: a small convolutional network, far from home.

    python -m benchmarks.small_cnn

Trained on the digits 0 and 1, it has to learn those from 2 to 9, from 400
pictures of scikit-learn's 8 x 8 pixels, with a new head. Prints the accuracy on
the other pictures: for each way the rate of the highest mean of three seeds,
chosen by a part of them that is not reported.
"""

import warnings

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_ether

OLD, NEW = [0, 1], [2, 3, 4, 5, 6, 7, 8, 9]
SAMPLES, CHOOSE, EPOCHS = 400, 300, 15
RATES = (3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)


def pictures(classes):
    """Pictures of digits in random order, and the numbers of their classes."""
    found = load_digits()
    chosen = np.flatnonzero(np.isin(found.target, classes))
    chosen = np.random.default_rng(0).permutation(chosen)
    x = found.images[chosen][..., None].astype("float32") / 16
    return x, np.searchsorted(classes, found.target[chosen])


def network(classes):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes, name="head"),
        ]
    )


def fit(model, x, y, rate, epochs):
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)


def head_only(model, seed):
    for layer in model.layers[:-1]:
        layer.trainable = False


def full(model, seed):
    pass


def ether(model, seed, **arguments):
    # The first convolution has one channel, which no reflection can train.
    keras_ether.apply(
        model, targets="all", trainable=["head"], seed=seed, **arguments
    )


WAYS = {
    "full": full,
    "head only": head_only,
    "ETHER n=1": lambda m, s: ether(m, s, rank_blocks=1),
    "ETHER+ n=1": lambda m, s: ether(m, s, rank_blocks=1, method="ether+"),
}


def main():
    keras.utils.set_random_seed(0)
    base = network(len(OLD))
    fit(base, *pictures(OLD), 3e-3, EPOCHS)
    weights = base.get_weights()[:-2]
    x, y = pictures(NEW)
    print(f"{'':>10}  trained  rate    chosen by  reported")
    for way, prepare in WAYS.items():
        found = []
        for rate in RATES:
            scores = []
            for seed in SEEDS:
                keras.utils.set_random_seed(seed)
                model = network(len(NEW))
                model.set_weights([*weights, *model.get_weights()[-2:]])
                prepare(model, seed)
                with warnings.catch_warnings():
                    # Low rates are tried as well.
                    warnings.filterwarnings("ignore", ".*learning rate of")
                    fit(model, x[:SAMPLES], y[:SAMPLES], rate, EPOCHS)
                right = model.predict(x[SAMPLES:], verbose=0).argmax(-1)
                right = right == y[SAMPLES:]
                scores.append((right[:CHOOSE].mean(), right[CHOOSE:].mean()))
            trained = sum(
                int(np.prod(w.shape)) for w in model.trainable_weights
            )
            chosen, reported = np.mean(scores, axis=0)
            found.append((chosen, rate, reported))
        chosen, rate, reported = max(found)
        print(
            f"{way:>10}  {trained:>7,}  {rate:<6g}  {chosen:.1%}      "
            f"{reported:.1%}"
        )


if __name__ == "__main__":
    main()
