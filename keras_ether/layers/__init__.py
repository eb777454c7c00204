"""Layers with an adapter, for building models."""

from keras_ether.layers.ether_conv1d import EtherConv1D
from keras_ether.layers.ether_conv2d import EtherConv2D
from keras_ether.layers.ether_conv3d import EtherConv3D
from keras_ether.layers.ether_dense import EtherDense
from keras_ether.layers.ether_einsum_dense import EtherEinsumDense
from keras_ether.layers.ether_embedding import EtherEmbedding

__all__ = [
    "EtherConv1D",
    "EtherConv2D",
    "EtherConv3D",
    "EtherDense",
    "EtherEinsumDense",
    "EtherEmbedding",
]
