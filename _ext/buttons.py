"""What a page says of the book's address; without one, nothing.

The address is `repository: url` of _config.yml. Without it there are no buttons to a repository, to
its issues, to Colab and to Binder; and {{ elsewhere }} in a page is empty. Colab opens a chapter from the branch
`notebooks`, where the book's workflow puts the versions that any Jupyter shows (see downloads.py).
"""

import sys
from pathlib import Path

from sphinx.errors import ConfigError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from address import checked, site  # noqa: E402

ELSEWHERE = ("Every chapter also opens in Colab or Binder by the rocket above it. The whole book is also "
             "[one PDF]({site}concrete-gmvae.pdf).")


def fill(app, config):
    options = config.html_theme_options
    try:
        url = checked(options.get("repository_url") or "")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    options |= {"use_repository_button": bool(url), "use_issues_button": bool(url)}
    if not url:
        options["launch_buttons"] = {}
    config.html_baseurl = config.html_baseurl or site(url)
    config.myst_substitutions.setdefault("elsewhere", ELSEWHERE.format(site=config.html_baseurl) if url else "")


def open_copies(app, page, template, context, doctree):
    """Let the button to Colab lead to the copy of a chapter, and not to its source."""
    branch = app.config.html_theme_options.get("repository_branch") or "main"
    for button in (b for group in context.get("header_buttons", []) for b in group.get("buttons", [])):
        if button.get("text") == "Colab":
            button["url"] = button["url"].replace(f"/blob/{branch}/", "/blob/notebooks/", 1)


def setup(app):
    app.connect("config-inited", fill)
    app.connect("html-page-context", open_copies, priority=900)  # after the theme made its buttons
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
