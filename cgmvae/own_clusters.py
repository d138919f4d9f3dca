"""A folder of images to clusters that can be looked at (see `gallery`).

The clusters are those of chapter 8's recipe (`agreement.RECIPE`). Nothing is known of such images but
themselves, so that no score says whether the clusters are any good: what the labels know of the images, and
how far two runs from different first weights agree, are all there is, and both are told.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from cgmvae import checkpoints, gallery
from cgmvae.agreement import RECIPE
from cgmvae.checks import refuse, whole_number
from cgmvae.data import Pixels
from cgmvae.disk import write_text
from cgmvae.evaluation import assign, information, perplexity, verdict
from cgmvae.experiment import Experiment, preset
from cgmvae.own_images import Found, keep, read_images
from cgmvae.records import Paths
from cgmvae.run import run

STEPS = 3_000  # of training a run, where no number of epochs is asked for
EPOCHS = 10  # at least, then: many images are each to be seen a few times
ABOUT = "about.json"
MODELS = "models"  # the runs, their records and their checkpoints


@dataclass(frozen=True, eq=False)
class Clusters:
    """What was found: `labels` and `certainty`, (N,), in the order of `files`; certainty is max q(y|x)."""

    files: list[str]
    labels: np.ndarray
    certainty: np.ndarray
    runs: np.ndarray  # (seeds, N): the labels of every run, each with its own numbering
    about: dict[str, Any]  # the numbers, as in about.json

    def members(self, k: int) -> np.ndarray:
        """The places in `files` of cluster k's images, the surest first."""
        own = np.flatnonzero(self.labels == k)
        return own[np.argsort(-self.certainty[own], kind="stable")]


def cluster(folder: str | os.PathLike, out: str | os.PathLike, *, K: int = 10, seeds: int = 2,
            views: str | None = None, epochs: int | None = None, device: str = "auto",
            precision: str = "auto", progress_bar: bool | None = None) -> Clusters:
    """Sort the images of a folder or an .npz into K clusters and write what can be looked at.

    Trains `seeds` models and takes the one whose labels know most of the images, I(x;y): a run that joins two
    kinds and cuts a third knows less, and the loss hardly tells (chapter 8). An interrupted call goes on where
    it was when it is made again, and one with more seeds takes the runs that are there. Nothing is written to
    `folder`; the images' squares go to the cache folder.

    Args:
        folder: see `own_images.read_images`.
        out: a folder, new, empty or of the same call: `index.html`, `clusters.csv`, `cluster-*.jpg`, `about.json`,
            and the runs in `models`.
        K: the number of clusters, at least 2.
        seeds: how many runs, 1 to 20.
        views: what does not matter for a cluster, a name in VIEWS; None: `digits` for grey images, `photos` for
            coloured ones.
        epochs: of training; None: as many as make 3,000 steps, and at least 10.
        device, precision, progress_bar: as for `run.run`.

    Raises ExperimentError and DataError for bad input, before any work.
    """
    place, out = Path(os.path.expanduser(folder)), Path(os.path.expanduser(out))
    if place.is_dir() and place.resolve() in (out.resolve(), *out.resolve().parents):
        refuse("out", str(out), f"a folder outside {place}, to which nothing is written")
    K, seeds = whole_number("K", K, 2), whole_number("seeds", seeds, 1, 20)
    epochs = None if epochs is None else whole_number("epochs", epochs, 1)
    found = read_images(place, without=out)
    keep(found)
    experiments = [experiment_of(found, K, views, epochs, seed) for seed in range(seeds)]
    ids = [e.id for e in experiments]
    _check_out(out, ids)
    print(found, file=sys.stderr)
    write_text(out / ABOUT, json.dumps({"ids": ids}))
    for e in experiments:
        run(e, device=device, precision=precision, results=out / MODELS, progress_bar=progress_bar)
    q_y = [_posteriors(e, found, out / MODELS) for e in experiments]
    best = int(np.argmax([information(torch.cat([q["train"], q["test"]])) for q in q_y]))
    clusters = _clusters(experiments[best], found, q_y, best, ids)
    gallery.write(clusters, place, out, found)
    write_text(out / ABOUT, json.dumps(clusters.about, indent=1))
    return clusters


