"""Several adapters trained at once, each as if it were alone."""

import keras
import numpy as np
import pytest
from keras import ops
from keras import optimizers

import keras_ether
from tests import kinds
from tests import models
from tests import tuned

TASKS = 3
# XLA compiles for longer than these few steps take without it.
JIT = "auto" if keras.backend.backend() == "jax" else False
SAMPLES = 4


def bank_of(name="mlp", method="ether", capacity=TASKS + 1):
    """A bank of adapters, and adapted models of the same values."""
    alone = [tuned.adapted(name, method, seed=s) for s in range(TASKS)]
    bank = keras_ether.AdapterBank(
        tuned.adapted(name, method, seed=9), capacity
    )
    for i, model in enumerate(alone):
        bank.add(f"task{i}", model)
    return bank, alone


def data(rng, task):
    x = models.inputs_of("mlp", rng, samples=SAMPLES)
    return x, np.arange(task, task + SAMPLES) % 4


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batch_of(bank, parts):
    """One batch of the examples of several tasks, mixed."""
    names = np.repeat([name for name, _ in parts], SAMPLES)
    x = np.concatenate([x for _, (x, _) in parts])
    y = np.concatenate([y for _, (_, y) in parts])
    order = np.random.default_rng(0).permutation(len(names))
    ids = bank.ids([names[i] for i in order])
    return {"inputs": x[order], "adapter_id": ids}, y[order]


def row(bank, name):
    """All values of an adapter, by tensor name."""
    return bank.model.values(bank.model.table.row(name))


def values_of(model):
    content = keras_ether.saving.save_and_load.content_of(model)
    return content.tensors


def assert_as_alone(bank, alone, tasks, atol=1e-5):
    for i in tasks:
        for name, value in values_of(alone[i]).items():
            np.testing.assert_allclose(
                row(bank, f"task{i}")[name], value, atol=atol, err_msg=name
            )


def assert_still(bank, name, before):
    for key, value in row(bank, name).items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)


@pytest.mark.parametrize(
    "method", [pytest.param("ether", marks=pytest.mark.nightly), "ether+"]
)
def test_losses_are_those_of_training_alone(rng, method):
    bank, alone = bank_of(method=method)
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    bank.model.compile(keras.optimizers.SGD(0.05), loss(), jit_compile=JIT)
    x, y = batch_of(bank, parts)
    for model in alone:
        model.compile(keras.optimizers.SGD(0.05), loss(), jit_compile=JIT)
    for _ in range(4):
        expected = [
            float(model.train_on_batch(*d))
            for model, (_, d) in zip(alone, parts, strict=True)
        ]
        found = bank.model.train_on_batch(x, y)
        np.testing.assert_allclose(found, np.mean(expected), atol=1e-5)
    assert_as_alone(bank, alone, range(TASKS))


OPTIMIZERS = {
    "adam": lambda: optimizers.Adam(0.01, weight_decay=0.1),
    "a schedule": lambda: optimizers.SGD(
        optimizers.schedules.ExponentialDecay(0.2, 1, 0.5), momentum=0.9
    ),
    "accumulation": lambda: optimizers.Adam(
        0.01, gradient_accumulation_steps=2
    ),
    "averages": lambda: optimizers.Adam(
        0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "clipped": lambda: optimizers.SGD(0.5, clipnorm=0.05),
    "clipped together": lambda: optimizers.SGD(0.5, global_clipnorm=0.05),
    "a fixed loss scale": lambda: optimizers.Adam(0.01, loss_scale_factor=8.0),
    "lamb": lambda: optimizers.Lamb(0.01),
    "adafactor": lambda: optimizers.Adafactor(0.01),
    "muon": lambda: optimizers.Muon(0.01),
    "adamw": lambda: optimizers.AdamW(0.01),
    "nadam": lambda: optimizers.Nadam(0.01),
    "adamax": lambda: optimizers.Adamax(0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "adadelta": lambda: optimizers.Adadelta(1.0),
    "ftrl": lambda: optimizers.Ftrl(0.1),
    "lion": lambda: optimizers.Lion(0.01),
}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("adam", "accumulation", "clipped together", "lamb")
        else pytest.param(name, marks=pytest.mark.nightly)
        for name in OPTIMIZERS
    ],
)
def test_each_trains_as_alone_and_leaves_others_still(rng, name):
    """By its own steps, whenever it joins."""
    bank, alone = bank_of()
    for model in (bank.model, *alone):
        model.compile(OPTIMIZERS[name](), loss(), jit_compile=JIT)
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    # The last one never trains.
    others = {n: row(bank, n) for n in ("task2", None)}
    for tasks in ([0], [0], [0, 1], [1, 0], [0, 1]):
        bank.model.train_on_batch(*batch_of(bank, [parts[i] for i in tasks]))
        for i in tasks:
            alone[i].train_on_batch(*parts[i][1])
    assert_as_alone(bank, alone, [0, 1], atol=1e-4)
    for other, before in others.items():
        assert_still(bank, other, before)


