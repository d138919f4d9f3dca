"""The benchmark's command, on few and small steps: what it times, saves and prints."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cgmvae import benchmark_figures
from cgmvae.experiment import preset

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def script(name):
    """A script of the benchmark's; its processes look for their work by this name."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = script("bench")
quality = script("quality")


def test_growth_names_what_takes_longer_and_leaves_out_what_does_not():
    narrow, wide = {"mm": 0.010, "add": 0.002, "exp": 0.001}, {"mm": 0.014, "add": 0.002, "rand": 0.001}
    grown = bench.growth(narrow, wide, most=2)
    assert list(grown) == ["mm", "rand"]
    assert grown["mm"] == pytest.approx(0.004) and grown["rand"] == pytest.approx(0.001)


def test_ratio_is_taken_within_a_round():
    assert bench.ratio([1.0, 20.0, 3.0], [2.0, 10.0, 12.0]) == [0.25, 0.5, 2.0]


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
    monkeypatch.setattr(bench, "CREWS", 2)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--rounds", "3", "--budget", "20", "--out", str(tmp_path),
                                      "--device", "cpu"])
    monkeypatch.syspath_prepend(str(FOLDER))
    bench.main()
    path, = tmp_path.glob("*.json")
    assert not list(tmp_path.glob("*.part"))
    saved = json.loads(path.read_text())
    cell, = saved["cells"]
    assert {"plain", "pyro", "ours float32"} <= set(cell["times"])
    assert all(len(t["seconds"]) == 3 and min(t["seconds"]) > 0 for t in cell["times"].values())
    for name, times in cell["times"].items():
        parts = benchmark_figures.seconds_by_kind(times)
        assert min(parts["convolutions"], parts["matrix products"], parts["pooling and ReLU"]) > 0, name
        assert sum(times["profile"].values()) == pytest.approx(
            sum(parts.values()) - parts["between operators"]) and parts["Adam"] > 0
    assert [w["dataset"] for w in saved["wide"]] == ["mnist", "cifar100"]
    assert all(max(w["grown"].values()) > 0 for w in saved["wide"])
    assert all(len(t["seconds"]) == 2 * 3 for w in saved["wide"] for t in w["times"].values())
    assert [(s["estimator"], s["K"]) for s in saved["sweep"]] == [
        ("concrete", 1), ("concrete", 2), ("marginal", 1), ("marginal", 2)]
    assert {p.name for p in tmp_path.glob("*.png")} == {f"{path.stem}.{kind}.png" for kind in ("steps", "share", "kinds")}
    out = capsys.readouterr().out
    assert "K = 1,000 over K = 10" in out and "what grew" in out


def test_a_data_set_that_there_is_not_is_refused_before_anything_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("something is timed"))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--dataset", "minst"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "invalid choice: 'minst'" in capsys.readouterr().err


def test_operators_seconds_are_counted_once_and_with_those_of_the_backward_pass():
    weight = torch.ones(8, 8, requires_grad=True)

    def step():
        weight.mm(weight).sum().backward()
    seconds = bench.profile(step, torch.device("cpu"), steps=2)
    assert {"aten::mm", "aten::sum", "aten::t"} <= set(seconds) and min(seconds.values()) > 0
    with bench.Operators() as seen:
        torch.ones(3) + 1
    assert set(seen.seconds) == {"aten::ones", "aten::add"}


def test_a_stopped_benchmark_leaves_the_last_whole_one(tmp_path):
    whole = {"environment": {"device_name": "Some CPU"}, "cells": [1]}
    path = bench.path_of(whole, tmp_path)
    bench.save(whole, path, done=True)
    bench.save(whole | {"cells": []}, path)
    assert json.loads(path.read_text()) == whole and path.with_suffix(".part").exists()


