"""Distances by which adapters move a model, and hyperspherical energies."""

from keras_ether.diagnostics.diagnosis import Diagnosis
from keras_ether.diagnostics.diagnosis import LayerDiagnosis
from keras_ether.diagnostics.diagnosis import diagnose
from keras_ether.diagnostics.logger import DistanceLogger
from keras_ether.diagnostics.measures import hyperspherical_energy
from keras_ether.diagnostics.measures import kernel_distance
from keras_ether.diagnostics.plots import plot_distances
from keras_ether.diagnostics.plots import plot_energy
from keras_ether.diagnostics.plots import plot_training

__all__ = [
    "Diagnosis",
    "DistanceLogger",
    "LayerDiagnosis",
    "diagnose",
    "hyperspherical_energy",
    "kernel_distance",
    "plot_distances",
    "plot_energy",
    "plot_training",
]
