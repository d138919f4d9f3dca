"""Print the built book as one PDF with headless Chromium: `make pdf`.

Every page of the table of contents is opened as a reader opens it. When its formulas and figures
stand, its article is taken as it is; the articles make one document, and Chromium prints that. So
the links between chapters work in the PDF, its bookmarks are the headings, and what is printed is
what the browser shows. Solutions are printed unfolded: paper does not fold.
"""

import datetime
import logging
import shutil
import sys
from collections.abc import Iterator
from html import escape
from io import BytesIO
from pathlib import Path

import yaml
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfWriter
from pypdf.generic import Destination, NameObject, TextStringObject

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "_build" / "html"
OUTPUT = ROOT / "_build" / "concrete-gmvae.pdf"

# The article of a page, ready to stand beside others: every id begins with the name of its page,
# and every link into the book leads to such an id.
TAKE = """async ([book, name, names]) => {
    await window.MathJax?.startup?.promise;
    await document.fonts.ready;
    document.querySelectorAll(".toggle-hidden").forEach((e) => e.classList.remove("toggle-hidden"));
    const article = document.querySelector("article.bd-article");
    article.querySelectorAll("img").forEach((i) => { i.src = i.src; i.loading = "eager"; });
    article.querySelectorAll("a[href]").forEach((a) => {
        const url = new URL(a.href);
        const page = names.find((n) => url.href.split("#")[0] === `${book}/${n}.html`);
        if (page) a.setAttribute("href", "#" + page + (url.hash ? "." + decodeURIComponent(url.hash.slice(1)) : ""));
        else if (url.protocol === "file:") a.removeAttribute("href");
    });
    article.querySelectorAll("[id]").forEach((e) => { e.id = name + "." + e.id; });
    article.querySelectorAll("script, noscript, button, .headerlink, mjx-assistive-mml, .copybtn, input[type=range]")
        .forEach((e) => e.remove());
    const rules = [...document.styleSheets].filter((s) => s.ownerNode.id === "MJX-CHTML-styles")
        .flatMap((s) => [...s.cssRules]).map((r) => r.cssText).join("\\n");
    const sheets = [...document.querySelectorAll("link[rel=stylesheet]")].map((l) => l.href);
    return {html: article.innerHTML, title: article.querySelector("h1").innerText, rules, sheets};
}"""

PAPER_WIDTH = 657
"""Pixels between the margins of A4, below."""

PRINT = """
@page { size: A4; margin: 20mm 18mm 18mm; @bottom-center { content: counter(page); font: 9pt sans-serif; } }
@page :first { @bottom-center { content: none; } }
html { font-size: 12.5px; background: white; }
body { background: white; display: block; }
section.page { break-before: page; }
h1, h2, h3, h4, dt, .admonition-title { break-after: avoid; }
figure, .cell_input, pre, .admonition:not(.solution), mjx-container[display], .cgmvae-widget, table { break-inside: avoid; }
.admonition, .cell_input, .cell_output { max-width: 100%; }
figure img, .output img { max-width: 100%; max-height: 200mm; }
.bd-article pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8rem; }
.bd-article table { display: table; font-size: 0.85rem; }
.front { height: 235mm; display: flex; flex-direction: column; justify-content: center; text-align: center; }
.front .title { font-size: 3.2rem; font-weight: 700; }
.front img { height: 7rem; margin: 0 auto 2rem; }
.contents { break-before: page; }
.contents .heading { font-size: 2rem; font-weight: 700; margin-bottom: 1rem; }
.contents a { display: flex; justify-content: space-between; color: inherit; text-decoration: none; }
.contents .part { font-weight: 700; margin-top: 1rem; }
"""

# A table that is wider than the paper gets smaller letters: paper does not scroll.
FIT = """() => document.querySelectorAll("article table").forEach((table) => {
    const room = table.parentElement.clientWidth, width = table.getBoundingClientRect().width;
    if (width > room) table.style.zoom = room / width;
})"""


