"""What the chapters need of a notebook: checked parameters, a scale, shown source.

Imports IPython and myst-nb only when called, so that the package runs where there is no Jupyter.
"""

from __future__ import annotations

import ast
import atexit
import base64
import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import tempfile
import textwrap
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cgmvae import checkpoints, devices, records
from cgmvae.checks import ExperimentError, did_you_mean, one_of
from cgmvae.datasets import DATASETS, cache_folder
from cgmvae.experiment import Experiment, preset
from cgmvae.model import GMVAE
from cgmvae.own_images import find_dataset
from cgmvae.presets import PRESETS
from cgmvae.run import run

RUN_CHOICES = ("device", "precision", "compile", "results")
FIELDS = tuple(f.name for f in dataclasses.fields(Experiment))
GLUED: dict[str, Any] = {}  # what `glue` gave a name in this process, for `numbers`


@dataclass(frozen=True)
class Settings:
    """The checked parameters of one notebook, and the scale that they ask for."""

    preset: str
    reason: str  # why this scale
    choices: dict[str, Any]  # fields of Experiment; None: the preset's
    run_choices: dict[str, Any]
    results: Path = field(default_factory=records.results_folder)

    def experiment(self, **changes: Any) -> Experiment:
        """The notebook's experiment at its scale, with some choices changed."""
        return preset(self.preset, **{**self.choices, **changes})

    def run(self, experiment: Experiment) -> records.Record:
        """`run.run` with the notebook's device and results folder."""
        return run(experiment, results=self.results, **self.run_choices)

    def model(self, experiment: Experiment) -> GMVAE:
        """The trained model of a run that `run` has finished, on the CPU.

        Raises CheckpointError where the run's record came without its weights, as most of the book's do."""
        paths = records.Paths(self.results, experiment)
        weights = paths.weights if paths.weights.exists() else paths.published
        if not weights.exists():
            raise checkpoints.CheckpointError(
                f"{experiment.id} has a record in {paths.record.parent}, and its weights are not in {paths.weights.parent} "
                f"nor {paths.published.parent}. To make the run anew, give another folder as `results`.")
        return checkpoints.load_weights(weights)[0]

    def _repr_markdown_(self) -> str:
        e = self.experiment()
        paper = preset("paper", **{**self.choices, "batch_size": e.batch_size})
        text = f"Scale: **{self.preset}** ({self.reason}): {e.train_size:,} training images of " \
               f"`{e.dataset}`, up to {e.epochs} epochs where no cell says otherwise, batches of {e.batch_size}."
        if self.preset != "paper":
            text += (f" The paper's scale is {paper.train_size:,} images and up to {paper.epochs} "
                     "epochs: what is trained here shows how things work, not how well they can.")
        return text + f" Device: {devices.find_device(self.run_choices['device'])}."


def settings(scope: dict[str, Any]) -> Settings:
    """Check a notebook's parameters, first thing after its parameter cell.

    Args:
        scope: the notebook's `globals()`.

    At the quick scale each notebook run has a results folder of its own, so that it never shows a
    result of an older version of the package; it goes when the notebook's process ends. CGMVAE_PRESET overrides the parameter `preset`.

    Raises ExperimentError for a parameter that the notebook does not have (papermill lets it pass)
    or a value that cannot be run.
    """
    check_parameters(scope)
    choices = {name: scope[name] for name in FIELDS if scope.get(name) is not None}
    if "dataset" in choices:
        choices["dataset"] = find_dataset(choices["dataset"])  # a path is read once
    run_choices = {name: scope.get(name) or "auto" for name in RUN_CHOICES if name != "results"}
    estimator = choices.pop("estimator", None)
    if estimator not in (None, "both"):
        choices["estimator"] = estimator
    overridden = os.environ.get("CGMVAE_PRESET")
    scale, reason = find_preset(overridden or scope.get("preset") or "auto",
                                choices.get("dataset", "mnist"), run_choices["device"])
    if overridden and overridden != "auto":
        reason += " by CGMVAE_PRESET"
    if scope.get("results"):
        results = records.results_folder(scope["results"])
    elif scale == "quick":
        results = Path(tempfile.mkdtemp(prefix="cgmvae-"))
        atexit.register(shutil.rmtree, results, ignore_errors=True)
    else:
        results = records.results_folder()
    checked = Settings(scale, reason, choices, run_choices, results)
    place = devices.find_device(run_choices["device"])  # all of it raises now rather than later
    devices.find_precision(run_choices["precision"], place)
    devices.find_compilation(run_choices["compile"], place)
    devices.check_memory(checked.experiment(), place)
    return checked


