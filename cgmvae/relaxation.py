"""From a categorical label to a differentiable sample: Gumbel-max, Concrete, straight-through.

Chapter 2 derives everything here. Samples are kept as log y: at temperature 0.3 the y of a float32
sample is often exactly 0, and then its density cannot be had from y any more.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def gumbel(like: Tensor, generator: Generator | None = None) -> Tensor:
    """Standard Gumbel noise, -ln(-ln u) of a uniform u, in the shape, type and place of `like`.

    float32 has no u between 1 - 6e-8 and 1, so that no noise is above 16.6; exact noise would be
    once in 17 million draws.
    """
    u = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    return u.clamp_min_(torch.finfo(u.dtype).tiny).log_().neg_().log_().neg_()


def gumbel_max(logits: Tensor, generator: Generator | None = None) -> Tensor:
    """Exact samples of Cat(softmax(logits)) as labels.

    Args:
        logits: (..., K).

    Returns:
        (...), int64: the argmax of logits plus Gumbel noise (Maddison et al., 2017).
    """
    return (logits + gumbel(logits, generator)).argmax(-1)


def concrete_sample(logits: Tensor, tau: float, generator: Generator | None = None) -> Tensor:
    """ln y for y ~ Concrete(softmax(logits), tau), differentiable in `logits`.

    Args:
        logits: (..., K).
        tau: temperature, above 0. Towards 0 the sample becomes the one-hot `gumbel_max`.

    Returns:
        ln y (..., K); y is on the simplex (Maddison et al., 2017; Jang et al., 2017).
    """
    return torch.log_softmax((logits + gumbel(logits, generator)) / tau, -1)


def concrete_log_density(log_y: Tensor, logits: Tensor, tau: float) -> Tensor:
    """ln of the density of ln y, for y ~ Concrete(softmax(logits), tau), in nats.

    It is a density over ln y (torch's `ExpRelaxedCategorical`), which stays finite where the
    density over y overflows. A ratio of two Concrete densities at the same point, as in eq. 7,
    is the same over y and over ln y: the Jacobian cancels.

    Args:
        log_y: (..., K), with logsumexp 0.
        logits: (..., K), of any normalisation.
        tau: temperature, above 0.

    Returns:
        (...), from Maddison et al. (2017), appendix C.
    """
    K = logits.shape[-1]
    score = logits - tau * log_y
    constant = math.lgamma(K) + (K - 1) * math.log(tau)
    return constant + score.sum(-1) - K * score.logsumexp(-1)


def concrete_log_ratio(log_y: Tensor, logits: Tensor, tau: float) -> Tensor:
    """ln of the ratio of two Concrete densities at the same ln y, in nats: the one with `logits`
    over the one with all labels alike, both at temperature tau. Eq. 7 asks for it.

    It is the difference of two `concrete_log_density`, without what they have in common.

    Args:
        log_y: (..., K), with logsumexp 0.
        logits: (..., K), of any normalisation.
        tau: temperature, above 0.

    Returns:
        (...).
    """
    level = -tau * log_y
    K = logits.shape[-1]
    return logits.sum(-1) - K * ((logits + level).logsumexp(-1) - level.logsumexp(-1))


def straight_through(log_y: Tensor) -> Tensor:
    """One-hot argmax of a Concrete sample forwards, the sample itself backwards.

    Args:
        log_y: (..., K), from `concrete_sample`.

    Returns:
        (..., K): exactly one-hot in value, with the gradient of y (Bengio et al., 2013).
    """
    y = log_y.exp()
    hard = torch.zeros_like(y).scatter_(-1, y.argmax(-1, keepdim=True), 1.0)
    return hard + (y - y.detach())
