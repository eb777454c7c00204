"""Fine-tuning of Keras models with ETHER and ETHER+ (Bini et al., ICML 2024).

Each frozen kernel `W` acts as `H W G`, with block-diagonal `H` and `G` made of
trained vectors.

- Adapt a model in place: `plan`, `apply`, `summary`.
- Make an ordinary model again: `merge`, `remove`.
- Change the effect of adapters: `disabled`, `strength`.
- Save and load: `save_adapter`, `load_adapter`, `read_adapter_header`, `copy`.
- Resume training: `callbacks`.
- Convert: `lora_factors`, `to_lora`, `export_to_peft`, `blend`.
- Serve many adapters: `AdapterBank`.
- Measure adapters: `diagnostics`.
- Build models from adapted layers: `layers`.
- Add a method: `methods`.

Example:

>>> model = keras.Sequential([
...     keras.Input((16,)),
...     keras.layers.Dense(8, activation="relu"),
...     keras.layers.Dense(4, name="head"),
... ])
>>> model = keras_ether.apply(model, rank_blocks=4, trainable=["head"])
>>> model.compile(keras.optimizers.Adam(1e-2), "mse")
>>> history = model.fit(x, x[:, :4], verbose=0)
>>> model = keras_ether.merge(model)
"""

from keras_ether import callbacks
from keras_ether import diagnostics
from keras_ether import layers
from keras_ether import methods
from keras_ether.bank import AdapterBank
from keras_ether.conversion import blend
from keras_ether.conversion import export_to_peft
from keras_ether.conversion import lora_factors
from keras_ether.conversion import to_lora
from keras_ether.saving import copy
from keras_ether.saving import load_adapter
from keras_ether.saving import read_adapter_header
from keras_ether.saving import save_adapter
from keras_ether.surgery import apply
from keras_ether.surgery import disabled
from keras_ether.surgery import merge
from keras_ether.surgery import plan
from keras_ether.surgery import remove
from keras_ether.surgery import strength
from keras_ether.surgery import summary
from keras_ether.version import __version__

__all__ = [
    "AdapterBank",
    "__version__",
    "apply",
    "blend",
    "callbacks",
    "copy",
    "diagnostics",
    "disabled",
    "export_to_peft",
    "layers",
    "load_adapter",
    "lora_factors",
    "merge",
    "methods",
    "plan",
    "read_adapter_header",
    "remove",
    "save_adapter",
    "strength",
    "summary",
    "to_lora",
]
