"""What a teacher gets: student copies whose checks tell, the assignment, the slides, the times."""

import ast
import builtins
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import student  # noqa: E402

CHAPTERS = {path.stem: path for path in student.CHAPTERS}
COPIES = {name: student.student_copy(nbformat.read(path, as_version=4), int(name[:2]))
          for name, path in CHAPTERS.items()}
# So that each chapter's state before its exercises is there within seconds.
SHRUNK = {"01_generative_model": "epochs = 1",
          "02_relaxation": "epochs, images, draws = 1, 4, 64",
          "03_annealing": "",
          "04_cifar": "estimator, epochs, train_limit = 'concrete', 1, 200",
          "05_scaling": "K_max = 10",
          "06_clusters": "epochs = 1",
          "07_reproduction": ""}


def code_cells(notebook, tag=None):
    return [cell for cell in notebook.cells if cell.cell_type == "code"
            and (tag is None or tag in cell.metadata.get("tags", []))]


def names(source: str, kind: type) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}


def defined(source: str) -> set[str]:
    """What a cell defines or changes at its top level."""
    found, body = set(), ast.parse(source).body
    inner = {id(name) for node in body for part in ast.walk(node) if isinstance(part, ast.comprehension)
             for name in ast.walk(part.target)}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)
                      and isinstance(part.ctx, ast.Store) and id(part) not in inner}
            found |= {part.value.id for part in ast.walk(node) if isinstance(part, ast.Subscript)
                      and isinstance(part.ctx, ast.Store) and isinstance(part.value, ast.Name)}
    return found


def needed(source: str) -> set[str]:
    """What a cell takes from those before it: what it reads and does not set itself."""
    arguments = {node.arg for node in ast.walk(ast.parse(source)) if isinstance(node, ast.arg)}
    return names(source, ast.Load) - names(source, ast.Store) - arguments


def before_the_exercises(copy, wanted: set[str]) -> list[str]:
    """Those cells of a chapter that define what is wanted, and what these want in turn."""
    cells = [cell.source for cell in code_cells(copy) if not {"stub", "check"} & set(cell.metadata.get("tags", []))]
    parameters, rest, kept = cells[0], cells[1:], []
    for source in reversed(rest):
        if defined(source) & wanted:
            wanted = (wanted - defined(source)) | needed(source)
            kept.insert(0, source)
    return [parameters, *kept]


def run(source: str, scope: dict) -> None:
    exec(compile(source, "<cell>", "exec"), scope)


def raises(source: str, scope: dict) -> bool:
    try:
        run(source, scope)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("name", CHAPTERS)
def test_stubs_fail_and_solutions_pass(name, monkeypatch):
    """The same checks, on what the stubs leave and on what the chapter's own solutions find."""
    monkeypatch.chdir(ROOT / "chapters")
    chapter = nbformat.read(CHAPTERS[name], as_version=4)
    solutions = student.solutions(chapter)
    checked = [label for label in solutions if label in student.EXERCISES]
    wanted = {name for label in checked
              for before in (solutions[label], [student.stub(label)])
              for name in needed("\n".join([*before, student.check(label)]))}
    scope = {"__name__": "chapter", "In": [], "display": lambda *_: None}
    first, *others = before_the_exercises(COPIES[name], wanted)
    run(first + "\n" + SHRUNK[name], scope)
    for source in others:
        run(source, scope)
    as_student, as_teacher = dict(scope), dict(scope)
    for label in checked:
        raises(student.stub(label), as_student)
        assert raises(student.check(label), as_student), f"{label}: the check passes with the stub"
        for source in solutions[label]:
            run(source, as_teacher)
        run(student.check(label), as_teacher)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_copy_has_every_exercise_and_no_solution(name):
    chapter = nbformat.read(CHAPTERS[name], as_version=4)
    text = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    copy = COPIES[name]
    nbformat.validate(copy)
    marks = student.MARK.findall(text)
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
    copy = COPIES[name]
    plain = [cell for cell in code_cells(copy) if not {"stub", "check"} & set(cell.metadata.get("tags", []))]
    known = set(dir(builtins)) | {"display"} | set().union(*(defined(cell.source) for cell in plain))
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
