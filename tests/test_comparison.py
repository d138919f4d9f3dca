"""Table 1 from records: which runs count, the equivalence test, the ratio's interval."""

import numpy as np
import pytest
from scipy import stats

from cgmvae import comparison
from cgmvae.experiment import preset


def record(seed: int, log_px: float = -50.0, at_once: int = 1, processor: float | None = None,
           **changes) -> dict:
    row = comparison.ROWS[changes.pop("estimator", "literal")]
    e = preset("paper", **{"dataset": "mnist", "seed": seed, **row, **changes})
    seconds = {"training": 100.0} | ({} if processor is None else {"processor": processor})
    return {"id": e.id, "experiment": e.as_dict(), "seconds": seconds, "progress": {"epochs": 20},
            "metrics": {"test_log_px": log_px, "test_information": 0.5, "test_acc": 0.25,
                        "test_elbo": -80.0},
            "environment": {"runs_at_once": at_once, "device": "cpu", "threads": 1, "precision": "float32"}}


def test_the_papers_numbers_are_those_of_its_table_1():
    printed = {key: (p.log_px, p.log_px_sd, p.hours, p.hours_sd, p.n) for key, p in comparison.PAPER.items()}
    assert printed == {("mnist", "marginal"): (-46.61, 0.79, 15.73, 4.16, 11),
                       ("mnist", "concrete"): (-46.96, 0.81, 3.55, 0.69, 11),
                       ("cifar100", "marginal"): (-1725.47, 2.20, 47.24, 8.34, 11),
                       ("cifar100", "concrete"): (-1725.87, 2.12, 5.73, 0.84, 11)}


CLOSED = {"annealing": "none", "kl_y_form": "categorical"}


def test_a_cell_holds_only_runs_that_are_its_scales_in_every_field_but_the_seed():
    runs = [record(0), record(1), record(2, tau=0.5), record(3, z_dim=10), record(100),
            record(4, estimator="marginal"), record(5, train_limit=20_000, epochs=20),
            record(6, **CLOSED), record(7, epochs=50), record(0, decoder_units=512)]
    cells = comparison.cells(runs, "paper")
    assert [r["id"] for r in cells["mnist", "literal"].records] == [runs[0]["id"], runs[1]["id"]]
    assert [r["id"] for r in cells["mnist", "marginal"].records] == [runs[5]["id"]]
    assert [r["id"] for r in cells["mnist", "closed"].records] == [runs[7]["id"]]
    assert cells["cifar100", "literal"].n == 0
    assert comparison.cells(runs, "small")["mnist", "literal"].records == (runs[6],)
    assert comparison.cells(runs, "half")["mnist", "literal"].records == (runs[8],)
    assert comparison.cells(runs, "paper", decoder_units=512)["mnist", "literal"].records == (runs[9],)


@pytest.mark.parametrize(("changes", "alone"), [
    ({}, True), ({"at_once": 8}, False), ({"processor": 99.0}, True), ({"processor": 60.0}, False)])
def test_seconds_of_a_run_that_shared_its_device_do_not_count(changes, alone):
    cell = comparison.cells([record(0, **changes)], "paper")["mnist", "literal"]
    assert cell.alone.tolist() == [alone]
    assert cell.seconds[0] == 100.0 if alone else np.isnan(cell.seconds[0])
    if "processor" in changes:
        assert cell.core_hours[0] == changes["processor"] / 3600


def test_the_clock_of_the_process_is_no_time_of_a_run_on_a_gpu():
    """There it only starts kernels."""
    run = record(0, at_once=8, processor=60.0)
    run["environment"]["device"] = "cuda"
    cell = comparison.cells([run], "paper")["mnist", "literal"]
    assert np.isnan(cell.core_hours).all() and np.isnan(cell.seconds).all()


def test_the_table_has_a_row_for_each_cell_that_has_runs_and_says_what_is_lacking():
    cells = comparison.cells([record(0, -50.0), record(1, -52.0)], "paper")
    table = comparison.table(cells)
    assert list(table.index) == [("mnist", "literal")]
    assert table.loc[("mnist", "literal"), "ours (nats)"] == "-51.00\u00a0±\u00a01.41"
    assert table.loc[("mnist", "literal"), "n"] == 2
    assert table.loc[("mnist", "literal"), "away (sd)"] == f"{(-51 + 46.96) / 0.81:+.1f}"
    others = table.loc[("mnist", "literal"), ["I(x;y) (nats)", "ACC", "ELBO (nats)"]]
    assert [value.partition("\u00a0")[0] for value in others] == ["0.50", "0.25", "-80.00"]
    wanted = {"literal": 5, "closed": 5, "marginal": 3}
    missing = comparison.lacking(cells, wanted)
    assert missing["mnist", "literal"] == 3 and missing["cifar100", "marginal"] == 3
    assert sum(missing.values()) == 26 - 2
    assert comparison.table(comparison.cells([], "paper")).empty


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "equivalent"), (5.0, "different"),
                                                (-5.0, "different"), (0.8, "undecided")])
def test_there_are_three_verdicts(shift, verdict):
    values = np.array([-0.3, -0.1, 0.0, 0.1, 0.3])
    assert comparison.equivalence(values + shift, values, 0.8)["verdict"] == verdict


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


def test_the_interval_of_an_equivalence_is_welchs_of_ninety_percent():
    a, b = np.array([1.0, 1.2, 1.5, 1.1]), np.array([0.2, 0.1, 0.6])
    test = comparison.equivalence(a, b, 0.8)
    of_a, of_b = a.var(ddof=1) / 4, b.var(ddof=1) / 3
    freedom = (of_a + of_b) ** 2 / (of_a**2 / 3 + of_b**2 / 2)
    half, middle = stats.t.ppf(0.95, freedom) * np.sqrt(of_a + of_b), a.mean() - b.mean()
    assert [test["low"], test["high"]] == pytest.approx([middle - half, middle + half])


def test_a_run_had_its_cores_if_each_of_its_threads_had_one():
    record = {"environment": {"device": "cpu", "threads": 2}, "seconds": {"training": 100.0, "processor": 150.0}}
    assert not comparison.had_its_device(record)
    record["seconds"]["processor"] = 196.0
    assert comparison.had_its_device(record)


@pytest.mark.parametrize(("a", "margin"), [([1.0], 1.0), ([1.0, 2.0], 0.0)])
def test_equivalence_refuses_what_it_cannot_answer(a, margin):
    with pytest.raises(ValueError, match="two values a side and a margin above 0"):
        comparison.equivalence(np.array(a), np.array([1.0, 2.0]), margin)


@pytest.mark.parametrize("n", [(11, 11), (3, 5)])
def test_the_ratio_interval_covers_the_truth_about_as_often_as_it_says(n):
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(2000):
        low, middle, high = comparison.ratio_interval(rng.normal(40, 4, n[0]), rng.normal(10, 1, n[1]))
        assert low < middle < high
        hits += low < 4 < high
    assert 0.935 < hits / 2000 < 0.985


def test_the_ratio_of_single_runs_has_no_interval_and_that_of_equal_ones_no_width():
    low, ratio, high = comparison.ratio_interval(np.array([8.0]), np.array([2.0, 2.0]))
    assert ratio == 4 and np.isnan([low, high]).all()
    assert comparison.ratio_interval(np.full(3, 50.0), np.full(5, 50.0)) == (1, 1, 1)
