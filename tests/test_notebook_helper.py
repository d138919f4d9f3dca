"""What the chapters rely on: checked parameters, a scale, a results folder, shown source."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import BAD, BAD_PLACES, assert_says

from cgmvae import datasets, checkpoints, data, notebook, objectives, records
from cgmvae.experiment import Experiment, ExperimentError, preset
from cgmvae.notebook import check_parameters, find_preset, settings

PARAMETERS = 'K: int = None  # clusters\nseed: int = 0\npreset: str = "auto"\ndataset = "mnist"\n'


@pytest.fixture(autouse=True)
def own_preset(monkeypatch):
    """The tests run with CGMVAE_PRESET set; these choose for themselves."""
    monkeypatch.delenv("CGMVAE_PRESET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


# Bad input

@pytest.mark.parametrize("name", (*BAD, *BAD_PLACES))
def test_bad_parameters_are_refused_first_thing(name, no_work):
    choices, field, allowed = (BAD | BAD_PLACES)[name]
    with pytest.raises(ExperimentError) as error:
        settings({"dataset": "mnist-sample", "preset": "quick", **choices})
    assert_says(str(error.value), choices, field, allowed)


def test_a_bad_preset(monkeypatch):
    with pytest.raises(ExperimentError) as error:
        settings({"preset": "fast"})
    assert_says(str(error.value), {"preset": "fast"}, "preset",
                "one of 'auto', 'paper', 'half', 'small', 'quick'")
    monkeypatch.setenv("CGMVAE_PRESET", "slow")
    with pytest.raises(ExperimentError, match="preset must be one of .* it is 'slow'"):
        settings({})


def test_results_that_cannot_be_written(no_work, tmp_path):
    (tmp_path / "file").write_text("in the way")
    chosen = settings({"preset": "quick", "results": str(tmp_path / "file")})
    with pytest.raises(datasets.DataError, match="results must be a folder that can be written to"):
        chosen.run(chosen.experiment())


def test_a_change_that_is_no_choice():
    with pytest.raises(ExperimentError, match="'KK' is not a choice .* .did you mean 'K'"):
        settings({"preset": "quick"}).experiment(KK=3)


# papermill's parameters

def history(*cells: str) -> dict:
    """The globals of a notebook that has run these cells."""
    return {"In": ["", "# A chapter\nimport cgmvae", PARAMETERS, *cells]}


def test_an_unknown_papermill_parameter():
    with pytest.raises(ExperimentError) as error:
        settings(history("# Parameters\nKK = 3\n", "%matplotlib inline"))
    message = str(error.value)
    assert message.startswith("'KK' is not a parameter of this notebook (did you mean 'K'?)")
    assert "Its parameters are K, dataset, preset, seed." in message and "\n" not in message


def test_known_papermill_parameters():
    check_parameters(history("# Parameters\nK = 3\nseed = 4\n"))
    check_parameters(history("K = 3", "other = 5"))  # a reader's own cells are nobody's business
    check_parameters({})  # not in IPython
    check_parameters(history("%%time\nK = 3 +", "# Parameters\nK = 3"))


def test_parameters_reach_the_experiment():
    scope = {"preset": "quick", "dataset": "cifar100", "K": "7", "tau": "5e-1", "seed": 3,
             "estimator": None, "results": None, "unrelated": object()}
    e = settings(scope).experiment()
    assert e == preset("quick", dataset="cifar100", K=7, tau=0.5, seed=3)
    assert settings(scope).experiment(estimator="marginal", K=4).K == 4


def test_both_estimators_leave_the_choice_to_the_chapter():
    both = settings({"preset": "quick", "estimator": "both"})
    assert both.experiment().estimator == "concrete"
    assert both.experiment(estimator="marginal").estimator == "marginal"
    one = settings({"preset": "quick", "estimator": "marginal"})
    assert one.experiment().estimator == "marginal"


# The scale

def test_auto_is_the_papers_scale_with_a_gpu_and_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path))
    assert find_preset("auto", "mnist", "cpu") == ("quick", "no GPU here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_preset("auto", "mnist", "cpu") == ("quick", "no GPU here")
    scale, reason = find_preset("auto", "mnist", "auto")
    assert scale == "quick" and "'mnist'" in reason and str(tmp_path) in reason
    (tmp_path / "mnist.npz").touch()
    assert find_preset("auto", "mnist", "auto") == ("paper", "a GPU and the full data are here")
    assert find_preset("auto", "mnist-sample", "auto")[0] == "quick"
    assert find_preset("auto", "cifar100", "auto")[0] == "quick"
    assert find_preset("small", "mnist", "auto") == ("small", "asked for")


def test_the_environment_overrides_the_parameter(monkeypatch):
    assert settings({"preset": "small"}).preset == "small"
    monkeypatch.setenv("CGMVAE_PRESET", "quick")
    assert settings({"preset": "small"}).preset == "quick"


def test_it_says_first_thing_which_scale_and_what_that_changes():
    text = settings({"preset": "quick", "dataset": "mnist"})._repr_markdown_()
    for part in ("**quick**", "asked for", "3,600 training images", "`mnist-sample`",
                 "up to 5 epochs", "The paper's scale is 54,000 images and up to 200 epochs",
                 "Device: cpu"):
        assert part in text
    assert "The paper's scale" not in settings({"preset": "paper"})._repr_markdown_()


def test_a_quick_notebook_has_a_results_folder_of_its_own(tmp_path):
    one, two = settings({"preset": "quick"}), settings({"preset": "quick"})
    assert one.results.is_dir() and not list(one.results.iterdir()) and one.results != two.results
    assert settings({"preset": "paper"}).results == records.results_folder()
    assert settings({"preset": "quick", "results": str(tmp_path)}).results == tmp_path
    for made in (one, two):
        made.results.rmdir()


def test_the_results_folder_of_a_quick_notebook_goes_with_its_process():
    code = "from cgmvae.notebook import settings; print(settings({'preset': 'quick'}).results)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert Path(made).name.startswith("cgmvae-") and not Path(made).exists()


# Running and showing

def test_run_and_model(tmp_path):
    chosen = settings({"preset": "quick", "dataset": "mnist", "train_limit": 60, "batch_size": 10,
                       "epochs": 1, "iw_samples": 1, "z_dim": 8, "results": tmp_path,
                       "device": "cpu"})
    e = chosen.experiment(K=3)
    record = chosen.run(e)
    assert Experiment(**record["experiment"]) == e and record["environment"]["device"] == "cpu"
    assert (tmp_path / "runs" / f"{e.id}.json").exists()
    model = chosen.model(e)
    assert model.K == 3 and not model.training
    path = records.Paths(tmp_path, e).weights  # a clone of the book has only published weights
    published = Path(tmp_path, "checkpoints", path.name)
    published.parent.mkdir(exist_ok=True)
    path.rename(published)
    assert torch.equal(chosen.model(e).p_z_layer.weight, model.p_z_layer.weight)
    published.unlink()
    with pytest.raises(checkpoints.CheckpointError, match=f"{e.id} has a record in .*runs, and its weights are not.*results"):
        chosen.model(e)


def test_shown_code_is_shipped_code():
    shown = notebook.show(objectives.elbo, objectives.categorical_kl)
    assert "def elbo(terms" in shown.data and "def categorical_kl(" in shown.data
    assert "language-python" in shown._repr_html_() or "highlight" in shown._repr_html_()


def test_glue_keeps_a_value_for_the_prose_and_prints_nothing(monkeypatch, capsys):
    import myst_nb

    kept = {}

    def noisy(name, value, display):
        print(value)
        kept[name] = value

    monkeypatch.setattr(myst_nb, "glue", noisy)
    notebook.glue("elbo", -46.5)
    assert kept == {"elbo": -46.5} and capsys.readouterr().out == ""
