"""What asks for information: two views of an image get the same label, and every label as many images.

The ELBO never asks for I(x;y), which is the entropy of the labels' mean less the mean of their
entropies (`evaluation.information`). Each view's label is here to predict a target that is made of the
other's, sharpened, so that the second part falls, and balanced over the batch, so that training does not
start towards one label for all. p(y) = 1/K (eq. 2) says the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgmvae.model import GMVAE

SHARPENING = 0.1  # the temperature of the targets
ROUNDS = 5  # of balancing
RECIPE = {"z_dim": 10, "tau": 0.5, "kl_y_form": "categorical", "annealing": "none",
          "spread_logits": True, "views": "digits",
          "learning_rate_schedule": "cosine"}
"""Choices of an Experiment under which its labels become clusters of digits."""


def agreement(log_q_y: Tensor, balanced: bool) -> Tensor:
    """What the labels of two views disagree in: (B,), nats, from ln q(y|x) (2B, K), view after view.

    For an image with targets t_1, t_2 it is -(t_1 . ln q(y|x_2) + t_2 . ln q(y|x_1))/2, and the targets
    are held still, as in Caron et al. (2020).
    """
    first, second = log_q_y.chunk(2)
    target_1, target_2 = targets(log_q_y.detach(), ROUNDS if balanced else 0).chunk(2)
    return -(target_1 * second + target_2 * first).sum(-1) / 2


def targets(log_q_y: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Probabilities (N, K) from ln q(y|x) of N images: sharpened, and balanced by so many of Sinkhorn's rounds
    towards a mean of 1/K over the images (as in Asano et al., 2020). Rows sum to 1.

    A few rounds bring weak opinions near 1/K. Where q(y|x) is sharp they hardly move it.
    """
    log_t = (log_q_y / SHARPENING).log_softmax(1)
    for _ in range(rounds):
        log_t = log_t.log_softmax(0).log_softmax(1)  # each label as many images; each image once
    return log_t.exp()


@torch.no_grad()
def spread_logits(model: GMVAE, x: Tensor) -> None:
    """Scale the last layer of q(y|x) so that over the images x each logit has mean 0 and deviation 1.

    As they are drawn, the weights give all images nearly the same logits, and what asks for
    information finds none to begin with.
    """
    logits, last = model.logits_y(model.encode(x)), model.q_y_layers[-1]
    deviation, mean = torch.std_mean(logits, 0)
    last.weight /= deviation[:, None]
    last.bias.copy_((last.bias - mean) / deviation)
