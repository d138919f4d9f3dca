"""Student copies of the chapters: the solutions taken out, stubs and checks put in.

    python tools/student.py [FOLDER]

writes one notebook a chapter into FOLDER, which is build/student unless given. `exercises.toml`
beside this file has the stubs and the checks. Numbers of finished runs are read from the records and
stand in the text; those of the student's own run are printed by a cell above it. A notebook in FOLDER that is no untouched copy is
left alone, and named: somebody's answers may be in it.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from as_text import GLUED, MARK, References
from from_records import values

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))
EXERCISES = tomllib.loads(Path(__file__).with_name("exercises.toml").read_text())

REFERENCES = References(CHAPTERS, ROOT / "references.bib")


def told(text: str, known: dict[str, Any]) -> list[NotebookNode]:
    """The cells of a piece of text: its numbers that this run makes, if any, and the text itself."""
    tokens = [token for token, name, *_ in GLUED.findall(text) if name not in known]
    source = f"notebook.numbers({', '.join(map(repr, tokens))})"
    folded = {"tags": ["numbers"], "jupyter": {"source_hidden": True}}
    numbers = [new_code_cell(source, metadata=folded)] if tokens else []
    return [*numbers, new_markdown_cell(REFERENCES.plain(text, known))]


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
    cells = [new_markdown_cell("*Your prediction, derivation or answer in words:*")]
    if label in EXERCISES:
        cells += [new_code_cell(stub(label), metadata={"tags": ["stub", label]}),
                  new_code_cell(check(label), metadata={"tags": ["check", label]})]
    return cells


def student_copy(notebook: NotebookNode, number: int, known: dict[str, Any]) -> NotebookNode:
    """Chapter `number` as a student gets it. `known`: what records say, by the name that it is glued to."""
    cells = [new_markdown_cell(
        f"*Chapter {number}, the student's copy. Run it from the top; the exercises are at the "
        "end. The check below an exercise fails until your answer is there. A name like ⟨this⟩ in the "
        "text is a number of your own run: the cell above the text prints it.*")]
    inside, exercises = False, 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cells += [] if inside else REFERENCES.code(cell, known)
            continue
        read = 0
        for mark in MARK.finditer(cell.source):
            if not inside:
                cells += told(cell.source[read:mark.start()], known)
            kind, label, body = mark.groups()
            if kind == "exercise":
                exercises += 1
                body = body.split("\n", 1)[1]  # without the line of its label
                cells += told(f"### Exercise {number}.{exercises}\n\n{body}", known)
            elif kind != "solution-end":
                cells += answer(label)
            inside = inside if kind in ("exercise", "solution") else kind == "solution-start"
            read = mark.end()
        if not inside:
            cells += told(cell.source[read:], known)
    copy = REFERENCES.finished(cells, notebook, "student")
    copy.metadata["student_copy"] = digest(copy)
    return copy


def copy_of(path: Path) -> NotebookNode:
    """The student's copy of the chapter at `path`, with what the records in results/ say today."""
    notebook = nbformat.read(path, as_version=4)
    return student_copy(notebook, int(path.name[:2]), values(notebook, path.parent))


def digest(notebook: NotebookNode) -> str:
    """What tells an untouched copy from one that somebody has worked in."""
    text = "\0".join(cell.source for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def untouched(path: Path) -> bool:
    """Whether the notebook at `path` is a copy as it was made."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # whatever it is, it is not ours
        return False
    return notebook.metadata.get("student_copy") == digest(notebook)


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    kept = 0
    for path in CHAPTERS:
        target = folder / path.name
        if target.exists() and not untouched(target):
            print(f"{target} is left as it is: it holds answers, or is no copy of ours.")
            kept += 1
            continue
        copy = copy_of(path)
        nbformat.write(copy, target)
        checks = sum("check" in cell.metadata.get("tags", []) for cell in copy.cells)
        exercises = sum(cell.source.startswith("### Exercise") for cell in copy.cells)
        print(f"{path.name:28} {exercises} exercises, {checks} of them with a check")
    print(f"The copies are in {folder}.")
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "student"))
