"""What a teacher gets: student copies whose checks tell, the assignment, the slides, the times."""

import ast
import base64
import builtins
import functools
import math
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from reading import raw

from cgmvae import notebook as notebook_helper, records
from cgmvae.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import as_text  # noqa: E402
import copies  # noqa: E402
import from_records  # noqa: E402
import slides  # noqa: E402
import student  # noqa: E402
import times  # noqa: E402
import written  # noqa: E402
from from_records import defined, needed  # noqa: E402
from written import code_cells  # noqa: E402

CHAPTERS = {path.stem: path for path in student.CHAPTERS}
copy_of = functools.cache(lambda name: student.copy_of(CHAPTERS[name]))  # not while tests are collected
# So that what each chapter has before its exercises is there within seconds.
SHRUNK = {"02_relaxation": "images, draws = 4, 64", "04_cifar": "estimator = 'concrete'",
          "05_scaling": "K_max = 10", "06_clusters": "epochs = 1", "08_worth_having": "epochs = 1",
          "09_your_images": "epochs = 1"}
TINY = {**PRESETS["quick"], "epochs": 1, "train_limit": 400, "iw_samples": 2}
# Answers beside the chapter's own. Each runs after it, and is code that replaces some of its names.
ANSWERED = tomllib.loads(Path(__file__).with_name("answers.toml").read_text())


def chapters_own(copy) -> list[str]:
    """The code cells of a copy that are the chapter's, without the one that installs on Colab."""
    return [cell.source for cell in code_cells(copy)
            if not {"stub", "check", "numbers", "remove-cell"} & set(cell.metadata.get("tags", []))]


def before_the_exercises(copy, wanted: set[str]) -> list[str]:
    """Those cells of a chapter that define what is wanted, and what these want in turn."""
    parameters, *rest = chapters_own(copy)
    return [parameters, *from_records.before(rest, wanted)]


def run(source: str, scope: dict) -> None:
    exec(compile(source, "<cell>", "exec"), scope)


def raises(source: str, scope: dict) -> bool:
    try:
        run(source, scope)
    except Exception:
        return True
    return False


def refused(label: str, scope: dict) -> bool:
    """Whether the check of an exercise says, in a sentence, what is wrong."""
    try:
        run(student.check(label), dict(scope))
    except (AssertionError, NotImplementedError) as error:
        assert str(error), f"{label}: the check fails and does not say why"
        return True
    return False


def parts_of(stub: str) -> list[str]:
    """A stub with all but one of its open statements left out, for each: what a student may forget."""
    def is_open(node):
        return any(isinstance(part, ast.Raise) or isinstance(part, ast.Constant) and part.value is ...
                   for part in ast.walk(node))
    body = ast.parse(stub).body
    return ["\n".join(ast.unparse(node) for node in body if node is one or not is_open(node))
            for one in filter(is_open, body)]


@pytest.mark.parametrize("name", CHAPTERS)
def test_checks_tell_right_from_wrong(name, monkeypatch):
    """The same checks, on the stubs, on the chapter's own solutions, and on other answers."""
    monkeypatch.chdir(ROOT / "chapters")
    if name != "06_clusters":  # whose exercises need some clusters
        monkeypatch.setitem(PRESETS, "quick", TINY)
    chapter = nbformat.read(CHAPTERS[name], as_version=4)
    solutions = student.solutions(chapter)
    checked = [label for label in solutions if label in student.EXERCISES]
    wanted = {name for label in checked
              for before in (solutions[label], [student.stub(label)], *zip(sum(ANSWERED[label].values(), [])))
              for name in needed("\n".join([*before, student.check(label)]))}
    scope = {"__name__": "chapter", "In": [], "display": lambda *_: None}
    first, *others = before_the_exercises(copy_of(name), wanted)
    run(first + "\n" + SHRUNK.get(name, ""), scope)
    for source in others:
        run(source, scope)
    as_student, as_teacher, passed = dict(scope), dict(scope), []
    for label in checked:
        run(student.stub(label), as_student)
        assert refused(label, as_student), f"{label}: the check passes with the stub"
        for source in solutions[label]:
            run(source, as_teacher)
        run(student.check(label), dict(as_teacher))
        for left_open in parts_of(student.stub(label)):
            other = dict(as_teacher)
            run(left_open, other)
            assert refused(label, other), f"{label}: the check passes with {left_open}"
        for right in ANSWERED[label].get("right", []):
            other = dict(as_teacher)
            run(right, other)
            assert not refused(label, other), f"{label} refuses: {right}"
        for wrong in ANSWERED[label]["wrong"]:
            other = dict(as_teacher)
            run(wrong, other)
            passed += [] if refused(label, other) else [f"{label}: {wrong}"]
    assert not passed, "wrong, and the check passes:\n" + "\n".join(passed)


