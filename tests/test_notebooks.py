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


# Small runs: what papermill changes shows in them as well. nbval runs the quick scale itself.
BRIEF = {"epochs": "1", "train_limit": "400", "iw_samples": "2"}


def arguments(changes: dict[str, str]) -> list[str]:
    return [word for key, value in changes.items() for word in ("-p", key, value)]


def assert_names_its_run(text: str, K: str) -> None:
    assert re.search(rf"-K{K}-s\d+-[0-9a-f]{{8}}", text), "no run of that K is named"


def test_papermill_runs_another_experiment(tmp_path):
    done = run("03_annealing", "out.ipynb", *arguments({"K": "7", "first_steps": "60", **BRIEF}), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_names_its_run(assert_executed(tmp_path / "out.ipynb"), "7")


def test_papermill_writes_to_standard_output(tmp_path):
    """With fewer clusters than the figures have columns; nbval runs the chapter's own K, 20."""
    with open(tmp_path / "out.ipynb", "w") as out:
        done = run("04_cifar", *arguments({"K": "5", "seed": "3", **BRIEF}), folder=tmp_path,
                   stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_names_its_run(assert_executed(tmp_path / "out.ipynb"), "5")


# One call checks names and values, in the same cell of each chapter (tests/test_notebook_helper.py).
@pytest.mark.parametrize("name, key, value, sentence", [
    ("03_annealing", "KK", "3", r"'KK'.*\bK\b"),
    ("04_cifar", "K", "abc", r"K must be a whole number.*'abc'"),
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