@pytest.mark.once
def test_averages_at_the_end_of_a_fit(rng):
    bank, alone = bank_of()

    def compiled(model):
        optimizer = optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5)
        model.compile(optimizer, loss(), jit_compile=JIT)

    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    for model in (bank.model, *alone):
        compiled(model)
    bank.model.train_on_batch(*batch_of(bank, parts[:2]))
    alone[1].train_on_batch(*parts[1][1])
    others = {n: row(bank, n) for n in ("task0", "task2", None)}
    bank.model.fit(*batch_of(bank, parts[1:2]), verbose=0, shuffle=False)
    order = np.random.default_rng(0).permutation(SAMPLES)
    x, y = parts[1][1]
    alone[1].fit(x[order], y[order], verbose=0, shuffle=False)
    assert_as_alone(bank, alone, [1], atol=1e-4)
    for other, before in others.items():
        assert_still(bank, other, before)


def test_a_new_adapter_has_no_moments_of_an_old_one(rng):
    bank, alone = bank_of()
    bank.model.compile(optimizers.Adam(0.01), loss(), jit_compile=JIT)
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    bank.model.train_on_batch(*batch_of(bank, parts))
    bank.add("task0", alone[0])
    alone[0].compile(optimizers.Adam(0.01), loss(), jit_compile=JIT)
    for _ in range(2):
        bank.model.train_on_batch(*batch_of(bank, parts[:1]))
        alone[0].train_on_batch(*parts[0][1])
    assert_as_alone(bank, alone, [0], atol=1e-4)


def test_the_base_and_the_model_passed_do_not_train(rng):
    host = tuned.adapted("mlp")
    bank = keras_ether.AdapterBank(host, 2)
    bank.add("a")
    bank.model.compile(optimizers.Adam(0.1), loss(), jit_compile=JIT)
    x, y = data(rng, 0)
    before = models.values(host.variables), row(bank, None)
    ids = bank.ids(["a", None, None, "a"])
    for _ in range(2):
        bank.model.train_on_batch({"inputs": x, "adapter_id": ids}, y)
    for found, value in zip(
        models.values(host.variables), before[0], strict=True
    ):
        np.testing.assert_array_equal(found, value)
    assert_still(bank, None, before[1])


def test_nan_in_one_example_reaches_no_other(rng):
    bank, alone = bank_of()
    for model in (bank.model, *alone):
        model.compile(
            optimizers.SGD(0.05, momentum=0.9), loss(), jit_compile=JIT
        )
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    parts[0][1][0][1] = np.nan
    base, still = row(bank, None), row(bank, "task2")
    x, y = batch_of(bank, parts[:2])
    saving_base = np.full_like(x["inputs"][:1], np.nan)
    x = {
        "inputs": np.concatenate([x["inputs"], saving_base]),
        "adapter_id": np.append(x["adapter_id"], bank.ids([None])),
    }
    for _ in range(2):
        bank.model.train_on_batch(x, np.append(y, 0))
        alone[1].train_on_batch(*parts[1][1])
    assert_as_alone(bank, alone, [1])
    assert_still(bank, None, base)
    assert_still(bank, "task2", still)


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="it has no graph without a check"
)
@pytest.mark.once
def test_ids_that_no_edge_sees_train_nobody(rng):
    bank, alone = bank_of()
    for model in (bank.model, *alone):
        model.compile(optimizers.SGD(0.05), loss(), jit_compile=JIT)
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    x, y = batch_of(bank, parts[:2])
    ids = np.where(x["adapter_id"] == bank.ids(["task0"]), -1, x["adapter_id"])
    base, still = row(bank, None), row(bank, "task0")
    batch = {"inputs": x["inputs"], "adapter_id": ids.astype("int32")}
    to_tensor = keras.ops.convert_to_tensor
    bank.model.table.check_ids = lambda ids: ids.astype("int32")
    bank.model.train_step(
        (keras.tree.map_structure(to_tensor, batch), to_tensor(y))
    )
    alone[1].train_on_batch(*parts[1][1])
    assert_as_alone(bank, alone, [1])
    assert_still(bank, None, base)
    assert_still(bank, "task0", still)


