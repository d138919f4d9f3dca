"""Estimators that draw y: the unbiased ones against sums over all that can be drawn, the others against formulas
of their own."""

import itertools
import math

import pytest
import torch
from helpers import Toy, small, toy_images
from torch.overrides import TorchFunctionMode

from cgmvae import discrete, relaxation
from cgmvae.estimators import ESTIMATORS
from cgmvae.model import GMVAE
from cgmvae.objectives import categorical_kl, elbo, given_y

UNBIASED = [name for name, e in ESTIMATORS.items() if e.unbiased and e.posterior == "joint"]
PARTS = {"the label's logits": ("q_y_x", "q_y_0"), "the decoder": ("x_z", "x_0"), "p(z|y)": ("p_mean", "p_scale"),
         "q(z|x, y)": ("q_mean_x", "q_mean_y", "q_scale_x", "q_scale_y")}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class NoiseOfZ(TorchFunctionMode):
    """torch.randn gives this noise (B, D), the same for every label."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.noise.expand(args) if function is torch.randn else function(*args, **kwargs or {})


def gradient(value, toy) -> dict:
    """By part of the model, each one vector."""
    names = [n for part in PARTS.values() for n in part]
    found = dict(zip(names, torch.autograd.grad(value, [getattr(toy, n) for n in names], allow_unused=True),
                     strict=True))
    return {part: torch.cat([torch.zeros_like(getattr(toy, n)).flatten() if found[n] is None else found[n].flatten()
                             for n in mine]) for part, mine in PARTS.items()}


def enumerated(toy, x, noise, beta: float = 1.0) -> dict:
    """The gradient of eq. 5 at this noise of z: all labels, one by one."""
    h = toy.encode(x)
    log_q_y = toy.log_q_y(h)
    each = [given_y(toy, x, h, torch.full((len(x),), k), noise) for k in range(3)]
    value = sum(log_q_y[:, k].exp() * (each[k][0] - beta * each[k][1]) for k in range(3))
    return gradient((value - categorical_kl(log_q_y, toy.log_p_y())).sum(), toy)


def expectation(monkeypatch, toy, x, noise, estimator, **choices) -> dict:
    """The mean of an estimator's gradient over every label that it could draw, weighted by its chance."""
    e, labels, log_q = small(K=3, **choices), None, torch.zeros(0, 3)

    def drawn(logits, generator=None):
        nonlocal log_q
        log_q = logits.log_softmax(-1)
        return torch.zeros(logits.shape[:-1], dtype=torch.int64) if labels is None else labels.view(logits.shape[:-1])

    monkeypatch.setattr(discrete, "gumbel_max", drawn)
    with NoiseOfZ(noise):
        estimator(toy, x, e, seeded())  # to see how many labels it draws
    mean, chances = dict.fromkeys(PARTS, 0), 0
    for one in itertools.product(range(3), repeat=math.prod(log_q.shape[:-1])):
        labels = torch.tensor(one, dtype=torch.int64)
        with NoiseOfZ(noise):
            found = gradient(elbo(estimator(toy, x, e, seeded()), 1.0, e.beta).sum(), toy)
        chance = log_q.view(-1, 3).gather(-1, labels[:, None]).sum().exp().item()
        chances += chance
        mean = {part: mean[part] + chance * found[part] for part in PARTS}
    assert chances == pytest.approx(1)
    return mean


def as_images(name: str) -> list:
    """Both at once, as a batch's baseline is of the others; one by one where that would be 3^8 draws."""
    x = toy_images(1)
    return [x[:1], x[1:]] if ESTIMATORS[name].noises > 2 else [x]


@pytest.mark.parametrize("beta", (1.0, 0.6))
@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_all_draws_is_the_gradient_of_the_sum(monkeypatch, name, beta):
    for seed, x in enumerate(as_images(name)):
        toy, noise = Toy(seed + 2), torch.randn(len(x), 1, generator=seeded(seed), dtype=torch.float64)
        exact = enumerated(toy, x, noise, beta)
        mean = expectation(monkeypatch, toy, x, noise, ESTIMATORS[name], beta=beta)
        for part in PARTS:
            assert torch.allclose(mean[part], exact[part], rtol=1e-9, atol=1e-10), part


@pytest.mark.parametrize("term, part", [
    ("log_px", "the decoder"), ("kl_z", "q(z|x, y)"), ("kl_z", "p(z|y)"), ("score", "the label's logits")])
