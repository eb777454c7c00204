"""Writes a model in the formats of `model.export`, and reads it back."""

import keras
import numpy as np

# The file of each format, and the packages that write and read it.
FILES = {
    "tf_saved_model": "saved_model",
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "litert": "model.tflite",
    "torch": "model.pt2",
}
NEEDS = {
    ("tf_saved_model", "tensorflow"): [],
    ("tf_saved_model", "jax"): ["tensorflow"],
    ("onnx", "tensorflow"): ["onnx", "onnxruntime", "tf2onnx"],
    ("onnx", "jax"): ["onnxruntime", "jax2onnx"],
    ("onnx", "torch"): ["onnx", "onnxruntime", "onnxscript"],
    ("openvino", "tensorflow"): ["openvino"],
    ("openvino", "torch"): ["openvino"],
    ("litert", "tensorflow"): ["ai_edge_litert"],
    ("litert", "torch"): ["ai_edge_litert", "litert_torch"],
    ("torch", "torch"): [],
}
# What Keras 3.15 does not export, from plain models either, and what it says.
IMPOSSIBLE = {
    ("tf_saved_model", "torch"): "torch",
    ("openvino", "jax"): "XlaCallModule",
    ("litert", "jax"): "TensorFlow or PyTorch backend",
    ("torch", "tensorflow"): "requires PyTorch backend",
    ("torch", "jax"): "requires PyTorch backend",
}

TAKES_MEMORY = "tf2onnx takes more than 14 GB"
# What an exporter or runtime can't do with one model, adapted or not: model or
# method, format, backend.
GAPS = {
    ("subclassed", "onnx", "tensorflow"): "tf2onnx writes GELU as Erfc",
    ("dinov2_small", "onnx", "tensorflow"): "tf2onnx writes GELU as Erfc",
    ("whisper_tiny_en", "onnx", "tensorflow"): "tf2onnx writes GELU as Erfc",
    ("smollm2_135m_instruct", "onnx", "tensorflow"): TAKES_MEMORY,
    ("gemma3_270m", "onnx", "tensorflow"): TAKES_MEMORY,
    ("groups", "onnx", "tensorflow"): "tf2onnx reads no compiled function",
    (
        "conv2d transposed",
        "litert",
        "tensorflow",
    ): "channels first needs TensorFlow's own operations",
    ("bert", "openvino", "torch"): "Keras names one of several inputs only",
    ("bert", "onnx", "jax"): "jax2onnx writes a Reshape for one batch",
    ("oft", "tf_saved_model", "jax"): "TensorFlow has no LAPACK of JAX's",
    ("oft", "onnx", "jax"): "jax2onnx solves no stack of equations",
    ("oft", "openvino", "tensorflow"): "OpenVINO can't solve equations",
}


def write(model, x, format_, folder):
    """Exports a model for inputs like `x`; returns the path."""
    path = str(folder / FILES[format_])
    # On PyTorch, Keras exports fixed shapes only.
    fixed = keras.backend.backend() == "torch"
    model.export(
        path,
        format=format_,
        verbose=False,
        input_signature=[_signature(named(x), fixed)],
    )
    return path


def named(x):
    """Inputs by name, or a single one."""
    return dict(sorted(x.items())) if isinstance(x, dict) else x


def _signature(x, fixed):
    if isinstance(x, dict):
        return {name: _spec(name, array, fixed) for name, array in x.items()}
    return _spec("x", x, fixed)


def _spec(name, array, fixed):
    shape = (len(array) if fixed else None, *array.shape[1:])
    return keras.InputSpec(shape=shape, dtype=array.dtype.name, name=name)


def read(path, format_, x):
    """What the format's own runtime predicts."""
    reader = READERS.get(format_, _saved_model)
    return np.asarray(reader(path, named(x)))


def _saved_model(path, x):
    import tensorflow as tf

    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    loaded = tf.saved_model.load(path)
    return loaded.serve(x)


def _onnx(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, _by_name(names, x))[0]


def _openvino(path, x):
    import openvino

    model = openvino.Core().compile_model(
        # It would compute in 16 bits where the processor can.
        path,
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    names = [port.get_any_name() for port in model.inputs]
    return model(_by_name(names, x))[0]


def _litert(path, x):
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path).get_signature_runner()
    (output,) = run(**_by_name(list(run.get_input_details()), x)).values()
    return output


def _torch(path, x):
    import torch

    program = torch.export.load(path).module()
    return program(keras.tree.map_structure(torch.tensor, x)).detach()


READERS = {
    "onnx": _onnx,
    "openvino": _openvino,
    "litert": _litert,
    "torch": _torch,
}


def _by_name(names, x):
    if not isinstance(x, dict):
        return {names[0]: x}
    assert set(names) == set(x)
    return x
