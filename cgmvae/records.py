"""A finished run: an Experiment in, results/runs/ID.json out, and back to a table.

A record is written once, by a temporary name and a rename, and never overwritten.
`record.schema.json` beside this file says what is in it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cgmvae import checkpoints, data, devices, evaluation, parallel, training
from cgmvae.experiment import Experiment, filled_in

Record = dict[str, Any]


def results_folder() -> Path:
    """Where records go: CGMVAE_RESULTS, else the book's `results/`, else `results/` here."""
    if chosen := os.environ.get("CGMVAE_RESULTS"):
        return Path(chosen)
    book = Path(__file__).resolve().parent.parent
    return (book if (book / "_toc.yml").exists() else Path.cwd()) / "results"


def run(experiment: Experiment, *, device: str = "auto", precision: str = "auto",
        compile: str = "auto", results: Path | str | None = None,
        progress_bar: bool | None = None) -> Record:
    """Train, evaluate and record one experiment; the notebooks and the shell call this.

    A run that has a record is not repeated: the record is returned. A run that was interrupted
    goes on from its checkpoint and ends as if it had not been.

    Under `torchrun` the processes share the run, and the first one writes (see `parallel`).

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision, compile: see `training.Trainer`.
        results: the folder for runs/ and weights/; None: `results_folder()`.
        progress_bar: None shows one only on a terminal.

    Returns:
        The record, as in results/runs/ID.json; the weights are in results/weights/.

    Raises:
        ExperimentError, DataError, CheckpointError: bad input, before any work.
        NonFiniteLoss: during it.
    """
    place = devices.find_device(device)
    devices.find_precision(precision, place)
    devices.find_compilation(compile, place)
    paths = Paths(results, experiment)
    if paths.record.exists():
        return read(paths.record)
    devices.check_memory(experiment, place)
    paths.check_writable()
    images = data.load(experiment.dataset)
    with parallel.group(experiment, place) as place:
        splits = data.split(experiment, images, place)
        trainer = training.Trainer(experiment, splits, place, precision=precision, compile=compile,
                                   checkpoint=paths.checkpoint)
        parallel.wait()  # until all have read the checkpoint that the first goes on to write
        training.fit(trainer, progress_bar)
        if parallel.first():
            finish(trainer, images.digest, paths)
        parallel.wait()
    return read(paths.record)


class Paths:
    """Where one run's files are, in a results folder."""

    def __init__(self, results: Path | str | None, experiment: Experiment) -> None:
        self.root = results_folder() if results is None else Path(results)
        self.record = self.root / "runs" / f"{experiment.id}.json"
        self.weights = self.root / "weights" / f"{experiment.id}.safetensors"
        self.published = self.root / "checkpoints" / f"{experiment.id}.safetensors"
        self.checkpoint = self.root / "unfinished" / f"{experiment.id}.safetensors"

    def check_writable(self) -> None:
        """Make the folders. Raises DataError if that cannot be done."""
        try:
            for path in (self.record, self.weights, self.checkpoint):
                path.parent.mkdir(parents=True, exist_ok=True)
                if not os.access(path.parent, os.W_OK):
                    raise PermissionError(f"no permission to write to {path.parent}")
        except OSError as error:
            raise data.DataError(f"results must be a folder that can be written to; it is "
                                 f"'{self.root}' ({error}).") from error


def finish(trainer: training.Trainer, digest: str, paths: Paths, at_once: int = 1) -> Record:
    """Evaluate a trained model and write its weights and record; the checkpoint goes.

    `at_once` is how many runs shared the device meanwhile.
    """
    e, progress = trainer.experiment, trainer.progress
    with trainer.clock("evaluation"):
        metrics = evaluation.evaluate(trainer.model, trainer.splits, e)
    seconds = {k: round(v, 3) for k, v in progress["seconds"].items()}
    last = progress["curves"][-1]
    record = {
        "id": e.id, "preset": e.preset, "experiment": e.as_dict(), "metrics": metrics,
        "seconds": seconds,
        "progress": {"epochs": progress["epoch"], "steps": progress["step"],
                     "best_epoch": progress["best_epoch"],
                     "best_validation_loss": progress["best_loss"],
                     "images_per_second": round(progress["step"] * e.batch_size
                                                / seconds["training"], 1),
                     "stopped": progress["stopped"], "final_train_kl_y": last["kl_y"],
                     "curves": progress["curves"]},
        "environment": {**environment(trainer.device, trainer.precision, trainer.compile, digest),
                        "runs_at_once": at_once, "processes": parallel.size()}}
    checkpoints.save_weights(trainer.model, e, paths.weights)
    write(record, paths.record)
    # Also what a kill in the middle of a checkpoint's write left behind.
    for path in (paths.checkpoint, *paths.checkpoint.parent.glob(f".{paths.checkpoint.name}.*")):
        path.unlink(missing_ok=True)
    return record