def test_every_check_has_wrong_answers():
    assert set(ANSWERED) == set(student.EXERCISES)
    assert all(len(set(answers["wrong"])) >= 2 for answers in ANSWERED.values())


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_copy_has_every_exercise_and_no_solution(name):
    chapter = nbformat.read(CHAPTERS[name], as_version=4)
    text = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    copy = copy_of(name)
    nbformat.validate(copy)
    marks = as_text.MARK.findall(text)
    exercises = [body for kind, _, body in marks if kind == "exercise"]
    headings = [c for c in copy.cells if c.source.startswith("### Exercise")]
    assert len(headings) == len(exercises) == text.count(":::{exercise}") >= 3
    everything = "\n".join(cell.source for cell in copy.cells)
    assert ":::" not in everything and "{solution" not in everything
    for kind, _, body in marks:
        if kind == "solution":
            assert body.strip().splitlines()[-1] not in everything
    own = {cell.source for cell in code_cells(copy)}
    for label, sources in student.solutions(chapter).items():
        assert not own & set(sources), label
    # What is not a solution is all there.
    solved = {source for sources in student.solutions(chapter).values() for source in sources}
    assert {cell.source for cell in code_cells(chapter)} - solved <= own


LABELS = set(student.REFERENCES.shown) | set(student.REFERENCES.entries)
PAGES = {f"{name}.ipynb" for name in CHAPTERS}


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_copy_reads_as_a_text(name):
    """No token, fence, label or reference that only the book's build understands."""
    assert raw(copy_of(name), LABELS, PAGES) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_for_download_reads_as_a_text(name):
    chapter = nbformat.read(CHAPTERS[name], as_version=4)
    tokens = {token for _, token, *_ in as_text.GLUED.findall("\n".join(c.source for c in chapter.cells))}
    download = as_text.whole(chapter, int(name[:2]), student.REFERENCES, dict.fromkeys(tokens, 0.125))
    nbformat.validate(download)
    assert raw(download, LABELS, PAGES) == []
    text = "\n".join(cell.source for cell in download.cells if cell.cell_type == "markdown")
    assert "⟨" not in text
    assert [c.source for c in code_cells(download)] == [c.source for c in code_cells(chapter)]
    kinds = [kind for c in chapter.cells for kind, *_ in as_text.MARK.findall(c.source)]
    assert text.count("### Exercise ") == kinds.count("exercise") >= 3
    assert text.count("#### Solution of exercise ") == len(kinds) - kinds.count("exercise") - kinds.count("solution-end")


@pytest.mark.parametrize(("text", "shown"), [
    ("{ref}`ex-gm-label` asks", "Exercise 1"), ("So. {ref}`ex-gm-label` asks", "Exercise"), ("- {ref}`ex-gm-label`", "Exercise"),
    ("In {ref}`ex-gm-label`", "exercise"), ("as {eq}`eq-6`, {ref}`ex-gm-label`", "exercise")])
def test_an_exercise_at_the_start_of_a_sentence_has_a_capital(text, shown):
    assert shown in student.REFERENCES.plain(text)


@pytest.mark.parametrize(("text", "shown"), [
    ("{cite:t}`collier2019` say", "Collier and Urdiales (2019) say"),
    ("{cite:t}`jang2017` say", "Jang et al. (2017) say"),
    ("{cite:p}`collier2019,jang2017`", "(Collier and Urdiales, 2019; Jang et al., 2017)")])
