"""A few labels: which images are told, what their loss is, and a run that learns from them."""

import math

import numpy as np
import pytest
import torch
from helpers import Toy, exact_terms, small, toy_images, trainer
from torch.distributions import Normal

from cgmvae import data, datasets, evaluation, objectives
from cgmvae.experiment import Experiment, ExperimentError
from cgmvae.model import GMVAE
from cgmvae.objectives import LABEL_WEIGHT, labelled
from cgmvae.run import fit
from cgmvae.experiment import preset


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", (10, 100, 37))
def test_told_images_are_training_images_of_their_class_as_many_of_each(count):
    e = small(labelled=count, train_limit=1000, seed=3)
    images = data.load(e.dataset)
    splits = data.split(e, images, "cpu")
    rows, labels = splits.told
    assert len(rows.unique()) == count == len(labels)
    number = torch.bincount(labels, minlength=10)
    assert number.max() - number.min() <= 1
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        pixels = splits.train.values[row].permute(2, 0, 1)
        found = (images.train_images == pixels).flatten(1).all(1).nonzero()[:, 0]
        assert images.train_labels[found].tolist() == [label] * len(found)
    again = data.split(e, images, "cpu").told
    assert torch.equal(again[0], rows)
    other = data.split(e.but(seed=4), images, "cpu")
    assert not torch.equal(other.train.values[other.told[0]], splits.train.values[rows])
    assert data.split(e.but(labelled=0), images, "cpu").told is None


def test_a_told_images_loss_is_its_bound_and_its_cross_entropy_by_hand():
    e = small(K=4, z_dim=3, beta=0.5)
    torch.manual_seed(0)
    model = GMVAE(e).double()
    x, y = (torch.rand(6, 1, 28, 28) > 0.5).double(), torch.tensor([0, 3, 1, 1, 2, 0])
    loss = labelled(model, x, y, e, seeded())
    h = model.encode(x)
    noise = torch.randn(6, 3, generator=seeded())
    for i in range(6):
        one_hot = torch.nn.functional.one_hot(y[i:i + 1], 4).double()
        q, p = model.q_z(h[i:i + 1], one_hot), model.p_z(one_hot)
        z = q.mean + q.stddev * noise[i]
        ratio = (Normal(q.mean, q.stddev).log_prob(z) - Normal(p.mean, p.stddev).log_prob(z)).sum()
        pixels = torch.distributions.Bernoulli(model.x_mean(z)).log_prob(x[i:i + 1]).sum()
        bound = pixels - 0.5 * ratio - math.log(4)
        right = -model.logits_y(h[i:i + 1]).softmax(1)[0, y[i]].log()
        assert loss[i].item() == pytest.approx((-bound + LABEL_WEIGHT * right).item(), rel=1e-9)


def test_over_the_labels_the_bounds_make_up_eq_5():
    """Eq. 5 is the mean under q(y|x) of the bound at each label, and the entropy of q(y|x)."""
    x, toy = toy_images(20_000), Toy()
    e = small()
    h = toy.encode(x[:1])
    q_y = toy.log_q_y(h).exp()[0]
    bounds = []
    for k in range(len(q_y)):
        with torch.no_grad():
            loss = labelled(toy, x, torch.full((len(x),), k), e, seeded(k))
        bounds.append((-loss + LABEL_WEIGHT * -toy.log_q_y(toy.encode(x))[:, k]).view(2, -1).mean(1))
    bounds = torch.stack(bounds)  # (K, 2): of the toy's two images
    q = toy.log_q_y(toy.encode(toy_images(1))).exp().T
    value = (q * bounds).sum(0) - torch.xlogy(q, q).sum(0)
    terms = exact_terms(toy, toy_images(1))
    expected = terms["log_px"] - terms["kl_z"] - terms["kl_y"]
    assert value.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=0.05)


def test_the_loss_of_a_step_has_both_parts():
    told = trainer(small(batch_size=8, labelled=10, annealing="none"))
    next(told.run())
    loss, log_px, kl_z, kl_y = told.terms[0].tolist()
    more = loss - (-log_px + kl_z + kl_y)  # about 540 nats of pixels, and LABEL_WEIGHT ln 10
    assert 0.9 < more / (-log_px + LABEL_WEIGHT * math.log(10)) < 1.1


def test_both_views_of_a_told_image_are_told():
    e = small(K=10, views="digits")
    torch.manual_seed(0)
    model = GMVAE(e)
    x, view = torch.rand(4, 1, 28, 28).round(), torch.rand(4, 1, 28, 28).round()
    y = torch.tensor([1, 2, 3, 4])
    both = labelled(model, x, y, e, seeded(), view)
    only = labelled(model, x, y, e, seeded())
    first, second = (-model.log_q_y(model.encode(part)).gather(1, y[:, None])[:, 0] for part in (x, view))
    assert torch.allclose(both - only, LABEL_WEIGHT * (second - first) / 2, atol=1e-3)


def test_ten_of_each_name_the_labels():
    """With a hundred digits told, a short run names most of the others; its labels are classes, unmatched."""
    e = preset("quick", labelled=100, epochs=2, train_limit=1500, annealing="none", kl_y_form="categorical",
               iw_samples=2)
    t = trainer(e)
    fit(t, False)
    metrics = evaluation.evaluate(t.model, t.splits, e)
    assert metrics["test_label_acc"] > 0.6
    labels = evaluation.assign(t.model, t.splits.test).argmax(1)
    right = (labels == t.splits.test_groups).double().mean().item()
    assert metrics["test_label_acc"] == pytest.approx(right)
    assert metrics["test_acc"] >= metrics["test_label_acc"] - 1e-9  # a matching can only help
    assert "test_label_acc" not in evaluation.evaluate(t.model, t.splits, e.but(labelled=0))


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ExperimentError, match="labelled must be 0, or from the 20 classes to the"):
        Experiment(dataset="cifar100-sample", labelled=10, batch_size=32)
    facts = datasets.DATASETS["mnist-sample"]
    assert facts.groups == 10 and datasets.DATASETS["cifar100"].groups == 20
    unlabelled = datasets.Dataset((1, 28, 28), 500, 100, K=3, full="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "none", unlabelled)
        with pytest.raises(ExperimentError, match="labelled must be 0, as 'none' has no labels"):
            Experiment(dataset="none", labelled=10)


def test_each_told_image_is_drawn_as_often_as_another(monkeypatch):
    """Every told image is drawn about as often as any other."""
    t = trainer(small(labelled=20, batch_size=8))
    seen = np.zeros(len(t.splits.train), int)
    rows = t.splits.told[0]
    monkeypatch.setattr(type(t.splits.train), "batch", lambda self, index, noise=None: index)
    for _ in range(2000):
        x, labels = t.told()
        np.add.at(seen, x.numpy(), 1)
        assert len(x) == len(labels) == 8
    counts = seen[rows.numpy()]
    assert seen.sum() == counts.sum() == 16_000 and counts.min() > 650 and counts.max() < 950
