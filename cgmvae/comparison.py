"""Ours beside the paper's: Table 1 from records, equivalence, ratios with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cgmvae.datasets import DATASETS
from cgmvae.experiment import preset
from cgmvae.records import Record, information


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

READINGS = {"literal": {"annealing": "ramp", "kl_y_form": "relaxed"},
            "closed": {"annealing": "none", "kl_y_form": "categorical"}}
"""Of the Concrete GMVAE: eq. 8, its weight rising as the text says; and KL(q(y|x)||p(y)) in closed form at weight 1."""

ROWS = {"marginal": {"estimator": "marginal"},
        "literal": {"estimator": "concrete", **READINGS["literal"]},
        "closed": {"estimator": "concrete", **READINGS["closed"]}}
"""Ours: the GMVAE, and the Concrete GMVAE in two readings of KL(q(y|x)||p(y))."""

PAPERS_ROW = {"marginal": "marginal", "literal": "concrete", "closed": "concrete"}
"""Which row of the paper's table each is set beside."""

SEEDS = range(11)
"""The seeds of Table 1; runs of other seeds are not mixed in."""

PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"  # a table does not break a number in two
FIRST_CHOICES = {"decoder_units": 512, "initialisation": "torch"}
"""The decoder and the weights of our first runs, before appendix A was read as it is now."""

OWN_CORE = 0.95
"""A run had its cores to itself if its process got at least this share of their time."""


@dataclass(frozen=True)
class Cell:
    """The finished runs of one cell: a data set, a row, a scale. Arrays are (n,), in the order of seeds."""

    dataset: str
    row: str  # a name in ROWS
    records: tuple[Record, ...]

    def metric(self, name: str) -> np.ndarray:
        """A metric of each run, such as `test_log_px`."""
        return np.array([r["metrics"][name] for r in self.records])

    @property
    def n(self) -> int:
        """How many runs there are."""
        return len(self.records)

    @property
    def log_px(self) -> np.ndarray:
        """The value of Table 1, nats."""
        return self.metric("test_log_px")

    @property
    def information(self) -> np.ndarray:
        """I(x;y), nats."""
        return np.array([information(r) for r in self.records])

    @property
    def epochs(self) -> np.ndarray:
        """Epochs until each run stopped."""
        return np.array([r["progress"]["epochs"] for r in self.records])

    @property
    def alone(self) -> np.ndarray:
        """Whether each run had its device to itself: only then its seconds are its own."""
        return np.array([had_its_device(r) for r in self.records], dtype=bool)

    @property
    def seconds(self) -> np.ndarray:
        """Seconds of training; NaN for a run that shared its device."""
        taken = np.array([r["seconds"]["training"] for r in self.records], dtype=float)
        return np.where(self.alone, taken, np.nan) if self.n else taken

    @property
    def core_hours(self) -> np.ndarray:
        """Hours of training by the clock of the process: on a CPU, what it would have taken alone,
        but for what others took of the caches. NaN on other devices, and where the record does not say."""
        return np.array([r["seconds"].get("processor", np.nan) if r["environment"]["device"] == "cpu" else np.nan
                         for r in self.records]) / 3600


def had_its_device(record: Record) -> bool:
    """Whether no other run and no other process slowed a run down; older records say only the first."""
    environment, seconds = record["environment"], record["seconds"]
    if environment.get("runs_at_once", 1) > 1:
        return False
    if environment.get("device") != "cpu" or "processor" not in seconds:
        return True
    return seconds["processor"] >= OWN_CORE * seconds["training"] * environment["threads"]


def cells(records: list[Record], scale: str, **changes: Any) -> dict[tuple[str, str], Cell]:
    """The runs of each data set and row at a scale; all else at its default but for `changes`."""
    return {(dataset, row): Cell(dataset, row, tuple(sorted(
        (r for r in records if is_cell(r, dataset, row, scale, **changes)),
        key=lambda r: r["experiment"]["seed"])))
        for dataset in ("mnist", "cifar100") for row in ROWS}


def is_cell(record: Record, dataset: str, row: str, scale: str, **changes: Any) -> bool:
    """Whether a record is a run of this cell: every field but the seed as the scale has it."""
    seed = record["experiment"]["seed"]
    if seed not in SEEDS:
        return False
    return preset(scale, dataset=dataset, seed=seed, **ROWS[row], **changes).as_dict() == record["experiment"]


def run_of(record: Record) -> str:
    """The scale and the seed of a run, and that it has our first networks, if so."""
    first = ", our first networks" if FIRST_CHOICES.items() <= record["experiment"].items() else ""
    return f"{record['preset']}, seed {record['experiment']['seed']}{first}"


def label_of(record: Record) -> str:
    """How the figures name one run: how KL(q(y|x)||p(y)) was read, and `run_of`."""
    e = record["experiment"]
    names = {"literal": "eq. 8, rising weight", "closed": "closed form, weight 1"}
    reading = next((names[name] for name, own in READINGS.items() if own.items() <= e.items()),
                   f"{e['kl_y_form']}, {e['annealing']}")
    return f"{reading} ({run_of(record)})"


