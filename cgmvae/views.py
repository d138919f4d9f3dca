"""Second views of images: changed in what does not matter for what they show, one function a kind.

Each takes images (B, C, H, W) in [0, 1] and a generator on their device, and returns as many in the same
shape. No step waits for the device and no shape depends on a pixel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def digits(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Handwriting by another hand: turned by up to 20 degrees, slanted by up to 0.25, up to 15% wider
    or narrower, higher or lower, shifted by up to a tenth of the side, and smoothly bent.

    What comes in from outside has the image's own ground, so that ink may be dark on white or white on black.
    """
    u = _uniform(x, generator)
    turn, slant = math.radians(20) * u(), 0.25 * u()
    wide, high = 1 + 0.15 * u(), 1 + 0.15 * u()
    cos, sin = turn.cos(), turn.sin()
    # Rows of the map from a point of the new image to one of the old, in halves of the side.
    matrix = torch.stack([cos * wide, (cos * slant - sin) * high, 0.2 * u(),
                          sin * wide, (sin * slant + cos) * high, 0.2 * u()], -1).view(-1, 2, 3)
    knots = 0.08 * torch.randn(len(x), 2, 4, 4, device=x.device, generator=generator)
    bend = F.interpolate(knots, size=x.shape[-2:], mode="bicubic", align_corners=True)
    ground = _ground(x)
    # Outside an image there are zeros: with its ground at zero they are that ground.
    return (_sampled(x - ground, matrix, bend.permute(0, 2, 3, 1)) + ground).clamp(0, 1)


def photos(x: Tensor, generator: Generator | None = None) -> Tensor:
    """A cut-out of 0.3 to 1 of the area, mirrored or not, in other light and colours, some in grey."""
    u = _uniform(x, generator)
    area, aspect = 0.65 + 0.35 * u(), (math.log(4 / 3) / 2 * u()).exp()
    wide, high = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    zero, mirrored = torch.zeros_like(wide), u().sign()
    matrix = torch.stack([mirrored * wide, zero, (1 - wide) * u(),
                          zero, high, (1 - high) * u()], -1).view(-1, 2, 3)
    x = _sampled(x, matrix)

    def factor() -> Tensor:
        return (1 + 0.4 * u())[:, None, None, None]
    grey = x.mean(1, keepdim=True)
    x = grey + torch.where((u() > -0.6)[:, None, None, None], factor(), 0.0) * (x - grey)  # one in five
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((mean + factor() * (x - mean)) * factor()).clamp(0, 1)


def _uniform(x: Tensor, generator: Generator | None):
    """A function that draws (B,) numbers between -1 and 1."""
    return lambda: 2 * torch.rand(len(x), device=x.device, generator=generator) - 1


def _ground(x: Tensor) -> Tensor:
    """The median of an image's outermost pixels, of each channel: (B, C, 1, 1).

    It is the mean of the two in the middle, so that the ground of 1 - x is 1 less that of x. The median of torch
    is the lower of the two, and on a GPU it is not deterministic.
    """
    edge = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1).sort(-1).values
    half = edge.shape[-1] // 2  # of an even number: each side is there twice
    return edge[..., half - 1: half + 1].mean(-1)[..., None, None]


def _sampled(x: Tensor, matrix: Tensor, bend: Tensor | float = 0.0) -> Tensor:
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False) + bend
    return F.grid_sample(x, grid, align_corners=False)


def same(x: Tensor, generator: Generator | None = None) -> Tensor:
    """The image itself."""
    return x


VIEWS = {"none": None, "same": same, "digits": digits, "photos": photos}