def test_a_citation_names_two_authors_or_the_first_of_more(text, shown):
    assert student.REFERENCES.plain(text) == shown


def test_a_check_is_folded_below_the_cell_for_the_answer():
    cells = copy_of("02_relaxation").cells
    checks = [i for i, cell in enumerate(cells) if "check" in cell.metadata.get("tags", [])]
    assert checks
    for before, cell in ((cells[i - 1], cells[i]) for i in checks):
        assert "stub" in before.metadata.tags and "source_hidden" not in before.metadata.get("jupyter", {})
        assert cell.metadata.jupyter.source_hidden and "hide-input" in cell.metadata.tags


@pytest.mark.parametrize("text", ["{glue:text}`ch01_a:.1f`", "see {ref}`fig-a`", ":::{admonition} A\n:::",
                                  "[a](nowhere.ipynb)", "(a-target)=\n# A", "by eq-cost"])
def test_what_only_the_build_understands_is_found(text):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    assert raw(notebook, {"eq-cost"}, PAGES)


def test_only_what_records_alone_say_is_read_from_them():
    parameters, imports = "K = 3", "from cgmvae import records\nsettings = f(globals())"
    found = "found = records.read_all(results)\nglue('a', len(found))"
    others = ["def line(r): return r", "trained = settings.run(K)", found,
              "glue('b', [line(r) for r in found])", "glue('c', len(found) > trained)", "glue('d', trained)",
              "found = trained", "glue('e', len(found))", "glue('f', K)"]
    assert from_records.recorded([parameters, imports, *others]) == [parameters, imports, *[
        others[i] for i in (0, 2, 3)]]


def test_what_records_say_stands_in_the_text():
    """Counted here once more, from the same records; and no such value is left to the student's run."""
    of_mnist = [r for r in records.read_all() if {"dataset": "mnist", "views": "none", "labelled": 0, "K": 10}.items()
               <= r["experiment"].items()]
    in_use = [r for r in of_mnist if records.information(r) >= math.log(r["experiment"]["K"]) / 20]
    text = " ".join("\n".join(cell.source for cell in copy_of("01_generative_model").cells).split())
    assert f"book hold {len(in_use)} GMVAEs of MNIST" in text
    best = max(r["metrics"]["test_acc"] for r in in_use)
    assert f"with {100 * best:.0f}%" in text
    assert "⟨gmvae_whole_beaten⟩" in text, "it depends on the pixels' accuracy in the student's run"
    for name, least in (("03_annealing", 15), ("04_cifar", 9), ("06_clusters", 5), ("07_reproduction", 10),
                        ("08_worth_having", 12), ("10_one_pass", 2)):
        chapter = nbformat.read(CHAPTERS[name], as_version=4)
        known = from_records.values(chapter, ROOT / "chapters")
        quoted = {token for c in chapter.cells for _, token, *_ in as_text.GLUED.findall(c.source)} & set(known)
        assert len(quoted) >= least, name
        asked = {re.sub(r":.*", "", token) for c in code_cells(copy_of(name), "numbers")
                 for token in re.findall(r"'(\w+)", c.source)}
        assert not asked & set(known), name


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_number_of_a_copy_is_printed_above_it(name):
    cells = copy_of(name).cells
    # Some names are put together: glue(f"ch05_ratio_{name}", ratio).
    glued = [re.sub(r"\{[^}]*\}", r"\\w+", found) for cell in code_cells(copy_of(name))
             for found in re.findall(r'glue\(f?"(\w[^"]*)"', cell.source)]
    for before, cell in zip(cells, cells[1:]):
        quoted = re.findall("⟨(.+?)⟩", cell.source) if cell.cell_type == "markdown" else []
        if not quoted:
            continue
        assert "numbers" in before.metadata.tags
        printed = ast.literal_eval(before.source.removeprefix("notebook.numbers").replace(")", ",)"))
        names = [token.partition(":")[0] for token in printed]
        assert [re.sub(r"^ch\d\d_", "", token) for token in names] == quoted
        assert all(any(re.fullmatch(g, token) for g in glued) for token in names), names


