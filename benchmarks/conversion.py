"""LoRA folders of a real language model: rank, differences, sizes, answers.

    KERAS_BACKEND=torch python -m benchmarks.conversion table
    KERAS_BACKEND=torch python -m benchmarks.conversion architectures
    KERAS_BACKEND=torch python -m benchmarks.conversion answers

With `pip install gguf peft`. `table` gives the
vectors of every adapter random values, far from any that training gives, and
compares PEFT's logits over the exported base with Keras's. `architectures` does
so with the tests' tiny random model of each architecture that KerasHub exports.
`answers` trains both methods on a few dialogues and asks each of Keras, Keras
merged, PEFT, and `transformers` with the exported merged model the same
questions, greedily; 5 minutes a method on one core.
"""

import argparse
import gc
import os
import tempfile
import time
import warnings

import keras
import numpy as np
from keras import ops

import keras_ether
from benchmarks import report
from examples.real_models import smollm2_135m_instruct as smollm2
from keras_ether.surgery import verbs

CONFIGURATIONS = [
    ("ether", 1),
    ("ether", 4),
    ("ether", 32),
    ("ether+", 1),
    ("ether+", 4),
    ("ether+", 32),
]
QUESTIONS = (
    "What is the capital of France?",
    "Name three colors.",
    "Why is the sky blue?",
)
# A way to speak that the model did not have.
DIALOGUES = (
    ("What is the capital of Italy?", "Arr, matey! It be Rome."),
    ("Name two fruits.", "Arr, matey! Apples and pears they be."),
    ("Why is grass green?", "Arr, matey! Chlorophyll it be."),
    ("What is the capital of Japan?", "Arr, matey! It be Tokyo."),
    ("How many legs has a spider?", "Arr, matey! Eight they be."),
    ("What is water made of?", "Arr, matey! Hydrogen and oxygen it be."),
    ("Who wrote Hamlet?", "Arr, matey! Shakespeare it be."),
    ("Name a planet.", "Arr, matey! Saturn it be."),
)


def ids_of(task, text):
    tokens = task.preprocessor.tokenizer(text)
    return np.asarray(ops.convert_to_numpy(tokens), "int32")[None]


def keras_logits(task, ids, **others):
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)} | others
    return np.array(ops.convert_to_numpy(task(x, training=False)))


def torch_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.long)).logits.numpy()


def from_transformers(folder):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()


def with_adapter(base, folder):
    import peft

    return peft.PeftModel.from_pretrained(base, folder).eval()


def random_vectors(task):
    rng = np.random.default_rng(0)
    for layer in verbs.adapted_layers(task).values():
        for vector in layer.ether.vectors.values():
            vector.assign(rng.normal(size=vector.shape))


def table(folder):
    """One row for each configuration."""
    base = os.path.join(folder, "base")
    task = smollm2.causal_lm()
    ids = ids_of(task, smollm2.CHAT.format(QUESTIONS[0]))
    start = time.perf_counter()
    task.export_to_transformers(base)
    seconds = time.perf_counter() - start
    difference = np.abs(
        torch_logits(from_transformers(base), ids) - keras_logits(task, ids)
    )
    print(f"The base: exported in {seconds:.1f} s, {difference.max():.1e}")
    rows = []
    for method, blocks in CONFIGURATIONS:
        rows.append(row(task, ids, base, folder, method, blocks))
        print(rows[-1], flush=True)
    print(report.markdown(rows))


def row(task, ids, base, folder, method, blocks, entry=None):
    """What is measured of one configuration; the task is then as before.

    Args:
        task: A KerasHub task, which was exported to the folder `base`.
        ids: Array of token ids.
        base: String, path of the exported base.
        folder: String, path for what is written.
        method: String, method of the adapters.
        blocks: Integer, their blocks.
        entry: What the tests know of a tiny model, or `None` for SmolLM2.
    """
    keras_ether.apply(
        task,
        method=method,
        rank_blocks=blocks,
        targets="all-linear",
        exclude=list(entry.loose) or None if entry else None,
        seed=0,
    )
    random_vectors(task)
    others = entry.inputs() if entry else {}
    others = {k: v[:1] for k, v in others.items() if k != "token_ids"}
    logits = keras_logits(task, ids, **others)
    name = os.path.join(folder, "m.ether.safetensors")
    keras_ether.save_adapter(task, name)
    adapter = os.path.join(folder, "adapter")
    start = time.perf_counter()
    keras_ether.export_to_peft(task, adapter, base)
    seconds = time.perf_counter() - start
    factors = keras_ether.lora_factors(task)
    ranks = {a.shape[1] for a, _ in factors.values()}
    keras_ether.remove(task)
    load = entry.load if entry else from_transformers
    model = with_adapter(load(base), adapter)
    found = torch_logits(model, ids)
    merged = torch_logits(model.merge_and_unload(), ids)
    weights = os.path.join(adapter, "adapter_model.safetensors")
    measured = {
        "method": method,
        "blocks": blocks,
        "rank": max(ranks),
        "with zeros": model.peft_config["default"].r,
        "logits, PEFT": f"{np.abs(found - logits).max():.1e}",
        "merged by PEFT": f"{np.abs(merged - logits).max():.1e}",
        "largest logit": f"{np.abs(logits).max():.0f}",
        "seconds": f"{seconds:.1f}",
        "`.ether.safetensors`": size(name),
        "folder": size(weights),
    }
    del model
    gc.collect()
    return measured


