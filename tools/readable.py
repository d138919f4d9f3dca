"""The chapters, solutions and all, as any Jupyter shows them: what `make lab` and Binder open.

    python tools/readable.py [FOLDER]

writes one notebook a chapter into FOLDER, which is build/chapters unless given. The sources in chapters/ hold
marks for the book's build in their text. Here the numbers of finished runs stand in it, read from the records;
those of the reader's own run are printed by a cell above it. A notebook that somebody worked in is left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from as_text import References, whole
from copies import write
from from_records import values
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))


def main(folder: Path) -> None:
    references = References(CHAPTERS, ROOT / "references.bib")

    def make(path: Path) -> tuple[NotebookNode, str]:
        notebook = nbformat.read(path, as_version=4)
        known = values(notebook, path.parent)
        return whole(notebook, int(path.name[:2]), references, known), f"{len(known)} values from the records"
    write(folder, CHAPTERS, make)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "chapters")
