"""What the user compiled with stays, and only slots start anew."""

import inspect

import keras
import numpy as np
import pytest

import keras_ether
from tests import checks
from tests import models

pytestmark = checks.WITHOUT_ADVICE
RATE = 0.01


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """One's own, which `fit` does not ask for a configuration."""

    def __call__(self, step):
        return 0.01 / (1.0 + keras.ops.cast(step, "float32"))


class Momentum(keras.optimizers.Optimizer):
    """A user's own: variables of its own, odd slots, no configuration."""

    def __init__(self, rate, momentum):
        super().__init__(learning_rate=rate, name="momentum")
        self.momentum = self.add_variable(
            (), keras.initializers.Constant(momentum), name="momentum"
        )
        self.seen = keras.Variable(0.0, trainable=False)
        self.by_path = {}
        self.unnamed = []

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.first = variables[0].path
        for variable in variables:
            if variable.path not in self.by_path:
                self.by_path[variable.path] = self.add_variable_from_reference(
                    variable, name="slot"
                )
            self.unnamed.append(self.add_variable(variable.shape))
        self.steps = self.add_variable((), name="steps")

    def update_step(self, gradient, variable, learning_rate):
        slot = self.by_path[self.paths[self._get_variable_index(variable)]]
        self.assign(slot, self.momentum * slot + gradient)
        self.assign_sub(variable, learning_rate * slot)
        self.assign_add(self.seen, 1.0)
        self.assign_add(self.steps, 1.0)

    @property
    def paths(self):
        return [v.path for v in self._trainable_variables]

    def get_config(self):
        raise NotImplementedError

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError


class Unwilling(keras.optimizers.SGD):
    """Can be built for all variables only."""

    def __init__(self, count):
        super().__init__(RATE, momentum=0.9)
        self.count = count
        self.mine = self.add_variable((), name="mine")

    def build(self, variables):
        if self.built:
            return
        if len(variables) < self.count:
            raise KeyError("where are the others?")
        super().build(variables)
        self.late = self.add_variable((), name="late")


def choose():
    """One for kernels and another for what is not."""
    chosen = {}

    def of(variable):
        name = "sgd" if len(variable.shape) > 1 else "adam"
        if name not in chosen:
            chosen[name] = {
                "sgd": lambda: keras.optimizers.SGD(RATE, momentum=0.9),
                "adam": lambda: keras.optimizers.Adam(RATE),
            }[name]()
        return chosen[name]

    return keras.optimizers.MultiOptimizer(of)


def mapped():
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.Adam(RATE),
            {".*bias": keras.optimizers.SGD(RATE, momentum=0.9)},
        )
    )


def without_decay():
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def plain_classes():
    return {
        name: kind
        for name, kind in vars(keras.optimizers).items()
        if inspect.isclass(kind)
        and issubclass(kind, keras.optimizers.Optimizer)
        and "learning_rate" in inspect.signature(kind).parameters
        and kind is not keras.optimizers.Optimizer
    }


OPTIMIZERS = {
    name: lambda kind=kind: kind(learning_rate=RATE)
    for name, kind in plain_classes().items()
} | {
    "momentum": lambda: keras.optimizers.SGD(RATE, momentum=0.9),
    "amsgrad": lambda: keras.optimizers.Adam(RATE, amsgrad=True),
    "centered": lambda: keras.optimizers.RMSprop(
        RATE, momentum=0.9, centered=True
    ),
    "average": lambda: keras.optimizers.Adam(
        RATE, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "accumulation": lambda: keras.optimizers.Adam(
        RATE, gradient_accumulation_steps=2
    ),
    "clipped": lambda: keras.optimizers.Nadam(RATE, clipnorm=0.1),
    "decay": without_decay,
    "schedule": lambda: keras.optimizers.Adam(Schedule()),
    "function": lambda: keras.optimizers.Adam(lambda: RATE),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Nadam(RATE), initial_scale=4.0
    ),
    "by function": choose,
    "by map": mapped,
    "one's own": lambda: Momentum(RATE, 0.9),
    "unwilling": lambda: Unwilling(2),
}


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, activation="tanh", name="body"),
            keras.layers.Dense(2, name="head"),
        ]
    )


def apply(model, **kwargs):
    return keras_ether.apply(
        model, rank_blocks=2, trainable=["head"], seed=0, **kwargs
    )


def compile_model(model, optimizer):
    model.compile(optimizer, "mse", run_eagerly=True)


def fit(model, steps=2):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4 * steps, 4)), rng.normal(size=(4 * steps, 2))
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    keras_ether.save_adapter(apply(make_model()), path)
    return path


def parts(optimizer):
    """An optimizer and those that it wraps."""
    inner = getattr(optimizer, "inner_optimizer", None)
    inners = [inner] if inner else getattr(optimizer, "optimizers", [])
    return [optimizer, *(o for inner in inners for o in parts(inner))]


