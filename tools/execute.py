"""Execute the chapters that are not in the build's cache, as many at once as there are cores.

`make book` calls it before Jupyter Book, which would take them one after another. What fails here is executed once
more there, alone, and fails the build with its traceback.
"""

import logging
import os
import sys
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

LONGEST = ("08", "11", "06", "03", "10", "09", "04")  # they go first, so that no core waits for one of them at the end
ALONE = ("05",)  # it measures the time of a step: left to the build, with nothing beside it


def execute(root: Path) -> tuple[list[str], list[str]]:
    """Fill _build/.jupyter_cache below `root`: the names of the chapters that were executed, and that failed."""
    chapters = sorted((root / "chapters").glob("[0-9]*.ipynb"),
                      key=lambda path: (*LONGEST, path.name[:2]).index(path.name[:2]))
    cache = get_cache(root / "_build" / ".jupyter_cache")
    for path in chapters:
        if path.name[:2] not in ALONE:
            cache.add_nb_to_project(str(path))
    done = load_executor("local-parallel", cache, logging.getLogger("chapters")).run_and_cache(timeout=600)
    return tuple([Path(uri).name for uri in uris] for uris in (done.succeeded, done.excepted + done.errored))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # of each kernel: its share of the machine
    executed, failed = execute(Path(__file__).resolve().parent.parent)
    print(f"Executed side by side: {len(executed)} chapters." + (f" To be tried once more: {', '.join(failed)}."
                                                                if failed else ""), file=sys.stderr)
