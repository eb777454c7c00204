"""Models of full size whose weights are shapes alone.

What a compiler plans depends on no weight's value, so that a model of eight
billion parameters can be planned for on a machine that could not hold it.
"""

import contextlib
import functools


def build(function):
    """Runs a function that builds a Keras model, and allocates nothing.

    Args:
        function: Function without arguments that returns a model, which may be
            quantized, adapted and compiled in it.

    Returns:
        The model. Its variables have shapes and dtypes, and no values.
    """
    import jax

    found = []
    with quantizing_tensors():
        jax.eval_shape(lambda: found.append(function()))
    return found[0]


@contextlib.contextmanager
def quantizing_tensors():
    """A context in which Keras quantizes by operations, and not by NumPy."""
    from keras import ops
    from keras.src import quantizers
    from keras.src.quantizers import quantizers as module

    def by_operations(original, *args, to_numpy=False, **kwargs):
        # `to_numpy` may come by place too, as the sixth.
        return original(*args[:5], **kwargs)

    def pack_int4(arr, axis=0, dtype="int8"):
        shape = list(arr.shape)
        length, shape[axis] = shape[axis], -(-shape[axis] // 2)
        return ops.zeros(shape, dtype), tuple(shape), length

    names = (
        "abs_max_quantize",
        "abs_max_quantize_grouped_with_zero_point",
    )
    before = {name: getattr(module, name) for name in (*names, "pack_int4")}
    within = {
        name: functools.partial(by_operations, before[name]) for name in names
    }
    within["pack_int4"] = pack_int4

    def set_all(functions):
        for name, function in functions.items():
            for where in (module, quantizers):
                setattr(where, name, function)

    set_all(within)
    try:
        yield
    finally:
        set_all(before)


def state_of(model):
    """Shapes of what a training step of a compiled model takes and returns."""
    return tuple(
        [shape_of(v) for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )


def shape_of(variable):
    """Shape and dtype, and the layout that a `keras.distribution` gives it."""
    import jax

    layout = getattr(variable._layout, "backend_layout", variable._layout)
    return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=layout)
