"""Weights files that a plain model reads and an adapted model resumes from.

A layer that `keras_ether.apply` adapted writes its *effective* kernel in its
class's own format, so a plain model gets the fine-tuned predictions. Under a
path that a plain model never reads, the adapter writes the vectors, the state
of its dropout and a fingerprint of the base kernel.

Read into an adapted layer, such a file

- over the same base: leaves the base and sets the vectors, bit for bit;
- over another base, if the method's blocks are orthogonal: sets the vectors,
  and as base the kernel with the transformation inverted;
- over another base, otherwise: sets the file's kernel as base and resets the
  vectors to the identity, with a warning that says at which strength that
  kernel was folded.

A file without vectors is a base checkpoint, and loads as one. Keras reads a
layer right before its sub-layers, so the layer passes the values that it has
read to its adapter. The adapter sets all values after it has read the vectors.
If reading fails or is interrupted, the layer and its adapter are unchanged.

Module `quantized_weights_file` handles layers with integer kernels. The layers
of `keras_ether.layers` differ: they write their base kernel and their vectors,
which only the same class reads.
"""

import contextlib
import contextvars
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
from keras import ops

from keras_ether.adapters import freezing
from keras_ether.adapters import optimizer_state
from keras_ether.ops import memory
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.fingerprint import sampled_fingerprint
from keras_ether.ops.traced import no_gradient
from keras_ether.ops.values import as_array
from keras_ether.ops.values import copy_of
from keras_ether.ops.values import to_numpy
from keras_ether.types import Layer
from keras_ether.types import LayerMixin
from keras_ether.types import Tensor
from keras_ether.types import Variable

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter


FINGERPRINT = "base_digest"
# In older files, by `sampled_fingerprint`.
SAMPLED = "base_fingerprint"
METHOD = "method"
DROPOUT = "dropout_state"
# The strength at which the file's kernel was folded, if it is not 1.
STRENGTH = "strength"
# The rate multiplier that a learned strength has, where that is not 1.
MULTIPLIER = "rate_multiplier"

_of_base = contextvars.ContextVar("saving_base", default=False)


@contextlib.contextmanager
def saving_base() -> Iterator[None]:
    """Makes integer layers write their base codes, in the plain format.

    Copies in memory need both the base and the vectors, but a file must hold
    the fine-tuned kernel. This is a context variable, so that another thread
    may write a file at the same time.
    """
    token = _of_base.set(True)
    try:
        yield
    finally:
        _of_base.reset(token)


def is_saving_base() -> bool:
    """Whether the call is within `saving_base`."""
    return _of_base.get()


class AdaptedFile(LayerMixin):
    """Mixin for an adapted layer that saves and loads in its class's format.

    A subclass redefines the first three methods for kernels of integers.
    """

    def kernel_variables(self) -> list[Variable]:
        """The variables that hold the base kernel."""
        return [self.base_kernel]

    def entries_of_file(self) -> Callable[[Any], Any]:
        """A function from the plain layer's entries to those of a file."""
        # Most classes write their property, the effective kernel; some write
        # the variable itself.
        base = self.base_kernel
        return lambda value: self._effective(base) if value is base else value

    def take_out(self, adapter: "Adapter") -> None:
        """Replaces the fine-tuned kernel, just read, by its base."""
        effective = ops.convert_to_tensor(self.base_kernel)
        self.base_kernel.assign(adapter.unfold(effective))

    def save_own_variables(self, store: Any) -> None:
        entries: dict[str, Any] = {}
        # PyTorch would save tensors for a gradient of the folded kernel.
        with no_gradient():
            super().save_own_variables(entries)
            of_file = self.entries_of_file()
            for key in list(entries):
                # Freed before the next kernel is made.
                store[key] = as_array(of_file(entries.pop(key)))
        self.ether.base_fingerprint = _digest_of(self.kernel_variables())
        memory.return_freed()

    def load_own_variables(self, store: Any) -> None:
        self.ether.loading = NOT_READ
        own = freezing.own_variables(self)
        with _values_kept(own):
            super().load_own_variables(store)
            values = [copy_of(variable) for variable in own]
        self.ether.loading = Loading(self, list(zip(own, values, strict=True)))


