"""The other package's clusterings, with a stand-in for that package: what is trained, scored and kept."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "peers.py"


class Nearest:
    """Clusters by brightness: as a fit, and as a prediction of other images."""

    made = []

    def __init__(self, **choices):
        self.made.append(choices)

    def fit(self, images):
        self.cuts = np.quantile(images.mean(1), np.linspace(0, 1, 11)[1:-1])
        return self

    def predict(self, images):
        return np.digitize(images.mean(1), self.cuts)


@pytest.fixture
def peers(monkeypatch):
    package, deep = ModuleType("clustpy"), ModuleType("clustpy.deep")
    package.deep, deep.VaDE, deep.DEC, Nearest.made = deep, Nearest, Nearest, []
    monkeypatch.setitem(sys.modules, "clustpy", package)
    monkeypatch.setitem(sys.modules, "clustpy.deep", deep)
    spec = importlib.util.spec_from_file_location("peers", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0")
    real = module.digits
    monkeypatch.setattr(module, "digits", lambda seed: real(seed, "mnist-sample"))
    return module


def test_digits_are_grey_and_those_of_a_run_with_the_seed(peers):
    train, test, classes = peers.digits(0)
    assert train.shape == (3600, 784) and len(test) == len(classes) == 1000
    assert 0 <= train.min() < train.max() <= 1 and len(np.unique(train)) > 100
    other, same_test, _ = peers.digits(1)
    assert not np.array_equal(train, other) and np.array_equal(test, same_test)


def test_a_run_is_scored_on_the_test_digits_and_made_once(peers, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers.py", "--methods", "VaDE", "--seeds", "2", "--out", str(tmp_path)])
    monkeypatch.setattr(peers, "MINUTES", 1e-9)  # so that the share of the defaults' epochs is none
    peers.main()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"vade-s{s}-{b}.json" for s in (0, 1) for b in ("defaults", "minutes")]
    assert [(c["n_clusters"], c["random_state"], c["pretrain_epochs"], c["clustering_epochs"]) for c in Nearest.made] == [
        (10, s, *epochs) for s in (0, 1) for epochs in ((100, 150), (1, 1))]
    found = json.loads((tmp_path / "vade-s1-defaults.json").read_text())
    train, test, classes = peers.digits(1)
    assert found["test"] == peers.cluster_scores(Nearest().fit(train).predict(test), classes)
    assert 0.15 < found["test"]["acc"] < 0.5 and found["train_images"] == 3600
    made = len(Nearest.made)
    peers.main()
    assert len(Nearest.made) == made


def test_the_saved_runs_are_what_the_program_makes(peers):
    saved = sorted((PATH.parents[1] / "results" / "peers").glob("*.json"))
    assert saved
    for path in saved:
        found = json.loads(path.read_text())
        whole = found["budget"] == "its defaults"
        assert path.stem == f"{found['method'].lower()}-s{found['seed']}-{'defaults' if whole else 'minutes'}"
        epochs = (found["pretrain_epochs"], found["clustering_epochs"])
        assert found["method"] in peers.METHODS and found["seed"] < peers.SEEDS and found["train_images"] == 54000
        assert epochs == peers.EPOCHS if whole else max(epochs) < min(peers.EPOCHS)
        assert 0.1 < found["test"]["acc"] <= 1 and found["minutes"] > 0 and found["environment"]["threads"] == 1