def test_numbers_are_printed_as_the_text_has_them(capsys):
    notebook_helper.glue("ch99_share", torch.tensor(12.345))
    notebook_helper.numbers("ch99_share:.1f", "ch99_share:.1f", "ch99_none")
    assert capsys.readouterr().out == "⟨share⟩ 12.3\n⟨none⟩ not made by this run\n"


def test_every_solution_that_asserts_has_a_check():
    for name, path in CHAPTERS.items():
        solutions = student.solutions(nbformat.read(path, as_version=4))
        asserting = {label for label, sources in solutions.items() if "assert " in "\n".join(sources)}
        assert asserting <= set(student.EXERCISES), name
    labels = {label for path in CHAPTERS.values()
              for label in student.solutions(nbformat.read(path, as_version=4))}
    assert set(student.EXERCISES) == labels, "a stub for no exercise, or an exercise that computes without one"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_check_needs_no_other_answer(name):
    """A student may skip an exercise: its names come from the chapter or from its own stub."""
    copy = copy_of(name)
    known = set(dir(builtins)) | {"display"} | set().union(*map(defined, chapters_own(copy)))
    for cell in code_cells(copy, "check"):
        label = cell.metadata.tags[1]
        own = defined(student.stub(label)) | defined(cell.source)
        assert needed(cell.source) | needed(student.stub(label)) <= known | own, label


def test_answers_are_never_written_over(tmp_path, capsys):
    assert student.main(tmp_path) == 0
    answered = tmp_path / "01_generative_model.ipynb"
    notebook = nbformat.read(answered, as_version=4)
    code_cells(notebook, "stub")[0].source = "work = 1.9"
    nbformat.write(notebook, answered)
    before = answered.read_bytes()
    capsys.readouterr()
    assert student.main(tmp_path) == 1
    assert answered.read_bytes() == before
    assert "01_generative_model.ipynb is left as it is" in capsys.readouterr().out


def test_a_copy_that_was_executed_is_left_alone(tmp_path):
    """Its outputs may have taken an hour."""
    def make(path):
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), ""

    for _ in range(2):  # an untouched copy is made anew
        assert copies.write(tmp_path, [Path("01_a.ipynb")], make) == 0
    executed = nbformat.read(tmp_path / "01_a.ipynb", as_version=4)
    executed.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(executed, tmp_path / "01_a.ipynb")
    assert copies.write(tmp_path, [Path("01_a.ipynb")], make) == 1
    assert nbformat.read(tmp_path / "01_a.ipynb", as_version=4).cells[0].outputs


def test_what_is_no_notebook_is_left_alone(tmp_path, capsys):
    (tmp_path / "01_a.ipynb").write_text("mine")
    assert copies.write(tmp_path, [Path("01_a.ipynb")], lambda path: pytest.fail("a copy is made")) == 1
    assert (tmp_path / "01_a.ipynb").read_text() == "mine" and "left as it is" in capsys.readouterr().out


# The assignment. nbgrader takes out what lies between the marks and puts these lines there.

ASSIGNMENT = nbformat.read(ROOT / "assignment" / "source" / "concrete" / "concrete.ipynb", as_version=4)
GRADED = [cell.id for cell in code_cells(ASSIGNMENT) if cell.metadata.nbgrader.grade]
ANSWERS = [cell.id for cell in code_cells(ASSIGNMENT) if cell.metadata.nbgrader.solution]
BETWEEN = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION", re.M | re.S)


def failed(change, of=tuple(GRADED)) -> set[str]:
    """Run the assignment with some answers changed: which of these graded cells fail.

    Without the cells that are looked at and not graded, of which one trains.
    """
    scope = {"__name__": "assignment"}
    for cell in code_cells(ASSIGNMENT):
        if cell.id in ANSWERS or cell.id in ("setup", "toy"):
            run(change(cell.id, cell.source), scope)
    sources = {cell.id: cell.source for cell in code_cells(ASSIGNMENT)}
    return {name for name in of if raises(sources[name], scope)}


