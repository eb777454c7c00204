"""Mathematics: functions of arrays, based on `keras.ops`.

This subpackage has reflections and their products, kernels of any shape as
matrices, and digests of kernels. No module here depends on layers, models or
named methods.
"""
