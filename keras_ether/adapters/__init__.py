"""Adapters, and the layers that hold them.

This subpackage has the sub-layer that owns one kernel's vectors, the mixins
that compute with it, the table of layer classes that can be adapted, and their
weights files. Its modules handle single layers, not models, and depend only on
`keras_ether.methods` and `keras_ether.ops`.
"""
