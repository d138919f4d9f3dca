"""What chapters 3 and 4 open with: which two runs, how they are named, and their picture."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from cgmvae import comparison, figures, records
from cgmvae.evaluation import verdict
from cgmvae.experiment import preset

LITERAL = comparison.READINGS["literal"]
CLOSED = comparison.READINGS["closed"]


def run(information: float, scale: str = "half", seed: int = 0, curve: bool = True, **choices) -> dict:
    e = preset(scale, **{"dataset": "mnist", "estimator": "concrete", "seed": seed, **choices})
    rows = [{"epoch": k, "step": k, **({"validation_information": information} if curve else {})}
            for k in (1, 2)]
    return {"id": e.id, "preset": scale, "experiment": e.as_dict(),
            "metrics": {"test_information": information}, "progress": {"epochs": 2, "curves": rows}}


def test_a_run_that_can_be_shown_goes_before_one_that_knows_more(tmp_path):
    shown, knows_more = run(1.2, **CLOSED), run(1.9, seed=1, **CLOSED)
    literal, other_seed = run(0.0, **LITERAL), run(0.4, seed=1, **LITERAL)
    known = [other_seed, knows_more, shown, literal, run(0.3, scale="small", **LITERAL)]
    assert comparison.label_pair(known, "mnist", tmp_path) == (knows_more, other_seed)
    (tmp_path / f"{shown['id']}.safetensors").touch()
    assert comparison.label_pair(known, "mnist", tmp_path) == (shown, literal)


def test_weights_of_less_than_a_nat_do_not_go_before(tmp_path):
    faint, knows_more = run(0.4, **LITERAL), run(0.9, seed=1, **CLOSED)
    (tmp_path / f"{faint['id']}.safetensors").touch()
    assert comparison.label_pair([faint, knows_more], "mnist", tmp_path) == (knows_more, faint)


def test_the_best_label_can_be_one_of_eq_8(tmp_path):
    best, other = run(1.1, **LITERAL), run(0.1, seed=1, **LITERAL)
    assert comparison.label_pair([other, best], "mnist", tmp_path) == (best, other)


@pytest.mark.parametrize("known", [[], [run(1.1, **CLOSED)], [run(0.2, **LITERAL)],
                                   [run(1.1, **CLOSED), run(0.0, **LITERAL, K=7)]])
def test_without_two_runs_there_is_no_pair(known, tmp_path):
    assert comparison.label_pair(known, "mnist", tmp_path) is None


def test_a_run_is_named_by_its_reading_and_by_what_else_it_has_of_its_own():
    first = run(0.0, decoder_units=512, initialisation="torch", **CLOSED)
    assert comparison.label_of(first) == "closed form, weight 1 (half, seed 0, our first networks)"
    assert comparison.run_of(run(0.0, seed=2, decoder_units=512)) == "half, seed 2"
    neither = run(0.0, kl_y_form="relaxed", annealing="none")
    assert comparison.label_of(neither) == "relaxed, none (half, seed 0)"


@pytest.mark.parametrize("curve", [True, False])
def test_the_picture_names_both_runs_and_has_a_tile_for_each_image(curve):
    runs = run(1.9, curve=curve, **CLOSED), run(0.0, curve=curve, seed=3, **LITERAL)
    q_y = torch.eye(10)[[2, 2, 5]] * 0.9
    figure = figures.what_labels_know(runs, torch.rand(3, 3, 8, 6), q_y)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["closed form, weight 1 (half, seed 0)", "eq. 8, rising weight (half, seed 3)"]
    heights = [line.get_ydata()[-1] for line in figure.axes[0].lines[:2]]
    assert heights == [1.9, 0.0]
    lines = [line.get_ydata()[0] for line in figure.axes[0].lines[2:]]
    assert lines == pytest.approx([math.log(10), math.log(10) / 20])
    tiles, = figure.axes[1].images
    assert tiles.get_array().shape == (2 * (8 + 2), 10 * (6 + 2), 3), "two clusters, ten places each"
    assert len(figures.what_labels_know(runs, None, None).axes) == 1
    plt.close("all")


def test_what_the_errata_page_says_of_long_runs_is_true_of_the_records():
    """Its entry on eq. 8 has no number in it that a build could refresh: the records must bear it out."""
    long = [r for r in records.read_all() if r["preset"] in ("half", "paper")
            and r["experiment"]["estimator"] == "concrete" and r["experiment"]["dataset"] == "mnist"]
    said = {"literal": False, "closed": True}
    for reading, in_use in said.items():
        runs = [r for r in long if comparison.READINGS[reading].items() <= r["experiment"].items()]
        found = {r["id"]: verdict(records.information(r), r["metrics"]["test_cluster_perplexity"],
                                  r["experiment"]["K"]) for r in runs}
        assert found and all((state == "in use") == in_use for state in found.values()), found
