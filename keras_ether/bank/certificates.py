"""What the trials of a bank have certified, and by which calls are checked."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_ether import _keras_internals as internals
from keras_ether.adapters import per_example
from keras_ether.bank import trial
from keras_ether.bank.examples import Asked
from keras_ether.bank.names import INPUTS
from keras_ether.bank.structure import Structure
from keras_ether.ops.traced import forget_recorded
from keras_ether.types import Model

CALL = "call"


class Certificates:
    """How often layers ask in a call, by the kind of its inputs.

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
        self._asked: dict[tuple, Counter[Asked]] = {}

    def start(self, batch: Any) -> None:
        """The first trial, over inputs passed or over made-up ones.

        Raises:
            ValueError: if the trial fails, or no inputs can be made up.
        """
        if not self.runs_trials:
            return
        if batch is None:
            symbols = base_inputs(self.base)
            if symbols is not None:
                batch = trial.inputs_for(self.base, symbols)
        if batch is None:
            raise ValueError(
                f"No inputs of model '{self.base.name}' can be made up for a "
                "trial of whether its adapters can be mixed in a batch. Pass "
                "some as `trial`: `AdapterBank(model, capacity, trial=x)`, in "
                "the form in which the model takes them."
            )
        if not all(getattr(x, "shape", ()) for x in tree.flatten(batch)):
            raise ValueError(
                "`trial` must be arrays of one example or more, in the form in "
                f"which the model takes them. Received: trial={batch!r}"
            )
        self.certify(batch)

    def is_new(self, inputs: Any, kind: str = CALL) -> bool:
        """Whether inputs of this kind have had no trial yet."""
        signature = _signature(inputs)
        known = signature is None or (kind, signature) in self._asked
        return self.runs_trials and not known

    def certify(
        self,
        inputs: Any,
        answer: Callable[[Any], Any] | None = None,
        kind: str = CALL,
    ) -> None:
        """Runs a trial.

        Args:
            inputs: Inputs of the base, with values.
            answer: Function from inputs to outputs, or `None` for a call.
                Defaults to `None`.
            kind: String, what else `answer` depends on. Defaults to `CALL`.

        Raises:
            ValueError: if the trial fails.
        """
        first = tree.map_structure(lambda x: x[: max(trial.SIZES)], inputs)
        run = trial.Trial(
            self.base,
            self.structure,
            answer or (lambda x: self.base(x, training=False)),
            repeated=answer is not None,
        ).run
        try:
            self._asked[kind, _signature(inputs)] = run(first)
        except (ValueError, MemoryError):
            raise
        except Exception as error:
            forget_recorded(error)
            reason = str(error).strip().partition("\n")[0]
            raise per_example.NoExamplesError(
                f"The trial of model '{self.base.name}', of whether its "
                "adapters can be mixed in a batch, failed by a "
                f"{type(error).__name__}: {reason} (A `jax.jit` within the "
                "model keeps what it recorded before.)"
            ) from error

    def check(self, asked: Counter[Asked], inputs: Any) -> None:
        """Raises a `ValueError` unless layers asked as a trial saw them.

        Where no trial was of such inputs, as in any other.

        Args:
            asked: How often each did in a call.
            inputs: Inputs of the call.
        """
        known = self._asked.get((CALL, _signature(inputs)))
        known = known or next(iter(self._asked.values()), None)
        if known is None:
            self.check_all(asked)
            return
        wrong = {key for key in known | asked if known[key] != asked[key]}
        if wrong:
            key = min(wrong)
            raise _asking_error(key, asked, f"{known[key]} times in its trial")

    def check_all(self, asked: Counter[Asked]) -> None:
        """Raises a `ValueError` unless all asked that have something."""
        missing = trial.expected(self.structure) - set(asked)
        if missing:
            raise _asking_error(min(missing), asked, "each has to")


def base_inputs(base: Model) -> Any:
    """The symbolic inputs of a model as it takes them, or `None`."""
    if isinstance(base, keras.Sequential):
        inputs = base.inputs
        return inputs[0] if inputs else None
    if not getattr(base, "inputs", None):
        # What a model of a class of its own was built for.
        shape = (base.get_build_config() or {}).get("input_shape")
        is_one = isinstance(shape, tuple | list) and not any(
            isinstance(size, tuple | list) for size in shape
        )
        return keras.KerasTensor(shape, name=INPUTS) if is_one else None
    struct = internals.inputs_struct(base)
    return dict(struct) if isinstance(struct, dict) else struct


def _asking_error(key: Asked, asked: Counter[Asked], wanted: str) -> ValueError:
    path, _ = key
    return ValueError(
        f"Layer '{path}' asked {asked[key]} times for the adapters of this "
        f"call's examples, and {wanted}: it would compute with other values. "
        "A `tf.function` or `jax.jit` within the model keeps what it recorded "
        "before. Inputs of another kind want a trial of their own: call the "
        "bank's model on some first."
    )


def _signature(inputs: Any) -> tuple | None:
    """What a trial of inputs holds for: dtypes and sizes but for the batch."""
    parts = tree.flatten(inputs)
    if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in parts):
        return None
    return tuple((_kind(x), tuple(x.shape[1:])) for x in parts)


def _kind(x: Any) -> str:
    dtype = keras.backend.standardize_dtype(x.dtype)
    return "float" if keras.backend.is_float_dtype(dtype) else dtype
