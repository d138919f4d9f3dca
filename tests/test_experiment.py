"""What one run is: its defaults, its id, and every choice that cannot be run."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import BAD, BAD_PLACES, CPU, assert_says, small

import cgmvae
from cgmvae import comparison, data, datasets, devices, tables
from cgmvae.experiment import (
    DATASETS,
    NEUTRAL,
    Experiment,
    ExperimentError,
    filled_in,
    preset,
)
from cgmvae.model import GMVAE
from cgmvae.presets import PRESETS

FIELDS = [f.name for f in dataclasses.fields(Experiment)]


@pytest.fixture
def no_work(monkeypatch):
    """Loading data or making a trainer fails the test."""
    def forbidden(*_, **__):
        pytest.fail("work started on a choice that cannot be run")
    for module, name in ((data, "load"), (data, "split"), (sys.modules["cgmvae.run"], "Trainer")):
        monkeypatch.setattr(module, name, forbidden)


# Defaults

PAPER = {
    "dataset": "mnist", "estimator": "concrete", "K": 10, "z_dim": 64, "tau": 0.3,
    "tau_start": None, "kl_y_form": "relaxed", "annealing": "ramp", "annealing_steps": 2000,
    "likelihood": "bernoulli", "binarisation": "threshold", "padding": "same",
    "decoder_units": 0, "initialisation": "glorot", "beta": 1.0, "kl_z_form": "sampled",
    "spread_logits": False, "views": "none", "agreement": None, "balanced": True, "labelled": 0,
    "batch_size": 128, "learning_rate": 1e-3, "learning_rate_schedule": "constant", "epochs": 200,
    "patience": 10, "validation_fraction": 0.1, "train_limit": None, "iw_samples": 50, "seed": 0}


LITERAL = {"kl_y_form": "relaxed", "annealing": "ramp"}


def test_defaults_are_the_papers_but_for_the_term_of_the_label():
    assert comparison.READINGS["literal"] == LITERAL
    assert Experiment(**LITERAL).as_dict() == PAPER
    assert Experiment(dataset="cifar100", **LITERAL).as_dict() == PAPER | {
        "dataset": "cifar100", "K": 20, "likelihood": "cross_entropy", "binarisation": "none"}
    usual = Experiment().as_dict()
    assert {k: v for k, v in usual.items() if v != PAPER[k]} == {
        "kl_y_form": "categorical", "annealing": "none", "annealing_steps": None}


def test_table_1_is_the_papers_own_row():
    for e in (e for name in ("table1", "small") for e in tables.runs(name)):
        expected = LITERAL if e.estimator == "concrete" else {"annealing": "none"}  # no weight in eq. 6
        assert expected.items() <= e.as_dict().items()


def test_every_field_is_explained():
    for f in dataclasses.fields(Experiment):
        assert f.metadata["help"] and f.metadata["paper"]
        if "not said" in f.metadata["paper"]:
            assert f.metadata["reason"], f"the paper does not say {f.name}: why is it what it is?"


def test_what_follows_from_the_choices():
    e = Experiment()
    assert (e.image_shape, e.available, e.validation_size) == ((1, 28, 28), 60_000, 6_000)
    assert (e.train_size, e.steps_per_epoch) == (54_000, 421)
    e = Experiment(dataset="cifar100-sample", train_limit=105, batch_size=10)
    assert (e.image_shape, e.available, e.validation_size) == ((3, 32, 32), 105, 10)
    assert (e.train_size, e.steps_per_epoch) == (95, 9)


def test_it_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().K = 3


@pytest.mark.parametrize("given", ({"K": "12"}, {"K": np.int64(12)}, {"K": 12}))
def test_a_whole_number_in_another_guise(given):
    e = Experiment(**given)
    assert e.K == 12 and type(e.K) is int and e.id == Experiment(K=12).id


@pytest.mark.parametrize("tau", ("1", 1, 1.0, np.float64(1), np.float32(1), "1e0"))
def test_a_number_in_another_guise(tau):
    e = Experiment(tau=tau)
    assert e.tau == 1.0 and type(e.tau) is float and e.id == Experiment(tau=1.0).id


@pytest.mark.parametrize("choices", ({"K": True}, {"tau": True}, {"dataset": 5}, {"K": [10]},
                                     {"epochs": None}, {"K": "2.5"}, {"K": 3.0}))
def test_values_of_another_type(choices):
    (field, value), = choices.items()
    with pytest.raises(ExperimentError) as error:
        Experiment(**choices)
    assert_says(str(error.value), choices, field, "a ")


# Ids

OTHERS = {
    "dataset": "mnist-sample", "estimator": "straight_through", "K": 11, "z_dim": 32, "tau": 0.4,
    "tau_start": 1.0, "kl_y_form": "categorical", "annealing": "printed", "annealing_steps": 100,
    "likelihood": "cross_entropy", "binarisation": "dynamic", "padding": "valid",
    "decoder_units": 256, "initialisation": "he", "beta": 0.5, "kl_z_form": "closed",
    "spread_logits": True, "views": "digits", "agreement": 30.0, "balanced": False,
    "labelled": 100,
    "batch_size": 64, "learning_rate": 3e-4, "learning_rate_schedule": "cosine", "epochs": 20, "patience": 3,
    "validation_fraction": 0.2, "train_limit": 20_000, "iw_samples": 10, "seed": 1}
USED = {"agreement": {"views": "same"}, "balanced": {"views": "same"}}
"""Where a choice is used, if not by the defaults."""


def test_ids_stay_what_they_are():
    """Records in results/ are found by these. A change here makes every record an orphan."""
    first = {"decoder_units": 512, "initialisation": "torch"}  # before there was a choice
    assert Experiment(**first, **LITERAL).id == "mnist-concrete-K10-s0-31ffad21"
    other = Experiment(dataset="cifar100", estimator="marginal", **first)
    assert other.id == "cifar100-marginal-K20-s0-495be1f9"


def test_a_field_that_came_later_spares_the_old_records():
    """Neutral, it is no part of the id; and a record that lacks it is read as having that value."""
    old = {k: v for k, v in PAPER.items() if k not in NEUTRAL}
    assert set(NEUTRAL) == {"initialisation", "beta", "kl_z_form", "spread_logits", "views",
                            "agreement", "balanced", "labelled", "learning_rate_schedule", "tau_start"}
    assert Experiment(**filled_in(old)) == Experiment(initialisation="torch", **LITERAL)
    assert filled_in(PAPER) == PAPER
    for name, value in NEUTRAL.items():
        where = NEUTRAL | USED.get(name, {})
        assert Experiment(**{**where, name: OTHERS[name]}).id != Experiment(**where).id


def test_every_choice_is_in_the_id():
    assert set(OTHERS) == set(FIELDS)
    ids = [Experiment(**LITERAL).id,
           *(Experiment(**LITERAL | USED.get(k, {}) | {k: v}).id for k, v in OTHERS.items())]
    assert len(set(ids)) == len(ids)
    digests = {i[-8:] for i in ids}  # the digest alone tells them apart
    assert len(digests) == len(ids)


@pytest.mark.parametrize(("unused", "where"), [
    ({"tau": 0.7}, {"estimator": "marginal"}),
    ({"tau": 0.7}, {"estimator": "score_function"}),
    ({"kl_y_form": "categorical"}, {"estimator": "marginal"}),
    ({"kl_y_form": "categorical"}, {"estimator": "score_function"}),
    ({"kl_y_form": "categorical"}, {"estimator": "straight_through"}),
    ({"annealing_steps": 7}, {"annealing": "none"}),
    ({"agreement": 7.0}, {"views": "none"}), ({"balanced": False}, {"views": "none"})])
def test_a_choice_that_is_not_used_is_not_in_the_id(unused, where):
    assert Experiment(**where, **unused).id == Experiment(**where).id


def test_defaults_by_name_have_the_same_id():
    assert Experiment(**PAPER).id == Experiment(**LITERAL).id
    for name in DATASETS:
        e = Experiment(dataset=name)
        assert Experiment(**e.as_dict()) == e and Experiment(**e.as_dict()).id == e.id


def test_but_changes_some_and_checks_again():
    e = small(K=7)
    other = e.but(K=8)
    assert (other.K, other.as_dict() | {"K": 7}) == (8, e.as_dict()) and e.K == 7
    with pytest.raises(ExperimentError, match="K must be"):
        e.but(K=0)
    with pytest.raises(ExperimentError, match="'k' is not a choice .* .did you mean 'K'"):
        e.but(k=8)


# Presets

def test_presets():
    assert preset("paper") == Experiment()
    assert preset("small") == Experiment(train_limit=20_000, epochs=20)
    assert preset("quick") == Experiment(dataset="mnist-sample", **PRESETS["quick"])
    assert preset("quick", dataset="cifar100").dataset == "cifar100-sample"
    assert preset("quick", dataset="cifar100-sample", K=3, epochs=2).epochs == 2
    assert preset("quick", epochs=None, K=None) == preset("quick")


def test_the_scale_of_an_experiment_is_known_by_its_data_and_length():
    assert Experiment(K=99, seed=4, estimator="marginal").preset == "paper"
    assert preset("small", dataset="cifar100", z_dim=8).preset == "small"
    assert preset("quick", dataset="cifar100", K=5).preset == "quick"
    for changes in ({"epochs": 199}, {"patience": 9}, {"train_limit": 59_999},
                    {"dataset": "mnist-sample"}):
        assert Experiment(**changes).preset == "custom"


def test_bad_presets():
    with pytest.raises(ExperimentError) as error:
        preset("quik")
    assert_says(str(error.value), {"preset": "quik"}, "preset", "one of 'paper', 'half', 'small', 'quick'")
    assert "did you mean 'quick'" in str(error.value)
    with pytest.raises(ExperimentError, match="'KK' is not a choice .*'K'.* choices are dataset"):
        preset("quick", KK=3)
    with pytest.raises(ExperimentError, match="dataset must be"):
        preset("quick", dataset="cifar")


# What cannot be run

@pytest.mark.parametrize("name", BAD)
def test_bad_choices_are_refused_by_the_function(name, no_work, tmp_path):
    choices, field, allowed = BAD[name]
    with pytest.raises(ExperimentError) as error:
        cgmvae.run(Experiment(**{"dataset": "mnist-sample", **choices}), results=tmp_path / "new")
    assert_says(str(error.value), choices, field, allowed)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", BAD_PLACES)
def test_bad_places_are_refused_by_the_function(name, no_work, tmp_path):
    choices, field, allowed = BAD_PLACES[name]
    with pytest.raises(ExperimentError) as error:
        cgmvae.run(small(), results=tmp_path / "new", **choices)
    assert_says(str(error.value), choices, field, allowed)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ("cuda", "mps"))
def test_a_device_that_is_not_here(name, no_work, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ExperimentError) as error:
        cgmvae.run(small(), device=name)
    assert_says(str(error.value), {"device": name}, "device", "one that this machine has: cpu")


def test_devices_are_found(monkeypatch):
    for cuda, mps, found in ((True, True, "cuda"), (False, True, "cpu"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices.find_device("auto").type == found
        assert devices.find_device("cpu").type == "cpu"
    assert devices.find_precision("auto", CPU) == "float32"
    assert devices.find_precision("auto", torch.device("cuda")) == "tf32"
    assert devices.find_compilation("auto", CPU) == "none"
    assert devices.find_compilation("auto", torch.device("cuda")) == "graph"


@pytest.mark.parametrize("estimator", ("marginal", "concrete"))
def test_a_K_too_large_is_told_how_large_it_can_be(estimator, monkeypatch):
    def memory(gib: float) -> None:
        monkeypatch.setattr(devices.psutil, "virtual_memory",
                            lambda: SimpleNamespace(available=int(gib * 2**30)))

    def largest() -> int:
        with pytest.raises(ExperimentError) as error:
            devices.check_memory(small(K=10**9, estimator=estimator), CPU)
        return int(re.search(r"at most about (\d+)", str(error.value))[1])

    memory(4)
    limit = largest()
    assert limit > 1000
    devices.check_memory(small(K=limit, estimator=estimator), CPU)
    with pytest.raises(ExperimentError, match=f"at most about {limit} for the estimator "
                       f"'{estimator}' in the 4.0 GiB .* it is {limit + 1}"):
        devices.check_memory(small(K=limit + 1, estimator=estimator), CPU)
    # What no step can do without: the weights that grow with K, their gradient, Adam's moments.
    a_label = sum(p.numel() for p in GMVAE(small(K=11)).parameters()) - sum(
        p.numel() for p in GMVAE(small(K=10)).parameters())
    assert 4 * 2**30 / 3 < limit * 4 * a_label * 4 < 4 * 2**30
    memory(8)
    assert largest() == pytest.approx(2 * limit, rel=0.01)


def test_results_that_cannot_be_written(no_work, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(datasets.DataError) as error:
        cgmvae.run(small(), results=tmp_path / "file" / "results")
    message = str(error.value)
    assert message.startswith("results must be a folder that can be written to; it is ")
    assert str(tmp_path / "file" / "results") in message and "\n" not in message
