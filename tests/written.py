"""The slides of chapters that were not executed: what `make slides` makes, within seconds and without figures."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import projected  # noqa: E402
import slides  # noqa: E402


def code_cells(notebook, tag=None):
    return [cell for cell in notebook.cells if cell.cell_type == "code"
            and (tag is None or tag in cell.metadata.get("tags", []))]


class Written(projected.Chapter):
    """A chapter that was not executed: its equations are real, the rest stands for an output."""

    def __init__(self, path):
        self.notebook = nbformat.read(path, as_version=4)
        self.sources = "\n".join(cell.source for cell in code_cells(self.notebook))

    def figure(self, name):
        for cell in code_cells(self.notebook):
            if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
                return b"png", cell.metadata.mystnb.image.alt
        return None

    def moving(self, function):
        return "<b>moves</b>" if f"HTML(interactive.{function}(" in self.sources else None

    def number(self, name):
        # Some names are put together: glue(f"ch05_ratio_{name}", ratio).
        glued = re.findall(r'glue\(f?"(\w+?)(?:\{\w+\})?"', self.sources)
        return 1.0 if any(name.startswith(g) for g in glued) else None


def build(target: Path) -> dict[str, int]:
    """Make the folder of slides from such chapters; the minutes of each lecture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slides, "Chapter", Written)
        return slides.build(target)
