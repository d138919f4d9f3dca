"""An Experiment in, a record out: what notebooks, the shell and the sweep call."""

from __future__ import annotations

import contextlib
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cgmvae import checkpoints, data, devices, disk, evaluation, parallel, records
from cgmvae.experiment import Experiment
from cgmvae.records import Paths, Record
from cgmvae.training import Trainer


def run(experiment: Experiment, *, device: str = "auto", precision: str = "auto",
        compile: str = "auto", results: Path | str | None = None,
        progress_bar: bool | None = None) -> Record:
    """Train, evaluate and record one experiment.

    A run that has a record is not repeated: the record is returned. A run that was interrupted
    goes on from its checkpoint and ends as if it had not been.

    Under `torchrun` the processes share the run, and the first one writes (see `parallel`); there a run that was
    interrupted within an epoch draws other noise for the rest of it.

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision, compile: see `training.Trainer`.
        results: the folder for runs/ and weights/; None: `records.results_folder()`.
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
        return records.read(paths.record)
    begun = Begun(experiment, place, paths)
    with parallel.group(experiment, place) as place:
        trainer = begun.trainer(place, precision, compile)
        parallel.wait()  # until all have read the checkpoint that the first goes on to write
        fit(trainer, progress_bar)
        if parallel.first():
            begun.finish(trainer)
        parallel.wait()
    return records.read(paths.record)


class Begun:
    """A run whose images are loaded: makes its trainer, and finishes it.

    Raises ExperimentError if it does not fit into the memory; DataError if the images cannot be had or
    the results folder cannot be written to.
    """

    def __init__(self, experiment: Experiment, device: torch.device, paths: Paths) -> None:
        self.experiment, self.paths = experiment, paths
        devices.check_memory(experiment, device)
        paths.check_writable()
        self.images = data.load(experiment.dataset)

    def trainer(self, device: torch.device, precision: str = "auto", compile: str = "auto") -> Trainer:
        """The trainer, at its start or where its checkpoint is."""
        return Trainer(self.experiment, data.split(self.experiment, self.images, device), device,
                       precision=precision, compile=compile, checkpoint=self.paths.checkpoint)

    def finish(self, trainer: Trainer, at_once: int = 1) -> Record:
        """Evaluate the trained model and write its weights and record; the checkpoint goes.

        `at_once` is how many runs shared the device meanwhile.
        """
        e, progress, paths = self.experiment, trainer.progress, self.paths
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
            "environment": {**machine(trainer.device), "precision": trainer.precision,
                            "compile": trainer.compile, "data_digest": self.images.digest,
                            "runs_at_once": at_once, "processes": parallel.size()}}
        if not paths.record.exists():  # else another process was first: its record and its weights belong together
            checkpoints.save_weights(trainer.model, e, paths.weights)
            records.write(record, paths.record)
        disk.remove(paths.checkpoint)
        return records.read(paths.record)


def fit(trainer: Trainer, progress_bar: bool | None = None) -> None:
    """Run a trainer to its end, with a progress bar. Ctrl-C saves a checkpoint, then interrupts.

    Args:
        progress_bar: None shows one only on a terminal.
    """
    e, done = trainer.experiment, trainer.progress["step"]
    show = parallel.first() and (sys.stderr.isatty() if progress_bar is None else progress_bar)
    with (tqdm(total=e.steps, initial=done, disable=not show, unit="step",
               desc=e.id, mininterval=0.5) as bar, interrupt_between_steps() as interrupted):
        for progress in trainer.run():
            bar.update(progress["step"] - bar.n)
            if show and "now" in progress and bar.n % 10 == 0:
                loss, log_px, kl_z, kl_y = progress["now"].tolist()
                rate = progress["step"] * e.batch_size / progress["seconds"]["training"]
                bar.set_postfix_str(f"loss {loss:.2f} = -({log_px:.2f}) + kl_z {kl_z:.2f} + w * "
                                    f"kl_y {kl_y:.2f}, {rate:.0f} images/s", refresh=False)
            if interrupted.is_set():
                trainer.save()
                trainer.writer.wait()
                raise KeyboardInterrupt(trainer.kept())


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no step is torn in two. A second one interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware, the versions and the commit of the code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    libraries = {}
    for library in ("torch", "numpy", "scikit-learn", "safetensors", "cgmvae"):
        try:
            libraries[library] = version(library)
        except PackageNotFoundError:
            libraries[library] = "not installed"
    return {"device": device.type, "device_name": name, "threads": torch.get_num_threads(),
            "system": platform.system(), "python": platform.python_version(),
            "libraries": libraries, "git_commit": _commit()}


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
