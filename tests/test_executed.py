"""What nbval keeps of a chapter for the book's build is what the build's own execution would have shown."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from helpers import CHAPTERS
from jupyter_cache import get_cache
from test_book import remember

# Text before and after a figure, both streams, a glued number, a value, nothing.
SHOWS = ["print('one'); import sys; print('aside', file=sys.stderr)",
         "import matplotlib.pyplot as plt\nprint('before')\nplt.plot([1, 2]); plt.show()\nprint('after')",
         "from myst_nb import glue\nglue('two', 2.5, display=False)",
         "'a value'", "'a value';", "x = 1"]


def chapter(folder: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Small"), *cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "small.ipynb"
    nbformat.write(notebook, path)
    return path


def nbval(path: Path, *arguments: str) -> tuple[int, Path]:
    """The exit code of nbval on a chapter in a folder of its own, and where it is kept."""
    shutil.copy(CHAPTERS / "conftest.py", path.parent)
    kept = path.parent / "kept"
    done = subprocess.run([sys.executable, "-m", "pytest", "--nbval-lax", "-q", "--rootdir", path.parent, path,
                           *arguments], cwd=path.parent, env={**os.environ, "EXECUTED": str(kept)},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, kept / path.name


def shown(notebook: nbformat.NotebookNode) -> list:
    """What a page is made of: the outputs of each cell."""
    return [[{k: v for k, v in output.items() if k != "execution_count"} for output in cell.outputs]
            for cell in notebook.cells if cell.cell_type == "code"]


def test_a_kept_chapter_is_what_the_build_would_have_made(tmp_path):
    path = chapter(tmp_path, *SHOWS)
    status, kept = nbval(path)
    assert status == 0
    mine, theirs = nbformat.read(kept, as_version=4), nbformat.read(path, as_version=4)
    nbclient.execute(theirs, cwd=str(tmp_path))
    assert shown(mine) == shown(theirs)
    assert [o.output_type for o in mine.cells[2].outputs] == ["stream", "display_data", "stream"]
    assert mine.metadata.language_info == theirs.metadata.language_info
    assert 0 < mine.metadata.execution_seconds < 600

    remember(kept.parent, tmp_path / "cache")
    cache = get_cache(tmp_path / "cache")
    found, = cache.list_cache_records()
    assert found.data["execution_seconds"] > 0
    assert shown(cache.merge_match_into_notebook(nbformat.read(path, as_version=4))[1]) == shown(theirs)
    with pytest.raises(KeyError):  # a cell that changed since then is executed
        cache.match_cache_notebook(nbformat.read(chapter(tmp_path, *SHOWS[:-1], "x = 2"), as_version=4))


@pytest.mark.parametrize("sources, only, status", [
    (["x = 1", "1 / 0", "y = 2"], (), 1),
    (["x = 1", "y = 2"], ("-k", "1"), 0),
    (["from IPython.display import clear_output\nprint(1); clear_output()"], (), 0),
], ids=["a cell fails", "not every cell ran", "an output changes an earlier one"])
def test_a_chapter_that_nbval_did_not_run_whole_is_left_to_the_build(tmp_path, sources, only, status):
    code, kept = nbval(chapter(tmp_path, *sources), *only)
    assert code == status and not kept.exists()
