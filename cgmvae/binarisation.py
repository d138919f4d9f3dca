"""How grey pixels become the x of a batch: one function a way.

Each takes uint8 pixels of any shape and a generator, and returns float32 in the same shape, in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def threshold(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """1 where a pixel is at least half as bright as can be, else 0."""
    return (pixels >= 128).to(torch.float32)


def none(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """Grey values between 0 and 1. Those of `static` are 0 and 1 already (see `data.static_draw`)."""
    return pixels.to(torch.float32).div_(255)


def dynamic(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """1 with the probability that the grey value says, drawn anew each time."""
    x = none(pixels)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (noise < x).to(torch.float32)


BINARISATIONS = {"threshold": threshold, "static": none, "dynamic": dynamic, "none": none}
