"""The life of an adapter on real pretrained models."""

import warnings

import keras
import keras_hub
import numpy as np
import pytest

import keras_ether
from keras_ether.callbacks import AdapterCheckpoint
from keras_ether.callbacks import resume
from tests import exported_models
from tests import exporting
from tests import models
from tests import real_models

# The first rate that the documents name.
RATE = 1e-3
EPOCHS = 5
LENGTH = 24
HEADS = ("logits", "predictions", "head", "pooled_dense")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    # What KerasHub, `transformers`, PEFT and PyTorch warn of by themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*The structure of `inputs`"),
    pytest.mark.filterwarnings("ignore:.*looks like it has unbuilt state"),
    # Of Whisper, whose tokens are read by a tied table.
    pytest.mark.filterwarnings("ignore:.*the last linear layer of model"),
    # Keras's, of its tables of integers, on PyTorch.
    pytest.mark.filterwarnings("ignore:(?s).*The use of `x.T` on tensors"),
    # A KerasHub task compiles itself, and the tuned one had another optimizer.
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optim"),
    # KerasHub does not close the file of a tokenizer.
    pytest.mark.filterwarnings("ignore:(?s).*tokenizer.model"),
]
# By default one model, where nothing is compiled.
NAMES = [
    pytest.param(name, marks=[pytest.mark.nightly] if entry.heavy else [])
    for name, entry in real_models.ENTRIES.items()
]
if keras.backend.backend() != "torch":
    pytestmark.append(pytest.mark.nightly)


def apply(real, model, **options):
    arguments = real.entry.arguments | {"seed": 0} | options
    return keras_ether.apply(model, **arguments)


@pytest.fixture(scope="module", params=NAMES)
def real(request):
    return real_models.Loaded(request.param)


class Tuned:
    """A model after a short fit, and what it predicted on the way."""

    def __init__(self, real, folder):
        self.model = real.base()
        self.base = real.call(self.model)
        apply(real, self.model)
        self.start = real.call(self.model)
        real.compile(self.model, RATE)
        self.losses = real.fit(self.model, EPOCHS)
        self.after = real.predict(self.model)
        self.file = folder / "tuned.ether.safetensors"
        keras_ether.save_adapter(self.model, self.file)


@pytest.fixture(scope="module")
def tuned(real, tmp_path_factory):
    return Tuned(real, tmp_path_factory.mktemp(real.name))


def test_training_starts_at_the_pretrained_model_and_learns(tuned):
    np.testing.assert_array_equal(tuned.start, tuned.base)
    assert tuned.losses[-1] < 0.9 * tuned.losses[0]
    assert np.abs(tuned.after - tuned.base).max() > 1e-2


def test_disabled_is_the_pretrained_model(real, tuned):
    with keras_ether.disabled(tuned.model):
        found = real.call(tuned.model)
    fresh = real.base()
    for name, layer in heads(tuned.model).items():
        heads(fresh)[name].set_weights(layer.get_weights())
    np.testing.assert_array_equal(found, real.call(fresh))
    np.testing.assert_array_equal(real.predict(tuned.model), tuned.after)


def heads(model):
    """The new layers on top of a pretrained model."""
    return {layer.name: layer for layer in model.layers if layer.name in HEADS}


def test_a_file_is_loaded_merged_and_removed(real, tuned):
    model = real.base()
    weights = models.values(model.weights)
    keras_ether.load_adapter(model, tuned.file)
    np.testing.assert_array_equal(real.predict(model), tuned.after)
    keras_ether.remove(model, reset_head=bool(heads(model)))
    for now, then in zip(models.values(model.weights), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    keras_ether.load_adapter(model, tuned.file)
    keras_ether.merge(model)
    close(real.predict(model), tuned.after)


def close(found, expected, tolerance=1e-4):
    """Equal but for rounding, as large as the numbers are."""
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=tolerance * scale)


def test_training_goes_on_as_if_it_had_not_stopped(real, tmp_path):
    path = tmp_path / "latest.ether.safetensors"
    callbacks = [AdapterCheckpoint(path)]
    straight = real.compile(apply(real, real.base()), RATE)
    expected = real.fit(straight, 2)
    stopped = real.compile(apply(real, real.base()), RATE)
    real.fit(stopped, 1, callbacks=callbacks)
    again = real.compile(real.base(), RATE)
    position = resume(again, path)
    losses = real.fit(
        again, 2, initial_epoch=position.epoch, callbacks=callbacks
    )
    assert losses == expected[1:]
    np.testing.assert_array_equal(real.predict(again), real.predict(straight))