def size(path):
    count = os.path.getsize(path)
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} KB"


def architectures(folder):
    """One row for each architecture and method, tiny random models."""
    from tests import exported_models

    rows = []
    for name, entry in exported_models.EXPORTED.items():
        for method in ("ether", "ether+"):
            # Qwen 3.5 has kernels with four outputs.
            blocks = 2 if name == "Qwen3_5" else 4
            place = os.path.join(folder, f"{name}-{method}")
            os.makedirs(place)
            base = os.path.join(place, "base")
            task = entry.task()
            task.export_to_transformers(base)
            ids = entry.inputs()["token_ids"][:1]
            measured = row(task, ids, base, place, method, blocks, entry)
            rows.append({"architecture": name} | measured)
            print(rows[-1], flush=True)
    print(report.markdown(rows))


def train(task, steps):
    texts = [
        f"{smollm2.CHAT.format(question)}{answer}<|im_end|>"
        for question, answer in DIALOGUES
    ]
    rate = {"ether": 1e-2, "ether+": 2e-3}
    layer = next(iter(verbs.adapted_layers(task).values()))
    task.compile(
        optimizer=keras.optimizers.Adam(rate[layer.ether.config.method]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )
    task.fit(texts * steps, batch_size=len(texts), verbose=2)


def answer_of_keras(task, question, length):
    # All in one piece, so that the answer starts at the same place.
    ids = ids_of(task, smollm2.CHAT.format(question))
    for _ in range(length):
        token = keras_logits(task, ids)[0, -1].argmax()
        if token == 2:
            break
        ids = np.concatenate([ids, [[token]]], axis=1).astype("int32")
    return ids[0].tolist()


def answer_of_torch(model, ids, length):
    import torch

    ids = torch.tensor(ids, dtype=torch.long)
    found = model.generate(
        inputs=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=2,
        pad_token_id=2,
    )[0].tolist()
    return found[:-1] if found[-1] == 2 else found


def answers(folder, methods, steps, length):
    """Greedy answers of four ways to compute the same model."""
    for method in methods:
        task = smollm2.causal_lm(sequence_length=64)
        base = os.path.join(folder, "base")
        task.export_to_transformers(base)
        keras_ether.apply(
            task, method=method, targets="all-linear", rank_blocks=4, seed=0
        )
        train(task, steps)
        adapter = os.path.join(folder, f"adapter-{method}")
        keras_ether.export_to_peft(task, adapter, base)
        found = {"Keras, active": [], "Keras, merged": []}
        prompts = [ids_of(task, smollm2.CHAT.format(q)) for q in QUESTIONS]
        for name in found:
            if name == "Keras, merged":
                keras_ether.merge(task)
            found[name] = [answer_of_keras(task, q, length) for q in QUESTIONS]
        merged = os.path.join(folder, "merged")
        task.export_to_transformers(merged)
        for name, model in (
            ("base", from_transformers(base)),
            ("PEFT", with_adapter(from_transformers(base), adapter)),
            ("transformers, merged", from_transformers(merged)),
        ):
            found[name] = [answer_of_torch(model, p, length) for p in prompts]
        same = [found[n] for n in found if n != "base"]
        equal = all(one == same[0] for one in same)
        print(f"\n{method}: the four answer alike: {equal}")
        for place, question in enumerate(QUESTIONS):
            print(f"\n{question}")
            for name, ids in found.items():
                new = ids[place][prompts[place].shape[1] :]
                text = task.preprocessor.tokenizer.detokenize(new)
                print(f"  {name:22} {str(text)!r}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["table", "architectures", "answers"])
    parser.add_argument("--methods", nargs="*", default=["ether", "ether+"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=16)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "table":
            table(folder)
        elif arguments.what == "architectures":
            architectures(folder)
        else:
            answers(
                folder, arguments.methods, arguments.steps, arguments.length
            )


if __name__ == "__main__":
    main()
