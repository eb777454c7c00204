"""One run of `language_peers`, in a process of its own."""

import importlib
import json
import os
import sys
import time

import keras
import keras_hub
import numpy as np
import peft
import torch
import transformers

import keras_ether
from benchmarks import peft_models
from benchmarks.language_peers import BATCH
from benchmarks.language_peers import LENGTH
from benchmarks.language_peers import OURS
from examples.language_models import masked
from examples.measuring import Growth
from examples.real_models import film_reviews

PARTS = {"train": 96, "valid": 32, "test": 64}


def run(model, method, rate, steps, folder):
    """Trains, saves and loads once; returns what was measured."""
    preset = importlib.import_module(f"examples.real_models.{model}").preset()
    data = tokens(preset)
    framework = Ours if method == OURS else Peers
    task = framework(preset, method, float(rate))
    before = loss_of(task, data["test"])
    growth, times = Growth(), []
    order = np.random.default_rng(0).permutation(PARTS["train"])
    for step in range(int(steps)):
        rows = np.take(
            order, range(step * BATCH, (step + 1) * BATCH), mode="wrap"
        )
        start = time.process_time()
        task.step(*(array[rows] for array in data["train"]))
        times.append(time.process_time() - start)
    grown = growth.stop()
    path = os.path.join(folder, "adapter")
    measured = {
        "model": model,
        "method": method,
        "rate": float(rate),
        "parameters": task.parameters(),
        "before": before,
        "valid": loss_of(task, data["valid"]),
        "test": loss_of(task, data["test"]),
        "step": float(np.median(times)),
        "bytes": grown,
        "file": task.save(path),
    }
    prompt = data["test"][0][:1, :8]
    del task
    start = time.process_time()
    loaded = framework.load(preset, path)
    measured["load"] = time.process_time() - start
    start = time.process_time()
    loaded.first_token(prompt)
    measured["first"] = time.process_time() - start
    return measured


def tokens(preset):
    """Token ids, next tokens and weights of each part."""
    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(
        preset, sequence_length=LENGTH
    )
    texts = list(film_reviews.load()["text"][: sum(PARTS.values())])
    # Gemma's takes no text alone.
    x, targets, weights = masked(preprocessor, [""] * len(texts), texts)
    arrays = [x["token_ids"], targets, weights]
    stops = np.cumsum(list(PARTS.values()))[:-1]
    pieces = zip(*(np.split(array, stops) for array in arrays), strict=True)
    return dict(zip(PARTS, pieces, strict=True))


def loss_of(task, part):
    """Mean loss of a token, in nats."""
    total = 0.0
    for start in range(0, len(part[0]), 8):
        total += task.loss(*(array[start : start + 8] for array in part))
    return total / float(part[2].sum())


class Ours:
    """KerasHub's model, with the default of `keras_ether.apply`."""

    def __init__(self, preset, method, rate):
        self.task = keras_hub.models.CausalLM.from_preset(
            preset, preprocessor=None
        )
        if method:
            keras_ether.apply(self.task, seed=0)
        self.task.compile(
            keras.optimizers.Adam(rate or 1e-3),
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            ),
            weighted_metrics=[],
            sampler="greedy",
        )

    def step(self, *batch):
        self.task.train_on_batch(*inputs(*batch))

    def loss(self, *batch):
        mean = self.task.test_on_batch(*inputs(*batch))
        return float(np.asarray(mean).reshape(-1)[0]) * float(batch[2].sum())

    def parameters(self):
        return sum(int(np.prod(v.shape)) for v in self.task.trainable_variables)

    def save(self, path):
        keras_ether.save_adapter(self.task, f"{path}.safetensors")
        return os.path.getsize(f"{path}.safetensors")

    @classmethod
    def load(cls, preset, path):
        loaded = cls(preset, None, None)
        keras_ether.load_adapter(loaded.task, f"{path}.safetensors")
        return loaded

    def first_token(self, prompt):
        length = prompt.shape[1]
        padded = np.pad(prompt, ((0, 0), (0, 1)))
        mask = (np.arange(length + 1) < length)[None].astype("int32")
        x = {"token_ids": padded, "padding_mask": mask}
        # `generate` itself can't return what Gemma adds to the ids.
        return self.task.make_generate_function()(x, stop_token_ids=None)


def inputs(ids, targets, weights):
    """A batch as a Keras model takes it."""
    mask = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1] > 0
    x = {"token_ids": ids, "padding_mask": mask.astype("int32")}
    return x, targets, weights.astype("float32")


class Peers:
    """PEFT's adapters on the same model of `transformers`."""

    def __init__(self, preset, method, rate):
        torch.manual_seed(0)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            preset, dtype=torch.float32, attn_implementation="eager"
        )
        if not method:
            return
        self.model = peft_models.adapted(
            self.model, method, ["q_proj", "v_proj"], "CAUSAL_LM"
        )
        self.optimizer = peft_models.adam(self.model, rate)

    def sum_of(self, ids, targets, weights):
        logits = self.model(
            input_ids=torch.tensor(ids, dtype=torch.long)
        ).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            torch.tensor(targets, dtype=torch.long).flatten(),
            reduction="none",
        )
        return (
            losses * torch.tensor(weights.astype("float32")).flatten()
        ).sum()

    def step(self, *batch):
        self.model.train()
        mean = self.sum_of(*batch) / float(batch[2].sum())
        peft_models.update(self.optimizer, mean)

    def loss(self, *batch):
        self.model.eval()
        with torch.no_grad():
            return float(self.sum_of(*batch))

    def parameters(self):
        return sum(
            p.numel() for p in self.model.parameters() if p.requires_grad
        )

    def save(self, path):
        self.model.save_pretrained(path)
        return os.path.getsize(os.path.join(path, "adapter_model.safetensors"))

    @classmethod
    def load(cls, preset, path):
        loaded = cls(preset, None, None)
        loaded.model = peft.PeftModel.from_pretrained(loaded.model, path)
        return loaded

    def first_token(self, prompt):
        ids = torch.tensor(prompt, dtype=torch.long)
        self.model.eval()
        return self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
        )


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
