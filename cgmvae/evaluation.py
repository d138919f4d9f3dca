"""What a finished model is worth on the test images: likelihood terms and cluster scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Generator, Tensor
from torch.distributions import kl_divergence

from cgmvae.data import Pixels, Splits
from cgmvae.experiment import Experiment
from cgmvae.model import GMVAE
from cgmvae.objectives import categorical_kl, given_y
from cgmvae.relaxation import gumbel_max
from cgmvae.training import EVALUATION_BATCH, derived_seed

IN_USE = 0.001
"""A cluster counts as in use if it gets at least this share of the test images."""


def evaluate(model: GMVAE, splits: Splits, experiment: Experiment) -> dict[str, Any]:
    """Every number that a record holds of the test set; nats are means over its images.

    Returns:
        A number for each of these names.

        - `test_log_px`: E_q[ln p(x|y, z)], with y the one-hot argmax of q(y|x) and one sample of z:
          the number of Table 1. nats.
        - `test_kl_z`: KL(q(z|x, y)||p(z|y)) at that y, in closed form. nats.
        - `test_kl_y`: KL(q(y|x)||p(y)), in closed form. nats.
        - `test_elbo`: unbiased estimate of eq. 5 from `iw_samples` exact samples (y, z). nats.
        - `test_iw_bound`: the importance-weighted bound on ln p(x) from the same samples (Burda et
          al., 2016), which the true value exceeds. nats.
        - `iw_samples`: how many samples an image those two took.
        - `test_clusters_used`: labels that get at least one in a thousand images.
        - `test_cluster_perplexity`: exp of the entropy of the mean of q(y|x), between 1 and K.
        - `test_acc`, `test_nmi`, `test_ari`: the argmax labels against the digits, or the
          superclasses of CIFAR-100 (see `cluster_scores`).
    """
    was_training = model.training
    model.eval()
    noise, weights = (Generator(splits.test.values.device).manual_seed(
        derived_seed(experiment.seed, use)) for use in ("test", "importance weights"))
    means, q_y, labels = _sums(model, splits.test, experiment.iw_samples, noise, weights)
    model.train(was_training)
    q_y = q_y.mean(0)
    shares = np.bincount(labels, minlength=model.K) / len(labels)
    return {**means, "iw_samples": experiment.iw_samples,
            "test_clusters_used": int((shares >= IN_USE).sum()),
            "test_cluster_perplexity": float(torch.exp(-torch.xlogy(q_y, q_y).sum())),
            **{f"test_{k}": v for k, v in
               cluster_scores(labels, splits.test_groups.numpy()).items()}}


@torch.no_grad()
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
        batch = {"test_log_px": log_px,
                 "test_kl_z": kl_divergence(model.q_z_given(from_h, y), model.p_z(y)).sum(-1),
                 "test_kl_y": categorical_kl(log_q_y, model.log_p_y()),
                 "test_elbo": log_w.mean(0),
                 "test_iw_bound": log_w.logsumexp(0) - math.log(samples)}
        for name, value in batch.items():
            total[name] = total.get(name, 0.0) + float(value.double().sum())
        all_q_y.append(log_q_y.exp().double().cpu())
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


def assign(model: GMVAE, pixels: Pixels) -> Tensor:
    """q(y|x) of every image, (N, K), on the CPU."""
    with torch.no_grad():
        return torch.cat([model.log_q_y(model.encode(pixels.batch(
            slice(start, start + EVALUATION_BATCH)))).exp().cpu()
            for start in range(0, len(pixels), EVALUATION_BATCH)])
