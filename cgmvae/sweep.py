"""A loop that takes the missing runs of a table (see `tables`) in turn, and what it left so far."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from cgmvae import checkpoints, costs, data, devices, evaluation, records
from cgmvae.checks import whole_number
from cgmvae.experiment import Experiment
from cgmvae.run import Begun, interrupt_between_steps
from cgmvae.tables import TABLES, choices_of, runs
from cgmvae.training import NonFiniteLoss


@dataclass(frozen=True)
class State:
    """Where a run is: `done`, `unfinished` (it goes on from a checkpoint) or `missing`."""

    experiment: Experiment
    state: str
    step: int = 0


def states(name: str, folders: list[Path]) -> list[State]:
    """The state of each run of a table: done if any of the results folders has its record, unfinished if the last
    one, which is written to, has a checkpoint."""
    found = []
    for e in runs(name):
        paths = [records.Paths(folder, e) for folder in folders]
        checkpoint = paths[-1].checkpoint
        if any(p.record.exists() for p in paths):
            found.append(State(e, "done"))
        elif checkpoint.exists():
            step = json.loads(checkpoints.header(checkpoint, checkpoints.RUN)["progress"])["step"]
            found.append(State(e, "unfinished", step))
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


BAR = "{desc}: {percentage:3.0f}% of the work{postfix} runs |{bar}| {elapsed}, at most {remaining} left"


def work(e: Experiment, steps: int) -> float:
    """Operations of so many training steps, as `costs` counts them."""
    return steps * e.batch_size * costs.count(e).step


def sweep(name: str, *, out: Path, minutes: float, device: str = "auto", precision: str = "auto",
          at_once: int | None = None) -> int:
    """Run what is missing of a table until it is done or the time is up.

    A bar shows the share of the work that is done, by the count of operations, and the time left if no run
    stops early. Runs that are cut off, by the time, Ctrl-C or an error of another run, leave a checkpoint in `out`; the
    same call goes on with them first. A run whose loss is not finite is named, and the others go on. A run counts as
    done if its record is in `out` or in the book's results.

    Args:
        out: results folder to write to.
        minutes: stop in time to leave after so many.
        at_once: runs that share the device, their steps taken in turn; None: 1 on a CPU, which one
            run fills, and 8 on a GPU, which takes several to fill. How many shared is recorded,
            because it makes the seconds of one run longer.

    Returns:
        How many runs were finished.

    Raises KeyboardInterrupt after Ctrl-C, and what `run.run` raises but NonFiniteLoss.
    """
    place = devices.find_device(device)
    at_once = (8 if place.type == "cuda" else 1) if at_once is None else whole_number("at_once", at_once, 1)
    deadline = time.monotonic() + 60 * minutes
    todo = [s for s in states(name, [records.results_folder(), out]) if s.state != "done"]
    queue = iter(sorted(todo, key=lambda s: s.state != "unfinished"))
    active: deque[Active] = deque()
    finished = 0
    whole = sum(work(s.experiment, s.experiment.steps - s.step) for s in todo)
    with (tqdm(total=whole, desc=name, bar_format=BAR, postfix=f"0 of {len(todo)}") as bar,
          interrupt_between_steps() as interrupted):
        try:
            while time.monotonic() < deadline and not interrupted.is_set():
                while len(active) < at_once and (state := next(queue, None)):
                    active.append(Active(state.experiment, out, place, precision, at_once))
                if not active:
                    return finished
                run = active.popleft()  # and back after its step: what fails in it is not saved
                before = run.trainer.progress["step"]
                try:
                    ended = run.advance()
                except NonFiniteLoss as error:
                    bar.write(f"{run.experiment.id} stopped. {error}")
                    continue
                after = run.experiment.steps if ended else run.trainer.progress["step"]
                bar.update(work(run.experiment, after - before))
                if not ended:
                    active.append(run)
                    continue
                finished += 1
                bar.set_postfix_str(f"{finished} of {len(todo)}")
                bar.write(f"{run.experiment.id} done")
        except BaseException:
            for run in active:
                with contextlib.suppress(Exception):  # the first error is told; the last checkpoint is whole
                    run.stop()
            raise
    for run in active:
        run.stop()
    if interrupted.is_set():
        raise KeyboardInterrupt(f"{len(active)} runs left a checkpoint in {out}.")
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
        """Leave a checkpoint to go on from; where the loss is not finite the last good one stays."""
        with torch.cuda.stream(self.stream), contextlib.suppress(NonFiniteLoss):
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
    if not moved < tolerance:  # nor is it if it is no number
        checkpoints.save_weights(model, e, paths.published)
    return paths.published
