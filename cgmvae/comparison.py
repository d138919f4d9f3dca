"""Ours beside the paper's: Table 1 from records, equivalence, ratios with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cgmvae.experiment import DATASETS, preset
from cgmvae.records import Record


@dataclass(frozen=True)
class Printed:
    """One cell of the paper's Table 1: mean and standard deviation over 11 runs."""

    log_px: float  # nats
    log_px_sd: float
    hours: float
    hours_sd: float
    n: int = 11


PAPER = {("mnist", "marginal"): Printed(-46.61, 0.79, 15.73, 4.16),
         ("mnist", "concrete"): Printed(-46.96, 0.81, 3.55, 0.69),
         ("cifar100", "marginal"): Printed(-1725.47, 2.20, 47.24, 8.34),
         ("cifar100", "concrete"): Printed(-1725.87, 2.12, 5.73, 0.84)}
"""Table 1 of Collier & Urdiales (2019), by data set and estimator."""

MARGIN = {dataset: PAPER[dataset, "marginal"].log_px_sd for dataset in ("mnist", "cifar100")}
"""Margin of equivalence in nats: the paper's own spread between runs of one method."""


SEEDS = range(11)
"""The seeds of Table 1; runs of other seeds are not mixed in."""


@dataclass(frozen=True)
class Cell:
    """The finished runs of one cell: a data set, an estimator, a scale."""

    dataset: str
    estimator: str
    log_px: np.ndarray  # (n,) nats
    seconds: np.ndarray  # (n,) training, in seconds
    epochs: np.ndarray  # (n,) until the run stopped
    ids: tuple[str, ...]

    @property
    def n(self) -> int:
        """How many runs there are."""
        return len(self.log_px)


def cells(records: list[Record], scale: str) -> dict[tuple[str, str], Cell]:
    """The runs of Table 1's four cells at a scale, `paper` or `small`, all else at its default.

    Runs that shared a device with others are left out of `seconds` (NaN): sharing slows each down.
    """
    found = {}
    for dataset, estimator in PAPER:
        mine = sorted((r for r in records if is_cell(r, dataset, estimator, scale)),
                      key=lambda r: r["experiment"]["seed"])
        alone = [r["environment"].get("runs_at_once", 1) == 1 for r in mine]
        found[dataset, estimator] = Cell(
            dataset, estimator, np.array([r["metrics"]["test_log_px"] for r in mine]),
            np.array([r["seconds"]["training"] if a else np.nan
                      for r, a in zip(mine, alone, strict=True)]),
            np.array([r["progress"]["epochs"] for r in mine]), tuple(r["id"] for r in mine))
    return found


def is_cell(record: Record, dataset: str, estimator: str, scale: str) -> bool:
    """Whether a record is a run of this cell: every field but the seed as the scale has it."""
    if record["experiment"]["seed"] not in SEEDS:
        return False
    e = preset(scale, dataset=dataset, estimator=estimator, seed=record["experiment"]["seed"])
    return e.as_dict() == record["experiment"]


def table(found: dict[tuple[str, str], Cell]) -> pd.DataFrame:
    """Table 1, ours and the paper's, one row a cell; a cell without runs says so."""
    rows = []
    for key, cell in found.items():
        paper = PAPER[key]
        rows.append({
            "data set": DATASETS[cell.dataset].full, "estimator": cell.estimator, "n": cell.n,
            "ours (nats)": spread(cell.log_px), "paper (nats)": f"{paper.log_px:.2f} ± {paper.log_px_sd:.2f}",
            "ours (hours)": spread(cell.seconds[~np.isnan(cell.seconds)] / 3600, 3),
            "paper (hours)": f"{paper.hours:.2f} ± {paper.hours_sd:.2f}",
            "epochs": spread(cell.epochs, 0)})
    return pd.DataFrame(rows).set_index(["data set", "estimator"])


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Mean ± standard deviation; the mean alone for one value, `no run yet` for none."""
    if len(values) == 0:
        return "no run yet"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def equivalence(a: np.ndarray, b: np.ndarray, margin: float) -> dict[str, float]:
    """Two one-sided Welch t-tests that the means differ by less than `margin` (Schuirmann, 1987).

    Args:
        a, b: (n,), (m,), at least two values each.
        margin: above 0, in the unit of the values.

    Returns:
        difference: mean(a) - mean(b). low, high: its 90% interval; equivalence at the 5% level is
        when it lies within ±margin. p: of the larger of the two tests.

    Raises ValueError for fewer than two values or a margin that is not positive.
    """
    if min(len(a), len(b)) < 2 or margin <= 0:
        raise ValueError("equivalence needs two values a side and a margin above 0; there are "
                         f"{len(a)} and {len(b)}, and the margin is {margin}")
    above = stats.ttest_ind(np.asarray(a) + margin, b, equal_var=False, alternative="greater")
    below = stats.ttest_ind(np.asarray(a) - margin, b, equal_var=False, alternative="less")
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.90)
    return {"difference": float(np.mean(a) - np.mean(b)), "low": float(interval.low),
            "high": float(interval.high), "p": float(max(above.pvalue, below.pvalue))}


def ratio_interval(a: np.ndarray, b: np.ndarray, samples: int = 10_000,
                   seed: int = 0) -> tuple[float, float, float]:
    """mean(a)/mean(b) and its 95% bootstrap interval (percentiles): low, ratio, high."""
    rng = np.random.default_rng(seed)
    tops = rng.choice(a, (samples, len(a))).mean(1)
    bottoms = rng.choice(b, (samples, len(b))).mean(1)
    low, high = np.percentile(tops / bottoms, [2.5, 97.5])
    return float(low), float(np.mean(a) / np.mean(b)), float(high)