def test_a_kill_in_the_middle_of_a_save_leaves_what_was_saved_before(tmp_path, monkeypatch):
    """Time to quality goes on from it."""
    so_far = {"environment": {"device_name": "Some CPU"}, "cells": [1]}
    path = bench.path_of(so_far, tmp_path)
    bench.save(so_far, path)

    def killed(file, text, **_):
        file.write_bytes(text.encode()[:9])
        raise KeyboardInterrupt
    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.save(so_far | {"cells": [1, 2]}, path)
    assert json.loads(path.with_suffix(".part").read_text()) == so_far


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(system, unit, monkeypatch):
    """The system counts in KiB, but that of macOS in bytes."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3000))
    monkeypatch.setattr(bench.sys, "platform", system)
    assert bench.peak_memory(torch.device("cpu")) == 3000 * unit


@pytest.mark.parametrize(("seconds", "said"), [(1.0, "0.50 [0.50, 0.50] of plain ok"), (1.4, "of plain over 0.58")])
def test_a_cell_is_printed_with_its_bound_and_its_share_of_the_rate(seconds, said, capsys):
    times = {name: {"seconds": 3 * [s]} for name, s in (("plain", 2.0), ("ours float32", seconds))}
    cell = {"dataset": "mnist", "estimator": "concrete", "K": 10, "operations": 1e9, "times": times}
    bench.print_cell(cell, {"float32": 4e9})
    plain, ours = capsys.readouterr().out.splitlines()[2:]
    assert "2000.0 ms,  12% of the float32 GEMM rate" in plain and said in ours and ours.endswith("(the floor: 0.12)")


@pytest.mark.parametrize(("seconds", "said"), [(1.0, "] ok;"), (1.5, "] over 1.")])
def test_a_step_may_grow_with_K_as_the_count_does(seconds, said, capsys):
    def times(jobs, rounds, **_):
        return {"K=10": {"seconds": rounds * [1.0], "peak_bytes": 7, "profile": {"mm": 0.5}},
                "K=1000": {"seconds": rounds * [seconds], "peak_bytes": 9, "profile": {"mm": 0.75}}}
    found = bench.growth_with_K(SimpleNamespace(times=times), "mnist", 12)
    assert said in capsys.readouterr().out
    assert found["grown"] == {"mm": 0.25} and found["times"]["K=1000"] == {"seconds": 12 * [seconds], "peak_bytes": 9}


def test_processors_of_one_name_and_other_instructions_have_files_of_their_own(tmp_path):
    paths = {bench.path_of({"environment": {"device_name": "AMD EPYC", "instructions": i}}, tmp_path).name
             for i in ("AVX2", "AVX512 avx512_bf16")}
    assert paths == {"amd-epyc-avx2.json", "amd-epyc-avx512-avx512-bf16.json"}


@pytest.mark.parametrize(("name", "instructions", "words"), [
    ("Intel(R) Xeon(R) Processor", "AVX512 amx_bf16 avx512_bf16", "Xeon, AMX bf16"),
    ("AMD EPYC", "AVX512 avx512_bf16", "EPYC, AVX512 bf16"), ("AMD EPYC", "AVX2", "EPYC, AVX2"),
    ("NVIDIA H100 80GB HBM3", None, "H100 80GB HBM3")])
def test_a_title_names_a_device_in_a_few_words(name, instructions, words):
    assert benchmark_figures.short({"environment": {"device_name": name, "instructions": instructions}}) == words


def test_a_level_is_passed_at_the_first_epoch_that_is_not_above_it():
    run = {"validation_loss": [120.0, 100.0, 90.0, 101.0], "seconds": [60.0, 30.0, 30.0, 30.0]}
    assert benchmark_figures.passed(run, 100.0) == (2, 1.5)
    assert benchmark_figures.passed(run, 80.0) is None


def test_minutes_to_a_level_are_told_as_a_share_of_plain_pytorchs():
    runs = {name: {"seconds": [s, s], "validation_loss": [110.0, 95.0]}
            for name, s in (("plain", 60.0), ("ours float32", 15.0))}
    text = quality.summary({"dataset": "mnist", "estimator": "concrete", "K": 10, "levels": [100.0, 90.0],
                            "runs": runs})
    assert "100 nats: ours float32  epoch  2,    0.5 minutes, 0.25 of plain" in text
    assert text.endswith("90 nats: ours float32  not reached")


@pytest.fixture
def short(monkeypatch):
    """One cell on few images, and levels of which the first epoch passes one and nothing the other."""
    monkeypatch.setattr(quality, "CELLS", [("mnist-sample", "concrete", 3)])
    monkeypatch.setattr(quality, "preset", lambda *scale, **choices: preset(*scale, **choices, train_limit=640))
    monkeypatch.setattr(quality, "LEVELS", {"mnist-sample": [1e6, 0.0]})
    monkeypatch.syspath_prepend(str(FOLDER))

    def call(folder):
        monkeypatch.setattr(sys, "argv", ["quality.py", "--epochs", "2", "--out", str(folder), "--device", "cpu"])
        quality.main()
        path, = folder.glob("*.quality.json")
        return path
    return call


def test_time_to_quality_is_of_all_implementations_and_goes_on_after_a_stop(short, tmp_path, capsys, own_cores, monkeypatch):
    path = short(tmp_path)
    saved = json.loads(path.read_text())
    cell, = saved["cells"]
    assert {"plain", "pyro", "ours float32"} <= set(cell["runs"])
    for run in cell["runs"].values():
        assert len(run["seconds"]) == 2 and min(run["seconds"]) > 0
        # A model that learns, measured alike: pixels of probability one half would be 543 nats.
        assert 100 < run["validation_loss"][1] < run["validation_loss"][0] < 600
    assert path.with_suffix(".png").exists() and not list(tmp_path.glob("*.part"))
    out = capsys.readouterr().out
    assert "1000000 nats: plain         epoch  1" in out and "0 nats: plain         not reached" in out

    path.rename(path.with_suffix(".part"))
    monkeypatch.setattr(quality, "train", None)  # nothing is trained again
    assert json.loads(short(tmp_path).read_text()) == saved


def test_a_stopped_benchmark_of_other_epochs_is_not_gone_on_with(tmp_path, monkeypatch):
    """Its levels may not have been reached for want of epochs."""
    trained = []

    def train(bench, e, names, levels, epochs):
        trained.append(epochs)
        return {"plain": {"seconds": [1.0], "validation_loss": [9.0]}}
    monkeypatch.setattr(quality, "train", train)
    monkeypatch.setattr(quality, "CELLS", [("mnist-sample", "concrete", 3)])
    monkeypatch.setattr(quality, "LEVELS", {"mnist-sample": [9.5, 8.0]})
    for epochs in ("2", "3", "3"):
        monkeypatch.setattr(sys, "argv", ["quality.py", "--epochs", epochs, "--out", str(tmp_path), "--device", "cpu"])
        quality.main()
        path, = tmp_path.glob("*.quality.json")
        path.rename(path.with_suffix(".part"))
    assert trained == [2, 3]


def test_without_the_images_nothing_is_trained_or_saved(tmp_path, monkeypatch):
    def missing(dataset):
        raise quality.DataError(f"no file of {dataset!r}")
    monkeypatch.setattr(quality.data, "load", missing)
    monkeypatch.setattr(quality, "train", None)
    monkeypatch.setattr(sys, "argv", ["quality.py", "--out", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit, match="no file of 'mnist'"):
        quality.main()
    assert not list(tmp_path.iterdir())
