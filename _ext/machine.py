"""{{ machine }} and {{ versions }} in a page: what the book was built on."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from times import machine  # noqa: E402

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "pandas", "papermill", "nbval",
             "jupyter-book", "sphinx")


def versions() -> str:
    """Python and the libraries that decide what a chapter shows, each with its version."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)])


def substitute(app, config):
    config.myst_substitutions.setdefault("machine", machine())
    config.myst_substitutions.setdefault("versions", versions())


def setup(app):
    app.connect("config-inited", substitute)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
