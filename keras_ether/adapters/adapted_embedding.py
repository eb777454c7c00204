"""The mixins that put an adapter around an embedding."""

import keras
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.adapters.adapted import Adapted
from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.adapters.call import Call
from keras_ether.ops import reflections
from keras_ether.ops.backend import dtype_name
from keras_ether.ops.backend import is_sparse
from keras_ether.ops.backend import map_values
from keras_ether.types import Tensor
from keras_ether.types import Variable


class AdaptedTable(Adapted):
    """An embedding whose `embeddings` are the transformed table, `E G`.

    Used alone, this mixin is for embeddings whose own `call` computes with
    `self.embeddings`: they fold the whole table at each call.
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

    def _computed(self, inputs: Tensor, *, call: Call) -> Tensor:
        inputs = self._of_examples(inputs, call)
        if self.quantization_mode is None and is_sparse(inputs):
            # The rows taken are sparse too, and can't be transformed.
            table = ops.convert_to_tensor(self.base_kernel)
            table = self.ether.fold(table, call)
            return self._compute(_embeddings=table)(inputs)
        outputs = self._compute()(inputs)
        factors = call.factors(self.ether)["output"]
        transformed = map_values(
            lambda rows: self.ether.transform_outputs(
                rows, factors, call.gradient
            ),
            outputs,
        )
        internals.copy_mask(outputs, transformed)
        return transformed


class AdaptedReversibleEmbedding(AdaptedEmbedding):
    """A reversible embedding, transformed in both directions.

        y = E[ids] G        logits = h (E G)ᵀ = (h Gᵀ) Eᵀ

    With `tie_weights=False` the reverse direction has its own matrix, which is
    not transformed.
    """

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        return self._computed(inputs, reverse, call=Call.of(self))

    quantized_call = call

    def _computed(
        self, inputs: Tensor, reverse: bool = False, *, call: Call
    ) -> Tensor:
        if not reverse:
            return super()._computed(inputs, call=call)
        inputs = self._of_examples(inputs, call)
        plain = self._compute()
        if not self.tie_weights:
            return plain(inputs, reverse=True)
        factors = call.factors(self.ether)["output"]
        # An embedding has no other side.
        assert factors is not None
        dtype = self.reverse_dtype or keras.backend.result_type(
            inputs.dtype, self.compute_dtype
        )
        if dtype_name(inputs) != dtype:
            inputs = ops.cast(inputs, dtype)
        inputs = reflections.multiply(
            inputs, *reflections.transpose(*factors), call.gradient
        )
        return plain(inputs, reverse=True)
