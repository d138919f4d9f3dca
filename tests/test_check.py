"""`python -m cgmvae check`: it passes here, and each kind of damage is told and exits with 1."""

import re

import pytest
import torch
from helpers import CPU

from cgmvae import check, checkpoints, model
from cgmvae.__main__ import main
from cgmvae.estimators import ESTIMATORS
from cgmvae.experiment import Experiment


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(check, "STEPS", 3)


def lines(part) -> list[check.Line]:
    return list(check._lines(part, CPU))


def test_all_is_right_here(capsys, monkeypatch):
    """Every part but the bare timing, which chapters' machines differ in and nothing judges."""
    monkeypatch.setattr(check, "ROWS", {"mnist": 10})
    assert main(["check", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "WRONG" not in out and out.endswith("All is right.\n")
    for estimator in ESTIMATORS:
        assert re.search(rf"(?m)^ok    {estimator}, 3 steps in float32: expected within", out)
    assert re.search(r"(?m)^ok    marginal, 3 steps in bf16", out)
    assert re.search(r"a step in bf16 takes [\d.]+ ms, in float32 [\d.]+ ms", out)
    assert "no CUDA graph on cpu" in out and "to the last bit" in out and "largest K" in out
    hours = re.search(r"mnist, K=10, concrete: ([\d.]+) ms a step, ([\d.]+) hours", out)
    e = Experiment()
    assert float(hours[2]) == pytest.approx(
        float(hours[1]) * e.steps_per_epoch * 200 / 3.6e6, abs=0.06)


def test_a_wrong_gradient_is_told(monkeypatch, capsys):
    """The forward value is right, the gradient is a thousandth too large."""
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * 1.001

    wide = model._wide
    monkeypatch.setattr(model, "_wide", lambda r: Off.apply(wide(r)) if r.dtype == torch.float32
                        else wide(r))
    for line in lines(check.arithmetic):
        assert not line.ok and "expected within 0.0001 of float64's gradient" in line.text
    monkeypatch.setattr(check, "what_there_is", lambda place: iter(()))
    for part in ("precisions", "graph", "resuming", "memory", "speed"):
        monkeypatch.setattr(check, part, lambda place: iter(()))
    monkeypatch.setattr(check, "_lines", lambda part, place: part(place))
    monkeypatch.setattr(check, "arithmetic", lambda place: iter([line]))
    assert main(["check", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"WRONG {line.text.split(',')[0]}") and "Not all is right" in out


def test_a_loss_that_is_no_number_is_wrong(monkeypatch):
    wide = model._wide
    monkeypatch.setattr(model, "_wide", lambda r: wide(r) * (
        float("nan") if r.dtype == torch.float32 else 1))
    line = check._against_float64("concrete", CPU, "float32", 2)
    assert line.ok is False and "nan" in line.text


def test_a_checkpoint_that_forgets_a_random_state_is_told(monkeypatch):
    restore = checkpoints.restore

    def forgetful(trainer, saved):
        restore(trainer, saved)
        trainer.noise.manual_seed(1)
    monkeypatch.setattr(checkpoints, "restore", forgetful)
    line, = lines(check.resuming)
    assert line.ok is False and "expected to the last bit the same terms, saw" in line.text


def test_too_little_memory_is_told(monkeypatch):
    monkeypatch.setattr(check.devices, "free_memory", lambda device: 2**14)
    assert [line.ok for line in lines(check.memory)] == [None, False, False]


def test_an_error_is_a_line_and_not_an_end(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image\nmore of it")
    monkeypatch.setattr(check, "_trainer", broken)
    line, = lines(check.resuming)
    assert line == check.Line(False, "resuming: expected a result, saw RuntimeError: no kernel image")


def test_the_noise_is_the_same_on_every_device_and_in_every_type():
    drawn = []
    for dtype in (torch.float32, torch.float64):
        with check.SameNoise(3):
            drawn.append(torch.rand(5, dtype=dtype, device=CPU, generator=torch.Generator()))
            drawn.append(torch.randn(5, device=CPU, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(drawn[0].double(), drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert (drawn[0].dtype, drawn[2].dtype) == (torch.float32, torch.float64)


def test_a_device_that_is_none_is_refused(capsys):
    assert main(["check", "--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("cgmvae: device must be one of")