def sequences(seed):
    """Outputs with a mask, of examples of unequal lengths."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(9, 8, mask_zero=True, name="table")(inputs)
    x = keras.layers.Dense(8, name="body")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    keras_ether.apply(
        model, rank_blocks=2, targets=["body"], trainable=["head"], seed=0
    )
    tuned.move(model.trainable_weights, seed)
    return model


@pytest.mark.parametrize(
    "reduction",
    [
        "sum_over_batch_size",
        pytest.param("sum", marks=pytest.mark.nightly),
        "mean_with_sample_weight",
        pytest.param("mean", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_masks_and_weights_count_among_the_adapters_own(
    rng, reduction, weighted
):
    alone = [sequences(0), sequences(1)]
    bank = keras_ether.AdapterBank(sequences(9), 3)
    for i, model in enumerate(alone):
        bank.add(f"task{i}", model)
    for model in (bank.model, *alone):
        model.compile(
            optimizers.SGD(0.05),
            keras.losses.MeanSquaredError(reduction=reduction),
            jit_compile=JIT,
        )
    of = np.array([0, 1, 0, 1, 1, 0, 1])
    x = rng.integers(1, 9, (7, 5)).astype("int32")
    for i, length in enumerate([5, 2, 4, 1, 5, 3, 2]):
        x[i, length:] = 0
    y = rng.standard_normal((7, 5, 3)).astype("float32")
    weights = rng.random((7, 5)).astype("float32") if weighted else None
    names = [f"task{i}" for i in of]
    for _ in range(2):
        bank.model.train_on_batch(
            {"inputs": x, "adapter_id": bank.ids(names)}, y, weights
        )
        for i, model in enumerate(alone):
            model.train_on_batch(
                x[of == i],
                y[of == i],
                None if weights is None else weights[of == i],
            )
    assert_as_alone(bank, alone, [0, 1])


@pytest.mark.once
@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"]
)
def test_weights_of_examples_count_among_the_adapters_own(rng, reduction):
    bank, alone = bank_of()
    for model in (bank.model, *alone):
        model.compile(
            optimizers.SGD(0.05), keras.losses.MeanSquaredError(reduction)
        )
    x = models.inputs_of("mlp", rng, samples=7)
    y = rng.standard_normal((7, 4)).astype("float32")
    weights = rng.random(7).astype("float32")
    of = np.array([0, 1, 0, 1, 1, 0, 1])
    ids = bank.ids([f"task{i}" for i in of])
    bank.model.train_on_batch({"inputs": x, "adapter_id": ids}, y, weights)
    for i in (0, 1):
        alone[i].train_on_batch(x[of == i], y[of == i], weights[of == i])
    assert_as_alone(bank, alone, [0, 1])


@pytest.mark.once
def test_losses_of_several_outputs(rng):
    def make(seed):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8,))
        x = keras.layers.Dense(8, name="body")(inputs)
        outputs = {
            "a": keras.layers.Dense(3, name="a")(x),
            "b": keras.layers.Dense(1, name="b")(x),
        }
        model = keras.Model(inputs, outputs)
        keras_ether.apply(
            model, rank_blocks=2, targets=["body"], trainable=["a", "b"]
        )
        tuned.move(model.trainable_weights, seed)
        return model

    alone = [make(0), make(1)]
    bank = keras_ether.AdapterBank(make(9), 3)
    for i, model in enumerate(alone):
        bank.add(f"task{i}", model)
    for model in (bank.model, *alone):
        model.compile(
            optimizers.SGD(0.05),
            loss={"a": loss(), "b": "mse"},
            loss_weights={"a": 2.0, "b": 0.5},
        )
    of = np.array([0, 1, 1, 0, 1])
    x = rng.standard_normal((5, 8)).astype("float32")
    y = {"a": np.arange(5) % 3, "b": rng.standard_normal((5, 1))}
    ids = bank.ids([f"task{i}" for i in of])
    bank.model.train_on_batch({"inputs": x, "adapter_id": ids}, y)
    for i, model in enumerate(alone):
        model.train_on_batch(
            x[of == i], {name: part[of == i] for name, part in y.items()}
        )
    assert_as_alone(bank, alone, [0, 1])


def test_an_optimizer_assigned_later_and_its_rate(rng):
    bank, alone = bank_of()
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    for model in (bank.model, *alone):
        model.compile("sgd", loss(), jit_compile=JIT)
        model.optimizer = optimizers.Adam(0.5)
        model.optimizer.learning_rate = 0.01
    for tasks in ([0], [0, 1]):
        bank.model.train_on_batch(*batch_of(bank, [parts[i] for i in tasks]))
        for i in tasks:
            alone[i].train_on_batch(*parts[i][1])
    assert_as_alone(bank, alone, [0, 1], atol=1e-4)


class Scalar(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred))


class OfColumns(keras.losses.Loss):
    """As many values as outputs: here as many as there are examples."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=0)


