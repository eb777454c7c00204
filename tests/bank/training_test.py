"""Several adapters trained at once, each as if it were alone."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops
from keras import optimizers

import keras_ether
from tests import kinds
from tests import models
from tests import tuned
from tests.bank import banks

TASKS = 3
# XLA compiles for longer than these few steps take without it.
JIT = "auto" if keras.backend.backend() == "jax" else False
SAMPLES = 4
# The adapters of a batch of seven.
OF = np.array([0, 1, 0, 1, 1, 0, 1])


def bank_of(method="ether"):
    return banks.bank_of("mlp", method, adapters=TASKS)


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compile_all(bank, alone, optimizer=lambda: optimizers.SGD(0.05), loss=loss):
    for model in (bank.model, *alone):
        model.compile(optimizer(), loss(), jit_compile=JIT)


def tasks_of(rng):
    """Inputs and labels of each task."""
    return [
        (
            models.inputs_of("mlp", rng, samples=SAMPLES),
            np.arange(task, task + SAMPLES) % 4,
        )
        for task in range(TASKS)
    ]


def batch_of(tasks, names):
    """One batch of the examples of several tasks, mixed, and whose they are."""
    order = np.random.default_rng(0).permutation(SAMPLES * len(names))
    x, y = (
        np.concatenate([tasks[i][part] for i in names])[order]
        for part in (0, 1)
    )
    return np.repeat(names, SAMPLES)[order], x, y


def train(bank, alone, of, x, y, weights=None):
    """A step of several adapters in the bank, and of each alone.

    Returns the loss of the bank, and the losses alone.
    """

    def own(i):
        return keras.tree.map_structure(
            lambda part: None if part is None else part[of == i],
            (x, y, weights),
        )

    batch = banks.with_ids(x, bank.ids([f"a{i}" for i in of]))
    found = bank.model.train_on_batch(batch, y, weights)
    return found, [alone[i].train_on_batch(*own(i)) for i in np.unique(of)]


def assert_as_alone(bank, alone, tasks, atol=1e-5):
    for i in tasks:
        content = keras_ether.saving.save_and_load.content_of(alone[i])
        found = banks.row(bank, f"a{i}")
        for name, value in content.tensors.items():
            np.testing.assert_allclose(
                found[name], value, atol=atol, err_msg=name
            )


@contextlib.contextmanager
def still(bank, *names):
    """Checks that a block leaves the values of adapters."""
    before = [banks.row(bank, name) for name in names]
    yield
    for name, values in zip(names, before, strict=True):
        for key, value in banks.row(bank, name).items():
            np.testing.assert_array_equal(value, values[key], err_msg=key)


@pytest.mark.parametrize(
    "method", [pytest.param("ether", marks=pytest.mark.nightly), "ether+"]
)
def test_losses_are_those_of_training_alone(rng, method):
    bank, alone = bank_of(method)
    compile_all(bank, alone)
    batch = batch_of(tasks_of(rng), range(TASKS))
    for _ in range(4):
        found, losses = train(bank, alone, *batch)
        np.testing.assert_allclose(found, np.mean(losses), atol=1e-5)
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
    compile_all(bank, alone, OPTIMIZERS[name])
    tasks = tasks_of(rng)
    # The last one never trains.
    with still(bank, "a2", None):
        for names in ([0], [0], [0, 1], [1, 0], [0, 1]):
            train(bank, alone, *batch_of(tasks, names))
    assert_as_alone(bank, alone, [0, 1], atol=1e-4)


@pytest.mark.once
def test_averages_at_the_end_of_a_fit(rng):
    bank, alone = bank_of()
    compile_all(
        bank,
        alone,
        lambda: optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5),
    )
    tasks = tasks_of(rng)
    train(bank, alone, *batch_of(tasks, [0, 1]))
    of, x, y = batch_of(tasks, [1])
    with still(bank, "a0", "a2", None):
        batch = banks.with_ids(x, bank.ids([f"a{i}" for i in of]))
        bank.model.fit(batch, y, verbose=0, shuffle=False)
    alone[1].fit(x, y, verbose=0, shuffle=False)
    assert_as_alone(bank, alone, [1], atol=1e-4)


def test_a_new_adapter_has_no_moments_of_an_old_one(rng):
    bank, alone = bank_of()
    tasks = tasks_of(rng)
    compile_all(bank, alone, lambda: optimizers.Adam(0.01))
    of, x, y = batch_of(tasks, range(TASKS))
    batch = banks.with_ids(x, bank.ids([f"a{i}" for i in of]))
    bank.model.train_on_batch(batch, y)
    bank.add("a0", alone[0])
    for _ in range(2):
        train(bank, alone, *batch_of(tasks, [0]))
    assert_as_alone(bank, alone, [0], atol=1e-4)


def test_the_base_and_the_model_passed_do_not_train(rng):
    host = tuned.adapted("mlp")
    bank = keras_ether.AdapterBank(host, 2)
    bank.add("a")
    bank.model.compile(optimizers.Adam(0.1), loss(), jit_compile=JIT)
    x, y = tasks_of(rng)[0]
    batch = banks.with_ids(x, bank.ids(["a", None, None, "a"]))
    with still(bank, None), banks.unchanged(*host.variables):
        for _ in range(2):
            bank.model.train_on_batch(batch, y)


def test_nan_in_one_example_reaches_no_other(rng):
    bank, alone = bank_of()
    compile_all(bank, alone, lambda: optimizers.SGD(0.05, momentum=0.9))
    tasks = tasks_of(rng)
    tasks[0][0][1] = np.nan
    of, x, y = batch_of(tasks, [0, 1])
    names = [*(f"a{i}" for i in of), None]
    x = np.concatenate([x, np.full_like(x[:1], np.nan)])
    batch = banks.with_ids(x, bank.ids(names))
    with still(bank, "a2", None):
        for _ in range(2):
            bank.model.train_on_batch(batch, np.append(y, 0))
            alone[1].train_on_batch(*tasks[1])
    assert_as_alone(bank, alone, [1])


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="it has no graph without a check"
)
@pytest.mark.once
def test_ids_that_no_edge_sees_train_nobody(rng):
    bank, alone = bank_of()
    compile_all(bank, alone)
    tasks = tasks_of(rng)
    of, x, y = batch_of(tasks, [0, 1])
    ids = np.where(of == 0, -1, bank.ids(["a1"] * len(of))).astype("int32")
    bank.model.table.check_ids = lambda ids: ids.astype("int32")
    with still(bank, "a0", None):
        bank.model.train_step(
            keras.tree.map_structure(
                ops.convert_to_tensor, (banks.with_ids(x, ids), y)
            )
        )
    alone[1].train_on_batch(*tasks[1])
    assert_as_alone(bank, alone, [1])


def sequences(seed):
    """Outputs with a mask, of examples of unequal lengths."""
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
    bank, alone = banks.of(sequences)
    compile_all(
        bank,
        alone,
        loss=lambda: keras.losses.MeanSquaredError(reduction=reduction),
    )
    x = rng.integers(1, 9, (7, 5)).astype("int32")
    for i, length in enumerate([5, 2, 4, 1, 5, 3, 2]):
        x[i, length:] = 0
    y = rng.standard_normal((7, 5, 3)).astype("float32")
    weights = rng.random((7, 5)).astype("float32") if weighted else None
    for _ in range(2):
        train(bank, alone, OF, x, y, weights)
    assert_as_alone(bank, alone, [0, 1])


@pytest.mark.once
@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"]
)
def test_weights_of_examples_count_among_the_adapters_own(rng, reduction):
    bank, alone = bank_of()
    compile_all(
        bank, alone, loss=lambda: keras.losses.MeanSquaredError(reduction)
    )
    x = models.inputs_of("mlp", rng, samples=7)
    y = rng.standard_normal((7, 4)).astype("float32")
    train(bank, alone, OF, x, y, rng.random(7).astype("float32"))
    assert_as_alone(bank, alone, [0, 1])


@pytest.mark.once
def test_losses_of_several_outputs(rng):
    def make(seed):
        return banks.chain(
            (8,),
            keras.layers.Dense(8, name="body"),
            lambda x: {
                "a": keras.layers.Dense(3, name="a")(x),
                "b": keras.layers.Dense(1, name="b")(x),
            },
            seed=seed,
            trainable=["a", "b"],
        )

    bank, alone = banks.of(make)
    for model in (bank.model, *alone):
        model.compile(
            optimizers.SGD(0.05),
            loss={"a": loss(), "b": "mse"},
            loss_weights={"a": 2.0, "b": 0.5},
        )
    x = rng.standard_normal((7, 8)).astype("float32")
    y = {"a": np.arange(7) % 3, "b": rng.standard_normal((7, 1))}
    train(bank, alone, OF, x, y)
    assert_as_alone(bank, alone, [0, 1])


def of_probabilities(*last):
    """Sure of the first class, so that the other ones' are rounded to 0."""

    def make(seed):
        body = keras.layers.Dense(8, name="body")
        model = banks.chain((8,), body, *(layer() for layer in last), seed=seed)
        model.get_layer("head").bias.assign([60.0, 0.0, 0.0])
        return model

    return make


