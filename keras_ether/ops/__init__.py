"""Mathematics: functions of arrays, based on `keras.ops`.

Reflections and the products that they need, kernels of any shape as matrices,
digests of kernels. No module here depends on layers, models or named methods.
"""
