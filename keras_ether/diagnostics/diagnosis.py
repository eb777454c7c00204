"""`diagnose`: every adapter's distances and energies, as data and a table."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_ether.adapters import arguments
from keras_ether.adapters.adapter import Adapter
from keras_ether.diagnostics import measures
from keras_ether.ops import reflections
from keras_ether.surgery import report
from keras_ether.surgery.layer_tree import adapted_layers
from keras_ether.types import Layer


@dataclass(frozen=True)
class LayerDiagnosis(report.AdaptedLayer):
    """The distances and energies of one adapted layer.

    Attributes:
        input_distances: Distances of the blocks of `H` from the identity, in
            order; empty if the input is not transformed. The root of their sum
            of squares is `‖H − I‖` of the whole matrix.
        output_distances: The same for `G`.
        kernel_distance: `‖W' − W‖ / ‖W‖`; `None` for a quantized kernel.
        energy_before: Hyperspherical energy of the kernel's neurons; `None` if
            it was not requested, or for a quantized kernel.
        energy_after: The same for the transformed kernel.
    """

    input_distances: tuple[float, ...]
    output_distances: tuple[float, ...]
    kernel_distance: float | None
    energy_before: float | None
    energy_after: float | None

    @property
    def distance(self) -> float:
        """`‖H − I‖` of the block that is furthest from the identity."""
        return max(self.input_distances + self.output_distances)

    @property
    def energy_change(self) -> float | None:
        """The relative change of the energy, after over before, minus one."""
        if not self.energy_before or not math.isfinite(self.energy_before):
            return None
        if self.energy_after is None:
            return None
        return self.energy_after / self.energy_before - 1.0


@dataclass(frozen=True)
class Diagnosis:
    """The distances and energies of a model's adapters.

    Printing it gives a table.

    Attributes:
        rows: Tuple of `LayerDiagnosis`.
    """

    rows: tuple[LayerDiagnosis, ...]

    def records(self) -> list[dict]:
        """The rows as dictionaries, for JSON or a data frame."""
        return [dataclasses.asdict(row) for row in self.rows]

    def __str__(self) -> str:
        columns = {
            "Layer": [row.path for row in self.rows],
            "Kernel": [
                " x ".join(map(str, row.kernel_shape)) for row in self.rows
            ],
            "Method": [row.config.variant.name for row in self.rows],
        }
        numbers = {
            "Blocks": [str(row.rank_blocks) for row in self.rows],
            "‖H − I‖": [_largest(row.input_distances) for row in self.rows],
            "‖G − I‖": [_largest(row.output_distances) for row in self.rows],
            "‖W' − W‖ / ‖W‖": [
                _number(row.kernel_distance, ".4f") for row in self.rows
            ],
        }
        if any(row.energy_before is not None for row in self.rows):
            numbers |= {
                "Energy": [_number(r.energy_before, ",.1f") for r in self.rows],
                "after": [_number(r.energy_after, ",.1f") for r in self.rows],
                "change": [_number(r.energy_change, "+.3%") for r in self.rows],
            }
        table = report.draw(columns, numbers)
        return (
            f"{table}\n‖H − I‖ and ‖G − I‖ are those of the block furthest "
            "from the identity."
        )


def diagnose(
    model: Layer,
    energy: bool = True,
    print_fn: Callable[[str], Any] | None = None,
) -> Diagnosis:
    """Measures how far adapters move a model; prints a table and returns it.

    It measures active and disabled adapters, and does not change the model
    (Bini et al., ICML 2024, sections 3 and 5.3).

    A kernel's neurons are its outputs: each filter of a convolution over all
    positions, each column of an embedding table. In kernels with experts or
    groups, neurons are compared within the same expert or group, and the
    energies are added.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        energy: Boolean, whether to compute energies, which takes `d f²`
            operations for a `(d, f)` kernel. Defaults to `True`.
        print_fn: Function that takes the table, a string. Defaults to `print`.

    Returns:
        A `keras_ether.diagnostics.Diagnosis`.

    Raises:
        ValueError: if there is no adapter.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    >>> model = keras_ether.apply(model, rank_blocks=2, method="ether")
    >>> found = keras_ether.diagnostics.diagnose(model, print_fn=str)
    >>> [round(distance, 4) for distance in found.rows[0].input_distances]
    [2.0, 2.0]
    """
    energy = arguments.check_boolean(energy, "energy")
    print_fn = arguments.check_function(print_fn, "print_fn") or print
    rows = tuple(
        diagnose_layer(path, layer, energy)
        for path, layer in adapted_layers(model).items()
    )
    diagnosis = Diagnosis(rows)
    print_fn(str(diagnosis))
    return diagnosis


def diagnose_layer(
    path: str, layer: Layer, energy: bool = True
) -> LayerDiagnosis:
    """Measures one adapted layer."""
    adapter = layer.ether
    moved = before = after = None
    kernel = ops.convert_to_tensor(layer.base_kernel)
    # Quantized codes are not the kernel's values.
    if keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(kernel.dtype)
    ):
        kernel = ops.cast(kernel, "float32")
        transformed = adapter.fold_trained(kernel)
        moved = measures.kernel_distance(kernel, transformed)
        if energy:
            before, after = (
                measures.hyperspherical_energy(adapter.view.neurons(k))
                for k in (kernel, transformed)
            )
    return LayerDiagnosis(
        path=path,
        layer_class=layer.__class__.__name__,
        kernel_shape=adapter.kernel_shape,
        config=adapter.config,
        input_distances=_distances(adapter, "input"),
        output_distances=_distances(adapter, "output"),
        kernel_distance=moved,
        energy_before=before,
        energy_after=after,
    )


def _distances(adapter: Adapter, side: str) -> tuple[float, ...]:
    factors = adapter.trained_factors(side)
    if factors is None:
        return ()
    found = ops.convert_to_numpy(reflections.distance(*factors))
    return tuple(float(distance) for distance in found)


def _largest(distances: tuple[float, ...]) -> str:
    return _number(max(distances, default=None), ".4f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
