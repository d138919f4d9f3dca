"""Records and tensors to matplotlib figures, in one style that a colour-blind reader can read.

Every function returns the Figure and leaves showing or saving it to the caller.
"""

from __future__ import annotations

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from cgmvae.comparison import PAPER, PAPERS_ROW, Cell, label_of
from cgmvae.datasets import DATASETS
from cgmvae.estimators import ESTIMATORS
from cgmvae.model import GMVAE
from cgmvae.records import Record, curves, information

COLOURS = {name: e.colour for name, e in ESTIMATORS.items()} | {"paper": "#555555"}
"""Okabe and Ito's palette and then Tol's: with the markers told apart by readers of every colour vision."""
MARKERS = {name: e.marker for name, e in ESTIMATORS.items()} | {"paper": "x"}


def style() -> None:
    """Set matplotlib's defaults for the book; each chapter calls it once."""
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 110, "figure.constrained_layout.use": True,
        "figure.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": "#dddddd", "axes.axisbelow": True, "font.size": 10,
        "axes.titlesize": 10, "legend.frameon": False, "lines.linewidth": 1.8,
        "axes.prop_cycle": plt.cycler(color=list(COLOURS.values())[:4])})


def training_curves(records: dict[str, Record]) -> Figure:
    """Validation loss by epoch and by second, and KL(q(y|x)||p(y)) by step.

    Args:
        records: the records to compare, by the name to show; a name in COLOURS fixes the colour.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9))
    panels = (("epoch", "validation_loss", "epoch", "validation loss (nats)"),
              ("seconds", "validation_loss", "training time (s)", "validation loss (nats)"),
              ("step", "kl_y", "step", "KL(q(y|x) || p(y)) (nats)"))
    for axis, (x, y, x_label, y_label) in zip(axes, panels, strict=True):
        for name, record in records.items():
            rows = curves(record).reset_index()
            axis.plot(rows[x], rows[y], label=name, color=COLOURS.get(name), marker=MARKERS.get(name),
                      markersize=4, markevery=max(1, len(rows) // 10))
        axis.set(xlabel=x_label, ylabel=y_label)
    axes[0].legend()
    return figure


def image_grid(images: Tensor | np.ndarray, columns: int, row_names: list[str] | None = None) -> Figure:
    """Images (N, C, H, W) in [0, 1], row by row, with a name at the left of each row."""
    images = np.asarray(images, dtype=np.float32)
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 0.55 + 0.8, rows * 0.55),
                                squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04},
                                layout="none")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image.transpose(1, 2, 0), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
    for row, name in enumerate(row_names or []):
        axes[row, 0].text(-0.15, 0.5, name, transform=axes[row, 0].transAxes, ha="right",
                          va="center", fontsize=8)
    return figure


@torch.no_grad()
def reconstructions(models: dict[str, GMVAE], x: Tensor) -> Figure:
    """Images x (N, C, H, W), and below them what each model makes of them at y = argmax q(y|x)."""
    rows = [x]
    for model in models.values():
        h = model.encode(x)
        rows.append(model.x_mean(model.q_z(h, model.log_q_y(h).argmax(-1)).mean))
    return image_grid(torch.cat(rows), len(x), ["image", *models])


@torch.no_grad()
def cluster_samples(model: GMVAE, columns: int = 10, clusters: int | None = None,
                    seed: int = 0) -> Figure:
    """A row a cluster: means of p(x|z) with z ~ p(z|y), from the prior alone."""
    names = range(min(model.K, clusters or model.K))
    noise = torch.randn(len(names), columns, model.z_dim, generator=Generator().manual_seed(seed))
    p_z = model.p_z(torch.tensor(names)[:, None])
    images = model.x_mean((p_z.loc + p_z.scale * noise).flatten(0, 1))
    return image_grid(images, columns, [f"y = {k}" for k in names])


def cluster_members(images: Tensor, q_y: Tensor, columns: int = 10) -> Figure:
    """A row a cluster that is in use: the images that q(y|x) gives to it with most certainty.

    Args:
        images: (N, C, H, W) in [0, 1]. q_y: (N, K).
    """
    rows, names = _members(images, q_y, columns)
    return image_grid(rows, columns, names)


def _members(images: Tensor, q_y: Tensor, columns: int) -> tuple[Tensor, list[str]]:
    """The surest images of each cluster in use, (rows * columns, C, H, W), and the name of each row."""
    labels, names, rows = q_y.argmax(1), [], []
    for k in labels.unique().tolist():
        mine = (labels == k).nonzero()[:, 0]
        best = mine[q_y[mine, k].argsort(descending=True)][:columns]
        row = torch.ones(columns, *images.shape[1:])
        row[:len(best)] = images[best]
        rows.append(row)
        names.append(f"y = {k} ({len(mine)})")
    return torch.cat(rows), names


def what_labels_know(runs: tuple[Record, Record], images: Tensor | None, q_y: Tensor | None) -> Figure:
    """I(x;y) by epoch of two runs of one K; beside it the ten surest images of one's first ten clusters in use.

    A curve is of validation images, a mark of the test images: older records have no more. images:
    (N, C, H, W) in [0, 1]. q_y: (N, K); with None the left panel stands alone.
    """
    figure, axes = plt.subplots(1, 1 if q_y is None else 2, figsize=(8.6, 3.8), squeeze=False)
    axis, most = axes[0, 0], np.log(runs[0]["experiment"]["K"])
    for record, look in zip(runs, ("-o", "--^"), strict=True):
        known, end = curves(record).get("validation_information"), record["progress"]["epochs"]
        points = (end, information(record), look[-1]) if known is None else (known.index, known, look[:-1])
        axis.plot(*points, label=label_of(record))
    for height, dashes, name in ((most, ":", "ln K, the most there is"), (most / 20, "-", "in use from here")):
        axis.axhline(height, color="black", linestyle=dashes, linewidth=0.8, label=name)
    axis.set(xlabel="epoch", ylabel="I(x;y) (nats)", xlim=(0, None), ylim=(-0.05 * most, 1.1 * most))
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    if q_y is not None:
        tiles = torch.nn.functional.pad(_members(images, q_y, 10)[0][:100], (1, 1, 1, 1), value=1.0)
        tiles = tiles.unflatten(0, (-1, 10)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
        axes[0, 1].imshow(tiles, vmin=0, vmax=1, cmap="gray", interpolation="nearest")
        axes[0, 1].set_axis_off()
    return figure


TITLES = {"mnist": "MNIST", "cifar100": "CIFAR-100"}
LABELS = {"marginal": "GMVAE\n(marginal)", "literal": "Concrete\n(literal)", "closed": "Concrete\n(closed)"}
FILLED = {"marginal": True, "literal": True, "closed": False}  # tells the two readings apart


def table1_dots(cells: dict[tuple[str, str], Cell]) -> Figure:
    """Every seed of Table 1 as a dot, its mean as a line, the paper's mean ± sd as a band."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, dataset in zip(axes, ("mnist", "cifar100"), strict=True):
        rows = [row for d, row in cells if d == dataset]
        for i, row in enumerate(rows):
            paper, cell = PAPER[dataset, PAPERS_ROW[row]], cells[dataset, row]
            axis.fill_between([i - 0.35, i + 0.35], paper.log_px - paper.log_px_sd,
                              paper.log_px + paper.log_px_sd, color=COLOURS["paper"], alpha=0.25,
                              label="paper, mean ± sd" if i == 0 else None)
            axis.plot([i - 0.35, i + 0.35], [paper.log_px] * 2, color=COLOURS["paper"])
            if cell.n:
                colour = COLOURS[PAPERS_ROW[row]]
                jitter = np.linspace(-0.15, 0.15, cell.n) if cell.n > 1 else np.zeros(1)
                axis.plot(i + jitter, cell.log_px, MARKERS[PAPERS_ROW[row]], color=colour,
                          markerfacecolor=colour if FILLED[row] else "white")
                axis.plot([i - 0.2, i + 0.2], [cell.log_px.mean()] * 2, color=colour)
        axis.set_xticks(range(len(rows)), [f"{LABELS[row]}\nn = {cells[dataset, row].n}" for row in rows])
        axis.set(title=TITLES[dataset], xlim=(-0.6, len(rows) - 0.4))
    axes[0].legend(fontsize=8)
    axes[0].set_ylabel("test E[ln p(x|y,z)] (nats)")
    return figure


