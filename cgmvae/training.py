"""The training loop: Adam, annealing, early stopping, and checkpoints that lose nothing.

All that a step reads and writes (weights, order of the images, noise, step count, terms) lies in
tensors on the device. So a step is the same few lines on every device; a GPU can record it once and
replay it without Python; and a checkpoint of these tensors, taken after any step, is the whole run.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from cgmvae import annealing, checkpoints, devices, estimators, evaluation, graphs, objectives, parallel
from cgmvae.agreement import spread_logits
from cgmvae.data import Splits
from cgmvae.devices import find_compilation, find_precision
from cgmvae.experiment import Experiment
from cgmvae.model import GMVAE
from cgmvae.seeds import derived_seed

TERMS = ("loss", "log_px", "kl_z", "kl_y")


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number; the message says at which step and term."""


class Trainer:
    """One run: the model, the optimiser and everything that a step needs.

    Args:
        experiment: what to run.
        splits: its images, on the device.
        device: from `find_device`.
        precision: of matrix products and convolutions: `float32`, `tf32` (CUDA), `bf16`. `auto` is
            tf32 on CUDA and float32 elsewhere. Densities, noise and sums are float32 always.
        compile: `graph` records the step as one CUDA graph, `none` does not; `auto` is `graph` on
            CUDA, and `none` with a warning if the step cannot be recorded there as it is.
        checkpoint: a file to go on from, if it is there, and to save to; None: keep nothing.

    Raises ExperimentError for a precision or compilation that the device does not have,
    CheckpointError for a file that is no checkpoint of this experiment, and OutOfMemory.
    """

    def __init__(self, experiment: Experiment, splits: Splits, device: torch.device, *,
                 precision: str = "auto", compile: str = "auto",
                 checkpoint: Path | None = None) -> None:
        self.experiment, self.splits, self.device = experiment, splits, device
        self.precision = find_precision(precision, device)
        # DDP's averaging between processes is not recorded into a graph.
        self.compile = "none" if parallel.size() > 1 else find_compilation(compile, device)
        self.checkpoint = checkpoint
        devices.prepare(device, self.precision)
        with devices.memory_told(experiment, device):
            self._make_state()
            self.advance = self.step
            if self.compile == "graph":
                with self.clock("compilation"):
                    self.advance = graphs.recorded_step(self, required=compile == "graph")

    def _make_state(self) -> None:
        e, device, checkpoint = self.experiment, self.device, self.checkpoint
        with torch.random.fork_rng(devices=[]):  # the same first weights on every device
            torch.manual_seed(derived_seed(e.seed, "weights"))
            self.model = GMVAE(e, bf16=self.precision == "bf16").to(device)
        if e.spread_logits and not (checkpoint and checkpoint.exists()):
            drawn = torch.Generator(device).manual_seed(derived_seed(e.seed, "spread"))
            spread_logits(self.model, self.splits.train.batch(slice(0, 1000), drawn))
        self.rate = torch.tensor(e.learning_rate, device=device)  # what a recorded step can change
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), fused=True, capturable=device.type == "cuda",
            lr=e.learning_rate if e.learning_rate_schedule == "constant" else self.rate)
        self.noise = torch.Generator(device).manual_seed(derived_seed(e.seed, "noise"))
        self.estimate = parallel.averaging(estimators.Estimate(self.model, e, self.noise))
        self.shuffle = torch.Generator().manual_seed(derived_seed(e.seed, "order"))
        self.order = torch.zeros(e.steps_per_epoch, e.batch_size, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # of the step in its epoch
        self.t = torch.zeros((), device=device)  # steps so far, for w_t
        self.terms = torch.zeros(e.steps_per_epoch, len(TERMS), device=device)
        for p in self.model.parameters():  # Adam's state exists from the start, to load into
            self.optimiser.state[p] = {"step": torch.zeros((), device=device),
                                       "exp_avg": torch.zeros_like(p),
                                       "exp_avg_sq": torch.zeros_like(p)}
        self.best = copy.deepcopy(self.model.state_dict())
        self.progress = {"epoch": 0, "step": 0, "best_epoch": 0, "best_loss": math.inf,
                         "waited": 0, "stopped": "", "curves": [],
                         "seconds": dict.fromkeys(("training", "processor", "validation",
                                                   "checkpoints", "compilation"), 0.0)}
        self.writer = checkpoints.Writer()
        self.resumed = checkpoint is not None and checkpoint.exists()
        if self.resumed:
            checkpoints.load(self, checkpoint)

    def step(self) -> None:
        """One step: gather a batch, estimate the ELBO, differentiate, move the weights."""
        e = self.experiment
        rows = parallel.share(self.order.index_select(0, self.position)[0])
        x = self.splits.train.batch(rows, self.noise)
        view = None if e.views == "none" else self.splits.train.view(rows, e.views, self.noise)
        w = annealing.SCHEDULES[e.annealing](self.t, e.annealing_steps)
        tau = None if e.tau_start is None else annealing.temperature(self.t, e.steps, e.tau_start, e.tau)
        terms = self.estimate(x, view, self.told(), tau)
        loss = -objectives.elbo(terms, w, e.beta).mean()
        if view is not None:
            loss = loss + e.agreement * terms["agreement"].mean()
        if "labelled" in terms:
            loss = loss + terms["labelled"].mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if e.learning_rate_schedule != "constant":
            factor = annealing.LEARNING_RATES[e.learning_rate_schedule](self.t, e.steps)
            self.rate.copy_(e.learning_rate * factor)
        self.optimiser.step()
        means = torch.stack([loss, *(terms[name].mean() for name in TERMS[1:])]).detach()
        self.terms.index_copy_(0, self.position, means[None])
        self.position += 1
        self.t += 1

    def told(self) -> tuple[torch.Tensor, ...]:
        """A batch of the images whose class is told: x, y, and a second view if there is one; () without."""
        e, splits = self.experiment, self.splits
        if splits.told is None:
            return ()
        rows, labels = splits.told
        some = torch.randint(len(rows), (min(len(rows), e.batch_size),), device=rows.device, generator=self.noise)
        rows, labels = rows.index_select(0, some), labels.index_select(0, some)
        views = () if e.views == "none" else (splits.train.view(rows, e.views, self.noise),)
        return splits.train.batch(rows, self.noise), labels, *views

    def run(self) -> Iterator[dict]:
        """Train to the end; yields the progress after every step. The best weights are loaded last, those
        of the last step where the learning rate falls.

        The caller may stop between two steps and `save`: a new Trainer goes on from there. Raises
        NonFiniteLoss at once on a CPU, within 50 steps on a GPU, OutOfMemory, and DiskError if a
        checkpoint cannot be written; the last checkpoint stays good.
        """
        with devices.memory_told(self.experiment, self.device):
            yield from self._run()

    def _run(self) -> Iterator[dict]:
        e, progress = self.experiment, self.progress
        look = 1 if self.device.type == "cpu" else 50  # a look waits for the device
        if progress["step"] == 0:
            self.save()
        while not progress["stopped"]:
            if int(self.position) == 0:
                order = torch.randperm(e.train_size, generator=self.shuffle)
                self.order.copy_(order[:self.order.numel()].view_as(self.order))
            if parallel.size() > 1:  # to each its own noise; the checkpoint holds only the first's
                self.noise.manual_seed(derived_seed(e.seed, f"noise {parallel.rank()} of "
                                                    f"{parallel.size()} at {progress['step']}"))
            start, processor = time.perf_counter(), time.process_time()
            first = progress["step"] - progress["epoch"] * e.steps_per_epoch
            for position in range(first, e.steps_per_epoch):
                self.advance()
                progress["step"] += 1
                if (position + 1) % look == 0 or position + 1 == e.steps_per_epoch:
                    self._check_finite(position + 1)
                    progress["now"] = self.terms[position]
                now = time.perf_counter()
                progress["seconds"]["training"] += now - start
                progress["seconds"]["processor"] += time.process_time() - processor
                yield progress
                start, processor = time.perf_counter(), time.process_time()
            self._end_epoch()
            self.save()
            yield progress
        self.writer.wait()
        self.model.load_state_dict(self.best)

    def save(self) -> None:
        """Write the checkpoint, in the background: training goes on from a copy. Raises NonFiniteLoss rather than
        replace a good one."""
        if self.checkpoint is not None and parallel.first():
            self._check_finite(int(self.position))
            with self.clock("checkpoints"):
                self.writer.save(self, self.checkpoint)

    def _end_epoch(self) -> None:
        e, progress = self.experiment, self.progress
        with self.clock("validation"):
            validation = evaluation.validate(self.model, self.splits.validation, e)
            loss = validation["validation_loss"] = parallel.agreed(validation["validation_loss"])
        progress["epoch"] += 1
        means = dict(zip(TERMS, parallel.mean(self.terms).cpu().double().mean(0).tolist(), strict=True))
        progress["curves"].append({"epoch": progress["epoch"], "step": progress["step"], **means,
                                   **validation, "seconds": progress["seconds"]["training"]})
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"The validation loss is {loss} after epoch {progress['epoch']}. "
                                + self.kept())
        # A falling learning rate is made for its last step: those weights are kept, and nothing stops it.
        if loss < progress["best_loss"] or e.learning_rate_schedule != "constant":
            progress |= {"best_loss": loss, "best_epoch": progress["epoch"], "waited": 0}
            for name, value in self.model.state_dict().items():
                self.best[name].copy_(value)
        else:
            progress["waited"] += 1
        if progress["waited"] >= e.patience:
            progress["stopped"] = f"no better validation loss for {e.patience} epochs"
        elif progress["epoch"] >= e.epochs:
            progress["stopped"] = f"all {e.epochs} epochs done"
        self.position.zero_()

    def _check_finite(self, done: int) -> None:
        bad = (~self.terms[:done].isfinite()).nonzero()
        if len(bad):
            position, term = bad[0].tolist()
            terms = self.terms[position].tolist()
            term = next((i for i in (1, 2, 3) if not math.isfinite(terms[i])), term)
            step = self.progress["epoch"] * self.experiment.steps_per_epoch + position + 1
            raise NonFiniteLoss(f"{TERMS[term]} is {terms[term]} at step {step}, in epoch "
                                f"{self.progress['epoch'] + 1}. {self.kept()}")

    def kept(self) -> str:
        self.writer.wait()
        if self.checkpoint is None or not self.checkpoint.exists():
            return "No checkpoint was asked for."
        return f"The last good checkpoint is kept in {self.checkpoint}."

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = self.progress["seconds"]
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
