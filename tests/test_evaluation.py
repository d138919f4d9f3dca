"""Held-out numbers against direct computation on the toy, and cluster scores against cases
counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Toy, exact_elbo, exact_log_p_x, exact_terms, small, toy_images
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from cgmvae import data
from cgmvae.estimators import ESTIMATORS
from cgmvae.evaluation import (
    assign,
    cluster_scores,
    evaluate,
    importance_weight,
    in_use,
    named_accuracy,
    surest,
    validate,
    verdict,
)
from cgmvae.experiment import preset
from cgmvae.model import GMVAE

COPIES = 4000


def splits(pixels: torch.Tensor, groups: torch.Tensor | None = None) -> data.Splits:
    """Only a test set, of these images (N, C, H, W) in 0 to 255."""
    test = data.Pixels(pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), "none")
    groups = torch.zeros(len(test), dtype=torch.int64) if groups is None else groups
    return data.Splits(test, test, test, groups, groups)


@pytest.fixture(scope="module")
def toy_numbers() -> dict:
    groups = torch.tensor([0, 1]).repeat_interleave(COPIES)
    return evaluate(Toy(), splits(toy_images(COPIES) * 255, groups), small(iw_samples=20))


def test_nats_by_enumeration(toy_numbers):
    x, toy = toy_images(1), Toy()
    exact, y = exact_terms(toy, x), toy.log_q_y(toy.encode(x)).argmax(-1)
    for name, value, tolerance in (
            ("test_log_px", exact["label_log_px"][y, range(2)], 0.05),  # one sample of z
            ("test_kl_z", exact["label_kl_z"][y, range(2)], 1e-6),
            ("test_kl_y", exact["kl_y"], 1e-6),
            ("test_elbo", exact_elbo(toy, x), 0.03)):  # 20 samples
        assert toy_numbers[name] == pytest.approx(value.mean().item(), abs=tolerance), name
    # None of them is another's number, so that none can stand in for it.
    everything = [toy_numbers[k] for k in ("test_log_px", "test_kl_z", "test_kl_y", "test_elbo")]
    assert min(abs(a - b) for i, a in enumerate(everything) for b in everything[:i]) > 0.03
    assert abs(exact["label_log_px"][y, range(2)].mean() - exact["log_px"].mean()) > 0.07


def test_the_bound_lies_between_elbo_and_likelihood(toy_numbers):
    exact = exact_log_p_x(Toy(), toy_images(1)).mean().item()
    assert toy_numbers["test_elbo"] + 0.1 < toy_numbers["test_iw_bound"] < exact + 0.01
    assert toy_numbers["iw_samples"] == 20


def test_the_bound_grows_with_samples_to_the_exact_likelihood():
    bounds = [evaluate(Toy(), splits(toy_images(n) * 255), small(iw_samples=k))["test_iw_bound"]
              for k, n in ((1, 4000), (5, 4000), (50, 1000), (2000, 100))]
    assert bounds == sorted(bounds) and bounds[1] > bounds[0] + 0.1
    assert bounds[-1] == pytest.approx(exact_log_p_x(Toy(), toy_images(1)).mean().item(), abs=0.03)


def test_with_one_sample_the_bound_is_the_elbo():
    numbers = evaluate(Toy(), splits(toy_images(50) * 255), small(iw_samples=1))
    assert numbers["test_iw_bound"] == pytest.approx(numbers["test_elbo"], abs=1e-9)


def test_importance_weights_average_to_the_likelihood():
    x, toy = toy_images(200_000), Toy()
    h = toy.encode(x)
    with torch.no_grad():
        log_w = importance_weight(toy, x, h, toy.log_q_y(h), torch.Generator().manual_seed(0))
    w = log_w.exp().view(2, -1)
    error = w.std(1) / math.sqrt(w.shape[1])
    assert ((w.mean(1) - exact_log_p_x(toy, toy_images(1)).exp()).abs() < 4 * error).all()


def test_evaluation_is_repeatable_and_touches_nothing():
    e = small(K=3, iw_samples=3)
    torch.manual_seed(0)
    model = GMVAE(e)
    some = splits(torch.randint(0, 256, (7, 1, 28, 28)), torch.arange(7) % 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, again = evaluate(model, some, e), evaluate(model, some, e)
    assert first == again and model.training
    assert first["test_log_px"] != evaluate(model, some, e.but(seed=1))["test_log_px"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(isinstance(v, float | int) and math.isfinite(v) for v in first.values())


def test_layers_that_differ_in_training_are_evaluated_as_they_will_be_used():
    e = small(K=3, iw_samples=2)
    model, some = GMVAE(e), splits(torch.randint(0, 256, (7, 1, 28, 28)), torch.arange(7) % 3)
    with torch.no_grad():
        plain = evaluate(model, some, e), validate(model, some.validation, e)
        model.q_z_layers.insert(2, torch.nn.Dropout(0.5))
    assert (evaluate(model, some, e), validate(model, some.validation, e)) == plain
    assert assign(model, some.test).equal(assign(model, some.test)) and model.training


def test_table_1s_number_does_not_depend_on_the_samples_of_the_bound():
    model, some = Toy(), splits(toy_images(600) * 255)  # more than one batch
    numbers = [evaluate(model, some, small(iw_samples=k))["test_log_px"] for k in (1, 7)]
    assert numbers[0] == numbers[1]


def test_the_last_batch_counts_by_its_images(monkeypatch):
    from cgmvae import evaluation
    model, some = Toy(), splits(toy_images(50) * 255)
    whole = evaluate(model, some, small())["test_kl_z"]
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 60)  # 60 and 40
    assert evaluate(model, some, small())["test_kl_z"] == pytest.approx(whole, rel=1e-12)


# Clusters

class Sorter(Toy):
    """A toy whose q(y|x) is almost sure of the label that the image's first pixel is."""

    def log_q_y(self, h):
        labels = (h[:, 0] * 255).round().long()
        return torch.log_softmax(20 * torch.nn.functional.one_hot(labels, 3).double(), -1)

    def log_p_x(self, x, z):
        return super().log_p_x(x > 0.5, z)


