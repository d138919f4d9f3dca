"""The chapters as files: how each is written, and what none may lack. No cell is executed here."""

import ast
import inspect
import re
import statistics
import typing

import nbformat
import papermill
import pytest
from helpers import CHAPTERS, code_cells
from IPython.core.inputtransformer2 import TransformerManager
from matplotlib.figure import Figure

from cgmvae import Experiment, benchmark_figures, comparison, figures

PROMISED = ["01_generative_model", "02_relaxation", "03_annealing", "04_cifar", "05_scaling",
            "06_clusters", "07_reproduction", "08_worth_having"]
NAMES = sorted({*PROMISED, *(path.stem for path in CHAPTERS.glob("*.ipynb"))})
every_chapter = pytest.mark.parametrize("name", NAMES)

THE_PAPERS_REFERENCES = {
    "shu2016", "bowman2016", "dilokthanakul2016", "jang2017", "kingma2014adam", "kingma2013vae",
    "kingma2014semi", "krizhevsky2009", "lecun2010", "maddison2017", "rezende2014", "williams1992",
    "yang2017"}
MAKES_A_FIGURE = {name for module in (figures, benchmark_figures) for name, made in vars(module).items()
                  if inspect.isfunction(made) and typing.get_type_hints(made).get("return") is Figure}


def read(name: str) -> nbformat.NotebookNode:
    path = CHAPTERS / f"{name}.ipynb"
    assert path.is_file(), f"chapters/{name}.ipynb is missing"
    return nbformat.read(path, as_version=4)


def parameter_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]


def prose(name: str) -> str:
    """All markdown cells of a chapter."""
    return "\n\n".join(c.source for c in read(name).cells if c.cell_type == "markdown")


def as_text(name: str) -> str:
    """The chapter with its code in fences, in the order of its cells."""
    return "\n\n".join(c.source if c.cell_type == "markdown" else f"```python\n{c.source}\n```"
                       for c in read(name).cells)


def admonitions(text: str, kind: str) -> list[str]:
    """What stands in the admonitions of a class: `tip`, `paper` or `differs`."""
    return re.findall(rf"(?ms)^:::\{{admonition\}}[^\n]*\n:class: {kind}\n(.*?)^:::$", text)


# The file


@every_chapter
def test_chapter_is_a_source(name):
    """No outputs, no counts, nothing of the machine or the person that last opened it."""
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "myst", "mystnb"}
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
def test_first_cell_installs_where_the_package_is_missing(name):
    """One cell for all chapters, hidden in the book; where the package is there it does nothing."""
    first = code_cells(read(name))[0]
    assert first.source == code_cells(read(NAMES[0]))[0].source
    assert first.metadata.tags == ["remove-cell"]
    condition, *body = first.source.split("\nif ")[1].splitlines()
    assert condition == 'importlib.util.find_spec("cgmvae") is None:'
    assert all(line.startswith("    ") for line in body)


@every_chapter
def test_cells_are_short(name):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(read(name))]
    assert max(lengths) <= 40
    assert statistics.median(lengths) <= 8


@every_chapter
def test_lines_fit_the_page(name):
    """A hundred columns are what a laptop's screen shows of a cell without scrolling."""
    assert [line for cell in code_cells(read(name)) for line in cell.source.splitlines()
            if len(line) > 100] == []


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


# What a reader finds in it


@every_chapter
def test_chapter_begins_with_what_it_asks_and_gives(name):
    first = read(name).cells[0].source
    assert first.startswith("# ")
    begins, = admonitions(first, "tip")
    assert len(re.findall(r"(?m)^- ", begins)) >= 3, "learning outcomes"
    assert re.findall(r"\*\*(.*?):\*\*", begins) == ["Before this", "Time", "Hardware"]


@every_chapter
def test_chapter_ends_with_summary_exercises_and_reading(name):
    *_, summary, exercises, reading = re.findall(r"(?m)^## (.*)", prose(name))
    assert (summary, exercises, reading) == ("Summary", "Exercises", "Further reading")
    text = prose(name).split("\n## Summary\n")[1]
    assert len(re.findall(r"(?m)^- ", text.split("\n## Exercises\n")[0])) >= 3
    assert "{cite" in text.split("\n## Further reading\n")[1]


@every_chapter
def test_the_paper_speaks_in_its_own_voice(name):
    """At least one admonition of the paper, with its citation, and one that says where we differ."""
    said = admonitions(prose(name), "paper")
    assert said and all("collier2019" in text or "its equations" in text for text in said)
    assert admonitions(prose(name), "differs")


