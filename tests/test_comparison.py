"""Table 1 from records: which runs count, the equivalence test, the ratio's interval."""

import numpy as np
import pytest
from scipy import stats

from cgmvae import comparison
from cgmvae.experiment import preset


def record(seed: int, log_px: float = -50.0, at_once: int = 1, **changes) -> dict:
    e = preset("paper", **{"dataset": "mnist", "estimator": "concrete", "seed": seed, **changes})
    return {"id": e.id, "experiment": e.as_dict(), "metrics": {"test_log_px": log_px},
            "seconds": {"training": 100.0 + seed}, "progress": {"epochs": 20},
            "environment": {"runs_at_once": at_once}}


def test_a_cell_holds_only_runs_that_are_the_papers_in_every_field_but_the_seed():
    runs = [record(0), record(1), record(2, tau=0.5), record(3, z_dim=10), record(100),
            record(4, estimator="marginal"), record(5, train_limit=20_000, epochs=20)]
    cells = comparison.cells(runs, "paper")
    assert cells["mnist", "concrete"].ids == (runs[0]["id"], runs[1]["id"])
    assert cells["mnist", "marginal"].ids == (runs[5]["id"],)
    assert cells["cifar100", "concrete"].n == 0
    assert comparison.cells(runs, "small")["mnist", "concrete"].ids == (runs[6]["id"],)


def test_seconds_of_runs_that_shared_the_device_do_not_count():
    cell = comparison.cells([record(0), record(1, at_once=8)], "paper")["mnist", "concrete"]
    assert cell.seconds[0] == 100.0 and np.isnan(cell.seconds[1])
    assert comparison.table({("mnist", "concrete"): cell})["ours (hours)"].item() == "0.028"


def test_the_table_says_how_many_runs_it_has_and_where_it_has_none():
    cells = comparison.cells([record(0, -50.0), record(1, -52.0)], "paper")
    table = comparison.table(cells)
    assert table.loc[("mnist", "concrete"), "ours (nats)"] == "-51.00 ± 1.41"
    assert table.loc[("mnist", "concrete"), "n"] == 2
    assert table.loc[("cifar100", "marginal"), "ours (nats)"] == "no run yet"
    assert table.loc[("cifar100", "marginal"), "paper (nats)"] == "-1725.47 ± 2.20"


def test_equivalence_agrees_with_its_interval_and_with_a_hand_computation():
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.4, 1.5):
        a, b = rng.normal(shift, 0.5, 11), rng.normal(0, 0.5, 11)
        test = comparison.equivalence(a, b, 0.8)
        inside = -0.8 < test["low"] and test["high"] < 0.8
        assert (test["p"] < 0.05) == inside
        va, vb = a.var(ddof=1) / 11, b.var(ddof=1) / 11
        df = (va + vb) ** 2 / (va**2 / 10 + vb**2 / 10)
        t = (0.8 - abs(a.mean() - b.mean())) / np.sqrt(va + vb)
        assert test["p"] == pytest.approx(stats.t.sf(t, df))


@pytest.mark.parametrize(("a", "margin"), [([1.0], 1.0), ([1.0, 2.0], 0.0)])
def test_equivalence_refuses_what_it_cannot_answer(a, margin):
    with pytest.raises(ValueError, match="two values a side and a margin above 0"):
        comparison.equivalence(np.array(a), np.array([1.0, 2.0]), margin)


def test_the_ratio_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        low, middle, high = comparison.ratio_interval(rng.normal(40, 4, 11), rng.normal(10, 1, 11),
                                                      samples=400, seed=trial)
        assert low < middle < high
        hits += low < 4 < high
    assert 0.85 < hits / 200 < 0.99
