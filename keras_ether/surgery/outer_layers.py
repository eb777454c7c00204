"""The layers and models around some layers.

A layer does not know the layers and models that contain it, so they are
searched among the objects of Python's garbage collector.
"""

import gc
from collections.abc import Iterable
from itertools import chain
from itertools import compress
from itertools import repeat

import keras

from keras_ether import _keras_internals as internals
from keras_ether.types import Layer


def layers_containing(layers: Iterable[Layer]) -> list[Layer]:
    """All layers in memory that hold one of these, directly or not."""
    kinds = {keras.layers.Layer}
    todo = [keras.layers.Layer]
    while todo:
        new = set(todo.pop().__subclasses__()) - kinds
        kinds |= new
        todo += new
    holders: dict[int, list[Layer]] = {}
    for owner in _objects_of(kinds):
        for child in vars(owner).get(internals.SUBLAYERS, ()):
            holders.setdefault(id(child), []).append(owner)
    known = {id(layer) for layer in layers}
    found: list[Layer] = []
    ids = list(known)
    while ids:
        for owner in holders.get(ids.pop(), ()):
            if id(owner) not in known:
                known.add(id(owner))
                ids.append(id(owner))
                found.append(owner)
    return found


def _objects_of(kinds: set[type]) -> list:
    """All objects in memory whose class is one of these.

    One C call finds them, in which no Python code and so no other thread
    runs. A tuple that another thread makes item by item can't grow while a
    list of all objects refers to it: that thread would get a `SystemError`.
    """
    # A collection would run callbacks and finalizers, which are Python code.
    collects = gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        gc.disable()
        # The collector does not list objects that `gc.freeze` has frozen.
        gc.unfreeze()
        # By id, since the class of a class may define `__hash__`.
        chosen = set(map(id, kinds)).__contains__
        # The list of all objects, which no name here holds, comes twice.
        lists = chain.from_iterable(
            map(repeat, map(gc.get_objects, (None,)), (2,))
        )
        classes = map(map, repeat(type), lists)
        marks = map(map, repeat(chosen), map(map, repeat(id), classes))
        return list(chain.from_iterable(map(compress, lists, marks)))
    finally:
        if frozen:
            gc.freeze()
        if collects:
            gc.enable()
