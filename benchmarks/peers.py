"""Deep clusterings of another package on this book's digits, to be set beside chapter 8's.

    make peers        # in an environment of its own; hours of one core

ClustPy's VaDE and DEC, with everything as it comes, are trained on the 54,000 digits that a run of ours with the same
seed trains on, and scored on the 10,000 test digits by our scores: once for as many epochs as their defaults ask, and once
for about as many minutes of a processor core as ours takes. One file a run goes to results/peers/; a run whose file is
there is not made again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

import numpy as np
import torch
from clustpy import deep

from cgmvae import data, records
from cgmvae.disk import write_text
from cgmvae.evaluation import cluster_scores
from cgmvae.experiment import preset
from cgmvae.run import machine

METHODS = ("VaDE", "DEC")
EPOCHS = (100, 150)  # ClustPy's defaults, of both: to learn a code, and to cluster it
MINUTES = 8.0  # of one core: a run of chapter 8's recipe
SEEDS = 3


def digits(seed: int, dataset: str = "mnist") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images, test images, and the latter's classes; grey pixels (N, 784), float32, in [0, 1]."""
    e = preset("half", dataset=dataset, seed=seed, likelihood="cross_entropy")  # which leaves the pixels grey
    splits = data.split(e, data.load(dataset), "cpu")
    train, test = (part.batch(slice(None)).flatten(1).numpy() for part in (splits.train, splits.test))
    return train, test, splits.test_groups.numpy()


def run(method: str, seed: int, epochs: tuple[int, int], budget: str) -> dict:
    """Train and score one model; minutes are the processor's."""
    train, test, classes = digits(seed)
    model = getattr(deep, method)(n_clusters=10, pretrain_epochs=epochs[0], clustering_epochs=epochs[1],
                                  random_state=seed, device=torch.device("cpu"))
    start = time.process_time()
    model.fit(train)
    minutes = (time.process_time() - start) / 60
    return {"method": method, "package": f"clustpy {importlib.metadata.version('clustpy')}", "budget": budget,
            "seed": seed, "pretrain_epochs": epochs[0], "clustering_epochs": epochs[1], "minutes": minutes,
            "train_images": len(train), "test": cluster_scores(model.predict(test), classes),
            "environment": machine(torch.device("cpu")) | {"precision": "float32"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=records.results_folder() / "peers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for method in args.methods:
            whole = once(args.out, method, seed, EPOCHS, "its defaults")
            share = min(1.0, MINUTES / whole["minutes"])
            few = tuple(max(1, round(n * share)) for n in EPOCHS)
            once(args.out, method, seed, few, f"{MINUTES:g} minutes")


def once(out: Path, method: str, seed: int, epochs: tuple[int, int], budget: str) -> dict:
    """The run's file, made if it is not there."""
    path = out / f"{method.lower()}-s{seed}-{'defaults' if epochs == EPOCHS else 'minutes'}.json"
    if not path.exists():
        found = run(method, seed, epochs, budget)
        write_text(path, json.dumps(found, indent=1) + "\n")
    found = json.loads(path.read_text())
    print(f"{path.name}: ACC {found['test']['acc']:.3f}, NMI {found['test']['nmi']:.3f}, {found['minutes']:.1f} minutes")
    return found


if __name__ == "__main__":
    main()
