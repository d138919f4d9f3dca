"""A notebook as Jupyter shows it, and what is left in it that only the book's build understands."""

import re

from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from nbformat import NotebookNode

MARKS = re.compile(r":::|```|^:\w+:|\{[\w:]+\}|\bch\d\d_|^\([\w-]+\)=|\$\$", re.M)
ALIGNED = re.compile(r"\\begin\{(aligned|\w*matrix|cases)\}.*?\\end\{\1\}", re.S)
LABELS = re.compile(r"[a-z]+[-\w]+\d{4}|(?:ex|eq|fig)-[\w-]+")


def prose(source: str) -> tuple[str, list[str]]:
    """What Jupyter shows of a text cell, formulas and blocks of code left out; and where its links lead."""
    formulas = []

    def out(found):
        formulas.append(found[0])
        return f"formula{len(formulas)}."
    # As JupyterLab does: formulas are taken out before the rest is read as Markdown.
    rest = re.sub(r"\$\$.*?\$\$|(?<!\$)\$[^$]+\$", out, source, flags=re.S)
    assert not [f for f in formulas if re.search(r"^> |\n> |\n\n", f)], "a mark inside a formula"
    bare = [f for f in formulas if "&" in ALIGNED.sub("", f)]
    assert not bare, f"MathJax takes `&` inside `aligned` and its like alone: {bare}"
    page = BeautifulSoup(MarkdownIt("js-default").render(rest), "html.parser")
    for block in page.find_all("pre"):
        block.extract()
    return page.get_text(), [link.get("href") for link in page.find_all("a")]


def raw(notebook: NotebookNode, labels: set[str], pages: set[str]) -> list[str]:
    """The texts of a notebook that have a token, a fence, a label or a dead reference in them."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text, links = prose(cell.source)
            dead = [link for link in links if not link.startswith("https://") and link not in pages]
            if MARKS.search(text) or labels & set(LABELS.findall(text)) or dead:
                found.append(f"{dead} {text}")
    return found
