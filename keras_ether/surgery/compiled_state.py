"""The compiled state of all models that contain changed layers."""

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import changes
from keras_ether.surgery import optimizer_slots
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.outer_layers import layers_containing

FUNCTIONS = (
    "train_function",
    "test_function",
    "predict_function",
    "generate_function",
)


def reset(made: changes.Transaction, tree: LayerTree) -> list[keras.Model]:
    """Makes models use the current layers, and returns these models.

    They are the model of the tree, its inner and outer models, and models that
    share a layer that the transaction has changed. Their functions are traced
    again. Their optimizers keep all settings, and only their slots are reset.
    """
    layers = tree.all_layers + made.layers + layers_containing(made.layers)
    layers = list({id(layer): layer for layer in layers}.values())
    models = [layer for layer in layers if isinstance(layer, keras.Model)]
    for model in models:
        for name in FUNCTIONS:
            if vars(model).get(name) is not None:
                made.set(model, name, None)
    for optimizer in optimizer_slots.optimizers_of(models):
        optimizer_slots.drop(made, optimizer)
    for layer in layers:
        made.make(internals.TorchParameters(layer))
    for model in models:
        if hasattr(model, internals.COMPILED_TRAINABLE_STATE):
            # Hidden from the trackers, as in Keras: the keys of a tracked
            # dictionary are sorted when PyTorch exports the model.
            made.set(
                model,
                internals.COMPILED_TRAINABLE_STATE,
                internals.trainable_state(model),
            )
        if vars(model).get(internals.JAX_STATE) is not None:
            # A callback changes the model. The loop can't go on, but what it
            # writes back must belong to the variables that there are now.
            made.set(model, internals.JAX_STATE, internals.jax_state(model))
    return models
