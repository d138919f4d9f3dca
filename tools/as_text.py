"""MyST as any Jupyter shows it: numbers and references that the book's build fills in stand here.

`References(paths)` reads all chapters once, for what a reference to one of them shows: the number of
an equation, a figure or an exercise, the authors and the year of a citation.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from pybtex.database import Entry, parse_file
from pybtex.richtext import Text

ADMONITION = re.compile(r"^:::\{admonition\} ([^\n]*)\n:class: \w+\n(.*?)^:::$", re.M | re.S)
MATH_FENCE = re.compile(r"^```\{math\}\n:label: ([\w-]+)\n(.*?)^```$", re.M | re.S)
LABELLED = re.compile(r"^\$\$ \(([\w-]+)\)$", re.M)
TARGET = re.compile(r"^\([\w-]+\)=\n", re.M)
EQUATION = re.compile(r"^\$\$ \(([\w-]+)\)$|^```\{math\}\n:label: ([\w-]+)$", re.M)
EXERCISE = re.compile(r"^:::\{exercise\}\n:label: ([\w-]+)$", re.M)
MATH = re.compile(r"\$\$.*?\$\$|\$[^$]*\$", re.S)
ROLE = re.compile(r"\{([\w:]+)\}`([^`<]+?)(?:\s*<([^`]*)>)?`")
GLUED = re.compile(r"\{glue:text\}`((?:ch\d\d_)?(\w+)[^`]*)`")


def last_names(entry: Entry) -> str:
    """The authors as a sentence names them: one, two, or the first and others."""
    names = [str(Text.from_latex(" ".join(p.prelast_names + p.last_names)))
             for p in entry.persons["author"]]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} et al."


class References:
    """What a reference shows, for the chapters at `paths` and the entries of a BibTeX file."""

    def __init__(self, paths: list[Path], bibliography: Path) -> None:
        self.entries = parse_file(str(bibliography)).entries
        self.pages = {path.stem for path in paths}
        self.shown: dict[str, str] = {}  # label -> its number, or words
        for path in paths:
            self.read(nbformat.read(path, as_version=4), int(path.name[:2]))

    def read(self, notebook: nbformat.NotebookNode, chapter: int) -> None:
        """Number the equations, exercises and figures of a chapter, as `_ext/equations.py` does."""
        equations = exercises = figures = 0
        for cell in notebook.cells:
            figure = cell.metadata.get("mystnb", {}).get("figure")
            if figure:
                figures += 1
                self.shown[figure["name"]] = f"Figure {chapter}.{figures}"
            if cell.cell_type == "code":
                continue
            for found in EQUATION.finditer(cell.source):
                label = found[1] or found[2]
                paper = re.fullmatch(r"eq-(\d+)", label)
                equations += not paper
                self.shown[label] = paper[1] if paper else f"{chapter}.{equations}"
            for found in EXERCISE.finditer(cell.source):
                exercises += 1
                self.shown[found[1]] = f"exercise {chapter}.{exercises}"

    def cited(self, text: str) -> list[str]:
        """A line for each work that a text cites, in the order of their years."""
        keys = {key.strip() for role, keys, _ in ROLE.findall(text) if role.startswith("cite")
                for key in keys.split(",")}
        works = sorted((self.entries[key] for key in keys), key=lambda e: (e.fields["year"], e.key))
        return [f"- {last_names(e)} ({e.fields['year']}). "
                f"*{Text.from_latex(e.fields['title'])}*." for e in works]

    def role(self, found: re.Match) -> str:
        """The words of one role."""
        role, words, target = found.groups()
        if role.startswith("cite"):
            works = [self.entries[key.strip()] for key in words.split(",")]
            if role == "cite:t":
                return ", ".join(f"{last_names(e)} ({e.fields['year']})" for e in works)
            return "(" + "; ".join(f"{last_names(e)}, {e.fields['year']}" for e in works) + ")"
        if role == "eq":
            return f"({self.shown[words]})"
        if role == "doc":
            return f"[{words}]({target}.ipynb)" if target in self.pages else words
        if role in ("ref", "numref"):
            number = self.shown.get(target or words)
            return words if number is None else f"{words} ({number})" if target else number
        return f"`{words}`" if ":" in role else words

    def plain(self, text: str) -> str:
        """A piece of a chapter's text with nothing in it that only the book's build understands."""
        def quotation(found: re.Match) -> str:
            # Jupyter takes formulas out before it reads the rest: a mark of quotation inside one stays.
            body = MATH.sub(lambda formula: " ".join(formula[0].split()), found[2].strip())
            body = body.replace("\n", "\n> ")
            return f"> **{found[1]}**\n>\n> {body}"

        text = MATH_FENCE.sub(lambda found: f"$$\n{found[2]}$$ ({found[1]})", text)
        text = LABELLED.sub(lambda found: rf"\tag{{{self.shown[found[1]]}}}" + "\n$$", text)
        text = GLUED.sub(r"⟨\2⟩", TARGET.sub("", text))
        return ADMONITION.sub(quotation, ROLE.sub(self.role, text)).strip()
