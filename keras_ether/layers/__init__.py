"""Layers with a transformed kernel, to build models from."""

from keras_ether.layers.ether_dense import EtherDense
from keras_ether.layers.ether_einsum_dense import EtherEinsumDense

__all__ = ["EtherDense", "EtherEinsumDense"]