def test_a_keras_file_holds_a_plain_model(real, tuned, tmp_path):
    if not real.entry.saved:
        pytest.skip("Keras can't load the plain model's file either")
    tuned.model.save(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    close(real.predict(plain), tuned.after)
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        keras_ether.merge(plain)


def test_a_preset_holds_a_plain_model(real, tuned, tmp_path):
    if not isinstance(tuned.model, keras_hub.models.Task):
        pytest.skip("no task of KerasHub")
    if not real.entry.saved:
        pytest.skip("KerasHub can't load the plain model's preset either")
    tuned.model.save_to_preset(tmp_path / "preset")
    plain = type(tuned.model).from_preset(
        str(tmp_path / "preset"), preprocessor=None
    )
    close(real.predict(plain), tuned.after)


@pytest.mark.nightly
@pytest.mark.parametrize("format_", exporting.FILES)
def test_an_export_predicts_the_same(real, tuned, tmp_path, format_):
    backend = keras.backend.backend()
    needs = exporting.NEEDS.get((format_, backend))
    if format_ not in real.entry.exports or needs is None:
        pytest.skip("not tried")
    if gap := exporting.GAPS.get((real.name, format_, backend)):
        pytest.skip(gap)
    for package in needs:
        pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = exporting.write(tuned.model, real.x, format_, tmp_path)
    close(exporting.read(path, format_, real.x), tuned.after)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantized_base_is_adapted(real, mode, tmp_path):
    model = real.base()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A head of integers could not train.
        model.quantize(mode, filters=lambda layer: layer.name not in HEADS)
    base = real.call(model)
    apply(real, model)
    np.testing.assert_array_equal(real.call(model), base)
    # Keras rounds the inputs of int8 layers, too: deep models diverge at this
    # rate, and at lower ones they hardly learn.
    is_rounded = mode == "int8" and real.name in real_models.ROUNDED
    real.compile(model, RATE / 10 if is_rounded else RATE)
    losses = real.fit(model, EPOCHS)
    assert losses[-1] < (1.02 if is_rounded else 0.95) * losses[0]
    after = real.predict(model)
    path = tmp_path / "quantized.ether.safetensors"
    keras_ether.save_adapter(model, path)
    keras_ether.remove(model, reset_head=bool(heads(model)))
    np.testing.assert_array_equal(real.call(model), base)
    keras_ether.load_adapter(model, path)
    np.testing.assert_array_equal(real.predict(model), after)


@pytest.mark.nightly
def test_a_bank_answers_as_each_adapter_alone(real, tuned, tmp_path):
    """Three adapters and the base in one batch."""
    files, expected = [tuned.file], [tuned.after]
    for seed in (1, 2):
        model = apply(real, real.base(), seed=seed)
        real.compile(model, RATE)
        real.fit(model, 1)
        files.append(tmp_path / f"{seed}.ether.safetensors")
        keras_ether.save_adapter(model, files[-1])
        expected.append(real.predict(model))
    with keras_ether.disabled(model):
        expected.append(real.predict(model))
    bank = keras_ether.AdapterBank(model, capacity=3)
    names = ["0", "1", "2", None]
    for name, file in zip(names, files, strict=False):
        bank.add(name, file)
    rows = [i % len(real.y) for i in range(4)]
    batch = take(real.x, rows)
    if not isinstance(batch, dict):
        batch = {"inputs": batch}
    batch["adapter_id"] = bank.ids(names)
    found = np.array(bank.model.predict(batch, verbose=0))
    for place, (row, alone) in enumerate(zip(rows, expected, strict=True)):
        close(found[place], alone[row], 1e-3)


def take(x, rows):
    return (
        {name: value[rows] for name, value in x.items()}
        if isinstance(x, dict)
        else x[rows]
    )


@pytest.fixture
def language_model(real):
    if real.name not in real_models.LANGUAGE_MODELS:
        pytest.skip("no language model")
    return real


@pytest.mark.nightly
def test_a_folder_for_peft_answers_alike(language_model, tuned, tmp_path):
    """Logits and greedy answers, over the base that KerasHub exports."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = language_model.x["token_ids"][:1, :8]
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    language_model.base().export_to_transformers(base)
    keras_ether.export_to_peft(tuned.model, adapter, base)
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32
    )
    peer = peft.PeftModel.from_pretrained(peer, adapter).eval()
    for step in range(6):
        x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        expected = exported_models.keras_logits(tuned.model, x)
        found = exported_models.torch_logits(peer, x)
        if step == 0:
            close(found, expected, 1e-3)
        token = expected[0, -1].argmax()
        assert found[0, -1].argmax() == token
        ids = np.concatenate([ids, [[token]]], axis=1).astype("int32")


@pytest.mark.nightly
def test_a_bank_generates_as_each_adapter_alone(
    language_model, tuned, tmp_path
):
    real = language_model
    files, expected = [tuned.file], [generated(real, tuned.model)]
    for seed in (1, 2):
        model = real.compile(apply(real, real.base(), seed=seed), RATE)
        real.fit(model, 1)
        files.append(tmp_path / f"{seed}.ether.safetensors")
        keras_ether.save_adapter(model, files[-1])
        expected.append(generated(real, model))
    with keras_ether.disabled(model):
        expected.append(generated(real, model))
    model.compile(sampler="greedy")
    bank = keras_ether.AdapterBank(model, capacity=3)
    names = ["0", "1", "2"]
    for name, file in zip(names, files, strict=True):
        bank.add(name, file)
    found = bank.generate(
        list(real_models.SPEAKERS),
        adapters=[*names, None],
        max_length=LENGTH,
        stop_token_ids=None,
    )
    assert found == [alone[row] for row, alone in enumerate(expected)]


def generated(real, model):
    """Greedy answers, token by token."""
    # Without one, KerasHub can't return what Gemma adds to the ids.
    model.preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(
        real.folder
    )
    model.compile(sampler="greedy")
    return model.generate(
        list(real_models.SPEAKERS), max_length=LENGTH, stop_token_ids=None
    )
