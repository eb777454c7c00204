"""The figures that were aimed at, and what the newest results say of each.

Where `floor` has measured the least a method can take, it stands beside the
figure in brackets.
"""

BLOCKS = (1, 4, 8, 32)
LORA = "Keras LoRA r=8"
MINILM = "MiniLM's size"


def rows(runs):
    """The table, from results by name, such as `"train-minilm-jax"`."""
    return [
        {"figure": figure, "at most": most}
        | {
            label: " ".join(describe(find, runs, backend))
            for backend, label in BACKENDS.items()
        }
        for figure, most, find in FIGURES
    ]


def describe(find, runs, backend):
    try:
        found, *floor = find(Results(runs, backend))
    except KeyError:
        # Not measured with this backend.
        return ["-"]
    return [f"{found:.2f}", *(f"({least:.2f})" for least in floor)]


class Results:
    """Looks ratios of one backend up."""

    def __init__(self, runs, backend):
        self.runs, self.backend = runs, backend

    def ratio(self, name, method, key="method", column="ratio", title=""):
        """A method's figure in the first table whose title has `title`."""
        run = self.runs.get(f"{name}-{self.backend}")
        if run is None:
            run = self.runs[f"{name}-{self.backend}-quick"]
        for heading, table in run["tables"].items():
            if title in heading:
                return {row[key]: row for row in table}[method][column]
        raise KeyError(title)

    def step(self, method):
        return self.ratio("train-minilm", method)

    def floor(self, method, title="training step"):
        return self.ratio("floor", method, column="floor", title=title)


def worst_step(method, blocks):
    names = [f"{method} n={n}" for n in blocks]

    def find(results):
        return (
            max(results.step(name) for name in names),
            max(results.floor(name) for name in names),
        )

    return find


def step_over(method, other):
    return lambda results: (results.step(method) / results.step(other),)


def more_blocks(results):
    many, one = "ETHER+ n=32", "ETHER+ n=1"
    return (
        results.step(many) / results.step(one),
        results.floor(many) / results.floor(one),
    )


def over_peft(results):
    ours = results.ratio("peers", "ETHER n=1")
    return (ours / results.ratio("peers", "PEFT LoRA r=8"),)


def merged(results):
    name = "ETHER n=4, merged"
    return (results.ratio("infer", name, key="model", title=MINILM),)


def active(results):
    names = [f"ETHER n={n}" for n in (1, 4, 32)]
    return (
        max(
            results.ratio("infer", f"{n}, active", key="model", title=MINILM)
            for n in names
        ),
        max(results.floor(name, "inference") for name in names),
    )


def memory(results):
    ours, lora = (
        results.ratio("memory", name, column="step_mib")
        for name in ("ETHER+ n=4", LORA)
    )
    return (ours / lora,)


BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
FIGURES = (
    (
        "training step, ETHER, n=1 to 32, over the limit",
        "1.12",
        worst_step("ETHER", BLOCKS),
    ),
    (
        "training step, ETHER+, n=1 to 8, over the limit",
        "1.25 / 1.25 / 1.30",
        worst_step("ETHER+", BLOCKS[:-1]),
    ),
    (
        f"ETHER+ n=1 over {LORA}",
        "0.80 / 1.00 / 1.00",
        step_over("ETHER+ n=1", LORA),
    ),
    ("ETHER+ n=32 over n=1", "1.15", more_blocks),
    (
        "ETHER n=1 over the authors' algorithm n=1",
        "0.60",
        step_over("ETHER n=1", "authors' algorithm n=1"),
    ),
    ("ETHER n=1 over PEFT's LoRA r=8, own limits", "1.00", over_peft),
    ("merged inference over the base", "1.01", merged),
    ("active inference, ETHER, over the base", "1.10", active),
    (f"memory of a step, ETHER+ n=4 over {LORA}", "1.00", memory),
)