def test_assignment_is_what_nbgrader_reads():
    nbformat.validate(ASSIGNMENT)
    seen = set()
    for cell in ASSIGNMENT.cells:
        meta = cell.metadata.nbgrader
        assert meta.schema_version == 3 and meta.cell_type == cell.cell_type
        assert meta.grade_id not in seen
        seen.add(meta.grade_id)
        assert ("points" in meta) == meta.grade
        assert meta.locked != meta.solution
        assert ("### BEGIN SOLUTION" in cell.source) == meta.solution
        if meta.grade and not meta.solution:
            assert "### BEGIN HIDDEN TESTS" in cell.source and "### END HIDDEN TESTS" in cell.source
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    assert sum(cell.metadata.nbgrader.get("points", 0) for cell in ASSIGNMENT.cells) == 25


def test_assignment_passes_with_the_solutions():
    scope = {"__name__": "assignment"}
    for cell in code_cells(ASSIGNMENT):
        run(cell.source, scope)
    verdicts = {reading: scope["diagnose"](logits.softmax(-1)) for reading, (logits, _) in scope["runs"].items()}
    assert verdicts == {"closed": "in use", "relaxed": "collapsed"}, "what the last question is about"


def test_the_last_question_needs_no_other_answer():
    """Its text shows the finished figure."""
    cell = next(cell for cell in ASSIGNMENT.cells if cell.id == "text-written")
    name = re.search(r"\(attachment:([\w.]+)\)", cell.source)[1]
    assert base64.b64decode(cell.attachments[name]["image/png"]).startswith(b"\x89PNG")


def test_every_graded_cell_fails_without_the_solutions():
    def release(_, source):
        return BETWEEN.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()", source)
    assert failed(release) == set(GRADED)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_missing_answer_costs_its_own_points_alone(answer):
    def release(name, source):
        return BETWEEN.sub(r"\1raise NotImplementedError()", source) if name == answer else source
    own = GRADED[ANSWERS.index(answer)]
    assert failed(release) == {own}


