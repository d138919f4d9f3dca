"""The chapters side by side: what is executed, what is left to the build, and what a second call does."""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_cache import get_cache

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from execute import execute  # noqa: E402

CODE = "open('seen', 'a').write('{name} ')\n{more}"


@pytest.fixture
def root(tmp_path):
    """A book of four chapters, of which one fails and one is to be alone; each says that it was executed."""
    (tmp_path / "chapters").mkdir()
    for name, more in (("01_a", "print(1)"), ("02_bad", "1 / 0"), ("05_alone", ""), ("08_long", "print(8)")):
        cell = nbformat.v4.new_code_cell(CODE.format(name=name, more=more))
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
        nbformat.write(notebook, tmp_path / "chapters" / f"{name}.ipynb")
    return tmp_path


def test_each_is_executed_once_but_for_the_one_that_is_alone_and_the_one_that_fails(root):
    executed, failed = execute(root)
    assert sorted(executed) == ["01_a.ipynb", "08_long.ipynb"] and failed == ["02_bad.ipynb"]
    seen = root / "chapters" / "seen"
    assert sorted(seen.read_text().split()) == ["01_a", "02_bad", "08_long"]
    cache = get_cache(root / "_build" / ".jupyter_cache")
    assert {Path(r.uri).name for r in cache.list_cache_records()} == {"01_a.ipynb", "08_long.ipynb"}
    record = next(r for r in cache.list_cache_records() if r.uri.endswith("08_long.ipynb"))
    outputs = cache.get_cache_bundle(record.pk).nb.cells[0].outputs
    assert [o["text"] for o in outputs if o["output_type"] == "stream"] == ["8\n"]

    assert execute(root) == ([], ["02_bad.ipynb"])  # nothing that is in the cache is executed again
    path = root / "chapters" / "01_a.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\nprint(2)"
    nbformat.write(notebook, path)
    assert execute(root)[0] == ["01_a.ipynb"]
    assert sorted(p.name for p in root.iterdir()) == ["_build", "chapters"]
