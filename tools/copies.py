"""Copies of the chapters in a folder, where somebody works in them. What was worked in is never written over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode


def digest(notebook: NotebookNode) -> str:
    """What tells an untouched copy from one that somebody has worked in."""
    # What was executed has outputs, which may have taken an hour.
    text = "\0".join(cell.source + len(cell.get("outputs", [])) * "\0" for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def untouched(path: Path) -> bool:
    """Whether the notebook at `path` is a copy as it was made."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # whatever it is, it is not ours
        return False
    return notebook.metadata.get("copy_of_a_chapter") == digest(notebook)


def write(folder: Path, chapters: list[Path], make: Callable[[Path], tuple[NotebookNode, str]]) -> int:
    """Write what `make` makes of each chapter, and print what it says of it. 1 if one was left alone, else 0."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = 0
    for path in chapters:
        target = folder / path.name
        if target.exists() and not untouched(target):
            print(f"{target} is left as it is: somebody worked in it, or it is no copy of ours.")
            kept = 1
            continue
        copy, said = make(path)
        copy.metadata["copy_of_a_chapter"] = digest(copy)
        nbformat.write(copy, target)
        print(f"{path.name:28} {said}")
    print(f"The copies are in {folder}.")
    return kept
