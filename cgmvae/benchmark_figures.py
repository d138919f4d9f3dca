"""The figures of what `benchmarks/` saved: one row of panels for each processor or GPU.

Every function returns the Figure and leaves showing or saving it to the caller.
"""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

LOOKS = {"plain": ("#999999", "s", "plain PyTorch"), "pyro": ("#CC79A7", "D", "Pyro"),
         "ours": ("#0072B2", "o", "this package")}
"""Colour, marker and label of each implementation."""

KINDS = {"convolutions": ("convolution",), "matrix products": ("mm", "addmm", "bmm"),
         "pooling and ReLU": ("max_pool2d", "relu", "threshold_backward"),
         "copies and conversions": ("_to_copy", "copy_", "clone", "fill_", "zero_"), "Adam": ("_fused_adam_", "lerp_", "addcmul_", "addcdiv_"),
         "other operators": ("",)}
"""What a step does: how the names of the torch operators of each kind begin. A name is of the first that fits."""
KIND_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#CC79A7", "#999999", "#dddddd")


def device(saved: dict) -> str:
    """The device that a file is of: its name and, of a CPU, the vector instructions that torch uses on it."""
    environment = saved["environment"]
    return ", ".join(filter(None, (environment["device_name"], environment.get("instructions"))))


def short(saved: dict) -> str:
    """The device in a few words, for a title: its family, and what of a CPU's instructions tells it from its kin."""
    environment = saved["environment"]
    family = re.sub(r"\((R|TM)\)|\b(AMD|Intel|NVIDIA|Processor|CPU)\b", " ", environment["device_name"])
    best, _, kind = (environment.get("instructions") or "").split(" ")[:2][-1].partition("_")
    return ", ".join(filter(None, (" ".join(family.split()), f"{best.upper()} {kind}".strip())))


def _look(name: str) -> tuple[str, str, str]:
    """Colour, marker and label of a job such as "plain" or "ours bf16"."""
    kind, _, precision = name.partition(" ")
    colour, marker, label = LOOKS[kind]
    return colour, marker, f"{label} {precision}".strip()


def step_time_against_K(benchmarks: list[dict]) -> Figure:
    """Seconds a step against K: one row a device, one panel an estimator, with the counted floor.

    Args:
        benchmarks: what `benchmarks/bench.py` saved, a file each.
    """
    figure, grid = plt.subplots(len(benchmarks), 2, figsize=(8, 0.4 + 2.9 * len(benchmarks)), sharey="row",
                                squeeze=False)
    for axes, benchmark in zip(grid, benchmarks, strict=True):
        for axis, estimator in zip(axes, ("concrete", "marginal"), strict=True):
            rows = [r for r in benchmark["sweep"] if r["estimator"] == estimator]
            for name in sorted({n for r in rows for n in r["times"]}):
                colour, marker, label = _look(name)
                points = [(r["K"], np.median(r["times"][name]["seconds"])) for r in rows if name in r["times"]]
                axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
            # The package's own precision: one for the whole sweep.
            precision = next(n for n in rows[0]["times"] if n.startswith("ours")).partition(" ")[2]
            floor = [r["operations"] / benchmark["gemm"][precision] for r in rows]
            axis.plot([r["K"] for r in rows], floor, "--", color="black", label=f"counted floor, {precision}")
            axis.set(xscale="log", yscale="log", xlabel="number of clusters K", title=f"{short(benchmark)}: {estimator}")
        axes[0].set_ylabel("seconds a step")
        axes[0].legend()
    return figure


def share_of_limit(benchmarks: list[dict]) -> Figure:
    """Share of the measured matrix-product rate that each implementation reaches in each cell: one panel a device."""
    figure, axes = plt.subplots(len(benchmarks), 1, figsize=(8, 0.2 + 2.8 * len(benchmarks)), squeeze=False)
    for axis, benchmark in zip(axes[:, 0], benchmarks, strict=True):
        cells = benchmark["cells"]
        names = list(dict.fromkeys(name for c in cells for name in c["times"]))  # one may have failed in some cells
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            precision = name.partition(" ")[2]
            colour, _, label = _look(name)
            rate = benchmark["gemm"][precision or "float32"]
            shares = [c["operations"] / np.median(c["times"][name]["seconds"]) / rate if name in c["times"] else np.nan
                      for c in cells]
            axis.bar(np.arange(len(cells)) + (i - len(names) / 2 + 0.5) * width, shares, width, color=colour,
                     alpha=0.6 if precision == "bf16" else 1.0, hatch="//" if precision == "bf16" else None,
                     label=label)
        axis.set_xticks(range(len(cells)), [f"{c['dataset']}\n{c['estimator']}, K = {c['K']}" for c in cells])
        axis.set(ylabel="share of the GEMM rate", ylim=(0, 1.25), yticks=np.arange(0, 1.1, 0.2), title=short(benchmark))
        axis.legend(ncols=len(names))
    return figure


