"""The mixins that put an adapter around an embedding."""

from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether import reflections
from keras_ether.adapted import Adapted


class AdaptedTable(Adapted):
    """An embedding whose `embeddings` answer the transformed table, `E G`.

    On its own this mixin serves embeddings with a `call` of their own that
    computes with `self.embeddings`: they fold the whole table at each call.
    """

    @property
    def base_kernel(self):
        """The variable that holds the table without the transformation."""
        return super().embeddings

    @property
    def embeddings(self):
        return self._effective(super().embeddings)

    def _embed(self, table, inputs):
        if not self.ether.active:
            return table(inputs)
        with self._base():
            outputs = table(inputs)
        training = internals.is_training()
        factors = self.ether.factors("output", training)
        transformed = self.ether.transform_outputs(outputs, factors, training)
        internals.copy_mask(outputs, transformed)
        return transformed


class AdaptedEmbedding(AdaptedTable):
    """An embedding that transforms the rows it takes and not its table.

    y = E[ids] G
    """

    def call(self, inputs):
        return self._embed(super().call, inputs)

    def quantized_call(self, inputs):
        return self._embed(super().quantized_call, inputs)


class AdaptedReversibleEmbedding(AdaptedTable):
    """A reversible embedding, transformed in both directions alike.

        y = E[ids] G        logits = h (E G)ᵀ = (h Gᵀ) Eᵀ

    With `tie_weights=False` the reverse direction has a matrix of its own,
    which stays as it is.
    """

    def call(self, inputs, reverse=False):
        return self._either_way(super().call, inputs, reverse)

    def quantized_call(self, inputs, reverse=False):
        return self._either_way(super().quantized_call, inputs, reverse)

    def _either_way(self, table, inputs, reverse):
        if not reverse:
            return self._embed(table, inputs)
        if not self.ether.active or not self.tie_weights:
            return table(inputs, reverse=True)
        training = internals.is_training()
        factors = self.ether.factors("output", training)
        if self.reverse_dtype is not None:
            inputs = ops.cast(inputs, self.reverse_dtype)
        inputs = reflections.multiply(
            inputs, *reflections.transpose(*factors), training
        )
        with self._base():
            return table(inputs, reverse=True)
