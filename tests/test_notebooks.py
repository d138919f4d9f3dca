"""The chapters as files and as programs: how they are written, what papermill makes of them."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from cgmvae import Experiment

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
PROMISED = ["01_generative_model", "02_relaxation", "03_annealing", "04_cifar", "05_scaling",
            "06_clusters", "07_reproduction"]
NAMES = sorted({*PROMISED, *(path.stem for path in CHAPTERS.glob("*.ipynb"))})
every_chapter = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> nbformat.NotebookNode:
    path = CHAPTERS / f"{name}.ipynb"
    assert path.is_file(), f"chapters/{name}.ipynb is missing"
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameter_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]


@every_chapter
def test_chapter_is_a_source(name):
    """No outputs, no counts, nothing of the machine or the person that last opened it."""
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "mystnb"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.kernelspec) <= {"name", "display_name", "language"}
    assert set(notebook.metadata.get("language_info", {})) <= {"name"}
    for cell in notebook.cells:
        start = cell.source[:60]
        assert set(cell.metadata) <= {"tags", "mystnb", "slideshow"}, start
        assert not cell.get("attachments"), start
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.source[:60]


@every_chapter
def test_cells_are_short(name):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(read(name))]
    assert max(lengths) <= 40
    assert statistics.median(lengths) <= 8


@every_chapter
def test_parameters_are_explained(name):
    """One cell; papermill --help-notebook finds a name, a value and a help text for each line."""
    cells = parameter_cells(read(name))
    assert len(cells) == 1
    statements = ast.parse(cells[0].source).body
    assert all(isinstance(s, (ast.Assign, ast.AnnAssign)) for s in statements)
    names = {(s.target if isinstance(s, ast.AnnAssign) else s.targets[0]).id for s in statements}
    found = papermill.inspect_notebook(str(CHAPTERS / f"{name}.ipynb"))
    assert set(found) == names
    assert [n for n, parameter in found.items() if not parameter["help"]] == []


@every_chapter
def test_parameters_are_named_as_in_experiment(name):
    """A name that differs from a field by its case alone would be a trap."""
    fields = {field.lower(): field for field in Experiment.__dataclass_fields__}
    for parameter in papermill.inspect_notebook(str(CHAPTERS / f"{name}.ipynb")):
        assert fields.get(parameter.lower(), parameter) == parameter


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
