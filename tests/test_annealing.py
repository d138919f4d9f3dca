"""The weight w_t of each schedule, at steps where its value is known."""

import math

import pytest
import torch

from cgmvae.annealing import SCHEDULES, temperature

AT = [0, 500, 2000, 4000, 10**6]
KNOWN = {
    "ramp": [0, 1 - math.exp(-0.25), 1 - math.exp(-1), 1 - math.exp(-2), 1],
    "printed": [1, math.exp(-0.25), math.exp(-1), math.exp(-2), 0],
    "linear": [0, 0.25, 1, 1, 1],
    "none": [1, 1, 1, 1, 1],
}


def test_every_name_has_a_schedule():
    assert set(SCHEDULES) == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_values_at_known_steps(name):
    steps = None if name == "none" else 2000
    numbers = [float(SCHEDULES[name](t, steps)) for t in AT]
    assert numbers == pytest.approx(KNOWN[name], abs=1e-6)
    tensors = SCHEDULES[name](torch.tensor(AT, dtype=torch.float32), steps)
    assert tensors.tolist() == pytest.approx(KNOWN[name], abs=1e-6)


def test_the_printed_formula_falls_and_the_ramp_rises():
    t = torch.arange(0, 8000, 100.0)
    assert (SCHEDULES["printed"](t, 2000).diff() < 0).all()
    assert (SCHEDULES["ramp"](t, 2000).diff() > 0).all()


@pytest.mark.parametrize("name", ("ramp", "printed", "linear"))
def test_the_time_scale_is_in_steps(name):
    assert SCHEDULES[name](30.0, 100) == pytest.approx(float(SCHEDULES[name](600.0, 2000)))


def test_a_falling_temperature_is_a_straight_line_in_its_logarithm():
    t = torch.arange(0, 401.0)
    tau = temperature(t, 400, 1.6, 0.1)
    assert tau[[0, 100, 200, 400]].tolist() == pytest.approx([1.6, 0.8, 0.4, 0.1])
    assert temperature(torch.tensor(500.0), 400, 1.6, 0.1) == pytest.approx(0.1)  # not below
