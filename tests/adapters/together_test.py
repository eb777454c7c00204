"""Factors that the layers of a call share, on eager PyTorch."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether import methods
from keras_ether.adapters import together
from keras_ether.surgery.verbs import adapted_layers
from tests import models

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "torch", reason="of eager PyTorch"
    ),
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
]

TOKENS = {
    "token_ids": np.arange(24).reshape(2, 12),
    "segment_ids": np.zeros((2, 12), "int32"),
    "padding_mask": np.ones((2, 12), "int32"),
}


def adapted(model=None, blocks=2, **options):
    """A model whose vectors are not at their start."""
    model = models.bert_backbone(num_layers=2) if model is None else model
    keras_ether.apply(
        model, targets="all-linear", rank_blocks=blocks, seed=0, **options
    )
    for layer in adapted_layers(model).values():
        # What is asked of a method once, not in what is counted.
        methods.are_thin_and_apart(layer.ether.method)
    for i, weight in enumerate(model.trainable_weights):
        weight.assign_add(0.1 * keras.random.normal(weight.shape, seed=i))
    return model


def numpy(x):
    return ops.convert_to_numpy(x)


def outputs(model, x, training=False):
    y = model(x, training=training)
    return y["sequence_output"] if isinstance(y, dict) else y


def step(model, x=TOKENS, training=True):
    """Outputs, and gradients of the trained variables."""
    import torch

    keras.utils.set_random_seed(0)
    for variable in model.non_trainable_variables:
        if variable.path.endswith("seed_generator_state"):
            variable.assign([0, 0])
    y = outputs(model, x, training)
    variables = [v.value for v in model.trainable_variables]
    loss = (y.float() ** 3).sum()
    return y, torch.autograd.grad(loss, variables, allow_unused=True)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"method": "ether"}, "float32"),
        ({"method": "ether+"}, "float32"),
        ({"method": "ether+", "blocks": 8}, "float32"),
        ({"method": "ether", "side": "both", "dropout": 0.3}, "float32"),
        ({"method": "ether+", "strength": "learned"}, "float32"),
        ({"method": "ether", "strength": 0.5}, "float32"),
        ({"method": "oft"}, "float32"),
        ({"method": "ether"}, "mixed_bfloat16"),
        ({"method": "ether+"}, "mixed_bfloat16"),
        ({"method": "ether+", "strength": "learned"}, "bfloat16"),
        ({"method": "ether", "side": "narrow", "blocks": 1}, "bfloat16"),
    ],
)
def test_values_and_gradients_are_those_of_each_layer(
    options, dtype, monkeypatch
):
    import torch

    model = adapted(models.bert_backbone(num_layers=2, dtype=dtype), **options)
    keras_ether.strength(model, 0.7)
    y, gradients = step(model)
    with monkeypatch.context() as patch:
        patch.setattr(together, "factors_of_sides", lambda *_: None)
        y_alone, gradients_alone = step(model)
    torch.testing.assert_close(y, y_alone)
    check_near(gradients, gradients_alone, 1e-4 if dtype == "float32" else 0.05)


def check_near(gradients, expected, near=1e-4):
    import torch

    for ours, theirs in zip(gradients, expected, strict=True):
        # Those of the pooler, behind the outputs, are `None`.
        assert (ours is None) == (theirs is None)
        if ours is not None:
            atol = near * float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=near, atol=atol)


def norms_of(function):
    """How many operations that compute lengths of vectors a function starts."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += "vector_norm" in function.name()
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        function()
    return counter.count


@pytest.mark.parametrize("method", ["ether", "ether+"])
@pytest.mark.parametrize("layers", [1, 3])
def test_layers_of_one_shape_cost_one_norm(method, layers):
    model = adapted(models.bert_backbone(num_layers=layers), method=method)
    # Blocks are half of 16 wide, or half of 32.
    assert norms_of(lambda: model(TOKENS)) == 2
    # A layer that is called by itself computes what it needs and no more.
    dense = model.transformer_layers[0]._feedforward_intermediate_dense
    sides = len(dense.ether.widths)
    assert norms_of(lambda: dense(np.ones((2, 16), "float32"))) == sides


def test_calls_of_parts_share_what_is_below_them():
    model = adapted(models.bert_backbone(num_layers=3))
    layer = model.transformer_layers[0]
    x = ops.ones((2, 5, 16))
    assert norms_of(lambda: layer(x)) == 2
    with keras.StatelessScope():
        assert norms_of(lambda: layer(x)) == 2


class Calls(keras.Model):
    """Computes a function of a model and its inputs within one call."""

    def __init__(self, model, function):
        super().__init__()
        self.model = model
        self.function = function
        self.built = True

    def call(self, x):
        return self.function(self.model, x)


