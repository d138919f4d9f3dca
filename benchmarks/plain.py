"""The paper's model as a competent person first writes it in PyTorch.

Channels first, float32, `nn.ConvTranspose2d`, a Python loop over the labels, Adam as it comes. It
shares no code with `cgmvae`: the benchmark times it beside the package, and the tests hold the
package's losses and gradients to it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal


class PlainGMVAE(nn.Module):
    def __init__(self, image_shape: tuple[int, int, int], K: int, D: int = 64) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.K, self.map_shape = K, (40, height // 4, width // 4)
        flat = math.prod(self.map_shape)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(20, 40, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(flat, 512), nn.ReLU())
        self.q_y = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
                                 nn.Linear(256, K))
        self.q_z = nn.Sequential(nn.Linear(512 + K, 512), nn.ReLU(), nn.Linear(512, 256),
                                 nn.ReLU(), nn.Linear(256, 2 * D))
        self.p_z = nn.Linear(K, 2 * D)
        self.p_x = nn.Sequential(
            nn.Linear(D, flat), nn.ReLU(), nn.Unflatten(1, self.map_shape),
            nn.ConvTranspose2d(40, 20, 5, stride=2, padding=2, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(20, channels, 5, stride=2, padding=2, output_padding=1))

    def given_y(self, x: Tensor, h: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        q_mean, q_log_var = self.q_z(torch.cat([h, y], 1)).chunk(2, 1)
        p_mean, p_log_var = self.p_z(y).chunk(2, 1)
        q_z, p_z = Normal(q_mean, (q_log_var / 2).exp()), Normal(p_mean, (p_log_var / 2).exp())
        z = q_z.mean + q_z.stddev * noise
        log_px = -F.binary_cross_entropy_with_logits(self.p_x(z), x, reduction="none").sum((1, 2, 3))
        return log_px, (q_z.log_prob(z) - p_z.log_prob(z)).sum(1)


def plain_marginal(model: PlainGMVAE, x: Tensor, noise: Tensor) -> Tensor:
    """Negative mean ELBO by eq. 6; noise (K, B, D)."""
    h = model.encoder(x)
    log_q_y = F.log_softmax(model.q_y(h), 1)
    total = 0.0
    for k in range(model.K):
        y = F.one_hot(torch.full((len(x),), k), model.K).to(h.dtype)
        log_px, kl_z = model.given_y(x, h, y, noise[k])
        total = total + log_q_y[:, k].exp() * (log_px - kl_z - log_q_y[:, k] - math.log(model.K))
    return -total.mean()


def plain_concrete(model: PlainGMVAE, x: Tensor, noise: Tensor, uniform: Tensor,
                   tau: float = 0.3) -> Tensor:
    """Negative mean ELBO by eq. 7 with the closed-form KL; noise (B, D), uniform (B, K)."""
    h = model.encoder(x)
    log_q_y = F.log_softmax(model.q_y(h), 1)
    y = F.softmax((log_q_y - torch.log(-torch.log(uniform))) / tau, 1)
    log_px, kl_z = model.given_y(x, h, y, noise)
    kl_y = (log_q_y.exp() * (log_q_y + math.log(model.K))).sum(1)
    return -(log_px - kl_z - kl_y).mean()
