"""The figures: what is drawn is what the records, the model or the benchmark say."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import small
from test_comparison import record

from cgmvae import benchmark_figures, comparison, figures
from cgmvae.model import GMVAE


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def points(line):
    return [tuple(map(float, point)) for point in line.get_xydata()]


# Records


def test_training_curves_are_by_epoch_by_second_and_by_step():
    rows = [{"epoch": k, "seconds": 2.5 * k, "step": 100 * k, "validation_loss": 90.0 - k, "kl_y": 0.1 * k}
            for k in (1, 2)]
    axes = figures.training_curves({"concrete": {"progress": {"curves": rows}}}).axes
    assert [points(axis.lines[0]) for axis in axes] == [
        [(1, 89), (2, 88)], [(2.5, 89), (5, 88)], [(100, 0.1), (200, 0.2)]]


def test_table_1_has_a_dot_a_seed_and_the_papers_band():
    cells = comparison.cells([record(0, -50.0), record(1, -52.0)], "paper")
    axis, paper = figures.table1_dots(cells).axes[0], comparison.PAPER["mnist", "concrete"]
    place = list(comparison.ROWS).index("literal")
    band = axis.collections[place].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((paper.log_px - paper.log_px_sd, paper.log_px + paper.log_px_sd))
    dots, mean = axis.lines[-3:-1]  # before the paper's line of the last row
    assert dots.get_ydata().tolist() == [-50, -52] and set(mean.get_ydata()) == {-51}
    assert "n = 2" in axis.get_xticklabels()[place].get_text()


def test_a_run_stands_at_its_own_hours_or_at_those_of_one_core():
    runs = [record(0, -50.0), record(1, -52.0, at_once=8, processor=72.0)]  # of 100 seconds
    axis = figures.value_against_time(comparison.cells(runs, "paper"), "paper").axes[0]
    ours = next(line for line in axis.lines if line.get_label() == "Concrete (literal), ours")
    assert points(ours) == [(pytest.approx(100 / 3600), -50), (pytest.approx(72 / 3600), -52)]
    assert [points(cross.lines[0]) for cross in axis.containers] == [[(15.73, -46.61)], [(3.55, -46.96)]]


def test_a_run_in_another_precision_than_most_is_a_small_mark():
    runs = [record(seed, -50.0 - seed, processor=36.0) for seed in range(3)]
    runs[1]["environment"]["precision"] = "bf16"
    axis = figures.value_against_time(comparison.cells(runs, "paper"), "paper").axes[0]
    ours = [line for line in axis.lines if line.get_marker() == figures.MARKERS["concrete"] and len(line.get_xdata())]
    assert [(line.get_markersize(), line.get_ydata().tolist()) for line in ours] == [(5, [-50, -52]), (3, [-51])]
    assert any("small marks: bf16" in text.get_text() for text in axis.texts)


# Models


def shown(figure):
    """The images of a grid, row by row."""
    return torch.stack([torch.as_tensor(np.asarray(axis.images[0].get_array())) for axis in figure.axes if axis.images])


def test_a_clusters_surest_images_come_first_and_its_size_is_told():
    q_y = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    images = torch.arange(4).view(4, 1, 1, 1).expand(4, 1, 2, 2) / 8
    figure = figures.cluster_members(images, q_y, columns=2)
    assert shown(figure)[:, 0, 0].flatten().tolist() == [1 / 8, 3 / 8, 2 / 8, 1]  # an empty place is white
    assert [figure.axes[i].texts[0].get_text() for i in (0, 2)] == ["y = 0 (3)", "y = 1 (1)"]


def test_samples_of_a_cluster_are_from_its_own_prior():
    torch.manual_seed(0)
    model = GMVAE(small(K=3))
    with torch.no_grad():
        model.p_z_layer.weight.mul_(20)  # priors that lie apart
        noise = torch.randn(3, 2, model.z_dim, generator=torch.Generator().manual_seed(4))
        wanted = []
        for k, own in enumerate(noise):
            p_z = model.p_z(torch.tensor([k]))
            wanted.append(model.x_mean(p_z.loc + p_z.scale * own)[:, 0])
    assert torch.allclose(shown(figures.cluster_samples(model, 2, seed=4)), torch.cat(wanted), atol=1e-5)


def test_a_reconstruction_is_of_the_likeliest_label_at_the_mean_of_z():
    torch.manual_seed(0)
    model, x = GMVAE(small(K=3)), torch.rand(2, 1, 28, 28).round()
    images = shown(figures.reconstructions({"ours": model}, x))
    with torch.no_grad():
        h = model.encode(x)
        wanted = model.x_mean(model.q_z(h, model.log_q_y(h).exp().argmax(-1)).loc)
    assert torch.equal(images[:2], x[:, 0]) and torch.allclose(images[2:], wanted[:, 0], atol=1e-6)


# Benchmarks


def first(figure):
    return figure.axes[0]


def benchmark(**cells):
    """As bench.py saves it: a floor of 2 seconds in float32 and half a second in bf16."""
    return {"environment": {"device_name": "A CPU"}, "gemm": {"float32": 50.0, "bf16": 200.0}, **cells}


def cell(**seconds):
    times = {name.replace("_", " "): {"seconds": [s - 1, s, s + 3], "profile": {"aten::mm": s / 2}}
             for name, s in seconds.items()}
    return {"dataset": "mnist", "estimator": "concrete", "K": 10, "operations": 100.0, "times": times}


def test_the_floor_is_the_operations_at_the_rate_of_a_matrix_product():
    rows = [{**cell(plain=9.0, ours_bf16=4.0), "estimator": e, "K": K}
            for e in ("concrete", "marginal") for K in (1, 2)]
    axis = first(benchmark_figures.step_time_against_K([benchmark(sweep=rows)]))
    assert {line.get_label(): points(line) for line in axis.lines} == {
        "this package bf16": [(1, 4), (2, 4)], "plain PyTorch": [(1, 9), (2, 9)],
        "counted floor, bf16": [(1, 0.5), (2, 0.5)]}


def test_a_share_of_the_limit_is_of_the_rate_of_ones_own_precision():
    """An implementation that failed in a cell has no bar there."""
    cells = [cell(plain=4.0, ours_bf16=4.0), cell(plain=4.0, pyro=8.0, ours_bf16=2.0)]
    bars = {bar.get_label(): [b.get_height() for b in bar] for bar in
            first(benchmark_figures.share_of_limit([benchmark(cells=cells)])).containers}
    assert bars["plain PyTorch"] == [0.5, 0.5] and bars["this package bf16"] == [0.125, 0.25]
    assert math.isnan(bars["Pyro"][0]) and bars["Pyro"][1] == 0.25


def test_the_kinds_of_a_step_are_shares_of_plain_pytorchs():
    axis = first(benchmark_figures.step_by_kind([benchmark(cells=[cell(plain=8.0, ours_float32=4.0)])]))
    widths = {bars.get_label(): [b.get_width() for b in bars] for bars in axis.containers}
    assert widths["matrix products"] == [0.5, 0.25] == widths["between operators"] and widths["Adam"] == [0, 0]


def test_the_loss_is_drawn_against_the_minutes_so_far():
    run = {"seconds": [60.0, 30.0], "validation_loss": [120.0, 99.0]}
    cells = [{"dataset": "mnist", "estimator": "concrete", "K": 10, "levels": [100.0, 90.0], "runs": {"plain": run}}]
    axis = first(benchmark_figures.loss_against_minutes([benchmark(cells=cells)]))
    assert points(axis.lines[0]) == [(1, 120), (1.5, 99)]
    assert [line.get_ydata()[0] for line in axis.lines[1:]] == [100, 90]
