"""What the layers of `keras_ether.layers` share."""

from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters.adapter import Adapter
from keras_ether.adapters.arguments import check_blocks


class StandaloneLayer:
    """A layer with an adapter of its own, saved as what it is.

    It is mixed in before the mixin that `keras_ether.adapters.kinds` names for
    the layer's kind.
    """

    def __init__(
        self,
        *args,
        rank_blocks: int = 4,
        method: str = "ether",
        side: str | None = None,
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.method = method
        self.side = side
        self.ether = Adapter(
            method=method,
            rank_blocks=rank_blocks,
            side=kinds.side_of(self, method, side),
            dropout=dropout,
            seed=seed,
        )
        # Numbers of plain Python there.
        self.rank_blocks = self.ether.rank_blocks
        self.dropout = self.ether.dropout
        self.seed = None if seed is None else self.ether.seed

    def build(self, input_shape=None):
        super().build(input_shape)
        view = kinds.kind_of(self).view(self)
        kernel_shape = kinds.kernel_shape(self)
        check_blocks(
            self.name,
            view.sizes(kernel_shape),
            self.method,
            self.rank_blocks,
            self.ether.side,
        )
        freezing.freeze(self, trainable=True)
        self.ether.build(view, kernel_shape)

    def save_own_variables(self, store):
        self.stand_in().save_own_variables(store)

    def get_config(self):
        return {
            **super().get_config(),
            "rank_blocks": self.rank_blocks,
            "method": self.method,
            "side": self.side,
            "dropout": self.dropout,
            "seed": self.seed,
        }
