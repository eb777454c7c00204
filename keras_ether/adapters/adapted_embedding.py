"""The mixins that put an adapter around an embedding."""

from collections.abc import Callable

import keras
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.adapters.adapted import Adapted
from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.ops import reflections
from keras_ether.ops.backend import dtype_name
from keras_ether.ops.backend import is_sparse
from keras_ether.ops.custom_gradient import is_gradient_wanted
from keras_ether.types import Tensor
from keras_ether.types import Variable


class AdaptedTable(Adapted):
    """An embedding whose `embeddings` answer the transformed table, `E G`.

    On its own this mixin serves embeddings with a `call` of their own that
    computes with `self.embeddings`: they fold the whole table at each call.
    """

    @property
    def base_kernel(self) -> Variable:
        """The variable that holds the table without the transformation."""
        return super().embeddings

    @property
    def embeddings(self) -> Tensor:
        return self._effective(super().embeddings)


class AdaptedEmbedding(AdaptedCall, AdaptedTable):
    """An embedding that transforms the rows it takes and not its table.

    y = E[ids] G
    """

    def _settled_call(
        self,
        inputs: Tensor,
        *,
        training: bool | Tensor | None = None,
        kept: dict[str, Tensor] | None = None,
        activation: Callable | None = None,
    ) -> Tensor:
        training = internals.is_training(training)
        kept = self.ether.draw_kept(training) if kept is None else kept
        inputs = self._of_examples(inputs)
        if self.quantization_mode is None and is_sparse(inputs):
            # The rows taken are sparse too, and can't be transformed.
            table = ops.convert_to_tensor(self.base_kernel)
            table = self.ether.fold(table, kept)
            return self._compute(_embeddings=table)(inputs)
        outputs = self._compute()(inputs)
        factors = self.ether.factors("output", kept)
        transformed = self.ether.transform_outputs(outputs, factors, training)
        internals.copy_mask(outputs, transformed)
        return transformed


class AdaptedReversibleEmbedding(AdaptedEmbedding):
    """A reversible embedding, transformed in both directions alike.

        y = E[ids] G        logits = h (E G)ᵀ = (h Gᵀ) Eᵀ

    With `tie_weights=False` the reverse direction has a matrix of its own,
    which stays as it is.
    """

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        return self._settled_call(inputs, reverse)

    def quantized_call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        return self._settled_call(inputs, reverse)

    def _settled_call(
        self,
        inputs: Tensor,
        reverse: bool = False,
        *,
        training: bool | Tensor | None = None,
        kept: dict[str, Tensor] | None = None,
        activation: Callable | None = None,
    ) -> Tensor:
        if not reverse:
            return super()._settled_call(inputs, training=training, kept=kept)
        training = internals.is_training(training)
        kept = self.ether.draw_kept(training) if kept is None else kept
        inputs = self._of_examples(inputs)
        plain = self._compute()
        if not self.tie_weights:
            return plain(inputs, reverse=True)
        factors = self.ether.factors("output", kept)
        dtype = self.reverse_dtype or keras.backend.result_type(
            inputs.dtype, self.compute_dtype
        )
        if dtype_name(inputs) != dtype:
            inputs = ops.cast(inputs, dtype)
        inputs = reflections.multiply(
            inputs,
            *reflections.transpose(*factors),
            is_gradient_wanted(training),
        )
        return plain(inputs, reverse=True)
