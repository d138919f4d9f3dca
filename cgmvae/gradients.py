"""Mean and variance of the estimators' gradients, by sums over labels. Chapter 11.

With the noise of z given, all that is random in an exact label is which of K it is. Its mean and its variance are
then sums over labels, and nothing is sampled. What is sampled is told with its standard error. f is
ln p(x|z) - ln q(z|x, y)/p(z|y), in nats, with its sign that of the ELBO; the gradient is that of its mean.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.utils import parameters_to_vector

from cgmvae.checks import one_of
from cgmvae.discrete import NOISES
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.model import GMVAE
from cgmvae.objectives import categorical_kl, given_y
from cgmvae.relaxation import concrete_log_ratio, concrete_sample, gumbel_given_argmax


class Moments(NamedTuple):
    """Of the gradient for each image's logits, over what an estimator draws with the noise of z given."""

    mean: Tensor  # (B, K), nats
    variance: Tensor  # (B,), summed over logits, nats squared
    error: Tensor | float = 0.0  # standard error of the mean, (B,), nats; 0 where it is a sum


class Corners(NamedTuple):
    """f at every label, and its slope there as a function of the label's weights."""

    q: Tensor  # (B, K)
    f: Tensor  # (B, K)
    slope: Tensor  # (K, B, K): at label k, of image b, along each weight


def corners(model: GMVAE, x: Tensor, noise: Tensor, e: Experiment) -> Corners:
    """f and its slope at each one-hot y, with one noise of z (B, D) for all of them. K passes."""
    with torch.no_grad():
        h = model.encode(x)
        q, from_h = model.log_q_y(h).exp(), model.q_z_h(h)
    y = torch.eye(model.K, dtype=q.dtype, device=q.device)[:, None].repeat(1, len(x), 1).requires_grad_()
    log_px, kl_z = given_y(model, x, from_h, y, noise, e.kl_z_form)
    f = log_px - e.beta * kl_z
    slope, = torch.autograd.grad(f.sum(), y)
    return Corners(q, f.detach().T, slope)


def exact(q: Tensor, f: Tensor) -> Tensor:
    """The gradient of the sum over labels of q f for each logit, (..., K): q (f - its mean)."""
    return q * (f - (q * f).sum(-1, keepdim=True))


def moments(name: str, at: Corners, tau: float | None = None, generator: Generator | None = None) -> Moments:
    """Mean and variance of an estimator's gradient from f and its slope at the labels, without further passes.

    Args:
        name: one of `MOMENTS`, which draw exact labels. Raises ExperimentError for another.
        tau: of those that relax in the backward pass.
    """
    one_of("estimator", name, MOMENTS)
    return MOMENTS[name](at, tau, generator)


def of_sum(at: Corners, *_: object) -> Moments:
    """Eq. 6: nothing is drawn."""
    return Moments(exact(at.q, at.f), torch.zeros_like(at.q[:, 0]))


def of_score(at: Corners, *_: object) -> Moments:
    """(f_y - b) (e_y - q). The baseline b, over the other images, stands as two values of its mean and variance."""
    q, f, others = at.q, at.f, max(len(at.q) - 1, 1)
    mean = (q * f).sum(-1)
    spread = (q * (f - mean[:, None]) ** 2).sum(-1)
    b, sd = (mean.sum() - mean) / others, (spread.sum() - spread).sqrt() / others
    each = [(f.T - b + sign * sd)[..., None] * (_one_hot(q) - q) for sign in (1, -1)]
    return _over(torch.cat([q.T, q.T]) / 2, torch.cat(each))


def of_pairs(draws: int, at: Corners, *_: object) -> Moments:
    """Leave one out: the mean over pairs of draws of (f_y - f_y') (e_y - e_y') / 2.

    Its variance is that of a U-statistic of order 2 (Hoeffding, 1948).
    """
    q, f, e = at.q, at.f, _one_hot(at.q)
    h = (f.T[:, None] - f.T)[..., None] * (e[:, None] - e) / 2  # (K, K, B, K)
    pair = _over((q.T[:, None] * q.T).flatten(0, 1), h.flatten(0, 1))
    one = _over(q.T, (q.T[..., None] * h).sum(1))  # what a pair is on average once one of it is known
    variance = 2 * (2 * (draws - 2) * one.variance + pair.variance) / (draws * (draws - 1))
    return Moments(pair.mean, variance)


def of_rest(at: Corners, *_: object) -> Moments:
    """Sum and sample: over the draws from the rest."""
    q, f = at.q, at.f
    surest = torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q)
    rest = q * (1 - surest)
    r = rest.sum(-1, keepdim=True)
    each = (f.T - (f * surest).sum(-1))[..., None] * r * (_one_hot(q) - q)
    return _over((rest / r.clamp_min(torch.finfo(q.dtype).tiny)).T, each)


def of_heun(at: Corners, tau: float, *_: object) -> Moments:
    """ReinMax: over the labels, each with its own slope."""
    middle = ((at.q.log() / tau).softmax(-1) + _one_hot(at.q)) / 2
    return _over(at.q.T, 2 * _through(middle, at.slope) - _through(at.q, at.slope) / 2)


def of_relaxed(noises: int, at: Corners, tau: float, generator: Generator | None = None) -> Moments:
    """Straight-through, averaged over so many relaxed samples of the label."""
    q = at.q.expand(at.q.shape[-1], *at.q.shape)
    return _over_noises(noises, at, _through(_relaxed(q, tau, generator), at.slope) / tau)


