"""Adapters in the forms of others: exact LoRA, PEFT folders, blends.

An update of ETHER or ETHER+ is a matrix of low rank, known by formula, so
nothing is lost on the way. This room knows adapters, surgery and saving; none
of them knows it.
"""

from keras_ether.conversion.blending import blend
from keras_ether.conversion.keras_lora import to_lora
from keras_ether.conversion.low_rank_update import lora_factors
from keras_ether.conversion.peft_folder import export_to_peft

__all__ = ["blend", "export_to_peft", "lora_factors", "to_lora"]
