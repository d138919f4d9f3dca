"""Every estimator against enumeration and quadrature on a toy, against finite differences, and
against the plain implementation in benchmarks/plain.py."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from helpers import CPU, Toy, by_image, exact_elbo, exact_terms, hermite, small, toy_images, within
from torch.distributions import Categorical, kl_divergence
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.func import functional_call

from cgmvae import data, evaluation, memory, objectives
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.model import GMVAE
from cgmvae.objectives import categorical_kl, elbo, given_y

COPIES = 150_000
TERMS = ("log_px", "kl_z", "kl_y")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimate(name: str, x: torch.Tensor, toy: Toy | None = None, **choices) -> dict:
    """One estimator's terms on the toy, each (copies, 2): a column an image."""
    experiment = small(estimator=name, **choices)
    with torch.no_grad():
        terms = ESTIMATORS[name](toy or Toy(), x, experiment, seeded())
        return {k: by_image(v) for k, v in (terms | {"elbo": elbo(terms)}).items()}


DISCRETE = [n for n, e in ESTIMATORS.items() if e.posterior == "joint" and n != "concrete"]


@pytest.mark.parametrize("name", DISCRETE)
def test_elbo_by_enumeration(name):
    terms = estimate(name, toy_images(COPIES))
    exact = exact_terms(Toy(), toy_images(1))
    for term in TERMS:
        assert within(terms[term], exact[term]), term
    assert within(terms["elbo"], exact_elbo(Toy(), toy_images(1)))
    # The check has teeth: it tells a twentieth of a nat.
    assert not within(terms["elbo"], exact_elbo(Toy(), toy_images(1)) + 0.05)


def test_concrete_becomes_the_marginal_as_tau_goes_to_zero():
    exact = exact_elbo(Toy(), toy_images(1))
    biases = []
    for tau in (3.0, 1.0, 0.3, 0.1, 0.001):
        values = estimate("concrete", toy_images(COPIES), tau=tau, kl_y_form="categorical")["elbo"]
        biases.append((values.mean(0) - exact).abs().max())
    assert within(values, exact)
    assert biases[0] > biases[1] > biases[2] > biases[3] > 0.5 * biases[4]
    assert biases[1] > 0.05  # at higher temperatures it is another number


