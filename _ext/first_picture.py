"""A page that begins with its picture: what a cell tagged `first-picture` shows stands below the title.

In Jupyter it is shown where it is computed, after the parameters and the imports. On a page these are
folded bars, which would push it off the first screen.
"""

from docutils import nodes


def move_up(app, doctree):
    """Move the output of the tagged cell of a page that was just read, with its caption."""
    for cell in list(doctree.findall(nodes.container)):
        if "tag_first-picture" not in cell.get("classes", []):
            continue
        for output in [part for part in cell.children if "cell_output" in part.get("classes", [])]:
            cell.remove(output)
            title = next(doctree.findall(nodes.title))
            title.parent.insert(title.parent.index(title) + 1, nodes.container("", output, classes=["cell"]))


def setup(app):
    app.connect("doctree-read", move_up)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
