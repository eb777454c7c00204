"""Several adapters trained at once, each as if it were alone."""

import keras
import numpy as np
import pytest
from keras import ops

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
    return bank._values(int(bank.ids([name])[0]))


def values_of(model):
    content = keras_ether.saving.save_and_load.content_of(model)
    return content.tensors


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
    for i, model in enumerate(alone):
        for name, value in values_of(model).items():
            np.testing.assert_allclose(
                row(bank, f"task{i}")[name], value, atol=1e-5, err_msg=name
            )


def test_adam_trains_as_alone_and_leaves_other_rows_still(rng):
    bank, alone = bank_of()
    bank.model.compile(
        keras.optimizers.Adam(0.01, weight_decay=0.1), loss(), jit_compile=JIT
    )
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    everyone = batch_of(bank, parts)
    bank.model.train_on_batch(*everyone)
    optimizer = bank.model.optimizer
    moments = [v for v in optimizer.variables if len(v.shape)]
    still = int(bank.ids(["task2"])[0])

    def of(number):
        variables = [*bank.model.trainable_variables, *moments]
        return [np.array(ops.convert_to_numpy(v))[number] for v in variables]

    before, base = of(still), of(0)
    assert any(np.any(value) for value in before[-len(moments) :])
    for _ in range(3):
        bank.model.train_on_batch(*batch_of(bank, parts[:2]))
    for found, value in zip(of(still), before, strict=True):
        np.testing.assert_array_equal(found, value)
    for found, value in zip(of(0), base, strict=True):
        np.testing.assert_array_equal(found, value)
    model, (_, d) = alone[0], parts[0]
    model.compile(
        keras.optimizers.Adam(0.01, weight_decay=0.1), loss(), jit_compile=JIT
    )
    for _ in range(4):
        model.train_on_batch(*d)
    for name, value in values_of(model).items():
        np.testing.assert_allclose(
            row(bank, "task0")[name], value, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize(
    "steps", [2, pytest.param(3, marks=pytest.mark.nightly)]
)
def test_accumulated_gradients_reach_their_rows(rng, steps):
    bank, _ = bank_of()
    bank.model.compile(
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
        loss(),
        jit_compile=JIT,
    )
    parts = [(f"task{i}", data(rng, i)) for i in range(2)]
    before = [row(bank, f"task{i}") for i in range(TASKS)]
    for i in range(steps):
        bank.model.train_on_batch(*batch_of(bank, [parts[i % 2]]))
    for i in range(TASKS):
        found = row(bank, f"task{i}")
        moved = [not np.array_equal(found[n], v) for n, v in before[i].items()]
        assert all(moved) if i < 2 else not any(moved)


def test_a_new_adapter_has_no_moments_of_an_old_one(rng):
    bank, alone = bank_of()
    bank.model.compile(keras.optimizers.Adam(0.01), loss(), jit_compile=JIT)
    parts = [(f"task{i}", data(rng, i)) for i in range(TASKS)]
    bank.model.train_on_batch(*batch_of(bank, parts))
    bank.add("task0", alone[0])
    number = int(bank.ids(["task0"])[0])
    moments = [
        np.array(ops.convert_to_numpy(v))
        for v in bank.model.optimizer.variables
        if len(v.shape)
    ]
    assert moments
    for value in moments:
        assert not value[number].any()
        assert value.any()


def test_the_base_and_the_model_passed_do_not_train(rng):
    host = tuned.adapted("mlp")
    bank = keras_ether.AdapterBank(host, 2)
    bank.add("a")
    bank.model.compile(keras.optimizers.Adam(0.1), loss(), jit_compile=JIT)
    x, y = data(rng, 0)
    before = models.values(host.variables), bank._values(0)
    ids = bank.ids(["a", None, None, "a"])
    for _ in range(2):
        bank.model.train_on_batch({"inputs": x, "adapter_id": ids}, y)
    for found, value in zip(
        models.values(host.variables), before[0], strict=True
    ):
        np.testing.assert_array_equal(found, value)
    for name, value in bank._values(0).items():
        np.testing.assert_array_equal(value, before[1][name])


def test_losses_summed_over_the_batch(rng):
    bank, alone = bank_of()
    parts = [(f"task{i}", data(rng, i)) for i in range(2)]

    def compile_for_sums(model):
        model.compile(
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="sum"
            ),
            jit_compile=JIT,
        )

    compile_for_sums(bank.model)
    compile_for_sums(alone[1])
    bank.model.train_on_batch(*batch_of(bank, parts))
    alone[1].train_on_batch(*parts[1][1])
    for name, value in values_of(alone[1]).items():
        np.testing.assert_allclose(row(bank, "task1")[name], value, atol=1e-5)


@pytest.mark.parametrize("name", ["clipnorm", "global_clipnorm"])
def test_gradients_are_clipped_by_the_norm_of_their_own_adapter(rng, name):
    bank, alone = bank_of()
    parts = [(f"task{i}", data(rng, i)) for i in range(2)]
    # One is clipped, the other is not.
    parts[1][1][0][:] *= 0.01

    def compile_model(model):
        optimizer = keras.optimizers.SGD(0.5, **{name: 0.05})
        model.compile(optimizer, loss(), jit_compile=JIT)

    compile_model(bank.model)
    bank.model.train_on_batch(*batch_of(bank, parts))
    for model, (task, d) in zip(alone, parts, strict=False):
        compile_model(model)
        model.train_on_batch(*d)
        for key, value in values_of(model).items():
            np.testing.assert_allclose(
                row(bank, task)[key], value, atol=1e-5, err_msg=key
            )


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
