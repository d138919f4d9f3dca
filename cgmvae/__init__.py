"""Concrete GMVAE: a Gaussian-mixture VAE trained in a time that hardly grows with K.

The modules, in the order in which data flows through them: experiment, data, networks, relaxation,
model, objectives, annealing, devices, checkpoints, graphs, training, evaluation, records, figures. A
finished run is `run(Experiment(...))`; everything else is what that calls.
"""

from cgmvae.checks import ExperimentError
from cgmvae.experiment import Experiment, preset
from cgmvae.records import run

__version__ = "0.1.0"
__all__ = ["Experiment", "ExperimentError", "preset", "run", "__version__"]
