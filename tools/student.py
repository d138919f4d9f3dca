"""Student copies of the chapters: the solutions taken out, stubs and checks put in.

    python tools/student.py [FOLDER]

writes one notebook a chapter into FOLDER, which is build/student unless given. `exercises.toml`
beside this file has the stubs and the checks. Numbers of finished runs are read from the records and
stand in the text; those of the student's own run are printed by a cell above it. A notebook in FOLDER
that is no untouched copy is left alone, and named: somebody's answers may be in it.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from as_text import MARK, References
from copies import write
from from_records import values

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))
EXERCISES = tomllib.loads(Path(__file__).with_name("exercises.toml").read_text(encoding="utf-8"))

REFERENCES = References(CHAPTERS, ROOT / "references.bib")


def solutions(notebook: NotebookNode) -> dict[str, list[str]]:
    """The code cells of each solution that has any, by the label of its exercise."""
    found: dict[str, list[str]] = {}
    label = None
    for cell in notebook.cells:
        if cell.cell_type == "code" and label:
            found.setdefault(label, []).append(cell.source)
        elif cell.cell_type == "markdown":
            for kind, name, _ in MARK.findall(cell.source):
                label = {"solution-start": name, "solution-end": None}.get(kind, label)
    return found


def stub(label: str) -> str:
    """What a student starts from."""
    return "# Your code. Each ... is yours to replace.\n" + EXERCISES[label]["stub"].strip()


def check(label: str) -> str:
    """The check of an exercise. It first asks that nothing was left as the stub has it."""
    missing = [statement.targets[0].id for statement in ast.parse(EXERCISES[label]["stub"]).body
               if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
               and statement.value.value is ... and isinstance(statement.targets[0], ast.Name)]
    lines = ["# The check: silent when all is well."]
    lines += [f'assert {name} is not ..., "{name}: replace the ... above"' for name in missing]
    return "\n".join([*lines, EXERCISES[label]["check"].strip()])


def answer(label: str) -> list[NotebookNode]:
    """The cells in the place of a solution: one for words, and where it computes two for code."""
    if label not in EXERCISES:
        return [new_markdown_cell("*Your prediction, derivation or answer in words:*")]
    folded = {"tags": ["check", label, "hide-input"], "jupyter": {"source_hidden": True}}
    return [new_markdown_cell("*Your prediction, derivation or answer in words. Your code goes into the next cell. "
                              "A folded check follows it: run it as it is. Unfolded, it can give the answer away.*"),
            new_code_cell(stub(label), metadata={"tags": ["stub", label]}),
            new_code_cell(check(label), metadata=folded)]


def student_copy(notebook: NotebookNode, number: int, known: dict[str, Any]) -> NotebookNode:
    """Chapter `number` as a student gets it. `known`: what records say, by the name that it is glued to."""
    cells = [new_markdown_cell(
        f"*Chapter {number}, the student's copy. Run it from the top; the exercises are at the "
        "end. The folded check below an exercise fails until your answer is there. A name like ⟨this⟩ in the "
        "text is a number of your own run: the cell above the text prints it.*")]
    inside, exercises = False, 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cells += [] if inside else REFERENCES.code(cell, known)
            continue
        read = 0
        for mark in MARK.finditer(cell.source):
            if not inside:
                cells += REFERENCES.text(cell.source[read:mark.start()], known)
            kind, label, body = mark.groups()
            if kind == "exercise":
                exercises += 1
                body = body.split("\n", 1)[1]  # without the line of its label
                cells += REFERENCES.text(f"### Exercise {number}.{exercises}\n\n{body}", known)
            elif kind != "solution-end":
                cells += answer(label)
            inside = inside if kind in ("exercise", "solution") else kind == "solution-start"
            read = mark.end()
        if not inside:
            cells += REFERENCES.text(cell.source[read:], known)
    return REFERENCES.finished(cells, notebook, "student")


def copy_of(path: Path) -> NotebookNode:
    """The student's copy of the chapter at `path`, with what the records in results/ say today."""
    notebook = nbformat.read(path, as_version=4)
    return student_copy(notebook, int(path.name[:2]), values(notebook, path.parent))


def main(folder: Path) -> int:
    def make(path: Path) -> tuple[NotebookNode, str]:
        copy = copy_of(path)
        checks = sum("check" in cell.metadata.get("tags", []) for cell in copy.cells)
        exercises = sum(cell.source.startswith("### Exercise") for cell in copy.cells)
        return copy, f"{exercises} exercises, {checks} of them with a check"
    return write(folder, CHAPTERS, make)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "student"))