class Contrast(keras.losses.Loss):
    """Each example against the mean of all."""

    def call(self, y_true, y_pred):
        middle = ops.mean(y_pred, axis=0, keepdims=True)
        return ops.mean(ops.square(y_pred - middle), axis=-1)


class OwnReduction(keras.losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return ops.mean(ops.square(y_true - y_pred))


def with_layer(**kwargs):
    def make():
        inputs = keras.Input((16,))
        x = keras.layers.Dense(8, name="body")(inputs)
        head = keras.layers.Dense(4, name="head", **kwargs)
        model = keras.Model(inputs, head(x))
        return keras_ether.apply(
            model, rank_blocks=2, targets=["body"], trainable=["head"]
        )

    return make


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "optimizer", "loss", "message"),
    [
        (
            None,
            optimizers.LossScaleOptimizer(optimizers.Adam()),
            "mse",
            "LossScaleOptimizer",
        ),
        (
            None,
            optimizers.ScheduleFreeAdamW(0.01),
            "mse",
            "ScheduleFreeAdamW.* starts at the values",
        ),
        (None, "sgd", Scalar(), "one value per example"),
        (None, "sgd", OwnReduction(), "'own_reduction"),
        (None, "sgd", keras.losses.MeanSquaredError(None), "reduction=None"),
        (with_layer(kernel_regularizer="l2"), "sgd", "mse", "a regularizer"),
        (with_layer(bias_constraint="non_neg"), "sgd", "mse", "a constraint"),
        (with_layer(activity_regularizer="l2"), "sgd", "mse", "add_loss"),
    ],
)
def test_what_ties_adapters_to_one_another_is_refused(
    make, optimizer, loss, message
):
    bank, _ = bank_of()
    if make is not None:
        bank = keras_ether.AdapterBank(make(), 2)
        bank.add("task0")
    x = np.ones((2, 16), "float32")
    batch = {"inputs": x, "adapter_id": bank.ids(["task0", None])}
    before = row(bank, "task0")
    with pytest.raises(ValueError, match=message):
        bank.model.compile(optimizer, loss)
        bank.model.fit(batch, np.ones((2, 4), "float32"), verbose=0)
    assert_still(bank, "task0", before)


@pytest.mark.parametrize("loss", [OfColumns(), Contrast()])
def test_losses_that_mix_examples_are_refused(loss):
    bank, _ = bank_of()
    batch = {
        "inputs": np.ones((4, 16), "float32"),
        "adapter_id": bank.ids(["task0", None, "task0", None]),
    }
    before = row(bank, "task0")
    bank.model.compile("sgd", loss)
    with pytest.raises(ValueError, match="mixes the examples"):
        bank.model.fit(batch, np.ones((4, 4), "float32"), verbose=0)
    assert_still(bank, "task0", before)


