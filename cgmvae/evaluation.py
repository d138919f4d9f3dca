"""What a model is worth: on the validation images during training, on the test images at its end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Generator, Tensor
from torch.distributions import kl_divergence
from torch.special import entr

from cgmvae.data import Pixels, Splits
from cgmvae.discrete import exact_sample
from cgmvae.experiment import Experiment
from cgmvae.model import GMVAE
from cgmvae.objectives import categorical_kl, elbo, given_y
from cgmvae.relaxation import gumbel_max
from cgmvae.seeds import derived_seed

EVALUATION_BATCH = 500
USED_SHARE = 0.001
"""Of the test images: a cluster that gets fewer is not counted as used."""


@contextlib.contextmanager
def evaluating(model: GMVAE) -> Iterator[None]:
    """The model in eval mode and without gradients; afterwards in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def validate(model: GMVAE, pixels: Pixels, experiment: Experiment) -> dict[str, float]:
    """The terms of the ELBO at w = 1 and beta = 1, from one exact sample of y and one of z an image.

    The same measure for every estimator and every step, an unbiased estimate of eq. 5, from the same
    noise each time. nats, means over the images:

    - `validation_loss`: the negative ELBO, which early stopping watches.
    - `validation_log_px`, `validation_kl_z`, `validation_kl_y`: its terms.
    - `validation_information`: I(x;y), see `information`.
    """
    noise = Generator(pixels.values.device).manual_seed(derived_seed(experiment.seed, "validation"))
    names = ("log_px", "kl_z", "kl_y")
    total = dict.fromkeys(("loss", *names), 0.0)
    all_q_y = []
    with evaluating(model):
        for start in range(0, len(pixels), EVALUATION_BATCH):
            x = pixels.batch(slice(start, start + EVALUATION_BATCH))
            terms, log_q_y, _ = exact_sample(model, x, model.encode(x), experiment, noise)
            for name, value in {"loss": -elbo(terms), **terms}.items():
                total[name] += float(value.cpu().double().sum())
            all_q_y.append(log_q_y.exp().cpu().double())
    means = {f"validation_{k}": v / len(pixels) for k, v in total.items()}
    return means | {"validation_information": information(torch.cat(all_q_y))}


def information(q_y: Tensor) -> float:
    """I(x;y) between images and labels, in nats, from q(y|x) of all images, (N, K), float64.

    It is the entropy of the mean of q(y|x) less the mean of its entropies, between 0 and ln K: what
    a label says of its image. Near 0 the label is not used, whether all images have one and the same
    or each has every one alike.
    """
    return max(0.0, float(entr(q_y.mean(0)).sum() - entr(q_y).sum(-1).mean()))


def perplexity(q_y: Tensor) -> float:
    """exp of the entropy of the mean of q(y|x), (N, K), float64: between 1 and K, how many labels are used alike."""
    return float(entr(q_y.mean(0)).sum().exp())


def in_use(information: float, K: int) -> bool:
    """Whether a label counts as in use: from a twentieth of ln K on, and never the only one. Arrays: by elements."""
    return (K > 1) & (information >= np.log(K) / 20)


def verdict(information: float, perplexity: float, K: int) -> str:
    """A label is in use, or else collapsed, to the uniform one or to one for all.

    Args:
        information: I(x;y), in nats. perplexity: of the mean of q(y|x), between 1 and K.

    Returns `in use`, `uniform` or `one for all`. The line is a convention: look at the number too.
    """
    if in_use(information, K):
        return "in use"
    return "uniform" if perplexity > max(1, K / 2) else "one for all"


