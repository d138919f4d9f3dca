"""The same model in Pyro, as its documentation teaches it: the peer that the benchmark times.

`marginal` is `TraceEnum_ELBO` with y enumerated in parallel; `concrete` is `Trace_ELBO` with
`RelaxedOneHotCategorical` in the guide and the model.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from plain import PlainGMVAE
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from torch import Tensor


class PyroGMVAE(PlainGMVAE):
    """The plain networks, with y one-hot or relaxed (..., B, K) and z (..., B, D)."""

    def parameters_of(self, layers: torch.nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(*(i.shape[:-1] for i in inputs))
        flat = torch.cat([i.expand(*shape, i.shape[-1]) for i in inputs], -1)
        mean, log_var = layers(flat.reshape(-1, flat.shape[-1])).chunk(2, -1)
        return mean.reshape(*shape, -1), (log_var / 2).exp().reshape(*shape, -1)

    def decode(self, z: Tensor) -> Tensor:
        image = self.p_x(z.reshape(-1, z.shape[-1]))
        return image.reshape(*z.shape[:-1], *image.shape[1:])


def svi(model: PyroGMVAE, estimator: str, tau: float = 0.3) -> SVI:
    """What makes one step: `svi(...).step(x)`."""
    uniform = torch.ones(model.K) / model.K

    def label(probabilities: Tensor):
        if estimator == "marginal":
            return dist.OneHotCategorical(probabilities, validate_args=False)
        return dist.RelaxedOneHotCategorical(torch.tensor(tau), probabilities, validate_args=False)

    def generative(x: Tensor) -> None:
        pyro.module("model", model)
        with pyro.plate("images", len(x)):
            y = pyro.sample("y", label(uniform.expand(len(x), -1)))
            z = pyro.sample("z", dist.Normal(*model.parameters_of(model.p_z, y)).to_event(1))
            pixels = dist.Bernoulli(logits=model.decode(z), validate_args=False)
            pyro.sample("x", pixels.to_event(3), obs=x)

    def inference(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            h = model.encoder(x)
            y = pyro.sample("y", label(torch.softmax(model.q_y(h), -1)))
            pyro.sample("z", dist.Normal(*model.parameters_of(model.q_z, h, y)).to_event(1))

    if estimator == "marginal":
        return SVI(generative, config_enumerate(inference), Adam({"lr": 1e-3}),
                   TraceEnum_ELBO(max_plate_nesting=1))
    return SVI(generative, inference, Adam({"lr": 1e-3}), Trace_ELBO())
