"""Fine-tuning of Keras models with ETHER and ETHER+."""

from keras_ether import diagnostics
from keras_ether import layers
from keras_ether.overview import plan
from keras_ether.overview import summary
from keras_ether.surgery import apply
from keras_ether.surgery import disabled
from keras_ether.surgery import merge
from keras_ether.surgery import remove

__version__ = "0.1.0"

__all__ = [
    "apply",
    "diagnostics",
    "disabled",
    "layers",
    "merge",
    "plan",
    "remove",
    "summary",
]