def seconds_by_kind(times: dict) -> dict[str, float]:
    """Seconds of a step by kind of operator, and what is left of it between them.

    Args:
        times: of one implementation in one cell of what `benchmarks/bench.py` saved, with its profile.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    for operator, value in times["profile"].items():
        name = operator.removeprefix("aten::")
        seconds[next(kind for kind, begins in KINDS.items() if name.startswith(begins))] += value
    return {**seconds, "between operators": max(0.0, np.median(times["seconds"]) - sum(seconds.values()))}


def step_by_kind(benchmarks: list[dict]) -> Figure:
    """What a step's time goes to, as a share of plain PyTorch's step: one panel a device.

    Args:
        benchmarks: what `benchmarks/bench.py` saved of CPUs, with profiles, a file each.
    """
    figure, axes = plt.subplots(len(benchmarks), 1, figsize=(8, 1.0 + 3.8 * len(benchmarks)), squeeze=False)
    for axis, benchmark in zip(axes[:, 0], benchmarks, strict=True):
        bars = {f"{c['dataset']} {c['estimator']}: {_look(name)[2]}":
                np.array(list(seconds_by_kind(times).values())) / np.median(c["times"]["plain"]["seconds"])
                for c in benchmark["cells"] for name, times in c["times"].items() if name != "pyro"}
        left = np.zeros(len(bars))
        for kind, colour, shares in zip((*KINDS, "between operators"), KIND_COLOURS, np.transpose(list(bars.values())),
                                        strict=True):
            axis.barh(list(bars), shares, left=left, color=colour, label=kind)
            left += shares
        axis.invert_yaxis()
        axis.set(xlabel="share of plain PyTorch's step", title=short(benchmark))
        axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.3, -0.16))
    return figure


def passed(run: dict, level: float) -> tuple[int, float] | None:
    """The first epoch whose validation loss is at most the level, and the minutes of training until then.

    Args:
        run: of one implementation in one cell of what `benchmarks/quality.py` saved. None: no epoch's is.
    """
    epoch = next((epoch for epoch, loss in enumerate(run["validation_loss"], 1) if loss <= level), None)
    return None if epoch is None else (epoch, sum(run["seconds"][:epoch]) / 60)


def loss_against_minutes(benchmarks: list[dict]) -> Figure:
    """Validation loss against minutes of training: one panel a device and cell, the levels to pass as lines.

    Args:
        benchmarks: what `benchmarks/quality.py` saved, a file each.
    """
    cells = [(short(b), cell) for b in benchmarks for cell in b["cells"]]
    rows = (len(cells) + 1) // 2
    figure, grid = plt.subplots(rows, 2, figsize=(8, 0.4 + 2.9 * rows), squeeze=False)
    for axis in grid.flat[len(cells):]:
        axis.remove()
    for axis, (name_of_device, cell) in zip(grid.flat, cells, strict=False):
        for name, run in cell["runs"].items():
            colour, marker, label = _look(name)
            axis.plot(np.cumsum(run["seconds"]) / 60, run["validation_loss"], color=colour, marker=marker,
                      markersize=3, linestyle=":" if name.endswith("bf16") else "-", label=label)
        for level in cell["levels"]:
            axis.axhline(level, color="black", linestyle="--", linewidth=0.8)
        low, high = cell["levels"][-1], cell["levels"][0]
        axis.set(xlabel="minutes of training", ylim=(low - 0.5 * (high - low), high + 4 * (high - low)),
                 ylabel="validation loss (nats)")
        axis.set_title(f"{name_of_device}: {cell['dataset']} {cell['estimator']}, K = {cell['K']}")
    grid[0, 0].legend()
    return figure
