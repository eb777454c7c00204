"""Adapters, and the layers that they are put around.

The sub-layer that owns one kernel's vectors, the mixins by which a layer
computes with it, the table of layer classes that can be adapted, and what such
a layer writes to a weights file. All of it knows single layers only, and of
`keras_ether.methods` and `keras_ether.ops`; of models it knows nothing.
"""
