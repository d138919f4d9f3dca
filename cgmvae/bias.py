"""Bias and standard deviation of the estimators' gradients, for a given model and a few images. Chapter 11."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Generator, Tensor
from torch.nn.utils import parameters_to_vector

from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.gradients import concrete_moments, corners, exact, moments
from cgmvae.model import GMVAE
from cgmvae.objectives import categorical_kl, elbo, given_y
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
    truth = torch.stack([exact(c.q, c.f) for c in at])  # (noises, B, K)
    size, rows = truth.mean(0).norm(), []
    for e in experiments.values():
        found = [concrete_moments(model, x, n, e, draws, generator) if e.estimator == "concrete"
                 else moments(e.estimator, c, e.tau, generator) for n, c in zip(noise, at, strict=True)]
        mean, variance = (torch.stack([m[i] for m in found]) for i in (0, 1))
        off = mean - truth
        if e.estimator == "marginal":  # each label has its own noise of z, where the others share one
            f = torch.stack([torch.stack([at[(n + k) % noises].f[:, k] for k in range(model.K)], -1)
                             for n in range(noises)])
            mean = exact(at[0].q, f)
        rows.append({"passes": ESTIMATORS[e.estimator].passes(model.K), "bias": off.mean(0).norm(),
                     "bias_error": (off.var(0).sum() / noises).sqrt(),
                     "sd": (variance.mean(0) + mean.var(0).sum(-1)).sum().sqrt(),
                     "sd_label": variance.mean(0).sum().sqrt()})
    table = pd.DataFrame(rows, index=pd.Index(list(experiments), name="estimator")).astype(float)
    return table.assign(**{k: table[k] / size.item() for k in table if k != "passes"})


def network_gradients(model: GMVAE, x: Tensor, experiments: dict[str, Experiment], draws: int,
                      generator: Generator | None = None) -> pd.DataFrame:
    """The same for the decoder and for q(z|x, y), of the mean over the images, by sampling each estimator.

    The exact gradient is the mean of as many draws of the marginal, which any bias is measured against; the error of
    both is in `bias_error`. Rows are (estimator, network).
    """
    e, *_ = experiments.values()
    everything = {"": e.but(estimator="marginal")} | experiments
    drawn: dict[str, list[Tensor]] = {}
    for shown, e in everything.items():
        for _ in range(draws):
            model.zero_grad(set_to_none=True)
            elbo(ESTIMATORS[e.estimator](model, x, e, generator), 1.0, e.beta).mean().backward()
            for network, parts in NETWORKS.items():
                found = [p.grad for n, p in model.named_parameters() if n.split(".")[0] in parts]
                drawn.setdefault((shown, network), []).append(parameters_to_vector(found))
    model.zero_grad(set_to_none=True)
    stacks = {key: torch.stack(value) for key, value in drawn.items()}
    mean = {key: each.mean(0) for key, each in stacks.items()}
    variance = {key: each.var(0).sum().item() for key, each in stacks.items()}
    rows = {}
    for shown, network in stacks:
        if shown:
            size = mean["", network].norm().item()
            rows[shown, network] = {
                "passes": ESTIMATORS[experiments[shown].estimator].passes(model.K),
                "bias": (mean[shown, network] - mean["", network]).norm().item() / size,
                "bias_error": ((variance[shown, network] + variance["", network]) / draws) ** 0.5 / size,
                "sd": variance[shown, network] ** 0.5 / size}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["estimator", "network"])


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
