"""Weights files that a plain model reads and an adapted model resumes from.

A layer that `keras_ether.apply` adapted writes its *effective* kernel in its
class's own format, so a model that knows nothing of this package gets the
fine-tuned predictions. Beside it, under a path that a plain model never reads,
the adapter writes the vectors, the state of its dropout and a fingerprint of
the base kernel.

Read into an adapted layer, such a file

- over the same base: leaves the base and sets the vectors, bit for bit;
- over another base, if the method's blocks are orthogonal: sets the vectors,
  and as base the kernel with the transformation inverted;
- over another base, otherwise: sets the effective kernel as base and resets the
  vectors to the identity, with a warning.

A file without vectors is a base checkpoint, and loads as one. Layers over
integer kernels are the subject of `quantized_weights_file` beside this module.
The layers of `keras_ether.layers` differ: they write their base kernel and
their vectors, which only the same class reads.
"""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
from keras import ops

from keras_ether import methods
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.values import settled
from keras_ether.ops.values import to_numpy
from keras_ether.types import LayerMixin
from keras_ether.types import Tensor

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter


FINGERPRINT = "base_fingerprint"
METHOD = "method"
DROPOUT = "dropout_state"
# The adapter's strength in the kernel beside it, where that is not 1.
STRENGTH = "strength"
# The rate multiplier that a learned strength has, where that is not 1.
MULTIPLIER = "rate_multiplier"

_of_base = contextvars.ContextVar("of_base", default=False)


@contextlib.contextmanager
def of_base() -> Iterator[None]:
    """Makes integer layers write their base codes, in the plain format.

    For copies in memory, which get both the base and the vectors; a file must
    hold the fine-tuned kernel. A context variable, so that another thread may
    write a file meanwhile.
    """
    token = _of_base.set(True)
    try:
        yield
    finally:
        _of_base.reset(token)


def is_of_base() -> bool:
    """Whether the call is within `of_base`."""
    return _of_base.get()


class PlainFile(LayerMixin):
    """Mixin for an adapted layer that saves and loads in its class's format.

    Keras saves and loads a layer right before its sub-layers. The layer
    therefore hands its adapter the fingerprint, or the kernel just read.
    """

    def save_own_variables(self, store: Any) -> None:
        entries: dict[str, Any] = {}
        super().save_own_variables(entries)
        base = self.base_kernel
        for key, value in entries.items():
            # Most classes write their property, the effective kernel; some
            # write the variable itself.
            value = self._effective(base) if value is base else value
            store[key] = settled(value)
        self.ether.base_fingerprint = fingerprint(base)

    def load_own_variables(self, store: Any) -> None:
        base = to_numpy(self.base_kernel)
        super().load_own_variables(store)
        self.ether.loading = Loading(self.base_kernel, base)


class Loading:
    """A kernel variable that was just read, and its previous value."""

    def __init__(self, kernel: Tensor, base: np.ndarray) -> None:
        self.kernel = kernel
        self.base = base

    def undo(self) -> None:
        self.kernel.assign(self.base)

    def is_over_same_base(self, saved_fingerprint: np.ndarray) -> bool:
        """Whether the file was saved over the previous kernel."""
        return np.array_equal(fingerprint(self.base), saved_fingerprint)

    def settle(self, adapter: "Adapter", saved_fingerprint: np.ndarray) -> None:
        """Chooses the base, once the vectors are read."""
        if self.is_over_same_base(saved_fingerprint):
            self.kernel.assign(self.base)
        elif adapter.method.orthogonal:
            effective = ops.convert_to_tensor(self.kernel)
            self.kernel.assign(adapter.unfold(effective))
        else:
            adapter.restart()
            warnings.warn(
                f"The file's weights for '{self.kernel.path}' were saved over "
                f"another base kernel. '{adapter.config.method}' cannot be "
                "taken out of a kernel, so the fine-tuned kernel becomes the "
                "base and its adapter starts at the identity again. The "
                "predictions are the fine-tuned ones.",
                stacklevel=2,
            )


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
        strength = to_numpy(adapter.strength)
        if strength != 1.0:
            store[STRENGTH] = strength
        adapter.base_fingerprint = None


def load_vectors(adapter: "Adapter", store: Any) -> None:
    """Reads an adapter's vectors, and chooses its layer's base kernel.

    Raises:
        ValueError: if the file's adapter has another method or vectors of other
            shapes, or if it was saved over another base, at a strength other
            than 1 or with a method that can't be taken out of the kernel and
            does not start at the identity. The layer's kernel and vectors are
            then as they were.
    """
    loading, adapter.loading = adapter.loading, None
    if METHOD not in store:
        return
    try:
        values = _read(adapter, store)
        _check_base(adapter, store, loading)
    except ValueError:
        if loading is not None:
            loading.undo()
        raise
    for name, vector in adapter.vectors.items():
        vector.assign(values[name])
    if adapter.seed_generator is not None and DROPOUT in store:
        adapter.seed_generator.state.assign(np.asarray(store[DROPOUT]))
    if loading is not None and FINGERPRINT in store:
        loading.settle(adapter, np.asarray(store[FINGERPRINT]))


def _check_base(
    adapter: "Adapter", store: Any, loading: Loading | None
) -> None:
    """Raises a `ValueError` if no base gives the kernel's predictions."""
    if (
        loading is None
        or FINGERPRINT not in store
        or loading.is_over_same_base(np.asarray(store[FINGERPRINT]))
    ):
        return
    method = adapter.method
    if method.orthogonal and STRENGTH in store:
        raise ValueError(
            f"The file's weights for adapter '{adapter.path}' were saved over "
            "another base, at strength "
            f"{float(np.asarray(store[STRENGTH])):g}, which can't be taken out "
            "of a kernel. Save it at `keras_ether.strength(model, 1.0)`."
        )
    if not method.orthogonal and not methods.starts_at_identity(method):
        raise ValueError(
            f"The file's weights for adapter '{adapter.path}' were saved over "
            f"another base. '{method.name}' can't be taken out of a kernel, "
            "and does not start at the identity. Load the file over its own "
            "base, or use `keras_ether.save_adapter`."
        )


def _read(adapter: "Adapter", store: Any) -> dict[str, np.ndarray]:
    method = bytes(np.asarray(store[METHOD])).decode("ascii", "replace")
    others = {METHOD, DROPOUT, FINGERPRINT, STRENGTH, MULTIPLIER}
    names = set(store.keys()) - others
    values = {name: np.asarray(store[name]) for name in sorted(names)}
    received = {name: value.shape for name, value in values.items()}
    expected = {
        name: tuple(vector.shape) for name, vector in adapter.vectors.items()
    }
    if method != adapter.method.name or received != expected:
        raise ValueError(
            f"The file's vectors for adapter '{adapter.path}' are not those of "
            f"this model. Expected: method='{adapter.method.name}', "
            f"{expected}. Received: method='{method}', {received}."
        )
    multiplier = np.asarray(store[MULTIPLIER]) if MULTIPLIER in store else 1.0
    own = adapter.config.rate_multiplier or 1.0
    if multiplier != own:
        # The same blocks by variables of another scale.
        scale = np.float32(multiplier / own)
        values = {name: scale * value for name, value in values.items()}
    return values