class Loading:
    """The values that a layer has read, until its adapter has read its own.

    The layer itself has its values from before. `read` are pairs of each of its
    variables and the value in the file.
    """

    def __init__(
        self, layer: Layer, read: list[tuple[Variable, Tensor]]
    ) -> None:
        self.layer = layer
        self.read = read

    def is_over_same_base(self, store: Any) -> bool | None:
        """Whether a file was saved over the layer's kernel.

        `None` for a base checkpoint, which has no digest of a base.
        """
        variables = self.layer.kernel_variables()
        for key, digest_of in (
            (FINGERPRINT, fingerprint),
            (SAMPLED, sampled_fingerprint),
        ):
            if key in store:
                saved = np.asarray(store[key])
                return np.array_equal(_digest_of(variables, digest_of), saved)
        return None

    def pairs(self, same: bool | None) -> list[tuple[Variable, Any]]:
        """Pairs of the variables to be set and their values, handed over."""
        base = {id(v) for v in self.layer.kernel_variables()} if same else ()
        read, self.read = self.read, []
        return [pair for pair in read if id(pair[0]) not in base]

    def choose_base(self, adapter: "Adapter", strength: float) -> None:
        """Chooses another base, once the layer and the vectors are set.

        `strength` is that of the file's kernel.
        """
        if adapter.method.orthogonal:
            with no_gradient():
                self.layer.take_out(adapter)
            return
        adapter.restart()
        predicts = "fine-tuned model"
        if strength == 0:
            predicts = (
                "file's base without the adapter: the file was saved within "
                "`keras_ether.disabled` or at strength 0"
            )
        elif strength != 1:
            predicts += f" at strength {strength:g}, as it was saved"
        warnings.warn(
            f"The file's weights for '{self.layer.path}' were saved over "
            f"another base kernel. '{adapter.config.method}' can't be "
            "inverted, so the file's kernel becomes the base and its adapter "
            "is reset to the identity. The predictions are those of the "
            f"{predicts}.",
            stacklevel=2,
        )


# Replaces a `Loading` if reading the layer has failed.
NOT_READ: Any = object()


def save_vectors(adapter: "Adapter", store: Any) -> None:
    """Writes an adapter's vectors and method, and its base's fingerprint."""
    for name, vector in adapter.vectors.items():
        store[name] = to_numpy(vector)
    store[METHOD] = np.frombuffer(adapter.method.name.encode(), "uint8")
    if adapter.config.rate_multiplier != 1.0:
        store[MULTIPLIER] = np.asarray(adapter.config.rate_multiplier)
    if adapter.seed_generator is not None:
        state = to_numpy(adapter.seed_generator.state)
        # Backends use different integer dtypes for it.
        store[DROPOUT] = np.asarray(state, "int64")
    if adapter.base_fingerprint is not None:
        store[FINGERPRINT] = adapter.base_fingerprint
        strength = to_numpy(adapter.runtime_strength)
        if strength != 1.0:
            store[STRENGTH] = strength
        adapter.base_fingerprint = None


