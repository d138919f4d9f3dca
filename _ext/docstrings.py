"""Args, Returns and Raises in the docstrings of functions and classes, as Sphinx's napoleon does.

Not for constants and properties: of "Scales: the paper's, and two smaller ones." napoleon would
make the type `Scales`.
"""

from sphinx.ext.napoleon import GoogleDocstring


def read_sections(app, what, name, obj, options, lines):
    """Replace the lines of a docstring, in place, by what napoleon makes of them."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, what=what, name=name, obj=obj).lines()


def setup(app):
    app.connect("autodoc-process-docstring", read_sections)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