def shapes(optimizer):
    return [(v.shape, v.dtype) for v in optimizer.variables]


@pytest.mark.by_turns
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_stays_and_trains_as_a_fresh_one_would(name, path):
    model, twin = make_model(), make_model()
    optimizer = OPTIMIZERS[name]()
    compile_model(model, optimizer)
    compile_model(twin, OPTIMIZERS[name]())
    fit(model), fit(twin)
    start = shapes(optimizer)
    verbs = {
        "apply": apply,
        "merge": keras_ether.merge,
        "load_adapter": lambda m: keras_ether.load_adapter(
            m, path, check_base=False
        ),
        "remove": keras_ether.remove,
    }
    if name in plain_classes():
        # The others are the odd ones.
        verbs = {verb: verbs[verb] for verb in ("apply", "merge")}
    for verb, act in verbs.items():
        before = parts(optimizer)
        for each in (model, twin):
            if verb == "load_adapter":
                with pytest.warns(UserWarning, match="another base"):
                    act(each)
            else:
                act(each)
        assert model.optimizer is optimizer
        if name != "by function":
            assert all(map(lambda a, b: a is b, parts(optimizer), before))
        for part in parts(optimizer):
            assert not part.built
            assert int(part.iterations) == 0
        compile_model(twin, OPTIMIZERS[name]())
        assert shapes(optimizer) == shapes(twin.optimizer), verb
        fit(model), fit(twin)
        assert shapes(optimizer) == shapes(twin.optimizer), verb
        if verb in ("merge", "remove"):
            assert shapes(optimizer) == start
        checks.equal(model.variables, twin.variables, verb)


