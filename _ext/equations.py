"""Numbers of equations: the paper's keep the paper's numbers, ours count on by chapter.

An equation labelled `eq-6` is the paper's (6), in whatever chapter it stands. One with any other
label is numbered within its chapter, as (3.1). One without a label has no number. Sphinx alone
would number the paper's equations anew.
"""

import re

from docutils import nodes


def number_equations(app, doctree):
    """Give every equation of a page that was just read its number; `{eq}` shows the same."""
    page = app.env.docname
    known = app.env.get_domain("math").equations  # label -> (page, number)
    chapter = re.search(r"(?:^|/)0*(\d+)_", page)
    count = 0
    for equation in doctree.findall(nodes.math_block):
        label = equation.get("label")
        if known.get(label, [None])[0] != page:
            continue
        if "amsmath" in equation.get("classes"):  # a bare environment; MyST made the label
            number = None
        elif paper := re.fullmatch(r"eq-(\d+)", label):
            number = paper[1]
        else:
            count += 1
            number = f"{chapter[1]}.{count}" if chapter else str(count)
        equation["number"] = number
        known[label] = (page, number)


def setup(app):
    app.connect("doctree-read", number_equations)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
