"""Bias and standard deviation of the estimators' gradients, for a given model and a few images. Chapter 11."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Generator, Tensor

from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.gradients import (at_labels, concrete_moments, concrete_weights, corners, exact, label_variance,
                              moments)
from cgmvae.model import GMVAE
from cgmvae.objectives import categorical_kl, given_y
from cgmvae.relaxation import concrete_log_ratio, concrete_sample

NETWORKS = {"decoder": ("decoder",), "q(z|x, y)": ("q_z_from_h", "q_z_from_y", "q_z_layers")}


def label_gradients(model: GMVAE, x: Tensor, experiments: dict[str, Experiment], noises: int, draws: int,
                    generator: Generator | None = None) -> pd.DataFrame:
    """Bias and standard deviation of the gradient for an image's logits: root mean squares over images.

    Args:
        experiments: by the name to show, of the estimators of `model`'s posterior.
        noises: of z, 2 at least. draws: of a relaxed label, for each of them.

    Returns:
        A row for each experiment: `passes`; `bias`, with its standard error `bias_error`; `sd` of one estimate, and
        `sd_label`, what is left of it with the noise of z given. In units of the exact gradient's root mean square.
    """
    e, *_ = experiments.values()
    noise = torch.randn(noises, len(x), model.z_dim, device=x.device, dtype=x.dtype, generator=generator)
    at = [corners(model, x, n, e) for n in noise]
    q, f = at[0].q, torch.stack([c.f for c in at])  # (B, K), (noises, B, K)
    truth, turned = exact(q, f), q.diag_embed() - q[..., None] * q[:, None]  # of the softmax: dq / d logits
    size, rows = truth.mean(0).norm(), []
    for e in experiments.values():
        found = [concrete_moments(model, x, n, e, draws, generator) if e.estimator == "concrete"
                 else moments(e.estimator, c, e.tau, generator) for n, c in zip(noise, at, strict=True)]
        mean, variance = (torch.stack([m[i] for m in found]) for i in (0, 1))
        off, by_z = mean - truth, mean.var(0).sum(-1)
        if e.estimator == "marginal":  # each label has its own noise of z, where the others share one
            by_z = (turned ** 2 * f.var(0)[:, None]).sum((-1, -2))
        rows.append({"passes": ESTIMATORS[e.estimator].passes(model.K), "bias": off.mean(0).norm(),
                     "bias_error": (off.var(0).sum() / noises).sqrt(),
                     "sd": (variance.mean(0) + by_z).sum().sqrt(),
                     "sd_label": variance.mean(0).sum().sqrt()})
    table = pd.DataFrame(rows, index=pd.Index(list(experiments), name="estimator")).astype(float)
    return table.assign(**{k: table[k] / size.item() for k in table if k != "passes"})


def network_gradients(model: GMVAE, x: Tensor, experiments: dict[str, Experiment], noises: int, draws: int,
                      generator: Generator | None = None) -> pd.DataFrame:
    """The same for the weights of the decoder and of q(z|x, y), of the mean over the images.

    By sums over labels, but for Concrete, of which `draws` are made for each noise. Rows are (estimator, network).
    """
    e, *_ = experiments.values()
    noise = torch.randn(noises, len(x), model.z_dim, device=x.device, dtype=x.dtype, generator=generator)
    with torch.no_grad():
        q = model.log_q_y(model.encode(x)).exp()
    rows = {}
    for network, parts in NETWORKS.items():
        weights = [p for n, p in model.named_parameters() if n.split(".")[0] in parts]
        mean, label, own = torch.zeros(()), dict.fromkeys(experiments, 0.0), 0.0
        for image, n, p in zip(x.split(1), noise.split(1, 1), q, strict=True):
            each = torch.stack([at_labels(model, image, one, e, weights) for one in n])  # (noises, K, P)
            products = each @ each.mT
            mean = mean + p @ each / len(x)
            own += (p ** 2 * _spread(each)).sum() / len(x) ** 2
            for shown, e in experiments.items():
                if e.estimator != "concrete":
                    label[shown] += label_variance(e.estimator, p, products).mean() / len(x) ** 2
        size = mean.mean(0).norm()
        for shown, e in experiments.items():
            off, shared = torch.zeros_like(mean), _spread(mean)
            if e.estimator == "concrete":
                drawn = torch.stack([torch.stack([concrete_weights(model, x, n, e, weights, generator)
                                                  for _ in range(draws)]) for n in noise])
                off, label[shown] = drawn.mean(1) - mean, _spread(drawn.transpose(0, 1)).mean()
                shared = _spread(drawn.mean(1)) - label[shown] / draws
            elif e.estimator == "marginal":  # each label has its own noise of z, where the others share one
                shared = own
            rows[shown, network] = {"passes": ESTIMATORS[e.estimator].passes(model.K),
                                    "bias": off.mean(0).norm() / size,
                                    "bias_error": (_spread(off) / noises).sqrt() / size,
                                    "sd": (label[shown] + shared).sqrt() / size}
    table = pd.DataFrame.from_dict(rows, orient="index").astype(float)
    return table.rename_axis(["estimator", "network"])


def _spread(each: Tensor) -> Tensor:
    """Variance over the first dimension, summed over the last: `var`, in a tenth of its time where that is long."""
    return (each - each.mean(0)).square().sum((0, -1)) / (len(each) - 1)


def relaxation_gap(model: GMVAE, x: Tensor, e: Experiment, temperatures: list[float], draws: int,
                   generator: Generator | None = None) -> pd.DataFrame:
    """By how much eq. 7 is above eq. 5 for the same weights and noise of z, in nats an image, by temperature.

    Returns:
        A row for each temperature: `closed`, with kl_y in closed form, and `literal`, with its relaxed form, each
        with a standard error over the draws.
    """
    rows = []
    with torch.no_grad():
        h = model.encode(x)
        logits, from_h = model.log_q_y(h), model.q_z_h(h)
    for tau in temperatures:
        found = []
        for _ in range(draws):
            noise = torch.randn(len(x), model.z_dim, device=x.device, dtype=x.dtype, generator=generator)
            at = corners(model, x, noise, e)
            with torch.no_grad():
                log_y = concrete_sample(logits, tau, generator)
                log_px, kl_z = given_y(model, x, from_h, log_y.exp(), noise, e.kl_z_form)
            closed = (log_px - e.beta * kl_z - (at.q * at.f).sum(-1)).mean()
            more = (concrete_log_ratio(log_y, logits, tau) - categorical_kl(logits, model.log_p_y())).mean()
            found.append(torch.stack([closed, closed - more]))
        each = torch.stack(found)
        (closed, literal), error = each.mean(0).tolist(), (each.std(0) / draws ** 0.5).tolist()
        rows.append({"tau": tau, "closed": closed, "closed_error": error[0], "literal": literal,
                     "literal_error": error[1]})
    return pd.DataFrame(rows).set_index("tau")
