"""The book's address: read from _config.yml alone, right in every copy, and nowhere while it is empty."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import address  # noqa: E402

URL = "https://github.com/someone/a-book"
SITE = "https://someone.github.io/a-book/"


def test_copies_agree_with_the_config():
    """In the first cell of every chapter, CITATION.cff and codemeta.json; `make address` writes them."""
    wrong = [path.name for path, text in address.copies(address.repository()).items()
             if path.read_text(encoding="utf-8") != text]
    assert wrong == [], "make address"


def test_copies_of_an_address():
    copies = {path.name: text for path, text in address.copies(URL).items()}
    citation = yaml.safe_load(copies["CITATION.cff"])
    assert (citation["repository-code"], citation["url"]) == (URL, SITE)
    codemeta = json.loads(copies["codemeta.json"])
    assert (codemeta["codeRepository"], codemeta["url"]) == (URL, SITE)
    chapters = [text for name, text in copies.items() if name.endswith(".ipynb")]
    assert len(chapters) >= 7
    for text in chapters:
        cell = next(c for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "code")
        assert f"git clone --quiet --depth 1 {URL}\n" in cell.source and "%cd -q a-book\n" in cell.source


def test_copies_without_an_address():
    """Whatever address they held before, none is left; and to write twice is to write once."""
    for path, text in address.copies(URL).items():
        write = {".cff": address.citation, ".json": address.codemeta, ".ipynb": address.chapter}[path.suffix]
        assert "someone" not in write(text, "")
        assert write(write(text, ""), URL) == text


def test_the_cell_says_where_the_package_is_missing():
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        exec(address.MISSING.replace('"cgmvae"', '"no_such_package"'))


@pytest.mark.parametrize("url", ["", URL, "https://github.com/some-one/a_book.2"])
def test_a_right_address(url):
    assert address.checked(url) == url


@pytest.mark.parametrize("url", ["github.com/someone/a-book", "https://github.com/someone", URL + "/", URL + ".git",
                                 "https://example.org/someone/a-book", URL + " ; rm -rf ~"])
def test_a_wrong_address_is_refused_in_one_sentence(url):
    with pytest.raises(ValueError, match="must be empty or https://github.com/OWNER/NAME; it is") as refused:
        address.checked(url)
    assert repr(url) in str(refused.value)


def test_no_file_names_another_address():
    """The place that the book once pointed to, which nobody had made, among them."""
    named = {"README.md", "CONTRIBUTING.md", "index.md", "_config.yml", "CITATION.cff", "codemeta.json",
             *(str(path.relative_to(ROOT)) for path in (ROOT / "chapters").iterdir() if path.is_file())}
    assert [name for name in sorted(named) if "concrete-gmvae/concrete-gmvae" in (ROOT / name).read_text()
            or "concrete-gmvae.github.io" in (ROOT / name).read_text()] == []


def built(folder: Path, url: str) -> BeautifulSoup:
    """A page of a small book with the book's own settings and this address."""
    source = folder / "source"
    for name in ("_static", "_ext", "_templates", "_vendored", "tools"):
        shutil.copytree(ROOT / name, source / name)
    shutil.copy(ROOT / "references.bib", source)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["repository"]["url"] = url
    config["html"].pop("baseurl", None)
    (source / "_config.yml").write_text(yaml.safe_dump(config))
    (source / "_toc.yml").write_text("format: jb-book\nroot: page\n")
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page\n\nElse: {{ elsewhere }}"),
                                           nbformat.v4.new_code_cell("1 + 1")])
    page.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"},
                     "myst": {"html_meta": {"description": "A page that says where it is."}}}
    nbformat.write(page, source / "page.ipynb")
    tool = Path(sys.executable).with_name("jupyter-book")
    done = subprocess.run([tool, "build", source, "--path-output", folder, "-W"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return BeautifulSoup((folder / "_build/html/page.html").read_text(), "html.parser")


def test_pages_without_an_address_name_none(tmp_path):
    page = built(tmp_path, "")
    links = [link["href"] for link in page.find_all("a", href=True)]
    assert not [link for link in links if "github.com" in link or "colab" in link or "mybinder" in link]
    assert page.find("article").get_text().count("PDF") == 0
    assert not page.find("meta", property="og:url") and not page.find("meta", property="og:image")
    assert page.find("meta", property="og:title") and not page.find("link", rel="canonical")


def test_pages_with_an_address(tmp_path):
    page = built(tmp_path, URL)
    links = [link["href"] for link in page.find_all("a", href=True)]
    for wanted in (URL, f"{URL}/issues/new", f"{SITE}concrete-gmvae.pdf",
                   "https://colab.research.google.com/github/someone/a-book/blob/notebooks/page.ipynb",
                   "https://mybinder.org/v2/gh/someone/a-book/main"):
        assert [link for link in links if link.startswith(wanted)], f"{wanted} is not in {links}"
    assert page.find("meta", property="og:url")["content"] == f"{SITE}page.html"
    assert page.find("meta", property="og:image")["content"] == f"{SITE}_static/card.png"