def labelled(labels: list[int]) -> torch.Tensor:
    return torch.tensor([[label, 255] for label in labels]).view(-1, 1, 1, 2)


def test_clusters_in_use_get_one_in_a_thousand():
    sizes = {(2000, 0, 0): 1, (1998, 2, 0): 2, (1999, 1, 0): 1, (1000, 998, 2): 3}
    for (a, b, c), used in sizes.items():
        labels = [0] * a + [1] * b + [2] * c
        assert evaluate(Sorter(), splits(labelled(labels)), small())["test_clusters_used"] == used


def test_cluster_perplexity_is_between_one_and_K():
    skewed = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    for labels, perplexity in (([0] * 6, 1), ([0, 0, 0, 2, 2, 2], 2), ([0, 1, 2, 0, 1, 2], 3),
                               ([0, 0, 0, 1], skewed)):
        numbers = evaluate(Sorter(), splits(labelled(labels)), small())
        assert numbers["test_cluster_perplexity"] == pytest.approx(perplexity, rel=1e-4)


def test_the_labels_that_are_scored_are_the_argmax_against_the_groups():
    labels, groups = [0, 0, 1, 1, 2, 2], torch.tensor([5, 5, 3, 3, 4, 3])
    numbers = evaluate(Sorter(), splits(labelled(labels), groups), small())
    assert numbers["test_acc"] == pytest.approx(5 / 6)
    assert numbers["test_nmi"] == pytest.approx(normalized_mutual_info_score(groups, labels))
    assert numbers["test_ari"] == pytest.approx(adjusted_rand_score(groups, labels))


def test_assign_is_q_y_of_every_image():
    labels = [0, 2, 1, 1, 0]
    q_y = assign(Sorter(), splits(labelled(labels)).test)
    assert q_y.shape == (5, 3) and q_y.argmax(-1).tolist() == labels
    assert torch.allclose(q_y.sum(-1), torch.ones(5).double())