def experiment_of(found: Found, K: int, views: str | None, epochs: int | None, seed: int) -> Experiment:
    """Chapter 8's recipe for these images. Raises ExperimentError."""
    grey = found.facts.images[0] == 1
    batch = 128 if found.facts.train >= 1_500 else min(32, found.facts.train // 2)
    choices = {**RECIPE, "views": views or ("digits" if grey else "photos"), "dataset": found.name, "K": K,
               "batch_size": batch, "seed": seed}
    steps = preset("paper", **choices).steps_per_epoch
    return preset("paper", **choices, epochs=max(EPOCHS, math.ceil(STEPS / steps)) if epochs is None else epochs)


def _check_out(out: Path, ids: list[str]) -> None:
    """Raise ExperimentError unless `out` is new, empty, or has the first of these runs, or all of them."""
    try:
        if not out.exists() or out.is_dir() and not any(out.iterdir()):
            return
    except OSError as error:
        refuse("out", str(out), f"a folder that can be looked into ({error.strerror})")
    try:
        theirs = json.loads((out / ABOUT).read_text(encoding="utf-8"))["ids"]
        goes_on = theirs == ids[:len(theirs)]
    except (OSError, ValueError, KeyError, TypeError):
        refuse("out", str(out), "a new or empty folder, or that of an earlier call")
    if not goes_on:
        refuse("out", str(out), "another folder: that one holds clusters of other images or other choices")


def _posteriors(e: Experiment, found: Found, results: Path) -> dict[str, torch.Tensor]:
    """q(y|x) of all images, training and test, in the order of `found.arrays`, float64."""
    model, _ = checkpoints.load_weights(Paths(results, e).weights)
    return {part: assign(model, Pixels(
        torch.from_numpy(found.arrays[f"{part}_images"].transpose(0, 2, 3, 1).copy()),
        e.binarisation)).double() for part in ("train", "test")}


def _clusters(e: Experiment, found: Found, q_y: list[dict[str, torch.Tensor]], best: int,
              ids: list[str]) -> Clusters:
    files = sorted(found.rows)
    everything = torch.cat([q_y[best]["train"], q_y[best]["test"]])
    start = {"train": 0, "test": len(q_y[best]["train"])}
    rows = [start[part] + row for part, row in map(found.rows.get, files)]
    largest = everything.argmax(1).numpy()
    names = np.argsort(np.argsort(-np.bincount(largest, minlength=e.K), kind="stable"))  # 0 is the largest
    labels = [torch.cat([q["train"], q["test"]]).argmax(1).numpy() for q in q_y]
    pairs = np.eye(len(labels))
    for (i, a), (j, b) in combinations(enumerate(labels), 2):
        pairs[i, j] = pairs[j, i] = adjusted_rand_score(a, b)
    above = pairs[np.triu_indices(len(labels), 1)]
    known = information(everything)
    shares = [found_again(labels[best], other, e.K) for i, other in enumerate(labels) if i != best]
    again = np.mean(shares, 0)[np.argsort(names)].tolist() if shares else None
    about = {"ids": ids, "shown": ids[best], "images": len(everything), "files": len(files), "K": e.K,
             "information_nats": known, "share_of_ln_K": known / max(math.log(e.K), 1e-12),
             "labels": verdict(known, perplexity(everything), e.K),
             "mean_certainty": float(everything.max(1).values.mean()),
             "agreement_of_seeds_ari": float(above.mean()) if len(above) else None,
             "pairs_ari": pairs.tolist(),  # of each run with each, in the order of `ids`
             "found_again": again,
             "left_out": found.left_out, "duplicates": found.duplicates,
             "other_kinds": dict(Counter(sorted(found.others)).most_common())}
    return Clusters(files, names[largest[rows]], everything.max(1).values.numpy()[rows],
                    np.stack(labels)[:, rows], about)


def found_again(labels: np.ndarray, other: np.ndarray, K: int) -> np.ndarray:
    """How well each of K clusters is found again in another division of the same images, (K,), 0 to 1.

    It is the largest Jaccard index with any cluster there: the images in both, over those in either
    (Hennig, 2007). 0 for an empty cluster.
    """
    both = np.zeros((K, K))
    np.add.at(both, (labels, other), 1)
    either = both.sum(1, keepdims=True) + both.sum(0) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0).max(1)