@pytest.mark.parametrize("name", UNBIASED)
def test_a_bias_of_a_tenth_would_be_seen(monkeypatch, name, term, part):
    """The same with one term's gradient a tenth too small."""
    def biased(*args):
        terms = ESTIMATORS[name](*args)
        key = term if term in terms else "log_px"  # the sum has no score: its labels learn by log_px
        return terms | {key: 0.9 * terms[key] + 0.1 * terms[key].detach()}

    x = as_images(name)[0]
    toy, noise = Toy(), torch.randn(len(x), 1, generator=seeded(), dtype=torch.float64)
    exact = enumerated(toy, x, noise)[part]
    mean = expectation(monkeypatch, toy, x, noise, biased)[part]
    assert (mean - exact).norm() > 0.01 * exact.norm()


def test_a_baseline_that_sees_its_own_draw_is_biased(monkeypatch):
    def own(model, x, e, generator):
        terms, log_q_y, y = discrete.exact_sample(model, x, model.encode(x), e, generator)
        reward = terms["log_px"] - terms["kl_z"]
        return terms | {"score": discrete.score(reward - reward.mean(), log_q_y.gather(-1, y[:, None])[:, 0])}

    toy, x, noise = Toy(), toy_images(1), torch.randn(2, 1, generator=seeded(), dtype=torch.float64)
    exact = enumerated(toy, x, noise)["the label's logits"]
    mean = expectation(monkeypatch, toy, x, noise, own)["the label's logits"]
    assert (mean - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if e.posterior == "joint"])
@pytest.mark.parametrize("logits", ("sure", "even", "one"))
def test_gradients_are_finite_where_a_label_is_sure_and_where_there_is_one(name, logits):
    """In float32 the rest of a sure label has the chance 0, and K = 1 has no rest."""
    K = 1 if logits == "one" else 4
    e = small(estimator=name, K=K)
    model = GMVAE(e)
    with torch.no_grad():
        model.q_y_layers[-1].bias.copy_(torch.tensor([200.0, 0, -50, -200])[:K] if logits == "sure" else torch.zeros(K))
    x = (torch.rand(6, 1, 28, 28, generator=seeded()) > 0.7).float()
    value = elbo(ESTIMATORS[name](model, x, e, seeded())).sum()
    value.backward()
    assert value.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if e.posterior == "joint"])