def test_switched_off_within_a_call():
    model = adapted()
    active = outputs(model, TOKENS)
    with keras_ether.disabled(model):
        base = outputs(model, TOKENS)

    def with_and_without(model, x):
        first = outputs(model, x)
        with keras_ether.disabled(model):
            return first, outputs(model, x)

    first, second = Calls(model, with_and_without)(TOKENS)
    np.testing.assert_array_equal(numpy(first), numpy(active))
    np.testing.assert_array_equal(numpy(second), numpy(base))
    assert np.abs(numpy(active - base)).max() > 1e-2


def test_vectors_assigned_within_a_call():
    model = adapted(method="ether+")
    before = outputs(model, TOKENS)

    def before_and_after(model, x):
        first = outputs(model, x)
        for i, weight in enumerate(model.trainable_weights):
            weight.assign_add(0.1 * keras.random.normal(weight.shape, seed=i))
        return first, outputs(model, x)

    first, second = Calls(model, before_and_after)(TOKENS)
    np.testing.assert_array_equal(numpy(first), numpy(before))
    expected = numpy(outputs(model, TOKENS))
    np.testing.assert_allclose(numpy(second), expected, atol=1e-5)
    assert np.abs(numpy(second - before)).max() > 1e-3


@pytest.mark.parametrize("modes", [(True, False), (False, True)])
def test_a_gradient_is_there_where_a_part_runs_without(modes):
    import torch

    model = adapted()

    def with_and_without(model, x):
        found = []
        for mode in modes:
            with torch.set_grad_enabled(mode):
                found.append(outputs(model, x))
        return found

    found = Calls(model, with_and_without)(TOKENS)
    assert tuple(y.requires_grad for y in found) == modes
    loss = (found[modes.index(True)] ** 3).sum()
    variables = [v.value for v in model.trainable_variables]
    gradients = torch.autograd.grad(loss, variables, allow_unused=True)
    check_near(gradients, step(model, training=False)[1])


def test_gradients_may_be_asked_for_several_times_within_a_call():
    model = adapted()

    def gradients(model, x):
        return [step(model, x, training=False)[1] for _ in range(2)]

    for found in Calls(model, gradients)(TOKENS):
        check_near(found, step(model, training=False)[1])


def test_a_layer_that_a_call_leaves_out_has_no_gradient():
    inputs = keras.Input((8,))
    a, b, c = (keras.layers.Dense(8, name=name) for name in "abc")
    model = keras.Model(inputs, [b(a(inputs)), c(inputs)])
    keras_ether.apply(model, targets="all-linear", rank_blocks=2, seed=0)
    y, _ = model(np.ones((3, 8), "float32"))
    assert norms_of(lambda: model(np.ones((3, 8), "float32"))) == 1
    y.sum().backward()
    has = {v.path: v.value.grad is not None for v in model.trainable_variables}
    assert [has[f"{name}/ether/input_u"] for name in "abc"] == [
        True,
        True,
        False,
    ]


def test_frozen_layers_are_left_out_of_the_backward_pass():
    model = adapted(models.bert_backbone(num_layers=3))
    for layer in model.transformer_layers[:2]:
        layer.trainable = False
    first, second = {}, {}

    def parts(model, x):
        for i, found in enumerate((first, second)):
            layer = model.transformer_layers[i]
            hidden = np.ones((2, 5, 16), "float32")
            found["frozen"] = layer(hidden).requires_grad
            found["trained"] = model.transformer_layers[2](hidden).requires_grad
        return outputs(model, x)

    y = Calls(model, parts)(TOKENS)
    assert first == second == {"frozen": False, "trained": True}
    assert y.requires_grad
    assert norms_of(lambda: y.sum().backward()) == 0
    has = {v.path: v.value.grad is not None for v in model.trainable_variables}
    assert all(
        "transformer_layer_2" in path or not g for path, g in has.items()
    )


def test_vectors_that_train_from_the_middle_of_a_call_on():
    model = adapted()
    model.trainable = False

    def frozen_and_not(model, x):
        first = outputs(model, x)
        model.trainable = True
        return first, outputs(model, x)

    first, second = Calls(model, frozen_and_not)(TOKENS)
    assert (first.requires_grad, second.requires_grad) == (False, True)


def test_hooks_of_vectors_see_gradients_alone():
    inputs = keras.Input((8,))
    a, b, c = (keras.layers.Dense(8, name=name) for name in "abc")
    model = keras.Model(inputs, [b(a(inputs)), c(inputs)])
    keras_ether.apply(
        model, targets="all-linear", rank_blocks=2, seed=0, method="ether"
    )
    seen = []
    hooks = [
        v.value.register_hook(lambda g: seen.append(g.shape))
        for v in model.trainable_variables
    ]
    used, _ = model(np.ones((3, 8), "float32"))
    used.sum().backward()
    assert seen == [(2, 4)] * 2
    for hook in hooks:
        hook.remove()