CASES = [  # clusters, classes, accuracy counted by hand
    ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], 1.0),
    ([7, 7, 0, 0, 3, 3], [0, 0, 1, 1, 2, 2], 1.0),  # other names, the same clusters
    ([0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 2], 3 / 6),  # one cluster: its largest class
    ([0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1], 2 / 6),  # more clusters than classes: one each
    ([0, 0, 1, 1], [0, 1, 0, 1], 2 / 4),
    ([0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 0, 1, 1], 4 / 7),
    ([0, 0, 0, 1, 1], [0, 0, 1, 0, 0], 3 / 5),  # both would like class 0, and one may have it
]


@pytest.mark.parametrize(("clusters", "classes", "accuracy"), CASES)
def test_accuracy_counted_by_hand(clusters, classes, accuracy):
    assert cluster_scores(np.array(clusters), np.array(classes))["acc"] == pytest.approx(accuracy)


def test_perfect_and_useless_clusters():
    classes = np.repeat(np.arange(4), 25)
    perfect = {"acc": 1.0, "nmi": 1.0, "ari": 1.0}
    assert cluster_scores((classes + 1) % 4, classes) == pytest.approx(perfect)
    assert cluster_scores(np.zeros(100, int), classes) == pytest.approx(
        {"acc": 0.25, "nmi": 0.0, "ari": 0.0})


def test_scores_do_not_depend_on_names_or_order():
    random = np.random.default_rng(0)
    classes = random.integers(0, 5, 300)
    clusters = np.where(random.random(300) < 0.6, classes, random.integers(0, 7, 300))
    scores = cluster_scores(clusters, classes)
    assert 0.3 < scores["acc"] < 0.9
    names, order = random.permutation(7), random.permutation(300)
    assert cluster_scores(names[clusters], classes) == pytest.approx(scores)
    assert cluster_scores(clusters, random.permutation(5)[classes]) == pytest.approx(scores)
    assert cluster_scores(clusters[order], classes[order]) == pytest.approx(scores)


def test_evaluation_uses_exact_samples_whatever_the_estimator():
    """The same model gets the same numbers: how it was trained plays no part."""
    some = splits(toy_images(100) * 255)
    numbers = [evaluate(Toy(), some, small(estimator=name)) for name in ESTIMATORS]
    assert all(n == numbers[0] for n in numbers)


@pytest.mark.parametrize("information, perplexity, said", [
    (0.0, 10.0, "uniform"), (0.114, 9.9, "uniform"), (0.0, 1.0, "one for all"), (0.05, 3.0, "one for all"),
    (0.116, 9.9, "in use"), (0.116, 1.2, "in use"), (math.log(10), 10.0, "in use")])
def test_a_label_is_in_use_by_what_it_knows_and_by_nothing_else(information, perplexity, said):
    assert verdict(information, perplexity, 10) == said


def test_the_only_label_is_never_in_use():
    assert verdict(0.0, 1.0, 1) == "one for all"
    assert not in_use(np.float64(0.0), 1)
    assert in_use(pd.Series([0.0, 0.1, 0.2]), pd.Series([1, 2, 10])).tolist() == [False, True, True]


def test_the_image_that_a_cluster_is_surest_of():
    q_y = torch.tensor([[.9, .1, 0.], [.6, .4, 0.], [.2, .8, 0.], [.45, .55, 0.]])
    assert surest(q_y).tolist() == [0, 2]  # the third cluster is no image's
    assert surest(q_y.flip(0)).tolist() == [3, 1]
    assert surest(q_y[1:]).tolist() == [0, 1]  # the next one


