"""Records: what is in one, that it is written once, and the tables made of many."""

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from helpers import small

import cgmvae
from cgmvae import (
    annealing,
    checkpoints,
    data,
    datasets,
    devices,
    disk,
    evaluation,
    experiment,
    presets,
    records,
    training,
)
from cgmvae.datasets import DATASETS
from cgmvae.experiment import Experiment
from cgmvae.notebook import settings
from cgmvae.records import curves, frame, information, read, read_all, table, write
from cgmvae.run import run

SCHEMA = records.schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
E = small(K=4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / f".{E.id}.safetensors.123").touch()  # as a kill leaves it
    run(E, results=folder)
    return folder


@pytest.fixture
def record(results):
    return json.loads((results / "runs" / f"{E.id}.json").read_text())


# What is in one

def test_a_record_keeps_to_the_schema(record):
    VALIDATOR.check_schema(SCHEMA)
    VALIDATOR.validate(record)


def test_every_record_of_the_book_keeps_to_the_schema():
    book = Path(cgmvae.__file__).resolve().parents[1] / "results"
    for one in read_all(book):
        VALIDATOR.validate(one)
        assert Experiment(**one["experiment"]).id == one["id"]


def every_object(value: dict) -> list[dict]:
    """A record's objects, one of each kind."""
    parts = ("experiment", "metrics", "seconds", "progress", "environment")
    return [value, *(value[k] for k in parts), value["progress"]["curves"][0]]


# What the first records do not have.
LATER = {*experiment.NEUTRAL, "processor", "test_log_px_z_mean", "test_information",
         "test_information_share", "validation_log_px", "validation_kl_z", "validation_kl_y",
         "validation_information", "test_named_acc", "clusters_named"}


def test_the_schema_wants_every_key_and_no_other(record):
    for number, part in enumerate(every_object(record)):
        for key in part.keys() - LATER:
            lacking = copy.deepcopy(record)
            del every_object(lacking)[number][key]
            assert not VALIDATOR.is_valid(lacking), f"{key} may be left out"
        more = copy.deepcopy(record)
        every_object(more)[number]["surprise"] = 1
        assert not VALIDATOR.is_valid(more)


@pytest.mark.parametrize(("part", "key", "value"), [
    ("metrics", "test_acc", 1.2), ("metrics", "test_log_px", "-100"),
    ("metrics", "test_elbo", None), ("metrics", "test_clusters_used", 2.5),
    ("seconds", "training", -1), ("progress", "stopped", ""), ("progress", "curves", []),
    ("experiment", "estimator", "exact"), ("experiment", "K", 0), ("experiment", "K", None),
    ("environment", "git_commit", "main"),
    ("environment", "data_digest", "abc")])
def test_the_schema_refuses(record, part, key, value):
    record[part][key] = value
    assert not VALIDATOR.is_valid(record)


def test_the_schema_knows_every_choice():
    properties = SCHEMA["properties"]["experiment"]["properties"]
    assert list(properties) == [f.name for f in dataclasses.fields(Experiment)]
    named, own = properties["dataset"]["anyOf"]
    assert named["enum"][:5] == ["mnist", "cifar100", "mnist-sample", "cifar100-sample", "fashion-mnist"]
    assert re.fullmatch(own["pattern"], "images-my-photos-0a1b2c3d")
    assert properties["annealing"]["enum"] == ["ramp", "printed", "linear", "none"]
    assert properties["padding"]["enum"] == ["same", "valid"]
    assert properties["K"]["type"] == "integer" and properties["K"]["minimum"] == 1
    assert properties["tau"]["type"] == ["number", "null"] and properties["kl_y_form"]["enum"][-1] is None
    assert properties["validation_fraction"]["exclusiveMaximum"] == 1


def test_what_is_registered_is_known_everywhere(record, monkeypatch):
    """A schedule of a notebook's own: trained, recorded, and its record keeps to the schema."""
    monkeypatch.setitem(annealing.SCHEDULES, "half", lambda t, steps: torch.as_tensor(t) * 0 + 0.5)
    e = Experiment(annealing="half")
    record["experiment"] |= {"annealing": "half"}
    assert e.annealing == "half"
    assert jsonschema.Draft202012Validator(records.schema()).is_valid(record)
    assert not VALIDATOR.is_valid(record)


def test_the_schema_knows_every_scale_and_place():
    assert SCHEMA["properties"]["preset"]["enum"] == [*presets.PRESETS, "custom"]
    environment = SCHEMA["properties"]["environment"]["properties"]
    assert set(environment["precision"]["enum"]) == set(devices.PRECISIONS) - {"auto"}
    assert set(environment["compile"]["enum"]) == set(devices.COMPILATIONS) - {"auto"}