def pages() -> list[tuple[str | None, str]]:
    """Every page as (the part that begins with it, its name), in the order of the book."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found: list[tuple[str | None, str]] = [(None, toc["root"])]
    for part in toc["parts"]:
        names = [page["file"] for page in part["chapters"]]
        found += [(part["caption"] if name == names[0] else None, name) for name in names]
    return found


def contents(taken: dict[str, dict], parts: dict[str, str | None], numbers: list[int]) -> str:
    """The printed table of contents; `numbers` are the pages of the articles."""
    lines = []
    for name, number in zip(taken, numbers, strict=True):
        if parts[name]:
            lines.append(f'<div class="part">{escape(parts[name])}</div>')
        lines.append(f'<a href="#{name}"><span>{escape(taken[name]["title"])}</span>'
                     f"<span>{number}</span></a>")
    return "\n".join(lines)


def document(taken: dict[str, dict], parts: dict[str, str | None], numbers: list[int]) -> str:
    """The whole book as one HTML page."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    sheets = dict.fromkeys(sheet for page in taken.values() for sheet in page["sheets"])
    links = "\n".join(f'<link rel="stylesheet" href="{sheet}">' for sheet in sheets)
    rules = "\n".join(page["rules"] for page in taken.values())
    articles = "\n".join(f'<section class="page" id="{name}">{page["html"]}</section>'
                         for name, page in taken.items())
    return f"""<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">
<title>{escape(config["title"])}</title>{links}<style>{rules}{PRINT}</style></head><body>
<div class="front"><img src="{(ROOT / config["logo"]).as_uri()}" alt="">
<div class="title">{escape(config["title"])}</div>
<p>A book that runs: Gaussian-mixture variational autoencoders,<br>
trained in a time that hardly grows with the number of clusters</p>
<p>{escape(config["author"])}</p><p>{datetime.date.today():%-d %B %Y}</p>
<p>{escape(config["repository"]["url"])}</p></div>
<div class="contents"><div class="heading">Contents</div>{contents(taken, parts, numbers)}</div>
<article class="bd-article bd-content">{articles}</article></body></html>"""


def print_pdf(page: Page, html: str) -> PdfWriter:
    """Chromium's PDF of a document, with its headings as bookmarks."""
    source = BOOK.parent / "pdf.html"
    source.write_text(html, encoding="utf-8")
    page.goto(source.as_uri())
    page.evaluate("document.fonts.ready")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER_WIDTH, "height": 1000})
    page.evaluate(FIT)
    data = page.pdf(prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
    headings = page.locator("article").locator("h1, h2, h3, h4, h5, h6").all_inner_texts()
    source.unlink()
    writer = PdfWriter(clone_from=BytesIO(data))
    # Chromium doubles the text of a heading that begins a page.
    bookmarks = list(flat(writer.outline))
    for bookmark, heading in zip(bookmarks, headings, strict=True):
        bookmark.node.get_object()[NameObject("/Title")] = TextStringObject(heading)
    return writer


def flat(outline: list) -> Iterator[Destination]:
    """The bookmarks of every depth, in the order of the document."""
    for entry in outline:
        if isinstance(entry, list):
            yield from flat(entry)
        else:
            yield entry


def main() -> None:
    """Take every page, print them twice, and say what came of it."""
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it reports how Chromium counts objects
    tool = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if tool is None:
        sys.exit("make pdf prints with Chromium, and there is none on the path: install one, for "
                 "instance with `apt install chromium`.")
    if not (BOOK / "index.html").is_file():
        sys.exit(f"There is no book in {BOOK}: make book.")
    parts = {name: part for part, name in pages()}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=tool)
        page = browser.new_page(viewport={"width": 1000, "height": 1400})
        taken = {}
        for name in parts:
            page.goto(f"{BOOK.as_uri()}/{name}.html")
            taken[name] = page.evaluate(TAKE, [BOOK.as_uri(), name, list(parts)])
        numbers = [0] * len(taken)
        for _ in range(2):  # the first print finds the numbers that the contents show
            book = print_pdf(page, document(taken, parts, numbers))
            tops = [entry for entry in book.outline if isinstance(entry, Destination)]
            numbers = [book.get_destination_page_number(top) + 1 for top in tops]
            assert len(tops) == len(taken), [top.title for top in tops]
        browser.close()
    book.write(OUTPUT)
    print(f"{len(book.pages)} pages, {OUTPUT.stat().st_size / 1e6:.1f} MB: {OUTPUT}")


if __name__ == "__main__":
    main()
