"""What several test files use: small experiments, a model small enough to enumerate, the chapters."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from cgmvae import data, training
from cgmvae.comparison import READINGS
from cgmvae.experiment import Experiment

CPU = torch.device("cpu")
CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def small(**changes) -> Experiment:
    """An experiment on real digits whose run takes about a second: 3 epochs of 5 steps.

    The Concrete GMVAE is eq. 8 to the letter, whose step has parts, a weight among them, that the default has not.
    """
    row = READINGS["literal"] if changes.get("estimator", "concrete") == "concrete" else {}
    return Experiment(**{**row, "dataset": "mnist-sample", "train_limit": 60, "batch_size": 10,
                         "epochs": 3, "annealing_steps": 20, "iw_samples": 2, "z_dim": 8,
                         **changes})


def trainer(experiment: Experiment, **choices) -> training.Trainer:
    """A trainer on the CPU with the experiment's images."""
    splits = data.split(experiment, data.load(experiment.dataset), CPU)
    return training.Trainer(experiment, splits, CPU, **choices)


def within(samples: Tensor, exact: Tensor | float, errors: float = 4.0) -> bool:
    """Whether the mean over the first dimension is within so many standard errors of `exact`."""
    error = samples.std(0) / math.sqrt(len(samples))
    return bool(((samples.mean(0) - exact).abs() <= errors * error + 1e-12).all())


class Toy(nn.Module):
    """GMVAE's methods for K = 3, D = 1 and two pixels, in float64, all written anew.

    A sum over 3 labels and a Gauss-Hermite rule over z give every expectation to about ten
    digits, and so does automatic differentiation their gradients.
    """

    K, z_dim = 3, 1
    decoder = SimpleNamespace(map_shape=(1, 1, 2), full1=None)

    def __init__(self, seed: int = 2) -> None:
        super().__init__()
        random = np.random.default_rng(seed)
        shapes = {"q_y_x": (2, 3), "q_y_0": (3,), "q_mean_x": (2, 1), "q_mean_y": (3, 1),
                  "q_scale_x": (2, 1), "q_scale_y": (3, 1), "p_mean": (3, 1), "p_scale": (3, 1),
                  "x_z": (1, 2), "x_0": (2,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(random.normal(size=shape))))
        with torch.no_grad():
            for p in (self.q_scale_x, self.q_scale_y, self.p_scale):
                p.mul_(0.2)
            for p in (self.q_mean_x, self.q_mean_y, self.p_mean):
                p.mul_(0.5)

    def encode(self, x: Tensor) -> Tensor:
        return x.double().flatten(1)

    def logits_y(self, h: Tensor) -> Tensor:
        return h @ self.q_y_x + self.q_y_0

    def log_q_y(self, h: Tensor) -> Tensor:
        return torch.log_softmax(self.logits_y(h), -1)

    def log_p_y(self) -> float:
        return math.log(1 / 3)

    def q_z_h(self, h: Tensor) -> Tensor:
        return h

    def q_z_given(self, h: Tensor, y: Tensor) -> Normal:
        y = self._weights(y)
        return Normal(h @ self.q_mean_x + y @ self.q_mean_y,
                      (h @ self.q_scale_x + y @ self.q_scale_y).exp())

    def p_z(self, y: Tensor) -> Normal:
        y = self._weights(y)
        return Normal(y @ self.p_mean, (y @ self.p_scale - 0.2).exp())

    def log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        logits = torch.tanh(z @ self.x_z) * 2 + self.x_0
        return Bernoulli(logits=logits).log_prob(x.double().flatten(1)).sum(-1)

    @staticmethod
    def _weights(y: Tensor) -> Tensor:
        return y if y.is_floating_point() else nn.functional.one_hot(y, 3).double()


def toy_images(copies: int) -> Tensor:
    """Two different images of two pixels, each so many times: (2 copies, 1, 1, 2), float64."""
    pixels = torch.tensor([[1, 0], [1, 1]], dtype=torch.float64)
    return pixels.repeat_interleave(copies, 0).view(-1, 1, 1, 2)


