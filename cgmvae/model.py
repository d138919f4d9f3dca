"""The Gaussian-mixture VAE, one method a factor of eq. 1 and of q(y, z|x)::

    p(x, y, z) = p(y) p(z|y) p(x|z)        (1)
    q(y, z|x)  = q(y|x) q(z|x, y)

A label y comes in one of two forms, here and in the estimators: as weights (..., K), one-hot or
relaxed, or as labels (...), int64. The product of a one-hot y with a matrix is one of its rows, so
labels are looked up instead of multiplied.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from cgmvae.networks import (
    INITIALISATIONS,
    UNITS,
    Decoder,
    Encoder,
    initialise,
    interleave,
    phases_of,
)
from cgmvae.relaxation import log_sparsemax

if TYPE_CHECKING:
    from cgmvae.experiment import Experiment

HEAD_UNITS = (512, 256)
SUPPORT = 4  # labels that a sparse q(y|x) has at most


@dataclass(frozen=True)
class Likelihood:
    """One p(x|z): what the decoder's value for a pixel means."""

    log_px: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """(target, value, ln scale), each (..., pixels) but the scale, to ln p(x|z) summed over pixels."""
    mean: Callable[[Tensor], Tensor]  # of a pixel, from the decoder's value
    binary: bool = False  # pixels must be 0 or 1
    scaled: bool = False  # has one learned scale for all pixels


def cross_entropy(x: Tensor, logit: Tensor, _: Tensor | None = None) -> Tensor:
    """ln of p^x (1 - p)^(1 - x) with p = sigmoid(logit), also for x between 0 and 1."""
    return (x * logit - F.softplus(logit)).sum(-1)


