"""{{ machine }} in a page: what the book was built on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from times import machine  # noqa: E402


def setup(app):
    app.connect("config-inited", lambda app, config: config.myst_substitutions.setdefault("machine", machine()))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
