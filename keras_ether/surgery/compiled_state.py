"""The compiled state of models whose layers change."""

from keras_ether import _keras_internals as internals
from keras_ether.surgery import optimizer_slots
from keras_ether.surgery.layer_tree import LayerTree

FUNCTIONS = (
    "train_function",
    "test_function",
    "predict_function",
    "generate_function",
)


def reset(tree: LayerTree) -> None:
    """Makes a model, and the models in it, use their current layers.

    Their functions are traced again. Their optimizers keep all their settings;
    only their slots start again.
    """
    drop_functions(tree)
    for optimizer in optimizer_slots.optimizers_of(tree):
        optimizer_slots.drop(optimizer)
    for layer in tree.everything:
        internals.renew_torch_parameters(layer)
    for model in tree.models:
        internals.forget_compiled_trainable_state(model)


def drop_functions(tree: LayerTree, names: tuple[str, ...] = FUNCTIONS) -> None:
    """Drops compiled functions, so that the next call traces them again."""
    for model in tree.models:
        for name in names:
            if getattr(model, name, None) is not None:
                setattr(model, name, None)
