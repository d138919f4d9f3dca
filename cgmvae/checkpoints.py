"""A run on disk: one safetensors file that holds all of it, never a pickle.

The tensors are the state of a `Trainer`; the text header holds the experiment and the progress.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cgmvae.devices import keep_threads
from cgmvae.disk import whole_file
from cgmvae.experiment import Experiment, filled_in
from cgmvae.model import GMVAE

if TYPE_CHECKING:
    from cgmvae.training import Trainer

RUN, WEIGHTS = "cgmvae checkpoint 1", "cgmvae weights 1"
"""The two kinds of file: a run on its way, and a finished model."""


class CheckpointError(RuntimeError):
    """A file that is no checkpoint, or that of another run. The message says which and what to do."""


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that the rest of a run depends on, by name; not copied, but for random states."""
    state = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    state |= {f"best.{k}": v for k, v in trainer.best.items()}
    for name, p in trainer.model.named_parameters():
        state |= {f"adam.{k}.{name}": v for k, v in trainer.optimiser.state[p].items()}
    return state | {"order": trainer.order, "position": trainer.position, "t": trainer.t,
                    "terms": trainer.terms, "random.noise": trainer.noise.get_state(),
                    "random.shuffle": trainer.shuffle.get_state()}


def restore(trainer: Trainer, saved: dict[str, Tensor]) -> None:
    """Put saved tensors back, in place."""
    with torch.no_grad():
        for name, tensor in tensors(trainer).items():
            if not name.startswith("random."):
                tensor.copy_(saved[name])
    trainer.noise.set_state(saved["random.noise"].cpu())
    trainer.shuffle.set_state(saved["random.shuffle"].cpu())


class Writer:
    """Writes checkpoints one at a time in a thread, so that training does not wait for the disk."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future | None = None

    def save(self, trainer: Trainer, path: Path) -> None:
        """Copy the state now, write it soon. Raises DiskError if the last write failed."""
        self.wait()
        progress = {k: v for k, v in trainer.progress.items() if k != "now"}
        header = {"format": RUN, "experiment": json.dumps(trainer.experiment.as_dict()),
                  "progress": json.dumps(progress), "device": trainer.device.type,
                  "precision": trainer.precision, "threads": str(torch.get_num_threads())}
        copies = {k: v.detach().clone(memory_format=torch.contiguous_format)
                  for k, v in tensors(trainer).items()}
        if trainer.device.type == "cuda":  # the thread reads on another stream
            torch.cuda.current_stream(trainer.device).synchronize()
        self.pending = self.thread.submit(write, copies, header, path)

    def wait(self) -> None:
        """Return when nothing is left to write. Raises DiskError if the last write failed."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


def write(state: dict[str, Tensor], header: dict[str, str], path: Path) -> None:
    """Write tensors and a text header. Raises DiskError."""
    state = {k: v.cpu() for k, v in state.items()}
    with whole_file(path, sum(v.nbytes for v in state.values())) as temporary:
        save_file(state, temporary, metadata=header)


def header(path: Path, kind: str) -> dict[str, str]:
    """The text header of a file of this kind. Raises CheckpointError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            text = file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a checkpoint ({error}). Nothing was read from it. "
                              "Move it away to start the run anew.") from error
    if text.get("format") != kind:
        raise CheckpointError(f"{path} is not a {kind!r} file. Move it away to start the run anew.")
    return text


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a file of this kind. Raises CheckpointError for any other."""
    text = header(path, kind)
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, text


def load(trainer: Trainer, path: Path) -> None:
    """Bring a trainer to where the checkpoint was taken. Raises CheckpointError."""
    saved, text = read(path, RUN)
    theirs, ours = filled_in(json.loads(text["experiment"])), trainer.experiment.as_dict()
    differs = [f"{k} is {theirs.get(k)!r} there and {ours.get(k)!r} here"
               for k in ours if theirs.get(k) != ours.get(k)]
    for name, value in (("device", trainer.device.type), ("precision", trainer.precision)):
        if text[name] != value:
            differs.append(f"{name} is {text[name]!r} there and {value!r} here")
    if differs:
        raise CheckpointError(f"{path} is the checkpoint of another run: {'; '.join(differs)}. "
                              "Move it away to start this run anew, or ask for that run.")
    expected = {k: v.shape for k, v in tensors(trainer).items()}
    if expected.keys() != saved.keys() or any(saved[k].shape != expected[k] for k in expected
                                              if not k.startswith("random.")):
        raise CheckpointError(f"{path} lacks a part of the run. Move it away to start it anew.")
    restore(trainer, saved)
    trainer.progress = json.loads(text["progress"])
    if "threads" in text:  # so that the run ends, to the last bit, as if it had not been interrupted
        keep_threads(int(text["threads"]))


def save_weights(model: torch.nn.Module, experiment: Experiment, path: Path,
                 half: bool = False) -> None:
    """Write a finished model: its weights, and its experiment in the header."""
    state: dict[str, Any] = {k: (v.half() if half else v).contiguous()
                             for k, v in model.state_dict().items()}
    write(state, {"format": WEIGHTS, "experiment": json.dumps(experiment.as_dict())}, path)


def load_weights(path: Path) -> tuple[GMVAE, Experiment]:
    """A finished model, on the CPU, and its experiment. Raises CheckpointError."""
    saved, text = read(path, WEIGHTS)
    experiment = Experiment(**filled_in(json.loads(text["experiment"])))
    model = GMVAE(experiment)
    try:
        model.load_state_dict({k: v.float() for k, v in saved.items()})
    except RuntimeError as error:  # torch's own sentence is a page
        raise CheckpointError(f"{path} does not hold the weights of its own experiment. Move it away to make the run "
                              "anew.") from error
    return model.eval(), experiment
