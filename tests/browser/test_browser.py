"""The built book in a real browser: `make browser`. A page stays open for all tests of it."""

import functools
import re
from collections import defaultdict
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import written
from bs4 import BeautifulSoup
from PIL import Image

from .conftest import BOOK, PAGES, ROOT, file_of, sent, settle, weights

EVERY = [(where, name) for where in ("file", "server") for name in [*PAGES, "genindex", "search"]]


@pytest.fixture(scope="module", params=EVERY, ids=lambda pair: "-".join(pair))
def opened(request, visit):
    """Every page, as a file and from the server."""
    seen = visit(*request.param)
    yield seen
    seen.page.close()


@pytest.fixture(scope="module", params=PAGES)
def served(request, visit):
    """Every page of the table of contents, from the server."""
    seen = visit("server", request.param)
    yield seen
    seen.page.close()


def source(name: str) -> BeautifulSoup:
    """A page as it was built, before any script ran."""
    return BeautifulSoup((BOOK / f"{name}.html").read_text(), "html.parser")


def executed(name: str) -> list[nbformat.NotebookNode]:
    """The code cells of a chapter as the build executed them; a page that is no notebook has none."""
    notebook = BOOK.parent / "jupyter_execute" / f"{name}.ipynb"
    if not notebook.is_file():
        return []
    return [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]


def test_loads_without_an_error(opened, addresses):
    assert opened.wrong == []
    files = {file_of(url, addresses) for url in opened.requests if not url.startswith("data:")}
    weights[opened.name] = (sum(map(sent, files)), sum(file.stat().st_size for file in files))
    assert weights[opened.name][0] < 2e6


def test_every_equation_is_rendered(opened):
    """As many as the page has, none in red, and no TeX left in the text."""
    written = len(source(opened.name).select(".math"))
    assert opened.page.locator(".math mjx-container").count() == written
    assert opened.page.locator("mjx-merror, [data-mjx-error]").count() == 0
    text = opened.page.evaluate("""() => {
        const main = document.querySelector("main").cloneNode(true);
        main.querySelectorAll("pre, code, script, mjx-container").forEach((e) => e.remove());
        return main.textContent;
    }""")
    assert re.findall(r".{0,30}(?:\\[(\[a-zA-Z]|\$).{0,30}", text) == []


@functools.cache
def targets() -> dict[str, set[str]]:
    """Page -> the places in it that the text of any page refers to."""
    found = defaultdict(set)
    for name in PAGES:
        for link in source(name).select("article a[href*='#']"):
            url = urlsplit(link["href"])
            if url.scheme or "headerlink" in link.get("class", []):
                continue
            page = (BOOK / f"{name}.html").parent / unquote(url.path) if url.path else BOOK / f"{name}.html"
            found[page.resolve().relative_to(BOOK).with_suffix("").as_posix()].add(unquote(url.fragment))
    return found


def test_references_lead_where_they_say(opened):
    """What a link refers to is then in sight, below the page's header."""
    astray = opened.page.evaluate("""async (places) => {
        const astray = [];
        for (const place of places) {
            location.hash = "";
            location.hash = "#" + place;
            await new Promise(requestAnimationFrame);
            const target = document.getElementById(place);
            const box = target?.getBoundingClientRect();
            if (!box || box.top < 0 || box.top >= innerHeight) astray.push([place, box?.top ?? null]);
        }
        return astray;
    }""", sorted(targets()[opened.name]))
    assert astray == []


@pytest.mark.parametrize("where", ["file", "server"])
def test_equation_is_in_sight_after_loading(visit, where):
    """A page moves while its formulas are set; the place that was asked for must stay in sight."""
    seen = visit(where, "chapters/01_generative_model", "#equation-eq-6")
    box = seen.page.locator("[id='equation-eq-6']").bounding_box()
    seen.page.close()
    assert 0 <= box["y"] < 900


def test_figures_are_there(opened):
    """Each with its alt text and its image, on paper that is not see-through in the dark."""
    images = opened.page.locator("article img").evaluate_all(
        "images => images.map((i) => ({alt: i.alt, src: i.src, width: i.naturalWidth}))")
    for image in images:
        assert len(image["alt"].split()) > 2, image["src"][:100]
        assert image["width"] > 0, image["src"][:100]
    for cell in executed(opened.name):
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        if name and any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert opened.page.locator(f"figure[id='{name}'] img").count() == 1, name


