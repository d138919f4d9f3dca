"""From a categorical label to a differentiable sample: Gumbel-max, Concrete, straight-through; sparsemax.

Chapters 2 and 11 derive everything here. Samples are kept as log y: at temperature 0.3 the y of a float32
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
        (...), int64: the argmax of logits plus Gumbel noise (Maddison et al., 2014).
    """
    return (logits + gumbel(logits, generator)).argmax(-1)


def concrete_sample(logits: Tensor, tau: float | Tensor, generator: Generator | None = None) -> Tensor:
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


def concrete_log_ratio(log_y: Tensor, logits: Tensor, tau: float | Tensor) -> Tensor:
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
    return hard_forwards(y.argmax(-1), y)


def gumbel_given_argmax(log_q: Tensor, label: Tensor, generator: Generator | None = None) -> Tensor:
    """ln q + g, for Gumbel noise g given that `label` is where ln q + g is largest.

    The largest is a Gumbel number whatever its place; the others are cut off at it (Maddison et al., 2014).

    Args:
        log_q: (..., K), normalised.
        label: (...), int64.

    Returns:
        (..., K), without a gradient.
    """
    g = gumbel(log_q, generator)
    top = g.gather(-1, label[..., None])
    others = -torch.logaddexp(-log_q.detach() - g, -top)
    return others.scatter(-1, label[..., None], top)


def rao_blackwell(log_q: Tensor, label: Tensor, tau: float, draws: int, generator: Generator | None = None) -> Tensor:
    """`label` one-hot forwards; backwards the mean of relaxed samples whose argmax it is.

    Args:
        log_q: (..., K), normalised.
        label: (...), int64, drawn from it.
        draws: relaxed samples.

    Returns:
        (..., K): exactly one-hot in value (Paulus et al., 2021).
    """
    many = log_q.expand(draws, *log_q.shape)
    noise = gumbel_given_argmax(many, label.expand(draws, *label.shape), generator) - log_q.detach()
    return hard_forwards(label, ((log_q + noise) / tau).softmax(-1).mean(0))


def reinmax(log_q: Tensor, label: Tensor, tau: float = 1.0) -> Tensor:
    """`label` one-hot forwards; backwards Heun's rule, exact in the mean for a quadratic function of y.

    With J(p) the Jacobian diag(p) - p p^T of a softmax at p, the gradient is passed through
    2 J((q + y)/2) - J(q)/2 (Liu et al., 2023).

    Args:
        log_q: (..., K), normalised.
        label: (...), int64, drawn from it.
        tau: temperature of the q in the first J; Heun's rule has 1.

    Returns:
        (..., K): exactly one-hot in value.
    """
    y = hard_forwards(label, torch.zeros_like(log_q))
    middle = ((log_q / tau).softmax(-1) + y) / 2
    return hard_forwards(label, 2 * _softmax_at(middle, log_q) - _softmax_at(log_q.exp(), log_q) / 2)


def reinmax_rao(log_q: Tensor, label: Tensor, tau: float, draws: int,
                generator: Generator | None = None) -> Tensor:
    """`reinmax` with relaxed labels where it has (q + y)/2, a mean over those with this argmax.

    J((q + y)/2) gives way to the mean of J(s)/tau, where s has the logits ln (q + y)/2 and
    Gumbel noise (Wang & Bui, 2026, by their public code).

    Args:
        log_q: (..., K), normalised.
        label: (...), int64, drawn from it.
        tau: temperature of s, above 0.
        draws: samples of s.

    Returns:
        (..., K): exactly one-hot in value.
    """
    y = hard_forwards(label, torch.zeros_like(log_q))
    log_middle = ((log_q.exp() + y) / 2).detach().log()
    many, labels = log_middle.expand(draws, *log_q.shape), label.expand(draws, *label.shape)
    relaxed = (gumbel_given_argmax(many, labels, generator) / tau).softmax(-1)
    middle = _softmax_at(relaxed, log_q).mean(0) / tau
    return hard_forwards(label, 2 * middle - _softmax_at(log_q.exp(), log_q) / 2)


def _softmax_at(p: Tensor, logits: Tensor) -> Tensor:
    """Linear in the logits, with the Jacobian of a softmax whose value is p."""
    p = p.detach()
    return p * (logits - (p * logits).sum(-1, keepdim=True))


def hard_forwards(label: Tensor, soft: Tensor) -> Tensor:
    """`label` (...) one-hot in value, with the gradient of `soft` (..., K)."""
    hard = torch.zeros_like(soft).scatter_(-1, label[..., None], 1.0)
    return hard + (soft - soft.detach())


def log_sparsemax(logits: Tensor, most: int) -> Tensor:
    """ln of the nearest distribution to the logits with at most so many labels: a sparsemax cut off.

    Of the largest logits l, in falling order, q = max(l - theta, 0), where theta is the largest of
    (l_1 + ... + l_r - 1)/r over r. Where the whole sparsemax has no more labels than `most`, this
    is it (Martins & Astudillo, 2016; cut off: Correia et al., 2020). O(K) comparisons.

    Args:
        logits: (..., K). A constant added to all of them changes nothing, a factor does.
        most: labels at most, 1 at least.

    Returns:
        (..., K), normalised. Where q is 0 it is the least number of its type and not minus
        infinity, whose product with q would be no number; no gradient comes from there.
    """
    top, labels = logits.topk(min(most, logits.shape[-1]), -1)
    top = top - top[..., :1].detach()
    sizes = torch.arange(1, top.shape[-1] + 1, dtype=top.dtype, device=top.device)
    q = top - ((top.cumsum(-1) - 1) / sizes).max(-1, keepdim=True).values
    out, least = q <= 0, torch.finfo(q.dtype).min
    log_q = q.masked_fill(out, 1.0).log().masked_fill(out, least)
    return torch.full_like(logits, least).scatter(-1, labels, log_q)
