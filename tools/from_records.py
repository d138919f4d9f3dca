"""The numbers of a chapter that its own run has no part in: they are the same in whoever's hands it is.

Such a number is glued by a cell that goes back to finished records, and neither to the parameters nor
to anything that was run with them. `values` executes those cells alone.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

READS = re.compile(r"\brecords\.(read_all|results_folder)\(")


def names(source: str, kind: type) -> set[str]:
    """The names that a cell reads (ast.Load) or sets (ast.Store)."""
    return {node.id for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}


def defined(source: str) -> set[str]:
    """What a cell defines or changes at its top level."""
    found, body = set(), ast.parse(source).body
    inner = {id(name) for node in body for part in ast.walk(node) if isinstance(part, ast.comprehension)
             for name in ast.walk(part.target)}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)
                      and isinstance(part.ctx, ast.Store) and id(part) not in inner}
            found |= {part.value.id for part in ast.walk(node) if isinstance(part, ast.Subscript)
                      and isinstance(part.ctx, ast.Store) and isinstance(part.value, ast.Name)}
    return found


def needed(source: str) -> set[str]:
    """What a cell takes from those before it: what it reads and does not set itself."""
    found, own = set(), set()
    for node in ast.parse(source).body:
        text = ast.unparse(node)
        inner = names(text, ast.Store) | {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):  # what it sets it may read before
            inner -= defined(text)
        changed = defined(text) if isinstance(node, ast.AugAssign) else set()
        found |= (names(text, ast.Load) | changed) - inner - own
        own |= defined(text)
    return found


def before(sources: list[str], wanted: set[str]) -> list[str]:
    """Those cells that define what is wanted, and what these want in turn."""
    kept: list[str] = []
    for source in reversed(sources):
        if defined(source) & wanted:
            wanted = (wanted - defined(source)) | needed(source)
            kept.insert(0, source)
    return kept


def recorded(sources: list[str]) -> list[str]:
    """Of a chapter's cells of code, those that glue what records say, with all that they take.

    Args:
        sources: the parameters, the cell that imports and makes `settings` of them, and the others.
    """
    parameters, imports, *others = sources
    run, read, found = {"settings"}, set(), set()  # what comes from a run of one's own, and from records
    if READS.search(imports):
        read |= defined(imports)
    for i, source in enumerate(others):
        of_run, of_records = needed(source) & run, READS.search(source) or needed(source) & read
        run -= defined(source)
        read -= defined(source)
        if of_run:
            run |= defined(source)
        elif of_records:
            read |= defined(source)
            if "glue(" in source:
                found |= {source, *before(others[:i], needed(source))}
    return [parameters, imports, *(source for source in others if source in found)]


def values(notebook: NotebookNode, folder: Path) -> dict[str, Any]:
    """What those cells of a chapter glue, by name; `folder` is where chapters run."""
    import matplotlib
    from matplotlib import pyplot

    from cgmvae import notebook as helper

    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"
               and "remove-cell" not in cell.metadata.get("tags", [])]
    scope = {"__name__": "chapter", "In": [], "display": lambda *_: None}
    helper.GLUED.clear()
    matplotlib.use("agg")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for source in recorded(sources):
            exec(compile(source, "<cell>", "exec"), scope)
            pyplot.close("all")
    return dict(helper.GLUED)
