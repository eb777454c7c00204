"""ETHER on several processes of PyTorch, by `DistributedDataParallel`.

    python examples/distributed/ddp_torch.py

Each process has the model, and a part of a batch. Here they are two on the
processor, and talk by gloo; with one process for each GPU it is "nccl".
"""

import os
import tempfile

os.environ["KERAS_BACKEND"] = "torch"

import torch
from common import make_data
from common import make_model
from common import report
from torch import distributed
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

import keras_ether

PROCESSES = 2
BATCH_SIZE = 32


def main():
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "losses.pt")
        meeting = f"file://{folder}/meeting"
        multiprocessing.spawn(worker, (meeting, file), PROCESSES)
        several = torch.load(file)
    report(train(), several, f"{PROCESSES} processes")


def worker(rank, meeting, file):
    """What each process does."""
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=PROCESSES
    )
    losses = train(rank, PROCESSES)
    if rank == 0:
        torch.save(losses, file)
    distributed.destroy_process_group()


def train(rank=0, processes=1):
    """Losses by epoch, which are those of the whole batches."""
    # A Keras model is a `torch.nn.Module` here. The seed gives every process
    # the same vectors.
    model = make_model()
    keras_ether.apply(model, trainable=["head"], seed=0)
    module = DistributedDataParallel(model) if processes > 1 else model
    # `apply` has frozen all the rest.
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    loss_function = torch.nn.CrossEntropyLoss()

    x, y = (torch.tensor(array) for array in make_data())
    losses = []
    for _ in range(5):
        batch_losses = []
        for rows in torch.arange(len(x)).split(BATCH_SIZE):
            mine = rows[rank::processes]
            loss = loss_function(module(x[mine], training=True), y[mine])
            optimizer.zero_grad()
            # The wrapped module averages the gradients of all processes.
            loss.backward()
            optimizer.step()
            batch_losses.append(mean_of_processes(loss.detach(), processes))
        losses.append(sum(batch_losses) / len(batch_losses))
    keras_ether.merge(model)
    return losses


def mean_of_processes(loss, processes):
    """A number's mean over all processes."""
    if processes > 1:
        distributed.all_reduce(loss)
    return loss.item() / processes


if __name__ == "__main__":
    main()