def by_image(values: Tensor) -> Tensor:
    """(2 copies,) to (copies, 2): a column an image of `toy_images`."""
    return values.view(2, -1).T


def hermite(normal: Normal, nodes: int = 80) -> tuple[Tensor, Tensor]:
    """Points (nodes, *shape) and weights (nodes,) of E under a normal of any shape."""
    points, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(nodes))
    points = points.view(-1, *[1] * normal.loc.dim())
    return normal.loc + normal.scale * points, weights / weights.sum()


def exact_terms(toy: Toy, x: Tensor) -> dict[str, Tensor]:
    """The exact terms of eq. 5 for each image, (B,), differentiable; `label_*` are (K, B)."""
    h = toy.encode(x)
    log_q_y = toy.log_q_y(h)
    label_log_px, label_kl_z = [], []
    for k in range(3):
        y = torch.full((len(x),), k)
        q_z, p_z = toy.q_z_given(h, y), toy.p_z(y)
        z, weights = hermite(q_z)
        label_log_px.append((weights[:, None] * toy.log_p_x(x, z)).sum(0))
        label_kl_z.append(kl_divergence(q_z, p_z).sum(-1))
    q_y = log_q_y.exp().T
    return {"label_log_px": torch.stack(label_log_px), "label_kl_z": torch.stack(label_kl_z),
            "log_px": (q_y * torch.stack(label_log_px)).sum(0),
            "kl_z": (q_y * torch.stack(label_kl_z)).sum(0),
            "kl_y": sum(q_y[k] * (q_y[k].log() - math.log(1 / 3)) for k in range(3))}


def exact_elbo(toy: Toy, x: Tensor) -> Tensor:
    """Eq. 5 for each image, (B,), differentiable."""
    terms = exact_terms(toy, x)
    return terms["log_px"] - terms["kl_z"] - terms["kl_y"]


def exact_log_p_x(toy: Toy, x: Tensor) -> Tensor:
    """ln p(x) for each image, (B,)."""
    parts = []
    for k in range(3):
        z, weights = hermite(toy.p_z(torch.full((len(x),), k)))
        parts.append((weights[:, None] * toy.log_p_x(x, z).exp()).sum(0))
    return (sum(parts) / 3).log()


