"""Training data of language models, of which only the answers are learned."""

from collections.abc import Sequence

import keras
import numpy as np


def masked(
    preprocessor,
    prompts: Sequence[str],
    responses: Sequence[str],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Tokens of prompts and responses, with weights that mask the prompts.

    For preprocessors of KerasHub that take one text (GPT-2's, Llama's,
    Mistral's, Qwen's). Those of Gemma 3 and 4 take `{"prompts": ...,
    "responses": ...}` and mask prompts themselves.

    Args:
        preprocessor: A `CausalLMPreprocessor`; its `sequence_length` is the
            length of the rows. Longer pairs are cut at their ends.
        prompts: Texts that are given.
        responses: Texts that are to follow, with a space or line break at their
            start where one belongs there.

    Returns:
        Tuple of the model's inputs, the next tokens, and their weights: 1 for a
        response and the token that ends it, 0 for prompts and padding. All are
        of the shape `(texts, sequence_length)`.

    Raises:
        ValueError: if prompts and responses are not as many, or no response
            begins within the length.
    """
    if not preprocessor.built:
        preprocessor.build(None)
    tokenizer, length = preprocessor.tokenizer, preprocessor.sequence_length
    start = tokenizer.start_token_id if preprocessor.add_start_token else None
    shape = (len(prompts), length + 1)
    tokens = np.full(shape, tokenizer.pad_token_id, "int32")
    used, weights = np.zeros(shape, "int32"), np.zeros(shape, "float32")
    for row, (prompt, response) in enumerate(
        zip(prompts, responses, strict=True)
    ):
        given = _ids(tokenizer, prompt)
        if start is not None:
            # Qwen's tokenizers have none.
            given = [start, *given]
        follows = [*_ids(tokenizer, response), tokenizer.end_token_id]
        ids = [*given, *follows][: length + 1]
        tokens[row, : len(ids)] = ids
        used[row, : len(ids)] = 1
        weights[row, len(given) : len(ids)] = 1.0
    if not weights.any():
        raise ValueError(
            "No response begins within the preprocessor's sequence length: a "
            f"larger one is needed. Received: sequence_length={length}"
        )
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": used[:, :-1]}
    return inputs, tokens[:, 1:], weights[:, 1:]


def _ids(tokenizer, text: str) -> list[int]:
    return np.asarray(keras.ops.convert_to_numpy(tokenizer(text))).tolist()
