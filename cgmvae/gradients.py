"""Mean and variance of the estimators' gradients for the label, by sums over labels. Chapter 11.

With the noise of z given, all that is random in an exact label is which of K it is. Its mean and its variance are
then sums over labels, and nothing is sampled. What is sampled is told with its standard error. f is
ln p(x|z) - ln q(z|x, y)/p(z|y), in nats, with its sign that of the ELBO; the gradient is that of its mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

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


def moments(name: str, at: Corners, tau: float | None = None, generator: Generator | None = None,
            noises: int = 1000) -> Moments:
    """Mean and variance of an estimator's gradient from f and its slope at the labels, without further passes.

    Args:
        name: an estimator that draws exact labels.
        tau: of those that relax in the backward pass; their Jacobian is averaged over `noises` for each label.
    """
    q, f, K = at.q, at.f, at.q.shape[-1]
    e_k = torch.eye(K, dtype=q.dtype, device=q.device)[:, None]  # (K, 1, K)
    if name == "marginal":
        return Moments(exact(q, f), torch.zeros_like(q[:, 0]))
    if name == "score_function":  # its baseline, over the other images, takes two values of the right mean and variance
        mean = (q * f).sum(-1)
        spread = (q * (f - mean[:, None]) ** 2).sum(-1)
        others = max(len(q) - 1, 1)
        sd = (spread.sum() - spread).sqrt() / others
        each = [(f.T - (mean.sum() - mean) / others + sign * sd)[..., None] * (e_k - q) for sign in (1, -1)]
        return _over(torch.cat([q.T, q.T]) / 2, torch.cat(each))
    if name.startswith("leave_one_out"):  # the mean over pairs of draws of h, a U-statistic of order 2
        draws = ESTIMATORS[name].noises
        h = (f.T[:, None] - f.T)[..., None] * (e_k[:, None] - e_k) / 2  # (K, K, B, K)
        pair = _over((q.T[:, None] * q.T).flatten(0, 1), h.flatten(0, 1))
        single = _over(q.T, (q.T[..., None] * h).sum(1))
        variance = 2 * (2 * (draws - 2) * single.variance + pair.variance) / (draws * (draws - 1))
        return Moments(pair.mean, variance)
    if name == "sum_and_sample":
        t = torch.nn.functional.one_hot(q.argmax(-1), K).to(q)
        q_t, f_t = (q * t).sum(-1, keepdim=True), (f * t).sum(-1)
        rest = q * (1 - t)
        r = rest.sum(-1, keepdim=True)
        each = (f.T - f_t)[..., None] * (r * e_k - rest - q_t * (t - q))
        return _over((rest / r.clamp_min(torch.finfo(q.dtype).tiny)).T, each)
    if name == "reinmax":
        middle = ((q.log() / tau).softmax(-1) + e_k) / 2
        return _over(q.T, 2 * _through(middle, at.slope) - _through(q, at.slope) / 2)
    label = torch.arange(K, device=q.device)[:, None].expand(noises, K, len(q))
    y = (gumbel_given_argmax(q.log().expand(noises, K, *q.shape), label, generator) / tau).softmax(-1)
    each = _through(y, at.slope) / tau
    within = each.var(0).sum(-1)  # (K, B), given the label
    between = _over(q.T, each.mean(0))
    return Moments(between.mean, between.variance + (q.T * within).sum(0) / ESTIMATORS[name].noises,
                   (q.T ** 2 * within / noises).sum(0).sqrt())


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


def _over(p: Tensor, each: Tensor) -> Moments:
    """Mean and variance over outcomes of chance p (n, B) and gradient (n, B, K)."""
    mean = (p[..., None] * each).sum(0)
    return Moments(mean, (p * ((each - mean) ** 2).sum(-1)).sum(0))


def _through(p: Tensor, slope: Tensor) -> Tensor:
    """A slope, passed back through a softmax whose value is p."""
    return p * (slope - (p * slope).sum(-1, keepdim=True))