def test_vectors_that_are_there_while_their_layer_runs_alone():
    """As where parameters are kept elsewhere, and gathered when needed."""
    import torch

    model = adapted()
    expected = numpy(outputs(model, TOKENS))
    for layer in model._flatten_layers():
        if not hasattr(layer, "ether"):
            continue
        vector = layer.ether.input_u.value
        kept = vector.data

        def gather(*_, vector=vector, kept=kept):
            vector.data = kept

        def release(*_, vector=vector):
            vector.data = torch.zeros(0)

        layer.register_forward_pre_hook(gather)
        layer.register_forward_hook(release)
        release()
    with torch.no_grad():
        found = numpy(outputs(model, TOKENS))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_outlives_the_call():
    model = adapted()
    vectors = model.trainable_variables
    groups = []
    original = together._Alike.factors

    def factors(group, dtype):
        groups.append(weakref.ref(group))
        return original(group, dtype)

    together._Alike.factors = factors
    gc.disable()
    try:
        y = outputs(model, TOKENS)
        assert groups
        assert not any(group() for group in groups)
        del y
    finally:
        gc.enable()
        together._Alike.factors = original
    assert all(vector.value.grad is None for vector in vectors)


def test_a_rematerialized_layer_computes_its_own():
    with keras.RematScope(mode="full"):
        model = models.bert_backbone(num_layers=2)
    model = adapted(model)
    _, gradients = step(model)
    plain = adapted(models.bert_backbone(num_layers=2))
    plain.set_weights(model.get_weights())
    check_near(gradients, step(plain)[1])


# PyTorch's compiler warns of what it does itself while it reads this code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_functions_that_the_compiler_gives_up():
    """It then runs them as they are, and tries each that they call."""
    import torch

    widths = (16, 16, 16, 32, 32, 8, 8, 8, 8)
    layers = [keras.layers.Dense(width) for width in widths]
    model = adapted(
        keras.Sequential([keras.Input((16,)), *layers]), method="ether+"
    )
    x = np.ones((8, 16), "float32")

    def loss_and_gradients():
        for variable in model.trainable_variables:
            variable.value.grad = None
        loss = (model(x, training=True) ** 2).sum()
        loss.backward()
        return loss, [v.value.grad for v in model.trainable_variables]

    expected, gradients = loss_and_gradients()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        compiled = torch.compile(loss_and_gradients, backend="eager")
        found = [compiled() for _ in range(2)]
    torch._dynamo.reset()
    for loss, ours in found:
        torch.testing.assert_close(loss, expected)
        check_near(ours, gradients)


def test_vectors_taken_away_before_factors_are_made():
    import torch

    sizes = [(8, 12), (12, 16), (16, 16), (16, 16)]
    layers = [keras.layers.Dense(f) for _, f in sizes]
    model = adapted(keras.Sequential([keras.Input((8,)), *layers]))
    x = np.ones((2, 8), "float32")
    expected = models.call(model, x)
    vector = layers[3].ether.input_u.value
    kept = vector.data

    def take_away(*_):
        vector.data = torch.zeros(0)

    def give_back(*_):
        vector.data = kept

    # The first layer's call finds all, the second's makes those of its shape.
    layers[0].register_forward_hook(take_away)
    layers[3].register_forward_pre_hook(give_back)
    with torch.no_grad():
        np.testing.assert_allclose(models.call(model, x), expected, atol=1e-5)


def test_a_layer_unlike_all_others_computes_its_own(monkeypatch):
    sizes = [(8, 12), (12, 16), (16, 20)]
    layers = [keras.layers.Dense(f) for _, f in sizes]
    model = adapted(keras.Sequential([keras.Input((8,)), *layers]))

    def refuse(*_):
        raise AssertionError("There is nothing to share.")

    monkeypatch.setattr(together.stacked, "of_all", refuse)
    assert norms_of(lambda: model(np.ones((2, 8), "float32"))) == 3


@pytest.fixture
def coupled():
    """A method whose blocks depend on each other: it can't be shared."""

    def factors(u):
        u = u / ops.sqrt(ops.sum(u * u))
        return u[:, None], -u[:, None]

    ether = methods.get("ether")
    yield methods.register(
        methods.Method(
            name="coupled",
            factors=factors,
            weights=("u",),
            start=ether.start,
            side="input",
            orthogonal=False,
            learning_rate=1e-2,
        )
    )
    del methods.METHODS["coupled"]


def test_blocks_that_depend_on_each_other_are_not_shared(coupled, monkeypatch):
    model = adapted(method="coupled")
    found = numpy(outputs(model, TOKENS))
    keras_ether.merge(model)
    np.testing.assert_allclose(found, numpy(outputs(model, TOKENS)), atol=1e-5)
    assert not methods.are_thin_and_apart(coupled)
    with pytest.raises(ValueError, match="depends on those beside it"):
        keras_ether.AdapterBank(adapted(method="coupled"), capacity=2)