def test_a_record_tells_what_one_label_a_cluster_is_worth():
    """By hand from q(y|x) of both splits: validation images name, test images are counted."""
    experiment = preset("quick", K=30, epochs=1, iw_samples=1)
    images = data.load(experiment.dataset)
    splits = data.split(experiment, images, "cpu")
    model = GMVAE(experiment)
    metrics = evaluate(model, splits, experiment)
    seen, test = (assign(model, p) for p in (splits.validation, splits.test))
    names = {}
    for k in range(30):
        if mine := (seen.argmax(1) == k).nonzero()[:, 0].tolist():
            names[k] = int(splits.validation_groups[max(mine, key=lambda i: seen[i, k])])
    often = np.bincount(list(names.values())).argmax()  # what a cluster without an image is taken for
    right = sum(names.get(k, often) == group
                for k, group in zip(test.argmax(1).tolist(), splits.test_groups.tolist(), strict=True))
    assert metrics["clusters_named"] == len(names) >= 2
    assert metrics["test_named_acc"] == pytest.approx(right / len(test))
    order = torch.randperm(len(images.train_images), generator=torch.Generator().manual_seed(experiment.seed))
    assert torch.equal(splits.validation_groups, images.train_groups[order[:experiment.validation_size]])


def test_few_told_images_name_the_clusters_by_hand():
    """Cluster 0: two votes for class 1, one for class 0. Cluster 1: class 2. Cluster 2: none, so class 1."""
    told = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.8, 0.2, 0.0], [0.1, 0.9, 0.0]])
    told_classes = torch.tensor([1, 1, 0, 2])
    q_y = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.1, 0.8], [0.7, 0.3, 0.0]])
    classes = torch.tensor([1, 2, 1, 0])
    assert named_accuracy(told, told_classes, q_y, classes, soft=False) == 3 / 4
    assert named_accuracy(told, told_classes, q_y, 2 - classes, soft=False) == 2 / 4  # class 1 is its own mirror


def test_a_doubtful_image_votes_and_is_classified_by_its_weights():
    """Votes (sure of class 0: 0.6 and 0.4; of class 1: 0.45 and 0.55) and Bayes' shares, worked out by hand."""
    told, told_classes = torch.tensor([[0.6, 0.4], [0.45, 0.55]]), torch.tensor([0, 1])
    shares = [[0.6 / 1.05, 0.45 / 1.05], [0.4 / 0.95, 0.55 / 0.95]]  # of the votes for cluster 0, and for 1
    q_y, classes = torch.tensor([[0.45, 0.55], [0.55, 0.45], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    by_hand = [int(a * shares[0][1] + b * shares[1][1] > a * shares[0][0] + b * shares[1][0])
               for a, b in q_y.tolist()]
    right = sum(guess == c for guess, c in zip(by_hand, classes.tolist(), strict=True)) / 3
    assert named_accuracy(told, told_classes, q_y, classes, soft=True) == pytest.approx(right)
    # All told images have one argmax: a vote each names cluster 0 by a tie, and the weights know better.
    leaning = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    wanted = torch.tensor([0, 1])
    assert named_accuracy(leaning, wanted, torch.eye(2), wanted, soft=True) == 1
    assert named_accuracy(leaning, wanted, torch.eye(2), wanted, soft=False) == 0.5
    # A class told three times does not outvote the cluster that the image leans to: shares count, not votes.
    sure = torch.eye(2)[[0, 0, 0, 1]]
    assert named_accuracy(sure, torch.tensor([0, 0, 0, 1]), torch.tensor([[0.4, 0.6]]), wanted[1:], soft=True) == 1


def test_with_all_told_the_names_reach_the_purity():
    random = np.random.default_rng(0)
    classes = torch.from_numpy(random.integers(0, 4, 500))
    q_y = torch.from_numpy(random.random((500, 7))) + 2 * torch.eye(7, dtype=torch.float64)[classes]
    counts = contingency_matrix(classes.numpy(), q_y.argmax(1).numpy())
    purity = counts.max(0).sum() / 500
    assert named_accuracy(q_y, classes, q_y, classes, soft=False) == pytest.approx(purity)


def test_the_value_with_z_at_its_mean_and_the_share_of_information():
    toy, x = Toy(), toy_images(1)
    found = evaluate(toy, splits(toy_images(20) * 255), small(iw_samples=1))
    h = toy.encode(x)
    wanted = toy.log_p_x(x, toy.q_z_given(h, toy.log_q_y(h).argmax(-1)).loc).mean().item()
    assert found["test_log_px_z_mean"] == pytest.approx(wanted, abs=1e-6)
    assert found["test_information_share"] == pytest.approx(found["test_information"] / math.log(3))
