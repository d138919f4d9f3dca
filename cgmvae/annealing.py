"""The weight w_t of KL(q(y|x)||p(y)) in eq. 8, one function a schedule.

Each takes the step t (a number or a tensor, counted from 0) and the time scale in steps, and
returns a weight between 0 and 1. Chapter 3 compares them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ramp(t: Tensor | float, steps: float) -> Tensor:
    """1 - exp(-t/steps): from zero to one, as the paper's text says. The default."""
    return 1 - torch.exp(-torch.as_tensor(t, dtype=torch.float32) / steps)


def printed(t: Tensor | float, steps: float) -> Tensor:
    """min(1, exp(-t/steps)): the paper's formula to the letter, which falls from one to zero."""
    return torch.exp(-torch.as_tensor(t, dtype=torch.float32) / steps).clamp(max=1.0)


def linear(t: Tensor | float, steps: float) -> Tensor:
    """min(1, t/steps): the schedule most often met in the literature (Bowman et al., 2016)."""
    return (torch.as_tensor(t, dtype=torch.float32) / steps).clamp(max=1.0)


def none(t: Tensor | float, steps: float | None = None) -> Tensor:
    """One throughout: eq. 7, without annealing."""
    return torch.ones_like(torch.as_tensor(t, dtype=torch.float32))


SCHEDULES = {"ramp": ramp, "printed": printed, "linear": linear, "none": none}
"""By name. A schedule that is put in here, also by a notebook, can be trained with at once."""
