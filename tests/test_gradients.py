"""Bias and variance by sums over labels, held against the estimators themselves, drawn many times."""

import contextlib
import functools
import math

import pytest
import torch
from helpers import Toy, small, toy_images
from test_discrete import PARTS, NoiseOfZ, seeded
from torch.nn.utils import parameters_to_vector

from cgmvae import ExperimentError, bias, gradients
from cgmvae.estimators import ESTIMATORS
from cgmvae.model import GMVAE
from cgmvae.objectives import elbo, given_y

COPIES = 30_000
JOINT = [name for name, e in ESTIMATORS.items() if e.posterior == "joint"]


class Logits(Toy):
    """The toy, with logits that are a leaf of their own for each image of a batch."""

    def logits_y(self, h):
        if not hasattr(self, "leaf"):
            self.leaf = super().logits_y(h).detach().requires_grad_()
        return self.leaf


def experiment(name: str, **choices):
    return small(estimator=name, K=3, annealing="none", **choices)


def sampled(name: str, noise, **choices):
    """The estimator's gradient for the logits of both images, (COPIES, 2, 3), without that of kl_y."""
    toy = Logits()
    with NoiseOfZ(noise.repeat_interleave(COPIES, 0)):
        terms = ESTIMATORS[name](toy, toy_images(COPIES), experiment(name, **choices), seeded())
    found, = torch.autograd.grad(elbo(terms | {"kl_y": 0 * terms["kl_y"]}).sum(), toy.leaf)
    return found.view(2, COPIES, 3).transpose(0, 1)


def at_corners(noise, toy=None):
    return gradients.corners(toy or Toy(), toy_images(1), noise, experiment("marginal"))


NOISE = torch.randn(2, 1, generator=seeded(5), dtype=torch.float64)


@pytest.mark.parametrize("name, tau", [
    *((n, ESTIMATORS[n].tau) for n in JOINT if n not in ("concrete", "score_function")),
    ("reinmax", 1.4), ("reinmax_rao", 0.6)])
def test_mean_and_variance_are_those_of_the_estimator(name, tau):
    found = gradients.moments(name, at_corners(NOISE), tau, seeded(1))
    drawn = sampled(name, NOISE, tau=tau)
    error = (drawn.var(0) / COPIES + torch.as_tensor(found.error)[..., None] ** 2).sqrt()
    assert ((drawn.mean(0) - found.mean).abs() <= 4.5 * error + 1e-12).all()
    assert torch.allclose(drawn.var(0).sum(-1), found.variance, rtol=0.05, atol=1e-12)
    assert (found.variance > 1e-4).all() or name == "marginal"


def test_mean_and_variance_of_the_score_function_with_its_baseline():
    """In batches of the two images, one after the other, as the baseline is the other image's f."""
    drawn = []
    for seed in range(1500):
        toy = Logits()
        with NoiseOfZ(NOISE):
            terms = ESTIMATORS["score_function"](toy, toy_images(1), experiment("score_function"), seeded(seed))
        drawn.append(torch.autograd.grad(elbo(terms | {"kl_y": 0 * terms["kl_y"]}).sum(), toy.leaf)[0])
    drawn = torch.stack(drawn)
    found = gradients.moments("score_function", at_corners(NOISE))
    assert ((drawn.mean(0) - found.mean).abs() < 4.5 * (drawn.var(0) / 1500).sqrt()).all()
    assert torch.allclose(drawn.var(0).sum(-1), found.variance, rtol=0.2)


def test_every_estimator_of_exact_labels_has_its_moments():
    assert set(gradients.MOMENTS) == set(JOINT) - {"concrete"}
    with pytest.raises(ExperimentError, match="estimator must be one of 'marginal'.*it is 'concrete'"):
        gradients.moments("concrete", at_corners(NOISE))


