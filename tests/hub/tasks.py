"""A tiny random task of every kind that KerasHub has, with data for it."""

import keras_hub
import numpy as np
from keras_hub import models

from tests.hub import dense_vision
from tests.hub import diffusion
from tests.hub import seq2seq
from tests.hub import vision
from tests.hub.entry import ENCODER
from tests.hub.entry import POSITIONS
from tests.hub.entry import images
from tests.hub.entry import token_ids

WORDS = ["the", "quick", "brown", "fox", "."]
SENTENCES = ["the quick brown fox.", "the slow brown fox."]
LABELS = np.array([1, 0])
MERGES = [
    *("Ġ a", "Ġ t", "Ġ i", "Ġ b", "a i", "p l", "n e", "Ġa t", "p o", "r t"),
    *("Ġt h", "ai r", "pl a", "po rt", "Ġai r", "Ġa i", "pla ne"),
]


def bert(kind, **kwargs):
    """A BERT task with a preprocessor over a vocabulary of ten words."""
    tokenizer = models.BertTokenizer(
        vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    )
    preprocessor = getattr(models, f"Bert{kind}Preprocessor")
    masking = {}
    if kind == "MaskedLM":
        # All words, so that there is something to learn from.
        masking = {"mask_selection_rate": 1.0, "mask_selection_length": 6}
    return getattr(models, f"Bert{kind}")(
        backbone=models.BertBackbone(**ENCODER, **POSITIONS),
        preprocessor=preprocessor(tokenizer, sequence_length=6, **masking),
        **kwargs,
    )


def text_classifier():
    return bert("TextClassifier", num_classes=2), SENTENCES, LABELS


def masked_lm():
    return bert("MaskedLM"), SENTENCES, None


def text_embedder():
    task = bert("TextEmbedder")
    task.compile("adam", "mse")
    return task, SENTENCES, np.ones((2, 8))


def byte_pairs(*special, merges=MERGES):
    """Vocabulary and merges of a tokenizer of airplanes and airports."""
    tokens = {part for merge in merges for part in merge.split(" ")}
    tokens |= {merge.replace(" ", "") for merge in merges} | set(special)
    vocabulary = {token: i for i, token in enumerate(sorted(tokens))}
    return {"vocabulary": vocabulary, "merges": merges}


def causal_lm():
    tokenizer = models.GPT2Tokenizer(**byte_pairs("<|endoftext|>", "!"))
    task = models.GPT2CausalLM(
        backbone=models.GPT2Backbone(
            **ENCODER
            | {
                "vocabulary_size": tokenizer.vocabulary_size(),
                "max_sequence_length": 10,
            }
        ),
        preprocessor=models.GPT2CausalLMPreprocessor(
            tokenizer, sequence_length=10
        ),
    )
    task.compile(sampler="greedy")
    return task, [" airplane at airport", " airport"], None


def seq_2_seq_lm():
    special = ["<s>", "<pad>", "</s>", "<mask>"]
    tokenizer = models.BartTokenizer(**byte_pairs(*special))
    task = models.BartSeq2SeqLM(
        backbone=models.BartBackbone(
            **ENCODER
            | {
                "vocabulary_size": tokenizer.vocabulary_size(),
                "max_sequence_length": 10,
            }
        ),
        preprocessor=models.BartSeq2SeqLMPreprocessor(
            tokenizer, encoder_sequence_length=8, decoder_sequence_length=10
        ),
    )
    task.compile(sampler="greedy")
    x = {
        "encoder_text": [" airplane at airport", " airport"],
        "decoder_text": [" airplane", " airport at"],
    }
    return task, x, None


def audio_to_text():
    """Without a preprocessor: its tokenizer needs a SentencePiece file."""
    task = models.MoonshineAudioToText(
        backbone=models.MoonshineBackbone(**seq2seq.MOONSHINE)
    )
    task.compile(sampler="greedy")
    return task, seq2seq.waveform_and_tokens(), token_ids(seed=2)


def image_classifier():
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(16, 16), scale=1 / 255.0
    )
    task = models.ViTImageClassifier(
        backbone=models.ViTBackbone(
            **vision.TRANSFORMER, patch_size=8, mlp_dim=16
        ),
        num_classes=2,
        preprocessor=models.ViTImageClassifierPreprocessor(converter),
    )
    return task, 255 * images(20), LABELS


def convolutional_image_classifier():
    task = models.ResNetImageClassifier(
        backbone=vision.resnet(64, 8), num_classes=2
    )
    return task, images(32), LABELS


def image_segmenter():
    task = models.SegFormerImageSegmenter(
        backbone=models.SegFormerBackbone(
            image_encoder=vision.mit(), projection_filters=8
        ),
        num_classes=4,
        preprocessor=models.SegFormerImageSegmenterPreprocessor(),
    )
    classes = np.arange(2 * 32 * 32).reshape(2, 32, 32) % 4
    return task, images(32), np.eye(4)[classes]


def boxes(start=10.0, end=20.0):
    return {
        "boxes": np.tile([[[start, start, end, end]]], (2, 1, 1)),
        "labels": np.array([[0], [1]]),
    }


def object_detector():
    converter = keras_hub.layers.DFineImageConverter(
        bounding_box_format="yxyx", image_size=(32, 32)
    )
    task = models.DFineObjectDetector(
        backbone=models.DFineBackbone(**dense_vision.d_fine()),
        num_classes=4,
        bounding_box_format="yxyx",
        preprocessor=models.DFineObjectDetectorPreprocessor(converter),
    )
    return task, 255 * images(32), boxes()


def convolutional_object_detector():
    converter = keras_hub.layers.RetinaNetImageConverter(
        bounding_box_format="yxyx", scale=1 / 255.0, image_size=(64, 64)
    )
    task = models.RetinaNetObjectDetector(
        backbone=models.RetinaNetBackbone(**dense_vision.retina_net()),
        num_classes=4,
        bounding_box_format="yxyx",
        preprocessor=models.RetinaNetObjectDetectorPreprocessor(converter),
    )
    # As large as the smallest anchor. If none matches, the loss is 0.
    return task, 255 * images(64), boxes(8.0, 40.0)


def text_to_image():
    """StableDiffusion3, which KerasHub gives no `fit`."""
    merges = [
        *("a i", "p l", "n e</w>", "p o", "r t</w>", "ai r", "pl a"),
        *("po rt</w>", "pla ne</w>"),
    ]
    words = byte_pairs("<|endoftext|>", "<|startoftext|>", merges=merges)
    clip_l, clip_g = (
        models.CLIPPreprocessor(
            models.CLIPTokenizer(**words, pad_with_end_token=pad)
        )
        for pad in (True, False)
    )
    return models.StableDiffusion3TextToImage(
        backbone=models.StableDiffusion3Backbone(
            **diffusion.stable_diffusion_3()
        ),
        preprocessor=models.StableDiffusion3TextToImagePreprocessor(
            clip_l, clip_g
        ),
    )