def test_a_record_says_what_was_run_and_how_it_went(record):
    assert record["id"] == E.id and record["preset"] == "custom"
    assert Experiment(**record["experiment"]) == E
    progress = record["progress"]
    assert (progress["epochs"], progress["steps"]) == (3, 15)
    assert progress["stopped"] == "all 3 epochs done"
    losses = [row["validation_loss"] for row in progress["curves"]]
    assert progress["best_validation_loss"] == min(losses)
    assert progress["best_epoch"] == 1 + losses.index(min(losses))
    assert progress["final_train_kl_y"] == progress["curves"][-1]["kl_y"]
    seconds = record["seconds"]
    assert seconds["training"] > 0 and seconds["evaluation"] > 0 and seconds["compilation"] == 0
    assert progress["images_per_second"] == pytest.approx(150 / seconds["training"], rel=1e-3)
    assert record["metrics"]["iw_samples"] == E.iw_samples
    environment = record["environment"]
    how = [environment[k] for k in ("device", "precision", "compile")]
    assert how == ["cpu", "float32", "none"]
    assert environment["data_digest"] == DATASETS["mnist-sample"].digest
    assert environment["libraries"]["cgmvae"] == cgmvae.__version__


def test_the_weights_of_a_run_are_kept_and_its_checkpoint_is_not(results, record):
    paths = records.Paths(results, E)
    model, e = checkpoints.load_weights(paths.weights)
    splits = data.split(e, data.load(e.dataset), "cpu")
    metrics = evaluation.evaluate(model, splits, e)
    assert e == E and metrics == pytest.approx(record["metrics"])
    assert not list(paths.checkpoint.parent.iterdir())


# Written once

def test_a_finished_run_is_not_repeated(results, record, no_work):
    assert run(E, results=results) == record


def test_run_returns_what_it_wrote(tmp_path):
    e = small(epochs=1)
    assert run(e, results=tmp_path) == read(tmp_path / "runs" / f"{e.id}.json")


