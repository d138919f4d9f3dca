"""The benchmark's command, on few and small steps: what it times, saves and prints."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "bench.py"
spec = importlib.util.spec_from_file_location("bench", PATH)
bench = importlib.util.module_from_spec(spec)
sys.modules["bench"] = bench  # its processes look for their work by this name
spec.loader.exec_module(bench)


def test_growth_names_what_takes_longer_and_leaves_out_what_does_not():
    narrow, wide = {"mm": 0.010, "add": 0.002, "exp": 0.001}, {"mm": 0.014, "add": 0.002, "rand": 0.001}
    grown = bench.growth(narrow, wide, most=2)
    assert list(grown) == ["mm", "rand"]
    assert grown["mm"] == pytest.approx(0.004) and grown["rand"] == pytest.approx(0.001)


def test_ratio_is_taken_within_a_round():
    low, middle, high = bench.ratio([1.0, 20.0, 3.0], [2.0, 40.0, 6.0])
    assert low == middle == high == 0.5


@pytest.fixture
def own_cores():
    """The command pins itself to its cores; the tests after this one have all of them again."""
    before, threads = getattr(os, "sched_getaffinity", lambda _: None)(0), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if before:
        os.sched_setaffinity(0, before)


def test_the_command_times_all_and_saves_it(tmp_path, monkeypatch, capsys, own_cores):
    monkeypatch.setattr(bench, "CELLS", [("mnist", "concrete", 3)])
    monkeypatch.setattr(bench, "KS", (1, 2))
    monkeypatch.setattr(bench, "BATCH", 4)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--rounds", "3", "--budget", "20", "--out", str(tmp_path),
                                      "--device", "cpu"])
    monkeypatch.syspath_prepend(str(PATH.parent))
    bench.main()
    path, = tmp_path.glob("*.json")
    assert not list(tmp_path.glob("*.part"))
    saved = json.loads(path.read_text())
    cell, = saved["cells"]
    assert {"plain", "pyro", "ours float32"} <= set(cell["times"])
    assert all(len(t["seconds"]) == 3 and min(t["seconds"]) > 0 for t in cell["times"].values())
    assert [w["dataset"] for w in saved["wide"]] == ["mnist", "cifar100"]
    assert all(max(w["grown"].values()) > 0 for w in saved["wide"])
    assert [(s["estimator"], s["K"]) for s in saved["sweep"]] == [
        ("concrete", 1), ("concrete", 2), ("marginal", 1), ("marginal", 2)]
    assert {p.name for p in tmp_path.glob("*.png")} == {f"{path.stem}.{kind}.png" for kind in ("steps", "share")}
    out = capsys.readouterr().out
    assert "K = 1,000 over K = 10" in out and "what grew" in out


def test_a_stopped_benchmark_leaves_the_last_whole_one(tmp_path):
    whole = {"environment": {"device_name": "Some CPU"}, "cells": [1]}
    path = bench.save(whole, tmp_path, done=True)
    part = bench.save(whole | {"cells": []}, tmp_path)
    assert json.loads(path.read_text()) == whole and part != path and part.suffix == ".part"
