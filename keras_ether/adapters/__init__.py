"""Adapters, and the layers that hold them.

The sub-layer that owns one kernel's vectors, the mixins by which a layer
computes with it, the table of layer classes that can be adapted, and their
weights files. These modules handle single layers, not models, and depend on
`keras_ether.methods` and `keras_ether.ops` only.
"""
