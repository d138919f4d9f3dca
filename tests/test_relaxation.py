"""Gumbel noise, Concrete samples and densities against torch.distributions and SciPy."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import RelaxedOneHotCategorical
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from cgmvae import relaxation
from cgmvae.relaxation import (
    concrete_log_density,
    concrete_log_ratio,
    concrete_sample,
    gumbel,
    gumbel_max,
    straight_through,
)

LOGITS = torch.tensor([1.0, -0.5, 0.3, -2.0, 0.0], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(labels: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The p-value of label counts against probabilities."""
    counts = torch.bincount(labels, minlength=len(probabilities)).double()
    return float(stats.chisquare(counts, probabilities * len(labels)).pvalue)


def test_gumbel_noise_has_the_gumbel_distribution():
    noise = gumbel(torch.empty(200_000, dtype=torch.float64), seeded())
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 0.01
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.012)  # 4 standard errors
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_gumbel_noise_is_finite_shaped_and_seeded():
    like = torch.empty(3, 4, 5)
    noise = gumbel(like, seeded())
    assert noise.shape == like.shape and noise.dtype == like.dtype
    assert torch.equal(noise, gumbel(like, seeded()))
    assert not torch.equal(noise, gumbel(like, seeded(1)))
    assert gumbel(torch.empty(2_000_000), seeded()).isfinite().all()


def test_gumbel_noise_is_finite_even_for_a_uniform_of_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.zeros(shape))
    assert gumbel(torch.empty(3)).isfinite().all()


def test_gumbel_noise_ends_where_float32_does(monkeypatch):
    below_one = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.full(shape, below_one))
    assert float(gumbel(torch.empty(()))) == pytest.approx(16.6, abs=0.05)


def test_gumbel_max_frequencies_are_softmax():
    labels = gumbel_max(LOGITS.expand(100_000, 5), seeded())
    assert labels.dtype == torch.int64 and labels.shape == (100_000,)
    assert chi_square(labels, LOGITS.softmax(-1)) > 0.01


@pytest.mark.parametrize("tau", (0.1, 0.3, 2.0))
def test_argmax_frequencies_of_concrete_samples_are_softmax(tau):
    log_y = concrete_sample(LOGITS.expand(100_000, 5), tau, seeded(2))
    assert chi_square(log_y.argmax(-1), LOGITS.softmax(-1)) > 0.01


@pytest.mark.parametrize("tau", (0.3, 1.0))
def test_concrete_samples_have_torchs_distribution(tau):
    ours = concrete_sample(LOGITS.expand(50_000, 5), tau, seeded(3))
    torch.manual_seed(4)
    theirs = ExpRelaxedCategorical(torch.tensor(tau, dtype=torch.float64), logits=LOGITS)
    theirs = theirs.sample((50_000,))
    for k in range(5):
        assert stats.ks_2samp(ours[:, k].numpy(), theirs[:, k].numpy()).pvalue > 0.01


def test_concrete_sample_from_given_noise():
    noise = gumbel(LOGITS, seeded(5))
    expected = torch.softmax((LOGITS + noise) / 0.7, -1)
    log_y = concrete_sample(LOGITS, 0.7, seeded(5))
    assert torch.allclose(log_y.exp(), expected, rtol=1e-12)
    assert float(log_y.logsumexp(-1)) == pytest.approx(0, abs=1e-12)


def test_concrete_sample_is_differentiable_in_the_logits():
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: concrete_sample(v, 0.7, seeded()), (logits,))


@pytest.mark.parametrize("K", (2, 5, 20))
@pytest.mark.parametrize("tau", (0.1, 0.3, 1.0, 3.0))
def test_density_of_log_y_is_torchs(K, tau):
    torch.manual_seed(K)
    logits = torch.randn(50, K, dtype=torch.float64) * 2
    theirs = ExpRelaxedCategorical(torch.tensor(tau, dtype=torch.float64), logits=logits)
    log_y = theirs.sample()
    assert torch.allclose(concrete_log_density(log_y, logits, tau), theirs.log_prob(log_y),
                          rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", (0.5, 1.0))
def test_density_of_y_follows_by_the_jacobian(tau):
    torch.manual_seed(6)
    logits = torch.randn(50, 4, dtype=torch.float64)
    theirs = RelaxedOneHotCategorical(torch.tensor(tau, dtype=torch.float64), logits=logits)
    y = theirs.sample()
    ours = concrete_log_density(y.log(), logits, tau) - y.log().sum(-1)
    assert torch.allclose(ours, theirs.log_prob(y), rtol=1e-8, atol=1e-8)


def test_density_does_not_depend_on_the_normalisation_of_the_logits():
    log_y = concrete_sample(LOGITS, 0.3, seeded())
    assert torch.allclose(concrete_log_density(log_y, LOGITS, 0.3),
                          concrete_log_density(log_y, LOGITS + 7, 0.3), rtol=1e-10)


@pytest.mark.parametrize("K", (2, 10, 1000))
@pytest.mark.parametrize("tau", (0.1, 0.3, 2.0))
def test_log_ratio_and_its_gradient_are_those_of_two_densities(K, tau):
    torch.manual_seed(K)
    logits = torch.randn(20, K, dtype=torch.float64)

    def value_and_gradient(ratio):
        point = logits.clone().requires_grad_()
        value = ratio(concrete_sample(point, tau, seeded()), point)
        return value, torch.autograd.grad(value.sum(), point)[0]

    ours = value_and_gradient(lambda log_y, point: concrete_log_ratio(log_y, point, tau))
    theirs = value_and_gradient(lambda log_y, point: concrete_log_density(log_y, point, tau)
                                - concrete_log_density(log_y, torch.zeros_like(point), tau))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-8, atol=1e-8)


def test_density_stays_finite_where_y_underflows():
    """At tau 0.3 and below most float32 samples have a y of exactly 0 somewhere."""
    logits = torch.tensor([0.0, -8.0, 3.0]).expand(10_000, 3).clone().requires_grad_()
    log_y = concrete_sample(logits, 0.05, seeded())
    assert (log_y.exp() == 0).any()
    density = concrete_log_density(log_y, logits, 0.05)
    density.sum().backward()
    assert density.isfinite().all() and logits.grad.isfinite().all()


def test_straight_through_is_exactly_one_hot_forwards():
    log_y = concrete_sample(torch.randn(1000, 7, generator=seeded()), 0.3, seeded())
    y = straight_through(log_y)
    assert ((y == 0) | (y == 1)).all()
    assert torch.equal(y.argmax(-1), log_y.argmax(-1)) and (y.sum(-1) == 1).all()


def test_straight_through_has_the_gradient_of_the_sample():
    weights = torch.randn(4, 7, dtype=torch.float64, generator=seeded(1))
    grads = []
    for function in (straight_through, torch.exp):
        log_y = concrete_sample(torch.zeros(4, 7).double(), 0.8, seeded()).requires_grad_()
        (function(log_y) * weights).sum().backward()
        grads.append(log_y.grad)
    assert torch.allclose(*grads) and grads[0].abs().max() > 0


def test_low_temperature_gives_the_one_hot_gumbel_max_and_high_the_uniform():
    logits = LOGITS.expand(1000, 5)
    labels = gumbel_max(logits, seeded(8))
    cold = relaxation.concrete_sample(logits, 1e-4, seeded(8)).exp()
    assert torch.equal(cold.argmax(-1), labels)
    assert (cold.max(-1).values > 0.999).double().mean() > 0.99
    hot = relaxation.concrete_sample(logits, 1e5, seeded(8)).exp()
    assert torch.allclose(hot, torch.full_like(hot, 0.2), atol=1e-3)
