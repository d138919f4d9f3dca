"""Operations of one training step, counted layer by layer. Chapter 5 predicts times from them.

One multiply-add is two operations. Element-wise work is left out: it is a few percent of the count,
though not of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.model import HEAD_UNITS
from cgmvae.networks import FILTERS, KERNEL, UNITS, feature_map


@dataclass(frozen=True)
class Cost:
    """Operations of one image in one step, forward and backward."""

    shared: float  # done once: the encoder, q(y|x), what of q(z|x, y) sees only h, the KL of z to all p(z|y)
    per_label: float  # done for each label: the rest of q(z|x, y), p(z|y), the decoder
    K_sized: float  # of these, in the layers and products whose size is K: all that grows in a step of one pass
    passes: int  # through the decoder: how often a step does what is done for a label

    @property
    def step(self) -> float:
        """Operations an image."""
        return self.shared + self.per_label * self.passes


def count(experiment: Experiment) -> Cost:
    """Count the paper's networks for an experiment's images, K, D, padding and decoder.

    A linear map or a convolution costs as much in the backward pass for its input's gradient as
    forwards, and once more for its weights' gradient; the first layer has no input gradient.
    """
    e = experiment
    channels, height, width = e.image_shape
    wide, narrow = HEAD_UNITS
    last, map_height, map_width = feature_map(e.image_shape, e.padding)
    flat = last * map_height * map_width
    lost = 0 if e.padding == "same" else KERNEL - 1
    area1 = (height - lost) * (width - lost)
    area2 = ((height - lost) // 2 - lost) * ((width - lost) // 2 - lost)
    taps = KERNEL * KERNEL
    conv1 = area1 * channels * FILTERS[0] * taps
    encoder = area2 * FILTERS[0] * FILTERS[1] * taps + flat * UNITS
    label_head = 0 if e.posterior == "collapsed" else narrow * e.K
    q_y = UNITS * wide + wide * narrow + label_head if label_head else 0
    # The two products of `GMVAE.kl_z_each`; with the posterior `joint` the KL of z is element-wise work.
    kl_z = 2 * e.z_dim * e.K if e.posterior in ("factored", "collapsed") else 0
    shared = 2 * conv1 + 3 * (encoder + q_y + UNITS * wide + kl_z)
    # A label is looked up: its row of the K-sized layers costs no products.
    rows = 0 if not ESTIMATORS[e.estimator].relaxed else e.K * wide + e.K * 2 * e.z_dim
    q_z = wide * narrow + narrow * 2 * e.z_dim
    map_area = map_height * map_width
    middle = 4 * map_area if e.padding == "same" else (2 * map_height + 4) * (2 * map_width + 4)
    full = e.z_dim * e.decoder_units + e.decoder_units * flat if e.decoder_units else e.z_dim * flat
    decoder = (full
               + map_area * FILTERS[1] * FILTERS[0] * taps
               + middle * FILTERS[0] * channels * taps)
    per_label = 3 * (rows + q_z + decoder)
    return Cost(2.0 * shared, 2.0 * per_label, 2.0 * 3 * (label_head + kl_z + rows), ESTIMATORS[e.estimator].passes(e.K))