def of_heun_relaxed(noises: int, at: Corners, tau: float, generator: Generator | None = None) -> Moments:
    """ReinMax with so many relaxed labels where it has the middle of q and the label."""
    y, rest = _relaxed((at.q + _one_hot(at.q)) / 2, tau, generator), _through(at.q, at.slope) / 2
    return _over_noises(noises, at, 2 * _through(y, at.slope) / tau - rest)


MOMENTS = {"marginal": of_sum, "score_function": of_score, "sum_and_sample": of_rest, "reinmax": of_heun,
           "leave_one_out_2": partial(of_pairs, 2), "leave_one_out_4": partial(of_pairs, 4),
           "straight_through": partial(of_relaxed, 1), "rao_blackwell": partial(of_relaxed, NOISES),
           "reinmax_rao": partial(of_heun_relaxed, NOISES)}
"""By the estimator's name."""


def concrete_moments(model: GMVAE, x: Tensor, noise: Tensor, e: Experiment, draws: int,
                     generator: Generator | None = None) -> Moments:
    """The same for a relaxed label, by sampling: a pass for each draw. Of `kl_y` it counts what differs from
    the closed form."""
    with torch.no_grad():
        h = model.encode(x)
        logits, from_h = model.log_q_y(h), model.q_z_h(h)
    logits = logits.repeat(draws, 1, 1).requires_grad_()
    log_y = concrete_sample(logits, e.tau, generator)
    log_px, kl_z = given_y(model, x, from_h, log_y.exp(), noise, e.kl_z_form)
    value = log_px - e.beta * kl_z
    if e.kl_y_form == "relaxed":
        closed = categorical_kl(logits.log_softmax(-1), model.log_p_y())
        value = value - concrete_log_ratio(log_y, logits, e.tau) + closed
    each, = torch.autograd.grad(value.sum(), logits)
    variance = each.var(0).sum(-1)
    return Moments(each.mean(0), variance, (variance / draws).sqrt())


def at_labels(model: GMVAE, x: Tensor, noise: Tensor, e: Experiment, weights: list[Tensor]) -> Tensor:
    """The gradient of f for some networks' weights at every label, (K, P), of one image (1, C, H, W) with one
    noise of z (1, D)."""
    with torch.no_grad():
        h = model.encode(x)
    y = torch.eye(model.K, dtype=h.dtype, device=h.device)[:, None]
    log_px, kl_z = given_y(model, x, model.q_z_h(h), y, noise, e.kl_z_form)
    f = (log_px - e.beta * kl_z)[:, 0]
    each = torch.autograd.grad(f, weights, torch.eye(model.K, dtype=f.dtype, device=f.device),
                               is_grads_batched=True)
    return torch.cat([g.flatten(1) for g in each], 1)


def label_variance(name: str, q: Tensor, products: Tensor) -> Tensor:
    """Variance of an estimator's gradient for the weights, over the labels that it draws, summed over weights.

    Its mean is that of the sum for every exact label, so that there is no bias to tell.

    Args:
        q: (K,). products: between what `at_labels` returns at each two labels, (K, K), or (N, K, K) of N noises of z.
    """
    if name == "marginal":
        return torch.zeros_like(products[..., 0, 0])
    by_sum = name == "sum_and_sample"  # the surest label is not drawn, only one of the rest
    rest = q * (torch.arange(len(q), device=q.device) != q.argmax()) if by_sum else q
    r = rest.sum()
    p = rest / r.clamp_min(torch.finfo(q.dtype).tiny)
    spread = products.diagonal(dim1=-2, dim2=-1) @ p - products @ p @ p
    return r ** 2 * spread.clamp_min(0) / (ESTIMATORS[name].passes(len(q)) - by_sum)


def concrete_weights(model: GMVAE, x: Tensor, noise: Tensor, e: Experiment, weights: list[Tensor],
                     generator: Generator | None = None) -> Tensor:
    """One draw of the gradient for the weights with a relaxed label, of the mean over the images: (P,)."""
    with torch.no_grad():
        h = model.encode(x)
        log_y = concrete_sample(model.log_q_y(h), e.tau, generator)
    log_px, kl_z = given_y(model, x, model.q_z_h(h), log_y.exp(), noise, e.kl_z_form)
    return parameters_to_vector(torch.autograd.grad((log_px - e.beta * kl_z).mean(), weights))


def _one_hot(q: Tensor) -> Tensor:
    """Every label, (K, 1, K)."""
    return torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)[:, None]


def _over(p: Tensor, each: Tensor) -> Moments:
    """Mean and variance over outcomes of chance p (n, B) and gradient (n, B, K)."""
    mean = (p[..., None] * each).sum(0)
    return Moments(mean, (p * ((each - mean) ** 2).sum(-1)).sum(0))


def _relaxed(p: Tensor, tau: float, generator: Generator | None) -> Tensor:
    """1000 relaxed labels of chances p (K, B, K), the k-th of which has its argmax at k: (1000, K, B, K)."""
    label = torch.arange(len(p), device=p.device)[:, None].expand(1000, *p.shape[:2])
    return (gumbel_given_argmax(p.log().expand(1000, *p.shape), label, generator) / tau).softmax(-1)


def _over_noises(noises: int, at: Corners, each: Tensor) -> Moments:
    """Over labels, and over n relaxed labels of each: `each` (n, K, B, K) is the gradient at one of these. The
    estimator averages `noises` of them."""
    within, between = each.var(0).sum(-1), _over(at.q.T, each.mean(0))  # (K, B): with the label given
    return Moments(between.mean, between.variance + (at.q.T * within).sum(0) / noises,
                   (at.q.T ** 2 * within / len(each)).sum(0).sqrt())


def _through(p: Tensor, slope: Tensor) -> Tensor:
    """A slope, passed back through a softmax whose value is p."""
    return p * (slope - (p * slope).sum(-1, keepdim=True))
