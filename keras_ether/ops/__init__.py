"""Mathematics: functions of arrays over `keras.ops`.

Reflections and the products that they need, kernels of any shape as matrices,
digests of kernels. Nothing here knows of layers, models or methods by name.
"""
