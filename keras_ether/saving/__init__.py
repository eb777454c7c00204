"""Adapter files: their format, what is in them, and putting it back.

It knows `keras_ether.surgery`, which puts the adapters of a file into a model.
"""

from keras_ether.saving.save_and_load import load_adapter
from keras_ether.saving.save_and_load import read_adapter_header
from keras_ether.saving.save_and_load import save_adapter

__all__ = ["load_adapter", "read_adapter_header", "save_adapter"]