@pytest.mark.parametrize("name", [n for n in JOINT if ESTIMATORS[n].unbiased])
def test_the_unbiased_have_the_exact_mean_and_a_tenth_would_be_seen(name):
    at = at_corners(NOISE)
    truth = gradients.exact(at.q, at.f)
    mean = gradients.moments(name, at).mean
    assert torch.allclose(mean, truth, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(1.1 * mean, truth, rtol=1e-2)


def test_the_exact_gradient_is_that_of_the_sum():
    at = at_corners(NOISE)
    logits = at.q.log().requires_grad_()
    wanted, = torch.autograd.grad((logits.softmax(-1) * at.f).sum(), logits)
    assert torch.allclose(gradients.exact(at.q, at.f), wanted, atol=1e-12)


@pytest.mark.parametrize("form", ("categorical", "relaxed"))
def test_concrete_by_sampling(form):
    e = experiment("concrete", kl_y_form=form)
    found = gradients.concrete_moments(Toy(), toy_images(1), NOISE, e, COPIES, seeded(1))
    drawn = sampled("concrete", NOISE, kl_y_form=form) if form == "categorical" else None
    if drawn is not None:
        assert ((drawn.mean(0) - found.mean).abs() < 4.5 * (2 * drawn.var(0) / COPIES).sqrt()).all()
        assert torch.allclose(drawn.var(0).sum(-1), found.variance, rtol=0.1)
    else:  # the same mean of kl_y's two forms but for a constant would need the same gradient: it is another
        closed = gradients.concrete_moments(Toy(), toy_images(1), NOISE, e.but(kl_y_form="categorical"), COPIES, seeded(1))
        assert ((found.mean - closed.mean).norm(dim=-1) > 5 * (found.error + closed.error)).all()


def test_a_table_of_labels_gradients():
    names = {n: experiment(n) for n in JOINT}
    table = bias.label_gradients(Toy(), toy_images(1), names, 40, 50, seeded())
    assert list(table.index) == JOINT
    for name, row in table.iterrows():
        if ESTIMATORS[name].unbiased:
            assert row["bias"] < 1e-9
        assert row["sd"] >= row["sd_label"] and row["passes"] == ESTIMATORS[name].passes(3)
    assert table.loc["marginal", "sd_label"] == 0 < table.loc["marginal", "sd"]
    assert table.loc["rao_blackwell", "sd"] < table.loc["straight_through", "sd"]
    blackwell, straight = (table.loc[name] for name in ("rao_blackwell", "straight_through"))
    assert abs(blackwell["bias"] - straight["bias"]) < 4 * (blackwell["bias_error"] + straight["bias_error"])
    assert table.loc["leave_one_out_4", "sd_label"] < table.loc["leave_one_out_2", "sd_label"]


def test_the_errors_that_are_told_are_of_means():
    """Four times the draws halve each: of a logit's bias, of a weight's, and of the relaxation's gap."""
    e, x = {"concrete": experiment("concrete")}, toy_images(1)

    def errors(n):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bias, "NETWORKS", {"decoder": NETWORKS["decoder"]})
            of_weights = bias.network_gradients(Toy(), x, e, n, 2, seeded())["bias_error"].iloc[0]
        gap = bias.relaxation_gap(Toy(), x, e["concrete"], [0.5], 4 * n, seeded()).iloc[0]
        of_logits = bias.label_gradients(Toy(), x, e, 4 * n, 5, seeded())["bias_error"].iloc[0]
        return torch.tensor([of_logits, of_weights, gap["closed_error"], gap["literal_error"]])
    ratio = errors(15) / errors(60)
    assert ratio.tolist() == pytest.approx([2.0] * 4, rel=0.3), ratio


NETWORKS = {"decoder": PARTS["the decoder"], "q(z|x, y)": PARTS["q(z|x, y)"]}  # the toy's


@functools.cache
def weights_drawn(name: str, one_noise: bool, times: int = 1200):
    """The estimator's gradient for each network's weights, of the mean over both images: (times, P)."""
    toy, generator = Toy(), seeded(7)
    weights = [getattr(toy, n) for parts in NETWORKS.values() for n in parts]
    drawn = []
    for _ in range(times):
        with NoiseOfZ(NOISE) if one_noise else contextlib.nullcontext():
            terms = ESTIMATORS[name](toy, toy_images(1), experiment(name), generator)
        drawn.append(parameters_to_vector(torch.autograd.grad(elbo(terms).mean(), weights)))
    sizes = [sum(getattr(toy, n).numel() for n in parts) for parts in NETWORKS.values()]
    return dict(zip(NETWORKS, torch.stack(drawn).split(sizes, 1), strict=True))


@pytest.mark.parametrize("name", [n for n in JOINT if n not in ("concrete", "marginal")])
def test_mean_and_variance_of_the_weights_gradient_are_those_of_the_estimator(name):
    toy = Toy()
    q = toy.log_q_y(toy.encode(toy_images(1))).exp().detach()
    for network, parts in NETWORKS.items():
        weights, drawn = [getattr(toy, n) for n in parts], weights_drawn(name, True)[network]
        mean = variance = 0
        for b, x in enumerate(toy_images(1)):
            each = gradients.at_labels(toy, x[None], NOISE[b:b + 1], experiment(name), weights)
            mean = mean + q[b] @ each / 2
            variance = variance + gradients.label_variance(name, q[b], each @ each.T) / 4
        error = (drawn.var(0) / len(drawn)).sqrt()
        assert ((drawn.mean(0) - mean).abs() < 4.5 * error + 1e-12).all()
        assert drawn.var(0).sum().item() == pytest.approx(variance.item(), rel=0.15)