def head(activation=None):
    return keras.layers.Dense(3, activation=activation, name="head")


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        ([lambda: head("softmax")], "sparse_categorical_crossentropy"),
        ([lambda: head("sigmoid")], "binary_crossentropy"),
        ([head, keras.layers.Softmax], "sparse_categorical_crossentropy"),
    ],
)
def test_losses_of_probabilities(rng, last, loss):
    """On TensorFlow, Keras computes them with the logits."""
    bank, alone = banks.of(of_probabilities(*last))
    for model in (bank.model, *alone):
        model.compile(optimizers.SGD(0.05), loss, jit_compile=JIT)
    x = rng.standard_normal((7, 8)).astype("float32")
    y = np.array([1, 2, 1, 0, 1, 2, 0])
    if loss == "binary_crossentropy":
        y = np.eye(3, dtype="float32")[y]
    found, losses = train(bank, alone, OF, x, y)
    # One has three examples and the other one four.
    np.testing.assert_allclose(found, np.average(losses, weights=[3, 4]), 1e-5)
    assert_as_alone(bank, alone, [0, 1])
    ids = bank.ids(["a0"] * 7)
    found = bank.model.evaluate(banks.with_ids(x, ids), y, verbose=0)
    wanted = alone[0].evaluate(x, y, verbose=0)
    np.testing.assert_allclose(found, wanted, 1e-5)


