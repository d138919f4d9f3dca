"""Estimators of the ELBO (eq. 5) that draw y itself, one-hot, and not a relaxed label. Chapter 11.

They take and return what those of objectives.py do. A drawn label has no derivative. What stands in for
it is a `score` (Williams, 1992), which is unbiased, or a relaxed label in the backward pass, which is not.
The networks' own gradients are unbiased in all of them: the label that they see is an exact sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from cgmvae import relaxation
from cgmvae.model import GMVAE
from cgmvae.objectives import Terms, categorical_kl, one_label
from cgmvae.relaxation import concrete_sample, gumbel_max

if TYPE_CHECKING:
    from cgmvae.experiment import Experiment

NOISES = 10  # of `rao_blackwell` and `reinmax_rao`, an image


def exact_sample(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                 generator: Generator | None = None) -> tuple[Terms, Tensor, Tensor]:
    """One exact sample of y and of z an image: terms whose ELBO is an unbiased estimate of eq. 5.

    Returns:
        The terms, ln q(y|x) (B, K), and the labels y (B,), int64. The label's own gradient is not in
        the terms: `score` makes it.
    """
    log_q_y = model.log_q_y(h)
    y = gumbel_max(log_q_y.detach(), generator)
    log_px, kl_z = one_label(model, x, h, y, experiment, generator)
    return {"log_px": log_px, "kl_z": kl_z,
            "kl_y": categorical_kl(log_q_y, model.log_p_y())}, log_q_y, y


def score(weight: Tensor, log_q: Tensor) -> Tensor:
    """Zero in value, with the gradient weight * d log_q: what a drawn label adds (Williams, 1992)."""
    return weight.detach() * (log_q - log_q.detach())


def score_function(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                   generator: Generator | None = None) -> Terms:
    """One exact sample and REINFORCE (Williams, 1992). O(1), unbiased, of high variance.

    The baseline of an image is the mean over the other images of the batch: it depends on nothing
    that was drawn for the image itself, so that the gradient stays unbiased.
    """
    terms, log_q_y, y = exact_sample(model, x, h, experiment, generator)
    reward = (terms["log_px"] - experiment.beta * terms["kl_z"]).detach()
    others = (reward.sum() - reward) / max(len(x) - 1, 1)
    log_q = log_q_y.gather(-1, y[:, None])[:, 0]
    return terms | {"score": score(reward - others, log_q)}


def leave_one_out(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                  generator: Generator | None = None, *, draws: int) -> Terms:
    """REINFORCE over some draws of y; the others' mean is each one's baseline (Kool et al., 2019).

    Unbiased, as the others were drawn independently; all with one noise of z. O(draws), 2 at least.
    """
    log_q_y = model.log_q_y(h)
    y = gumbel_max(log_q_y.detach().expand(draws, *log_q_y.shape), generator)  # (draws, B)
    log_px, kl_z = one_label(model, x, h, y, experiment, generator)
    reward = log_px - experiment.beta * kl_z
    others = (reward.sum(0) - reward) / (draws - 1)
    log_q = log_q_y.gather(-1, y.T).T
    return {"log_px": log_px.mean(0), "kl_z": kl_z.mean(0),
            "kl_y": categorical_kl(log_q_y, model.log_p_y()),
            "score": score(reward - others, log_q).mean(0)}


def sum_and_sample(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                   generator: Generator | None = None) -> Terms:
    """The surest label t exactly, one draw y from the rest (Liu et al., 2019). Two passes, unbiased.

    With r = 1 - q(t|x) the value is f_t + r (f_y - f_t). The draw's own gradient is that of
    ln q(y|x)/r, with f_t as its baseline: at the same noise of z it is no random number of its own.
    """
    log_q_y = model.log_q_y(h)
    surest = log_q_y.argmax(-1, keepdim=True)
    # The least number and not minus infinity: with K = 1 nothing is left, and r is still 0.
    rest = log_q_y.scatter(-1, surest, torch.finfo(log_q_y.dtype).min)
    log_r = rest.logsumexp(-1)
    y = gumbel_max(rest.detach(), generator)
    log_px, kl_z = one_label(model, x, h, torch.stack([surest[:, 0], y]), experiment, generator)
    more_px, more_kl_z = log_px[1] - log_px[0], kl_z[1] - kl_z[0]
    r, log_q = log_r.exp(), rest.gather(-1, y[:, None])[:, 0] - log_r
    return {"log_px": log_px[0] + r * more_px, "kl_z": kl_z[0] + r * more_kl_z,
            "kl_y": categorical_kl(log_q_y, model.log_p_y()),
            "score": score(r * (more_px - experiment.beta * more_kl_z), log_q)}


def straight_through(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                     generator: Generator | None = None) -> Terms:
    """The gradient of the relaxed sample whose argmax the label is (Jang et al., 2017). O(1), biased."""
    log_q_y = model.log_q_y(h)
    y = relaxation.straight_through(concrete_sample(log_q_y, experiment.tau, generator))
    return _one_hot(model, x, h, log_q_y, y, experiment, generator)


def rao_blackwell(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                  generator: Generator | None = None) -> Terms:
    """`straight_through` averaged over `NOISES` samples with this argmax (Paulus et al., 2021). O(1), biased
    as it is, of less variance.
    """
    log_q_y = model.log_q_y(h)
    label = gumbel_max(log_q_y.detach(), generator)
    y = relaxation.rao_blackwell(log_q_y, label, experiment.tau, NOISES, generator)
    return _one_hot(model, x, h, log_q_y, y, experiment, generator)


def reinmax(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment, generator: Generator | None = None) -> Terms:
    """Straight-through to second order (Liu et al., 2023). O(1); unbiased where f is quadratic in y."""
    log_q_y = model.log_q_y(h)
    y = relaxation.reinmax(log_q_y, gumbel_max(log_q_y.detach(), generator), experiment.tau)
    return _one_hot(model, x, h, log_q_y, y, experiment, generator)


def reinmax_rao(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                generator: Generator | None = None) -> Terms:
    """`reinmax` with the mean of `NOISES` relaxed labels in its middle (Wang & Bui, 2026). O(1). At
    temperature 1 mostly of less variance; biased even where f is linear in y: too short where q
    is broad, too long where it is sure."""
    log_q_y = model.log_q_y(h)
    label = gumbel_max(log_q_y.detach(), generator)
    y = relaxation.reinmax_rao(log_q_y, label, experiment.tau, NOISES, generator)
    return _one_hot(model, x, h, log_q_y, y, experiment, generator)


def _one_hot(model: GMVAE, x: Tensor, h: Tensor, log_q_y: Tensor, y: Tensor, experiment: Experiment,
             generator: Generator | None) -> Terms:
    """The terms at a one-hot y (B, K) that carries a gradient of its own."""
    log_px, kl_z = one_label(model, x, h, y, experiment, generator)
    return {"log_px": log_px, "kl_z": kl_z, "kl_y": categorical_kl(log_q_y, model.log_p_y())}
