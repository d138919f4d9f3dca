"""Which runs make which table: lists of experiments.

A list is in the order in which its runs should be made: seed by seed across the cells, so that error bars
appear early. `sweep` runs them one after another, `workflow/Snakefile` through papermill.
"""

from __future__ import annotations

from cgmvae.agreement import RECIPE
from cgmvae.checks import one_of
from cgmvae.comparison import READINGS
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment, preset

LITERAL = READINGS["literal"]
CELLS = [{"dataset": d, **row} for d in ("mnist", "cifar100") for row in (LITERAL, {"estimator": "marginal"})]
SMALL_CELLS = [{"dataset": "mnist", **LITERAL}, {"dataset": "mnist", "estimator": "marginal"},
               {"dataset": "cifar100", **LITERAL}]
CLUSTERS = {"dataset": "mnist", "epochs": 20, **RECIPE}
PHOTO_CLUSTERS = {**CLUSTERS, "dataset": "cifar100", "views": "photos"}
GARMENTS = {**CLUSTERS, "dataset": "fashion-mnist", "seeds": 3}


def runs(name: str) -> list[Experiment]:
    """The experiments of a table, in order. Raises ExperimentError for a name that is none."""
    one_of("table", name, TABLES)
    scale, seeds, cells = TABLES[name]
    return [preset(scale, seed=seed, **choices_of(cell)) for seed in range(seeds) for cell in cells
            if seed < cell.get("seeds", seeds)]


def choices_of(cell: dict) -> dict:
    """A cell's fields of Experiment; `seeds`, if it is there, says that it has fewer than others."""
    return {k: v for k, v in cell.items() if k != "seeds"}


TABLES = {
    # Table 1 of the paper: four cells, eleven seeds.
    "table1": ("paper", 11, CELLS),
    # The same with 50 epochs at most, and the Concrete row in both readings: for processors.
    "half": ("half", 5, [*({"dataset": d, **reading} for reading in READINGS.values()
                           for d in ("mnist", "cifar100")),
                         *({"dataset": d, "estimator": "marginal", "seeds": 3}
                           for d in ("mnist", "cifar100"))]),
    # What would give the paper's numbers? One change at a time from the literal cell of `half`.
    "study": ("half", 1, [{"dataset": d, **LITERAL, **change} for change in (
        {"decoder_units": 512}, {"initialisation": "torch"}, {"initialisation": "he"},
        {"decoder_units": 512, "initialisation": "torch"}, {"batch_size": 32}, {"batch_size": 256},
        {"z_dim": 10}, {"z_dim": 32}, {"z_dim": 128}, {"padding": "valid"}, {"beta": 0.5},
        {"kl_z_form": "closed"}, {"annealing": "printed"}, {"annealing": "none"})
        for d in ("mnist", "cifar100")] + [
        {"dataset": "mnist", **LITERAL, "binarisation": b} for b in ("static", "dynamic")]),
    # An exact sum in one pass, beside the rows of `half`.
    "one_pass": ("half", 3, [{"dataset": d, "estimator": e} for e in ("factored", "collapsed")
                             for d in ("mnist", "cifar100")]),
    # Labels that find digits: the recipe of `agreement`, both estimators, and the same without views; photographs;
    # and garments, to which no choice of the recipe was fitted.
    "clusters": ("half", 15, [{**CLUSTERS}, {**CLUSTERS, "estimator": "marginal", "seeds": 3},
                              {**CLUSTERS, "views": "none", "seeds": 3}, {**PHOTO_CLUSTERS, "seeds": 3},
                              {**PHOTO_CLUSTERS, "agreement": 1000.0, "epochs": 60, "seeds": 3},
                              *({**GARMENTS, "views": views} for views in ("digits", "photos", "none"))]),
    # The same with the class of 100 digits told, with views and without.
    "labels": ("half", 10, [{**CLUSTERS, "labelled": 100}, {**CLUSTERS, "labelled": 100, "views": "none", "seeds": 3}]),
    # More clusters than classes, on 20,000 training images: plain and by the recipe, and the sum as far as it can go.
    "many_clusters": ("small", 1, [
        *({**kind, "K": K} for K in (10, 20, 50, 100, 1000)
          for kind in (*({"dataset": d, **READINGS["closed"]} for d in ("mnist", "cifar100")), CLUSTERS, PHOTO_CLUSTERS)),
        *({"dataset": "mnist", "estimator": "marginal", "K": K} for K in (10, 20, 50, 100))]),
    # What each part of the recipe is worth: one change at a time, on 20,000 training images.
    "parts": ("small", 3, [{**CLUSTERS, "epochs": 8, **change} for change in (
        {}, {"views": "same"}, {"balanced": False}, {"spread_logits": False},
        {"initialisation": "torch"}, {"initialisation": "he"}, {"agreement": 10.0},
        {"agreement": 1000.0}, {"agreement": 1e6},  # beside the last one the ELBO is nothing to the encoder
        {"learning_rate_schedule": "constant"}, {"views": "none"})]),
    # The same on 20,000 training images: under an hour on a laptop.
    "small": ("small", 3, SMALL_CELLS),
    # The choices that the paper does not report and that move its numbers most.
    "unreported": ("paper", 3, [
        *({"dataset": "mnist", **LITERAL, "binarisation": b, "z_dim": D}
          for b in ("threshold", "static", "dynamic") for D in (10, 64)),
        *({"dataset": "cifar100", **LITERAL, "likelihood": p, "z_dim": D}
          for p in ("cross_entropy", "gaussian") for D in (10, 64, 128)),
        {"dataset": "mnist", "estimator": "marginal", "annealing": "ramp"}]),
    # Annealing against the two readings of KL(q(y|x)||p(y)).
    "annealing": ("paper", 3, [
        {"dataset": "mnist", "annealing": a, "kl_y_form": k}
        for a in ("ramp", "printed", "linear", "none") for k in ("relaxed", "categorical")]),
    "temperature": ("paper", 3, [{"dataset": "mnist", **LITERAL, "tau": tau} for tau in (0.1, 0.3, 0.5, 1.0)]),
    # Every estimator on 20,000 training images, Concrete in both readings and with a temperature that falls; the
    # main ones also on CIFAR-100.
    "estimators": ("small", 3, [
        *({"dataset": "mnist", **READINGS[reading]} for reading in READINGS),
        {"dataset": "mnist", **READINGS["closed"], "tau_start": 1.0, "tau": 0.1},
        *({"dataset": "mnist", "estimator": e} for e in ESTIMATORS if e != "concrete"),
        {"dataset": "cifar100", **READINGS["closed"], "seeds": 1},
        *({"dataset": "cifar100", "estimator": e, "seeds": 1}
          for e in ("marginal", "sum_and_sample", "leave_one_out_2", "reinmax", "rao_blackwell"))]),
    # One choice at a time, reported or not, on 20,000 digits: about an hour of one core.
    "small_study": ("small", 3, [{"dataset": "mnist", **LITERAL, **choice} for choice in (
        {"annealing": "none"}, {"kl_y_form": "categorical"},
        {"annealing": "none", "kl_y_form": "categorical"}, {"binarisation": "static"},
        {"binarisation": "dynamic"}, {"z_dim": 10}, {"estimator": "marginal", "annealing": "ramp"})]),
    # A minute's work, to try a machine or a cluster out.
    "trial": ("quick", 2, [{"dataset": "cifar100", "epochs": 1}, {"dataset": "mnist", "epochs": 1}]),
}
"""Name: scale, number of seeds, cells."""
