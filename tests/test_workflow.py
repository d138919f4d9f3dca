"""The Snakemake workflow: its jobs, its submit path, and what a failed run leaves."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cgmvae import records, tables

BOOK = Path(__file__).resolve().parent.parent
OWN = BOOK / ".venv-workflow" / "bin" / "python"  # what `make workflow` sets up
SNAKEMAKE = OWN if OWN.exists() else Path(sys.executable) if importlib.util.find_spec("snakemake") else None
pytestmark = pytest.mark.skipif(SNAKEMAKE is None, reason="no Snakemake here: `make workflow` sets it up")


def snakemake(folder: Path, *arguments: str, **config) -> subprocess.CompletedProcess:
    """The workflow, with its own working folder, and a `results` in it."""
    config = {"results": folder / "results", "python": sys.executable} | config
    command = [SNAKEMAKE, "-m", "snakemake", "--snakefile", str(BOOK / "workflow/Snakefile"),
               "--directory", str(folder), "--cores", "1", "--rerun-incomplete", "--keep-going",
               *arguments, "--config", *(f"{name}={value}" for name, value in config.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1",
                   "PATH": f"{SNAKEMAKE.parent}:{os.environ['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment,
                          stdin=subprocess.DEVNULL)


def test_table1_is_a_job_for_each_of_its_44_runs_that_is_not_finished(tmp_path):
    first, *missing = tables.runs("table1")
    done = records.Paths(tmp_path / "results", first).record
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    out = snakemake(tmp_path, "--dry-run", table="table1")
    assert out.returncode == 0, out.stderr
    jobs = re.findall(r"output: \S*/runs/(\S+)\.json", out.stdout + out.stderr)
    assert sorted(jobs) == sorted(e.id for e in missing) and len(jobs) == 43


def test_a_table_that_is_none_is_refused_in_one_sentence(tmp_path):
    out = snakemake(tmp_path, "--dry-run", table="table2")
    assert out.returncode != 0
    assert "table must be one of" in out.stderr and "Traceback" not in out.stderr


def test_a_failed_run_keeps_its_notebook_and_leaves_no_record(tmp_path):
    out = snakemake(tmp_path, table="trial", limit=1, device="mps")
    e = tables.runs("trial")[0]
    assert out.returncode != 0
    assert not records.Paths(tmp_path / "results", e).record.exists()
    notebook = json.loads((tmp_path / "results/logs" / f"{e.id}.ipynb").read_text())
    errors = [o for c in notebook["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert errors and "device must be" in errors[0]["evalue"]


@pytest.mark.timeout(600)
def test_jobs_go_through_a_submit_command(tmp_path):
    """The cluster-generic executor, with a submit command that runs the job here."""
    submit = tmp_path / "submit.sh"
    submit.write_text(f"#!/bin/sh\necho submitted >> {tmp_path}/submitted\nsh \"$1\" >/dev/null 2>&1 &\n"
                      "echo $!\n")
    submit.chmod(0o755)
    out = snakemake(tmp_path, "--executor", "cluster-generic", "--cluster-generic-submit-cmd",
                    str(submit), "--jobs", "1", table="trial", limit=1)
    assert out.returncode == 0, out.stdout + out.stderr
    assert (tmp_path / "submitted").read_text() == "submitted\n"
    e = tables.runs("trial")[0]
    assert records.read(records.Paths(tmp_path / "results", e).record)["id"] == e.id
    assert (tmp_path / "results/logs" / f"{e.id}.ipynb").exists()
