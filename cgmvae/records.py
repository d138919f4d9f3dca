"""The record of a finished run: results/runs/ID.json and back to a table.

It is written once, by a temporary name and a rename, and never overwritten. `schema` says what is in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cgmvae.checks import schema_of
from cgmvae.datasets import OWN_NAME, DataError
from cgmvae.disk import write_text
from cgmvae.experiment import NEUTRAL, Experiment, filled_in
from cgmvae.presets import PRESETS

Record = dict[str, Any]


def results_folder(given: Path | str | None = None) -> Path:
    """Where records go: the given folder, else CGMVAE_RESULTS, else the book's `results/`, else `results/` here."""
    if chosen := given or os.environ.get("CGMVAE_RESULTS"):
        return Path(os.path.expanduser(chosen))
    book = Path(__file__).resolve().parent.parent
    return (book if (book / "_toc.yml").exists() else Path.cwd()) / "results"


class Paths:
    """Where one run's files are, in a results folder."""

    def __init__(self, results: Path | str | None, experiment: Experiment) -> None:
        self.root = results_folder(results)
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
            raise DataError(f"results must be a folder that can be written to; it is "
                            f"'{self.root}' ({error}).") from error


def schema() -> dict[str, Any]:
    """The JSON schema of a record: `record.schema.json` beside this file, and the fields of Experiment.

    The file holds what does not depend on a registry. A field that came after the first records may
    be absent, and has its neutral value then.
    """
    whole = json.loads(Path(__file__).with_name("record.schema.json").read_text(encoding="utf-8"))
    kinds = typing.get_type_hints(Experiment)
    fields = dataclasses.fields(Experiment)
    whole["properties"] |= {
        "preset": {"description": "The scale.", "enum": [*PRESETS, "custom"]},
        "experiment": {
            "description": "Every choice that can change the result; cgmvae.Experiment explains each.",
            "type": "object", "additionalProperties": False,
            "required": [f.name for f in fields if f.name not in NEUTRAL],
            "properties": {f.name: schema_of(f, kinds[f.name]) for f in fields}}}
    named = whole["properties"]["experiment"]["properties"]["dataset"]
    whole["properties"]["experiment"]["properties"]["dataset"] = {"anyOf": [
        named, {"description": "a reader's own images", "type": "string",
                "pattern": f"^{OWN_NAME.pattern}$"}]}
    return whole


def information(record: Record) -> float:
    """I(x;y) of a record's test images, in nats; from older ones, kl_y - ln K + ln(perplexity)."""
    metrics = record["metrics"]
    if "test_information" in metrics:
        return metrics["test_information"]
    entropy = math.log(metrics["test_cluster_perplexity"])
    return max(0.0, metrics["test_kl_y"] - math.log(record["experiment"]["K"]) + entropy)


def write(record: Record, path: Path) -> None:
    """Write a record once. Raises DiskError, or FileExistsError rather than replace another."""
    if path.exists():
        if read(path)["experiment"] != record["experiment"]:
            raise FileExistsError(f"{path} holds the record of another run; it is left as it is.")
        return
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Record:
    """One record. Raises DataError, naming the file, if it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("id") != path.stem:
            raise ValueError("its id is not its name")
        record["experiment"] = filled_in(record["experiment"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a record ({error}). Move it away to run it again.") from error
    return record


def read_all(results: Path | str | None = None) -> list[Record]:
    """Every record in a results folder, by id."""
    return [read(path) for path in sorted((results_folder(results) / "runs").glob("*.json"))]


def frame(records: list[Record]) -> pd.DataFrame:
    """One row a record: its experiment, metrics, seconds and progress but for the curves.

    A score that a record has none of, as its images have no labels, is NaN.
    """
    return pd.DataFrame([{
        "id": r["id"], "preset": r["preset"], **r["experiment"],
        **{k: math.nan if v is None else v for k, v in r["metrics"].items()},
        "test_information": information(r),
        **{f"seconds_{k}": v for k, v in r["seconds"].items()},
        **{"epochs_run" if k == "epochs" else k: v
           for k, v in r["progress"].items() if k != "curves"},
        "device_name": r["environment"]["device_name"],
        "precision": r["environment"]["precision"]} for r in records])


def curves(record: Record) -> pd.DataFrame:
    """A record's training curves, one row an epoch."""
    return pd.DataFrame(record["progress"]["curves"]).set_index("epoch")


def clock(record: Record) -> np.ndarray:
    """Seconds of training at the end of each epoch, (epochs,).

    On a processor its own seconds, shared out evenly, as epochs are alike: what others ran beside it does not
    count, but for what they took of the caches. Elsewhere, and in older records, those on the wall.
    """
    seconds = curves(record).seconds.to_numpy()
    if record["environment"]["device"] != "cpu" or "processor" not in record["seconds"]:
        return seconds
    return np.arange(1, len(seconds) + 1) * record["seconds"]["processor"] / len(seconds)


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
                     test_kl_y=("test_kl_y", "mean"), test_information=("test_information", "mean"),
                     test_acc=("test_acc", "mean"),
                     epochs_run=("epochs_run", "mean"))
    return out.reset_index()