def everything_set(optimizer):
    """All attributes that are no variables and no lists of them."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if value is None or isinstance(value, (bool, int, float, str))
    }


@pytest.mark.parametrize("verb", ["merge", "remove"])
def test_what_was_set_stays(verb):
    model = apply(make_model())
    optimizer = keras.optimizers.Adam(
        RATE, clipnorm=0.5, weight_decay=0.1, use_ema=True
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.note = "mine"
    compile_model(model, optimizer)
    fit(model)
    optimizer.learning_rate = 0.25
    optimizer.beta_1 = 0.75
    expected = everything_set(optimizer) | {"built": False}
    rate, count = optimizer.learning_rate, optimizer.variables[0]
    getattr(keras_ether, verb)(model)
    assert everything_set(optimizer) == expected
    assert optimizer.learning_rate is rate
    assert float(rate) == 0.25
    assert optimizer.variables[0] is count
    fit(model)
    assert not optimizer._use_weight_decay(model.layers[0].bias)
    assert optimizer._use_weight_decay(model.layers[0].kernel)


def test_variables_of_a_users_init_keep_their_values():
    model = apply(make_model())
    optimizer = Momentum(RATE, 0.9)
    compile_model(model, optimizer)
    fit(model)
    optimizer.momentum.assign(0.5)
    seen = float(optimizer.seen)
    assert seen > 0
    keras_ether.merge(model)
    assert [id(v) for v in optimizer.variables[2:]] == [
        id(optimizer.momentum),
        id(optimizer.seen),
    ]
    assert float(optimizer.momentum) == 0.5
    assert float(optimizer.seen) == seen
    fit(model)
    assert float(optimizer.steps) == 2 * 4


@pytest.mark.parametrize("name", ["Adam", "loss scale", "one's own"])
def test_an_optimizer_that_is_not_built_is_not_touched(name):
    model = make_model()
    optimizer = OPTIMIZERS[name]()
    compile_model(model, optimizer)
    before = dict(vars(optimizer))
    for act in (apply, keras_ether.merge, apply, keras_ether.remove):
        act(model)
        assert model.optimizer is optimizer
        assert vars(optimizer).keys() == before.keys()
        assert all(vars(optimizer)[name] is before[name] for name in before)
    fit(model)


def test_compiled_fit_goes_on():
    """With functions traced and compiled, as users have it."""
    model = make_model()
    model.compile(keras.optimizers.Nadam(RATE), "mse")
    fit(model)
    optimizer = model.optimizer
    for act in (apply, keras_ether.merge, apply, keras_ether.remove):
        act(model)
        before = models.values(model.trainable_variables)
        fit(model)
        for now, then in zip(
            models.values(model.trainable_variables), before, strict=True
        ):
            assert not np.array_equal(now, then)
    assert model.optimizer is optimizer


def test_optimizers_of_inner_models_and_in_attributes_stay():
    class Pair(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.others = {"slow": keras.optimizers.Adam(RATE)}

        def call(self, x):
            return self.inner(x)

    inner = make_model()
    compile_model(inner, keras.optimizers.Adam(RATE))
    fit(inner)
    model = Pair(inner)
    compile_model(model, keras.optimizers.SGD(RATE, momentum=0.9))
    fit(model)
    slow = model.others["slow"]
    slow.build(model.trainable_variables)
    kept = [inner.optimizer, model.optimizer, slow]
    apply(model)
    assert [inner.optimizer, model.optimizer, model.others["slow"]] == kept
    assert not any(optimizer.built for optimizer in kept)
    fit(model)
    fit(inner)


def test_merging_allocates_no_slots():
    model = apply(make_model())
    compile_model(model, keras.optimizers.Adam(RATE))
    fit(model)
    made = []
    add = model.optimizer.add_variable

    def add_variable(shape, *args, **kwargs):
        made.append(int(np.prod(shape)))
        return add(shape, *args, **kwargs)

    vars(model.optimizer)["add_variable"] = add_variable
    keras_ether.merge(model)
    # No more than for the smallest of the variables that trained.
    assert sum(made) <= 2 * 2


def test_schedule_is_not_called_by_surgery():
    class Counting(Schedule):
        calls = 0

        def __call__(self, step):
            Counting.calls += 1
            return super().__call__(step)

    model = make_model()
    compile_model(model, keras.optimizers.Adam(Counting()))
    fit(model)
    calls = Counting.calls
    keras_ether.merge(apply(model))
    assert Counting.calls == calls


@pytest.mark.parametrize("verb", [keras_ether.merge, keras_ether.remove])
@pytest.mark.parametrize("taken", ["backbone", "sibling"])
def test_compiled_model_trains_all_after_a_verb_on_a_part_of_it(verb, taken):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    body = keras.layers.Dense(4, activation="tanh", name="body")
    backbone = keras.Model(inputs, body(inputs))
    model, sibling = (
        keras.Model(inputs, keras.layers.Dense(2, name="head")(y))
        for y in (backbone(inputs), backbone(inputs))
    )
    apply(model)
    model.compile(keras.optimizers.Adam(RATE), "mse")
    fit(model)
    verb({"backbone": backbone, "sibling": sibling}[taken])
    before = [np.array(v) for v in models.values(model.trainable_variables)]
    fit(model)
    assert len(before) == 4
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert np.any(models.values([variable])[0] != value), variable.path


class During(keras.callbacks.Callback):
    """Calls a function of the model at one moment of `fit`."""

    def __init__(self, moment, function, by_model=True):
        super().__init__()

        def call(*_, **__):
            function(self.model if by_model else None)

        setattr(self, moment, call)


@pytest.mark.parametrize("verb", [keras_ether.merge, keras_ether.remove])
@pytest.mark.parametrize(
    "moment", ["on_train_batch_end", "on_epoch_end", "on_train_end"]
)
def test_verb_in_a_callback_leaves_the_model_with_its_values(verb, moment):
    """`fit` can't go on, but the model is as after the verb."""
    model = apply(make_model())
    model.compile(keras.optimizers.Adam(RATE), "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    found = []

    def change(model):
        if found:
            return
        verb(model)
        found.append(models.call(model, x))

    def train(**kwargs):
        model.fit(x, x[:, :2], batch_size=4, epochs=2, verbose=0, **kwargs)

    if moment == "on_train_end":
        train(callbacks=[During(moment, change)])
    else:
        with pytest.raises(TypeError, match="not callable"):
            train(callbacks=[During(moment, change)])
    np.testing.assert_array_equal(models.call(model, x), found[0])
    train()
    assert np.abs(models.call(model, x) - found[0]).max() > 1e-4


@pytest.mark.parametrize("verb", [keras_ether.merge, keras_ether.remove])
def test_model_that_predicts_and_is_not_compiled(verb):
    """JAX keeps the values of its last batch."""
    model = apply(make_model())
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    before = model.predict_on_batch(x)
    verb(model)
    np.testing.assert_allclose(model.predict_on_batch(x), before, atol=1e-6)
    apply(model)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX's loops")
@pytest.mark.parametrize(
    "verb",
    [
        keras_ether.merge,
        keras_ether.summary,
        lambda model: keras_ether.strength(model, 0.5),
        lambda model: keras_ether.disabled(model).__enter__(),
    ],
    ids=["merge", "summary", "strength", "disabled"],
)
def test_verb_on_a_model_whose_weights_a_loop_holds_is_an_error(verb):
    model = apply(make_model())
    model.compile(keras.optimizers.Adam(RATE), "mse")
    callback = During(
        "on_train_batch_end", lambda _: verb(model), by_model=False
    )
    x = np.ones((8, 4), "float32")
    with pytest.raises(RuntimeError, match="In a callback"):
        model.fit(x, x[:, :2], verbose=0, callbacks=[callback])
    # Keras writes the weights back at the end of `fit`.
    keras_ether.strength(model, 1.0)
    assert np.isfinite(models.call(model, x)).all()