@pytest.mark.parametrize("name", ["first", "head"])
def test_layers_frozen_in_the_base_train_in_no_adapter(rng, name):
    bank, alone = bank_of()
    for model in (bank.model.base, *alone):
        model.get_layer(name).trainable = False
    compile_all(bank, alone)
    train(bank, alone, *batch_of(tasks_of(rng), [0, 1]))
    assert_as_alone(bank, alone, range(TASKS))


def test_an_optimizer_assigned_later_and_its_rate(rng):
    bank, alone = bank_of()
    tasks = tasks_of(rng)
    for model in (bank.model, *alone):
        model.compile("sgd", loss(), jit_compile=JIT)
        model.optimizer = optimizers.Adam(0.5)
        model.optimizer.learning_rate = 0.01
    for names in ([0], [0, 1]):
        train(bank, alone, *batch_of(tasks, names))
    assert_as_alone(bank, alone, [0, 1], atol=1e-4)


def test_flags_of_the_base_count_when_the_bank_is_compiled(rng):
    bank, alone = bank_of()
    compile_all(bank, alone)
    batch = batch_of(tasks_of(rng), [0, 1])
    train(bank, alone, *batch)
    bank.model.base.trainable = False
    train(bank, alone, *batch)
    assert_as_alone(bank, alone, [0, 1])
    bank.model.compile("sgd", loss())
    data = banks.with_ids(batch[1], bank.ids([f"a{i}" for i in batch[0]]))
    with still(bank, "a0", "a1"):
        for verb in (bank.model.fit, bank.model.train_on_batch):
            with pytest.raises(ValueError, match="are frozen, and so is"):
                verb(data, batch[2])


def test_compiling_again_keeps_the_state_of_the_optimizer(rng):
    bank, alone = bank_of()
    optimizer = {id(m): optimizers.Adam(0.01) for m in (bank.model, *alone)}
    batch = batch_of(tasks_of(rng), [0, 1])
    for _ in range(2):
        for model in (bank.model, *alone):
            model.compile(optimizer[id(model)], loss(), jit_compile=JIT)
        for _ in range(2):
            train(bank, alone, *batch)
    assert_as_alone(bank, alone, [0, 1])


def is_of_head(variable):
    return "head" in variable.path


@pytest.mark.parametrize(
    "exclude",
    [
        lambda model: {
            "var_list": [v for v in model.trainable_variables if is_of_head(v)]
        },
        lambda model: {"var_names": ["^kernel$"]},
        lambda model: {"var_names": ["head"]},
    ],
    ids=["variables", "name", "path"],
)
def test_weights_excluded_from_decay_are_those_of_training_alone(rng, exclude):
    bank, alone = bank_of()
    for model in (bank.model, *alone):
        optimizer = optimizers.AdamW(0.01, weight_decay=0.9)
        optimizer.exclude_from_weight_decay(**exclude(model))
        model.compile(optimizer, loss(), jit_compile=JIT)
    for _ in range(3):
        train(bank, alone, *batch_of(tasks_of(rng), [0, 1]))
    assert_as_alone(bank, alone, [0, 1])