@pytest.mark.parametrize("kl_y_form", ("relaxed", "categorical"))
def test_concrete_at_the_papers_temperature_against_torch_distributions(kl_y_form):
    toy, x, tau = Toy(), toy_images(1), torch.tensor(0.3, dtype=torch.float64)
    ours = estimate("concrete", toy_images(COPIES), tau=0.3, kl_y_form=kl_y_form)
    torch.manual_seed(1)
    log_q_y = toy.log_q_y(toy.encode(x)).detach()
    q_y = ExpRelaxedCategorical(tau, logits=log_q_y)
    p_y = ExpRelaxedCategorical(tau, probs=torch.full((2, 3), 1 / 3, dtype=torch.float64))
    log_y = q_y.sample((COPIES // 5,))
    with torch.no_grad():
        q_z, p_z = toy.q_z_given(toy.encode(x), log_y.exp()), toy.p_z(log_y.exp())
        z, weights = hermite(q_z, 30)
        theirs = {"log_px": (weights[:, None, None] * toy.log_p_x(x, z)).sum(0),
                  "kl_z": kl_divergence(q_z, p_z).sum(-1)}
    if kl_y_form == "relaxed":
        theirs["kl_y"] = q_y.log_prob(log_y) - p_y.log_prob(log_y)
    else:
        uniform = Categorical(torch.ones(2, 3, dtype=torch.float64))
        kl_y = kl_divergence(Categorical(logits=log_q_y), uniform)
        theirs["kl_y"] = kl_y.expand_as(log_y[..., 0])
    for term in TERMS:
        error = sum((v.var(0) / len(v) for v in (ours[term], theirs[term]))).sqrt()
        assert ((ours[term].mean(0) - theirs[term].mean(0)).abs() < 4 * error + 1e-9).all(), term


def test_relaxed_kl_at_a_given_sample():
    """Term by term at the very sample that the estimator drew."""
    toy, x, tau = Toy(), toy_images(5), torch.tensor(0.3, dtype=torch.float64)
    terms = ESTIMATORS["concrete"](toy, x, small(kl_y_form="relaxed", tau=0.3), seeded())
    log_q_y = toy.log_q_y(toy.encode(x))
    log_y = objectives.concrete_sample(log_q_y, 0.3, seeded())
    expected = (ExpRelaxedCategorical(tau, logits=log_q_y).log_prob(log_y)
                - ExpRelaxedCategorical(tau, logits=torch.zeros(10, 3).double()).log_prob(log_y))
    assert torch.allclose(terms["kl_y"], expected, rtol=1e-8, atol=1e-10)


def test_relaxed_kl_is_above_the_categorical_one_at_every_temperature():
    """The two readings of eq. 7 are different numbers, however cold: argmax loses information."""
    categorical = exact_terms(Toy(), toy_images(1))["kl_y"]
    relaxed = [estimate("concrete", toy_images(COPIES), tau=tau, kl_y_form="relaxed")["kl_y"]
               for tau in (1.0, 0.3, 0.01)]
    for values in relaxed:
        assert torch.allclose(values, relaxed[0], atol=1e-6)  # it does not depend on tau
        assert (values.mean(0) > categorical + 5 * values.std(0) / math.sqrt(COPIES)).all()


@pytest.mark.parametrize("K", (2, 3, 10))
def test_categorical_kl_is_torchs(K):
    torch.manual_seed(K)
    log_q_y = torch.log_softmax(3 * torch.randn(6, K, dtype=torch.float64), -1)
    expected = kl_divergence(Categorical(logits=log_q_y), Categorical(torch.ones(K).double()))
    assert torch.allclose(categorical_kl(log_q_y, -math.log(K)), expected, rtol=1e-9)


@pytest.mark.parametrize("weights", (False, True))
def test_kl_z_is_torchs_in_the_mean(weights):
    toy, x = Toy(), toy_images(COPIES)
    y = torch.tensor([1, 2]).repeat_interleave(COPIES)
    if weights:
        y = torch.softmax(torch.randn(2, 3, dtype=torch.float64, generator=seeded(3)), -1)
        y = y.repeat_interleave(COPIES, 0)
    with torch.no_grad():
        noise = torch.randn(2 * COPIES, 1, generator=seeded(), dtype=torch.float64)
        _, kl_z = given_y(toy, x, toy.encode(x), y, noise)
        exact = kl_divergence(toy.q_z_given(toy.encode(x), y), toy.p_z(y)).sum(-1)
    assert within(by_image(kl_z), by_image(exact)[0])


def test_given_y_at_a_given_sample():
    toy, x = Toy(), toy_images(2)
    y, noise = torch.tensor([0, 1, 2, 0]), torch.randn(4, 1, generator=seeded())
    log_px, kl_z = given_y(toy, x, toy.encode(x), y, noise)
    q_z, p_z = toy.q_z_given(toy.encode(x), y), toy.p_z(y)
    z = q_z.mean + q_z.stddev * noise
    assert torch.allclose(log_px, toy.log_p_x(x, z))
    assert torch.allclose(kl_z, (q_z.log_prob(z) - p_z.log_prob(z))[:, 0])


def test_elbo_weighs_only_the_kl_of_y():
    terms = {name: torch.tensor([value]) for name, value in zip(TERMS, (-3.0, 0.5, 2.0))}
    assert elbo(terms, 0.25).item() == -3 - 0.5 - 0.25 * 2
    assert elbo(terms).item() == -5.5
    assert elbo(terms | {"score": torch.tensor([0.125])}).item() == -5.375


def test_score_is_zero_in_value():
    scored = [terms for name in DISCRETE if "score" in (terms := estimate(name, toy_images(10)))]
    assert len(scored) == 4 and all((terms["score"] == 0).all() for terms in scored)


# Gradients

def toy_gradient(value: torch.Tensor, toy: Toy) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(toy.parameters()))])