def test_the_decoder_runs_as_often_as_is_counted(monkeypatch, name):
    e, decoded = small(estimator=name, K=5), []
    model = GMVAE(e)
    whole = GMVAE.log_p_x
    monkeypatch.setattr(GMVAE, "log_p_x", lambda self, x, z: decoded.append(z.numel() // e.z_dim) or whole(self, x, z))
    ESTIMATORS[name](model, torch.rand(6, 1, 28, 28).round(), e, seeded())
    assert sum(decoded) == 6 * ESTIMATORS[name].passes(5)


# What stands in for the derivative of a label

def logits_of(K: int, seed: int = 0):
    return torch.randn(K, generator=seeded(seed), dtype=torch.float64).log_softmax(-1).requires_grad_()


@pytest.mark.parametrize("K", (2, 3, 6))
def test_reinmax_is_exact_in_the_mean_for_a_quadratic_and_for_no_cubic(K):
    log_q = logits_of(K, K)
    a, b = torch.randn(K, K, generator=seeded(1)).double(), torch.randn(K, generator=seeded(2)).double()
    for f, exact in ((lambda y: (y @ a * y).sum() + y @ b, True), (lambda y: (y @ b) ** 3, False)):
        corners = torch.eye(K, dtype=torch.float64)
        sum_over = sum(log_q.softmax(-1)[k] * f(corners[k]) for k in range(K))
        wanted, = torch.autograd.grad(sum_over, log_q)
        mean = torch.zeros(K, dtype=torch.float64)
        for k in range(K):
            y = relaxation.reinmax(log_q, torch.tensor(k))
            assert torch.equal(y.detach(), corners[k])
            mean += log_q[k].exp().detach() * torch.autograd.grad(f(y), log_q)[0]
        assert torch.allclose(mean, wanted, atol=1e-12) is exact


@pytest.mark.parametrize("tau", (1.0, 1.7))
def test_reinmax_is_the_formula_of_its_paper(tau):
    """Algorithm 2 of Liu et al. (2023), written with softmaxes of shifted logits."""
    log_q, slope = logits_of(5), torch.randn(5, generator=seeded(3)).double()
    for k in range(5):
        ours, = torch.autograd.grad(relaxation.reinmax(log_q, torch.tensor(k), tau) @ slope, log_q)
        pi0, y = log_q.softmax(-1), torch.eye(5).double()[k]
        pi1 = (y + (log_q / tau).softmax(-1)) / 2
        pi1 = ((pi1.log() - log_q).detach() + log_q).softmax(-1)
        theirs, = torch.autograd.grad((2 * pi1 - pi0 / 2) @ slope, log_q)
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_noise_given_the_argmax_is_what_rejection_leaves():
    """The same distribution as Gumbel noise that happened to have its argmax there, entry by entry."""
    log_q = logits_of(4).detach()
    free = log_q + relaxation.gumbel(torch.empty(400_000, 4, dtype=torch.float64), seeded())
    for k in range(4):
        kept = free[free.argmax(-1) == k]
        given = relaxation.gumbel_given_argmax(log_q.expand(len(kept), 4), torch.full((len(kept),), k), seeded(1))
        assert (given.argmax(-1) == k).all()
        for power in (1, 2):
            error = (2 * (kept ** power).var(0) / len(kept)).sqrt()
            assert ((given ** power - kept ** power).mean(0).abs() < 4.5 * error).all()


def test_rao_blackwell_is_the_mean_of_straight_through_given_the_label():
    log_q, tau, slope = logits_of(4), 0.5, torch.randn(4, generator=seeded(3)).double()

    def gradients(y):
        return torch.autograd.grad(y.sum(0) @ slope, many)[0]

    many = log_q.detach().expand(300_000, 4).clone().requires_grad_()
    log_y = relaxation.concrete_sample(many, tau, seeded())
    straight, label = gradients(relaxation.straight_through(log_y)), log_y.argmax(-1)
    for k in range(4):
        theirs = straight[label == k]
        many = log_q.detach().expand(50_000, 4).clone().requires_grad_()
        given = torch.full((50_000,), k)
        y = relaxation.rao_blackwell(many, given, tau, 10, seeded(k))
        assert torch.equal(y.detach(), torch.eye(4, dtype=torch.float64)[k].expand(50_000, 4))
        ours = gradients(y)
        error = (theirs.var(0) / len(theirs) + ours.var(0) / len(ours)).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
        # Ten noises leave a tenth of the variance that is left once the label is known.
        assert torch.allclose(ours.var(0), theirs.var(0) / 10, rtol=0.15)


def jacobian(p):
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def test_reinmax_rao_has_the_mean_relaxed_jacobian_in_its_middle():
    """Against matrices, and noise that happened to have its argmax there."""
    log_q, tau, slope = logits_of(4), 0.7, torch.randn(4, generator=seeded(3)).double()
    q = log_q.detach().exp()
    for k in range(4):
        y = torch.eye(4, dtype=torch.float64)[k]
        free = ((q + y) / 2).log() + relaxation.gumbel(torch.empty(100_000, 4, dtype=torch.float64), seeded(k))
        kept = (free[free.argmax(-1) == k] / tau).softmax(-1)
        theirs = 2 * jacobian(kept) @ slope / tau - jacobian(q) @ slope / 2
        many = log_q.detach().expand(20_000, 4).clone().requires_grad_()
        drawn = relaxation.reinmax_rao(many, torch.full((20_000,), k), tau, 10, seeded(k + 10))
        assert torch.equal(drawn.detach(), y.expand(20_000, 4))
        ours, = torch.autograd.grad(drawn.sum(0) @ slope, many)
        error = (theirs.var(0) / len(theirs) + ours.var(0) / len(ours)).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
        assert torch.allclose(ours.var(0), theirs.var(0) / 10, rtol=0.15)


def test_networks_get_the_gradient_of_an_exact_sample():
    """The decoder and q(z|x, y) learn from a biased estimator what they learn from the score function."""
    toy, x = Toy(), toy_images(1)
    noise = torch.randn(2, 1, generator=seeded(), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discrete, "gumbel_max", lambda *_: torch.tensor([2, 0]))
        for name in ("rao_blackwell", "reinmax", "reinmax_rao"):
            with NoiseOfZ(noise):
                values = [elbo(ESTIMATORS[n](toy, x, small(estimator=n, K=3), seeded())).sum()
                          for n in (name, "score_function")]
            ours, theirs = (gradient(value, toy) for value in values)
            for part in ("the decoder", "p(z|y)", "q(z|x, y)"):
                assert torch.allclose(ours[part], theirs[part], rtol=1e-12), (name, part)
            assert not torch.allclose(ours["the label's logits"], theirs["the label's logits"])
