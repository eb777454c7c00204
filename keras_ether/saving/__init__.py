"""Adapter files: their format, their content, and loading them. Copies.

They depend on `keras_ether.surgery`, which inserts a file's adapters into a
model.
"""

from keras_ether.saving.copies import copy
from keras_ether.saving.save_and_load import load_adapter
from keras_ether.saving.save_and_load import read_adapter_header
from keras_ether.saving.save_and_load import save_adapter

__all__ = ["copy", "load_adapter", "read_adapter_header", "save_adapter"]
