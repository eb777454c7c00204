"""Generation by tasks like KerasHub's, each prompt with its own adapter.

A task compiles a loop around its `generate_step`, which gets the inputs. A
stand-in for the task is an object of a subclass with the task's attributes. It
adds the ids to these inputs, and its own `generate_step` opens the context for
them. The task itself does not change.
"""

import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_ether.adapters import per_example
from keras_ether.bank.bank_model import BankModel
from keras_ether.bank.inputs import ADAPTER_ID
from keras_ether.ops.values import to_numpy
from keras_ether.types import Model
from keras_ether.types import Variable

NEEDED = ("generate", "generate_step", "make_generate_function")
FUNCTION = "generate_function"
# Attributes that the compiled loop depends on.
SETTINGS = ("sampler", "run_eagerly", "jit_compile")
# Inputs of a decoder, and how many tokens a trial generates.
PROMPTS = ("token_ids", "padding_mask")
NEW_TOKENS = 2


class Generator:
    """Generates with the adapters of a bank.

    Raises:
        ValueError: if the base has no `generate`.
    """

    def __init__(self, model: BankModel) -> None:
        task = model.base
        missing = [n for n in NEEDED if not callable(getattr(task, n, None))]
        if missing:
            raise ValueError(
                f"Model '{task.name}' can't generate: it has no {missing}. Use "
                "a causal or sequence-to-sequence task of KerasHub."
            )
        self.model = model
        self.task = task
        self.subclass = _generating_class(type(task))
        self._lock = threading.Lock()
        self._settings: list[Any] | None = None
        self._function: Callable | None = None

    def generate(
        self, prompts: Any, ids: np.ndarray, kwargs: dict[str, Any]
    ) -> Any:
        """See `AdapterBank.generate`."""
        stand_in: Model = object.__new__(self.subclass)
        stand_in.__dict__.update(self.task.__dict__)
        stand_in.__dict__.update(bank_model=self.model, bank_ids=ids)
        with self._lock:
            settings = [getattr(self.task, n, None) for n in SETTINGS]
            if settings != self._settings:
                self._settings, self._function = settings, None
            stand_in.__dict__[FUNCTION] = self._function
            self._function = stand_in.compiled_loop()
        return stand_in.generate(prompts, **kwargs)


def _generating_class(task_class: Any) -> type:
    """A subclass of a task's class that generates for a bank's examples."""

    class Generating(task_class):
        def generate_step(
            self, inputs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> Any:
            inputs = dict(inputs)
            ids = keras.ops.convert_to_tensor(inputs.pop(ADAPTER_ID))
            examples = self.bank_model.examples(ids, repeated=True)
            with per_example.computing_for(examples):
                outputs = super().generate_step(inputs, *args, **kwargs)
            # The number of lookups depends on whether loops are traced or run.
            self.bank_model.certificates.check_all(examples.asked)
            return outputs

        def compiled_loop(self) -> Callable:
            return super().make_generate_function()

        def make_generate_function(self) -> Callable:
            function, ids = self.compiled_loop(), self.bank_ids

            def generate(
                inputs: dict[str, Any], *args: Any, **kwargs: Any
            ) -> Any:
                batch = len(keras.tree.flatten(inputs)[0])
                if batch != len(ids):
                    raise ValueError(
                        "`adapters` must name one adapter for each prompt. "
                        f"Received: {len(ids)} adapters for {batch} prompts"
                    )
                certificates = self.bank_model.certificates
                kind = f"generate by {type(self.sampler).__name__}"
                few = _few_tokens(inputs)
                if certificates.is_new(few, batch, kind):
                    certificates.certify(
                        few,
                        batch,
                        kind,
                        lambda x: self.bank_model.base.generate_step(
                            x, *args, **(kwargs | {"stop_token_ids": None})
                        ),
                        repeated=True,
                    )
                return function({**inputs, ADAPTER_ID: ids}, *args, **kwargs)

            return generate

        # Compiled code gets these as state, and not as constants.
        @property
        def non_trainable_variables(self) -> list[Variable]:
            return [
                *super().non_trainable_variables,
                *(v for y in self.bank_model.stacks for v in y.variables),
            ]

    Generating.__name__ = task_class.__name__
    return Generating


def _few_tokens(inputs: dict[str, Any]) -> dict[str, Any]:
    """The prompts, with space for a few more tokens."""
    first = {
        name: to_numpy(keras.ops.convert_to_tensor(x))
        for name, x in inputs.items()
    }
    masks = [n for n in first if n.endswith(PROMPTS[1])]
    decoders = [n for n in masks if n.startswith("decoder")] or masks
    if len(decoders) != 1:
        return first
    prefix = decoders[0].removesuffix(PROMPTS[1])
    length = int(first[decoders[0]].sum(axis=1).max()) + NEW_TOKENS
    for name in PROMPTS:
        if prefix + name in first:
            first[prefix + name] = first[prefix + name][:, :length]
    return first
