"""Adapters in other forms: exact LoRA, PEFT folders, blends.

An update of ETHER or ETHER+ is exactly a matrix of low rank, so these
conversions are exact. They depend on `adapters`, `surgery` and `saving`.
"""

from keras_ether.conversion.blending import blend
from keras_ether.conversion.keras_lora import to_lora
from keras_ether.conversion.low_rank_update import lora_factors
from keras_ether.conversion.peft_folder import export_to_peft

__all__ = ["blend", "export_to_peft", "lora_factors", "to_lora"]
