"""What PEFT makes of the folders over the exported base."""

import json
import os
import random

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.adapters import kinds
from keras_ether.conversion import probes
from keras_ether.surgery import verbs
from keras_ether.surgery.layer_tree import LayerTree
from tests import exported_models
from tests import tuned
from tests.exported_models import EXPORTED

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    # What `transformers`, PEFT and PyTorch warn of by themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]
QUICK = ("GPT2", "Llama3")


def adapt(task, method="ether", blocks=2, **kwargs):
    keras_ether.apply(
        task,
        method=method,
        rank_blocks=blocks,
        seed=0,
        **{"targets": "all-linear"} | kwargs,
    )
    tuned.move(tuned.vectors_of(task), seed=1)
    return task


def folders(entry, folder, **kwargs):
    """A base, its adapter and its merged model, exported; Keras's logits."""
    task = entry.task()
    task.export_to_transformers(str(folder / "base"))
    x = {key: value[:1] for key, value in entry.inputs().items()}
    base = exported_models.keras_logits(task, x)
    adapt(task, exclude=list(entry.loose) or None, **kwargs)
    active = exported_models.keras_logits(task, x)
    assert np.abs(active - base).max() > 1e-2
    keras_ether.export_to_peft(task, folder / "adapter", str(folder / "base"))
    np.testing.assert_array_equal(exported_models.keras_logits(task, x), active)
    keras_ether.merge(task)
    task.export_to_transformers(str(folder / "merged"))
    return x, active


