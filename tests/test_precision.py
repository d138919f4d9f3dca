"""Speed may not move results: bfloat16 products against float32, over whole runs."""

import os
import statistics
import subprocess
import sys

import helpers
import pytest
import torch

from cgmvae import data, devices, evaluation, training
from cgmvae.devices import find_precision
from cgmvae.experiment import ExperimentError


def final_values(estimator: str, precision: str) -> list[float]:
    """Test E[ln p(x|y, z)] after a short run on real digits, one a seed."""
    values = []
    for seed in range(3):
        e = helpers.small(estimator=estimator, seed=seed, train_limit=300, batch_size=20, epochs=3)
        trainer = helpers.trainer(e, precision=precision)
        for _ in trainer.run():
            pass
        splits = data.split(e, data.load(e.dataset), helpers.CPU)
        values.append(evaluation.evaluate(trainer.model, splits, e)["test_log_px"])
    return values


@pytest.mark.skipif(not devices.fast_bf16(helpers.CPU), reason="this processor has no bfloat16 of its own "
                    "and takes minutes over it; test_check compares single steps")
@pytest.mark.parametrize("estimator", ["concrete", "marginal"])
def test_bf16_moves_the_final_test_value_by_less_than_another_seed_does(estimator):
    reference = final_values(estimator, "float32")
    fast = final_values(estimator, "bf16")
    assert fast != reference  # it is another arithmetic
    moved = abs(statistics.mean(fast) - statistics.mean(reference))
    assert moved < max(2 * statistics.stdev(reference), 1.0)


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(ExperimentError, match="precision must be 'float32' or 'bf16' on cpu.*'tf32'"):
        find_precision("tf32", helpers.CPU)


FLUSHES = torch.set_flush_denormal(True)  # as every trainer does


@pytest.mark.skipif(not FLUSHES, reason="this CPU cannot flush denormal numbers to zero")
def test_denormal_numbers_are_zero_in_every_thread_once_a_run_starts():
    """Also in the threads that torch had started before; until then nothing is changed."""
    code = ("import sklearn, torch\nfrom cgmvae import devices\n"
            "def left(): return int((torch.full((4_000_000,), 1e-30) * 1e-10 != 0).sum())\n"
            "print(left())\ndevices.prepare(torch.device('cpu'), 'float32')\n"
            "print(torch.get_num_threads(), left())")
    done = subprocess.run([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.stdout.split() == ["4000000", "2", "0"]


@pytest.mark.skipif(not FLUSHES, reason="this CPU cannot flush denormal numbers to zero")
def test_flushing_moves_neither_loss_nor_gradient_of_a_certain_model():
    """q(y|x) is one label to within 1e-39: the other labels' gradients are denormal."""
    def loss_and_gradient(flush):
        trainer = helpers.trainer(helpers.small(estimator="marginal"))
        torch.set_flush_denormal(flush)  # after the trainer, which sets it
        with torch.no_grad():
            trainer.model.q_y_layers[-1].bias[0] += 90
            x = trainer.splits.train.batch(slice(0, 10))
            q_y = trainer.model.log_q_y(trainer.model.encode(x)).exp()
        trainer.step()
        gradients = [p.grad.flatten() for p in trainer.model.parameters()]
        return trainer.terms[0, 0].item(), torch.cat(gradients), q_y

    try:
        loss, gradient, q_y = loss_and_gradient(False)
        assert ((q_y > 0).double() * (q_y.double() < torch.finfo(torch.float32).tiny)).any()
    finally:
        flushed_loss, flushed, q_y = loss_and_gradient(True)
    assert ((q_y == 0) | (q_y > 0.5)).all()
    assert flushed_loss == pytest.approx(loss, rel=1e-6)
    assert (flushed - gradient).norm() < 1e-6 * gradient.norm()
