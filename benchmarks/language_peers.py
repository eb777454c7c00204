"""PEFT on `transformers`, and this package, on real language models and data.

    python -m benchmarks language_peers [--models smollm2_135m_instruct ...]

Both read the same weights (`examples/real_models`) and the same tokens of film
reviews, and adapt query and value projections: PEFT's LoRA, OFT, HRA, and the
default of `keras_ether.apply`, with PyTorch's and Keras's Adam. Each method is
trained at each rate, in a process of its own; the rate with the least loss on
the validation part is reported, with its loss on the test part. Time is that of
the processor, since other work on the machine would change the clock's.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import report

MODELS = ("smollm2_135m_instruct", "gemma3_270m")
OURS = "default of apply"
METHODS = (OURS, "PEFT LoRA r=8", "PEFT OFT, blocks of 32", "PEFT HRA r=8")
TARGETS = ["q_proj", "v_proj"]
BATCH, LENGTH = 4, 32
PARTS = {"train": 96, "valid": 32, "test": 64}


def add_arguments(parser):
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS
    )
    parser.add_argument(
        "--rates", nargs="+", type=float, default=(3e-4, 1e-3, 3e-3, 1e-2)
    )
    parser.add_argument("--steps", type=int, default=24)


def main(args):
    rates = ", ".join(f"{rate:g}" for rate in args.rates)
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            rows = [best(model, m, args, folder) for m in args.methods]
        title = (
            f"{model}, film reviews, {args.steps} steps of {BATCH} x {LENGTH} "
            f"tokens, rates {rates}"
        )
        report.save(f"language-peers-{model}", args, {title: rows})


def best(model, method, args, folder):
    """The row of a method, at the rate with the least validation loss."""
    found = [
        child(model, method, rate, args.steps, folder) for rate in args.rates
    ]
    chosen = min(found, key=lambda run: run["valid"])
    return {
        "method": method,
        "parameters": f"{chosen['parameters']:,}",
        "rate": f"{chosen['rate']:g}",
        "loss before": f"{chosen['before']:.3f}",
        "loss after": f"{chosen['test']:.3f}",
        "steps a CPU second": f"{1 / min(r['step'] for r in found):.2f}",
        "MB to train": f"{min(r['bytes'] for r in found) / 1e6:.0f}",
        "file, MB": f"{chosen['file'] / 1e6:.2f}",
        "load, CPU s": f"{min(r['load'] for r in found):.1f}",
        "first token, CPU s": f"{min(r['first'] for r in found):.2f}",
    }


def child(*arguments):
    """What a process of its own measures of one run."""
    *named, folder = map(str, arguments)
    code = "from benchmarks.language_peers import run; run()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *named, folder],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"KERAS_BACKEND": "torch"},
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured, flush=True)
    return measured


def run():
    """Trains, saves and loads once; prints what was measured as JSON."""
    model, method, rate, steps, folder = sys.argv[1:]
    import importlib

    from examples.measuring import Growth

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
    print(json.dumps(measured))


def tokens(preset):
    """Token ids, next tokens and weights of each part."""
    import keras_hub

    from examples.language_models import masked
    from examples.real_models import film_reviews

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
        import keras
        import keras_hub

        import keras_ether

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
        import keras_ether

        keras_ether.save_adapter(self.task, f"{path}.safetensors")
        return os.path.getsize(f"{path}.safetensors")

    @classmethod
    def load(cls, preset, path):
        import keras_ether

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
        import peft
        import torch
        import transformers

        torch.manual_seed(0)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            preset, dtype=torch.float32, attn_implementation="eager"
        )
        if not method:
            return
        config = {
            "PEFT LoRA r=8": peft.LoraConfig(r=8, lora_alpha=16),
            "PEFT OFT, blocks of 32": peft.OFTConfig(r=0, oft_block_size=32),
            "PEFT HRA r=8": peft.HRAConfig(r=8),
        }[method]
        config.target_modules, config.task_type = TARGETS, "CAUSAL_LM"
        self.model = peft.get_peft_model(self.model, config)
        self.optimizer = torch.optim.Adam(
            [p for p in self.model.parameters() if p.requires_grad], lr=rate
        )

    def sum_of(self, ids, targets, weights):
        import torch

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
        self.optimizer.zero_grad()
        (self.sum_of(*batch) / float(batch[2].sum())).backward()
        self.optimizer.step()

    def loss(self, *batch):
        import torch

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
        import peft

        loaded = cls(preset, None, None)
        loaded.model = peft.PeftModel.from_pretrained(loaded.model, path)
        return loaded

    def first_token(self, prompt):
        import torch

        ids = torch.tensor(prompt, dtype=torch.long)
        self.model.eval()
        return self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
        )