def read(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    path = folder / "adapter_model.safetensors"
    return config, safetensors_numpy.load_file(path)


def modules_of(tensors):
    names = [name.partition(".lora_")[0] for name in tensors]
    return {name.removeprefix("base_model.model.") for name in names}


def loaded(base, folder, caplog):
    """PEFT's model. It says by a warning which keys it misses."""
    caplog.clear()
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    assert "missing" not in caplog.text.lower()
    _, tensors = read(folder)
    result = peft.set_peft_model_state_dict(
        model, {name: torch.tensor(value) for name, value in tensors.items()}
    )
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    return model


@pytest.mark.parametrize(
    ("name", "method", "blocks"),
    [
        pytest.param(
            name,
            method,
            blocks,
            marks=[]
            if name in QUICK and (method, blocks) == ("ether+", 2)
            else [pytest.mark.nightly],
        )
        for name in EXPORTED
        for method in ("ether", "ether+")
        for blocks in (1, 2, 4)
    ],
)
def test_peft_computes_as_keras(name, method, blocks, tmp_path, caplog):
    entry = EXPORTED[name]
    if name == "Qwen3_5" and blocks == 4:
        pytest.skip("its gates have four outputs")
    x, active = folders(entry, tmp_path, method=method, blocks=blocks)
    base = entry.load(tmp_path / "base")
    config, tensors = read(tmp_path / "adapter")
    found = modules_of(tensors)
    assert found == set(config["target_modules"])
    # A server passes over what is not in the base without a word.
    assert found <= {module for module, _ in base.named_modules()}
    model = loaded(base, tmp_path / "adapter", caplog)
    logits = exported_models.torch_logits(model, x)
    np.testing.assert_allclose(logits, active, atol=1e-4)

    expected = entry.load(tmp_path / "merged")
    prompt = {"inputs": torch.tensor(x["token_ids"][:, :3], dtype=torch.long)}
    prompt["attention_mask"] = torch.ones_like(prompt["inputs"])
    options = {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None}
    np.testing.assert_array_equal(
        model.generate(**prompt, **options),
        expected.generate(**prompt, **options),
    )
    merged = model.merge_and_unload()
    logits = exported_models.torch_logits(merged, x)
    np.testing.assert_allclose(logits, active, atol=1e-4)
    # Of the parts that text does not pass through as well.
    weights = expected.state_dict()
    for module in found:
        torch.testing.assert_close(
            merged.get_submodule(module).weight,
            weights[f"{module}.weight"],
            atol=1e-5,
            rtol=1e-4,
            check_stride=False,
        )


@pytest.mark.once
def test_every_exporter_has_an_entry():
    """Asked of KerasHub: its own refusal says which it lacks."""
    names = {entry.name for entry in EXPORTED.values()}
    for name in dir(keras_hub.models):
        if not name.endswith("CausalLM") or name == "CausalLM":
            continue
        backbone = getattr(keras_hub.models, name).backbone_cls
        # A class may have more names than one.
        if backbone.__name__.removesuffix("Backbone") in names:
            continue
        # Enough of one to be told that there is no exporter for it.
        empty = object.__new__(type(backbone.__name__, (), {}))
        with pytest.raises(ValueError, match="not implemented for"):
            keras_hub.models.Backbone.export_to_transformers(empty, "/dev/null")


@pytest.mark.once
def test_what_the_folder_says(tmp_path):
    task = adapt(EXPORTED["Llama3"].task(), blocks=2)
    keras_ether.export_to_peft(task, tmp_path / "a", "someone/llama")
    assert sorted(os.listdir(tmp_path)) == ["a"]
    assert sorted(os.listdir(tmp_path / "a")) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config, tensors = read(tmp_path / "a")
    assert config["base_model_name_or_path"] == "someone/llama"
    assert config["r"] == config["lora_alpha"] == 8
    assert not config["fan_in_fan_out"]
    peft.LoraConfig.from_pretrained(tmp_path / "a")
    for name, value in tensors.items():
        rank_axis = 0 if "lora_A" in name else 1
        zeros = np.take(value, range(2, 8), axis=rank_axis)
        assert value.shape[rank_axis] == 8
        assert not zeros.any()
    card = (tmp_path / "a" / "README.md").read_text()
    head = card.split("---\n")[1].splitlines()
    assert "base_model: someone/llama" in head
    assert "library_name: peft" in head
    assert "AutoModelForCausalLM" in card
    count = keras_ether.summary(task, print_fn=str).trainable
    assert f"| trained parameters | {count} |" in card


@pytest.mark.once
def test_beside_each_other_in_one_tensor(tmp_path):
    """GPT-2's query, key and value, of which two are adapted."""
    task = EXPORTED["GPT2"].task()
    adapt(task, "ether+", 2, targets=["query", "value"])
    keras_ether.export_to_peft(task, tmp_path / "a")
    config, tensors = read(tmp_path / "a")
    assert config["target_modules"] == ["transformer.h.0.attn.c_attn"]
    assert config["fan_in_fan_out"]
    assert config["r"] == 16
    a, b = (
        next(v for k, v in tensors.items() if part in k)
        for part in ("lora_A", "lora_B")
    )
    update = (b @ a).T
    width = update.shape[1] // 3
    assert not update[:, width : 2 * width].any()
    (q_a, q_b), (v_a, v_b) = keras_ether.lora_factors(task).values()
    np.testing.assert_allclose(update[:, :width], q_a @ q_b, atol=1e-6)
    np.testing.assert_allclose(update[:, 2 * width :], v_a @ v_b, atol=1e-6)


@pytest.mark.once
def test_what_lora_has_no_place_for_is_named(tmp_path):
    task = EXPORTED["Llama3"].task()
    adapt(task, targets="all", trainable=["sequence_output_layernorm"])
    with pytest.raises(ValueError, match=r"layernorm' train too.*skip"):
        keras_ether.export_to_peft(task, tmp_path / "a")
    skip = ["sequence_output_layernorm"]
    with pytest.raises(ValueError, match=r"token_embedding.*no embeddings"):
        keras_ether.export_to_peft(task, tmp_path / "a", skip=skip)
    assert not os.listdir(tmp_path)
    skip += ["token_embedding"]
    keras_ether.export_to_peft(task, tmp_path / "a", skip=skip)
    assert len(read(tmp_path / "a")[1]) == 14


@pytest.mark.once
def test_a_bias_that_trains_beside_its_kernel_is_named(tmp_path):
    task = adapt(EXPORTED["GPT2"].task(), targets=["query", "value"])
    layer = next(iter(verbs.adapted_layers(task).values()))
    layer.bias.trainable = True
    with pytest.raises(ValueError, match=r"query' train too"):
        keras_ether.export_to_peft(task, tmp_path / "a")
    assert not os.listdir(tmp_path)


@pytest.mark.once
def test_parameters_of_no_layer_are_named(tmp_path):
    task = adapt(EXPORTED["Gemma3 with images"].task(), blocks=2)
    with pytest.raises(ValueError, match=r"vision_input_projection.*skip"):
        keras_ether.export_to_peft(task, tmp_path / "a")
    assert not os.listdir(tmp_path)


@pytest.mark.once
def test_kernels_that_are_exported_in_part_are_named(tmp_path):
    gemma = exported_models.Exported(
        "Gemma", lambda: exported_models.WIDE | {"head_dim": 4}
    )
    task = adapt(gemma.task(), targets=["key"])
    with pytest.raises(ValueError, match=r"attention/key' 0 times as a whole"):
        keras_ether.export_to_peft(task, tmp_path / "a")


@pytest.mark.once
def test_another_base_is_an_error(tmp_path):
    task = EXPORTED["Llama3"].task()
    base = str(tmp_path / "base")
    EXPORTED["GPT2"].task().export_to_transformers(base)
    adapt(task)
    with pytest.raises(ValueError, match=r"no tensor 'model.layers.0.self_at"):
        keras_ether.export_to_peft(task, tmp_path / "a", base)
    assert os.listdir(tmp_path) == ["base"]


@pytest.mark.once
def test_models_without_an_exporter(tmp_path):
    for model in (tuned.adapted("mlp"), tuned.adapted("bert")):
        with pytest.raises(ValueError, match="has `export_to_transformers`"):
            keras_ether.export_to_peft(model, tmp_path / "a")
    bloom = exported_models.Exported(
        "Bloom", lambda: exported_models.DECODER | exported_models.HEADS
    )
    task = adapt(bloom.task())
    with pytest.raises(ValueError, match=r"can't export 'BloomCausalLM'"):
        keras_ether.export_to_peft(task, tmp_path / "a")
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        keras_ether.export_to_peft(EXPORTED["Llama3"].task(), tmp_path / "a")
    assert not os.listdir(tmp_path)


@pytest.mark.once
def test_a_rank_above_all(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_ether.conversion.peft_folder.RANKS", (1, 2))
    task = adapt(EXPORTED["Llama3"].task(), blocks=4)
    with pytest.raises(ValueError, match=r"has rank 4, but vLLM takes"):
        keras_ether.export_to_peft(task, tmp_path / "a")


# Widths as their authors chose them.
REAL = {
    "Gemma": {
        "num_query_heads": 8,
        "num_key_value_heads": 1,
        "hidden_dim": 2048,
        "intermediate_dim": 32_768,
        "head_dim": 256,
    },
    "Llama3": {
        "num_query_heads": 32,
        "num_key_value_heads": 8,
        "hidden_dim": 4096,
        "intermediate_dim": 14_336,
    },
    "Qwen": {
        "num_query_heads": 14,
        "num_key_value_heads": 2,
        "hidden_dim": 896,
        "intermediate_dim": 4864,
    },
    "GPT2": {"num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072},
}


@pytest.mark.once
@pytest.mark.parametrize("name", REAL)
def test_the_exporter_is_given_a_small_model(name):
    config = REAL[name] | {"num_layers": 12, "vocabulary_size": 50_000}
    narrow = probes.narrower(config)
    ratios = {
        config[key] / narrow[key] for key in config if key.endswith("_dim")
    }
    assert len(ratios) == 1
    backbone = getattr(keras_hub.models, f"{name}Backbone")
    assert backbone(**narrow).count_params() < 1e6


@pytest.mark.once
@pytest.mark.parametrize("name", EXPORTED)
def test_places_are_those_in_the_exported_model(name, tmp_path):
    """Each kernel, cut out of the file of the model itself."""
    entry = EXPORTED[name]
    task = entry.task()
    layers = {
        path: layer
        for path, layer in LayerTree(task).layers.items()
        if kinds.is_linear(layer) and layer.name not in entry.loose
    }
    (tmp_path / "twin").mkdir()
    places = probes.locations_of(task, layers, str(tmp_path / "twin"))
    task.export_to_transformers(str(tmp_path / "base"))
    file = tmp_path / "base" / "model.safetensors"
    tensors = safetensors_numpy.load_file(file)
    assert list(places) == list(layers)
    for path, layer in layers.items():
        place = places[path]
        kernel = kinds.view_of(layer).kernel_matrix(layer.kernel.value)
        kernel = ops.convert_to_numpy(kernel)
        kernel = kernel.T if place.is_transposed else kernel
        top, left = place.start
        height, width = kernel.shape
        tensor = tensors[place.tensor]
        assert tensor.shape == place.shape
        np.testing.assert_array_equal(
            tensor[top : top + height, left : left + width], kernel
        )


@pytest.mark.once
def test_a_part_in_16_bits_is_found(tmp_path):
    """A vision encoder has a dtype of its own in the backbone's config."""
    entry = EXPORTED["Gemma3 with images"]
    keras.config.set_dtype_policy("bfloat16")
    try:
        task = adapt(entry.task(), exclude=list(entry.loose))
    finally:
        keras.config.set_dtype_policy("float32")
    layers = verbs.adapted_layers(task)
    found = probes.locations_of(task, layers, str(tmp_path))
    assert list(found) == list(layers)


def test_exporting_leaves_no_trace(tmp_path):
    task = adapt(EXPORTED["Llama3"].task())
    before = [ops.convert_to_numpy(v) for v in task.variables]
    name = keras.layers.Dense(1).name
    state = random.getstate()
    keras_ether.export_to_peft(task, tmp_path / "a")
    assert random.getstate() == state
    count = int(name.rpartition("_")[2]) if "_" in name else 0
    assert keras.layers.Dense(1).name == f"dense_{count + 1}"
    for variable, value in zip(task.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


def vllm_objections(folder, base):
    """What vLLM's loader checks of a folder, written from its rules.

    Of `PEFTHelper`, `parse_fine_tuned_lora_name` and the check of unexpected
    modules in its sources; the list of module names is that of the base's
    linear layers. It passes over a module that the base does not have, which is
    an objection here.
    """
    config, tensors = read(folder)
    for field in ("r", "lora_alpha", "target_modules"):
        if field not in config:
            yield f"no {field}"
    if config.get("bias") != "none" or config.get("modules_to_save"):
        yield "bias or modules_to_save"
    if config.get("use_dora") or config.get("use_rslora"):
        yield "use_dora or use_rslora"
    if config["r"] not in (1, 8, 16, 32, 64, 128, 256, 320, 512):
        yield f"r={config['r']}"
    modules = dict(base.named_modules())
    for name, value in tensors.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        module = module.removeprefix("base_model.model.")
        if kind not in ("lora_A", "lora_B"):
            yield f"unsupported weight {name}"
        elif not isinstance(modules.get(module), torch.nn.Linear):
            yield f"{module} is no linear layer of the base"
        else:
            outputs, inputs = modules[module].weight.shape
            shapes = {
                "lora_A": (config["r"], inputs),
                "lora_B": (outputs, config["r"]),
            }
            if value.shape != shapes[kind]:
                yield f"{name} has shape {value.shape}"


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n == "Llama3" else [pytest.mark.nightly])
        for n in EXPORTED
        # It has no LoRA for GPT-2, whose layers are not linear ones either.
        if n != "GPT2"
    ],
)
def test_nothing_that_vllm_objects_to(name, tmp_path):
    entry = EXPORTED[name]
    task = entry.task()
    task.export_to_transformers(str(tmp_path / "base"))
    adapt(task, exclude=list(entry.loose) or None)
    keras_ether.export_to_peft(task, tmp_path / "adapter")
    base = entry.load(tmp_path / "base")
    assert not list(vllm_objections(tmp_path / "adapter", base))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {
        name.replace("layers", "blocks"): value
        for name, value in safetensors_numpy.load_file(path).items()
    }
    safetensors_numpy.save_file(tensors, path)
    assert any(
        "no linear layer" in objection
        for objection in vllm_objections(tmp_path / "adapter", base)
    )
