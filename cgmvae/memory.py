"""What the sum over labels keeps for its backward pass, and how many labels fit at once."""

from __future__ import annotations

from torch import Tensor

from cgmvae.model import HEAD_UNITS, GMVAE
from cgmvae.networks import FILTERS

KEEP_BYTES = {"cpu": 2 * 2**30, "cuda": 24 * 2**30, "mps": 2 * 2**30}
"""What the marginal may keep for its backward pass before it recomputes instead."""
AT_ONCE_BYTES = {"cpu": 2**29, "cuda": 2**32, "mps": 2**29}
"""What the labels that it takes in one go may fill."""


def activation_bytes(model: GMVAE, x: Tensor) -> int:
    """About how many bytes one label leaves for the backward pass of a batch."""
    channels, height, width = model.decoder.map_shape
    pixels = x[0].numel()
    wide, narrow = HEAD_UNITS
    a_label = 2 * wide + narrow + 8 * model.z_dim
    a_label += 2 * model.decoder.full1.out_features if model.decoder.full1 else 0
    a_label += 2 * channels * height * width + 6 * FILTERS[0] * height * width * 4 + 3 * pixels
    return 4 * len(x) * a_label


def labels_at_once(model: GMVAE, x: Tensor) -> int:
    """How many labels the marginal takes in one go: more make larger matrix products, in bounded memory."""
    return max(1, min(model.K, AT_ONCE_BYTES[x.device.type] // activation_bytes(model, x)))