def evaluate(model: GMVAE, splits: Splits, experiment: Experiment) -> dict[str, Any]:
    """Every number that a record holds of the test set; nats are means over its images.

    Returns:
        A number for each of these names, or None where there can be none.

        - `test_log_px`: E_q[ln p(x|y, z)], with y the one-hot argmax of q(y|x) and one sample of z:
          the number of Table 1. nats.
        - `test_log_px_z_mean`: the same with z at the mean of q(z|x, y). nats.
        - `test_kl_z`: KL(q(z|x, y)||p(z|y)) at that y, in closed form. nats.
        - `test_kl_y`: KL(q(y|x)||p(y)), in closed form. nats.
        - `test_elbo`: unbiased estimate of eq. 5 from `iw_samples` exact samples (y, z). nats.
        - `test_iw_bound`: the importance-weighted bound on ln p(x) from the same samples (Burda et
          al., 2016): in the mean over draws at most the true value. nats.
        - `iw_samples`: how many samples an image those two took.
        - `test_information`: I(x;y), see `information`, nats; `test_information_share`: over ln K.
        - `test_clusters_used`: labels that get at least one in a thousand images.
        - `test_cluster_perplexity`: exp of the entropy of the mean of q(y|x), between 1 and K.
        - `test_acc`, `test_nmi`, `test_ari`: the argmax labels against the digits, or the
          superclasses of CIFAR-100 (see `cluster_scores`); None for images without labels.
        - `test_named_acc`: the share in the right class when each cluster is named by the one validation image
          that it is surest of, see `named_accuracy`; `clusters_named`: how many clusters have one. Unlike ACC
          it does not punish a K above the number of classes.
        - `test_label_acc`: the share whose argmax label is their class, without any matching; only where
          some classes were told.
    """
    noise, weights = (Generator(splits.test.values.device).manual_seed(
        derived_seed(experiment.seed, use)) for use in ("test", "importance weights"))
    with evaluating(model):
        means, q_y, labels = _sums(model, splits.test, experiment.iw_samples, noise, weights)
    known = information(q_y)
    shares = np.bincount(labels, minlength=model.K) / len(labels)
    scores = (dict.fromkeys(("acc", "nmi", "ari")) if splits.test_groups is None
              else cluster_scores(labels, splits.test_groups.numpy()))
    if experiment.labelled:  # the labels have names
        scores["label_acc"] = float((labels == splits.test_groups.numpy()).mean())
    if splits.validation_groups is not None:
        seen = assign(model, splits.validation)
        told = surest(seen)
        scores["named_acc"] = named_accuracy(seen[told], splits.validation_groups[told], q_y,
                                             splits.test_groups, soft=False)
        means["clusters_named"] = len(told)
    return {**means, "iw_samples": experiment.iw_samples,
            "test_information": known, "test_information_share": known / max(math.log(model.K), 1e-12),
            "test_clusters_used": int((shares >= USED_SHARE).sum()),
            "test_cluster_perplexity": perplexity(q_y),
            **{f"test_{k}": v for k, v in scores.items()}}


def _sums(model: GMVAE, pixels: Pixels, samples: int, noise: Generator,
          weights: Generator) -> tuple[dict[str, float], Tensor, np.ndarray]:
    total: dict[str, float] = {}
    all_q_y, all_labels = [], []
    for start in range(0, len(pixels), EVALUATION_BATCH):
        x = pixels.batch(slice(start, start + EVALUATION_BATCH))
        h = model.encode(x)
        log_q_y = model.log_q_y(h)
        y = log_q_y.argmax(-1)
        from_h = model.q_z_h(h)
        log_px, _ = given_y(model, x, from_h, y, _normal_noise(model, x, noise))
        log_w = torch.stack([importance_weight(model, x, from_h, log_q_y, weights)
                             for _ in range(samples)])
        q_z = model.q_z_given(from_h, y)
        batch = {"test_log_px": log_px, "test_log_px_z_mean": model.log_p_x(x, q_z.mean),
                 "test_kl_z": kl_divergence(q_z, model.p_z(y)).sum(-1),
                 "test_kl_y": categorical_kl(log_q_y, model.log_p_y()),
                 "test_elbo": log_w.mean(0),
                 "test_iw_bound": log_w.logsumexp(0) - math.log(samples)}
        for name, value in batch.items():
            total[name] = total.get(name, 0.0) + float(value.cpu().double().sum())
        all_q_y.append(log_q_y.exp().cpu().double())
        all_labels.append(y.cpu().numpy())
    means = {name: value / len(pixels) for name, value in total.items()}
    return means, torch.cat(all_q_y), np.concatenate(all_labels)