# What students write by mistake: the answer, what should stand there, and what does.
MISTAKES = [
    ("gumbel-max", "(logits + gumbel(logits, generator))", "logits"),
    ("gumbel-max", "logits + gumbel", "logits.softmax(-1) + gumbel"),
    ("gumbel-max", "gumbel(logits, generator)", "gumbel(logits)"),
    ("gumbel-max", "gumbel(logits, generator)", "gumbel(logits[..., :1], generator)"),
    ("concrete-sample", "/ tau", "* tau"),
    ("concrete-sample", "torch.log_softmax(", "torch.softmax("),
    ("concrete-sample", "torch.log_softmax((logits + gumbel(logits, generator)) / tau, -1)",
     "torch.softmax((logits + gumbel(logits, generator)) / tau, -1).log()"),
    ("concrete-sample", "return torch.log_softmax((logits", "return torch.log_softmax((logits.detach()"),
    ("concrete-sample", "(logits + gumbel(logits, generator)) / tau", "logits / tau + gumbel(logits, generator)"),
    ("concrete-log-density", "- tau * log_y", "- log_y"),
    ("concrete-log-density", "a.logsumexp(-1)", "a.exp().sum(-1).log()"),
    ("concrete-log-density", "math.lgamma(K)", "math.lgamma(K + 1)"),
    ("concrete-log-density", "+ a.sum(-1)", "+ a.sum(-1) - log_y.sum(-1)"),
    ("concrete-log-density", "math.log(tau) +", "math.log(tau) + 0 *"),
    ("exact-gradient", "- (q * values).sum()", ""),
    ("exact-gradient", "(q * values).sum()", "values.mean()"),
    ("exact-gradient", "q * (values", "(values"),
    ("concrete-gradient", "/ tau, -1)", ", -1)"),
    ("concrete-gradient", "torch.log_softmax((leaf + gumbel(leaf, generator)) / tau, -1).exp()",
     "torch.softmax(leaf / tau, -1)"),
    ("concrete-gradient", "gumbel(leaf, generator)", "gumbel(leaf[:1], generator)"),
    ("two-readings", "math.log(logits.shape[-1])", "0"),
    ("two-readings", "density(torch.zeros_like(logits))", "0"),
    ("two-readings", "logits - tau * log_y", "logits - log_y"),
    ("information", "torch.xlogy(q_y, mean)", "torch.xlogy(q_y, torch.full_like(mean, 1 / len(mean)))"),
    ("information", "torch.xlogy(q_y, q_y)", "q_y * q_y.log()"),
    ("information", "0.05 * math", "0.01 * math"),
    ("information", "0.05 * math", "0.06 * math"),
    ("information", "math.log(q_y.shape[-1])", "math.log(10)"),
    ("information", "math.log(q_y.shape[-1])", "math.log2(q_y.shape[-1])"),
    # Library calls in the place of formulas.
    ("gumbel-max", "(logits + gumbel(logits, generator)).argmax(-1)",
     "torch.multinomial(logits.softmax(-1).flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])"),
    ("gumbel-max", "(logits + gumbel(logits, generator)).argmax(-1)",
     "torch.distributions.Categorical(logits=logits).sample()"),
    ("concrete-log-density", "math.lgamma(K) +",
     "ExpRelaxedCategorical(torch.tensor(tau, dtype=logits.dtype), logits=logits).log_prob(log_y) + 0 *"),
    ("two-readings", "(log_q.exp() * (log_q + math.log(logits.shape[-1]))).sum(-1)",
     "torch.distributions.kl_divergence(*map(torch.distributions.Categorical, (logits.softmax(-1), "
     "torch.ones_like(logits))))"),
    ("two-readings", "a.sum(-1) - a.shape[-1] * a.logsumexp(-1)",
     "ExpRelaxedCategorical(torch.tensor(tau, dtype=logits.dtype), logits=logits).log_prob(log_y)"),
]


@pytest.mark.parametrize("answer, right, wrong", MISTAKES, ids=range(len(MISTAKES)))
def test_a_usual_mistake_is_caught(answer, right, wrong):
    def mistaken(name, source):
        if name != answer:
            return source
        assert right in source
        return source.replace(right, wrong)
    own = GRADED[ANSWERS.index(answer)]
    assert failed(mistaken, (own,)) == {own}


# The slides. Executing the chapters is for `make slides`; here they are as they are written.

@pytest.fixture(scope="module")
def deck(tmp_path_factory):
    target = tmp_path_factory.mktemp("deck") / "slides"
    assert written.build(target) == {"lecture": 90, "estimators": 45}, "the notes' minutes make up the lecture"
    return target


@pytest.mark.parametrize("name", slides.LECTURES)
def test_slides_need_no_network(deck, name):
    page = BeautifulSoup((deck / slides.LECTURES[name][0]).read_text(), "html.parser")
    files = [tag.get("src") or tag.get("href") for tag in page.find_all(["script", "link", "img"])]
    assert len([f for f in files if f]) > (15 if name == "lecture" else 6)
    for file in filter(None, files):
        assert (deck / file).is_file(), file
    for sheet in deck.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.parametrize("name", slides.LECTURES)
def test_every_slide_has_a_note_an_image_its_alt_text_and_math_its_marks(deck, name):
    page = BeautifulSoup((deck / slides.LECTURES[name][0]).read_text(), "html.parser")
    found = page.select(".slides > section")
    assert len(found) == len(slides.sections(slides.source(name))) > (20 if name == "lecture" else 12)
    for slide in found:
        note = slide.find("aside", class_="notes").extract()
        assert re.match(r"\d+ min", note.get_text().strip()) and len(note.get_text().split()) > 15
        assert slide.find(["h1", "h2"])
        assert all(image["alt"] for image in slide.find_all("img"))
        assert "$" not in slide.get_text() and "<<" not in slide.get_text()
        formulas = re.findall(r"\\\[(.*?)\\\]", slide.get_text(), re.S)
        assert len(formulas) == slide.get_text().count("\\[") == slide.get_text().count("\\]")
        assert all("\\begin" in formula for formula in formulas if "&" in formula)


