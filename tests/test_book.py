"""The book as a reader gets it: built with warnings as errors, and its pages looked into.

BOOK=_build/html checks pages that are there already instead of building them. EXECUTED=FOLDER, as `make test`
sets it, gives the build the chapters that nbval has just executed (chapters/conftest.py); others it executes.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from reading import raw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import address  # noqa: E402

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"]] + [page["file"] for part in TOC["parts"] for page in part["chapters"]]
CHAPTERS = [page for page in PAGES if page.split("/")[-1][0].isdigit()]


def build(source: Path, output: Path) -> subprocess.CompletedProcess:
    """The build of `make book`, of any folder and into any folder."""
    tool = Path(sys.executable).with_name("jupyter-book")
    return subprocess.run([tool, "build", source, "--path-output", output, "--all", "-W",
                           "--keep-going"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def sources() -> dict[Path, float]:
    """Every file of the repository that a chapter could touch, and when it was written."""
    files = [path for folder in ("chapters", "results") for path in (ROOT / folder).rglob("*")]
    return {path: path.stat().st_mtime for path in files if path.is_file()}


def remember(executed: Path, cache: Path) -> None:
    """Put executed chapters where the build looks for them: a cell that has changed since is not found."""
    for path in sorted(executed.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        seconds = notebook.metadata.pop("execution_seconds")
        get_cache(cache).cache_notebook_bundle(
            CacheBundleIn(notebook, str(ROOT / "chapters" / path.name), data={"execution_seconds": seconds}))


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """The folder of the pages, built outside the repository with nothing kept from before."""
    if "BOOK" in os.environ:
        return ROOT / os.environ["BOOK"]
    output = tmp_path_factory.mktemp("book")
    cache = output / "_build" / ".jupyter_cache"
    if "EXECUTED" in os.environ:
        remember(ROOT / os.environ["EXECUTED"], cache)
    before = sources()
    done = build(ROOT, output)
    assert sources() == before, "the build wrote into the repository"
    wrong = [line for line in done.stdout.splitlines() if "WARNING" in line or "ERROR" in line]
    assert done.returncode == 0, "\n".join(wrong) + "\n" + done.stdout[-3000:]
    assert len(get_cache(cache).list_cache_records()) == len(CHAPTERS), "a chapter was executed twice"
    return output / "_build" / "html"


@functools.cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


@functools.cache
def places(path: Path) -> set[str]:
    """What a link can point to in a page."""
    return {tag["id"] for tag in parsed(path).find_all(id=True)}


def page(book: Path, name: str) -> BeautifulSoup:
    return parsed(book / f"{name}.html")


def title(name: str) -> str:
    """The first heading of the source of a page."""
    path = ROOT / f"{name}.ipynb"
    if path.is_file():
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells
                         if cell.cell_type == "markdown")
    else:
        text = (ROOT / f"{name}.md").read_text()
    return next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ")


def letters(text: str) -> str:
    """Text without the marks by which a heading differs from its source."""
    return "".join(filter(str.isalnum, text))


@pytest.mark.parametrize("name", PAGES)
def test_page_says_what_it_should(book, name):
    article = page(book, name).find("article")
    assert letters(title(name)) in letters(article.find("h1").get_text())
    assert len(article.get_text().split()) > 50
    assert "Traceback" not in article.get_text()


@pytest.mark.parametrize("name", PAGES)
def test_page_describes_itself(book, name):
    """To a search engine and in a shared link, with a picture that is there."""
    head = page(book, name).find("head")
    said = {tag.get("name") or tag.get("property"): tag["content"]
            for tag in head.find_all("meta", content=True)}
    assert 40 <= len(said["description"]) <= 200
    assert said["og:description"] == said["description"]
    assert letters(said["og:title"]).endswith(letters(title(name)))
    if address.repository():
        assert said["og:url"].endswith(f"/{name}.html")
        assert (book / "_static" / said["og:image"].split("/_static/")[1]).is_file()


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_can_be_downloaded_and_launched(book, name):
    links = [link["href"] for link in page(book, name).find("header").parent.find_all("a", href=True)]
    assert any(link.endswith(f"_sources/{name}.ipynb") for link in links)
    download = nbformat.read(book / "_sources" / f"{name}.ipynb", as_version=4)
    assert raw(download, set(), {f"{Path(chapter).name}.ipynb" for chapter in CHAPTERS}) == []
    assert "⟨" not in "".join(cell.source for cell in download.cells if cell.cell_type == "markdown")
    for service in ("mybinder.org", "colab.research.google.com"):
        launched = any(service in link and link.endswith(f"{name}.ipynb") for link in links)
        assert launched == bool(address.repository()), service


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_has_its_figures(book, name):
    images = page(book, name).find("article").find_all("img")
    assert images, "no figure"
    for image in images:
        source = image["src"]
        if not source.startswith("data:"):
            assert ((book / name).parent / unquote(source)).stat().st_size > 0
        assert image.get("alt", "").strip() and not image["alt"].endswith(".png"), source
        assert image.find_parent("figure").find("figcaption").get_text().strip(), source


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(book, name):
    """Every link inside the book: the page is there, and so is the place in it."""
    here = book / f"{name}.html"
    for link in page(book, name).find("article").find_all("a", href=True):
        url = urlsplit(link["href"])
        if url.scheme or url.netloc:
            continue
        target = (here.parent / unquote(url.path)).resolve() if url.path else here
        assert target.is_file(), link["href"]
        if url.fragment and target.suffix == ".html":
            assert unquote(url.fragment) in places(target), link["href"]


def test_status_page_lists_every_chapter(book):
    table = page(book, "chapters/status").find("article").find("table").get_text()
    assert [name for name in CHAPTERS if name not in table] == []
    assert table.count("done") == len(CHAPTERS)


def test_status_page_names_the_versions(book):
    text = page(book, "chapters/status").find("article").get_text()
    for library in ("torch", "numpy", "jupyter-book", "papermill", "nbval"):
        assert f"{library} {version(library)}" in text


def test_the_papers_equations_keep_their_numbers(book):
    """(1) to (8) stand in one place each, under the paper's number, and are referred to by it."""
    shown, referred = {}, set()
    for name in PAGES:
        article = page(book, name).find("article")
        for number in article.select(".eqno"):
            target = number.find("a")["href"].removeprefix("#equation-")
            assert target not in shown, f"{target} is shown twice"
            shown[target] = number.find(string=True)
        referred |= {(link["href"].split("#equation-")[1], link.get_text())
                     for link in article.find_all("a", href=re.compile("#equation-"))
                     if "headerlink" not in link.get("class", [])}
    assert {k: v for k, v in shown.items() if re.fullmatch(r"eq-\d+", k)} == {
        f"eq-{n}": f"({n})" for n in range(1, 9)}
    assert all(shown[target] == text for target, text in referred)


