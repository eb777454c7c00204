"""What the products of a few rows take on their own, added to the limit.

An exact gradient of a layer's vectors needs the layer's inputs `x` and its
upstream gradient `g` (for an orthogonal method: `dx`) once more, by a few rows:
`x pᵀ` on the way forth; `g qᵀ`, `(g qᵀ)ᵀ x` and `(x pᵀ)ᵀ g` on the way back;
and a folded kernel, `W + pᵀ q`, is one pass over `W`, all that inference needs.
This runs just these, for all linear maps of MiniLM's size in the order of a
step, each on memory of its own, compiled where the backend compiles: no
formula, no layer, no Python between. A form that needs what is measured here is
not faster than the bare model and the products.
"""

import keras
import numpy as np
from keras import ops

from benchmarks import infer
from benchmarks import models
from benchmarks import report
from benchmarks import timing
from benchmarks import train
from benchmarks import variants
from keras_ether.adapters import kinds
from keras_ether.ops import block_diagonal
from keras_ether.ops import reflections

BLOCKS = (1, 4, 8, 32)


def main(args):
    model, inputs, labels = models.minilm()
    tokens = inputs["token_ids"].size
    sizes = [
        kinds.view_of(layer).sizes(layer.kernel.shape)[1:]
        for layer in variants.linear_maps(model, "all-linear")
    ]
    maps = {
        f"{method} n={n}": [one_map(tokens, d, f, n) for d, f in sizes]
        for method, one_map in (
            ("ETHER", ether_map),
            ("ETHER+", ether_plus_map),
        )
        for n in BLOCKS
    }
    predict = infer.predict(models.minilm)
    variants.limit(model, "all-linear")
    train.compile_model(model)
    step = train.step(model, inputs, labels)
    tables = dict(
        [
            compare("training step of the limit", step, forth_and_back, maps),
            compare("inference of the base", predict, fold, maps),
        ]
    )
    report.save("floor", args, tables)


def compare(title, bare, products, maps):
    """Title and rows of one table."""
    steps = {name: compiled(products, found) for name, found in maps.items()}
    times = timing.alternate({"bare": bare, **steps}, rounds=40, seconds=45)
    bare = times.pop("bare")
    title = f"MiniLM's size, 8 x 128 tokens, all linear maps; the {title} takes"
    return f"{title} {np.median(bare):.0f} ms", [
        {
            "method": name,
            "products, ms": round(float(np.median(values)), 1),
            "floor": round(float(np.median(1 + values / bare)), 3),
        }
        for name, values in times.items()
    ]


def ether_map(tokens, d, f, n):
    """One map's `x`, `g` and `W`, the pairs `(p, q)` of `W` and of `x, g`."""
    factor = reflections.arrange(random(n, 1, d // n))
    fold = [(factor, random(n, f))]
    # An orthogonal method looks at `dx`, as wide as `x`, where others have `g`.
    return (
        random(tokens, d),
        random(tokens, d),
        random(d, f),
        fold,
        [(factor, factor)],
    )


def ether_plus_map(tokens, d, f, n):
    left, right = (
        reflections.arrange(random(n, 2, size // n)) for size in (d, f)
    )
    a, b = random(2 * n, f), random(2 * n, d)
    if len(left.shape) == 2:
        # One pair of twice the rows, as `product` has it.
        pairs = [(ops.concatenate([left, b]), ops.concatenate([a, right]))]
    else:
        pairs = [(left, a), (b, right)]
    return random(tokens, d), random(tokens, f), random(d, f), pairs, pairs


def random(*shape):
    rng = np.random.default_rng(sum(shape))
    return ops.array(rng.normal(size=shape), "float32")


def fold(maps):
    folded = []
    for _, _, kernel, pairs, _ in maps:
        for p, q in pairs:
            kernel = block_diagonal.add_outer(kernel, p, q)
        folded.append(kernel)
    return folded


def forth_and_back(maps):
    """The products of a few rows of one step."""
    kept = [
        [reflections.project(x, p) for p, _ in pairs]
        for x, _, _, _, pairs in maps
    ]
    found = []
    for (x, g, _, _, pairs), projections in zip(
        maps[::-1], kept[::-1], strict=True
    ):
        for (p, q), s in zip(pairs, projections, strict=True):
            t = reflections.project(g, q)
            found.append(reflections.contract(t, x, p))
            found.append(reflections.contract(s, g, q))
    return fold(maps), found


def compiled(products, maps):
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        run = jax.jit(products)
        return lambda: jax.block_until_ready(run(maps))
    if backend == "tensorflow":
        import tensorflow as tf

        run = tf.function(products, jit_compile=True)
        return lambda: run(maps)
    return lambda: products(maps)