def test_clusters_are_seen_before_they_are_explained(visit):
    """A laptop's first screen of chapter 6 has nearly all of its picture of clusters."""
    page = visit("file", "chapters/06_clusters").page
    page.set_viewport_size({"width": 1366, "height": 768})
    box = page.locator("main figure img").first.bounding_box()
    page.close()
    assert box["height"] > 300 and 768 - box["y"] >= 0.85 * box["height"]


def test_figures_are_opaque():
    """A figure brings its own white paper, on which its black letters can be read in the dark."""
    for path in BOOK.glob("_images/*.png"):
        with Image.open(path) as image:
            low, _ = image.convert("RGBA").getchannel("A").getextrema()
        assert low == 255, path.name


def test_solutions_unfold_and_fold(opened):
    """By mouse and by keyboard; as many as the page was built with, all folded at first."""
    solutions = opened.page.locator(".solution.dropdown")
    assert solutions.count() == len(source(opened.name).select(".solution.dropdown"))
    for solution in solutions.all():
        button, inside = solution.locator("button").first, solution.locator("section > *").first
        assert not inside.is_visible()
        solution.locator(".admonition-title").first.click()
        assert inside.is_visible()
        button.press("Enter")
        assert not inside.is_visible()


def test_every_chapter_has_solutions():
    without = [name for name in PAGES if name.split("/")[-1][0].isdigit()
               and not source(name).select(".solution.dropdown")]
    assert without == []


@pytest.mark.parametrize("where", ["file", "server"])
def test_search_finds_a_word_of_chapter_2(visit, where):
    seen = visit(where, "index")
    seen.page.keyboard.press("Control+k")
    seen.page.keyboard.type("Gumbel")
    seen.page.keyboard.press("Enter")
    found = seen.page.locator("#search-results a[href*='02_relaxation']").first
    found.wait_for()
    found.click()
    settle(seen.page)
    assert "Gumbel" in seen.page.locator("article").inner_text()
    assert seen.wrong == []
    seen.page.close()


def test_moving_figures_move(opened):
    """Every control of every one, by keyboard alone."""
    for figure in opened.page.locator(".cgmvae-widget").all():
        for control in figure.locator("input, select").all():
            before = figure.inner_html()
            control.focus()
            control.press("ArrowUp" if control.get_attribute("type") else "ArrowDown")
            assert figure.inner_html() != before, control.get_attribute("aria-label")


def test_there_are_four_moving_figures():
    assert sum(len(source(name).select(".cgmvae-widget")) for name in PAGES) == 4


def test_fits_a_phone(served):
    """No page scrolls sideways at 390 pixels."""
    served.page.set_viewport_size({"width": 390, "height": 844})
    wide = served.page.evaluate("""() => document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > innerWidth)
        .map((e) => e.outerHTML.slice(0, 100))""")
    served.page.set_viewport_size({"width": 1280, "height": 900})
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(served, scheme):
    """Contrast among the rest, with every solution unfolded."""
    from axe_playwright_python.sync_playwright import Axe

    served.page.emulate_media(color_scheme=scheme)
    served.page.evaluate("""document.querySelectorAll(".dropdown.toggle-hidden > .admonition-title")
        .forEach((title) => title.click())""")
    served.page.wait_for_selector(f"html[data-theme='{scheme}']", state="attached")  # it takes the theme a moment
    served.page.wait_for_timeout(500)  # until the colours have settled
    report = Axe().run(served.page, options={"resultTypes": ["violations"]}).response
    assert [f"{violation['id']}: {node['html'][:150]}: {node.get('failureSummary', '')[:300]}"
            for violation in report["violations"] if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]] == []


@pytest.mark.parametrize("lecture", written.slides.LECTURES)
def test_no_slide_is_wider_than_itself(chromium, lecture, tmp_path_factory):
    """The slides with their real formulas and without figures: nothing ends right of the 1280 pixels."""
    folder = tmp_path_factory.mktemp("slides") / "slides"
    written.build(folder)
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    page.goto((folder / written.slides.LECTURES[lecture][0]).as_uri())
    settle(page)
    wide = page.evaluate("""() => {
        const wide = [];
        Reveal.getSlides().forEach((slide, i) => {
            Reveal.slide(i);
            slide.querySelectorAll(":not(aside, aside *, img, mjx-assistive-mml, mjx-assistive-mml *)").forEach((e) => {
                const right = e.getBoundingClientRect().right;
                if (right > 1280) wide.push([i + 1, Math.round(right), e.outerHTML.slice(0, 80)]);
            });
        });
        return wide;
    }""")
    page.close()
    assert wide == []
