"""Fine-tuning of every kind of KerasHub task."""

import numpy as np
import pytest

import keras_ether
from tests.hub import diffusion
from tests.hub import tasks
from tests.hub.entry import randomize
from tests.hub.probe import Probe
from tests.hub.probe import assert_moves
from tests.hub.probe import distance
from tests.hub.probe import floats
from tests.hub.probe import vectors_of

pytestmark = [
    # Tasks compile themselves, with rates for full fine-tuning.
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    # What KerasHub's own code warns of.
    pytest.mark.filterwarnings("ignore:.*looks like it has unbuilt state"),
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64"),
]


def nightly(function, *marks):
    return pytest.param(function, marks=[pytest.mark.nightly, *marks])


@pytest.mark.parametrize(
    "make",
    [
        tasks.text_classifier,
        nightly(tasks.masked_lm),
        nightly(tasks.text_embedder),
        tasks.causal_lm,
        nightly(tasks.seq_2_seq_lm),
        nightly(tasks.audio_to_text),
        tasks.image_classifier,
        nightly(tasks.convolutional_image_classifier),
        nightly(tasks.image_segmenter),
        nightly(tasks.object_detector),
        nightly(tasks.convolutional_object_detector),
    ],
    ids=lambda make: make.__name__,
)
def test_fit_moves_vectors_and_head(make):
    task, x, y = make()
    weights = None
    if make in (tasks.causal_lm, tasks.seq_2_seq_lm):
        # Once, since each call traces the merging of bytes for seconds.
        x, y, weights = task.preprocessor(x)
        task.preprocessor = None
    # Large weights would saturate its classes, which then have no gradient.
    if make is not tasks.convolutional_object_detector:
        randomize(task)
    # A random detector finds no box, with whatever weights.
    compares = "detector" not in make.__name__
    base = predictions(task, x)
    adapt(task)
    if compares:
        assert distance(predictions(task, x), base) > 1e-3
    inside = {id(v) for v in task.backbone.weights}
    head = {id(v) for v in task.trainable_weights} - inside
    assert_moves(
        lambda: task.fit(x, y, sample_weight=weights, shuffle=False, verbose=0),
        task,
        vectors_of(task) | head,
    )
    active = predictions(task, x)
    keras_ether.merge(task)
    if compares:
        assert distance(predictions(task, x), active) < 1e-4


def adapt(task):
    # One block: the first convolution of an image model has three channels.
    keras_ether.apply(task, rank_blocks=1, seed=0, method="ether")


def predictions(task, x):
    return [np.array(y) for y in floats(task.predict(x, verbose=0))]


@pytest.mark.parametrize(
    ("make", "prompts"),
    [
        (tasks.causal_lm, [" airplane", " airport at"]),
        pytest.param(
            tasks.seq_2_seq_lm,
            [" airplane at airport", " airport"],
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_generate_is_the_same_when_merged(make, prompts):
    task, _, _ = make()
    randomize(task)
    base = task.generate(prompts)
    # All: the tied output head decides on the token where weights are random.
    keras_ether.apply(
        task, targets="all", rank_blocks=1, seed=0, method="ether"
    )
    active = task.generate(prompts)
    assert active != base
    keras_ether.merge(task)
    assert task.generate(prompts) == active


@pytest.mark.nightly
def test_generate_from_audio_is_the_same_when_merged():
    task, x, _ = tasks.audio_to_text()
    randomize(task)

    def generate():
        generated = task.generate(x, stop_token_ids=None)
        return np.array(generated["decoder_token_ids"]).tolist()

    base = generate()
    adapt(task)
    active = generate()
    assert active != base
    keras_ether.merge(task)
    assert generate() == active


@pytest.mark.nightly
def test_text_to_image():
    task = randomize(tasks.text_to_image())

    def generate():
        return [task.generate("plane", num_steps=2, seed=0)]

    base = generate()
    adapt(task)
    assert distance(generate(), base) > 1e-3
    # There is no `fit`: a step that denoises, by the backbone.
    probe = Probe(task.backbone, eager=True)
    x = diffusion.stable_diffusion_3_inputs()
    assert_moves(lambda: probe.train_on_batch(x), task, vectors_of(task))
    active = generate()
    keras_ether.merge(task)
    assert distance(generate(), active) < 1e-4
