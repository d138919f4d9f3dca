"""A sum over few labels: sparsemax against other ways to the same point, and the sum against that over all K."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import CPU, assert_says, small, trainer
from scipy.optimize import minimize
from test_discrete import seeded

from cgmvae import check, checkpoints, costs, evaluation, gradients, records
from cgmvae.agreement import spread_logits
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment, ExperimentError
from cgmvae.model import SUPPORT, GMVAE
from cgmvae.objectives import all_labels, categorical_kl, elbo, sparse_marginal
from cgmvae.relaxation import log_sparsemax
from cgmvae.run import run

LEAST = torch.finfo(torch.float64).min


def logits_of(K: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return torch.randn(K, generator=seeded(seed), dtype=torch.float64) * size


def by_bisection(logits: torch.Tensor) -> torch.Tensor:
    """theta by halving, without any order of the logits."""
    low, high = logits.min() - 1, logits.max()
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if (logits - theta).clamp(min=0).sum() > 1 else (low, theta)
    return (logits - theta).clamp(min=0)


@pytest.mark.parametrize("size", (0.1, 1.0, 30.0))
@pytest.mark.parametrize("K", (1, 2, 3, 7, 12))
def test_it_is_the_nearest_point_of_the_simplex(K, size):
    """By a general optimiser, and by halving for theta to more digits."""
    for seed in range(5):
        logits = logits_of(K, seed, size)
        q = log_sparsemax(logits, K).exp()
        nearest = minimize(lambda p, l=logits.numpy(): ((p - l) ** 2).sum(), np.full(K, 1 / K), method="SLSQP",
                           jac=lambda p, l=logits.numpy(): 2 * (p - l), bounds=[(0, 1)] * K, tol=1e-14,
                           constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like})
        assert q.numpy() == pytest.approx(nearest.x, abs=1e-5)
        assert torch.allclose(q, by_bisection(logits), atol=1e-12) and q.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("K", (3, 6))
def test_cut_off_it_is_the_nearest_of_all_that_have_so_few_labels(K):
    """Every set of labels, with its own sparsemax, one after another."""
    for most, seed in itertools.product(range(1, K + 1), range(5)):
        logits = logits_of(K, seed, 0.3)
        candidates = []
        for few in itertools.combinations(range(K), most):
            p = torch.zeros(K, dtype=torch.float64)
            p[list(few)] = by_bisection(logits[list(few)])
            candidates.append(p)
        nearest = min(candidates, key=lambda p: ((p - logits) ** 2).sum())
        assert torch.allclose(log_sparsemax(logits, most).exp(), nearest, atol=1e-12)


def test_it_is_whole_as_soon_as_its_labels_fit_and_cut_before():
    for seed in range(20):
        logits = logits_of(9, seed, 0.5)
        whole = log_sparsemax(logits, 9)
        support = int((whole.exp() > 0).sum())
        for most in range(1, 10):
            same = torch.allclose(log_sparsemax(logits, most).exp(), whole.exp(), atol=1e-12)
            assert same is (most >= support), (seed, most, support)
    assert {int((log_sparsemax(logits_of(9, s, 0.5), 9).exp() > 0).sum()) for s in range(20)} > {3, 5}


@pytest.mark.parametrize("most", (2, 4, 12))
def test_its_jacobian_is_the_numerical_one(most):
    for K, seed in itertools.product((3, 5, 12), range(3)):
        logits = logits_of(K, seed, 0.4).requires_grad_()
        assert torch.autograd.gradcheck(lambda l: log_sparsemax(l, most).exp(), logits)
        jacobian = torch.autograd.functional.jacobian(lambda l: log_sparsemax(l, most).exp(), logits)
        inside = (log_sparsemax(logits, most).exp() > 0).double().detach()
        assert torch.allclose(jacobian, torch.diag(inside) - inside[:, None] * inside / inside.sum(), atol=1e-12)


def test_at_the_edge_of_the_support_the_kl_of_the_label_pushes_inwards():
    """Its derivative for a logit inside is ln q_k less the plain mean of these; outside it is zero."""
    for gap in (1e-2, 1e-6):
        logits = torch.tensor([0.5, 0.5, gap, -0.1], dtype=torch.float64, requires_grad=True)  # q_3 = 2/3 gap
        log_q = log_sparsemax(logits, 4)
        ours, = torch.autograd.grad(categorical_kl(log_q, -math.log(4)), logits)
        edge = math.log(2 / 3 * gap)
        assert log_q.exp()[2].item() == pytest.approx(2 / 3 * gap, rel=1e-6) and ours[3] == 0
        rest = math.log(0.5 - gap / 3)
        assert ours[2].item() == pytest.approx(2 / 3 * (edge - rest), rel=1e-6) and ours[2] < 0 < ours[0]


def test_a_constant_changes_nothing_a_factor_does_and_no_label_is_lost_to_rounding():
    logits = logits_of(6, 1)
    assert torch.allclose(log_sparsemax(logits + 1000, 4), log_sparsemax(logits, 4), atol=1e-10)
    assert (log_sparsemax(200 * logits, 4).exp() > 0).sum() == 1 < (log_sparsemax(logits / 20, 4).exp() > 0).sum()
    far = log_sparsemax(torch.tensor([1e30, 0.0, -1e30]), 2)
    assert far.tolist() == [0.0, torch.finfo(torch.float32).min, torch.finfo(torch.float32).min]
    assert log_sparsemax(torch.tensor([math.nan, 0.0, 0.0]), 2).isnan().any(), "it must not pass for a label"


def test_equal_logits_are_uniform_over_as_many_as_fit():
    for most in (1, 4, 10, 20):
        logits = torch.zeros(3, 10, requires_grad=True)
        log_q = log_sparsemax(logits, most)
        few = min(most, 10)
        assert sorted(log_q.exp()[0].tolist()) == pytest.approx([0.0] * (10 - few) + [1 / few] * few)
        assert torch.equal(log_q, log_q[:1].expand(3, 10)), "the same labels for every image"
        kl_y = categorical_kl(log_q, -math.log(10))
        assert kl_y.tolist() == pytest.approx([math.log(10 / few)] * 3, abs=1e-6)
        kl_y.sum().backward()
        assert logits.grad.abs().max() < 1e-6


# The sum

def model_of(K: int, size: float, seed: int = 0, **choices):
    """A model in float64 whose logits have mean 0 and deviation `size` over eight images, its experiment, and these."""
    e = small(estimator="sparse_marginal", K=K, z_dim=3, **choices)
    torch.manual_seed(seed)
    model = GMVAE(e).double()
    with torch.no_grad():
        model.p_z_layer.weight.normal_(0, 0.7, generator=seeded(1))
        x = (torch.rand(8, 1, 28, 28, generator=seeded(2)) > 0.5).double()
        spread_logits(model, x)
        for parameter in model.q_y_layers[-1].parameters():
            parameter.mul_(size)
    return model, e, x


def over_all_labels(model, x, e):
    """Eq. 6 with all K labels decoded, at one noise of z."""
    h = model.encode(x)
    noise = torch.randn(len(x), 3, generator=seeded())
    log_px, kl_z = all_labels(model, x, model.q_z_h(h), noise.expand(model.K, len(x), 3), e.kl_z_form)
    q = model.log_q_y(h).exp().T
    entropy = -torch.special.entr(q).sum(0)
    return (q * (log_px - e.beta * kl_z)).sum(0) - entropy - math.log(model.K)


@pytest.mark.parametrize("kl_z_form, beta", [("sampled", 1.0), ("closed", 0.6)])
@pytest.mark.parametrize("size", (0.0, 0.05, 0.5))
@pytest.mark.parametrize("K", range(3, 13, 3))
def test_its_value_and_gradient_are_those_of_the_sum_over_all_labels(K, size, kl_z_form, beta):
    model, e, x = model_of(K, size, kl_z_form=kl_z_form, beta=beta)
    expected = over_all_labels(model, x, e)
    value = elbo(ESTIMATORS["sparse_marginal"](model, x, e, seeded()), 1.0, beta)
    assert value.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-9)
    ours = torch.autograd.grad(value.sum(), list(model.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(expected.sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(ours, theirs, strict=True))


def test_the_test_above_sees_supports_of_many_sizes():
    sizes = [(model.log_q_y(model.encode(x)).exp() > 0).sum(1)
             for model, _, x in (model_of(K, size) for K in (3, 12) for size in (0.05, 0.5))]
    assert set(torch.cat(sizes).tolist()) >= {1, 2, 3, 4}


def test_a_sum_over_one_label_less_would_be_seen(monkeypatch):
    model, e, x = model_of(6, 0.05)
    expected = over_all_labels(model, x, e)
    monkeypatch.setattr("cgmvae.objectives.SUPPORT", SUPPORT - 1)
    value = elbo(ESTIMATORS["sparse_marginal"](model, x, e, seeded()))
    assert (value - expected).abs().max() > 1


def test_a_label_outside_the_support_gets_no_gradient_of_its_own():
    """Its row of the last layer of q(y|x) stands still; the layers under it move. Two images leave some of 9 out."""
    model, e, x = model_of(9, 0.5)
    x = x[:2]
    elbo(ESTIMATORS["sparse_marginal"](model, x, e, seeded())).sum().backward()
    inside = (model.log_q_y(model.encode(x)).exp() > 0).any(0)
    rows = model.q_y_layers[-1].weight.grad.abs().sum(1)
    assert 0 < inside.sum() < 9 and (rows[~inside] == 0).all() and (rows[inside] > 0).any()
    assert model.q_y_layers[0].weight.grad.abs().sum() > 0
    by_label = model.q_z_from_y.weight.grad.abs().sum(0)
    assert (by_label[~inside] == 0).all() and (by_label[inside] > 0).all()


@pytest.mark.parametrize("logits", ("sure", "even", "one", "few"))
def test_gradients_are_finite(logits):
    K = {"one": 1, "few": 3}.get(logits, 9)
    e = small(estimator="sparse_marginal", K=K)
    model = GMVAE(e)
    with torch.no_grad():
        model.q_y_layers[-1].weight.zero_()
        model.q_y_layers[-1].bias.copy_(torch.linspace(200, -200, K) if logits == "sure" else torch.zeros(K))
    value = elbo(ESTIMATORS["sparse_marginal"](model, torch.rand(6, 1, 28, 28, generator=seeded()).round(), e, seeded())).sum()
    value.backward()
    assert value.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_the_decoder_runs_as_often_as_is_counted(monkeypatch):
    decoded, whole = [], GMVAE.log_p_x
    monkeypatch.setattr(GMVAE, "log_p_x", lambda self, x, z: decoded.append(z.numel() // 8) or whole(self, x, z))
    for K in (1, 3, 4, 9):
        e, before = small(estimator="sparse_marginal", K=K), sum(decoded)
        ESTIMATORS["sparse_marginal"](GMVAE(e), torch.rand(6, 1, 28, 28).round(), e, seeded())
        assert sum(decoded) - before == 6 * ESTIMATORS["sparse_marginal"].passes(K) == 6 * min(K, 4)
    few, many = (costs.count(Experiment(estimator="sparse_marginal", K=K)).step for K in (10, 1000))
    assert many < 1.1 * few


# What reads q(y|x)

def test_the_bound_from_its_samples_is_that_of_the_sum():
    """Draws of y and z from a q(y|x) with zeros, against the sum over its labels; and the KL by hand."""
    model, e, x = model_of(6, 0.1)
    many = x[:2].repeat(50, 1, 1, 1)
    with torch.no_grad():
        log_q, h = model.log_q_y(model.encode(x)), model.encode(many)
        draws = torch.cat([evaluation.importance_weight(model, many, model.q_z_h(h), model.log_q_y(h), seeded(s))
                           .view(50, 2) for s in range(40)])
        sums = torch.cat([elbo(ESTIMATORS["sparse_marginal"](model, many, e, seeded(s))).view(50, 2) for s in range(40, 48)])
    error = (draws.var(0) / 2000 + sums.var(0) / 400).sqrt()
    assert ((draws.mean(0) - sums.mean(0)).abs() < 4.5 * error).all()
    assert log_q.isfinite().all() and (log_q[:2] == LEAST).any(1).all()
    assert (log_q.exp().sum(1) - 1).abs().max() < 1e-12
    q = log_q.exp().numpy()
    by_hand = [sum(p * math.log(p * 6) for p in row if p) for row in q]
    assert categorical_kl(log_q, model.log_p_y()).numpy() == pytest.approx(by_hand, abs=1e-12)


def test_a_run_is_trained_measured_recorded_and_read_back(tmp_path):
    e = small(estimator="sparse_marginal")
    record = run(e, results=tmp_path, device="cpu")
    assert records.read_all(tmp_path) == [record]
    numbers = [v for name, v in record["metrics"].items() if v is not None]
    assert numbers and all(math.isfinite(v) for v in numbers)
    assert 0 <= record["metrics"]["test_information"] <= math.log(10)
    again = trainer(e)
    for _ in again.run():
        pass
    checkpoints.save_weights(again.model, e, tmp_path / "w.safetensors")
    model, there = checkpoints.load_weights(tmp_path / "w.safetensors")
    assert there == e and model.posterior == "sparse"
    q = evaluation.assign(model, again.splits.test)
    assert torch.equal(q, evaluation.assign(again.model, again.splits.test))
    assert 1 <= (q > 0).sum(1).min() and (q > 0).sum(1).max() <= SUPPORT and (q.sum(1) - 1).abs().max() < 1e-5


def test_the_machines_own_check_takes_it():
    line = check._against_float64("sparse_marginal", CPU, "float32", 5)
    assert line.ok, line


@pytest.mark.parametrize("choice, allowed", [({"views": "digits"}, "'none'"), ({"labelled": 20}, "0")])
def test_what_takes_the_logarithm_of_any_label_is_refused(choice, allowed):
    with pytest.raises(ExperimentError) as error:
        small(estimator="sparse_marginal", **choice)
    assert_says(str(error.value), choice, next(iter(choice)), allowed)
    small(estimator="marginal", **choice)


def test_it_is_not_among_those_whose_gradient_is_that_of_a_softmax():
    with pytest.raises(ExperimentError, match="estimator must be"):
        gradients.moments("sparse_marginal", None)