def environment(device: torch.device, precision: str, compile: str, digest: str) -> dict[str, Any]:
    """What the run ran on: hardware, versions, code and data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    libraries = {}
    for library in ("torch", "numpy", "scikit-learn", "safetensors", "cgmvae"):
        try:
            libraries[library] = version(library)
        except PackageNotFoundError:
            libraries[library] = "not installed"
    return {"device": device.type, "device_name": name, "precision": precision, "compile": compile,
            "threads": torch.get_num_threads(), "system": platform.system(),
            "python": platform.python_version(), "libraries": libraries, "git_commit": _commit(),
            "data_digest": digest}


def processor() -> str:
    """The name of this machine's processor."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the code, with a + where files had changed since; `unknown` outside git."""
    here = Path(__file__).resolve().parent
    try:
        out = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
                             cwd=here, capture_output=True, text=True, timeout=10)
        return out.stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def write(record: Record, path: Path) -> None:
    """Write a record once. Raises DiskError, or FileExistsError rather than replace another."""
    if path.exists():
        if read(path)["experiment"] != record["experiment"]:
            raise FileExistsError(f"{path} holds the record of another run; it is left as it is.")
        return
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    with checkpoints.whole_file(path, len(text)) as temporary:
        temporary.write_text(text)


def read(path: Path) -> Record:
    """One record. Raises data.DataError, naming the file, if it is not one."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or record.get("id") != path.stem:
            raise ValueError("its id is not its name")
        record["experiment"] = filled_in(record["experiment"])
    except ValueError as error:
        raise data.DataError(f"{path} is not a record ({error}). Move it away to run it again."
                             ) from error
    return record


def read_all(results: Path | str | None = None) -> list[Record]:
    """Every record in a results folder, by id."""
    root = results_folder() if results is None else Path(results)
    return [read(path) for path in sorted((root / "runs").glob("*.json"))]


def frame(records: list[Record]) -> pd.DataFrame:
    """One row a record: its experiment, metrics, seconds and progress but for the curves."""
    return pd.DataFrame([{
        "id": r["id"], "preset": r["preset"], **r["experiment"], **r["metrics"],
        **{f"seconds_{k}": v for k, v in r["seconds"].items()},
        **{"epochs_run" if k == "epochs" else k: v
           for k, v in r["progress"].items() if k != "curves"},
        "device_name": r["environment"]["device_name"],
        "precision": r["environment"]["precision"]} for r in records])


def curves(record: Record) -> pd.DataFrame:
    """A record's training curves, one row an epoch."""
    return pd.DataFrame(record["progress"]["curves"]).set_index("epoch")


def table(records: list[Record]) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds of each group of runs that differ only in seed."""
    rows = frame(records)
    if rows.empty:
        return rows
    fields = [f for f in Experiment.__dataclass_fields__ if f != "seed"]
    groups = rows.groupby(["preset", *fields], dropna=False, sort=False)
    out = groups.agg(n=("seed", "count"), test_log_px=("test_log_px", "mean"),
                     sd=("test_log_px", "std"), hours=("seconds_training", lambda s: s.mean() / 3600),
                     hours_sd=("seconds_training", lambda s: s.std() / 3600),
                     test_kl_y=("test_kl_y", "mean"), test_acc=("test_acc", "mean"),
                     epochs_run=("epochs_run", "mean"))
    return out.reset_index()