# Choices that cannot be run: what to change, the field that is named, what is said to be allowed.
BAD = {
    "K zero": ({"K": 0}, "K", "a whole number of at least 1"),
    "K negative": ({"K": -1}, "K", "a whole number of at least 1"),
    "K fraction": ({"K": 2.5}, "K", "a whole number of at least 1"),
    "K text": ({"K": "abc"}, "K", "a whole number of at least 1"),
    "tau zero": ({"tau": 0}, "tau", "a number above 0"),
    "tau negative": ({"tau": -0.3}, "tau", "a number above 0"),
    "tau nan": ({"tau": "nan"}, "tau", "a number above 0"),
    "tau text": ({"tau": "warm"}, "tau", "a number"),
    "estimator": ({"estimator": "reinforce"}, "estimator",
                  "one of 'concrete', 'marginal', 'straight_through', 'score_function'"),
    "dataset": ({"dataset": "cifar10"}, "dataset",
                "one of 'mnist', 'cifar100', 'mnist-sample', 'cifar100-sample'"),
    "schedule": ({"annealing": "cosine"}, "annealing",
                 "one of 'ramp', 'printed', 'linear', 'none'"),
    "annealing_steps": ({"annealing_steps": 0}, "annealing_steps", "at least 1"),
    "epochs": ({"epochs": 0}, "epochs", "a whole number of at least 1"),
    "batch": ({"train_limit": 60, "batch_size": 55}, "batch_size", "at most the 54 images"),
    "batch zero": ({"batch_size": 0}, "batch_size", "a whole number of at least 1"),
    "kl_y_form": ({"kl_y_form": "exact"}, "kl_y_form", "one of 'relaxed', 'categorical'"),
    "likelihood": ({"likelihood": "poisson"}, "likelihood",
                   "one of 'bernoulli', 'cross_entropy', 'gaussian'"),
    "binarisation": ({"binarisation": "otsu"}, "binarisation",
                     "one of 'threshold', 'static', 'dynamic', 'none'"),
    "grey Bernoulli": ({"likelihood": "bernoulli", "binarisation": "none"}, "binarisation",
                       "'threshold', 'static' or 'dynamic'"),
    "static views": ({"binarisation": "static", "views": "digits"}, "binarisation", "'threshold' or 'dynamic' with views"),
    "padding": ({"padding": "full"}, "padding", "one of 'same', 'valid'"),
    "z_dim": ({"z_dim": 0}, "z_dim", "a whole number of at least 1"),
    "decoder_units": ({"decoder_units": -1}, "decoder_units", "a whole number of at least 0"),
    "tau_start": ({"tau_start": 0}, "tau_start", "a number above 0"),
    "initialisation": ({"initialisation": "xavier"}, "initialisation", "one of 'torch', 'glorot', 'he'"),
    "beta": ({"beta": 0}, "beta", "a number above 0"),
    "kl_z_form": ({"kl_z_form": "exact"}, "kl_z_form", "one of 'sampled', 'closed'"),
    "learning_rate": ({"learning_rate": 0}, "learning_rate", "a number above 0"),
    "learning_rate inf": ({"learning_rate": "inf"}, "learning_rate", "a number above 0"),
    "patience": ({"patience": 0}, "patience", "a whole number of at least 1"),
    "validation_fraction": ({"validation_fraction": 1}, "validation_fraction",
                            "a number between 0 and 1"),
    "no validation": ({"validation_fraction": 0.0001}, "validation_fraction",
                      "leaves at least one of the 4000 images"),
    "train_limit": ({"train_limit": 4001}, "train_limit", "from 2 to the 4000 training images"),
    "iw_samples": ({"iw_samples": 0}, "iw_samples", "a whole number of at least 1"),
    "labelled": ({"labelled": 5}, "labelled", "0, or from the 10 classes to the"),
    "labelled, too few clusters": ({"K": 9, "labelled": 20}, "K", "at least the 10 classes"),
    "seed": ({"seed": -1}, "seed", "a whole number from 0"),
    "huge seed": ({"seed": 2**64}, "seed", "a whole number from 0"),
    "too many clusters": ({"K": 10**9, "estimator": "marginal"}, "K", "at most about "),
    "too many, one sampled": ({"K": 10**10, "estimator": "concrete"}, "K", "at most about "),
}
# The same for how a run is carried out.
BAD_PLACES = {
    "device": ({"device": "tpu"}, "device", "one of 'auto', 'cpu', 'cuda', 'mps'"),
    "precision": ({"precision": "fp8"}, "precision", "one of 'auto', 'float32', 'tf32', 'bf16'"),
    "tf32 on the CPU": ({"device": "cpu", "precision": "tf32"}, "precision", "'float32' or 'bf16'"),
    "compile": ({"compile": "jit"}, "compile", "one of 'auto', 'graph', 'none'"),
    "graph on the CPU": ({"device": "cpu", "compile": "graph"}, "compile", "'none' on cpu"),
}


def assert_says(message: str, choices: dict, field: str, allowed: str) -> None:
    """One sentence that names the field, the value and what is allowed."""
    assert message.startswith(f"{field} must be ") and "\n" not in message, message
    assert str(choices[field]) in message.split("; it is ")[1], message
    assert allowed in message, message


def comparable(record: dict) -> dict:
    """A record without what differs between two equal runs: the clock, and where it ran."""
    clock = ("images_per_second", "seconds", "curves")
    progress = {k: v for k, v in record["progress"].items() if k not in clock}
    curves = [{k: v for k, v in row.items() if k not in clock}
              for row in record["progress"]["curves"]]
    return {"id": record["id"], "experiment": record["experiment"], "metrics": record["metrics"],
            "progress": progress, "curves": curves}
