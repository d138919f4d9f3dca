"""The package from a shell: what it prints, and how it refuses."""

import json
import subprocess
import sys

import pytest
from helpers import BAD, BAD_PLACES, assert_says, small

from cgmvae import data
from cgmvae.__main__ import main
from cgmvae.datasets import DATASETS
from cgmvae.experiment import Experiment

SMALL = ["train", "--dataset", "mnist-sample", "--train_limit", "60", "--batch_size", "10",
         "--epochs", "3", "--annealing_steps", "20", "--iw_samples", "2", "--z_dim", "8",
         "--kl_y_form", "relaxed", "--annealing", "ramp"]


def refused(argv: list[str], capsys) -> str:
    """The one line on stderr of a command that exits with 2 and prints nothing else."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("cgmvae: ")
    return err.removeprefix("cgmvae: ").rstrip("\n")


@pytest.mark.parametrize("name", (*BAD, *BAD_PLACES))
def test_bad_input_is_one_line_and_exit_2(name, no_work, tmp_path, capsys):
    choices, field, allowed = (BAD | BAD_PLACES)[name]
    argv = ["train", "--dataset", "mnist-sample", "--results", str(tmp_path / "new")]
    argv += [f"--{k}={v}" for k, v in choices.items()]
    assert_says(refused(argv, capsys), choices, field, allowed)
    assert not (tmp_path / "new").exists()


def test_a_bad_preset(no_work, capsys):
    message = refused(["train", "--preset", "fast"], capsys)
    assert_says(message, {"preset": "fast"}, "preset", "one of 'paper', 'half', 'small', 'quick'")


def test_results_that_cannot_be_written(no_work, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    message = refused([*SMALL, "--results", str(tmp_path / "file")], capsys)
    assert message.startswith("results must be a folder that can be written to; it is")
    assert str(tmp_path / "file") in message


def test_a_real_process_exits_with_2():
    done = subprocess.run([sys.executable, "-m", "cgmvae", "train", "--K", "0"],
                          capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "cgmvae: K must be a whole number of at least 1; it is 0.\n"


@pytest.mark.parametrize("argv", ([], ["train", "--KK", "3"], ["fly"]))
def test_a_command_that_is_none(argv, no_work, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and "usage: python -m cgmvae" in capsys.readouterr().err


def test_train_runs_once_and_prints_the_record(tmp_path, capsys, monkeypatch):
    assert main([*SMALL, "--K", "4", "--results", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    e = small(K=4)
    path = tmp_path / "runs" / f"{e.id}.json"
    record = json.loads(path.read_text())
    assert Experiment(**record["experiment"]) == e  # the shell's run is the function's
    lines = out.splitlines()
    assert err == "" and lines[0].startswith(f"{e.id} (custom): 3 epochs, all 3 epochs done; ")
    assert lines[0].endswith("images/s") and lines[-1] == f"  in {path}"
    printed = dict(line.split() for line in lines[1:-1])
    assert printed.keys() == record["metrics"].keys()
    for name, value in record["metrics"].items():
        assert float(printed[name]) == pytest.approx(value, abs=1e-4)

    monkeypatch.setattr(sys.modules["cgmvae.run"], "Trainer", lambda *_, **__: pytest.fail("repeated"))
    assert main([*SMALL, "--K", "4", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "This run was made before. Its record says:\n" + out

    assert main(["table", "--results", str(tmp_path)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.split(), row.split(), strict=True))
    assert (cells["dataset"], cells["K"], cells["n"]) == ("mnist-sample", "4", "1")
    assert float(cells["test_log_px"]) == pytest.approx(record["metrics"]["test_log_px"], abs=1e-3)


def test_table_shows_what_differs(tmp_path, capsys):
    folder = tmp_path / "runs"
    folder.mkdir()
    for e, log_px in ((Experiment(seed=0), -46.0), (Experiment(seed=1), -48.0),
                      (Experiment(estimator="marginal"), -40.0)):
        record = {"id": e.id, "preset": e.preset, "experiment": e.as_dict(),
                  "metrics": {"test_log_px": log_px, "test_kl_y": 1.0, "test_acc": 0.5,
                              "test_cluster_perplexity": 9.0},
                  "seconds": {"training": 3600.0}, "progress": {"epochs": 9},
                  "environment": {"device_name": "a", "precision": "float32"}}
        (folder / f"{e.id}.json").write_text(json.dumps(record))
    assert main(["table", "--results", str(tmp_path)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["dataset", "estimator", "K"]
    assert "tau" in header and "likelihood" not in header  # the same in all
    found = []
    for row in rows:
        cells = dict(zip(header.split(), row.split(), strict=True))
        found.append([cells[k] for k in ("estimator", "n", "test_log_px", "sd")])
    assert found == [["concrete", "2", "-47.000", "1.414"], ["marginal", "1", "-40.000", "NaN"]]


def test_table_of_no_records(tmp_path, capsys):
    assert main(["table", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "There are no records yet.\n"


def test_data_says_what_is_there(capsys):
    assert main(["data", "mnist-sample"]) == 0
    assert capsys.readouterr().out == ("mnist-sample: 4000 training and 1000 test images, digest "
                                       f"{DATASETS['mnist-sample'].digest}\n")
    message = refused(["data", "mnist-samples"], capsys)
    assert_says(message, {"dataset": "mnist-samples"}, "dataset", "one of 'mnist'")


def test_every_choice_has_a_flag_with_its_explanation(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in Experiment.__dataclass_fields__:
        assert f"--{name} " in text