def test_the_slide_of_table_1_has_each_number_under_its_own_head(tmp_path):
    table = BeautifulSoup(slides.Deck("lecture", [], tmp_path).table1(), "html.parser")
    head, *rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
    assert head == ["", "GMVAE", "Concrete GMVAE"]
    assert [[name, *(re.search(r"nats(.*) ±", cell)[1] for cell in of_both)] for name, *of_both in rows] == [
        ["MNIST, K = 10", "15.73", "3.55"], ["CIFAR-100, K = 20", "47.24", "5.73"]]


def test_a_slide_that_asks_for_what_is_not_there(deck, tmp_path):
    here = slides.Deck("lecture", [written.Written(path) for path in student.CHAPTERS], tmp_path)
    with pytest.raises(SystemExit, match="asks for the figure 'fig-none'"):
        here.figure("fig-none")
    with pytest.raises(ValueError, match="'3 min'"):
        slides.minutes("Three minutes.")


def test_reveal_is_small_and_has_its_licence():
    files = [path for path in (ROOT / "slides" / "reveal").rglob("*") if path.is_file()]
    assert "LICENSE" in {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 2 * 2**20


@pytest.mark.parametrize(("name", "plan", "length"), [("lecture", 1, 90), ("estimators", 4, 45)])
def test_the_plan_of_a_lecture_is_that_of_its_slides(name, plan, length):
    """Rows such as `| 0–6 | 1–3 | ...`: the slides of a row take just its minutes."""
    notes = [slides.minutes(note) for _, note in slides.sections(slides.source(name))]
    text = (ROOT / "chapters" / "teaching.md").read_text().split(f"\n## Plan {plan}: ")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| (\d+)–(\d+) \| (\d+)(?:–(\d+))? \|", text)
    minute, slide = 0, 1
    for start, end, first, last in rows:
        last = int(last or first)
        assert (int(start), int(first)) == (minute, slide)
        assert int(end) - int(start) == sum(notes[int(first) - 1:last]), f"slides {first} to {last}"
        minute, slide = int(end), last + 1
    assert (minute, slide) == (length, len(notes) + 1)


def test_the_minutes_to_read_are_those_of_the_chapters():
    text = (ROOT / "chapters" / "teaching.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| \{doc\}`\d+ <(\w+)>` \| .* \| (\d+) \|$", text)
    said = {name: re.search(r"\*\*Time:\*\* (\d+) minutes", nbformat.read(path, as_version=4).cells[0].source)[1]
            for name, path in CHAPTERS.items()}
    assert dict(rows) == said


@pytest.mark.parametrize("heading", ["### Class 1", "### Class 2", "### Lab", "### Class 3", "## Plan 3"])
def test_a_plan_leaves_no_minute_out(heading):
    text = (ROOT / "chapters" / "teaching.md").read_text().split("\n" + heading)[1].split("\n#")[0]
    rows = [(int(a), int(b)) for a, b in re.findall(r"(?m)^\| (\d+)–(\d+) \|", text)]
    assert [a for a, _ in rows] == [0, *(b for _, b in rows[:-1])]
    assert rows[-1][1] == (120 if heading == "### Lab" else 75 if heading == "## Plan 3" else 90)


def test_times_are_those_of_the_latest_execution(tmp_path):
    cache = get_cache(tmp_path)
    for name, source, seconds in (("01_a", "1", 5.0), ("01_a", "2", 7.0), ("02_b", "3", 1.5)):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        cache.cache_notebook_bundle(CacheBundleIn(notebook, f"/{name}.ipynb", data={"execution_seconds": seconds}),
                                    check_validity=False)
    assert {name: seconds for name, (seconds, _) in times.times(tmp_path).items()} == {"01_a": 7.0, "02_b": 1.5}
    assert re.match(r"\d+ cores? of \S+", times.machine())
