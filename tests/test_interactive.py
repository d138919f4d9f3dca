"""The figures that a reader moves: small, offline, and their numbers are the package's."""

import json
import re

import pytest
import torch

from cgmvae import annealing, costs, interactive
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import preset

MOVING = {0.5: {"concrete": (1.0, 2.0), "reinmax": (2.0, 0.5)}, 0.1: {"concrete": (4.0, 0.0), "reinmax": (2.0, 0.5)}}
STILL = {"marginal": (1.0, 0.0)}


def bias_and_noise():
    return interactive.bias_and_noise(MOVING, STILL)


PAGES = {"bias": bias_and_noise, "cloud": interactive.simplex_cloud, "schedules": interactive.schedules,
         "cost": interactive.cost_calculator}


def values(page: str) -> dict:
    """The numbers that a page's script works with."""
    return json.loads(re.search(r"v = (\{.*\});\n", page).group(1))


@pytest.mark.parametrize("name", PAGES)
def test_a_widget_is_small_offline_and_has_labelled_controls(name):
    page = PAGES[name]()
    assert len(page.encode()) < 300_000
    outside = set(re.findall(r"https?://[^\"' ]+", page)) - {"http://www.w3.org/2000/svg"}
    assert not outside and "<noscript>" in page
    assert re.search(r"<label>.*?<(input|select)", page, re.S)


def test_two_widgets_on_a_page_do_not_share_a_name():
    names = [re.search(r'id="([^"]+)"', interactive.cost_calculator()).group(1) for _ in range(2)]
    assert names[0] != names[1]


@pytest.mark.parametrize("dataset", ["mnist", "cifar100"])
@pytest.mark.parametrize("estimator", ["concrete", "marginal"])
def test_the_calculators_lines_are_the_packages_count_at_every_K(dataset, estimator):
    a, b = values(interactive.cost_calculator())[dataset][estimator]
    for K in (1, 7, 10, 20, 1000, 12_345):
        e = preset("paper", dataset=dataset, estimator=estimator, K=K)
        assert a + b * K == pytest.approx(costs.count(e).step, rel=1e-9)


def test_the_schedules_weights_and_arrivals_are_the_packages():
    v = values(interactive.schedules())
    for s, scale in enumerate(v["scales"]):
        for n, name in enumerate(v["names"]):
            w = annealing.SCHEDULES[name](torch.tensor(v["t"]), scale)
            assert torch.allclose(torch.tensor(v["w"][s][n]), w, atol=1e-4)
    assert interactive.arrival("linear", 2000) == 1980
    assert interactive.arrival("none", 2000) == 0
    assert interactive.arrival("ramp", 2000) == 9211  # 2000 ln 100, rounded up
    assert interactive.arrival("ramp", 20_000) is None


def test_the_cloud_is_of_concrete_samples():
    v = values(interactive.simplex_cloud((0.2, 0.3, 0.5), n=4000))
    cold = torch.tensor(v["frames"][0])  # tau = 0.05: nearly all in a corner
    shares = [float(((cold - torch.tensor(c)).norm(dim=1) < 0.3).float().mean())
              for c in ((0.0, 0.0), (1.0, 0.0), (0.5, 0.866))]
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.04)
    hot = torch.tensor(v["frames"][-1])
    assert hot.std(0).max() < cold.std(0).min()


def test_points_move_by_temperature_from_left_to_right_and_up():
    page = bias_and_noise()
    v = values(page)
    assert v["tau"] == [0.1, 0.5]
    cold, warm = v["frames"]
    assert cold[0] == [400, 200] and cold[1] == warm[1] == [200, pytest.approx(200 - 200 * 0.5 / 2.1, abs=0.1)]
    assert warm[0] == [0, pytest.approx(200 - 200 / 1.05, abs=0.1)]
    assert 'translate(0.0 200.0)' in page


def test_each_estimator_has_its_own_mark_in_the_plot_and_beside_its_name():
    marks = re.findall(r'<path[^>]* d="([^"]*)" fill="([^"]*)"[^>]*><title>(.*?)</title>', bias_and_noise())
    assert sorted(name for *_, name in marks) == 2 * ["concrete"] + 2 * ["marginal"] + 2 * ["reinmax"]
    assert len(set(marks)) == 3 == len({shape for shape, *_ in marks})
    assert all(colour == ESTIMATORS[name].colour for _, colour, name in marks)
