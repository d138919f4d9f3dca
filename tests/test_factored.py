"""A posterior whose z does not depend on y: one pass, against the sum that it replaces and against its optimum."""

import math

import pytest
import torch
from helpers import small, trainer
from torch.distributions import Normal, kl_divergence

from cgmvae import checkpoints, costs, evaluation, objectives
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment, ExperimentError, preset
from cgmvae.model import GMVAE
from cgmvae.objectives import elbo
from cgmvae.run import fit

BOTH = ("factored", "collapsed")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(estimator: str, K: int = 4, D: int = 3, seed: int = 0):
    """A model in float64 with p(z|y) that differ much, its experiment, and six images."""
    e = small(estimator=estimator, K=K, z_dim=D)
    torch.manual_seed(seed)
    model = GMVAE(e).double()
    with torch.no_grad():
        model.p_z_layer.weight.normal_(0, 0.7, generator=seeded(1))
    return model, e, (torch.rand(6, 1, 28, 28, generator=seeded(2)) > 0.5).double()


@pytest.mark.parametrize("estimator", BOTH)
def test_its_value_and_gradient_are_the_marginals_over_the_same_posterior(estimator):
    """Eq. 6, with all K labels decoded and the KL of z integrated, says the same: z is the same for every label."""
    model, e, x = model_of(estimator)
    noise = torch.randn(6, 3, generator=seeded())
    h = model.encode(x)
    log_px, kl_z = objectives.all_labels(model, x, model.q_z_h(h), noise.expand(4, 6, 3), "closed")
    log_q_y = model.log_q_y(h)
    q_y = log_q_y.exp().T
    expected = (q_y * (log_px - kl_z)).sum(0) - objectives.categorical_kl(log_q_y, -math.log(4))
    value = elbo(ESTIMATORS["factored"](model, x, e, seeded()))
    assert value.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-12)
    ours = torch.autograd.grad(value.sum(), list(model.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(expected.sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(ours, theirs, strict=True))


def test_the_kl_to_every_component_is_that_of_two_gaussians():
    model, _, x = model_of("factored")
    q_z = model.q_z_of_x(model.q_z_h(model.encode(x)))
    each = model.kl_z_each(q_z)
    for k in range(4):
        one_hot = torch.nn.functional.one_hot(torch.tensor([k]), 4).double()
        mean, log_variance = model.p_z_layer(one_hot).chunk(2, -1)
        p_z = Normal(mean, (log_variance / 2).exp())
        assert torch.allclose(each[:, k], kl_divergence(q_z, p_z).sum(-1), rtol=1e-10)


def gaussians(dtype: torch.dtype, means: float, apart: float, scales: float, K: int = 7, D: int = 64):
    """A model whose p(z|y) have means about `means`, `apart` from each other, and 20 q(z|x) among them."""
    model, _, _ = model_of("factored", K, D)
    with torch.no_grad():
        model.p_z_layer.weight[:D].normal_(means, apart, generator=seeded(3))
        model.p_z_layer.weight[D:].normal_(2 * math.log(scales), 0.5, generator=seeded(4))
        model.p_z_layer.bias.zero_()
    of_x = [means + apart * torch.randn(20, D, generator=seeded(5), dtype=torch.float64),
            scales * (0.5 * torch.randn(20, D, generator=seeded(6), dtype=torch.float64)).exp()]
    return model.to(dtype), [t.to(dtype).requires_grad_() for t in of_x]


def one_by_one(model: GMVAE, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What `kl_z_each` should be by torch's own formula, in float64 from the same numbers: (B, K)."""
    means, log_variances = model.p_z_layer.weight.T.double().chunk(2, -1)
    p_z = Normal(means, (log_variances / 2).exp())
    return kl_divergence(Normal(loc[:, None].double(), scale[:, None].double()), p_z).sum(-1)


PLACES = [(0.0, 1.0, 1.0), (0.0, 3.0, 0.3), (100.0, 0.1, 0.1)]
"""Means about, apart, scales: as at the start, wider than a trained model's, and far from zero for their width."""


@pytest.mark.parametrize("place", PLACES)
def test_two_products_give_torchs_divergence_and_its_gradient(place):
    model, of_x = gaussians(torch.float64, *place)
    values = model.kl_z_each(Normal(*of_x)), one_by_one(model, *of_x)
    assert torch.allclose(*values, rtol=1e-12, atol=1e-12)
    weights = torch.rand(20, 7, generator=seeded(7), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((weights * v).sum(), [*of_x, model.p_z_layer.weight]) for v in values)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item())


@pytest.mark.parametrize("autocast", (False, True))
@pytest.mark.parametrize("place", PLACES)
def test_no_precision_of_products_moves_the_divergence(place, autocast):
    """Squares that are not centred would be wrong by whole nats at the last place, those in bfloat16 at each."""
    model, of_x = gaussians(torch.float32, *place)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = model.kl_z_each(Normal(*of_x))
    exact = one_by_one(model, *of_x)
    assert value.dtype == torch.float32
    assert torch.allclose(value.double(), exact, rtol=5e-7, atol=1e-5)


def test_the_collapsed_label_is_the_best_there_is():
    """No q(y|x) gives a higher ELBO for the same q(z|x), and its value is the closed form of chapter 10."""
    model, e, x = model_of("collapsed")
    h = model.encode(x)
    q_z = model.q_z_of_x(model.q_z_h(h))
    kl = model.kl_z_each(q_z)
    terms = ESTIMATORS["factored"](model, x, e, seeded())
    best = (elbo(terms) - terms["log_px"]).detach()
    expected_log_p = q_z.entropy().sum(-1, keepdim=True) * -1 - kl  # E_q[ln p(z|y)], (B, K)
    closed = q_z.entropy().sum(-1) + torch.logsumexp(expected_log_p - math.log(4), 1)
    assert best.numpy() == pytest.approx(closed.detach().numpy(), rel=1e-10)
    for seed in range(50):
        other = (model.log_q_y(h) + torch.randn(6, 4, generator=seeded(seed)) * 0.3 ** (seed % 5)).log_softmax(1)
        value = -(other.exp() * kl).sum(1) - objectives.categorical_kl(other, -math.log(4))
        assert (value < best).all()


def test_its_closed_form_is_the_mean_over_z():
    """E_q(z|x)[ln p(z|y)] by many draws of z."""
    model, _, x = model_of("collapsed")
    q_z = model.q_z_of_x(model.q_z_h(model.encode(x)))
    p_z = model.p_z(torch.arange(4))
    z = q_z.loc + q_z.scale * torch.randn(100_000, 6, 3, generator=seeded())
    drawn = torch.stack([Normal(p_z.loc[k], p_z.scale[k]).log_prob(z).sum(-1).mean(0) for k in range(4)], 1)
    closed = -model.kl_z_each(q_z) - q_z.entropy().sum(-1, keepdim=True)
    assert drawn.detach().numpy() == pytest.approx(closed.detach().numpy(), abs=0.05)


@pytest.mark.parametrize("estimator", BOTH)
def test_the_bound_from_its_samples_and_its_elbo_agree_with_the_terms(estimator):
    model, e, x = model_of(estimator)
    many = x[:2].repeat(50, 1, 1, 1)
    with torch.no_grad():
        h = model.encode(many)
        draws = torch.cat([evaluation.importance_weight(model, many, model.q_z_h(h), model.log_q_y(h), seeded(s))
                           .view(50, 2) for s in range(80)])
        exact = torch.cat([elbo(ESTIMATORS["factored"](model, many, e, seeded(s))).view(50, 2) for s in range(80, 88)])
    error = (draws.var(0) / 4000 + exact.var(0) / 400).sqrt()
    assert ((draws.mean(0) - exact.mean(0)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("estimator", BOTH)
def test_the_loss_has_the_models_own_label(estimator):
    model, e, x = model_of(estimator)
    h = model.encode(x)
    log_q_y, kl = model.log_q_y(h), model.kl_z_each(model.q_z_of_x(model.q_z_h(h)))
    terms = ESTIMATORS["factored"](model, x, e, seeded())
    assert torch.allclose(terms["kl_z"], (log_q_y.exp() * kl).sum(-1), rtol=1e-12)
    assert torch.allclose(terms["kl_y"], objectives.categorical_kl(log_q_y, -math.log(4)), rtol=1e-12)


@pytest.mark.parametrize("estimator", BOTH)
def test_a_run_learns_and_its_weights_are_read_back(estimator, tmp_path):
    e = preset("quick", estimator=estimator, epochs=2, iw_samples=2, z_dim=10, train_limit=1500)
    t = trainer(e)
    fit(t, False)
    losses = [row["validation_loss"] for row in t.progress["curves"]]
    assert losses[1] < losses[0] - 10
    checkpoints.save_weights(t.model, e, tmp_path / "w.safetensors")
    again, there = checkpoints.load_weights(tmp_path / "w.safetensors")
    assert there == e and again.posterior == estimator
    x = t.splits.test.batch(slice(0, 20))
    assert torch.equal(again.log_q_y(again.encode(x)), t.model.log_q_y(t.model.encode(x)))
    names = {name.split(".")[0] for name in again.state_dict()}
    assert "q_z_from_y" not in names and ("q_y_layers" in names) is (estimator == "factored")


def test_one_pass_whatever_K():
    for estimator in BOTH:
        assert ESTIMATORS[estimator].passes(1000) == 1
        few, many = (costs.count(Experiment(estimator=estimator, K=K)).step for K in (10, 1000))
        assert many < 1.1 * few


@pytest.mark.parametrize(("field", "value", "allowed"), [
    ("spread_logits", True, "false"), ("annealing", "ramp", "'none'"), ("beta", 0.5, "1.0")])
def test_what_the_best_label_is_not_the_best_for(field, value, allowed):
    """eq-collapsed is the best q(y|x) for the plain ELBO: with other weights another would be."""
    assert getattr(Experiment(estimator="factored", **{field: value}), field) == value
    with pytest.raises(ExperimentError) as error:
        Experiment(estimator="collapsed", **{field: value})
    message = str(error.value)
    assert message.startswith(f"{field} must be {allowed} with 'collapsed', ")
    assert message.endswith(f"; it is {value!r}.") and "\n" not in message


@pytest.mark.parametrize("estimator", BOTH)
def test_the_form_of_the_kl_of_z_is_not_read_in_training(estimator):
    model, e, x = model_of(estimator)
    both = [ESTIMATORS["factored"](model, x, e.but(kl_z_form=form), seeded()) for form in objectives.KL_Z_FORMS]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


@pytest.mark.parametrize("estimator", BOTH)
def test_labels_in_either_form_give_the_same_z(estimator):
    model, _, x = model_of(estimator)
    from_h = model.q_z_h(model.encode(x))
    q_z = model.q_z_of_x(from_h)
    for y, shape in ((torch.arange(4)[:, None], (4, 6, 3)), (torch.zeros(6, dtype=torch.int64), (6, 3)),
                     (torch.rand(6, 4).double(), (6, 3)), (torch.rand(5, 1, 4).double(), (5, 6, 3))):
        given = model.q_z_given(from_h, y)
        assert given.loc.shape == shape and torch.equal(given.loc, q_z.loc.expand(shape))
