"""The weight w_t of KL(q(y|x)||p(y)) in eq. 8, one function a schedule.

Each takes the step t (a number or a tensor, counted from 0) and the time scale in steps, and
returns a weight between 0 and 1. Chapter 3 compares them. The temperature's and those of the
learning rate stand below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ramp(t: Tensor | float, steps: float) -> Tensor:
    """1 - exp(-t/steps): from zero to one, as the paper's text says."""
    return 1 - torch.exp(-torch.as_tensor(t, dtype=torch.float32) / steps)


def printed(t: Tensor | float, steps: float) -> Tensor:
    """min(1, exp(-t/steps)): the paper's formula to the letter, which falls from one to zero."""
    return torch.exp(-torch.as_tensor(t, dtype=torch.float32) / steps).clamp(max=1.0)


def linear(t: Tensor | float, steps: float) -> Tensor:
    """min(1, t/steps): a straight line up to one."""
    return (torch.as_tensor(t, dtype=torch.float32) / steps).clamp(max=1.0)


def none(t: Tensor | float, steps: float | None) -> Tensor:
    """One throughout: eq. 7, without annealing."""
    return torch.ones_like(torch.as_tensor(t, dtype=torch.float32))


SCHEDULES = {"ramp": ramp, "printed": printed, "linear": linear, "none": none}
"""By name. A schedule that is put in here, also by a notebook, can be trained with at once."""


def temperature(t: Tensor, steps: int, start: float, end: float) -> Tensor:
    """The temperature of a relaxed label at step t: `start` at 0, `end` after all `steps`, the same factor each step
    between (Jang et al., 2017, let it fall exponentially too)."""
    return start * (end / start) ** (t / steps).clamp(max=1)


def constant(t: Tensor, steps: int) -> Tensor:
    """The same learning rate throughout."""
    return torch.ones_like(t)


def cosine(t: Tensor, steps: int) -> Tensor:
    """Up from a hundredth over 100 steps, and along a half cosine down to a fiftieth after all `steps`."""
    down = 0.02 + 0.98 * (1 + torch.cos(math.pi * (t / steps).clamp(max=1))) / 2
    return ((t + 1) / 100).clamp(max=1) * down


LEARNING_RATES = {"constant": constant, "cosine": cosine}
"""By name: from the step and the number of steps of all epochs to what the learning rate is multiplied
with."""
