"""The chapters for download, as any Jupyter shows them, with the numbers of this build in their text.

Sphinx copies the sources of its pages, in which those numbers, references and exercises are marks that only
the build understands. This puts tools/as_text.py's version in the place of each chapter's.
"""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from as_text import References, whole  # noqa: E402


def glued(path: Path) -> dict:
    """What a chapter glued in this build, from the file that MyST-NB keeps of it. Figures are left out."""
    outputs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    texts = {name: output["data"].get("text/plain", "<") for name, output in outputs.items()}
    return {name: float("nan") if text == "nan" else ast.literal_eval(text)
            for name, text in texts.items() if not text.startswith("<")}


def write(app, exception):
    """Write the version for download of every chapter of a build that went well."""
    chapters = sorted(page for page in app.env.found_docs if re.search(r"(?:^|/)\d+_\w+$", page))
    if exception or app.builder.name != "html" or not chapters:
        return
    references = References([Path(app.env.doc2path(page)) for page in chapters],
                            Path(app.srcdir, app.config.bibtex_bibfiles[0]))
    executed = Path(app.env.mystnb_config.output_folder)
    for page in chapters:
        notebook = nbformat.read(app.env.doc2path(page), as_version=4)
        known = glued(executed / f"{page}.glue.json")
        number = int(page.split("/")[-1].split("_")[0])
        nbformat.write(whole(notebook, number, references, known), Path(app.outdir, "_sources", f"{page}.ipynb"))


def setup(app):
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
