"""Chapters executed for a projector: the same cells, with larger letters and sharper figures."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "_build" / ".projected"
# 14 points on a figure 9 inches wide are about 26 of the 720 lines of a slide. Chapters that ask for
# smaller letters in a legend or a title, which are right on a page, are not heard; such a title gets a
# second line. The labels between the powers of ten are small: larger ones would lie on each other.
STYLE = """import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

plt.rcParams.update({"figure.dpi": 200, "savefig.dpi": 200, "font.size": 14, "axes.titlesize": 14,
                     "legend.fontsize": 12, "lines.linewidth": 2.4})

def large_legend(own):
    return lambda axis, *places, fontsize=None, **choices: own(axis, *places, **choices)

def large_title(own):
    def title(axis, text, *given, fontsize=None, **choices):
        return own(axis, textwrap.fill(text, 20) if fontsize else text, *given, **choices)
    return title

def small_minor(own, side):
    def scale(axis, *given, **choices):
        own(axis, *given, **choices)
        axis.tick_params(axis=side, which="minor", labelsize=7)
    return scale

Axes.legend, Axes.set_title = large_legend(Axes.legend), large_title(Axes.set_title)
Axes.set_xscale, Axes.set_yscale = small_minor(Axes.set_xscale, "x"), small_minor(Axes.set_yscale, "y")"""


class Chapter:
    """One executed chapter: its figures, its moving figures and the numbers that it glued."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notebook = execute(path)

    def outputs(self):
        """Every output of every code cell, with its cell."""
        return ((cell, output) for cell in self.notebook.cells if cell.cell_type == "code"
                for output in cell.outputs)

    def figure(self, name: str) -> tuple[bytes, str] | None:
        """The PNG of a figure and its alt text, by the name that the chapter gives it."""
        for cell, output in self.outputs():
            book = cell.metadata.get("mystnb", {})
            if book.get("figure", {}).get("name") == name and "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"]), book["image"]["alt"]
        return None

    def moving(self, function: str) -> str | None:
        """The HTML of a figure that moves, by the function of `cgmvae.interactive` that made it."""
        for cell, output in self.outputs():
            if f"HTML(interactive.{function}(" in cell.source and "text/html" in output.get("data", {}):
                return output.data["text/html"]
        return None

    def number(self, name: str) -> float | None:
        """A number that the chapter glued."""
        for _, output in self.outputs():
            glued = output.get("metadata", {}).get("scrapbook", {})
            if glued.get("name") == name:
                return float(output.data[glued["mime_prefix"] + "text/plain"])
        return None

    def equation(self, label: str) -> str | None:
        """The TeX of an equation, by its label."""
        text = "\n".join(cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")
        # Either $$ ... $$ (label), or a math directive with the label on a line of its own.
        found = (re.search(rf"\$\$\n((?:(?!\$\$).)*?)\n\$\$ \({re.escape(label)}\)", text, re.S)
                 or re.search(rf"```{{math}}\n:label: {re.escape(label)}\n(.*?)\n```", text, re.S))
        return found[1].strip() if found else None


def execute(path: Path) -> nbformat.NotebookNode:
    """The executed chapter, from the cache if its code has not changed since."""
    notebook = nbformat.read(path, as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells)
                 if cell.cell_type == "code" and "figures.style()" in cell.source)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(STYLE, id="projected"))
    cache = get_cache(CACHE)
    try:
        kept = cache.match_cache_notebook(notebook)
        executed = cache.get_cache_bundle(kept.pk).nb
    except KeyError:
        print(f"executing {path.name}", flush=True)
        executed = NotebookClient(notebook, timeout=600, record_timing=False, resources={
            "metadata": {"path": str(path.parent)}}).execute()
        cache.cache_notebook_bundle(CacheBundleIn(executed, str(path)), check_validity=False,
                                    overwrite=True)
    # The cache keeps code cells only.
    outputs = {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs[cell.id]
    return notebook
