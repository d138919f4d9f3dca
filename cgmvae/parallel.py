"""One run over several devices: torch's distributed data parallel, one process a device.

`torchrun --nproc-per-node 4 -m cgmvae train ...` starts the processes. Each takes its share of every
batch, and the gradients are averaged, so that all hold the same weights. The first one writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cgmvae.checks import refuse
from cgmvae.experiment import Experiment


def size() -> int:
    """How many processes share the run; 1 outside `group`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this process is the one that writes and speaks, also outside `group`."""
    return started() == 1 or os.environ.get("RANK", "0") == "0"


def started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def group(experiment: Experiment, device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started; gives this one's device. Without torchrun: nothing.

    Raises ExperimentError if a batch cannot be shared evenly.
    """
    processes = started()
    if processes == 1:
        yield device
        return
    if experiment.batch_size % processes:
        refuse("batch_size", experiment.batch_size, f"a multiple of the {processes} processes")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def share(rows: Tensor) -> Tensor:
    """This process's part of a batch's rows."""
    return rows[rank()::size()]


def averaging(module: nn.Module) -> nn.Module:
    """The module, with its gradients averaged over the processes during the backward pass."""
    return DistributedDataParallel(module) if size() > 1 else module


def mean(values: Tensor) -> Tensor:
    """The mean over the processes: the same number in each."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / size()


def agreed(value: float) -> float:
    """The first process's value, in each: they must not stop at different epochs."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def wait() -> None:
    """Until every process is here."""
    if size() > 1:
        dist.barrier()
