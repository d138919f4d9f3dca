"""The chapters as tests: nbval runs every cell. What the cells show is kept for the book's build.

With EXECUTED=FOLDER, as `make test` sets it, a chapter of which every cell ran without an error is
written there with its outputs; tests/test_book.py gives it to the build, which need not run it again.
"""

import os
import tempfile
import time
from unittest.mock import patch

import nbformat
import pytest

# The kernels inherit these: the quick scale, no progress bars, figures in the notebook, no user's data.
DATA = tempfile.TemporaryDirectory()
os.environ |= {"CGMVAE_PRESET": "quick", "TQDM_DISABLE": "1", "CGMVAE_DATA": DATA.name}
os.environ.pop("MPLBACKEND", None)

SHOWN = ("stream", "display_data", "execute_result")
CHANGES = ("clear_output", "update_display_data")  # what was shown before: the build does that better


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run a cell as nbval does, listening to its kernel; keep the chapter after its last cell."""
    chapter, messages = item.parent, []
    ask = chapter.get_kernel_message

    def listen(*arguments, **choices):
        messages.append(ask(*arguments, **choices))
        return messages[-1]

    start = time.perf_counter()
    with patch.object(chapter, "get_kernel_message", listen):
        yield  # an error leaves from here: the cell stays without a count, and the chapter is not kept
    chapter.seconds = getattr(chapter, "seconds", 0.0) + time.perf_counter() - start
    asked = messages[-1]["parent_header"]["msg_id"]  # the last message: this cell's kernel is idle
    own = [m for m in messages if m["parent_header"].get("msg_id") == asked]
    if not any(m["msg_type"] in CHANGES for m in own):
        item.cell.execution_count = item.cell_num + 1
        # IPython keeps no history of what nbval runs, and so does not see that a cell ends with `;`.
        silent = {"execute_result"} if item.cell.source.rstrip().endswith(";") else set()
        item.cell.outputs = [nbformat.v4.output_from_msg(m) for m in own
                             if m["msg_type"] in SHOWN and m["msg_type"] not in silent]
    cells = [cell for cell in chapter.nb.cells if cell.cell_type == "code"]
    if "EXECUTED" in os.environ and all(cell.execution_count for cell in cells):
        keep(chapter)


def keep(chapter) -> None:
    """Write a chapter as nbclient would have left it, and the seconds that its cells took."""
    kernel = chapter.kernel.kc.kernel_info(reply=True, timeout=60)["content"]
    chapter.nb.metadata["language_info"] = kernel["language_info"]
    chapter.nb.metadata["execution_seconds"] = chapter.seconds
    folder = chapter.config.rootpath / os.environ["EXECUTED"]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(chapter.nb, folder / chapter.path.name)
