"""The count of operations against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cgmvae import objectives
from cgmvae.costs import count
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment
from cgmvae.model import GMVAE


@pytest.mark.parametrize("dataset", ["mnist", "cifar100"])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("estimator", "K"), [("concrete", 10), ("concrete", 300), ("marginal", 7),
                                                ("factored", 10), ("factored", 1000), ("collapsed", 1000)])
def test_the_count_is_what_torch_counts_but_for_the_sub_pixel_zeros(dataset, padding, estimator, K):
    """The sub-pixel form multiplies by the zeros of a 6x6 filter: 36 taps where 25 are counted."""
    e = Experiment(dataset=dataset, estimator=estimator, K=K, padding=padding, kl_y_form="categorical")
    model, x = GMVAE(e), torch.rand(4, *e.image_shape).round()
    with FlopCounterMode(display=False) as counter:
        (-objectives.elbo(ESTIMATORS[estimator](model, x, e)).mean()).backward()
    measured = counter.get_total_flops() / len(x)
    c, (h, w) = count(e), model.decoder.map_shape[1:]
    out = (2 * h, 2 * w) if padding == "same" else (2 * h + 4, 2 * w + 4)
    taps1 = out[0] * out[1] / 4 * 36 - h * w * 25  # the sub-pixel form covers every output pixel
    final = e.image_shape[1] * e.image_shape[2]
    taps2 = final / 4 * 36 - out[0] * out[1] * 25
    zeros = 2 * 3 * (taps1 * 40 * 20 + taps2 * 20 * e.image_shape[0]) * (K if estimator == "marginal" else 1)
    assert measured == pytest.approx(c.step + zeros, rel=0.001)


def test_only_the_marginal_grows_with_K_by_whole_labels():
    small, large = (count(Experiment(estimator="marginal", K=K)) for K in (10, 20))
    assert large.step - small.step == pytest.approx(
        10 * small.per_label + 10 * 2 * 3 * 256, rel=1e-6)
    a, b = (count(Experiment(K=K)).step for K in (10, 1000))
    assert 1.0 < b / a < 1.2


@pytest.mark.parametrize("estimator", ["concrete", "straight_through", "factored", "collapsed"])
def test_in_one_pass_what_grows_with_K_is_what_is_said_to_be_of_its_size(estimator):
    small, large = (count(Experiment(estimator=estimator, K=K)) for K in (10, 1000))
    assert large.step - small.step == pytest.approx(large.K_sized - small.K_sized)
    assert large.K_sized == pytest.approx(100 * small.K_sized)
