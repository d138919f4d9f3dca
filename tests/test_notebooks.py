"""The chapters as programs: what papermill makes of them. How they are written: test_structure.py."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import CHAPTERS, code_cells


def run(name: str, *arguments: str, folder: Path, **streams) -> subprocess.CompletedProcess:
    """papermill on a chapter, from another folder, with standard input closed."""
    command = [sys.executable, "-m", "papermill", str(CHAPTERS / f"{name}.ipynb"), *arguments]
    streams = streams or {"capture_output": True}
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, text=True, **streams)


def assert_executed(path: Path) -> str:
    """That every cell ran without an error; gives all the text that they printed."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    text = []
    for cell in code_cells(notebook):
        assert cell.execution_count or not cell.source.strip(), cell.source[:60]
        for output in cell.outputs:
            assert output.output_type != "error", output
            text.append(output.get("text") or output.get("data", {}).get("text/plain") or "")
    return "\n".join(text)


@pytest.mark.parametrize("name, changes", [
    ("03_annealing", {"K": "7", "epochs": "1"}),
    ("04_cifar", {"K": "5", "epochs": "1", "seed": "3"}),
])
def test_papermill_runs_another_experiment(name, changes, tmp_path):
    arguments = [word for key, value in changes.items() for word in ("-p", key, value)]
    done = run(name, "out.ipynb", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    text = assert_executed(tmp_path / "out.ipynb")
    assert re.search(rf"-K{changes['K']}-s\d+-[0-9a-f]{{8}}", text), "no run of that K is named"


def test_papermill_writes_to_standard_output(tmp_path):
    with open(tmp_path / "out.ipynb", "w") as out:
        done = run("04_cifar", "-p", "K", "20", "-p", "epochs", "1", folder=tmp_path,
                   stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_executed(tmp_path / "out.ipynb")


@pytest.mark.parametrize("name", ["03_annealing", "04_cifar"])
@pytest.mark.parametrize("key, value, sentence", [
    ("KK", "3", r"'KK'.*\bK\b"),
    ("K", "abc", r"K must be a whole number.*'abc'"),
])
def test_bad_parameter_is_refused_before_any_work(name, key, value, sentence, tmp_path):
    """papermill lets an unknown name pass; the chapter itself must not."""
    done = run(name, "out.ipynb", "-p", key, value, folder=tmp_path)
    assert done.returncode == 1
    assert re.search(sentence, done.stderr), done.stderr[-3000:]
    cells = code_cells(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    injected = next(i for i, c in enumerate(cells) if "injected-parameters" in c.metadata.tags)
    failed = next(i for i, c in enumerate(cells)
                  if any(o.output_type == "error" for o in c.outputs))
    assert failed == injected + 1, "the cell after the parameters is where they are checked"
    assert all(c.execution_count is None for c in cells[failed + 1:])