def gaussian(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """ln of the normal density of x around `mean`."""
    return Normal(mean, log_scale.exp(), validate_args=False).log_prob(x).sum(-1)


LIKELIHOODS = {
    "bernoulli": Likelihood(cross_entropy, torch.sigmoid, binary=True),
    "cross_entropy": Likelihood(cross_entropy, torch.sigmoid),
    "gaussian": Likelihood(gaussian, lambda value: value.clamp(0, 1), scaled=True)}


class GMVAE(nn.Module):
    """The paper's networks (appendix A) for one experiment's images, K, D and likelihood.

    `posterior` is `joint`, the paper's q(y|x) q(z|x, y); `factored`, q(y|x) q(z|x); or `collapsed`, q(z|x)
    with q(y|x) in proportion to p(y) exp E_q(z|x)[ln p(z|y)] (chapter 10); or `sparse`, the paper's with a
    sparsemax of at most `SUPPORT` labels where it has a softmax (chapter 11).

    `bf16` runs the matrix products and convolutions in bfloat16. Every density, sample and sum
    stays in float32 or better: in bfloat16 they would move the loss by whole nats.
    """

    def __init__(self, experiment: Experiment, bf16: bool = False) -> None:
        super().__init__()
        e = experiment
        self.K, self.z_dim, self.bf16, self.posterior = e.K, e.z_dim, bf16, e.posterior
        self.likelihood = LIKELIHOODS[e.likelihood]
        self.encoder = Encoder(e.image_shape, e.padding)
        wide, narrow = HEAD_UNITS
        self.q_y_layers = self.q_z_from_y = None
        if self.posterior != "collapsed":
            self.q_y_layers = nn.Sequential(nn.Linear(UNITS, wide), nn.ReLU(), nn.Linear(wide, narrow),
                                            nn.ReLU(), nn.Linear(narrow, e.K))
        # The first layer of q(z|x, y) sees [h, y]. Its matrix is kept in two parts, because the
        # part that sees h is the same for every y; both start as one layer would.
        self.q_z_from_h = nn.Linear(UNITS, wide)
        inputs = UNITS
        if self.posterior in ("joint", "sparse"):
            self.q_z_from_y, inputs = nn.Linear(e.K, wide, bias=False), UNITS + e.K
        parts = [layer for layer in (self.q_z_from_h, self.q_z_from_y) if layer is not None]
        for parameter in (p for layer in parts for p in layer.parameters()):
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        self.q_z_layers = nn.Sequential(nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(),
                                        nn.Linear(narrow, 2 * e.z_dim))
        self.p_z_layer = nn.Linear(e.K, 2 * e.z_dim)
        self.decoder = Decoder(e.image_shape, e.z_dim, e.decoder_units, e.padding)
        initialise(self, e.initialisation)
        if draw := INITIALISATIONS[e.initialisation]:  # the two parts are one layer
            for part in parts:
                draw(part.weight, inputs, wide)
        self.log_scale = nn.Parameter(torch.zeros(())) if self.likelihood.scaled else None

    def encode(self, x: Tensor) -> Tensor:
        """The shared encoding h (B, 512) of x (B, C, H, W)."""
        with self._networks(x):
            return _wide(self.encoder(x))

    def logits_y(self, h: Tensor) -> Tensor:
        """The logits of q(y|x), not normalised: (B, K) from h (B, 512).

        With the posterior `collapsed` they are -KL(q(z|x)||p(z|y)), which differs from
        E_q(z|x)[ln p(z|y)] by the entropy of q(z|x) alone; p(y) is the same for every y.
        """
        if self.posterior == "collapsed":
            return -self.kl_z_each(self.q_z_of_x(self.q_z_h(h)))
        with self._networks(h):
            return _wide(self.q_y_layers(h))

    def log_q_y(self, h: Tensor) -> Tensor:
        """ln q(y|x) for every label: (B, K) from h (B, 512). Always finite, see `log_sparsemax`."""
        logits = self.logits_y(h)
        return log_sparsemax(logits, SUPPORT) if self.posterior == "sparse" else F.log_softmax(logits, -1)

    def log_p_y(self) -> float:
        """ln p(y) = -ln K, the same for every label (eq. 2)."""
        return -math.log(self.K)

    def q_z(self, h: Tensor, y: Tensor) -> Normal:
        """q(z|x, y), a diagonal normal over (..., D), from h (B, 512) and y in either form."""
        return self.q_z_given(self.q_z_h(h), y)

    def q_z_h(self, h: Tensor) -> Tensor:
        """The half of the first layer of q(z|x, y) that does not depend on y: (B, 512)."""
        with self._networks(h):
            return _wide(self.q_z_from_h(h))

    def q_z_given(self, from_h: Tensor, y: Tensor) -> Normal:
        """q(z|x, y) from the result of `q_z_h`; labels (K, 1) give all of (K, B, D) at once."""
        if self.q_z_from_y is None:  # the same for every y
            q_z, each = self.q_z_of_x(from_h), y.shape[:-1] if y.is_floating_point() else y.shape
            shape = torch.broadcast_shapes((*each, 1), q_z.loc.shape)
            return Normal(q_z.loc.expand(shape), q_z.scale.expand(shape), validate_args=False)
        with self._networks(from_h):
            return _normal(self.q_z_layers(from_h + _linear(self.q_z_from_y, y)))

    def q_z_of_x(self, from_h: Tensor) -> Normal:
        """q(z|x), over (B, D), of the posteriors whose z does not depend on y."""
        with self._networks(from_h):
            return _normal(self.q_z_layers(from_h))

    def kl_z_each(self, q_z: Normal) -> Tensor:
        """KL(q(z|x)||p(z|y)) for every y in closed form, (B, K), from q(z|x) over (B, D). nats.

        With the square of q(z|x).loc - p(z|y).loc multiplied out, two matrix products give it. No tensor
        is (B, K, D): with one, a step would wait for memory where its count of operations hardly grows.
        """
        p_z = self.p_z(torch.arange(self.K, device=q_z.loc.device))
        # Squares that nearly cancel: hence around the means' own centre, as a shift of all means changes no
        # divergence, and on CUDA, where tf32 would round the products by whole nats, in float64.
        dtype = torch.float64 if q_z.loc.device.type == "cuda" else q_z.loc.dtype
        of_x, scale_x, of_y, scale_y = (t.to(dtype) for t in (q_z.loc, q_z.scale, p_z.loc, p_z.scale))
        centre = of_y.detach().mean(0)
        of_x, of_y, variance, precision = of_x - centre, of_y - centre, scale_x**2, scale_y**-2
        with torch.autocast(q_z.loc.device.type, enabled=False):
            far = (variance + of_x**2) @ precision.T - 2 * of_x @ (of_y * precision).T
        each = (of_y**2 * precision - precision.log()).sum(-1)  # of y alone, (K,)
        return ((far + each - (variance.log() + 1).sum(-1, keepdim=True)) / 2).to(q_z.loc.dtype)

    def p_z(self, y: Tensor) -> Normal:
        """p(z|y), a diagonal normal over (..., D) (eq. 3). One layer, always in float32."""
        return _normal(_linear(self.p_z_layer, y))

    def log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        """ln p(x|z) in nats, summed over pixels (eq. 4).

        Args:
            x: (B, C, H, W), in [0, 1].
            z: (..., B, D).

        Returns:
            (..., B).
        """
        target = phases_of(x).permute(0, 2, 3, 1).flatten(1)
        return self.likelihood.log_px(target, self._decode(z), self.log_scale)

    def x_mean(self, z: Tensor) -> Tensor:
        """The mean of p(x|z) as images (N, C, H, W), from z (N, D): of `gaussian` cut to [0, 1], to be shown."""
        with self._networks(z):
            image = interleave(_wide(self.decoder(z)))
        return self.likelihood.mean(image)

    def _decode(self, z: Tensor) -> Tensor:
        """The decoder's value for every pixel, (..., B, C*H*W), in the order of `phases_of`.

        A sum over pixels does not ask in which order they stand, so no image is put together.
        """
        with self._networks(z):
            phases = self.decoder(z.reshape(-1, self.z_dim))
        return _wide(phases.permute(0, 2, 3, 1).reshape(*z.shape[:-1], -1))

    def _networks(self, like: Tensor) -> contextlib.AbstractContextManager:
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(like.device.type, torch.bfloat16)


def _wide(result: Tensor) -> Tensor:
    """A network's result as float32 where it came in bfloat16; float64, as in the tests, stays."""
    return result.float() if result.dtype == torch.bfloat16 else result


def _linear(layer: nn.Linear, y: Tensor) -> Tensor:
    """`layer` applied to y: a product for weights, a look-up for labels."""
    if y.is_floating_point():
        return layer(y)
    rows = F.embedding(y, layer.weight.t())
    return rows if layer.bias is None else rows + layer.bias


def _normal(parameters: Tensor) -> Normal:
    """A diagonal normal from its mean and log-variance, side by side in (..., 2D)."""
    mean, log_variance = _wide(parameters).chunk(2, -1)
    return Normal(mean, (log_variance / 2).exp(), validate_args=False)
