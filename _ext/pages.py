"""What a page says of itself to search engines and in shared links, and how it does with less.

A page's description is the `description` of the `html_meta` in its front matter (a notebook's is in
its metadata). This repeats it with the page's title, and, where the book has an address, the page's
own and the book's card, in the properties that https://ogp.me names.
"""

import re
from html import escape, unescape

from docutils import nodes


def describe(app, pagename, templatename, context, doctree):
    """Add the Open Graph properties of a page that has a description."""
    found = doctree.findall(nodes.meta) if doctree else ()
    description = next((m["content"] for m in found if m.get("name") == "description"), None)
    if not description:
        return
    title = unescape(re.sub("<[^>]+>", "", context["title"]))
    tags = {"og:type": "article", "og:site_name": app.config.html_title, "og:title": title,
            "og:description": description}
    if site := app.config.html_baseurl:  # without one there is no address to give
        tags |= {"og:url": f"{site}{pagename}.html", "og:image": f"{site}_static/card.png",
                 "og:image:width": "1200", "og:image:height": "630",
                 "og:image:alt": "Concrete GMVAE: clustering with a VAE in a time that hardly grows with K"}
    context["metatags"] += "".join(f'<meta property="{name}" content="{escape(text)}" />\n'
                                   for name, text in tags.items())
    context["metatags"] += '<meta name="twitter:card" content="summary_large_image" />\n'


def mend_lists(app, pagename, templatename, context, doctree):
    """Lists that a screen reader cannot read, because they are none, as plain boxes.

    docutils gives the references the role of a list whose entries no list may hold; Sphinx writes
    the parameters of a long signature as definitions of nothing.
    """
    if "body" not in context:
        return
    body = context["body"].replace(' role="list" class="citation-list"', "")
    body = body.replace(' role="doc-biblioentry"', "")
    body = re.sub(r"<dl>\n((?:<dd><em class=\"sig-param\".*\n)+)</dl>",
                  lambda found: found[1].replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>"),
                  body)
    context["body"] = body


def status_in_words(app, pagename, templatename, context, doctree):
    """Whether a chapter ran, as a word: not every font has the marks, and paper has what is there."""
    if "body" in context:
        context["body"] = context["body"].replace("<p>✅</p>", "<p>done</p>").replace("<p>❌</p>", "<p>failed</p>")


def search_without_a_server(app, pagename, templatename, context, doctree):
    """Let the search page show titles alone when it is read from a file.

    For its summaries it fetches each page that it found, which a browser forbids there.
    """
    if pagename == "search":
        app.add_js_file(None, body='if (location.protocol === "file:") '
                                   "DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;")


def without_thebe(app, config):
    """Jupyter Book always sets thebe up, for code that runs in the page through a network.

    This book does not use it, and its script, put twice into every page, is an error there.
    """
    app.registry.css_files[:] = [one for one in app.registry.css_files if "thebe" not in one[0]]
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if not one.handler.__module__.startswith("sphinx_thebe")]


def setup(app):
    app.connect("config-inited", without_thebe)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", mend_lists)
    app.connect("html-page-context", status_in_words)
    app.connect("html-page-context", search_without_a_server)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
