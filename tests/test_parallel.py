"""One run spread over two processes, each on the CPU, against one process with the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch

from cgmvae import checkpoints, evaluation, objectives, parallel, records, training
from cgmvae.__main__ import main
from cgmvae.estimators import ESTIMATORS
from cgmvae.seeds import derived_seed

SMALL = helpers.small(epochs=2)


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    """`torchrun` with so many processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", str(processes), "-m", "cgmvae", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def arguments(folder: Path, experiment) -> list[str]:
    fields = {k: v for k, v in experiment.as_dict().items() if v is not None}
    return ["train", *(f"--{k}={v}" for k, v in fields.items()), "--device=cpu", f"--results={folder}"]


def train(folder: Path, experiment) -> subprocess.CompletedProcess:
    return torchrun(*arguments(folder, experiment))


@pytest.mark.parametrize("estimator", ("concrete", "marginal"))
def test_two_processes_are_one_with_the_same_batches(tmp_path, estimator):
    experiment = SMALL.but(estimator=estimator)
    done = train(tmp_path, experiment)
    assert done.returncode == 0, done.stderr[-2000:]
    paths = records.Paths(tmp_path, experiment)
    record = json.loads(paths.record.read_text())
    assert record["environment"]["processes"] == 2

    # The same in one process: the mean over two halves of each batch, each half with its noise.
    one = helpers.trainer(experiment)
    means, curve = [], []
    for epoch in range(experiment.epochs):
        order = torch.randperm(experiment.train_size, generator=one.shuffle)
        noises = [torch.Generator().manual_seed(derived_seed(
            experiment.seed, f"noise {rank} of 2 at {epoch * experiment.steps_per_epoch}"))
            for rank in range(2)]
        for rows in order.split(experiment.batch_size)[:experiment.steps_per_epoch]:
            w = training.annealing.SCHEDULES[experiment.annealing](one.t, experiment.annealing_steps)
            loss = 0.0
            for rank, noise in enumerate(noises):
                x = one.splits.train.batch(rows[rank::2], noise)
                terms = ESTIMATORS[estimator](one.model, x, experiment, noise)
                loss = loss - objectives.elbo(terms, w).mean() / 2
            one.optimiser.zero_grad()
            loss.backward()
            one.optimiser.step()
            one.t += 1
            means.append(loss.item())
        curve.append(evaluation.validate(one.model, one.splits.validation, experiment)["validation_loss"])
    per_epoch = torch.tensor(means).view(experiment.epochs, -1).mean(1)
    for epoch, row in enumerate(record["progress"]["curves"]):
        assert row["loss"] == pytest.approx(per_epoch[epoch].item(), rel=1e-4)
        assert row["validation_loss"] == pytest.approx(curve[epoch], rel=1e-4)
    if record["progress"]["best_epoch"] == experiment.epochs:
        theirs, _ = checkpoints.load_weights(paths.weights)
        for ours, other in zip(one.model.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(ours, other, atol=1e-4)


def test_only_the_first_writes_and_a_run_goes_on(tmp_path):
    """A checkpoint of one process is good for two."""
    paths = records.Paths(tmp_path, SMALL)
    paths.check_writable()
    one = helpers.trainer(SMALL, checkpoint=paths.checkpoint)
    steps = one.run()
    for _ in range(SMALL.steps_per_epoch + 3):  # into the second epoch
        next(steps)
    one.save()
    one.writer.wait()
    done = train(tmp_path, SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(SMALL.id + " (") == 1  # one report
    record = json.loads(paths.record.read_text())
    assert record["progress"]["steps"] == SMALL.epochs * SMALL.steps_per_epoch
    assert record["progress"]["curves"][0]["loss"] == one.progress["curves"][0]["loss"]
    assert [p.name for p in tmp_path.rglob("*.json")] == [paths.record.name]
    assert not paths.checkpoint.exists()


@pytest.mark.parametrize("rank, said", [
    ("0", "cgmvae: batch_size must be a multiple of the 2 processes; it is 9.\n"), ("1", "")])
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch, capsys, rank, said):
    """By every process that torchrun would start, and said by the first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert main(arguments(tmp_path, SMALL.but(batch_size=9))) == 2
    assert capsys.readouterr() == ("", said)
    assert not list(tmp_path.rglob("*.json"))


def test_outside_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # as some schedulers set it for themselves
    assert parallel.first()
    with parallel.group(SMALL, helpers.CPU) as device:
        assert device == helpers.CPU and parallel.size() == 1 and parallel.rank() == 0
    rows = torch.arange(5)
    assert torch.equal(parallel.share(rows), rows)
    assert parallel.mean(torch.ones(3)).tolist() == [1, 1, 1]


def test_all_stop_by_the_first_ones_loss(monkeypatch):
    """Their own may differ by rounding, and then one would wait for ever."""
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "broadcast_object_list", lambda values: values.__setitem__(0, 1.5))
    assert parallel.agreed(2.5) == 1.5