def value_against_time(cells: dict[tuple[str, str], Cell], scale: str) -> Figure:
    """All of Table 1 in two panels: test value against training time, the paper's and ours.

    The paper's cells are crosses of mean ± standard deviation; each finished run of ours is a dot, at
    its seconds if it had its device to itself, else at its hours of one core. Runs of another precision
    than most are small: their hours are not to be compared with the others'.
    """
    precisions = Counter(r["environment"]["precision"] for cell in cells.values() for r in cell.records)
    most = max(precisions, key=precisions.get, default="")
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.1))
    for axis, dataset in zip(axes, ("mnist", "cifar100"), strict=True):
        for estimator, name in (("marginal", "GMVAE"), ("concrete", "Concrete GMVAE")):
            paper = PAPER[dataset, estimator]
            axis.errorbar(paper.hours, paper.log_px, xerr=paper.hours_sd, yerr=paper.log_px_sd,
                          color=COLOURS[estimator], marker="x", markersize=8, capsize=3,
                          label=f"{name}, the paper")
        mine = {row: cell for (d, row), cell in cells.items() if d == dataset}
        for row, cell in mine.items():
            colour = COLOURS[PAPERS_ROW[row]]
            hours = np.where(cell.alone, cell.seconds / 3600, cell.core_hours)
            common = np.array([r["environment"]["precision"] == most for r in cell.records], dtype=bool)
            for shown, size, label in ((common, 5, f"{LABELS[row]}, ours".replace("\n", " ")), (~common, 3, None)):
                axis.plot(hours[shown], cell.log_px[shown], MARKERS[PAPERS_ROW[row]], color=colour, markersize=size,
                          markerfacecolor=colour if FILLED[row] else "white", linestyle="none", label=label)
        speed = PAPER[dataset, "marginal"].hours / PAPER[dataset, "concrete"].hours
        axis.set(title=f"{TITLES[dataset]}, K = {DATASETS[dataset].K}: {speed:.1f} times faster in the paper",
                 xlabel="training time (hours)", xscale="log")
        axis.set_xlim(min(0.3, axis.get_xlim()[0]), 100)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.margins(y=0.25)
        small = ", small marks: " + " and ".join(sorted({*precisions} - {most})) if len(precisions) > 1 else ""
        axis.annotate(f"ours: {sum(c.n for c in mine.values())} runs, scale {scale}{small}", (0.02, 0.04),
                      xycoords="axes fraction", fontsize=9)
    axes[0].set_ylabel("test E[ln p(x|y,z)] (nats)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure
