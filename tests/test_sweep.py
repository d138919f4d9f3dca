"""The sweep: which runs are in a table, what is done, and a kill at any moment."""

import json
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from tqdm import tqdm

from cgmvae import checkpoints, records, sweep, tables
from cgmvae.__main__ import main
from cgmvae.experiment import ExperimentError
from cgmvae.disk import DiskError
from cgmvae.model import GMVAE
from cgmvae.run import run
from cgmvae.training import NonFiniteLoss

CELL = {"dataset": "mnist-sample", "train_limit": 60, "batch_size": 10, "epochs": 4, "iw_samples": 2,
        "z_dim": 8}
TINY = ("quick", 2, [{**CELL, "estimator": e} for e in ("concrete", "marginal")])
SCRIPT = f"""
import sys, pathlib
from cgmvae import sweep, tables
tables.TABLES["tiny"] = {TINY!r}
print(sweep.sweep("tiny", out=pathlib.Path(sys.argv[1]), minutes=float(sys.argv[2]), at_once=2))
"""


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(tables.TABLES, "tiny", TINY)
    monkeypatch.setenv("CGMVAE_RESULTS", str(tmp_path / "book"))
    return tmp_path / "out"


def results(folder) -> dict:
    """What must be the same after a kill: everything but seconds."""
    found = {}
    for r in records.read_all(folder):
        curves = [{k: v for k, v in row.items() if k != "seconds"} for row in r["progress"]["curves"]]
        found[r["id"]] = json.dumps([r["metrics"], curves, r["progress"]["stopped"]])
    return found


def test_table1_is_44_runs_seed_by_seed_across_its_cells():
    runs = tables.runs("table1")
    assert len({e.id for e in runs}) == len(runs) == 44
    assert {e.seed for e in runs} == set(range(11))
    assert [e.seed for e in runs[:5]] == [0, 0, 0, 0, 1]
    assert len({(e.dataset, e.estimator) for e in runs[:4]}) == 4
    assert all(e.preset == "paper" for e in runs)


def test_a_cell_can_have_fewer_seeds_than_its_table():
    runs = [e for e in tables.runs("half") if e.dataset == "mnist"]
    assert [e.seed for e in runs if e.estimator == "marginal"] == [0, 1, 2]
    assert [e.seed for e in runs if e.annealing == "ramp"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_no_table_holds_a_run_twice(name):
    ids = [e.id for e in tables.runs(name)]
    assert len(set(ids)) == len(ids)


def test_an_unknown_table_is_refused_by_name(capsys):
    with pytest.raises(ExperimentError, match="table must be one of 'table1'.*'tabel1'"):
        tables.runs("tabel1")
    assert main(["sweep", "tabel1"]) == 2
    assert "did you mean 'table1'" in capsys.readouterr().err


def test_runs_taken_in_turn_end_as_they_do_one_by_one(tiny):
    assert sweep.sweep("tiny", out=tiny, minutes=5, at_once=3) == 4
    alone = tiny.parent / "alone"
    for e in tables.runs("tiny"):
        run(e, results=alone)
    assert results(tiny) == results(alone)
    shared = {r["environment"]["runs_at_once"] for r in records.read_all(tiny)}
    assert shared == {3} and {s.state for s in sweep.states("tiny", [tiny])} == {"done"}
    assert sweep.sweep("tiny", out=tiny, minutes=5) == 0  # nothing is run twice


def test_no_time_left_leaves_checkpoints_that_the_next_call_goes_on_from(tiny, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(clock))
    assert sweep.sweep("tiny", out=tiny, minutes=8.5 / 60, at_once=2) == 0  # eight rounds
    monkeypatch.undo()
    monkeypatch.setitem(tables.TABLES, "tiny", TINY)
    states = [s.state for s in sweep.states("tiny", [tiny])]
    assert states == ["unfinished", "unfinished", "missing", "missing"]
    first = records.Paths(tiny, tables.runs("tiny")[0]).checkpoint
    progress = json.loads(checkpoints.header(first, checkpoints.RUN)["progress"])
    assert 0 < progress["step"] < 20
    assert sweep.sweep("tiny", out=tiny, minutes=5) == 4


class Stub:
    """A run of three steps; the first of a table breaks at its second, if `error` is given."""

    error, stopped = None, []

    def __init__(self, experiment, *_):
        self.experiment, self.trainer, self.taken = experiment, self, 0
        self.progress = {"step": 0}

    def advance(self):
        self.taken += 1
        if self.taken == 2 and self.error and self.experiment == tables.runs("tiny")[0]:
            raise self.error
        return self.taken == 3

    def stop(self):
        self.stopped.append(self.experiment)


@pytest.mark.parametrize("at_once", (1, 2))
def test_a_run_whose_loss_is_not_finite_does_not_keep_the_others(tiny, monkeypatch, at_once, capsys):
    monkeypatch.setattr(sweep, "Active", type("Broken", (Stub,), {"error": NonFiniteLoss("kl_z is nan."), "stopped": []}))
    assert sweep.sweep("tiny", out=tiny, minutes=5, at_once=at_once) == 3
    assert f"{tables.runs('tiny')[0].id} stopped. kl_z is nan." in "".join(capsys.readouterr())


def test_an_error_of_one_run_leaves_checkpoints_of_the_others(tiny, monkeypatch):
    broken = type("Broken", (Stub,), {"error": DiskError("full"), "stopped": []})
    monkeypatch.setattr(sweep, "Active", broken)
    with pytest.raises(DiskError, match="full"):
        sweep.sweep("tiny", out=tiny, minutes=5, at_once=3)
    assert broken.stopped == tables.runs("tiny")[1:3]


def test_ctrl_c_leaves_checkpoints_between_two_steps(tiny, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pressed = type("Pressed", (Stub,), {"stopped": [], "advance": lambda self: signal.raise_signal(signal.SIGINT)})
    monkeypatch.setattr(sweep, "Active", pressed)
    with pytest.raises(KeyboardInterrupt, match="2 runs left a checkpoint"):
        sweep.sweep("tiny", out=tiny, minutes=5, at_once=2)
    assert len(pressed.stopped) == 2
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def begun(monkeypatch):
    """The runs that a sweep begins, in order, and how many it lets share the device; none is made."""
    made = []

    class Noted(Stub):
        def __init__(self, experiment, out, device, precision, at_once):
            super().__init__(experiment)
            made.append((experiment, at_once))
    monkeypatch.setattr(sweep, "Active", Noted)
    return made


def test_what_was_cut_off_goes_first(tiny, begun, monkeypatch):
    runs = tables.runs("tiny")
    states = [sweep.State(e, s) for e, s in zip(runs, ("missing", "done", "unfinished", "missing"), strict=True)]
    monkeypatch.setattr(sweep, "states", lambda *_: states)
    assert sweep.sweep("tiny", out=tiny, minutes=5) == 3
    assert [e for e, _ in begun] == [runs[2], runs[0], runs[3]]


def test_runs_share_a_device_only_if_it_is_no_processor(tiny, begun):
    sweep.sweep("tiny", out=tiny, minutes=5, device="cpu")
    assert {at_once for _, at_once in begun} == {1}


def test_a_checkpoint_in_the_books_results_is_not_one_to_go_on_from(tiny):
    """The sweep writes to `out`, and starts there anew."""
    path = records.Paths(records.results_folder(), tables.runs("tiny")[0]).checkpoint
    path.parent.mkdir(parents=True)
    path.touch()
    assert {s.state for s in sweep.states("tiny", [records.results_folder(), tiny])} == {"missing"}


def test_a_record_in_the_books_results_counts_as_done(tiny):
    first = tables.runs("tiny")[0]
    run(first, results=records.results_folder())
    assert [s.state for s in sweep.states("tiny", [records.results_folder(), tiny])].count("done") == 1
    assert sweep.sweep("tiny", out=tiny, minutes=5) == 3
    assert not records.Paths(tiny, first).record.exists()


def test_a_sweep_that_is_killed_and_called_again_ends_as_one_that_was_not(tiny):
    """What is killed are processes; what goes on from the last is this one."""
    whole, killed = tiny.parent / "whole", tiny
    command = [sys.executable, "-c", SCRIPT]
    sweep.sweep("tiny", out=whole, minutes=5, at_once=2)
    for delay in (0.0, 0.5):
        process = subprocess.Popen([*command, str(killed), "5"], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(killed.glob("unfinished/*.safetensors")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for record in killed.glob("runs/*.json"):
            records.read(record)  # whole, or not there
    sweep.sweep("tiny", out=killed, minutes=5, at_once=2)
    assert results(killed) == results(whole) and len(results(whole)) == 4


def test_publish_writes_the_median_seed_in_half_precision_where_that_leaves_the_value(tiny, monkeypatch):
    monkeypatch.setitem(tables.TABLES, "tiny", ("quick", 3, TINY[2][:1]))
    sweep.sweep("tiny", out=tiny, minutes=5)
    written = sweep.publish("tiny", tiny)
    values = {r["id"]: r["metrics"]["test_log_px"] for r in records.read_all(tiny)}
    median = sorted(values, key=values.get)[1]
    assert [p.stem for p in written] == [median]
    single = records.Paths(tiny, tables.runs("tiny")[0]).weights
    assert written[0].stat().st_size < 0.6 * single.stat().st_size
    path, = sweep.publish("tiny", tiny, tolerance=0.0)  # any move is too much
    assert path.stat().st_size == single.stat().st_size


def test_halved_weights_that_give_no_number_are_not_published(tiny, monkeypatch):
    """A weight above 65,504 is infinite in half precision."""
    e = tables.runs("tiny")[0]
    paths = records.Paths(tiny, e)
    checkpoints.save_weights(GMVAE(e), e, paths.weights)
    monkeypatch.setattr(sweep.evaluation, "evaluate", lambda *_: {"test_log_px": float("nan")})
    assert sweep.publish_one(e, paths, -100.0, 0.1).stat().st_size == paths.weights.stat().st_size


def test_status_counts_what_is_there(tiny, capsys, monkeypatch):
    run(tables.runs("tiny")[0], results=tiny)
    assert main(["sweep", "tiny", "--status", "--out", str(tiny)]) == 0
    name, head, *lines = capsys.readouterr().out.split("\n")[1:-1]
    assert name == "tiny" and head.split()[-3:] == ["done", "unfinished", "missing"]
    assert [line.split()[-3:] for line in lines] == [["1", "0", "1"], ["0", "0", "2"]]


@pytest.mark.parametrize("name", tables.TABLES)
def test_status_leaves_no_run_of_a_table_out(name, tmp_path):
    """Also where a field that tells cells apart is None in some of them."""
    counts = sweep.status(name, [tmp_path])[["done", "unfinished", "missing"]]
    assert counts.to_numpy().sum() == len(tables.runs(name))


def test_tables_are_swept_in_turn_and_share_the_minutes(tiny, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "sweep", lambda name, minutes, **_: asked.append((name, minutes)) or 2)
    assert main(["sweep", "small", "tiny", "--minutes", "5", "--out", str(tiny)]) == 0
    assert [name for name, _ in asked] == ["small", "tiny"] and asked[0][1] > asked[1][1] > 4.9
    assert "4 runs finished" in capsys.readouterr().out
    assert main(["sweep", "small", "tinny", "--out", str(tiny)]) == 2 and len(asked) == 2


def test_the_bar_counts_the_work_that_is_left(tiny, capsys, monkeypatch):
    """From nothing to everything, also for runs that go on from a checkpoint."""
    sweep.sweep("tiny", out=tiny, minutes=0.02, at_once=2)
    states = sweep.states("tiny", [tiny])
    left = sum(sweep.work(s.experiment, s.experiment.steps - s.step) for s in states if s.state != "done")
    assert 0 < left <= sum(sweep.work(e, 4 * e.steps_per_epoch) for e in tables.runs("tiny"))
    monkeypatch.setattr(sweep, "tqdm", partial(tqdm, disable=False))
    sweep.sweep("tiny", out=tiny, minutes=5)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100% of the work" in last and "left" in last
    marginal, concrete = (next(e for e in tables.runs("tiny") if e.estimator == n) for n in ("marginal", "concrete"))
    assert sweep.work(marginal, 1) > sweep.work(concrete, 1)