def gradients(name: str, toy: Toy, number: int) -> torch.Tensor:
    """Estimates of the gradient of the sum of both images' ELBOs, (number, parameters)."""
    found = []
    for noise in map(seeded, range(number)):
        terms = ESTIMATORS[name](toy, toy_images(200), small(), noise)
        found.append(toy_gradient(2 * elbo(terms).mean(), toy))
    return torch.stack(found)


@pytest.mark.parametrize("name", [n for n in DISCRETE if ESTIMATORS[n].unbiased])
def test_gradient_by_sampling_is_that_of_the_exact_elbo(name):
    """With the labels and z really drawn; test_discrete.py has the sums over labels."""
    toy = Toy()
    exact = toy_gradient(exact_elbo(toy, toy_images(1)).sum(), toy)
    assert within(gradients(name, toy, 200), exact, 4.5)


@pytest.mark.parametrize("name", ("marginal", "concrete"))
def test_toy_gradients_are_finite_differences(name):
    class Total(Toy):
        def forward(self) -> torch.Tensor:
            terms = ESTIMATORS[name](self, toy_images(2), small(tau=0.3), seeded())
            return elbo(terms, 0.7).sum()

    names, parameters = zip(*Total().named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda *values: functional_call(Total(), dict(zip(names, values, strict=True)), ()),
        parameters)


@pytest.mark.parametrize("K", (3, 12))
def test_model_gradients_are_finite_differences(K):
    """Of the whole network in float64, along a random direction in each of its parameters."""
    torch.manual_seed(K)
    # With biases of zero a blank patch sits on the kink of ReLU, where no difference is a gradient.
    experiment = small(estimator="marginal", K=K, z_dim=4, initialisation="torch")
    model = GMVAE(experiment).double()
    x = (torch.rand(2, 1, 28, 28, dtype=torch.float64) > 0.7).double()

    def loss() -> torch.Tensor:
        return -elbo(ESTIMATORS["marginal"](model, x, experiment, seeded()), 0.5).mean()

    loss().backward()
    for name, p in model.named_parameters():
        direction = torch.randn_like(p)
        direction /= direction.norm()
        step = 1e-6
        with torch.no_grad():
            p += step * direction
            above = loss()
            p -= 2 * step * direction
            below = loss()
            p += step * direction
        by_hand = float((above - below) / (2 * step))
        assert float((p.grad * direction).sum()) == pytest.approx(by_hand, rel=1e-4, abs=1e-6), name


# The plain implementation

path = Path(__file__).resolve().parents[1] / "benchmarks" / "plain.py"
spec = importlib.util.spec_from_file_location("plain", path)
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)

SAME = {"encoder.conv1": "encoder.0", "encoder.conv2": "encoder.3", "q_y_layers.0": "q_y.0",
        "q_y_layers.2": "q_y.2", "q_y_layers.4": "q_y.4", "q_z_layers.1": "q_z.2",
        "q_z_layers.3": "q_z.4", "p_z_layer": "p_z",
        "decoder.conv1": "p_x.3", "decoder.conv2": "p_x.5"}


def as_plain(ours: dict, map_shape: tuple[int, int, int]) -> dict:
    """Our weights, or gradients, under the plain model's names: it flattens feature maps channels
    first, the package rows first; and it has one matrix for [h, y]."""
    channels, height, width = map_shape
    rows_first = (height, width, channels)
    theirs = {f"{name}.{part}": ours[f"{mine}.{part}"]
              for mine, name in SAME.items() for part in ("weight", "bias")}
    theirs["encoder.7.weight"] = (ours["encoder.full.weight"].reshape(-1, *rows_first)
                                  .permute(0, 3, 1, 2).flatten(1))
    theirs["encoder.7.bias"] = ours["encoder.full.bias"]
    theirs["p_x.0.weight"] = (ours["decoder.full2.weight"].reshape(*rows_first, -1)
                              .permute(2, 0, 1, 3).flatten(0, 2))
    theirs["p_x.0.bias"] = ours["decoder.full2.bias"].reshape(rows_first).permute(2, 0, 1).flatten()
    theirs["q_z.0.weight"] = torch.cat([ours["q_z_from_h.weight"], ours["q_z_from_y.weight"]], 1)
    theirs["q_z.0.bias"] = ours["q_z_from_h.bias"]
    return theirs