def test_the_weights_gradient_of_the_sum_draws_no_label():
    toy, x = Toy(), toy_images(1)[:1]
    weights = [getattr(toy, n) for parts in NETWORKS.values() for n in parts]
    h, y = toy.encode(x), torch.eye(3).double()[:, None]
    q = toy.log_q_y(h).exp().detach()[0]
    log_px, kl_z = given_y(toy, x, h, y, NOISE[:1], "sampled")
    wanted = parameters_to_vector(torch.autograd.grad((q * (log_px - kl_z)[:, 0]).sum(), weights))
    each = gradients.at_labels(toy, x, NOISE[:1], experiment("marginal"), weights)
    assert torch.allclose(q @ each, wanted, atol=1e-12)
    drawn = [gradients.label_variance(name, q, each @ each.T) for name in ("marginal", "reinmax")]
    assert drawn[0] == 0 < drawn[1]


def test_a_table_of_the_networks_gradients(monkeypatch):
    """Against draws of the estimators as they train, each with its own noise of z; no bias of an exact label."""
    monkeypatch.setattr(bias, "NETWORKS", NETWORKS)
    names = {n: experiment(n) for n in ("marginal", "concrete", "sum_and_sample")}
    table = bias.network_gradients(Toy(), toy_images(1), names, 150, 3, seeded())
    assert list(table.index.unique(1)) == list(NETWORKS)
    for (name, network), row in table.iterrows():
        drawn, truth = weights_drawn(name, False)[network], weights_drawn("marginal", False)[network].mean(0)
        assert row["sd"] == pytest.approx((drawn.var(0).sum().sqrt() / truth.norm()).item(), rel=0.15)
        assert row["passes"] == ESTIMATORS[name].passes(3)
        off = ((drawn.mean(0) - truth).norm() / truth.norm()).item()
        assert row["bias"] == (pytest.approx(off, abs=4 * row["bias_error"]) if name == "concrete" else 0)
    assert (table.xs("concrete")["bias"] > 0).all()


@pytest.mark.parametrize("name", ("marginal", "sum_and_sample"))
def test_the_noises_are_counted(name):
    """The spread of the gradient for the logits against draws; the marginal's noise of z is each label's own."""
    toy = Logits()
    terms = ESTIMATORS[name](toy, toy_images(COPIES), experiment(name), seeded(3))
    found, = torch.autograd.grad(elbo(terms | {"kl_y": 0 * terms["kl_y"]}).sum(), toy.leaf)
    drawn = found.view(2, COPIES, 3)
    table = bias.label_gradients(Toy(), toy_images(1), {name: experiment(name)}, 4000, 2, seeded())
    wanted = drawn.var(1).sum().sqrt() / drawn.mean(1).norm()
    assert table.loc[name, "sd"] == pytest.approx(float(wanted), rel=0.06)


def test_no_gradient_is_left_with_the_model():
    model = GMVAE(small(estimator="marginal", K=4))
    x = (torch.rand(2, 1, 28, 28, generator=seeded()) > 0.7).float()
    table = bias.network_gradients(model, x, {n: small(estimator=n, K=4) for n in ("marginal", "concrete")}, 2, 2)
    assert list(table.index.unique(1)) == list(bias.NETWORKS) and (table["sd"] > 0).all()
    assert all(p.grad is None for p in model.parameters())


def test_the_gap_of_the_relaxation_closes_with_the_temperature():
    gap = bias.relaxation_gap(Toy(), toy_images(2000), experiment("concrete"), [1.0, 0.3, 0.01], 30, seeded())
    closed = gap["closed"].abs()
    assert closed[1.0] > closed[0.01] and closed[0.01] < 4 * gap["closed_error"][0.01] + 1e-3
    # The relaxed kl_y is above the closed form at every temperature, by the same on average.
    less = gap["closed"] - gap["literal"]
    assert (less > 0).all() and less.max() - less.min() < 6 * gap["literal_error"].max()
    assert math.isfinite(gap.to_numpy().sum())