@every_chapter
def test_exercises_have_folded_solutions(name):
    text = as_text(name)
    exercises = re.findall(r"(?m)^:::\{exercise\}\n:label: (\S+)$", text)
    assert 3 <= len(exercises) <= 5
    assert text.count("{exercise}") == len(exercises) == len(set(exercises))
    solutions = re.findall(r"(?ms)^:::\{solution(?:-start)?\} (\S+)\n:class: dropdown$", text)
    assert solutions == exercises, "each has one, folded, in the same order"
    assert text.count("{solution-start}") == text.count("{solution-end}")
    coded = re.findall(r"(?ms)^:::\{solution-start\}.*?^:::\{solution-end\}$", text)
    code = ["\n".join(re.findall(r"(?ms)^```python\n(.*?)^```$", part)) for part in coded]
    assert any(re.search(r"(?m)^ *assert ", part) for part in code), "no solution checks itself"


def calls(source: str) -> set[str]:
    """The names that a cell calls, such as `plt.subplots`."""
    tree = ast.parse(TransformerManager().transform_cell(source))  # magics as what they call
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_what_makes_a_figure_is_found():
    assert {"training_curves", "image_grid", "cluster_members"} <= MAKES_A_FIGURE
    assert calls("figure, axes = plt.subplots(1, 2)\nf(g(3))") == {"plt.subplots", "f", "g"}


@every_chapter
def test_figures_have_caption_name_and_alt(name):
    makers = {"plt.subplots", "plt.figure", *(f"figures.{made}" for made in MAKES_A_FIGURE)}
    names = []
    for cell in code_cells(read(name)):
        marks, start = cell.metadata.get("mystnb", {}), cell.source[:60]
        if not marks and not calls(cell.source) & makers:
            continue
        assert len(marks.get("figure", {}).get("caption", "")) > 20, f"no caption: {start}"
        assert re.fullmatch(r"fig-[a-z0-9-]+", marks["figure"].get("name", "")), f"no name: {start}"
        assert len(marks.get("image", {}).get("alt", "")) > 20, f"no alt text: {start}"
        names.append(marks["figure"]["name"])
    assert names and len(names) == len(set(names))


SCREEN = 36  # lines of code that a laptop shows at once


@every_chapter
def test_set_up_is_folded(name):
    """Parameters and imports are folded, and no more than a screen of code comes before a picture."""
    parameters, imports, *cells = code_cells(read(name))[1:]
    assert all("hide-input" in cell.metadata.get("tags", []) for cell in (parameters, imports))
    open_lines = 0
    for cell in cells:
        if "hide-input" not in cell.metadata.get("tags", []):
            open_lines += len(cell.source.splitlines())
        if cell.metadata.get("mystnb") or "HTML(interactive." in cell.source:
            break
    assert open_lines <= SCREEN


# Numbers, equations, citations

UNIT = r"(?:nats?|bits?|s|ms|seconds?|minutes?|hours?|%|percent|[KMG]i?B|GFLOP|MFLOP|images/s)"
SCORE = r"(?:ACC|NMI|ARI|[Aa]ccurac(?:y|ies)|perplexity)"
MEASURED = [rf"(?P<number>-?\d+\.\d+)(?: ± \d+\.\d+)?[ -]?{UNIT}(?![\w/])",
            rf"{SCORE}(?: of| is|:)? (?P<number>\d+\.\d+)"]
PRINTED = {f"{value:.2f}" for cell in comparison.PAPER.values()
           for value in (cell.log_px, cell.log_px_sd, cell.hours, cell.hours_sd)}


def typed_in(text: str) -> list[str]:
    """Numbers with a decimal point and a unit, or after the name of a score, that stand in the text.

    Those of the paper's Table 1 may: no run of ours can change them.
    """
    found = [m for pattern in MEASURED for m in re.finditer(pattern, text)]
    return [m[0] for m in found if m["number"] not in PRINTED]