def label_pair(known: list[Record], dataset: str, published: Path) -> tuple[Record, Record] | None:
    """The Concrete run of a loss of eq. 8 whose label knows most, and one of the literal reading; None without.

    Args:
        known: records. dataset: `mnist` or `cifar100`; the runs with its K of Table 1 are compared.
        published: the folder of published weights. A run whose weights are there and hold at least
            1 nat goes before a run that knows more and cannot be shown.

    Of eq. 8, the run most like the first: of its scale if there is one, then of its seed.
    """
    def shown(r: Record) -> bool:
        return information(r) >= 1 and (published / f"{r['id']}.safetensors").exists()

    free = {"dataset": dataset, "estimator": "concrete", "K": DATASETS[dataset].K, "views": "none", "labelled": 0}
    runs = [r for r in known if free.items() <= r["experiment"].items()]
    best = max(runs, key=lambda r: (shown(r), information(r)), default=None)
    literal = [r for r in runs if r is not best and READINGS["literal"].items() <= r["experiment"].items()]
    if not literal:
        return None
    return best, max(literal, key=lambda r: (r["preset"] == best["preset"],
                                             r["experiment"]["seed"] == best["experiment"]["seed"]))


def away(found: dict[tuple[str, str], Cell], dataset: str, row: str) -> float:
    """How far the mean of a cell that has runs lies from the paper's, in the paper's standard deviations."""
    paper = PAPER[dataset, PAPERS_ROW[row]]
    return (found[dataset, row].log_px.mean() - paper.log_px) / paper.log_px_sd


def table(found: dict[tuple[str, str], Cell]) -> pd.DataFrame:
    """Table 1, ours and the paper's: one row a cell that has runs, and how far `away` it is."""
    rows = []
    for (dataset, row), cell in found.items():
        if not cell.n:
            continue
        paper = PAPER[dataset, PAPERS_ROW[row]]
        rows.append({
            "data set": dataset, "row": row, "n": cell.n, "ours (nats)": spread(cell.log_px),
            "paper (nats)": f"{paper.log_px:.2f}{PLUS_MINUS}{paper.log_px_sd:.2f}",
            "away (sd)": f"{away(found, dataset, row):+.1f}",
            "I(x;y) (nats)": spread(cell.information), "ACC": spread(cell.metric("test_acc")),
            "ELBO (nats)": spread(cell.metric("test_elbo"))})
    return pd.DataFrame(rows, columns=None if rows else ["data set", "row", "n"]).set_index(["data set", "row"])


def lacking(found: dict[tuple[str, str], Cell], wanted: dict[str, int]) -> dict[tuple[str, str], int]:
    """How many runs each cell lacks of those that are wanted of its row, by row; full cells are left out."""
    return {key: wanted[key[1]] - cell.n for key, cell in found.items() if cell.n < wanted[key[1]]}


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Mean ± standard deviation; the mean alone for one value, a dash for none."""
    if len(values) == 0:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean}{PLUS_MINUS}{np.std(values, ddof=1):.{digits}f}"


def equivalence(a: np.ndarray, b: np.ndarray, margin: float) -> dict[str, Any]:
    """Two one-sided Welch t-tests that the means differ by less than `margin` (Schuirmann, 1987).

    Args:
        a, b: (n,), (m,), at least two values each.
        margin: above 0, in the unit of the values.

    Returns:
        difference: mean(a) - mean(b). low, high: its 90% interval; equivalence at the 5% level is
        when it lies within ±margin. p: of the larger of the two tests. verdict: `equivalent` if the
        interval lies within ±margin, `different` if it lies wholly outside, else `undecided`.

    Raises ValueError for fewer than two values or a margin that is not positive.
    """
    if min(len(a), len(b)) < 2 or margin <= 0:
        raise ValueError("equivalence needs two values a side and a margin above 0; there are "
                         f"{len(a)} and {len(b)}, and the margin is {margin}")
    above = stats.ttest_ind(np.asarray(a) + margin, b, equal_var=False, alternative="greater")
    below = stats.ttest_ind(np.asarray(a) - margin, b, equal_var=False, alternative="less")
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.90)
    low, high = float(interval.low), float(interval.high)
    verdict = ("equivalent" if -margin < low and high < margin
               else "different" if low > margin or high < -margin else "undecided")
    return {"difference": float(np.mean(a) - np.mean(b)), "low": low, "high": high,
            "p": float(max(above.pvalue, below.pvalue)), "verdict": verdict}


def ratio_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """mean(a)/mean(b) and its 95% interval: low, ratio, high. Values are above 0.

    It is Welch's interval for the difference of the logarithms of the two means, whose standard errors are those of the
    means over the means. With few runs a bootstrap would be too narrow. NaN at both ends for fewer than two values a side.
    """
    ratio = float(np.mean(a) / np.mean(b))
    if min(len(a), len(b)) < 2:
        return float("nan"), ratio, float("nan")
    u, v = (np.var(x, ddof=1) / len(x) / np.mean(x) ** 2 for x in (a, b))
    freedom = (u + v) ** 2 / max(u ** 2 / (len(a) - 1) + v ** 2 / (len(b) - 1), 1e-300)
    factor = np.exp(stats.t.ppf(0.975, max(freedom, 1)) * np.sqrt(u + v))
    return float(ratio / factor), ratio, float(ratio * factor)