def test_a_record_is_never_replaced_by_a_different_one(results, record):
    path = results / "runs" / f"{E.id}.json"
    before = path.read_bytes()
    other = copy.deepcopy(record)
    other["experiment"]["K"] = 5
    with pytest.raises(FileExistsError, match=f"{E.id}.json holds the record of another run"):
        write(other, path)
    again = copy.deepcopy(record)
    again["metrics"]["test_log_px"] += 1  # the same run once more: the first result stands
    write(again, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_record_is_whole_before_it_has_its_name(record, tmp_path, monkeypatch):
    seen = []
    replace = disk.os.replace

    def watched(source, target):
        seen.append((json.loads(source.read_text()) == record, source.parent == target.parent))
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", watched)
    write(record, tmp_path / "runs" / f"{E.id}.json")
    assert seen == [(True, True)]
    assert read(tmp_path / "runs" / f"{E.id}.json") == record


def test_a_record_with_a_number_that_is_none_is_not_written(record, tmp_path):
    record["metrics"]["test_log_px"] = math.nan
    with pytest.raises(ValueError):
        write(record, tmp_path / f"{E.id}.json")
    assert not (tmp_path / f"{E.id}.json").exists()


@pytest.mark.parametrize("content", ("", "{", "[]", '{"id": "another"}', "\udcff"))
def test_a_file_that_is_no_record(tmp_path, content, no_work):
    path = tmp_path / "runs" / f"{E.id}.json"
    path.parent.mkdir()
    path.write_bytes(content.encode(errors="surrogateescape"))
    for attempt in (lambda: read(path), lambda: run(E, results=tmp_path),
                    lambda: read_all(tmp_path)):
        with pytest.raises(datasets.DataError) as error:
            attempt()
        assert f"{path} is not a record" in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == content.encode(errors="surrogateescape")


def test_the_results_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("CGMVAE_RESULTS", str(tmp_path))
    assert records.results_folder() == tmp_path
    monkeypatch.delenv("CGMVAE_RESULTS")
    assert records.results_folder() == Path(cgmvae.__file__).resolve().parents[1] / "results"


def test_a_results_folder_can_be_given_from_the_home_folder(tmp_path, monkeypatch):
    """Also where no shell puts it in: in a notebook, and in `--results=~/mine`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.Paths("~/mine", E).root == settings({"results": "~/mine"}).results == tmp_path / "mine"
    (tmp_path / "mine" / "runs").mkdir(parents=True)
    (tmp_path / "mine" / "runs" / "a.json").touch()
    with pytest.raises(datasets.DataError, match="mine/runs/a.json is not a record"):
        read_all("~/mine")
    monkeypatch.setenv("CGMVAE_RESULTS", "~/theirs")
    assert records.results_folder() == tmp_path / "theirs"


def test_without_the_book_results_go_to_the_folder_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.delenv("CGMVAE_RESULTS", raising=False)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "site-packages" / "cgmvae" / "records.py"))
    monkeypatch.chdir(tmp_path)
    assert records.results_folder() == tmp_path / "results"


def test_a_folder_without_the_permission_to_write_is_refused(tmp_path, monkeypatch, no_work):
    monkeypatch.setattr(records.os, "access", lambda path, mode: False)
    with pytest.raises(datasets.DataError, match="results must be a folder that can be written to; .*no permission"):
        records.Paths(tmp_path, E).check_writable()


def test_the_commit_of_a_record_says_whether_files_had_changed(tmp_path, monkeypatch):
    module = sys.modules["cgmvae.run"]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "run.py"))

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)
    git("init", "--quiet")
    (tmp_path / "run.py").write_text("1")
    git("add", "run.py"), git("commit", "--quiet", "--no-gpg-sign", "-m", "first")
    commit = module._commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "run.py").write_text("2")
    assert module._commit() == commit + "+"


# Many

def made(record: dict, log_px: float, hours: float, **changes) -> dict:
    """A record like another, of another experiment and with another result."""
    e = Experiment(**changes)
    new = copy.deepcopy(record)
    new |= {"id": e.id, "preset": e.preset, "experiment": e.as_dict()}
    new["metrics"] |= {"test_log_px": log_px, "test_kl_y": -log_px / 100}
    new["seconds"]["training"] = 3600 * hours
    return new


def test_a_table_has_mean_deviation_and_number_of_seeds(record):
    rows = table([made(record, -46.0, 1, seed=0), made(record, -48.0, 3, seed=1),
                  made(record, -50.0, 5, seed=2), made(record, -40.0, 2, estimator="marginal"),
                  made(record, -99.0, 7, tau=0.5)])
    assert rows["n"].tolist() == [3, 1, 1]
    assert rows["test_log_px"].tolist() == [-48.0, -40.0, -99.0]
    assert rows["sd"][0] == pytest.approx(2.0) and math.isnan(rows["sd"][1])
    assert rows["hours"].tolist() == [3, 2, 7] and rows["hours_sd"][0] == pytest.approx(2)
    assert rows["test_kl_y"][0] == pytest.approx(0.48)
    assert rows["estimator"].tolist() == ["concrete", "marginal", "concrete"]
    assert rows["tau"][0] == 0.3 and math.isnan(rows["tau"][1])
    assert "seed" not in rows


def test_a_table_of_nothing_is_empty(tmp_path):
    assert read_all(tmp_path) == [] and table([]).empty


def test_a_frame_has_a_row_a_record(results, record):
    rows = frame(read_all(results))
    assert len(rows) == 1
    row = rows.iloc[0]
    for key, value in {"id": E.id, "K": 4, "epochs": 3, "epochs_run": 3, "precision": "float32",
                       "test_acc": record["metrics"]["test_acc"],
                       "seconds_training": record["seconds"]["training"]}.items():
        assert row[key] == value, key
    assert "curves" not in rows


def test_curves_are_by_epoch(record):
    rows = curves(record)
    assert rows.index.tolist() == [1, 2, 3] and rows.index.name == "epoch"
    assert rows.loc[2, "validation_loss"] == record["progress"]["curves"][1]["validation_loss"]


def test_information_of_an_older_record_follows_from_what_it_holds(record):
    known = record["metrics"].pop("test_information")
    assert known > 0
    assert information(record) == pytest.approx(known, abs=1e-6)
    record["metrics"]["test_information"] = 0.25
    assert information(record) == 0.25


def test_the_clock_is_the_processors_where_the_record_has_it():
    rows = [{"epoch": k, "seconds": s} for k, s in ((1, 3.0), (2, 4.0), (3, 9.0))]
    record = {"progress": {"curves": rows}, "environment": {"device": "cpu"},
              "seconds": {"training": 9.0, "processor": 6.0}}
    assert records.clock(record).tolist() == [2, 4, 6]
    assert records.clock(record | {"environment": {"device": "cuda"}}).tolist() == [3, 4, 9]
    assert records.clock(record | {"seconds": {"training": 9.0}}).tolist() == [3, 4, 9]


def test_a_table_has_means_over_seeds():
    rows = []
    for seed, acc, known in ((0, 0.2, 0.1), (1, 0.6, 0.7)):
        e = Experiment(seed=seed)
        rows.append({"id": e.id, "preset": e.preset, "experiment": e.as_dict(), "seconds": {"training": 1.0},
                     "metrics": {"test_log_px": -1.0, "test_kl_y": 1.0, "test_acc": acc, "test_information": known},
                     "progress": {"epochs": 1}, "environment": {"device_name": "a", "precision": "float32"}})
    of_both = table(rows)
    assert (of_both["test_acc"][0], of_both["test_information"][0]) == pytest.approx((0.4, 0.4))