def both_models(dataset: str, estimator: str, K: int, D: int = 16):
    torch.manual_seed(K)
    experiment = small(dataset=dataset, estimator=estimator, K=K, z_dim=D, kl_y_form="categorical")
    model = GMVAE(experiment)
    other = plain.PlainGMVAE(experiment.image_shape, K, D)
    other.load_state_dict(as_plain(model.state_dict(), model.decoder.map_shape))
    x = torch.rand(4, *experiment.image_shape)
    return experiment, model, other, (x > 0.5).float() if dataset == "mnist-sample" else x


@pytest.mark.parametrize("estimator", ("marginal", "concrete"))
@pytest.mark.parametrize("K", (3, 10, 20))
@pytest.mark.parametrize("dataset", ("mnist-sample", "cifar100-sample"))
def test_losses_and_gradients_are_the_plain_implementations(dataset, K, estimator):
    """The loss in float32, as it is trained. Gradients in float64: that of q(y|x) is a small difference
    of labels that cost hundreds of nats each, and float32 leaves it three digits, on some processors fewer."""
    experiment, model, other, x = both_models(dataset, estimator, K)

    def losses(dtype: torch.dtype):
        noise, images = seeded(), x.to(dtype)
        for part in (model, other):
            part.to(dtype)
        if estimator == "marginal":
            expected = plain.plain_marginal(other, images, torch.randn(K, 4, 16, generator=noise))
        else:
            uniform = torch.rand(4, K, generator=noise, dtype=dtype)
            expected = plain.plain_concrete(other, images, torch.randn(4, 16, generator=noise), uniform)
        terms = ESTIMATORS[estimator](model, images, experiment, seeded())
        return -elbo(terms).mean(), expected

    loss, expected = losses(torch.float32)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss, expected = losses(torch.float64)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    ours = as_plain({n: p.grad for n, p in model.named_parameters()}, model.decoder.map_shape)
    for name, p in other.named_parameters():
        difference = (ours[name] - p.grad).norm() / p.grad.norm()
        assert difference < 1e-9, f"{name}: {difference}"


# Pyro's estimators, which the benchmark times

@pytest.mark.parametrize("estimator", ("marginal", "concrete"))
@pytest.mark.parametrize("dataset", ("mnist-sample", "cifar100-sample"))
def test_losses_are_pyros(dataset, estimator, monkeypatch):
    """The same weights and the same noise: Pyro enumerates y, or has both q and p relaxed."""
    pytest.importorskip("pyro")
    monkeypatch.syspath_prepend(str(path.parent))
    import pyro
    from pyro_peer import PyroGMVAE, svi

    experiment, model, other, x = both_models(dataset, estimator, K=5)
    if estimator == "concrete":
        experiment = experiment.but(kl_y_form="relaxed")
    peer = PyroGMVAE(experiment.image_shape, 5, 16)
    peer.load_state_dict(other.state_dict())
    pyro.clear_param_store()
    torch.manual_seed(0)  # pyro draws from torch's own generator, in the same order as we do
    theirs = svi(peer, estimator).evaluate_loss((x > 0.5).float()) / len(x)
    ours = ESTIMATORS[estimator](model, (x > 0.5).float(), experiment, seeded())
    assert -elbo(ours).mean().item() == pytest.approx(theirs, rel=1e-5)


def test_a_peers_validation_loss_is_measured_as_ours(monkeypatch):
    """The same weights have the same loss, up to the draws of y and z, where the label has something to say."""
    monkeypatch.syspath_prepend(str(path.parent))
    from quality import validation_loss

    experiment, model, _, _ = both_models("mnist-sample", "marginal", K=5)
    with torch.no_grad():
        model.q_y_layers[-1].weight *= 30
        model.q_z_from_y.weight *= 10
    other = plain.PlainGMVAE(experiment.image_shape, 5, 16)
    other.load_state_dict(as_plain(model.state_dict(), model.decoder.map_shape))
    pixels = data.split(experiment.but(train_limit=None), data.load("mnist-sample"), CPU).validation
    ours = evaluation.validate(model, pixels, experiment)
    assert ours["validation_kl_y"] > 0.2 and ours["validation_kl_z"] > 1
    theirs = validation_loss(other, pixels.batch(slice(0, len(pixels))))
    assert theirs == pytest.approx(ours["validation_loss"], abs=0.4)


