"""A headless Chromium that reads the built book, from files and from a server, with no network."""

import functools
import gzip
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / os.environ.get("BOOK", "_build/html")
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"]] + [page["file"] for part in TOC["parts"] for page in part["chapters"]]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
weights: dict[str, tuple[int, int]] = {}  # page -> bytes of all that it loads: as sent, as it is


def pytest_collection_modifyitems(items):
    try:
        import axe_playwright_python  # noqa: F401
        import playwright  # noqa: F401
        missing = None if CHROMIUM else (
            "no Chromium on the path: install one, for instance with `apt install chromium`")
    except ImportError:
        missing = "Playwright is missing: `make browser` installs it"
    for item in items:
        if missing and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=missing))


def pytest_terminal_summary(terminalreporter):
    if weights:
        terminalreporter.section("what a page loads: sent compressed, and as it is")
        for name, (sent, size) in sorted(weights.items(), key=lambda item: -item[1][0]):
            terminalreporter.line(f"{sent / 1e6:6.2f} MB {size / 1e6:6.2f} MB  {name}")
        files = [path.stat().st_size for path in BOOK.rglob("*") if path.is_file()]
        terminalreporter.line(f"{sum(files) / 1e6:16.2f} MB  the whole book, {len(files)} files")


@dataclass
class Visit:
    """One page, open in the browser, and what went wrong while it loaded."""

    name: str
    page: object  # playwright's Page
    wrong: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    assert (BOOK / "index.html").is_file(), f"no book in {BOOK}: make book"
    with sync_playwright() as playwright:
        # Nothing but this machine has an address: the network is cut off.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def addresses() -> Iterator[dict[str, str]]:
    """Where the book is: as files, and on a server of this machine."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=BOOK)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"file": BOOK.as_uri(), "server": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()


@pytest.fixture(scope="session")
def visit(chromium, addresses):
    """Opens a page of the book, `visit("file", "index")`, and waits until its formulas stand."""
    def open_page(where: str, name: str, query: str = "") -> Visit:
        address = addresses[where]
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        seen = Visit(name, page)
        page.on("console", lambda m: m.type == "error" and seen.wrong.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: seen.wrong.append(f"script: {error}"))
        page.on("request", lambda r: seen.requests.append(r.url))
        # What the browser itself gives up, because the reader has gone on to another page, is no fault.
        page.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED"
                or seen.wrong.append(f"failed: {r.url}: {r.failure}"))
        page.on("response", lambda r: r.status >= 400 and seen.wrong.append(f"{r.status}: {r.url}"))
        page.goto(f"{address}/{name}.html{query}")
        settle(page)
        seen.wrong += [f"from elsewhere: {url}" for url in seen.requests
                       if not url.startswith((address, "data:", "blob:"))]
        return seen

    return open_page


def settle(page) -> None:
    """Wait for MathJax, where there is one, and for the fonts."""
    page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")


@functools.cache
def sent(file: Path) -> int:
    """The bytes that a web server sends of a file: text goes compressed."""
    data = file.read_bytes()
    return len(gzip.compress(data)) if file.suffix in (".html", ".js", ".css", ".svg") else len(data)


def file_of(url: str, addresses: dict[str, str]) -> Path:
    """The file behind an address of the book."""
    path = urlsplit(url).path
    base = urlsplit(addresses["file"]).path if url.startswith("file") else ""
    return BOOK / unquote(path).removeprefix(unquote(base)).lstrip("/")
