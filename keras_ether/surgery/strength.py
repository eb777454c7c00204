"""The strength of a model's adapters."""

from keras_ether.ops import values
from keras_ether.surgery.layer_tree import adapted_tree
from keras_ether.types import Layer


def strength(model: Layer, strength: float) -> Layer:
    """Sets the strength of a model's adapters, in place.

    Each block acts as `I + strength (block − I)`. At 0 the model is the
    pretrained model, bit for bit; at 1 the adapters act as trained. At other
    values ETHER's blocks are no reflections: at ½ they project onto the
    hyperplane. At 2 they move twice as far, and negative values move in the
    opposite direction. Try several values, as with the scale of LoRA in image
    generation.

    The strength is a variable that compiled functions read, so changing it
    triggers no compilation. Within `keras_ether.disabled` a change takes effect
    at the end of that block.

    `keras_ether.merge`, `model.save` and every other export fold the adapters
    at this strength. The strength belongs to the model, not to the adapter:
    `save_adapter` and weights files hold the vectors as trained, and
    `load_adapter` keeps the model's strength. If a weights file was written at
    a strength other than 1, ETHER's transformation can't be inverted, and
    loading it into an adapted model over another base is an error. For methods
    that are never inverted, such as ETHER+, the base then becomes the model at
    that strength, with a warning.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        strength: Float, any finite number.

    Returns:
        The model passed.

    Raises:
        ValueError: if there is no adapter, or if `strength` is not a finite
            number.

    Example:

    >>> model = keras_ether.strength(model, 0.5)
    >>> halfway = model.predict(x, verbose=0)
    >>> model = keras_ether.strength(model, 1.0)
    """
    number = values.finite(strength)
    if number is None:
        raise ValueError(
            "`strength` must be a finite number, such as 0.5. Received: "
            f"strength={strength!r}"
        )
    tree = adapted_tree(model)
    for layer in tree.adapted.values():
        layer.ether.set_strength(number)
    return model