def find_preset(name: str, dataset: str, device: str) -> tuple[str, str]:
    """The scale to run at and why. `auto`: the paper's with a GPU and the data, else quick."""
    one_of("preset", name, ("auto", *PRESETS))
    dataset = find_dataset(dataset)
    if name != "auto":
        return name, "asked for"
    if devices.find_device(device).type == "cpu":
        return "quick", "no GPU here"
    if DATASETS[dataset].full != dataset or not (cache_folder() / f"{dataset}.npz").exists():
        return "quick", f"the full {dataset!r} is not in {cache_folder()}"
    return "paper", "a GPU and the full data are here"


def check_parameters(scope: dict[str, Any]) -> None:
    """Raise ExperimentError if papermill was given a parameter that the notebook does not have.

    papermill only warns. It puts what it was given into a cell that begins `# Parameters`, after
    the notebook's own parameter cell; both are in IPython's history.
    """
    declared: set[str] = set()
    for source in scope.get("In", ()):
        if source.startswith("# Parameters"):
            for name in sorted(_assigned(source) - declared):
                raise ExperimentError(f"{name!r} is not a parameter of this notebook"
                                      f"{did_you_mean(name, declared)}. Its parameters are {', '.join(sorted(declared))}.")
        declared |= _assigned(source)


def _assigned(source: str) -> set[str]:
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with magics assigns no parameters
        return set()
    targets = [t for node in body for t in
               (node.targets if isinstance(node, ast.Assign) else
                [node.target] if isinstance(node, ast.AnnAssign) else [])]
    return {t.id for t in targets if isinstance(t, ast.Name)}


def show(*objects: Any):
    """The source of functions or classes of the package, highlighted: shown code is shipped code."""
    from IPython.display import Code

    sources = (textwrap.dedent(inspect.getsource(o)).rstrip() for o in objects)
    return Code("\n\n".join(sources), language="python")


def glue(name: str, value: Any) -> None:
    """Give a value a name that the chapter's prose can quote, so that no number is typed in.

    A number of NumPy's or torch's becomes Python's own, which a format in the prose can print.
    Where the book's tools are missing, as on Colab, nothing builds the prose; `numbers` still
    prints the value.
    """
    plain = value.item() if hasattr(value, "item") else value  # NumPy's print as np.float64(1.0)
    GLUED[name] = plain
    try:
        from myst_nb import glue as myst_glue
    except ImportError:
        return
    with contextlib.redirect_stdout(io.StringIO()):
        myst_glue(name, plain, display=False)


def numbers(*tokens: str) -> None:
    """Print values that were glued, where no book is built around them: in the student copies.

    Args:
        tokens: each the name of a value and how it is formatted, such as `ch01_kmeans:.0f`. It is
            printed without the chapter. One that this run did not make is named as missing.
    """
    for token in dict.fromkeys(tokens):
        name, _, form = token.partition(":")
        value = format(GLUED[name], form) if name in GLUED else "not made by this run"
        print(f"⟨{re.sub(r'^ch[0-9]+_', '', name)}⟩ {value}")


def glue_figure(name: str, figure: Any, alt: str) -> None:
    """Give a matplotlib figure a name by which another page shows it, with its alt text."""
    from IPython.display import HTML

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    glue(name, HTML(f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'))


def glue_words(name: str, words: str) -> None:
    """Give a paragraph a name by which another page shows it; `glue` is for numbers and words of this one."""
    from IPython.display import HTML

    glue(name, HTML(f"<p>{escape(words)}</p>"))
