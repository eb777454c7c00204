"""The kinds of inputs that have passed a trial, and checks of calls."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_ether.adapters import per_example
from keras_ether.bank import trial
from keras_ether.bank.inputs import generated_inputs
from keras_ether.bank.inputs import run_base
from keras_ether.bank.structure import Asked
from keras_ether.bank.structure import Structure
from keras_ether.bank.trial_runs import Runs
from keras_ether.ops.traced import clear_traces
from keras_ether.types import Model

CALL, TRAINING = "call", "training"


class Certificates:
    """How often layers look up factors or weights in a call, by kind of inputs.

    A trial is valid for inputs of its kind in batches of its size or smaller.
    Sizes are rounded up to powers of two, or growing batches would have a trial
    each.

    Args:
        base: The adapted model.
        structure: The bank's `Structure`.
        runs_trials: Whether `certify` does anything.
    """

    def __init__(
        self, base: Model, structure: Structure, runs_trials: bool
    ) -> None:
        self.base = base
        self.structure = structure
        self.runs_trials = runs_trials
        self._asked: dict[tuple | None, Counter[Asked]] = {}
        self._largest: dict[tuple | None, int] = {}

    def start(self, batch: Any) -> None:
        """The first trial, with the inputs passed or with generated inputs.

        Raises:
            ValueError: if the trial fails, or no inputs can be generated.
        """
        if not self.runs_trials:
            return
        if batch is None:
            batch = generated_inputs(self.base, max(trial.SIZES))
        if batch is None:
            raise ValueError(
                f"No inputs of model '{self.base.name}' can be generated to "
                "test whether its adapters can be mixed in a batch. Pass "
                "inputs in the form that the model takes: `AdapterBank(model, "
                "capacity, trial=x)`."
            )
        if not all(getattr(x, "shape", ()) for x in tree.flatten(batch)):
            raise ValueError(
                "`trial` must be arrays of one example or more, in the form "
                f"that the model takes. Received: trial={batch!r}"
            )
        self.certify_call(batch, trial.SIZES[0])

    def is_new(self, inputs: Any, size: int, kind: str = CALL) -> bool:
        """Whether such a batch of inputs has had no trial yet."""
        key = self._key(inputs, kind)
        if not self.runs_trials or key is None:
            return False
        return size > self._largest.get(key, 0)

    def _key(self, inputs: Any, kind: str) -> tuple | None:
        """What a trial is of, or `None` if that is not known."""
        signature = _signature(inputs)
        if signature is None or kind != TRAINING:
            return signature and (kind, signature)
        # Batch normalization mixes the examples where it is not frozen.
        flags = tuple(y.trainable for y in self.structure.layers.values())
        return kind, signature, flags

    def certify_call(self, inputs: Any, size: int, kind: str = CALL) -> None:
        """Runs a trial of calls, see `certify`."""
        training = kind == TRAINING
        self.certify(
            inputs, size, kind, lambda x: run_base(self.base, x, training)
        )

    def certify(
        self,
        inputs: Any,
        size: int,
        kind: str,
        answer: Callable[[Any], Any],
        repeated: bool = False,
    ) -> None:
        """Runs a trial.

        Args:
            inputs: Inputs of the base, with values.
            size: Integer, the number of examples in a batch.
            kind: String, what else `answer` depends on. All but `CALL` may
                draw random numbers.
            answer: Function from inputs to outputs, by way of the base.
            repeated: See `BankExamples`. Defaults to `False`.

        Raises:
            ValueError: if the trial fails.
        """
        size = 1 << (size - 1).bit_length()
        examples = max(size, *trial.SIZES)
        first = tree.map_structure(lambda x: x[:examples], inputs)
        key = self._key(inputs, kind)
        asked, largest = self._asked.get(key), self._largest.get(key, 0)
        try:
            made = trial.Trial(
                Runs(self.base, self.structure, answer, kind != CALL, repeated)
            )
            if asked is None:
                asked, largest = made.run_small(first)
            if size > largest:
                # Experts with a capacity mix examples of large batches alone.
                made.run(first, size)
        except (ValueError, MemoryError):
            raise
        except Exception as error:
            clear_traces(error)
            reason = str(error).strip().partition("\n")[0]
            raise per_example.NoExamplesError(
                f"The trial of model '{self.base.name}', which tests whether "
                "its adapters can be mixed in a batch, failed with a "
                f"{type(error).__name__}: {reason} (A `jax.jit` within the "
                "model still runs the code that it traced before.)"
            ) from error
        if key is not None:
            self._asked[key] = asked
            self._largest[key] = max(size, largest)

    def check(self, asked: Counter[Asked], inputs: Any) -> None:
        """Raises a `ValueError` if a call's lookups differ from a trial's.

        Without a trial of such inputs, any other trial counts.
        """
        known = self._asked.get(self._key(inputs, CALL))
        known = known or next(iter(self._asked.values()), None)
        if known is None:
            self.check_all(asked)
            return
        wrong = {key for key in known | asked if known[key] != asked[key]}
        if wrong:
            key = min(wrong)
            raise _asking_error(key, asked, f"{known[key]} times in its trial")

    def check_all(self, asked: Counter[Asked]) -> None:
        """Raises a `ValueError` if an adapter or weight was not looked up."""
        missing = self.structure.lookups - set(asked)
        if missing:
            raise _asking_error(min(missing), asked, "it has to at least once")


def _asking_error(key: Asked, asked: Counter[Asked], wanted: str) -> ValueError:
    path, _ = key
    return ValueError(
        f"Layer '{path}' used the adapters of this call's examples "
        f"{asked[key]} times, but {wanted}. It would compute wrong values. A "
        "`tf.function` or `jax.jit` within the model still runs the code that "
        "it traced before. For another kind of inputs, call the bank's model "
        "on such inputs first, for a trial."
    )


def _signature(inputs: Any) -> tuple | None:
    """The kind of inputs: names, dtypes and sizes without the batch."""
    parts = tree.flatten_with_path(inputs)
    if not all(hasattr(x, "shape") and hasattr(x, "dtype") for _, x in parts):
        return None
    return tuple((path, _kind(x), tuple(x.shape[1:])) for path, x in parts)


def _kind(x: Any) -> str:
    dtype = keras.backend.standardize_dtype(x.dtype)
    if keras.backend.is_float_dtype(dtype):
        return "float"
    # Keras and JAX may make other integers of a user's.
    return "int" if keras.backend.is_int_dtype(dtype) else dtype
