"""Minutes to a model: when the validation loss passes two levels, side by side on the same cores.

    python benchmarks/quality.py          # or the second half of `make bench`

The package, plain PyTorch and Pyro train the same networks on the same images, each from the weights that it draws
by default, in a process of its own pinned to the same cores. They take turns, an epoch each, until all of them have
passed the lower level or made `--epochs` epochs. The clock is stopped for the validation loss. Saves
results/benchmarks/DEVICE.quality.json and a figure; what there is so far is in DEVICE.quality.part, and a stopped
benchmark goes on after its last whole cell.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from bench import BATCH, CELLS, PEERS, Bench, environment, path_of, pin, precisions_of, save

from cgmvae import benchmark_figures, data, devices, figures, records, training
from cgmvae.datasets import DataError
from cgmvae.experiment import Experiment, preset

LEVELS = {"mnist": [100.0, 90.0], "cifar100": [1830.0, 1810.0]}
"""Validation losses (nats) to pass: not yet a model to look at, and one that is worth it."""


def our_epochs(e: Experiment, splits: data.Splits, device: torch.device, precision: str) -> Iterator[tuple[float, float]]:
    """Seconds of training and validation loss of each epoch of the package."""
    trainer, before = training.Trainer(e, splits, device, precision=precision), 0.0
    for progress in trainer.run():
        if progress["curves"] and (last := progress["curves"][-1])["seconds"] > before:
            yield last["seconds"] - before, last["validation_loss"]
            before = last["seconds"]


def peer_epochs(e: Experiment, splits: data.Splits, device: torch.device, kind: str) -> Iterator[tuple[float, float]]:
    """The same of a peer. Its images lie ready in float32."""
    train, validation = (pixels.batch(slice(0, len(pixels))).contiguous() for pixels in (splits.train, splits.validation))
    model, step = PEERS[kind](e, device)
    while True:
        start = time.perf_counter()
        order = torch.randperm(len(train), device=device)[:e.steps_per_epoch * e.batch_size]
        for rows in order.view(-1, e.batch_size):
            step(train[rows])
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - start, validation_loss(model, validation)


@torch.no_grad()
def validation_loss(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Negative mean ELBO of a peer's model in nats, the sum over labels exact: what ours has in expectation."""
    from plain import plain_marginal

    losses = [len(x) * float(plain_marginal(model, x, torch.randn(model.K, len(x), model.q_z[-1].out_features // 2,
                                                                 device=x.device))) for x in images.split(500)]
    return sum(losses) / len(images)


def trainee(pipe, name: str, e: Experiment, device_name: str, cores: set[int]) -> None:
    """Answer each request with the next epoch of one implementation: (seconds, validation loss)."""
    pin(cores)
    device = torch.device(device_name)
    torch.manual_seed(e.seed)
    kind, _, precision = name.partition(" ")
    try:
        splits = data.split(e, data.load(e.dataset), device)
        epochs = our_epochs(e, splits, device, precision) if kind == "ours" else peer_epochs(e, splits, device, kind)
        pipe.send("ready")
        while pipe.recv():
            pipe.send(next(epochs))
    except Exception as error:  # the parent decides what a failure means
        pipe.send(f"{type(error).__name__}: {error}")


def train(bench: Bench, e: Experiment, names: list[str], levels: list[float], epochs: int) -> dict[str, dict]:
    """Epochs in turns: seconds and validation loss of each, by implementation."""
    crew = bench.crew(trainee, {name: (name, e) for name in names})
    runs = {name: {"seconds": [], "validation_loss": []} for name in crew}
    for _ in range(epochs):
        for name, run in runs.items():
            if benchmark_figures.passed(run, min(levels)):
                continue
            crew[name][0].send(True)
            answer = crew[name][0].recv()
            if isinstance(answer, str) or not math.isfinite(answer[1]):
                raise RuntimeError(f"{name}: {answer}")
            for key, value in zip(("seconds", "validation_loss"), answer, strict=True):
                run[key].append(round(value, 3))
            print(f"{e.dataset} {e.estimator} {name}: epoch {len(run['seconds'])}, {sum(run['seconds']) / 60:.1f} "
                  f"minutes, validation loss {answer[1]:.1f}", flush=True)
    for pipe, process in crew.values():
        pipe.send(False)
        process.join()
    return runs


def summary(cell: dict) -> str:
    """Epochs and minutes to each level, and the share of plain PyTorch's minutes."""
    lines = [f"\n{cell['dataset']} {cell['estimator']} K={cell['K']}:"]
    for level in cell["levels"]:
        there = {name: benchmark_figures.passed(run, level) for name, run in cell["runs"].items()}
        for name, passed in there.items():
            share = f", {passed[1] / there['plain'][1]:.2f} of plain" if passed and there.get("plain") else ""
            lines.append(f"  {level:.0f} nats: {name:13} " + (
                f"epoch {passed[0]:2}, {passed[1]:6.1f} minutes{share}" if passed else "not reached"))
    return "\n".join(lines)


def run(args: argparse.Namespace, folder: Path) -> Path:
    """Train all cells that are not in DEVICE.quality.part yet."""
    device = devices.find_device(args.device)
    bench = Bench(device.type, args.cores)
    names = ["plain", "pyro", *(f"ours {p}" for p in precisions_of(device))]
    out = {"environment": environment(device, len(bench.cores)), "batch_size": BATCH, "epochs": args.epochs,
           "cells": []}
    path = path_of(out, folder, ".quality")
    if (part := path.with_suffix(".part")).exists() and {**(was := json.loads(part.read_text())), "cells": []} == out:
        out = was
    there = {(cell["dataset"], cell["estimator"], cell["K"]) for cell in out["cells"]}
    cells = [cell for cell in CELLS if cell[1] in args.estimators and cell not in there]
    for dataset, _, _ in cells:
        data.load(dataset)  # downloads what is missing, once and not in each of the processes
    for dataset, estimator, K in cells:
        e = preset("half", dataset=dataset, estimator=estimator, K=K, epochs=args.epochs, patience=args.epochs)
        out["cells"].append({"dataset": dataset, "estimator": estimator, "K": K, "levels": LEVELS[dataset],
                             "runs": train(bench, e, names, LEVELS[dataset], args.epochs)})
        save(out, path)
        print(summary(out["cells"][-1]), flush=True)
    save(out, path, done=True)
    figures.style()
    benchmark_figures.loss_against_minutes([out]).savefig(path.with_suffix(".png"))
    return path


def main() -> None:
    """Parse, train, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores that all share (1)")
    parser.add_argument("--epochs", type=int, default=50, help="at most, of each")
    parser.add_argument("--estimators", nargs="+", default=["concrete", "marginal"], choices=["concrete", "marginal"])
    parser.add_argument("--out", type=Path, help="folder (results/benchmarks)")
    args = parser.parse_args()
    try:
        print(f"\nsaved in {run(args, args.out or records.results_folder() / 'benchmarks')}")
    except DataError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
