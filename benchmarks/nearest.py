"""The nearest ETHER and ETHER+ to a trained LoRA, tested on SST-2.

    python -m benchmarks.nearest --data FOLDER

trains LoRA r=8 on 512 sentences as `benchmarks.experiments` does, at its best
rate, and replaces each kernel `W + Δ` by the nearest `H W G`, with four blocks
and by the Frobenius norm. The head is that of the LoRA. If the accuracy
survived, a function `from_lora` would be worth having.
"""

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import ops

from benchmarks import report
from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments import training
from benchmarks.experiments.__main__ import read_options
from keras_ether.adapters import kinds
from keras_ether.ops.values import to_numpy

BLOCKS = 4
RATE = 1.6e-3


def nearest_ether(kernel, target):
    """`H W`: block by block, in closed form.

    `‖Δ + 2 u uᵀ W‖²` is `‖Δ‖²` and four times `uᵀ (W Wᵀ + W Δᵀ) u`.
    """
    rows = []
    for w, t in _blocks(kernel, target):
        u = _lowest(w @ w.T + w @ (t - w).T)
        rows.append(w - 2.0 * np.outer(u, u @ w))
    return np.concatenate(rows)


def nearest_one_sided(kernel, target, steps=12):
    """`H W` of ETHER+: each of its two vectors in turn, in closed form."""
    rows = []
    for w, t in _blocks(kernel, target):
        gram, cross = w @ w.T, w @ (t - w).T
        v = _lowest(gram - 2.0 * cross)
        for _ in range(steps):
            u = _lowest(gram + 2.0 * (cross - np.outer(gram @ v, v)))
            v = _lowest(gram - 2.0 * (cross + np.outer(gram @ u, u)))
        rows.append(w - np.outer(u, u @ w) + np.outer(v, v @ w))
    return np.concatenate(rows)


def nearest_both_sides(kernel, target, steps=400):
    """`H W G` of ETHER+, by gradient descent on the vectors."""
    import torch

    generator = torch.Generator().manual_seed(0)
    kernel, target = (torch.tensor(m).float() for m in (kernel, target))

    def start(width):
        first, second = torch.randn(
            2, BLOCKS, width // BLOCKS, generator=generator
        )
        return first, first + 0.3 * second

    vectors = [v for size in kernel.shape for v in start(size)]
    vectors = [v.requires_grad_() for v in vectors]
    optimizer = torch.optim.Adam(vectors, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def folded(matrix, u, v):
        u, v = (torch.nn.functional.normalize(one, dim=1) for one in (u, v))
        rows = matrix.reshape(BLOCKS, -1, matrix.shape[1])
        added = v[:, :, None] * (v[:, None] @ rows)
        taken = u[:, :, None] * (u[:, None] @ rows)
        return (rows + added - taken).reshape(matrix.shape)

    for _ in range(steps):
        found = folded(kernel, *vectors[:2])
        found = folded(found.T, *vectors[2:]).T
        loss = torch.sum((found - target) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return found.detach().numpy()


METHODS = {
    "ETHER": nearest_ether,
    "ETHER+ one-sided": nearest_one_sided,
    "ETHER+": nearest_both_sides,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = read_options(
            f"robustness --data {arguments.data} --samples 512 --pairs 2 "
            f"--results {folder}".split()
        )
        lab = lab_lib.Lab(options)
        trainer = lab.trainer
        settings = lab.settings("lora-8", RATE, arguments.seed)
    print(report.markdown(rows_of(trainer, settings)))


def rows_of(trainer, settings):
    """One row for the LoRA, and one for each method."""
    base, test = trainer.base, trainer.data.test
    keras.utils.set_random_seed(settings["seed"])
    lora = base.classifier("lora-8", 1, settings["seed"], 2)
    trainer.fit(lora, settings)
    model = base.classifier("base", 1, settings["seed"], 2)
    for weight, value in zip(head(model), head(lora), strict=True):
        weight.assign(value)
    accuracy = training.accuracy
    rows = [
        {"kernels": "LoRA r=8", "accuracy": accuracy(lora, *test), "error": 0},
        {"kernels": "base", "accuracy": accuracy(model, *test), "error": 1},
    ]
    layers = training.linear_maps(model)
    targets = training.linear_maps(lora)
    for name, nearest in METHODS.items():
        errors = []
        for path, layer in layers.items():
            view = kinds.view_of(layer)
            start = trainer.kernels[path]
            kernel, target = (
                to_numpy(view.neurons(ops.convert_to_tensor(k)))[0]
                for k in (start, targets[path].kernel)
            )
            found = nearest(kernel.astype("float64"), target.astype("float64"))
            norms = [np.linalg.norm(m - target) for m in (found, kernel)]
            errors.append(norms[0] / norms[1])
            found = ops.convert_to_tensor(found.astype("float32"))
            layer.kernel.assign(view.from_kernel_matrix(found, start.shape))
        rows.append(
            {
                "kernels": name,
                "accuracy": accuracy(model, *test),
                "error": f"{np.mean(errors):.2f}",
            }
        )
    return rows


def head(model):
    inside = {id(weight) for weight in model.backbone.weights}
    return [w for w in model.weights if id(w) not in inside]


def _blocks(*matrices):
    return zip(*(np.split(m, BLOCKS) for m in matrices), strict=True)


def _lowest(matrix):
    """The eigenvector of the lowest eigenvalue of the symmetric part."""
    return np.linalg.eigh((matrix + matrix.T) / 2.0)[1][:, 0]


if __name__ == "__main__":
    main()