def test_an_optimizer_of_another_model_is_refused():
    bank, alone = bank_of()
    optimizer = optimizers.Adam(0.01)
    alone[0].compile(optimizer, loss())
    optimizer.build(alone[0].trainable_variables)
    with pytest.raises(ValueError, match="must be new"):
        bank.model.compile(optimizer, loss())


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
    def make(seed):
        head = keras.layers.Dense(4, name="head", **kwargs)
        return banks.chain((16,), keras.layers.Dense(8), head)

    return make


def batch_for(bank, *names):
    x = np.ones((len(names), 16), "float32")
    y = np.ones((len(names), 4), "float32")
    return banks.with_ids(x, bank.ids(names)), y


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
    bank, _ = banks.bank_of() if make is None else banks.of(make)
    with still(bank, "a0"), pytest.raises(ValueError, match=message):
        bank.model.compile(optimizer, loss)
        bank.model.fit(*batch_for(bank, "a0", None), verbose=0)


@pytest.mark.parametrize("loss", [OfColumns(), Contrast()])
def test_losses_that_mix_examples_are_refused(loss):
    bank, _ = banks.bank_of()
    bank.model.compile("sgd", loss)
    batch = batch_for(bank, "a0", None, "a0", None)
    with (
        still(bank, "a0"),
        pytest.raises(ValueError, match="mixes the examples"),
    ):
        bank.model.fit(*batch, verbose=0)


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
    bank, _ = banks.bank_of()
    loss = Recorder()
    bank.model.compile("sgd", loss, run_eagerly=True, jit_compile=False)
    for size in (6, 6, 7):
        bank.model.train_on_batch(*batch_for(bank, *["a0"] * size))
    assert loss.shapes.count((2, 4)) == 2
    assert {shape for shape, *_ in loss.shapes} == {2, 6, 7}


@pytest.mark.once
@pytest.mark.parametrize(
    "make",
    [
        keras.callbacks.SwapEMAWeights,
        lambda: keras.callbacks.BackupAndRestore("backup"),
    ],
)
def test_callbacks_that_replace_all_adapters_are_refused(make):
    bank, _ = banks.bank_of()
    bank.model.compile(optimizers.Adam(use_ema=True), "mse")
    callback = make()
    for callbacks in (
        callback,
        [callback],
        (callback,),
        [[callback]],
        keras.callbacks.CallbackList([callback]),
    ):
        with pytest.raises(ValueError, match=type(callback).__name__):
            bank.model.fit(*batch_for(bank, "a0", None), callbacks=callbacks)


def test_training_from_outside_is_refused():
    """Where nobody knows whose gradient it is."""
    bank, _ = banks.bank_of()
    x, y = batch_for(bank, "a0", None)
    outer = banks.outer(bank)
    outer.compile("adam", "mse", run_eagerly=True)
    np.testing.assert_allclose(
        outer.predict(x, verbose=0),
        bank.model.predict(x, verbose=0),
        atol=1e-5,
    )
    with still(bank, "a0"):
        for use in (
            lambda: bank.model(x, training=True),
            lambda: outer.train_on_batch(x, y),
            lambda: outer.fit(x, y, verbose=0),
        ):
            with pytest.raises(ValueError, match=r"`fit` or .*train_on_batch"):
                use()
    bank.predict(x["inputs"], ["a0", None])


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
        x = kinds.inputs_of(kind, np.random.default_rng(0))
        return three_losses(model, x, np.ones((4, 2), "float32"))

    np.testing.assert_allclose(losses("full"), losses(None), rtol=1e-4)


def three_losses(model, x, y):
    bank = keras_ether.AdapterBank(model, 2)
    bank.add("a")
    bank.add("b")
    bank.model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=JIT)
    batch = banks.with_ids(x, bank.ids(["a", "b", "b", None]))
    return [float(bank.model.train_on_batch(batch, y)) for _ in range(3)]


def test_containers_computed_again():
    """Attention, whose inner layers are called by what is run again."""
    if keras.backend.backend() == "tensorflow":
        pytest.skip("Keras can't rematerialize it: it takes keyword arguments")

    def losses(scope):
        keras.utils.set_random_seed(1)
        with keras.RematScope(mode=scope):
            layer = keras.layers.MultiHeadAttention(2, 4)
        model = banks.chain(
            (4, 8),
            lambda x: layer(x, x),
            keras.layers.Dense(2, name="head"),
        )
        x = np.random.default_rng(0).standard_normal((4, 4, 8))
        return three_losses(model, x.astype("float32"), x[..., :2])

    np.testing.assert_allclose(losses("full"), losses(None), rtol=1e-4)