def test_reference_misreads_no_docstring(book):
    """`Scales: the paper's, and two more` is prose, not something of the type `Scales`."""
    fields = page(book, "chapters/api").find("article").find_all("dt")
    types = [field for field in fields if field.get_text().startswith("Type")]
    assert [field.find_next("dd").get_text() for field in types] == []


def small_book(source: Path, name: str, *cells: nbformat.NotebookNode) -> None:
    """A book of one notebook, built as ours is."""
    for folder in ("_static", "_ext", "_templates", "_vendored", "tools"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("_config.yml", "references.bib"):
        shutil.copy(ROOT / file, source)
    (source / "_toc.yml").write_text(f"format: jb-book\nroot: {name}\n")
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, source / f"{name}.ipynb")


def test_a_download_has_the_numbers_of_the_build(tmp_path):
    texts = ["# Small\n\n$$\na = b\n$$ (eq-own)\n\nBy {eq}`eq-own` it is {glue:text}`ch03_x:.2f`, {glue:text}`ch03_word`.",
             ":::{exercise}\n:label: ex-a\nWhy?\n:::\n\n:::{solution} ex-a\n:class: dropdown\nSo.\n:::"]
    code = "from cgmvae.notebook import glue\nglue('ch03_x', 2 / 3)\nglue('ch03_word', 'so')"
    new_text = nbformat.v4.new_markdown_cell
    small_book(tmp_path / "source", "03_small", new_text(texts[0]), nbformat.v4.new_code_cell(code), new_text(texts[1]))
    done = build(tmp_path / "source", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    cells = nbformat.read(tmp_path / "_build" / "html" / "_sources" / "03_small.ipynb", as_version=4).cells
    assert cells[0].source.startswith("*Chapter 3 ")
    assert "By (3.1) it is 0.67, so." in cells[1].source and r"\tag{3.1}" in cells[1].source
    assert (cells[2].source, cells[2].outputs) == (code, [])
    assert cells[3].source == "### Exercise 3.1\n\nWhy?\n\n\n#### Solution of exercise 3.1\n\nSo."


def test_a_broken_cell_fails_the_build(tmp_path):
    source = tmp_path / "source"
    small_book(source, "broken", nbformat.v4.new_markdown_cell("# Broken"), nbformat.v4.new_code_cell("1 / 0"))
    done = build(source, tmp_path)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stdout
