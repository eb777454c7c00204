"""Fine-tuning of Keras models with ETHER and ETHER+."""

from keras_ether import callbacks
from keras_ether import diagnostics
from keras_ether import layers
from keras_ether import methods
from keras_ether.bank import AdapterBank
from keras_ether.saving import copies
from keras_ether.saving import load_adapter
from keras_ether.saving import read_adapter_header
from keras_ether.saving import save_adapter
from keras_ether.surgery import apply
from keras_ether.surgery import disabled
from keras_ether.surgery import merge
from keras_ether.surgery import plan
from keras_ether.surgery import remove
from keras_ether.surgery import summary
from keras_ether.version import __version__

copies.install()

__all__ = [
    "AdapterBank",
    "__version__",
    "apply",
    "callbacks",
    "diagnostics",
    "disabled",
    "layers",
    "load_adapter",
    "merge",
    "methods",
    "plan",
    "read_adapter_header",
    "remove",
    "save_adapter",
    "summary",
]
