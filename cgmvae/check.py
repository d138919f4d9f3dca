"""What this machine can do, and whether it does it right: `python -m cgmvae check`.

The first thing to run on a new machine; about a minute on a CPU, on the embedded images, without a
network. The measure of every number is the same step on the CPU in float64, from the same weights
and the same noise: noise drawn on the device would be other noise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cgmvae import data, devices, objectives, training
from cgmvae.comparison import READINGS
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment, preset
from cgmvae.model import GMVAE

STEPS = 20
TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
"""By how much of its size a gradient may differ from float64's in most steps (in some, rounding turns
over a ReLU or the maximum of four pixels); a loss, in every step, by a tenth of that."""

ROWS = {"mnist": 10, "cifar100": 20}
"""The two rows of the paper's Table 1: data set and K."""


class Line(NamedTuple):
    """One thing that was looked at. `ok` is None where there is nothing to get wrong."""

    ok: bool | None
    text: str

    def __str__(self) -> str:
        return f"{'' if self.ok is None else 'ok' if self.ok else 'WRONG':6}{self.text}"


def check(device: str = "auto") -> bool:
    """Print a line for each thing that a run needs; returns whether all are right.

    Raises ExperimentError, before any work, for a device that is not here.
    """
    place, right = devices.find_device(device), True
    for part in (what_there_is, arithmetic, precisions, graph, resuming, memory, speed):
        for line in _lines(part, place):
            print(line, flush=True)
            right = right and line.ok is not False
    print("All is right." if right else "Not all is right: see the lines that say WRONG.")
    return right


def _lines(part: Callable[[torch.device], Iterator[Line]], device: torch.device) -> Iterator[Line]:
    """The lines of a part; one more if it ends in an error."""
    try:
        yield from part(device)
    except Exception as error:  # whatever it is, it is what the check is there to show
        name = part.__name__.replace("_", " ")
        yield Line(False, f"{name}: expected a result, saw {type(error).__name__}: "
                          f"{str(error).partition(chr(10))[0]}")


def what_there_is(device: torch.device) -> Iterator[Line]:
    """Devices, precisions and compilations; nothing here can be wrong."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    devices.prepare(device, devices.find_precision("auto", device))
    yield Line(None, f"device {name}, torch {torch.__version__}, {torch.get_num_threads()} of "
                     f"{psutil.cpu_count()} processors for a run")
    compilation = devices.find_compilation("auto", device)
    yield Line(None, f"precisions: {', '.join(_precisions(device))}; compilation: {compilation}")


def arithmetic(device: torch.device) -> Iterator[Line]:
    """Steps of each estimator on the device in float32 against the CPU in float64."""
    for estimator in ESTIMATORS:
        yield _against_float64(estimator, device, "float32", STEPS)


def precisions(device: torch.device) -> Iterator[Line]:
    """The other precisions, with the estimators whose labels no rounding can turn over."""
    for precision in _precisions(device)[1:]:
        for estimator in ("concrete", "marginal"):
            yield _against_float64(estimator, device, precision, 3)
    own, exact = (_milliseconds(_trainer(_quick(), device, precision=precision), 3)
                  for precision in ("bf16", "float32"))
    text = f"a step in bf16 takes {own:.1f} ms, in float32 {exact:.1f} ms"
    if own > exact:
        text += f": bf16 is {own / exact:.1f} times SLOWER here, use float32"
    yield Line(None, text)


def graph(device: torch.device) -> Iterator[Line]:
    """The recorded step against the plain one, over an epoch's first steps."""
    if device.type != "cuda":
        yield Line(None, f"no CUDA graph on {device.type}: the step runs as it is")
        return
    for estimator in ("concrete", "marginal"):
        terms = [_terms(_trainer(_quick(estimator), device, precision="float32",
                                 compile=compile), STEPS) for compile in ("none", "graph")]
        yield _compared(f"{estimator}, {STEPS} steps from a CUDA graph", terms, 1e-3)


def resuming(device: torch.device) -> Iterator[Line]:
    """A run that is cut off, saved and gone on with against one that is not."""
    e = _quick()
    whole = _terms(_trainer(e, device), 6)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.safetensors")
        first = _trainer(e, device, checkpoint=path)
        _terms(first, 3)
        first.save()
        first.writer.wait()
        rest = _terms(_trainer(e, device, checkpoint=path), 3)
    yield _compared("a run saved after 3 steps and gone on with for 3", [whole[3:6], rest[3:6]],
                    0 if device.type == "cpu" else 1e-3)


def memory(device: torch.device) -> Iterator[Line]:
    """The most that was used so far, and how large K can be."""
    if device.type == "cuda":
        used = f"at most {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB"
    else:
        used = f"{psutil.Process().memory_info().rss / 2**20:.0f} MiB of the process"
    free = devices.free_memory(device)
    yield Line(None, f"memory: {used} used, {free / 2**20:.0f} MiB free")
    for estimator in ("concrete", "marginal"):
        e = Experiment(**_row(estimator))
        most = devices.largest_K(e, device)
        yield Line(most >= e.K, f"largest K of {estimator}: expected at least {e.K}, saw {most:,}")


