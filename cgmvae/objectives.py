"""The ELBO (eq. 5) and its estimates by a sum over labels (eq. 6) and by a relaxed label (eq. 7 and 8).

An estimator, here and in discrete.py, takes (model, x, h, experiment, generator), with x (B, C, H, W) in
[0, 1] and its encoding h, and returns its terms, each (B,) in nats, each differentiable::

    log_px   estimate of E[ln p(x|z)]
    kl_z     estimate of E[ln q(z|x, y)/p(z|y)], at one sample of z as eq. 6 to 8 have it
    kl_y     KL(q(y|x)||p(y)) or its estimate; its weight is w_t in eq. 8

so that the ELBO is log_px - kl_z - kl_y. Some of discrete.py have a fourth, `score`, which is zero in
value and carries the gradient of the sampled label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.distributions import kl_divergence
from torch.utils.checkpoint import checkpoint

from cgmvae.memory import KEEP_BYTES, activation_bytes, labels_at_once
from cgmvae.model import SUPPORT, GMVAE
from cgmvae.relaxation import concrete_log_ratio, concrete_sample

if TYPE_CHECKING:
    from cgmvae.experiment import Experiment

Terms = dict[str, Tensor]
KL_Y_FORMS = ("relaxed", "categorical")
KL_Z_FORMS = ("sampled", "closed")
LABEL_WEIGHT = 100.0  # of -ln q(y|x) of an image whose label is told


def elbo(terms: Terms, w: Tensor | float = 1.0, beta: float = 1.0) -> Tensor:
    """The ELBO of each image, (B,), with weight w on KL(q(y|x)||p(y)) (eq. 8), and beta on kl_z."""
    value = terms["log_px"] - beta * terms["kl_z"] - w * terms["kl_y"]
    return value + terms["score"] if "score" in terms else value


def categorical_kl(log_q_y: Tensor, log_p_y: float) -> Tensor:
    """KL(q(y|x)||p(y)) in closed form, (..., K) to (...)."""
    return (log_q_y.exp() * (log_q_y - log_p_y)).sum(-1)


def marginal(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment, generator: Generator | None = None) -> Terms:
    """Eq. 6: the sum over all K labels, each with its own sample of z. O(K)."""
    log_q_y = model.log_q_y(h)
    noise = torch.randn(model.K, len(x), model.z_dim, device=x.device, generator=generator)
    log_px, kl_z = all_labels(model, x, model.q_z_h(h), noise, experiment.kl_z_form)
    q_y = log_q_y.exp().T  # (K, B)
    return {"log_px": (q_y * log_px).sum(0), "kl_z": (q_y * kl_z).sum(0),
            "kl_y": categorical_kl(log_q_y, model.log_p_y())}


def all_labels(model: GMVAE, x: Tensor, from_h: Tensor, noise: Tensor,
               kl_z_form: str = "sampled") -> tuple[Tensor, Tensor]:
    """ln p(x|z) and ln q(z|x, y)/p(z|y) for every label, each (K, B).

    Labels are taken as many at a time as fill the hardware. Where what all of them leave for the
    backward pass would outgrow `KEEP_BYTES`, it is computed again there, so that memory does not
    grow with K.

    Args:
        from_h: (B, 512), from `model.q_z_h`.
        noise: (K, B, D), standard normal.
    """
    step = labels_at_once(model, x)
    labels = torch.arange(model.K, device=x.device)[:, None]
    kept = activation_bytes(model, x) * model.K if torch.is_grad_enabled() else 0
    recompute = kept > KEEP_BYTES[x.device.type]

    def some(labels: Tensor, noise: Tensor, from_h: Tensor) -> tuple[Tensor, Tensor]:
        return given_y(model, x, from_h, labels, noise, kl_z_form)

    parts = [checkpoint(some, some_labels, some_noise, from_h, use_reentrant=False,
                        preserve_rng_state=False) if recompute
             else some(some_labels, some_noise, from_h)
             for some_labels, some_noise in zip(labels.split(step), noise.split(step), strict=True)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def given_y(model: GMVAE, x: Tensor, from_h: Tensor, y: Tensor, noise: Tensor,
            kl_z_form: str = "sampled") -> tuple[Tensor, Tensor]:
    """ln p(x|z) and ln q(z|x, y)/p(z|y) at z ~ q(z|x, y) made from `noise` (..., B, D).

    With `closed` the second is its mean over z, KL(q(z|x, y)||p(z|y)).
    """
    q_z, p_z = model.q_z_given(from_h, y), model.p_z(y)
    z = q_z.loc + q_z.scale * noise
    kl_z = (kl_divergence(q_z, p_z) if kl_z_form == "closed"
            else q_z.log_prob(z) - p_z.log_prob(z)).sum(-1)
    return model.log_p_x(x, z), kl_z


def concrete(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment, generator: Generator | None = None,
             tau: Tensor | None = None) -> Terms:
    """Eq. 7 and 8: one relaxed sample in the place of the sum. O(1) in K.

    `experiment.kl_y_form` says what is meant by KL(q(y|x)||p(y)): `relaxed`, eq. 7 to the letter,
    with q and p both Concrete and their log-density ratio taken at the sample, or `categorical`.
    `tau` is the temperature where it is another than the experiment's, as while it falls.
    """
    tau = experiment.tau if tau is None else tau
    logits_y = model.logits_y(h)
    log_y = concrete_sample(logits_y, tau, generator)
    if experiment.kl_y_form == "relaxed":
        kl_y = concrete_log_ratio(log_y, logits_y, tau)
    else:
        kl_y = categorical_kl(logits_y.log_softmax(-1), model.log_p_y())
    log_px, kl_z = one_label(model, x, h, log_y.exp(), experiment, generator)
    return {"log_px": log_px, "kl_z": kl_z, "kl_y": kl_y}


def factored(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment, generator: Generator | None = None) -> Terms:
    """Eq. 5 for a posterior q(y|x) q(z|x), whose z does not depend on y: one pass, chapter 10.

    The sum over labels is then a mean of KL divergences between Gaussians, O(K D) and exact: `kl_z` is
    in closed form whatever `experiment.kl_z_form` says. With the posterior `collapsed`, q(y|x) is the
    best there is for q(z|x) and the plain ELBO, and no network.
    """
    q_z = model.q_z_of_x(model.q_z_h(h))
    noise = torch.randn(len(x), model.z_dim, device=x.device, generator=generator)
    z, kl_z = q_z.loc + q_z.scale * noise, model.kl_z_each(q_z)
    # What `model.log_q_y` gives, without all of the above once more.
    log_q_y = (-kl_z).log_softmax(-1) if model.posterior == "collapsed" else model.log_q_y(h)
    return {"log_px": model.log_p_x(x, z), "kl_z": (log_q_y.exp() * kl_z).sum(-1),
            "kl_y": categorical_kl(log_q_y, model.log_p_y())}


def sparse_marginal(model: GMVAE, x: Tensor, h: Tensor, experiment: Experiment,
                    generator: Generator | None = None) -> Terms:
    """Eq. 6 over the `SUPPORT` surest labels; q(y|x) is zero elsewhere (Correia et al., 2020).

    O(SUPPORT) at any K. No label is drawn, and nothing is cut from the sum: its value and its
    gradient are those of all K labels at one noise of z. What is cut is q(y|x), where its sparsemax
    has more labels. A label with q = 0 gets no gradient here: it comes back only by what the layers
    under the logits learn from others.
    """
    log_q_y = model.log_q_y(h)
    log_q, y = log_q_y.topk(min(SUPPORT, model.K), -1)
    log_px, kl_z = one_label(model, x, h, y.T, experiment, generator)
    q = log_q.exp().T  # (SUPPORT, B)
    return {"log_px": (q * log_px).sum(0), "kl_z": (q * kl_z).sum(0),
            "kl_y": categorical_kl(log_q_y, model.log_p_y())}


def labelled(model: GMVAE, x: Tensor, y: Tensor, experiment: Experiment,
             generator: Generator | None = None, view: Tensor | None = None) -> Tensor:
    """The loss of images whose label y, int64 (B,), is told: (B,), nats.

    The negative of what eq. 5 becomes when there is nothing to infer of y, a bound on ln p(x, y), and
    `LABEL_WEIGHT` times -ln q(y|x), which that bound does not train (Kingma et al., 2014). With a second
    view the latter is the mean over both.
    """
    h = model.encode(x if view is None else torch.cat([x, view]))
    log_px, kl_z = one_label(model, x, h[:len(x)], y, experiment, generator)
    told = y if view is None else y.repeat(2)
    log_q = model.log_q_y(h).gather(-1, told[:, None])[:, 0].view(-1, len(x)).mean(0)
    return experiment.beta * kl_z - log_px - model.log_p_y() - LABEL_WEIGHT * log_q


def one_label(model: GMVAE, x: Tensor, h: Tensor, y: Tensor, experiment: Experiment,
              generator: Generator | None) -> tuple[Tensor, Tensor]:
    """`given_y` at one sample of z an image: (..., B) each, from labels (..., B) or weights (..., B, K).

    Labels of one image share the noise of its z: what tells their values apart is the label alone.
    """
    noise = torch.randn(len(x), model.z_dim, device=x.device, generator=generator)
    return given_y(model, x, model.q_z_h(h), y, noise, experiment.kl_z_form)
