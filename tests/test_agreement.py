"""Two views, one label: the term against arithmetic done anew, its balance, its start, and a run with it."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from helpers import small, trainer

from cgmvae import Experiment, ExperimentError, checkpoints, data, evaluation, objectives, views
from cgmvae.agreement import RECIPE, SHARPENING, agreement, targets
from cgmvae.estimators import ESTIMATORS
from cgmvae.views import VIEWS

WITH_VIEWS = {"views": "digits", "annealing": "none", "kl_y_form": "categorical"}


def log_q(n: int = 6, K: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
                       ).log_softmax(-1)


def test_targets_are_sinkhorns_of_the_sharpened_probabilities():
    log_q_y = log_q(40)
    t = np.exp(log_q_y.numpy() / SHARPENING)
    t /= t.sum(1, keepdims=True)  # each image counts once from the start
    for _ in range(5):
        t /= t.sum(0, keepdims=True)
        t /= t.sum(1, keepdims=True)
    assert targets(log_q_y).numpy() == pytest.approx(t, abs=1e-12)
    sharp = np.exp(log_q_y.numpy() / SHARPENING)
    assert targets(log_q_y, rounds=0).numpy() == pytest.approx(sharp / sharp.sum(1, keepdims=True))


def test_balance_gives_every_label_as_many_images():
    lopsided = (log_q(400, 4) / 5 + torch.tensor([1.0, 0, 0, 0])).log_softmax(-1)
    shares = targets(lopsided).mean(0)
    assert shares.sum().item() == pytest.approx(1)
    unbalanced = targets(lopsided, rounds=0).mean(0)
    assert 0.9 < unbalanced[0] and shares[0] < 0.45  # five rounds go most of the way


def test_agreement_is_each_views_cross_entropy_with_the_others_target():
    log_q_y = log_q()
    t = targets(log_q_y).numpy()
    for i in range(3):
        by_hand = -sum(t[i, k] * log_q_y[i + 3, k].item() + t[i + 3, k] * log_q_y[i, k].item()
                       for k in range(3)) / 2
        assert agreement(log_q_y, True)[i].item() == pytest.approx(by_hand)


def test_no_gradient_flows_into_the_targets():
    log_q_y = log_q().requires_grad_()
    agreement(log_q_y, True).sum().backward()
    t_1, t_2 = targets(log_q_y.detach()).chunk(2)
    assert torch.allclose(log_q_y.grad, -torch.cat([t_2, t_1]) / 2)


def test_sure_balanced_and_agreeing_labels_cost_nothing_and_one_for_all_costs_ln_K():
    sure = torch.full((4, 2), -30.0, dtype=torch.float64)
    sure[[0, 2], 0] = sure[[1, 3], 1] = 0.0  # images 0 and 1, then their views
    assert agreement(sure, True).max() < 1e-9
    uniform = torch.full((4, 2), math.log(0.5), dtype=torch.float64)
    assert agreement(uniform, True).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("name", [n for n in VIEWS if n != "none"])
@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (5, 3, 32, 32)])
def test_views_keep_shape_and_range_and_follow_their_noise(name, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    first, again = (VIEWS[name](x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == x.shape and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again)
    if name == "same":
        assert torch.equal(first, x)
    else:
        assert not torch.equal(first, VIEWS[name](x, torch.Generator().manual_seed(2)))


def test_a_digits_view_is_still_that_digit():
    """Its ink is as much, and where it is says which digit it is; in a mirror it would not."""
    images = data.load("mnist-sample")
    grey, digit = images.train_images[:1000].float() / 255, images.train_groups[:1000]
    view = VIEWS["digits"](grey, torch.Generator().manual_seed(0))
    assert view.mean().item() == pytest.approx(grey.mean().item(), rel=0.1)
    a, b = (torch.nn.functional.avg_pool2d(v, 4).flatten(1) for v in (grey, view))
    a, b = a - a.mean(0), b - b.mean(0)
    nearest = (torch.nn.functional.normalize(b) @ torch.nn.functional.normalize(a).T).argmax(1)
    assert (digit[nearest] == digit).float().mean() > 0.45  # by chance one in ten
    mirrored = (torch.nn.functional.normalize(b.view(-1, 7, 7).flip(2).flatten(1))
                @ torch.nn.functional.normalize(a).T).argmax(1)
    assert (digit[mirrored] == digit).float().mean() < (digit[nearest] == digit).float().mean()


def test_views_of_dark_ink_on_white_are_the_negatives_of_white_ink_on_black():
    """Black wedges would be a sign that no writer made, and the labels could tell images by them."""
    ink = data.load("mnist-sample").train_images[:200].float() / 255
    noise = torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for x in (ink, noise):
        white, black = (VIEWS["digits"](image, torch.Generator().manual_seed(1)) for image in (1 - x, x))
        assert torch.allclose(white, 1 - black, atol=1e-6)
    plain = torch.full((20, 1, 28, 28), 0.4)  # nothing but ground
    assert torch.allclose(VIEWS["digits"](plain, torch.Generator().manual_seed(1)), plain, atol=1e-6)


def test_a_view_on_a_black_ground_is_filled_with_black_to_the_last_bit(monkeypatch):
    """So that the runs of MNIST that have records can be repeated."""
    ink = data.load("mnist-sample").train_images.float() / 255
    view = VIEWS["digits"](ink, torch.Generator().manual_seed(2))
    monkeypatch.setattr(views, "_ground", lambda x: torch.zeros(len(x), 1, 1, 1))
    assert torch.equal(view, VIEWS["digits"](ink, torch.Generator().manual_seed(2)))


def test_a_batchs_view_is_binarised_as_the_batch_is():
    pixels = trainer(small()).splits.train
    view = pixels.view(torch.arange(8), "digits", torch.Generator().manual_seed(0))
    assert view.shape == (8, 1, 28, 28) and set(view.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(pixels.view(torch.arange(8), "same"), pixels.batch(torch.arange(8)))


@pytest.mark.parametrize("estimator", [n for n, e in ESTIMATORS.items() if e.posterior != "sparse"])
def test_one_step_with_every_estimator_adds_the_weighted_term(estimator):
    t = trainer(small(estimator=estimator, views="digits", agreement=7.0))
    next(t.run())
    loss, log_px, kl_z, kl_y = t.terms[0].tolist()
    w = 0.0 if t.experiment.annealing == "ramp" else 1.0  # of the first step
    more = (loss - (-log_px + kl_z + w * kl_y)) / 7
    assert 0 < more < 3 * math.log(10)


@pytest.mark.parametrize("balanced", (True, False))
def test_the_first_step_with_views_is_done_anew(balanced):
    """beta times the KL of z, the weighted agreement of x with its own view, and the ELBO of x alone."""
    e = small(views="digits", agreement=7.0, balanced=balanced, spread_logits=True, beta=0.5)
    t = trainer(e)
    noise, model = torch.Generator().set_state(t.noise.get_state()), copy.deepcopy(t.model)
    next(t.run())
    x = t.splits.train.batch(t.order[0], noise)
    view = t.splits.train.view(t.order[0], "digits", noise)
    with torch.no_grad():
        terms = ESTIMATORS["concrete"](model, x, e, noise)
        labels = torch.cat([model.log_q_y(model.encode(part)) for part in (x, view)])
        more = agreement(labels, balanced).mean()
        expected = (0.5 * terms["kl_z"] - terms["log_px"]).mean() + 7 * more  # w is 0 at step 0
    assert t.terms[0, 1].item() == pytest.approx(terms["log_px"].mean().item(), rel=1e-6)
    assert t.terms[0, 2].item() == pytest.approx(terms["kl_z"].mean().item(), rel=1e-4)
    assert t.terms[0, 0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_views_and_told_labels_are_those_of_their_own_images():
    t, seen = trainer(small(views="same", labelled=20, batch_size=8)), []
    whole = t.estimate
    t.estimate = lambda x, view, told, tau: seen.append((x, view, *told)) or whole(x, view, told, tau)
    next(t.run())
    (x, view, told, labels, its_view), = seen
    assert torch.equal(x, view) and torch.equal(told, its_view)
    rows, classes = t.splits.told
    known = {t.splits.train.batch(rows[i:i + 1])[0].numpy().tobytes(): int(classes[i]) for i in range(20)}
    assert [known[one.numpy().tobytes()] for one in told] == labels.tolist()


def tilt(images: torch.Tensor) -> torch.Tensor:
    """Degrees between the upright and the long axis of what is bright, (N,)."""
    height, width = images.shape[2:]
    weight = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    at = torch.stack(torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij"))
    off = at - torch.einsum("nhw,chw->nc", weight, at)[:, :, None, None]
    yy, xx, xy = ((weight * off[:, a] * off[:, b]).sum((1, 2)) for a, b in ((0, 0), (1, 1), (0, 1)))
    return torch.rad2deg(0.5 * torch.atan2(2 * xy, yy - xx))


def test_a_digit_is_turned_and_slanted_as_far_as_is_said():
    bar = torch.zeros(2000, 1, 28, 28)
    bar[..., 4:24, 12:16] = 1
    angles = tilt(views.digits(bar, torch.Generator().manual_seed(0)))
    # Even up to 20 degrees and up to a slant of 0.25, and the bend: sd of 11.5, 8.2 and about 4 degrees.
    assert 13 < angles.std() < 17 and angles.mean().abs() < 1


def test_a_photographs_view_is_a_part_of_it_mirrored_half_the_time_and_grey_a_fifth(monkeypatch):
    seen = []
    monkeypatch.setattr(views, "_sampled", lambda x, matrix, *_: seen.append(matrix) or x)
    x = 0.3 + 0.4 * torch.rand(1000, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    view, (matrix,) = views.photos(x, torch.Generator().manual_seed(0)), seen
    area, mirrored = matrix[:, 0, 0].abs() * matrix[:, 1, 1], (matrix[:, 0, 0] < 0).float().mean()
    assert 0.28 < area.min() < 0.35 and 0.9 < area.max() <= 1 and 0.45 < mirrored < 0.55
    grey = (view - view.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.16 < grey.float().mean() < 0.24
    theirs, ours = (v.mean(1).flatten(1) for v in (x, view))
    theirs, ours = theirs - theirs.mean(1, keepdim=True), ours - ours.mean(1, keepdim=True)
    assert (torch.cosine_similarity(theirs, ours) > 0.8).all()  # the pixels of its own image, where they were


def test_the_first_logits_are_spread():
    plain, spread = (trainer(small(spread_logits=s)) for s in (False, True))
    x = spread.splits.train.batch(slice(0, 1000))
    for t, wanted in ((plain, False), (spread, True)):
        with evaluation.evaluating(t.model):
            logits = t.model.logits_y(t.model.encode(x))
        off = max((logits.std(0) - 1).abs().max().item(), logits.mean(0).abs().max().item())
        assert (off < 1e-3) is wanted


def test_the_cosine_learning_rate_rises_falls_and_is_adams():
    t = trainer(small(learning_rate_schedule="cosine", epochs=40))
    seen = []
    for progress in t.run():
        if len(seen) < progress["step"]:
            seen.append(t.optimiser.param_groups[0]["lr"].item())
    assert seen[0] == pytest.approx(1e-5) and max(seen) < 1e-3  # 200 steps, 100 of them of warm-up
    step = seen.index(max(seen))
    assert seen[:step + 1] == sorted(seen[:step + 1]) and seen[step:] == sorted(seen[step:], reverse=True)


def test_adam_takes_the_rate_of_its_own_step():
    t = trainer(small(learning_rate_schedule="cosine", epochs=40))
    before = copy.deepcopy(t.model.state_dict())
    next(t.run())
    moved = max((value - before[name]).abs().max().item() for name, value in t.model.state_dict().items())
    assert moved == pytest.approx(1e-5, rel=0.01)  # Adam's first step is the rate itself
    for at in (0, 50, 150, 199):
        t.t.fill_(at)
        t.position.zero_()
        t.step()
        down = 0.02 + 0.98 * (1 + math.cos(math.pi * at / 200)) / 2
        assert t.rate.item() == pytest.approx(1e-3 * min((at + 1) / 100, 1) * down, rel=1e-5)


def test_what_is_not_used_is_no_part_of_the_id():
    assert small(agreement=50.0).id == small().id == small(balanced=False).id
    with_views = small(**WITH_VIEWS)
    assert with_views.agreement == 100
    assert Experiment(**json.loads(json.dumps(with_views.as_dict()))).id == with_views.id
    ids = {small(**WITH_VIEWS, **more).id for more in
           ({}, {"agreement": 10.0}, {"balanced": False}, {"spread_logits": True})}
    assert len(ids) == 4
    for name, bad in (("views", "digit"), ("agreement", 0), ("balanced", "perhaps"),
                      ("learning_rate_schedule", "cos")):
        with pytest.raises(ExperimentError, match=name):
            small(**{**WITH_VIEWS, name: bad})


def test_the_recipe_is_an_experiment_and_its_weights_are_read_back(tmp_path):
    e = small(**RECIPE)
    checkpoints.save_weights(trainer(e).model, e, tmp_path / "w.safetensors")
    assert checkpoints.load_weights(tmp_path / "w.safetensors")[1] == e