def importance_weight(model: GMVAE, x: Tensor, from_h: Tensor, log_q_y: Tensor,
                      noise: Generator | None = None) -> Tensor:
    """ln p(x, y, z)/q(y, z|x) at one exact sample of (y, z) an image, (B,); its mean is eq. 5."""
    y = gumbel_max(log_q_y, noise)
    log_px, kl_z = given_y(model, x, from_h, y, _normal_noise(model, x, noise))
    return log_px - kl_z + model.log_p_y() - log_q_y.gather(-1, y[:, None])[:, 0]


def _normal_noise(model: GMVAE, x: Tensor, noise: Generator | None) -> Tensor:
    return torch.randn(len(x), model.z_dim, device=x.device, generator=noise)


def cluster_scores(clusters: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Agreement of clusters with classes that the model never saw.

    Args:
        clusters, classes: (N,), whole numbers.

    Returns:
        Three scores, each 1 where clusters and classes agree.

        - `acc`: the share of images in the right class when each cluster is given a class of its
          own in the best way (Kuhn, 1955); clusters beyond the number of classes get none.
        - `nmi`: normalised mutual information, arithmetic mean.
        - `ari`: adjusted Rand index.
    """
    counts = contingency_matrix(classes, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {"acc": float(counts[rows, columns].sum() / len(classes)),
            "nmi": float(normalized_mutual_info_score(classes, clusters)),
            "ari": float(adjusted_rand_score(classes, clusters))}


def surest(q_y: Tensor) -> Tensor:
    """The image that each cluster is surest of, int64, one for each cluster that is the argmax of any; q_y: (N, K)."""
    certainty, cluster = q_y.max(1)
    mine = [(cluster == k).nonzero()[:, 0] for k in cluster.unique()]
    return torch.stack([images[certainty[images].argmax()] for images in mine])


def assign(model: GMVAE, pixels: Pixels) -> Tensor:
    """q(y|x) of every image, (N, K), on the CPU."""
    with evaluating(model):
        return torch.cat([model.log_q_y(model.encode(pixels.batch(
            slice(start, start + EVALUATION_BATCH)))).exp().cpu()
            for start in range(0, len(pixels), EVALUATION_BATCH)])


def named_accuracy(told_q_y: Tensor, told_classes: Tensor, q_y: Tensor, classes: Tensor,
                   soft: bool) -> float:
    """The share of images in the right class when a few images with a known class name the clusters.

    Each told image votes for its class: for the cluster of its argmax, or, if `soft`, with
    q(y|x) as its weight for every cluster. An image gets the class with most votes in its
    cluster; if `soft`, that with the largest sum over y of q(y|x) times its share of the votes
    for y. A tie, or a cluster without a vote, goes to the class told most often.

    Args:
        told_q_y: (n, K), of the images whose class is told, on the CPU as all. told_classes: (n,), int64.
        q_y: (N, K), q(y|x) of the images to be classified. classes: (N,), int64.
    """
    def one_hot(index: Tensor, size: int) -> np.ndarray:
        return np.eye(size)[index.numpy()]

    shares = one_hot(told_classes, int(max(told_classes.max(), classes.max())) + 1)
    weights, q = (p.numpy().astype(float) if soft else one_hot(p.argmax(1), p.shape[1])
                  for p in (told_q_y, q_y))
    votes = weights.T @ shares + 1e-9 * shares.mean(0)
    names = votes / votes.sum(1, keepdims=True)
    return float(((q @ names).argmax(1) == classes.numpy()).mean())