def speed(device: torch.device) -> Iterator[Line]:
    """Milliseconds a step of the paper's two rows, and from them the hours of 200 epochs."""
    for dataset, K in ROWS.items():
        for estimator in ("marginal", "concrete"):
            full = Experiment(dataset=dataset, K=K, **_row(estimator))
            trainer = _trainer(full.but(dataset=f"{dataset}-sample"), device)
            ms = _milliseconds(trainer, 2 if device.type == "cpu" else 50)
            hours = ms * full.steps / 3.6e6
            yield Line(None, f"{dataset}, K={K}, {estimator}: {ms:.1f} ms a step, {hours:.1f} hours "
                             f"for all {full.epochs} epochs ({trainer.precision}, {trainer.compile})")


class SameNoise(TorchFunctionMode):
    """torch.rand and torch.randn draw on the CPU in float32, whatever device and type is asked for."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function not in (torch.rand, torch.randn):
            return function(*args, **kwargs)
        device, dtype = kwargs.pop("device"), kwargs.pop("dtype", torch.float32)
        drawn = function(*args, **kwargs | {"generator": self.generator})
        return drawn.to(device).to(dtype)


def _row(estimator: str) -> dict[str, Any]:
    """The estimator's choices in the paper's Table 1: for `concrete` eq. 8 with the rising weight, not the default."""
    return {"estimator": estimator, **(READINGS["literal"] if estimator == "concrete" else {})}


def _quick(estimator: str = "concrete") -> Experiment:
    return preset("quick", **_row(estimator))


def _against_float64(estimator: str, device: torch.device, precision: str, steps: int) -> Line:
    """Train for some steps; before each, compare loss and gradient with those of float64."""
    e = _quick(estimator)
    trainer = _trainer(e, device, precision=precision, compile="none")
    exact = GMVAE(e).double()
    losses, gradients = [], []
    order = torch.randperm(e.train_size, generator=torch.Generator().manual_seed(0))
    for step, rows in enumerate(order[:steps * e.batch_size].view(steps, -1)):
        exact.load_state_dict({k: v.cpu() for k, v in trainer.model.state_dict().items()})
        x = trainer.splits.train.batch(rows.to(device), trainer.noise)
        loss, gradient = _loss_and_gradient(trainer.model, x, e, step)
        true_loss, true_gradient = _loss_and_gradient(exact, x.cpu().double(), e, step)
        losses.append(abs(loss / true_loss - 1))
        gradients.append((gradient - true_gradient).norm() / true_gradient.norm())
        trainer.optimiser.step()
    loss, gradient = torch.tensor(losses).max().item(), torch.tensor(gradients).median().item()
    tolerance = TOLERANCES[precision]
    return Line(gradient <= tolerance and loss <= tolerance / 10,  # neither is true of nan
                f"{estimator}, {steps} steps in {precision}: expected within {tolerance:g} of "
                f"float64's gradient and {tolerance / 10:g} of its loss, "
                f"saw {gradient:.1g} and {loss:.1g}")


def _loss_and_gradient(model: GMVAE, x: Tensor, e: Experiment, seed: int) -> tuple[float, Tensor]:
    model.zero_grad(set_to_none=True)
    with SameNoise(seed):
        loss = -objectives.elbo(ESTIMATORS[e.estimator](model, x, e)).mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.cpu().double().flatten() for p in model.parameters()])


def _compared(what: str, terms: list[Tensor], tolerance: float) -> Line:
    """A line for two runs whose terms, (steps, 4), should be the same."""
    off = ((terms[1] - terms[0]).abs().max() / terms[0].abs().max()).item()
    wanted = f"within {tolerance:g} of" if tolerance else "to the last bit"
    return Line(off <= tolerance, f"{what}: expected {wanted} the same terms, saw {off:.2g} between")


def _trainer(e: Experiment, device: torch.device, **choices: Any) -> training.Trainer:
    return training.Trainer(e, data.split(e, data.load(e.dataset), device), device, **choices)


def _terms(trainer: training.Trainer, steps: int) -> Tensor:
    """Take so many steps; the terms of the epoch so far, on the CPU."""
    run = trainer.run()
    for _ in range(steps):
        next(run)
    return trainer.terms.cpu().double()[:trainer.progress["step"]]


def _milliseconds(trainer: training.Trainer, steps: int) -> float:
    """Mean time of a step, without the first. At the end of an epoch its steps are taken again: no validation is timed."""
    run = trainer.run()
    next(run)
    float(trainer.terms.sum())  # waits for the device
    start = time.perf_counter()
    for step in range(1, steps + 1):
        if step % trainer.experiment.steps_per_epoch == 0:
            trainer.position.zero_()
        trainer.advance()
    float(trainer.terms.sum())
    return (time.perf_counter() - start) / steps * 1000


def _precisions(device: torch.device) -> list[str]:
    return ["float32", "tf32", "bf16"] if device.type == "cuda" else ["float32", "bf16"]