def test_a_typed_number_is_found():
    wrong = ["it took 3.5 seconds", "a value of -182.65 nats", "99.5% of", "NMI 0.361", "12.3 ms",
             "an accuracy of 0.97", "-46.6 nats", "-170.1 ± 0.8 nats"]
    assert [text for text in wrong if not typed_in(text)] == []
    fine = ["-46.61 ± 0.79 nats in\n15.73 ± 4.16 hours", "{glue:text}`ch03_eq7:.4f` nats", "at 0.3 it",
            "a logit of 0.5 says", "section 2.1 shows", "ACC {glue:text}`a:.3f`", "-1725.47 ± 2.20 nats"]
    assert [text for text in fine if typed_in(text)] == []


@every_chapter
def test_measured_numbers_are_glued(name):
    """A number that a run made changes when the run does: it is glued, not typed into the prose."""
    assert typed_in(prose(name)) == []


def test_each_equation_of_the_paper_is_used_in_another_chapter():
    """Labelled once; and a number that only its own chapter refers to would not need to be kept."""
    texts = {name: prose(name) for name in NAMES}
    for n in range(1, 9):
        home, = [name for name, text in texts.items()
                 for _ in re.findall(rf"(?m)\$\$ \(eq-{n}\)$|^:label: eq-{n}$", text)]
        used = [name for name, text in texts.items() if f"{{eq}}`eq-{n}`" in text]
        assert set(used) - {home}, f"eq. ({n}) of {home} is referred to from no other chapter"


NEEDS_AN_EXTENSION = re.compile(r"\\(boldsymbol|[bx]?cancel|cancelto|color|textcolor|colorbox|enclose|href|class|style|"
                                r"unicode|verb|bra|ket|braket|ce|pu|require|bbox|mathtip|toggle|physics)\b")


def test_formulas_need_no_extension_of_mathjax():
    """What it loads for a command that it does not know is not in the book, and a page that asks for it has no formula."""
    assert NEEDS_AN_EXTENSION.search(r"$\boldsymbol\mu$") and not NEEDS_AN_EXTENSION.search(r"$\brace \mathbf{x}$")
    texts = {path.name: path.read_text() for path in CHAPTERS.glob("*.md")}
    texts |= {name: "\n".join(c.source for c in read(name).cells if c.cell_type == "markdown") for name in NAMES}
    found = {name: m.group() for name, text in texts.items() if (m := NEEDS_AN_EXTENSION.search(text))}
    assert not found


def test_every_value_that_is_glued_is_quoted_and_the_other_way_round():
    quoted, glued = set(), set()
    for name in NAMES:
        for cell in read(name).cells:
            quoted |= set(re.findall(r"\{glue:text\}`(\w+)", cell.source))
            # Some names are put together: glue(f"ch05_ratio_{name}", ratio).
            glued |= {re.sub(r"\{[^}]*\}", r"\\w+", found)
                      for found in re.findall(r'glue(?:_words|_figure)?\(\s*f?"(\w[^"]*)"', cell.source)}
    pages = [CHAPTERS.parent / "index.md", *(CHAPTERS.parent / "slides").glob("*.md")]
    elsewhere = set(re.findall(r"\bch\d\d_\w+", "\n".join(page.read_text() for page in pages)))
    assert [q for q in sorted(quoted | elsewhere) if not any(re.fullmatch(g, q) for g in glued)] == []
    assert [g for g in sorted(glued) if not any(re.fullmatch(g, q) for q in quoted | elsewhere)] == []


def test_citations_exist():
    entries = re.findall(r"(?m)^@\w+\{(\S+),$", (CHAPTERS.parent / "references.bib").read_text())
    assert len(entries) == len(set(entries))
    assert THE_PAPERS_REFERENCES | {"collier2019"} <= set(entries)
    assert len(THE_PAPERS_REFERENCES) == 13
    cited = {key.strip() for name in NAMES
             for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", prose(name))
             for key in keys.split(",")}
    assert cited - set(entries) == set()
    assert set(entries) - cited - THE_PAPERS_REFERENCES == set(), "in references.bib, cited nowhere"


def test_glossary_says_where_a_term_is_introduced():
    """Each entry names a chapter, and the chapter has the term in its prose."""
    glossary = (CHAPTERS / "glossary.md").read_text().split("{glossary}")[1]
    entries = re.findall(r"(?m)^(\S.*)\n((?:  .*\n)+)", glossary)
    assert len(entries) > 40
    for term, text in entries:
        chapter, = re.findall(r"\{doc\}`Chapter \d+ <(\w+)>`", " ".join(text.split()))
        written = re.sub(r"\s+", " ", prose(chapter).replace("*", "")).lower()
        assert term.lower() in written, f"{term} is not in {chapter}"
