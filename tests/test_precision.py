"""Speed may not move results: bfloat16 products against float32, over whole runs."""

import statistics

import helpers
import pytest

from cgmvae import data, evaluation, training
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
