"""What is told of where training starts: low rates, kernels that train."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.surgery import low_rate
from tests import models

X, Y = np.ones((4, 16), "float32"), np.ones((4, 4), "float32")


def compiled(model, rate=2e-5, **kwargs):
    optimizer = keras.optimizers.Adam(rate, **kwargs)
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def apply(model, **kwargs):
    kwargs = {
        "method": "ether",
        "rank_blocks": 2,
        "trainable": ["head"],
    } | kwargs
    return keras_ether.apply(model, **kwargs)


def fit(model, **kwargs):
    model.fit(X, Y, batch_size=4, verbose=0, **kwargs)


def warnings_of(act):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in found if "learning rate" in str(w.message)]


def points_here(rate, act, where=__file__):
    """The warning comes once and names the line that trains."""
    message = f"with a learning rate of {rate}, which is low for 'ether'"
    with pytest.warns(UserWarning, match=message) as found:
        act()
    found = [w for w in found if "learning rate" in str(w.message)]
    assert [w.filename for w in found] == [where]


STARTS = {
    "fit": fit,
    "train_on_batch": lambda model: model.train_on_batch(X, Y),
}
ORDERS = {
    "compiled first": lambda: apply(compiled(models.mlp())),
    "applied first": lambda: compiled(apply(models.mlp())),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("order", ORDERS)
def test_is_told_of_once_by_the_line_that_trains(order, start):
    model = ORDERS[order]()
    points_here("2e-05", lambda: STARTS[start](model))
    for again in STARTS.values():
        assert warnings_of(lambda act=again: act(model)) == []


def test_task_that_compiles_itself_is_adapted_without_a_word(rng):
    # Warnings are errors.
    task = keras_ether.apply(models.bert(), rank_blocks=2)
    models.compile_and_fit(task, models.inputs_of("bert", rng), epochs=1)


def test_task_that_keeps_its_own_rate(rng):
    task = keras_ether.apply(models.bert(), rank_blocks=2, method="ether")
    x = models.inputs_of("bert", rng)
    # `fit` of KerasHub is between the line that trains and the one of Keras.
    points_here("5e-05", lambda: models.fit(task, x), models.__file__)


def test_once_for_each_optimizer():
    model = compiled(apply(models.mlp()))
    assert len(warnings_of(lambda: fit(model))) == 1
    compiled(model, 3e-5)
    assert "3e-05" in warnings_of(lambda: fit(model))[0]
    # What was set after `compile` counts.
    compiled(model).optimizer.learning_rate = 1e-2
    assert warnings_of(lambda: fit(model)) == []


def test_a_warning_that_is_an_error_comes_again():
    model = compiled(apply(models.mlp()))
    for _ in range(2):
        with pytest.raises(UserWarning, match="low for"):
            fit(model)
    assert int(np.asarray(model.optimizer.iterations.value)) == 0


@pytest.mark.parametrize(
    ("method", "strength", "blocks", "low", "fine"),
    [
        ("ether", None, 4, 9e-4, 1e-3),
        ("ether", None, 1, 4e-4, 5e-4),
        ("ether+", None, 4, 1e-4, 2e-4),
        ("ether+", None, 2, 1e-4, 1.5e-4),
        ("oft", None, 1, 9e-5, 1e-4),
        ("ether", "learned", 4, 9e-5, 1e-4),
        ("ether+", "learned", 1, 5e-5, 1e-3),
    ],
)
def test_low_is_less_than_a_tenth_of_the_methods_own(
    method, strength, blocks, low, fine
):
    model = apply(
        models.mlp(), method=method, strength=strength, rank_blocks=blocks
    )
    assert len(warnings_of(lambda: fit(compiled(model, low)))) == 1
    assert warnings_of(lambda: fit(compiled(model, fine))) == []


schedules = keras.optimizers.schedules


def warming_up_to(rate):
    return schedules.CosineDecay(0.0, 900, warmup_target=rate, warmup_steps=700)


class Odd(schedules.LearningRateSchedule):
    def __call__(self, step):
        raise TypeError("asked by the optimizer alone")


class Own(keras.optimizers.SGD):
    """An optimizer whose rate is not the one that it was given."""

    @property
    def learning_rate(self):
        return 0.5


def by_variable(rate):
    """The head has a rate of its own."""
    adam = keras.optimizers.Adam
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(rate), {"head/.*": adam(1e-2)})
    )


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (schedules.CosineDecay(1e-6, 10), "1e-06"),
        (schedules.PolynomialDecay(5e-5, 1000, 0.0), "5e-05"),
        # From zero to its highest and back.
        (warming_up_to(5e-5), "5e-05"),
        (warming_up_to(1e-2), None),
        (schedules.PiecewiseConstantDecay([5], [1e-6, 2e-2]), None),
        (Odd(), None),
        # Not known before training.
        (lambda: 2e-5, None),
        (Own(2e-5), None),
        (
            keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(2e-5)),
            "2e-05",
        ),
        (by_variable(2e-5), "2e-05"),
        (by_variable(1e-2), None),
    ],
)
def test_the_highest_rate_of_the_vectors_counts(optimizer, found):
    model = apply(models.mlp(), method="ether", targets=["first"])
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer = keras.optimizers.Adam(optimizer)
    model.compile(optimizer, "mse", run_eagerly=True)
    told = warnings_of(lambda: model.make_train_function())
    assert len(told) == (found is not None)
    if found:
        assert f"a learning rate of {found}" in told[0]


def test_frozen_vectors_are_the_users_affair():
    model = apply(models.mlp())
    for layer in ("first", "second"):
        model.get_layer(layer).trainable = False
    assert warnings_of(lambda: fit(compiled(model))) == []


@pytest.mark.parametrize(
    "end", [keras_ether.merge, keras_ether.remove], ids=["merge", "remove"]
)
def test_a_model_without_adapters_has_its_own_method_again(end):
    model = end(compiled(apply(models.mlp())))
    assert low_rate.START not in vars(model)
    assert warnings_of(lambda: fit(model)) == []


def test_part_of_a_model():
    inner = models.mlp()
    model = keras.Sequential([keras.Input((16,)), inner])
    apply(model)
    assert len(warnings_of(lambda: fit(compiled(inner)))) == 1
    assert len(warnings_of(lambda: fit(compiled(model)))) == 1
    keras_ether.merge(inner)
    assert warnings_of(lambda: fit(compiled(model))) == []


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_tell_for_themselves(way):
    model = compiled(apply(models.mlp()))
    assert warnings_of(lambda: fit(model))
    twin = COPIES[way](model)
    assert len(warnings_of(lambda: fit(twin))) == 1


def test_files_are_those_of_a_plain_model(tmp_path):
    model = compiled(apply(models.mlp()), 1e-2)
    fit(model)
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    np.testing.assert_allclose(
        loaded.predict(X, verbose=0), expected, atol=1e-5
    )
    assert low_rate.START not in vars(loaded)


def test_models_own_method_is_called():
    calls = []

    @keras.saving.register_keras_serializable(package="tests")
    class Counting(keras.Sequential):
        def make_train_function(self, force=False):
            calls.append(force)
            return super().make_train_function(force)

    layers = [keras.Input((16,)), keras.layers.Dense(4)]
    model = Counting(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_ether.apply(model)
    fit(compiled(model, 1e-2))
    assert calls == [False]
    model.make_train_function(force=True)
    assert calls == [False, True]


def thawed(act):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        act()
    return [w for w in found if "trains the kernels" in str(w.message)]


def thaw(task):
    """The recipe for a head that trains first, its lines in a wrong order."""
    task.backbone.trainable = False
    task.backbone.trainable = True
    return task


@pytest.mark.parametrize("start", STARTS)
def test_kernels_thawed_after_apply_are_told_of_once(start):
    model = compiled(apply(models.mlp()), 1e-2)
    assert thawed(lambda: STARTS[start](model)) == []
    # On TensorFlow, an attribute that is set to its own value does nothing.
    model.trainable = False
    model.trainable = True
    compiled(model, 1e-2)
    (found,) = thawed(lambda: STARTS[start](model))
    assert "of adapted layers: 'first', 'second'" in str(found.message)
    assert found.filename == __file__
    for again in STARTS.values():
        assert thawed(lambda act=again: act(compiled(model, 1e-2))) == []


def test_kernels_thawed_with_a_backbone_are_told_of(rng):
    task = keras_ether.apply(models.bert(), rank_blocks=2)
    frozen = keras_ether.summary(task, print_fn=str)
    assert frozen.base == 0
    trained = {id(v) for v in task.trainable_weights}
    thaw(task)
    report = keras_ether.summary(task, print_fn=str)
    new = [v for v in task.trainable_weights if id(v) not in trained]
    assert report.base == sum(int(np.prod(v.shape)) for v in new) > 0
    assert report.frozen == frozen.frozen - report.base
    assert (report.head, report.trainable) == (frozen.head, frozen.trainable)
    assert f"{report.base:,} parameters, thawed" in str(report)
    x = models.inputs_of("bert", rng)
    with pytest.warns(UserWarning, match="also trains the kernels"):
        models.compile_and_fit(task, x, epochs=1)
    thaw(keras_ether.remove(task))
    keras_ether.apply(task, rank_blocks=2)
    # Warnings are errors.
    models.compile_and_fit(task, x, epochs=1)


def test_other_weights_may_be_thawed_without_a_word():
    model = compiled(apply(models.mlp(), targets=["first"]), 1e-2)
    model.get_layer("second").trainable = True
    model.get_layer("first").bias.trainable = True
    assert thawed(lambda: fit(model)) == []