class Recorder(keras.losses.Loss):
    """A mean square that records the shapes of predictions."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def call(self, y_true, y_pred):
        self.shapes.append(tuple(y_pred.shape))
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


def test_a_loss_is_tried_once_on_two_examples():
    """However many a batch has: its logits may fill the memory."""
    bank, _ = bank_of()
    loss = Recorder()
    bank.model.compile("sgd", loss, run_eagerly=True, jit_compile=False)
    for size in (6, 6, 7):
        batch = {
            "inputs": np.ones((size, 16), "float32"),
            "adapter_id": bank.ids(["task0"] * size),
        }
        bank.model.train_on_batch(batch, np.ones((size, 4), "float32"))
    assert loss.shapes.count((2, 4)) == 2
    assert {shape for shape, *_ in loss.shapes} == {2, 6, 7}


@pytest.mark.once
def test_swapped_averages_are_refused():
    bank, _ = bank_of()
    bank.model.compile(optimizers.Adam(use_ema=True), "mse")
    batch = {
        "inputs": np.ones((2, 16), "float32"),
        "adapter_id": bank.ids(["task0", None]),
    }
    with pytest.raises(ValueError, match="SwapEMAWeights"):
        bank.model.fit(
            batch,
            np.ones((2, 4)),
            callbacks=[keras.callbacks.SwapEMAWeights()],
        )


def test_training_from_outside_is_refused():
    """Where nobody knows whose gradient it is."""
    bank, _ = bank_of()
    batch = {
        "inputs": np.ones((2, 16), "float32"),
        "adapter_id": bank.ids(["task0", None]),
    }
    with pytest.raises(ValueError, match=r"`fit` or .*train_on_batch"):
        bank.model(batch, training=True)
    inputs = {
        "inputs": keras.Input((16,), name="inputs"),
        "adapter_id": keras.Input((), dtype="int32", name="adapter_id"),
    }
    outer = keras.Model(inputs, bank.model(inputs))
    outer.compile("adam", "mse", run_eagerly=True)
    np.testing.assert_allclose(
        outer.predict(batch, verbose=0),
        bank.model.predict(batch, verbose=0),
        atol=1e-5,
    )
    before = row(bank, "task0")
    with pytest.raises(ValueError, match=r"`fit` or .*train_on_batch"):
        outer.train_on_batch(batch, np.ones((2, 4), "float32"))
    with pytest.raises(ValueError, match=r"`fit` or .*train_on_batch"):
        outer.fit(batch, np.ones((2, 4), "float32"), verbose=0)
    assert_still(bank, "task0", before)
    bank.predict(batch["inputs"], ["task0", None])


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("dense", "ether+"),
        ("embedding", "ether"),
        pytest.param("einsum", "ether", marks=pytest.mark.nightly),
        pytest.param("conv2d", "ether+", marks=pytest.mark.nightly),
    ],
)
def test_activations_computed_again(kind, method):
    """Within a `RematScope`, losses are those without."""

    def losses(scope):
        keras.utils.set_random_seed(1)
        rng = np.random.default_rng(0)
        with keras.RematScope(mode=scope):
            layer = kinds.layer_of(kind)
        model = kinds.model_of(kind, layer)
        keras_ether.apply(
            model,
            targets=["target"],
            method=method,
            rank_blocks=2,
            trainable=["head"],
            side="output",
            seed=0,
        )
        bank = keras_ether.AdapterBank(model, 2)
        bank.add("a")
        bank.add("b")
        bank.model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=JIT)
        x = kinds.inputs_of(kind, rng)
        x = {"inputs": x, "adapter_id": bank.ids(["a", "b", "b", None])}
        y = np.ones((4, 2), "float32")
        return [float(bank.model.train_on_batch(x, y)) for _ in range(3)]

    np.testing.assert_allclose(losses("full"), losses(None), rtol=1e-4)


def test_containers_computed_again():
    """Attention, whose inner layers are called by what is run again."""
    if keras.backend.backend() == "tensorflow":
        pytest.skip("Keras can't rematerialize it: it takes keyword arguments")

    def losses(scope):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4, 8))
        with keras.RematScope(mode=scope):
            layer = keras.layers.MultiHeadAttention(2, 4)
        outputs = keras.layers.Dense(2, name="head")(layer(inputs, inputs))
        model = keras.Model(inputs, outputs)
        keras_ether.apply(model, rank_blocks=2, trainable=["head"], seed=0)
        bank = keras_ether.AdapterBank(model, 2)
        bank.add("a")
        bank.add("b")
        bank.model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=JIT)
        x = np.random.default_rng(0).standard_normal((3, 4, 8))
        x = x.astype("float32")
        batch = {"inputs": x, "adapter_id": bank.ids(["b", "a", "b"])}
        return [
            float(bank.model.train_on_batch(batch, x[..., :2]))
            for _ in range(3)
        ]

    np.testing.assert_allclose(losses("full"), losses(None), rtol=1e-4)
