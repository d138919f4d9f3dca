"""The lectures, of 90 and of 45 minutes, as a folder of slides that needs no network: reveal.js.

    python tools/slides.py

makes _build/slides from slides/lecture.md and slides/estimators.md. Their figures, equations and numbers
come out of the chapters, which are executed for a projector first (`projected.py`); what is kept of an
earlier call is used again. A slide ends at a line of `---`; what follows `Note:` is for the speaker and
begins with the minutes that the slide takes.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from as_text import aligned
from cgmvae.comparison import PAPER
from projected import ROOT, Chapter

TARGET = ROOT / "_build" / "slides"
MATHJAX = ROOT / "_vendored" / "_static" / "mathjax"  # the book's own
LECTURES = {  # the source in slides/: its page, and the chapters that it takes from
    "lecture": ("index.html", ("01_generative_model", "02_relaxation", "03_annealing", "05_scaling", "07_reproduction")),
    "estimators": ("estimators.html", ("10_one_pass", "11_estimators"))}
NAMES = {"mnist": "MNIST, K = 10", "cifar100": "CIFAR-100, K = 20"}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="slides.css">
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/reveal.js"></script>
<script src="reveal/plugin/notes.js"></script>
<script>
Reveal.initialize({{width: 1280, height: 720, margin: 0, center: false, hash: true,
  slideNumber: "c/t", transition: "none", controls: false, plugins: [RevealNotes]}});
</script>
<script src="mathjax/{mathjax}"></script>
</body>
</html>
"""


class Deck:
    """What a lecture may ask for, out of the executed chapters."""

    def __init__(self, name: str, chapters: list[Chapter], target: Path) -> None:
        self.name, self.chapters, self.target = name, chapters, target

    def find(self, kind: str, name: str):
        """The first that a chapter has of this kind and name."""
        for chapter in self.chapters:
            if (found := getattr(chapter, kind)(name)) is not None:
                return found
        sys.exit(f"slides/{self.name}.md asks for the {kind} {name!r}, which no chapter of the lecture has.")

    def figure(self, name: str) -> str:
        image, alt = self.find("figure", name)
        (self.target / "figures").mkdir(exist_ok=True)
        (self.target / "figures" / f"{name}.png").write_bytes(image)
        return f'<p class="figure"><img src="figures/{name}.png" alt="{html.escape(alt)}"></p>'

    def equation(self, label: str) -> str:
        return aligned(self.find("equation", label))

    def moving(self, function: str) -> str:
        found = self.find("moving", function)
        found = re.sub(r"(</?)section\b", r"\1div", found)  # to reveal.js, a section is a slide
        return re.sub(r"\n\s*\n", "\n", found)  # to Markdown, a blank line ends the HTML

    def number(self, name: str, form: str) -> str:
        return format(self.find("number", name), form)

    def table1(self) -> str:
        """The paper's Table 1."""
        head = "<tr><th></th><th>GMVAE</th><th>Concrete GMVAE</th></tr>"
        rows = [f"<tr><th>{NAMES[d]}</th>" + "".join(
            f"<td>{PAPER[d, e].log_px:.2f} ± {PAPER[d, e].log_px_sd:.2f} nats<br>"
            f"{PAPER[d, e].hours:.2f} ± {PAPER[d, e].hours_sd:.2f} hours</td>"
            for e in ("marginal", "concrete")) + "</tr>" for d in NAMES]
        return f"<table>{head}{''.join(rows)}</table>"


def markdown() -> MarkdownIt:
    """Markdown with $ and $$ kept for MathJax."""
    def tex(content: str, options: dict) -> str:
        left, right = ("\\[", "\\]") if options["display_mode"] else ("\\(", "\\)")
        return left + html.escape(content) + right

    return MarkdownIt("commonmark", {"html": True}).use(dollarmath_plugin, renderer=tex, double_inline=True)


def sections(text: str) -> list[tuple[str, str]]:
    """Each slide and its note, as Markdown."""
    parts = [slide.partition("\nNote:\n") for slide in re.split(r"\n---\n", text)]
    return [(slide.strip(), note.strip()) for slide, _, note in parts]


def minutes(note: str) -> int:
    """How long a slide takes, which its note begins with."""
    if not (found := re.match(r"(\d+) min\b", note)):
        raise ValueError(f"a note must begin with the minutes of its slide, as '3 min'; this begins {note[:30]!r}")
    return int(found[1])


def source(lecture: str) -> str:
    """The Markdown of a lecture in LECTURES."""
    return (ROOT / "slides" / f"{lecture}.md").read_text(encoding="utf-8")


def build(target: Path = TARGET) -> dict[str, int]:
    """Make the folder of slides; the minutes that each lecture takes."""
    if not MATHJAX.is_dir():
        sys.exit(f"MathJax is missing: {MATHJAX.relative_to(ROOT)}")
    names = dict.fromkeys(name for _, names in LECTURES.values() for name in names)
    chapters = {name: Chapter(ROOT / "chapters" / f"{name}.ipynb") for name in names}
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copytree(ROOT / "slides" / "reveal", target / "reveal")
    shutil.copytree(MATHJAX, target / "mathjax")
    shutil.copy(ROOT / "slides" / "slides.css", target)
    return {lecture: _page(lecture, page, [chapters[name] for name in names], target)
            for lecture, (page, names) in LECTURES.items()}


def _page(lecture: str, page: str, chapters: list[Chapter], target: Path) -> int:
    """Write one lecture's page; its minutes."""
    deck = Deck(lecture, chapters, target)
    template = Environment(variable_start_string="<<", variable_end_string=">>", block_start_string="<%",
                           block_end_string="%>", comment_start_string="<#", comment_end_string="#>",
                           undefined=StrictUndefined).from_string(source(lecture))
    text = template.render(figure=deck.figure, equation=deck.equation, moving=deck.moving,
                           number=deck.number, table1=deck.table1)
    render, slides = markdown().render, []
    for slide, note in sections(text):
        minutes(note)
        slides.append(f'<section>\n{render(slide)}<aside class="notes">{render(note)}</aside>\n</section>')
    title = text.splitlines()[0].removeprefix("# ")
    script = next(path.name for path in sorted(MATHJAX.glob("tex-*.js")))
    (target / page).write_text(PAGE.format(title=title, slides="\n".join(slides), mathjax=script),
                               encoding="utf-8")
    return sum(minutes(note) for _, note in sections(text))


if __name__ == "__main__":
    lectures = build()
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file()) / 2**20
    for lecture, total in lectures.items():
        print(f"{len(sections(source(lecture)))} slides for {total} minutes: {TARGET / LECTURES[lecture][0]}")
    print(f"{size:.1f} MB. Open these pages in a browser.")
