"""The book's address on GitHub, which `repository: url` of _config.yml holds: `make address`.

While it is empty the book has none: no buttons that open a chapter elsewhere, no link to a PDF on
a site, no repository to cite. The build reads it from there. What leaves the repository alone must
hold a copy, which

    python tools/address.py

writes: the first cell of every chapter, which Colab opens without the rest; CITATION.cff; and
codemeta.json.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]

CELL = """\
# Where the package is missing, {what}. Else nothing.
import importlib.util

if importlib.util.find_spec("cgmvae") is None:
"""
INSTALL = CELL.format(what="as on Colab: fetch the book and install it") + """\
    !git clone --quiet --depth 1 {url}
    %cd -q {name}
    %pip install --quiet --editable ."""
MISSING = CELL.format(what="say so") + """\
    raise ModuleNotFoundError("This needs the book's package: pip install -e . in its folder.")"""


def checked(url: str) -> str:
    """The address of a repository as it may be given: empty, or on GitHub.

    Raises ValueError for another, in one sentence.
    """
    if url and not re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+(?<!\.git)", url):
        raise ValueError("repository: url in _config.yml must be empty or https://github.com/OWNER/NAME; "
                         f"it is {url!r}.")
    return url


def repository() -> str:
    """The address that _config.yml holds, or an empty string. Raises ValueError if it is no such."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return checked(config["repository"]["url"] or "")


def site(url: str) -> str:
    """Where GitHub publishes the pages of a repository; empty without one."""
    owner, name = url.split("/")[-2:] if url else ("", "")
    return f"https://{owner.lower()}.github.io/{name}/" if url else ""


def first_cell(url: str) -> str:
    """The source of every chapter's first code cell, hidden in the book."""
    return INSTALL.format(url=url, name=url.split("/")[-1]) if url else MISSING


def chapter(text: str, url: str) -> str:
    """A chapter's file with its first code cell as it should be."""
    notebook = json.loads(text)
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first["source"] = first_cell(url).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def citation(text: str, url: str) -> str:
    """CITATION.cff with the repository and the site, or without either."""
    text = re.sub(r"(?m)^(?:repository-code|url):.*\n", "", text)
    lines = f'repository-code: "{url}"\nurl: "{site(url)}"\n' if url else ""
    return re.sub(r"(?m)^license:.*\n", lambda found: found[0] + lines, text)


def codemeta(text: str, url: str) -> str:
    """codemeta.json with the repository and the site, or without either."""
    facts = {key: value for key, value in json.loads(text).items() if key not in ("codeRepository", "url")}
    if url:
        facts |= {"codeRepository": url, "url": site(url)}
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def copies(url: str) -> dict[Path, str]:
    """Every file that holds a copy of the address, and what it should hold."""
    writers = {ROOT / "CITATION.cff": citation, ROOT / "codemeta.json": codemeta}
    writers |= {path: chapter for path in sorted((ROOT / "chapters").glob("*.ipynb"))}
    return {path: write(path.read_text(encoding="utf-8"), url) for path, write in writers.items()}


if __name__ == "__main__":
    try:
        url = repository()
    except ValueError as error:
        sys.exit(str(error))
    for path, text in copies(url).items():
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
    print(f"The book's address is {url}, and its site's {site(url)}" if url else "The book has no address.")
