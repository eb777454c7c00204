"""Fine-tuning of Keras models with ETHER and ETHER+."""

from keras_ether import callbacks
from keras_ether import diagnostics
from keras_ether import layers
from keras_ether import methods
from keras_ether.conversion import blend
from keras_ether.conversion import export_to_peft
from keras_ether.conversion import lora_factors
from keras_ether.conversion import to_lora
from keras_ether.saving import copies
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

copies.install()

__all__ = [
    "__version__",
    "apply",
    "blend",
    "callbacks",
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
