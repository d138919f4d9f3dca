"""Concrete GMVAE: a Gaussian-mixture VAE trained in a time that hardly grows with K.

The modules, in the order in which data flows through them: datasets, files, pictures, own_images,
binarisation, networks, relaxation, model, objectives, discrete, estimators, annealing, experiment,
data, devices, checkpoints, evaluation, graphs, training, records, run, figures. A finished run is
`run(Experiment(...))`; everything else is what that calls.
"""

from cgmvae.checks import ExperimentError
from cgmvae.experiment import Experiment, preset
from cgmvae.run import run

__version__ = "0.1.0"
__all__ = ["Experiment", "ExperimentError", "preset", "run", "__version__"]
