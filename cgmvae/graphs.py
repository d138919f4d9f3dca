"""A training step as one CUDA graph, and the check that its replay does what a step does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cgmvae import checkpoints
from cgmvae.checks import refuse

if TYPE_CHECKING:
    from cgmvae.training import Trainer

ROUNDING = {"float32": 1e-3, "tf32": 1e-2, "bf16": 1e-2}
"""By how much of its size the gradient, or the loss, of a replayed step may differ from a step's."""


def recorded_step(trainer: Trainer, required: bool) -> Callable[[], None]:
    """The replay of the trainer's step. If there is none to trust, its plain step, with a warning,
    and `trainer.compile` says so; ExperimentError instead if the replay is `required`.
    """
    try:
        return record_graph(trainer)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        if required:
            refuse("compile", "graph", f"'auto' or 'none' here ({reason})")
        warnings.warn(f"The step runs without a CUDA graph, which may be slower ({reason}).",
                      stacklevel=3)
        trainer.compile = "none"
        return trainer.step


def record_graph(trainer: Trainer) -> Callable[[], None]:
    """The trainer's step as one CUDA graph; calling the result replays it.

    A replay launches every kernel of a step at once, where Python would launch them one by one.
    The warm-up that recording needs takes real steps; the state is put back afterwards. Raises
    RuntimeError, with the state put back, if the step cannot be recorded, or if its first replay
    differs from the same step of the warm-up by more than rounding.
    """
    before = _copy(trainer)
    try:
        return _record_graph(trainer, before)
    finally:
        checkpoints.restore(trainer, before)


def _record_graph(trainer: Trainer, before: dict[str, Tensor]) -> Callable[[], None]:
    side = torch.cuda.Stream(trainer.device)
    side.wait_stream(torch.cuda.current_stream(trainer.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            checkpoints.restore(trainer, before)
            trainer.step()
    torch.cuda.current_stream(trainer.device).wait_stream(side)
    stepped = _copy(trainer)
    checkpoints.restore(trainer, before)
    trainer.optimiser.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(trainer.noise)
    # Only this thread is watched: another may be writing the checkpoint of a run beside.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        trainer.step()
    checkpoints.restore(trainer, before)
    graph.replay()
    _check_replay(before, stepped, _copy(trainer), ROUNDING[trainer.precision])
    return graph.replay


def _copy(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoints.tensors(trainer).items()}


def _check_replay(before: dict[str, Tensor], stepped: dict[str, Tensor],
                  replayed: dict[str, Tensor], tolerance: float) -> None:
    """Raise RuntimeError unless a replayed step did to the state what a step did.

    The weights are not compared: in its first step Adam makes a full one of the smallest gradient.
    """
    for name in ("position", "t"):
        if not torch.equal(stepped[name], replayed[name]):
            raise RuntimeError(f"{name} is {replayed[name].item():g} after the first replay and "
                               f"{stepped[name].item():g} after a step")
    gradients = [k for k in before if k.startswith("adam.exp_avg.")]
    for what, names in (("the loss", ["terms"]), ("the gradient", gradients)):
        step, replay = (torch.cat([(after[k] - before[k]).flatten() for k in names])
                        for after in (stepped, replayed))
        off = ((replay - step).norm() / step.norm().clamp_min(1e-30)).item()
        if not off <= tolerance:
            raise RuntimeError(f"{what} of the first replay differs from that of a step by {off:.2g} "
                               f"of its size, where rounding makes at most {tolerance:g}")
