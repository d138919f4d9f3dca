"""The files around the book agree: the lock, the ranges, the two commands, the versions."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import cgmvae

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(path.stem for path in (ROOT / "cgmvae").glob("*.py") if path.stem[0] != "_")


def locked() -> dict[str, tuple[list[str], str]]:
    """Name -> (the versions that requirements.lock has of it, its block of text)."""
    text = re.sub(r"(?m)^ *#.*\n", "", (ROOT / "requirements.lock").read_text())
    found: dict[str, tuple[list[str], str]] = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        requirement = Requirement(block.split("\\")[0].strip())
        versions, before = found.get(requirement.name, ([], ""))
        exact = [s.version for s in requirement.specifier if s.operator == "=="]
        assert len(exact) == 1, f"{requirement} is not one exact version"
        found[requirement.name] = (versions + exact, before + block)
    return found


def wanted() -> list[Requirement]:
    """Every requirement of pyproject.toml, the extras included, but not the package itself."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    every = [Requirement(line) for lines in lists for line in lines]
    return [r for r in every if r.name != PROJECT["name"]]


def test_lock_has_hashes_and_no_address():
    for name, (_, block) in locked().items():
        assert "--hash=sha256:" in block, f"{name} has no hash"
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"(?m)^(-i\b|-f\b|--index|--extra-index|--find-links)", text)


def test_lock_is_within_the_ranges():
    lock = locked()
    for requirement in wanted():
        assert requirement.name in lock, f"{requirement.name} is not in the lock: make lock"
        for version in lock[requirement.name][0]:
            assert requirement.specifier.contains(version, prereleases=True), (
                f"the lock has {requirement.name} {version}, not {requirement}: make lock")


def test_ranges_do_not_pin():
    """An exact pin in the package would keep it out of other environments; the lock has those."""
    for requirement in wanted():
        operators = {s.operator for s in requirement.specifier}
        assert not operators & {"==", "===", "~="}, requirement
        assert requirement.specifier, f"{requirement.name} has no lower bound"


def test_python_range():
    python = SpecifierSet(PROJECT["requires-python"])
    runs = [f"3.{minor}" for minor in range(8, 20) if python.contains(f"3.{minor}.1")]
    assert runs == ["3.11", "3.12", "3.13"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())["jobs"]
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) <= set(runs)


def test_conda_road_leads_to_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    version = next(d for d in conda if str(d).startswith("python=")).removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.1")
    pip = next(d["pip"] for d in conda if isinstance(d, dict))
    assert pip == ["--require-hashes", "-r requirements.lock"]


def test_binder_has_the_packages_requirements():
    """In the package's own ranges, under conda-forge's names; postBuild adds the package itself."""
    conda = yaml.safe_load((ROOT / ".binder/environment.yml").read_text())["dependencies"]
    names = {"torch": "pytorch-cpu"}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        name = names.get(requirement.name, requirement.name)
        assert f"{name}{requirement.specifier}" in conda
    assert os.access(ROOT / ".binder/postBuild", os.X_OK)


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = re.search(r"(?m)^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text())
    assert {cgmvae.__version__, citation["version"], changelog[1]} == {PROJECT["version"]}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "index.md",
                                  "chapters/teaching.md"])
def test_written_commands_exist(name):
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"(?m)^([a-z0-9]+):(?!=)", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)(?:^|`)make ([a-z0-9]+)", text)) <= targets
    for chapter in re.findall(r"chapters/\w+\.ipynb", text):
        assert (ROOT / chapter).is_file(), f"{name} names {chapter}"


def test_every_module_has_its_reference():
    reference = (ROOT / "chapters" / "api.md").read_text()
    assert sorted(re.findall(r"automodule:: cgmvae\.(\w+)", reference)) == MODULES


def test_readme_gives_both_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert {"make book", "make test"} <= set(lines)


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_the_books_tools():
    """The package works in a plain script, on a machine without Jupyter."""
    python("import importlib, sys\n"
           "for tool in ('IPython', 'ipykernel', 'jupyter_book', 'myst_nb', 'nbformat', "
           "'papermill', 'platformdirs'):\n"
           "    sys.modules[tool] = None\n"  # importing it then raises ImportError
           f"for module in {MODULES}:\n"
           "    importlib.import_module('cgmvae.' + module)\n")


def test_ids_do_not_depend_on_the_hash_seed():
    """PYTHONHASHSEED is left alone: nothing that makes a result may hang on the order of a set."""
    code = "import cgmvae; print(cgmvae.preset('quick', dataset='cifar100', K=7).id)"
    assert python(code, PYTHONHASHSEED="1") == python(code, PYTHONHASHSEED="2")
