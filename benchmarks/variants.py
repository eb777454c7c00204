"""What trains: each method as a change of a built task, head included.

`limit` is what no method that reaches the first layer can be faster than: all
is frozen but for the first vector of the backbone, so the backward pass runs
through the whole network and leaves out every weight's gradient.
"""

import functools

import keras
from keras import ops

import keras_ether
from keras_ether.surgery.layer_tree import LayerTree


def limit(model, targets):
    # Not the scales of a quantized layer, which do not train.
    weights = backbone_of(model).trainable_weights
    vectors = [weight for weight in weights if len(weight.shape) == 1]
    freeze_backbone(model)
    vectors[0].trainable = True


def head(model, targets):
    model.backbone.trainable = False


def full(model, targets):
    pass


def ether(model, targets, method="ether", rank_blocks=1):
    keras_ether.apply(
        model, method=method, rank_blocks=rank_blocks, targets=targets, seed=0
    )


def default(model, targets):
    """`apply` without a method."""
    keras_ether.apply(model, targets=targets, seed=0)


def lora(model, targets, rank=8):
    """KerasHub's own: `backbone.enable_lora`."""
    names = {layer.name for layer in linear_maps(model, targets)}
    backbone_of(model).enable_lora(rank, target_layer_names=sorted(names))


def authors(model, targets, rank_blocks=1):
    """The authors' algorithm: explicit blocks times the weight, each call.

    Each block `I − 2 û ûᵀ` is formed, the weight `(f, d)` multiplied by it,
    and automatic differentiation does the rest. For more than one block it
    follows their reshape to `(blocks, f, d / blocks)`.
    """
    freeze_backbone(model)
    for layer in linear_maps(model, targets):
        layer.call = _authors_call(layer, rank_blocks)


def freeze_backbone(model):
    for weight in backbone_of(model).weights:
        weight.trainable = False


def backbone_of(model):
    """That of a task; a backbone is its own."""
    return getattr(model, "backbone", model)


def linear_maps(model, targets):
    """The layers that `apply` would adapt."""
    plan = keras_ether.plan(model, targets=targets, print_fn=lambda table: None)
    paths = {row.path for row in plan.rows}
    layers = LayerTree(model).layers
    return [layer for path, layer in layers.items() if path in paths]


def _authors_call(layer, blocks):
    is_einsum = isinstance(layer, keras.layers.EinsumDense)
    shape = tuple(layer.kernel.shape)
    contracted = 1
    if is_einsum:
        _, kernel, outputs = layer.equation.replace("->", ",").split(",")
        contracted = sum(a not in outputs for a in kernel)
    sizes = shape[:contracted], shape[contracted:]
    d, f = (functools.reduce(lambda a, b: a * b, s) for s in sizes)
    layer._tracker.unlock()
    vectors = layer.add_weight(
        shape=(blocks, d // blocks),
        initializer=keras.initializers.RandomUniform(-0.1, 0.1),
        name="normals",
    )
    layer._tracker.lock()

    def call(x, training=None):
        u = ops.convert_to_tensor(vectors)
        u = u / ops.norm(u, axis=-1, keepdims=True)
        reflections = ops.eye(d // blocks) - 2.0 * ops.einsum(
            "ni,nj->nij", u, u
        )
        weight = ops.transpose(ops.reshape(layer.kernel, (d, f)))
        weight = ops.reshape(weight, (blocks, f, d // blocks))
        weight = ops.reshape(ops.matmul(weight, reflections), (f, d))
        kernel = ops.reshape(ops.transpose(weight), shape)
        if is_einsum:
            y = ops.einsum(layer.equation, x, kernel)
        else:
            y = ops.matmul(x, kernel)
        if layer.bias is not None:
            y = y + layer.bias
        return y if layer.activation is None else layer.activation(y)

    return call


VARIANTS = {
    "limit": limit,
    "head only": head,
    "full": full,
    **{
        f"{method.upper()} n={n}": functools.partial(
            ether, method=method, rank_blocks=n
        )
        for method in ("ether", "ether+")
        for n in (1, 4, 8, 32)
    },
    "default": default,
    "Keras LoRA r=8": lora,
    "authors' algorithm n=1": functools.partial(authors, rank_blocks=1),
    "authors' algorithm n=4": functools.partial(authors, rank_blocks=4),
}
# What trains over a quantized base.
QUANTIZED = ("limit", "ETHER n=4", "ETHER+ n=4", "default", "Keras LoRA r=8")
QUICK = (
    "limit",
    "ETHER n=4",
    "ETHER+ n=1",
    "default",
    "Keras LoRA r=8",
    "authors' algorithm n=1",
)