def load_vectors(adapter: "Adapter", store: Any) -> None:
    """Reads an adapter's vectors, and sets them and its layer's variables.

    Raises:
        ValueError: if the layer's own variables could not be read, if the
            file's adapter has another method or vectors of other shapes, or if
            it was saved over another base, at a strength other than 1 or with a
            method that can't be inverted and does not start at the identity.
            The layer and its adapter are then unchanged.
    """
    loading, adapter.loading = adapter.loading, None
    if loading is NOT_READ:
        # Keras continues with the other layers, and reports all errors.
        raise ValueError(
            f"Adapter '{adapter.path}' is not loaded, because the weights of "
            "its layer can't be read."
        )
    pairs: list[tuple[Variable, Any]] = []
    same = None
    if METHOD in store:
        pairs = _read(adapter, store)
        if loading is not None:
            same = loading.is_over_same_base(store)
        if same is False:
            _check_method(adapter, store)
    if loading is not None:
        pairs += loading.pairs(same)
    with _values_kept([variable for variable, _ in pairs], on_error=True):
        while pairs:
            variable, value = pairs.pop()
            variable.assign(value)
            # A kernel's is freed before the next is made.
            del value
        if loading is not None and same is False:
            loading.choose_base(adapter, _strength(store))
    memory.return_freed()


@contextlib.contextmanager
def _values_kept(
    variables: list[Variable], on_error: bool = False
) -> Iterator[None]:
    """A context after which variables have the values from before.

    With `on_error`, only an exception restores them.
    """
    before = [copy_of(variable) for variable in variables]
    restore = not on_error
    try:
        yield
    except BaseException:
        restore = True
        raise
    finally:
        if restore:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)


def _digest_of(
    variables: list[Variable], digest_of: Callable = fingerprint
) -> np.ndarray:
    ordered = sorted(variables, key=lambda variable: variable.name)
    return np.concatenate([digest_of(variable) for variable in ordered])


def _check_method(adapter: "Adapter", store: Any) -> None:
    """Raises a `ValueError` if no base gives the kernel's predictions."""
    method = adapter.method
    if method.orthogonal and STRENGTH in store:
        raise ValueError(
            f"The file's weights for adapter '{adapter.path}' were saved over "
            f"another base, at strength {_strength(store):g}, at which the "
            "transformation can't be inverted. Save the model at "
            "`keras_ether.strength(model, 1.0)`, outside of "
            "`keras_ether.disabled`."
        )
    if not method.orthogonal and not method.starts_at_identity:
        raise ValueError(
            f"The file's weights for adapter '{adapter.path}' were saved over "
            f"another base. '{method.name}' can't be inverted, and does not "
            "start at the identity. Load the file over its own base, or use "
            "`keras_ether.save_adapter`."
        )


def _strength(store: Any) -> float:
    """The strength at which the file's kernel was folded."""
    return float(np.asarray(store[STRENGTH])) if STRENGTH in store else 1.0


def _read(adapter: "Adapter", store: Any) -> list[tuple[Variable, np.ndarray]]:
    """Pairs of each vector, and of dropout's state, and its value."""
    method = bytes(np.asarray(store[METHOD])).decode("ascii", "replace")
    others = {METHOD, DROPOUT, FINGERPRINT, SAMPLED, STRENGTH, MULTIPLIER}
    names = set(store.keys()) - others
    values = {
        name: np.asarray(store[name])
        for name in sorted(names)
        if not name.startswith(optimizer_state.PREFIX)
    }
    received = {name: value.shape for name, value in values.items()}
    expected = {
        name: tuple(vector.shape) for name, vector in adapter.vectors.items()
    }
    if method != adapter.method.name or received != expected:
        raise ValueError(
            f"The file's vectors for adapter '{adapter.path}' don't fit this "
            f"model. Expected: method='{adapter.method.name}', {expected}. "
            f"Received: method='{method}', {received}."
        )
    multiplier = 1.0
    if MULTIPLIER in store:
        multiplier = float(np.asarray(store[MULTIPLIER]))
    if multiplier != adapter.config.rate_multiplier:
        scale = adapter.config.scale_of(multiplier)
        values = {name: scale * value for name, value in values.items()}
    pairs = [(v, values[name]) for name, v in adapter.vectors.items()]
    if adapter.seed_generator is not None and DROPOUT in store:
        state = adapter.seed_generator.state
        pairs.append((state, np.asarray(store[DROPOUT])))
    return pairs
