"""The factors of the model against torch.distributions, on images that were never put apart."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import small
from torch.distributions import Bernoulli, Normal

from cgmvae.model import GMVAE
from cgmvae.networks import interleave

DATASETS = ("mnist-sample", "cifar100-sample")


def double_model(**changes) -> GMVAE:
    torch.manual_seed(0)
    return GMVAE(small(K=5, z_dim=6, **changes)).double()


def some(model: GMVAE, dataset: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (4, C, H, W) in [0, 1] and z (4, D), float64."""
    torch.manual_seed(1)
    shape = (1, 28, 28) if dataset == "mnist-sample" else (3, 32, 32)
    return torch.rand(4, *shape).double(), 3 * torch.randn(4, 6).double()


@pytest.mark.parametrize("dataset", DATASETS)
def test_bernoulli_log_p_x(dataset):
    model = double_model(dataset=dataset, likelihood="bernoulli")
    x, z = some(model, dataset)
    x = (x > 0.5).double()
    expected = Bernoulli(probs=model.x_mean(z)).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(model.log_p_x(x, z), expected, rtol=1e-9)


@pytest.mark.parametrize("dataset", DATASETS)
def test_cross_entropy_log_p_x(dataset):
    model = double_model(dataset=dataset, likelihood="cross_entropy")
    x, z = some(model, dataset)
    expected = -F.binary_cross_entropy(model.x_mean(z), x, reduction="none").sum((1, 2, 3))
    assert torch.allclose(model.log_p_x(x, z), expected, rtol=1e-9)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("padding", ("same", "valid"))
def test_gaussian_log_p_x_has_a_learned_scale(dataset, padding):
    model = double_model(dataset=dataset, likelihood="gaussian", padding=padding)
    x, z = some(model, dataset)
    with torch.no_grad():
        model.log_scale.fill_(-1.3)
    expected = Normal(interleave(model.decoder(z)), math.exp(-1.3)).log_prob(x).sum((1, 2, 3))
    log_p_x = model.log_p_x(x, z)
    assert torch.allclose(log_p_x, expected, rtol=1e-9)
    log_p_x.sum().backward()
    assert model.log_scale.grad.abs() > 0 and "log_scale" in dict(model.named_parameters())


def test_only_the_gaussian_has_a_scale():
    assert double_model().log_scale is None


@pytest.mark.parametrize("likelihood", ("bernoulli", "gaussian"))
def test_x_mean_is_a_picture(likelihood):
    model = double_model(dataset="cifar100-sample", likelihood=likelihood)
    _, z = some(model, "cifar100-sample")
    mean = model.x_mean(100 * z)
    assert mean.shape == (4, 3, 32, 32)
    assert mean.min() >= 0 and mean.max() <= 1


def test_of_two_images_the_mean_is_the_likelier():
    """x_mean and log_p_x agree on which pixel is where: turning one image round costs nats."""
    model = double_model(dataset="cifar100-sample", likelihood="cross_entropy")
    _, z = some(model, "cifar100-sample")
    mean = model.x_mean(z)
    best = model.log_p_x(mean, z)
    for other in (mean.flip(1), mean.flip(2), mean.flip(3), mean.transpose(2, 3)):
        assert (best > model.log_p_x(other, z)).all()


def test_log_p_x_of_many_z_at_once():
    model = double_model()
    x, _ = some(model, "mnist-sample")
    z = torch.randn(3, 4, 6).double()
    together = model.log_p_x(x, z)
    assert together.shape == (3, 4)
    for k in range(3):
        assert torch.allclose(together[k], model.log_p_x(x, z[k]), rtol=1e-10)


def test_a_label_is_looked_up_as_its_one_hot_would_be_multiplied():
    model = double_model()
    x, _ = some(model, "mnist-sample")
    h = model.encode(x)
    labels = torch.tensor([4, 0, 2, 2])
    one_hot = F.one_hot(labels, 5).double()
    for by_label, by_product in ((model.q_z(h, labels), model.q_z(h, one_hot)),
                                 (model.p_z(labels), model.p_z(one_hot))):
        assert by_label.loc.shape == (4, 6)
        assert torch.allclose(by_label.loc, by_product.loc, rtol=1e-10, atol=1e-12)
        assert torch.allclose(by_label.scale, by_product.scale, rtol=1e-10)


def test_all_labels_at_once_are_each_label_in_turn():
    model = double_model()
    x, _ = some(model, "mnist-sample")
    h = model.encode(x)
    all_at_once = model.q_z_given(model.q_z_h(h), torch.arange(5)[:, None])
    assert all_at_once.loc.shape == (5, 4, 6)
    assert model.p_z(torch.arange(5)[:, None]).loc.shape == (5, 1, 6)
    for k in range(5):
        q_z = model.q_z(h, F.one_hot(torch.full((4,), k), 5).double())
        assert torch.allclose(all_at_once.loc[k], q_z.loc, rtol=1e-10, atol=1e-12)
        assert torch.allclose(all_at_once.scale[k], q_z.scale, rtol=1e-10)


def test_scales_are_from_log_variances():
    model = double_model()
    with torch.no_grad():
        model.p_z_layer.weight.zero_()
        model.p_z_layer.bias.copy_(torch.arange(12.0))
    p_z = model.p_z(torch.tensor([0]))
    assert p_z.loc[0].tolist() == pytest.approx([0, 1, 2, 3, 4, 5])
    assert p_z.variance[0].log().tolist() == pytest.approx([6, 7, 8, 9, 10, 11])


def test_q_y_is_a_distribution_and_p_y_is_uniform():
    model = double_model()
    x, _ = some(model, "mnist-sample")
    log_q_y = model.log_q_y(model.encode(x))
    assert log_q_y.shape == (4, 5)
    assert torch.allclose(log_q_y.exp().sum(-1), torch.ones(4).double())
    assert model.log_p_y() == pytest.approx(math.log(1 / 5))


def test_bfloat16_stays_inside_the_networks():
    torch.manual_seed(0)
    model = GMVAE(small(), bf16=True)
    x = torch.rand(4, 1, 28, 28)
    h = model.encode(x)
    q_z = model.q_z(h, torch.arange(4))
    z = torch.randn(4, 8)
    for result in (h, model.log_q_y(h), q_z.loc, q_z.scale, model.p_z(torch.arange(4)).loc,
                   model.log_p_x(x, z), model.x_mean(z)):
        assert result.dtype == torch.float32
    plain = GMVAE(small())
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(h, plain.encode(x))  # it was bfloat16 inside
    assert torch.allclose(h, plain.encode(x), atol=0.02)