# The marginal's ways to save time and memory

def marginal_loss_and_gradient(experiment: Experiment) -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    model = GMVAE(experiment)
    x = (torch.rand(4, *experiment.image_shape) > 0.7).float()
    loss = -elbo(ESTIMATORS["marginal"](model, x, experiment, seeded())).mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("at_once", (1, 3, 7))
@pytest.mark.parametrize("recompute", (False, True))
def test_labels_a_few_at_a_time_and_recomputed(monkeypatch, at_once, recompute):
    experiment = small(estimator="marginal", K=7)
    monkeypatch.setattr(objectives, "labels_at_once", lambda *_: 7)
    loss, gradient = marginal_loss_and_gradient(experiment)
    calls = []

    def counted(model, x, from_h, y, *rest):
        calls.append(len(y))
        return given_y(model, x, from_h, y, *rest)

    monkeypatch.setattr(objectives, "labels_at_once", lambda *_: at_once)
    monkeypatch.setattr(objectives, "given_y", counted)
    if recompute:
        monkeypatch.setitem(objectives.KEEP_BYTES, "cpu", 0)
    other_loss, other_gradient = marginal_loss_and_gradient(experiment)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert (other_gradient - gradient).norm() < 1e-4 * gradient.norm()
    assert max(calls) == at_once
    assert sum(calls) == (14 if recompute else 7)  # forwards, and again in the backward pass


def test_labels_at_once_fills_the_budget_and_no_more():
    experiment = small(estimator="marginal", K=1000)
    model = GMVAE(experiment)
    one, hundred, many = (objectives.labels_at_once(model, torch.zeros(images, 1, 28, 28))
                          for images in (1, 100, 5000))
    assert 1000 >= one > hundred >= many == 1
    of_one = memory.activation_bytes(model, torch.zeros(100, 1, 28, 28))
    assert hundred * of_one <= 2**29 < (hundred + 1) * of_one


def test_the_sum_has_the_kl_of_z_that_is_chosen():
    x = toy_images(1)
    terms = ESTIMATORS["marginal"](Toy(), x, small(estimator="marginal", kl_z_form="closed"), seeded())
    assert torch.allclose(terms["kl_z"], exact_terms(Toy(), x)["kl_z"], atol=1e-9)


def test_the_relaxed_kl_has_the_steps_temperature():
    x, tau = toy_images(5), torch.tensor(1.0, dtype=torch.float64)
    falling = ESTIMATORS["concrete"](Toy(), x, small(tau=0.1, kl_y_form="relaxed"), seeded(), tau=tau)
    level = ESTIMATORS["concrete"](Toy(), x, small(tau=1.0, kl_y_form="relaxed"), seeded())
    assert all(torch.allclose(falling[name], level[name]) for name in level)


@pytest.mark.parametrize("estimator", ("marginal", "concrete"))
def test_bfloat16_is_close_to_float32(estimator):
    experiment = small(estimator=estimator)
    x = (torch.rand(8, 1, 28, 28, generator=seeded()) > 0.7).float()
    losses, gradients = [], []
    for bf16 in (False, True):
        torch.manual_seed(0)
        model = GMVAE(experiment, bf16=bf16)
        terms = ESTIMATORS[estimator](model, x, experiment, seeded())
        assert all(v.dtype == torch.float32 for v in terms.values())
        loss = -elbo(terms).mean()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # half a nat of 540
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("name", ESTIMATORS)
def test_terms_are_per_image_and_seeded(name):
    experiment = small(estimator=name, K=4)
    torch.manual_seed(0)
    model = GMVAE(experiment)
    x = (torch.rand(5, 1, 28, 28) > 0.7).float()
    first, again, other = (ESTIMATORS[name](model, x, experiment, seeded(s))
                           for s in (0, 0, 1))
    assert set(first) - {"score"} == set(TERMS)
    for term, value in first.items():
        assert value.shape == (5,) and value.requires_grad
        assert torch.equal(value, again[term])
    assert not torch.equal(first["log_px"], other["log_px"])
