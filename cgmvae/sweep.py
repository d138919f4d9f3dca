"""Which runs make which table, and a loop that takes the missing ones in turn.

A table is a list of experiments, in the order in which they should be run: seed by seed across its
cells, so that error bars appear early. `workflow/Snakefile` runs the same lists through papermill.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from cgmvae import checkpoints, data, devices, evaluation, records
from cgmvae.agreement import RECIPE
from cgmvae.checks import at_least, one_of
from cgmvae.comparison import READINGS
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment, preset
from cgmvae.run import Begun

CELLS = [{"dataset": d, "estimator": e} for d in ("mnist", "cifar100") for e in ("concrete", "marginal")]
SMALL_CELLS = [{"dataset": "mnist", "estimator": "concrete"},
               {"dataset": "mnist", "estimator": "marginal"},
               {"dataset": "cifar100", "estimator": "concrete"}]
CLUSTERS = {"dataset": "mnist", "epochs": 20, **RECIPE}
PHOTO_CLUSTERS = {**CLUSTERS, "dataset": "cifar100", "views": "photos"}


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
    "study": ("half", 1, [{"dataset": d, **READINGS["literal"], **change} for change in (
        {"decoder_units": 512}, {"initialisation": "torch"}, {"initialisation": "he"},
        {"decoder_units": 512, "initialisation": "torch"}, {"batch_size": 32}, {"batch_size": 256},
        {"z_dim": 10}, {"z_dim": 32}, {"z_dim": 128}, {"padding": "valid"}, {"beta": 0.5},
        {"kl_z_form": "closed"}, {"annealing": "printed"}, {"annealing": "none"})
        for d in ("mnist", "cifar100")] + [
        {"dataset": "mnist", **READINGS["literal"], "binarisation": b} for b in ("static", "dynamic")]),
    # An exact sum in one pass, beside the rows of `half`.
    "one_pass": ("half", 3, [{"dataset": d, "estimator": e} for e in ("factored", "collapsed")
                             for d in ("mnist", "cifar100")]),
    # Labels that find digits: the recipe of `agreement`, both estimators, and the same without views; and photographs.
    "clusters": ("half", 5, [{**CLUSTERS}, {**CLUSTERS, "estimator": "marginal", "seeds": 3},
                             {**CLUSTERS, "views": "none", "seeds": 3}, {**PHOTO_CLUSTERS, "seeds": 3}]),
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
        {"agreement": 1000.0}, {"learning_rate_schedule": "constant"}, {"views": "none"})]),
    # The same on 20,000 training images: under an hour on a laptop.
    "small": ("small", 3, SMALL_CELLS),
    # The choices that the paper does not report and that move its numbers most.
    "unreported": ("paper", 3, [
        *({"dataset": "mnist", "binarisation": b, "z_dim": D}
          for b in ("threshold", "static", "dynamic") for D in (10, 64)),
        *({"dataset": "cifar100", "likelihood": p, "z_dim": D}
          for p in ("cross_entropy", "gaussian") for D in (10, 64, 128)),
        {"dataset": "mnist", "estimator": "marginal", "annealing": "ramp"}]),
    # Annealing against the two readings of KL(q(y|x)||p(y)).
    "annealing": ("paper", 3, [
        {"dataset": "mnist", "annealing": a, "kl_y_form": k}
        for a in ("ramp", "printed", "linear", "none") for k in ("relaxed", "categorical")]),
    "temperature": ("paper", 3, [{"dataset": "mnist", "tau": tau} for tau in (0.1, 0.3, 0.5, 1.0)]),
    # Every estimator on 20,000 training images, Concrete in both readings; the main ones also on CIFAR-100.
    "estimators": ("small", 3, [
        *({"dataset": "mnist", **READINGS[reading]} for reading in READINGS),
        *({"dataset": "mnist", "estimator": e, "annealing": "none"} for e in ESTIMATORS if e != "concrete"),
        {"dataset": "cifar100", **READINGS["closed"], "seeds": 1},
        *({"dataset": "cifar100", "estimator": e, "annealing": "none", "seeds": 1}
          for e in ("marginal", "sum_and_sample", "leave_one_out_2", "reinmax", "rao_blackwell"))]),
    # One choice at a time, reported or not, on 20,000 digits: about an hour of one core.
    "small_study": ("small", 3, [{"dataset": "mnist", **choice} for choice in (
        {"annealing": "none"}, {"kl_y_form": "categorical"},
        {"annealing": "none", "kl_y_form": "categorical"}, {"binarisation": "static"},
        {"binarisation": "dynamic"}, {"z_dim": 10}, {"estimator": "marginal", "annealing": "ramp"})]),
    # A minute's work, to try a machine or a cluster out.
    "trial": ("quick", 2, [{"dataset": "cifar100", "epochs": 1}, {"dataset": "mnist", "epochs": 1}]),
}
"""Name: scale, number of seeds, cells."""


@dataclass(frozen=True)
class State:
    """Where a run is: `done`, `unfinished` (it goes on from a checkpoint) or `missing`."""

    experiment: Experiment
    state: str
    epoch: int = 0


def states(name: str, folders: list[Path]) -> list[State]:
    """The state of each run of a table, looked for in every one of the results folders."""
    found = []
    for e in runs(name):
        paths = [records.Paths(folder, e) for folder in folders]
        unfinished = next((p.checkpoint for p in paths if p.checkpoint.exists()), None)
        if any(p.record.exists() for p in paths):
            found.append(State(e, "done"))
        elif unfinished:
            epoch = json.loads(checkpoints.header(unfinished, checkpoints.RUN)["progress"])["epoch"]
            found.append(State(e, "unfinished", epoch))
        else:
            found.append(State(e, "missing"))
    return found


def status(name: str, folders: list[Path]) -> pd.DataFrame:
    """How many runs of each cell are done, unfinished and missing."""
    rows = [{**varied_fields(s.experiment, name), "state": s.state} for s in states(name, folders)]
    table = pd.DataFrame(rows)
    cells = [c for c in table.columns if c != "state"]
    counts = table.groupby(cells, sort=False, dropna=False)["state"].value_counts().unstack(fill_value=0)
    return counts.reindex(columns=["done", "unfinished", "missing"], fill_value=0).reset_index()


def varied_fields(e: Experiment, name: str) -> dict:
    """The fields that tell the cells of a table apart."""
    keys = dict.fromkeys(itertools.chain.from_iterable(map(choices_of, TABLES[name][2])))
    return {"dataset": e.dataset, "estimator": e.estimator, "K": e.K} | {k: getattr(e, k) for k in keys}


def sweep(name: str, *, out: Path, minutes: float, device: str = "auto", precision: str = "auto",
          at_once: int | None = None) -> int:
    """Run what is missing of a table until it is done or the time is up.

    Runs that are cut off leave a checkpoint in `out`; the same call goes on with them first. A run
    counts as done if its record is in `out` or in the book's results.

    Args:
        out: results folder to write to.
        minutes: stop in time to leave after so many.
        at_once: runs that share the device, their steps taken in turn; None: 1 on a CPU, which one
            run fills, and 8 on a GPU, which takes several to fill. How many shared is recorded,
            because it makes the seconds of one run longer.

    Returns:
        How many runs were finished.
    """
    place = devices.find_device(device)
    at_once = at_once or (8 if place.type == "cuda" else 1)
    at_least("at_once", at_once, 1)
    deadline = time.monotonic() + 60 * minutes
    todo = [s for s in states(name, [records.results_folder(), out]) if s.state != "done"]
    queue = iter(sorted(todo, key=lambda s: s.state != "unfinished"))
    active: list[Active] = []
    finished = 0
    with tqdm(total=len(todo), desc=name, unit="run") as bar:
        while time.monotonic() < deadline:
            while len(active) < at_once and (state := next(queue, None)):
                active.append(Active(state.experiment, out, place, precision, at_once))
            if not active:
                return finished
            for run in list(active):
                if run.advance():
                    active.remove(run)
                    finished += 1
                    bar.update()
                    bar.write(f"{run.experiment.id} done")
    for run in active:
        run.stop()
    return finished


class Active:
    """One run that shares the device with others: its trainer, on a stream of its own."""

    def __init__(self, experiment: Experiment, out: Path, device: torch.device, precision: str,
                 at_once: int) -> None:
        self.experiment, self.at_once = experiment, at_once
        self.begun = Begun(experiment, device, records.Paths(out, experiment))
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.cuda.stream(self.stream):  # does nothing for None
            self.trainer = self.begun.trainer(device, precision)
        self.steps: Iterator[dict] = self.trainer.run()

    def advance(self) -> bool:
        """Take one step; after the last, evaluate and record, and return True."""
        with torch.cuda.stream(self.stream):
            if next(self.steps, None) is not None:
                return False
            self.begun.finish(self.trainer, self.at_once)
            return True

    def stop(self) -> None:
        """Leave a checkpoint to go on from."""
        with torch.cuda.stream(self.stream):
            self.trainer.save()
            self.trainer.writer.wait()


def publish(name: str, results: Path, tolerance: float = 0.1) -> list[Path]:
    """Write the model of the median seed of each finished cell to results/checkpoints.

    In half precision if that moves the test value by less than `tolerance` nats, else in single.
    """
    by_cell: dict[str, list[records.Record]] = {}
    for e in runs(name):
        paths = records.Paths(results, e)
        if paths.record.exists():
            by_cell.setdefault(json.dumps(e.but(seed=0).as_dict()), []).append(records.read(paths.record))
    written = []
    for cell in by_cell.values():
        middle = statistics.median_low(r["metrics"]["test_log_px"] for r in cell)
        record = next(r for r in cell if r["metrics"]["test_log_px"] == middle)
        e = Experiment(**record["experiment"])
        paths = records.Paths(results, e)
        if paths.weights.exists():
            written.append(publish_one(e, paths, middle, tolerance))
    return written


def publish_one(e: Experiment, paths: records.Paths, value: float, tolerance: float) -> Path:
    """Write one model to results/checkpoints, halved if its test value stays put."""
    model, _ = checkpoints.load_weights(paths.weights)
    checkpoints.save_weights(model, e, paths.published, half=True)
    halved, _ = checkpoints.load_weights(paths.published)
    splits = data.split(e, data.load(e.dataset), torch.device("cpu"))
    moved = abs(evaluation.evaluate(halved, splits, e.but(iw_samples=1))["test_log_px"] - value)
    if moved >= tolerance:
        checkpoints.save_weights(model, e, paths.published)
    return paths.published
