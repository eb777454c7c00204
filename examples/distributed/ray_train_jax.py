"""ETHER on several machines by Ray Train, which starts a lost worker again.

    pip install "ray[train]"
    python examples/distributed/ray_train_jax.py

Ray's `JaxTrainer` starts a process on each machine and connects their JAX.
Keras's `DataParallel` gives each a part of every batch. `AdapterCheckpoint` and
`resume` carry on where training was. Here two workers share one machine. One of
them kills itself after two epochs, and the losses are still those of one
process that trains without interruption.
"""

import json
import os
import pathlib
import signal
import socket
import sys
import tempfile

EPOCHS, BATCH_SIZE, WORKERS = 5, 32, 2
ENVIRONMENT = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
os.environ.update(ENVIRONMENT)
HERE = str(pathlib.Path(__file__).parent)
LOSSES, KILLED = "losses.jsonl", "killed"


def main():
    import ray
    from ray.train import FailureConfig
    from ray.train import RunConfig
    from ray.train import ScalingConfig
    from ray.train.v2.jax import JaxTrainer

    # Workers import this file's neighbours, and Keras with the same backend.
    paths = os.pathsep.join([HERE, *filter(None, sys.path)])
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        runtime_env={"env_vars": {**ENVIRONMENT, "PYTHONPATH": paths}},
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = JaxTrainer(
            train,
            # On TPUs also `use_tpu=True`, `topology` and `accelerator_type`.
            train_loop_config={"folder": folder, "address": address()},
            scaling_config=ScalingConfig(num_workers=WORKERS),
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=1),
            ),
        )
        trainer.fit()
        several = losses_in(folder)
        killed = (pathlib.Path(folder) / KILLED).exists()
    ray.shutdown()
    if not killed:
        raise SystemExit("No worker was killed.")
    with tempfile.TemporaryDirectory() as folder:
        train({"folder": folder})
        one = losses_in(folder)
    from common import report

    report(one, several, f"{WORKERS} workers")


def address():
    """A free port of this machine, where the workers meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def connect(address):
    """Connects the workers' JAX. Ray does so itself on TPUs and GPUs alone."""
    import jax
    from ray.train import get_context

    context = get_context()
    jax.distributed.initialize(
        address, context.get_world_size(), context.get_world_rank()
    )


def losses_in(folder):
    """Losses by epoch; of one that ran twice, the later."""
    lines = (pathlib.Path(folder) / LOSSES).read_text(encoding="utf-8")
    found = map(json.loads, lines.splitlines())
    return list({row["epoch"]: row["loss"] for row in found}.values())


def train(config):
    """What each worker does. On many machines `folder` is one they share."""
    import jax
    import keras
    from common import make_data
    from common import make_model

    import keras_ether
    from keras_ether.callbacks import AdapterCheckpoint
    from keras_ether.callbacks import resume

    if "address" in config:
        connect(config["address"])
    rank, workers = jax.process_index(), jax.process_count()
    if workers > 1:
        # Each worker is given its part below.
        parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(parallel)
    # The seed gives every worker the same vectors.
    model = make_model()
    keras_ether.apply(model, trainable=["head"], seed=0)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    folder = pathlib.Path(config["folder"])
    file = folder / "latest.ether.safetensors"
    first = resume(model, file).epoch if file.exists() else 0

    def write(epoch, logs):
        line = json.dumps({"epoch": epoch, "loss": float(logs["loss"])})
        with (folder / LOSSES).open("a", encoding="utf-8") as losses:
            losses.write(line + "\n")

    def kill(epoch, logs):
        if epoch == 2 and not (folder / KILLED).exists():
            (folder / KILLED).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    callback = keras.callbacks.LambdaCallback
    if rank == 0:
        callbacks = [AdapterCheckpoint(file), callback(on_epoch_end=write)]
    else:
        callbacks = [callback(on_epoch_begin=kill)]

    x, y = make_data()
    model.fit(
        # Of each batch, every worker passes its own part.
        x[rank::workers],
        y[rank::workers],
        batch_size=BATCH_SIZE // workers,
        initial_epoch=first,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )


if __name__ == "__main__":
    main()
