"""MyST as any Jupyter shows it: what the book's build fills in stands in the text.

`References(paths)` reads all chapters once, for what a reference to one of them shows: the number of
an equation, a figure or an exercise, the authors and the year of a citation. With it `whole` makes a
chapter to be read and run, and tools/student.py a student's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pybtex.database import Entry, parse_file
from pybtex.richtext import Text

ADMONITION = re.compile(r"^:::\{admonition\} ([^\n]*)\n:class: \w+\n(.*?)^:::$", re.M | re.S)
MATH_FENCE = re.compile(r"^```\{math\}\n:label: ([\w-]+)\n(.*?)^```$", re.M | re.S)
DISPLAYED = re.compile(r"\$\$(.*?)\$\$(?: \(([\w-]+)\))?", re.S)
TARGET = re.compile(r"^\([\w-]+\)=\n", re.M)
EQUATION = re.compile(r"^\$\$ \(([\w-]+)\)$|^```\{math\}\n:label: ([\w-]+)$", re.M)
EXERCISE = re.compile(r"^:::\{exercise\}\n:label: ([\w-]+)$", re.M)
MATH = re.compile(r"\$\$.*?\$\$|\$[^$]*\$", re.S)
ROLE = re.compile(r"\{([\w:]+)\}`([^`<]+?)(?:\s*<([^`]*)>)?`")
GLUED = re.compile(r"\{glue:text\}`(((?:ch\d\d_)?(\w+))(?::([^`]*))?)`")
# What stands before the first word of a sentence: nothing, an empty line, the end of another, the mark of a list.
STARTS = re.compile(r"(?:\A|\n\n|[.?!][)*_]*\s|^(?:[-*>]|\d+\.) )\s*\Z", re.M)
# A directive of sphinx-exercise. A solution is one directive, or lies between a start and an end.
MARK = re.compile(r"^:::\{(exercise|solution|solution-start|solution-end)\} ?(\S*)\n(.*?)^:::$",
                  re.M | re.S)
OPTION = re.compile(r"^:\w+:.*\n?", re.M)


def aligned(formula: str) -> str:
    """A formula whose lines align at `&`: in the book the build says so by itself."""
    bare = "&" in formula and r"\begin" not in formula
    return rf"\begin{{aligned}}{formula}\end{{aligned}}" if bare else formula


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

    def read(self, notebook: NotebookNode, chapter: int) -> None:
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
            if number and target and "exercise" in words.lower():  # "an exercise of chapter 1 (1.3)"
                number = number.removeprefix("exercise ")
            elif number and not target and STARTS.search(found.string[:found.start()]):
                number = number[0].upper() + number[1:]  # "Exercise 7.1 computes ..."
            return words if number is None else f"{words} ({number})" if target else number
        return f"`{words}`" if ":" in role else words

    def plain(self, text: str, known: dict[str, Any] | None = None) -> str:
        """A piece of a chapter's text with nothing in it that only the book's build understands.

        A glued value that is not `known` stands there as its name, without the chapter: ⟨name⟩.
        """
        known = known or {}

        def number(found: re.Match) -> str:
            name, short, form = found[2], found[3], found[4]
            return format(known[name], form or "") if name in known else f"⟨{short}⟩"

        def formula(found: re.Match) -> str:
            # In equation* neither MathJax nor JupyterLab's extension for MyST puts a number of its own.
            tag = rf"\tag{{{self.shown[found[2]]}}}" if found[2] else ""
            return rf"$$\begin{{equation*}}{aligned(found[1])}{tag}\end{{equation*}}$$"

        def quotation(found: re.Match) -> str:
            # Jupyter takes formulas out before it reads the rest: a mark of quotation inside one stays.
            body = MATH.sub(lambda formula: " ".join(formula[0].split()), found[2].strip())
            body = body.replace("\n", "\n> ")
            return f"> **{found[1]}**\n>\n> {body}"

        text = MATH_FENCE.sub(lambda found: f"$$\n{found[2]}$$ ({found[1]})", text)
        text = DISPLAYED.sub(formula, text)
        text = GLUED.sub(number, TARGET.sub("", text))
        return ADMONITION.sub(quotation, ROLE.sub(self.role, text)).strip()

    def code(self, cell: NotebookNode, known: dict[str, Any]) -> list[NotebookNode]:
        """The cells of a cell of code: the code, folded where the book folds it, and the caption of its figure."""
        figure = cell.metadata.get("mystnb", {}).get("figure")
        folded = {"hide-input", "remove-cell"} & set(cell.metadata.get("tags", []))
        more = {"jupyter": {"source_hidden": True}} if folded else {}
        own = new_code_cell(cell.source, metadata={**cell.metadata, **more})
        if not figure:
            return [own]
        caption = self.plain(figure["caption"].strip(), known)
        return [own, new_markdown_cell(f"**{self.shown[figure['name']]}.** {caption}")]

    def text(self, text: str, known: dict[str, Any]) -> list[NotebookNode]:
        """The cells of a piece of text: one for its numbers that are not `known`, if any, and the text."""
        tokens = [token for token, name, *_ in GLUED.findall(text) if name not in known]
        source = f"notebook.numbers({', '.join(map(repr, tokens))})"
        folded = {"tags": ["numbers"], "jupyter": {"source_hidden": True}}
        numbers = [new_code_cell(source, metadata=folded)] if tokens else []
        return [*numbers, new_markdown_cell(self.plain(text, known))]

    def finished(self, cells: list[NotebookNode], of: NotebookNode, name: str) -> NotebookNode:
        """A notebook of these cells, and of the works that the chapter cites."""
        text = "\n".join(cell.source for cell in of.cells if cell.cell_type == "markdown")
        works = new_markdown_cell("\n".join(["## References", "", *self.cited(text)]))
        cells = [cell for cell in [*cells, works] if cell.source]
        for i, cell in enumerate(cells):  # the same chapter always makes the same notebook
            cell.id = f"{name}-{i:03}"
        return new_notebook(cells=cells, metadata={"kernelspec": of.metadata.kernelspec})


def whole(notebook: NotebookNode, number: int, references: References, known: dict[str, Any]) -> NotebookNode:
    """Chapter `number` with its solutions. `known`: values of names that its text quotes."""
    own = {token for cell in notebook.cells for _, token, *_ in GLUED.findall(cell.source)} - set(known)
    note = ("A name like ⟨this⟩ in the text is a number of your own run: the cell above the text prints it." if own
            else "The numbers in the text are those of the book's page. Your own run may find others.")
    cells = [new_markdown_cell(f"*Chapter {number} of the book Concrete GMVAE, to be read and run. {note}*")]

    def heading(found: re.Match) -> str:
        kind, label, body = found.groups()
        if kind == "solution-end":
            return ""
        title = references.shown[label or EXERCISE.search(found[0])[1]]  # such as "exercise 1.1"
        start = f"### {title.capitalize()}" if kind == "exercise" else f"#### Solution of {title}"
        return f"{start}\n\n{OPTION.sub('', body)}"

    for cell in notebook.cells:
        cells += (references.code(cell, known) if cell.cell_type == "code"
                  else references.text(MARK.sub(heading, cell.source), known))
    return references.finished(cells, notebook, "chapter")
