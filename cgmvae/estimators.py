"""The estimators of the ELBO by name, and the experiment's as a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from cgmvae import discrete
from cgmvae.agreement import agreement
from cgmvae.model import SUPPORT, GMVAE
from cgmvae.objectives import KL_Y_FORMS, Terms, concrete, factored, labelled, marginal, sparse_marginal

if TYPE_CHECKING:
    from cgmvae.experiment import Experiment


@dataclass(frozen=True)
class Estimator:
    """One estimator of the ELBO, and all that depends on which it is."""

    terms: Callable[..., Terms]  # (model, x, h, experiment, generator) to the terms
    colour: str  # in every figure, together with the marker told apart by every colour vision
    marker: str
    tau: float | None = None  # the temperature that it has by default, if its label is relaxed in a pass
    kl_y_forms: tuple[str, ...] = ()  # if more than the closed form can be meant
    passes: Callable[[int], int] = lambda K: 1  # K to passes through the decoder, a step
    noises: int = 1  # numbers a label that are drawn for an image
    unbiased: bool = False  # its gradient is that of eq. 5 in the mean
    posterior: str = "joint"  # of the model that it trains, see `GMVAE`

    def __call__(self, model: GMVAE, x: Tensor, experiment: Experiment, generator: Generator | None = None,
                 h: Tensor | None = None, **more: Tensor) -> Terms:
        """The terms of x; `h`, if it is given, is its encoding, which then is not made again."""
        return self.terms(model, x, model.encode(x) if h is None else h, experiment, generator, **more)

    @property
    def relaxed(self) -> bool:
        """Whether the networks get the label as weights, and not looked up."""
        return self.tau is not None


ESTIMATORS = {
    "concrete": Estimator(concrete, "#0072B2", "o", tau=0.3, kl_y_forms=KL_Y_FORMS),
    "marginal": Estimator(marginal, "#D55E00", "s", passes=lambda K: K, unbiased=True),
    "straight_through": Estimator(discrete.straight_through, "#009E73", "^", tau=0.3),
    "score_function": Estimator(discrete.score_function, "#CC79A7", "D", unbiased=True),
    "factored": Estimator(factored, "#E69F00", "v", unbiased=True, posterior="factored"),
    "collapsed": Estimator(factored, "#56B4E9", "P", unbiased=True, posterior="collapsed"),
    **{f"leave_one_out_{draws}": Estimator(
        partial(discrete.leave_one_out, draws=draws), colour, marker, passes=lambda K, draws=draws: draws,
        noises=draws, unbiased=True) for draws, colour, marker in ((2, "#882255", "<"), (4, "#332288", ">"))},
    "sum_and_sample": Estimator(discrete.sum_and_sample, "#000000", "*", passes=lambda K: 2, unbiased=True),
    "rao_blackwell": Estimator(discrete.rao_blackwell, "#117733", "h", tau=0.3, noises=discrete.NOISES),
    "reinmax": Estimator(discrete.reinmax, "#999933", "X", tau=1.0),
    "reinmax_rao": Estimator(discrete.reinmax_rao, "#44AA99", "d", tau=1.0, noises=discrete.NOISES),
    "sparse_marginal": Estimator(sparse_marginal, "#661100", "p", passes=lambda K: min(K, SUPPORT), unbiased=True,
                                 posterior="sparse")}
"""By name: the paper's two, those that it argues against, one pass with an exact sum (chapter 10), and what
has been found since (chapter 11). An estimator that is put in here can be trained with at once."""


class Estimate(nn.Module):
    """The experiment's estimator as a module: x, and a second view of it if there is one, to the terms.

    With a second view there is the term `agreement`, (B,), which is no part of the ELBO. `told` are images
    whose label is known, (x, y) or (x, y, view): their loss is the term `labelled`. `tau` is the
    temperature of this step where it falls. torch's distributed data parallel asks for a module.
    """

    def __init__(self, model: GMVAE, experiment: Experiment, generator: Generator | None = None) -> None:
        super().__init__()
        self.model, self.experiment, self.generator = model, experiment, generator

    def forward(self, x: Tensor, view: Tensor | None = None, told: tuple[Tensor, ...] = (),
                tau: Tensor | None = None) -> Terms:
        e, estimator = self.experiment, ESTIMATORS[self.experiment.estimator]
        if tau is not None:
            estimator = partial(estimator, tau=tau)
        if view is None:
            terms = estimator(self.model, x, e, self.generator)
        else:
            h = self.model.encode(torch.cat([x, view]))
            terms = estimator(self.model, x, e, self.generator, h[:len(x)])
            terms |= {"agreement": agreement(self.model.log_q_y(h), e.balanced)}
        if told:
            terms["labelled"] = labelled(self.model, *told[:2], e, self.generator, *told[2:])
        return terms
