"""What the sum over labels keeps for its backward pass, and how many labels fit at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from cgmvae.model import GMVAE

KEEP_BYTES = {"cpu": 2 * 2**30, "cuda": 24 * 2**30, "mps": 2 * 2**30}
"""What the marginal may keep for its backward pass before it recomputes instead."""


def activation_bytes(model: GMVAE, x: Tensor) -> int:
    """About how many bytes one label leaves for the backward pass of a batch."""
    channels, height, width = model.decoder.map_shape
    pixels = x[0].numel()
    a_label = 2 * 512 + 256 + 8 * model.z_dim
    a_label += 2 * model.decoder.full1.out_features if model.decoder.full1 else 0
    a_label += 2 * channels * height * width + 6 * 20 * height * width * 4 + 3 * pixels
    return 4 * len(x) * a_label


def labels_at_once(model: GMVAE, x: Tensor) -> int:
    """How many labels the marginal takes in one go: more make larger matrix products, in bounded memory."""
    budget = {"cpu": 512 * 2**20, "cuda": 4 * 2**30, "mps": 2**29}[x.device.type]
    return max(1, min(model.K, budget // activation_bytes(model, x)))
