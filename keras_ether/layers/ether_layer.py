"""The base class of the layers of `keras_ether.layers`."""

from typing import Any

from keras_ether.adapters import kinds
from keras_ether.adapters import twin_class
from keras_ether.adapters.adapter import Adapter
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.types import LayerMixin

# A layer doesn't know the number of adapted layers in its network.
USUAL_KERNELS = 90


class StandaloneLayer(LayerMixin):
    """A layer with its own adapter, saved under its own class.

    It comes before the mixin that `keras_ether.adapters.kinds` names for the
    layer's kind.
    """

    def __init__(
        self,
        *args: Any,
        rank_blocks: int = 4,
        method: str = "ether",
        side: str | None = None,
        dropout: float = 0.0,
        seed: int | None = None,
        strength: float | str | None = None,
        rate_multiplier: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        config = AdapterConfig(
            method, rank_blocks, side, dropout, strength, rate_multiplier
        ).for_network(USUAL_KERNELS)
        self.ether = Adapter(kinds.config_for(self, config), seed=seed)
        self.method = method
        self.side = side
        # The config holds plain numbers instead of NumPy's scalars.
        self.rank_blocks = config.rank_blocks
        self.dropout = config.dropout
        self.strength = config.strength
        self.rate_multiplier = config.rate_multiplier
        self.seed = None if seed is None else self.ether.seed

    def build(self, input_shape: tuple[int | None, ...] | None = None) -> None:
        super().build(input_shape)
        view = kinds.view_of(self)
        kernel_shape = kinds.kernel_shape(self)
        self.ether.config.check_fits(self.name, view.sizes(kernel_shape))
        twin_class.hold_standalone(self, self.ether)
        self.ether.build(view, kernel_shape)

    def save_own_variables(self, store: Any) -> None:
        self.stand_in().save_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rank_blocks": self.rank_blocks,
            "method": self.method,
            "side": self.side,
            "dropout": self.dropout,
            "seed": self.seed,
            "strength": self.strength,
            "rate_multiplier": self.rate_multiplier,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        # Older configs lack it.
        return super().from_config({"rate_multiplier": 1.0} | config)
