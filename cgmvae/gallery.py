"""A folder of images to clusters that can be looked at: a table, a contact sheet a cluster, one page.

The clusters are those of chapter 8's recipe (`agreement.RECIPE`). Nothing is known of such images but
themselves, so that no score says whether the clusters are any good: what the labels know of the images, and
how far two runs from different first weights agree, are all there is, and both are told.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.metrics import adjusted_rand_score

from cgmvae import checkpoints, pictures
from cgmvae.agreement import RECIPE
from cgmvae.checks import refuse
from cgmvae.data import Pixels
from cgmvae.evaluation import assign, information, verdict
from cgmvae.experiment import Experiment, preset
from cgmvae.own_images import Found, keep, read_images
from cgmvae.records import Paths
from cgmvae.run import run

STEPS = 3_000  # of training a run, where no number of epochs is asked for
SHOWN = 100  # images a cluster on the page and on its sheet, the surest first
DOUBTFUL = 40  # images of all clusters that the page shows as the least sure
SIDE = 96  # of a small picture, in pixels
ABOUT = "about.json"
MODELS = "models"  # the runs, their records and their checkpoints


@dataclass(frozen=True, eq=False)
class Clusters:
    """What was found: `labels` and `certainty`, (N,), in the order of `files`; certainty is max q(y|x)."""

    files: list[str]
    labels: np.ndarray
    certainty: np.ndarray
    about: dict[str, Any]  # the numbers, as in about.json

    def members(self, k: int) -> np.ndarray:
        """The places in `files` of cluster k's images, the surest first."""
        own = np.flatnonzero(self.labels == k)
        return own[np.argsort(-self.certainty[own], kind="stable")]


def cluster(folder: str | os.PathLike, out: str | os.PathLike, *, K: int = 10, seeds: int = 2,
            views: str | None = None, epochs: int | None = None, device: str = "auto",
            precision: str = "auto", progress_bar: bool | None = None) -> Clusters:
    """Sort the images of a folder or an .npz into K clusters and write what can be looked at.

    Trains `seeds` models and takes the one of the best validation loss. An interrupted call goes on where
    it was when it is made again. Nothing is written to `folder`.

    Args:
        folder: see `own_images.read_images`.
        out: a folder, new, empty or of the same call: index.html, clusters.csv, cluster-*.jpg, about.json, and
            the runs in models/.
        views: what does not matter for a cluster, a name in VIEWS; None: `digits` for grey images, `photos` for
            coloured ones.
        epochs: of training; None: as many as make 3,000 steps.
        device, precision, progress_bar: as for `run.run`.

    Raises ExperimentError and DataError for bad input, before any work.
    """
    place, out = Path(os.path.expanduser(folder)), Path(os.path.expanduser(out))
    if place.is_dir() and place.resolve() in (out.resolve(), *out.resolve().parents):
        refuse("out", str(out), f"a folder outside {place}, to which nothing is written")
    if not isinstance(seeds, int) or not 1 <= seeds <= 20:
        refuse("seeds", seeds, "a whole number from 1 to 20")
    found = read_images(place)
    keep(found)
    experiments = [experiment_of(found, K, views, epochs, seed) for seed in range(seeds)]
    ids = [e.id for e in experiments]
    _check_out(out, ids)
    print(found)
    _write_text(out / ABOUT, json.dumps({"ids": ids}))
    records = [run(e, device=device, precision=precision, results=out / MODELS, progress_bar=progress_bar)
               for e in experiments]
    losses = [r["progress"]["best_validation_loss"] for r in records]
    best = int(np.argmin(losses))
    q_y = [_posteriors(e, found, out / MODELS) for e in experiments]
    clusters = _clusters(experiments[best], found, q_y, best, ids)
    _write(clusters, place, out)
    return clusters


def experiment_of(found: Found, K: int, views: str | None, epochs: int | None, seed: int) -> Experiment:
    """Chapter 8's recipe for these images. Raises ExperimentError."""
    grey = found.facts.images[0] == 1
    batch = 128 if found.facts.train >= 1_500 else 32
    choices = {**RECIPE, "views": views or ("digits" if grey else "photos"), "dataset": found.name, "K": K,
               "batch_size": batch, "seed": seed}
    steps = preset("paper", **choices).steps_per_epoch
    return preset("paper", **choices, epochs=epochs or max(10, math.ceil(STEPS / steps)))


def _check_out(out: Path, ids: list[str]) -> None:
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return
    try:
        theirs = json.loads((out / ABOUT).read_text())["ids"]
    except (OSError, ValueError, KeyError, TypeError):
        refuse("out", str(out), "a new or empty folder, or that of an earlier call")
    if theirs != ids:
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
    agreement = [float(adjusted_rand_score(a, b)) for a, b in combinations(labels, 2)]
    mean = everything.mean(0)
    known = information(everything)
    perplexity = float(torch.exp(-torch.xlogy(mean, mean).sum()))
    about = {"ids": ids, "shown": ids[best], "images": len(everything), "files": len(files), "K": e.K,
             "information_nats": known, "share_of_ln_K": known / max(math.log(e.K), 1e-12),
             "labels": verdict(known, perplexity, e.K),
             "mean_certainty": float(everything.max(1).values.mean()),
             "agreement_of_seeds_ari": float(np.mean(agreement)) if agreement else None,
             "left_out": found.left_out, "duplicates": found.duplicates}
    return Clusters(files, names[largest[rows]], everything.max(1).values.numpy()[rows], about)


def _write(clusters: Clusters, place: Path, out: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("file", "cluster", "certainty"))
    writer.writerows((name, int(label) + 1, f"{sure:.4f}") for name, label, sure in
                     zip(clusters.files, clusters.labels, clusters.certainty, strict=True))
    _write_text(out / "clusters.csv", table.getvalue())
    sources = pictures.in_folder(place)[0] if place.is_dir() else pictures.in_npz(place)
    by_name = {s.where: s for s in sources}
    small: dict[int, Image.Image] = {}

    def picture(k: int) -> Image.Image:
        if k not in small:
            with by_name[clusters.files[k]].open() as image:
                small[k] = ImageOps.fit(pictures.plain(image).convert("RGB"), (SIDE, SIDE))
        return small[k]

    sections = []
    for k in range(clusters.about["K"]):
        members = clusters.members(k)
        if len(members):
            _sheet([picture(i) for i in members[:SHOWN]], out / f"cluster-{k + 1:02}.jpg")
        sections.append(_section(f"Cluster {k + 1}", members, clusters, picture))
    doubtful = np.argsort(clusters.certainty, kind="stable")[:DOUBTFUL]
    sections.append(_section("The least sure", doubtful, clusters, picture))
    _write_text(out / "index.html", PAGE.format(
        place=html.escape(place.name), summary=html.escape(summary(clusters)), sections="\n".join(sections)))
    _write_text(out / ABOUT, json.dumps(clusters.about, indent=1, ensure_ascii=True))


def summary(clusters: Clusters) -> str:
    """In a few sentences: how many, what the labels know, how far the runs agree, and what that means."""
    a = clusters.about
    sizes = np.bincount(clusters.labels, minlength=a["K"])
    text = (f"{a['images']:,} different images of {a['files']:,} files in {np.count_nonzero(sizes)} of {a['K']} "
            f"clusters, of {sizes[sizes > 0].min():,} to {sizes.max():,} files. The labels know "
            f"{a['information_nats']:.2f} nats of their images, {a['share_of_ln_K']:.0%} of the most that "
            f"they could. Mean certainty: {a['mean_certainty']:.2f}.")
    if a["labels"] != "in use":
        text += " That is next to nothing: the clusters say nothing of the images."
    if a["agreement_of_seeds_ari"] is None:
        return text + " One run: how far another one would agree with it was not asked."
    return text + (f" Runs from {len(a['ids'])} first weights agree by {a['agreement_of_seeds_ari']:.2f} "
                   "(adjusted Rand index: 1 for the same clusters, 0 for chance). What they do not agree on is "
                   "not in the images.")


def _section(title: str, members: np.ndarray, clusters: Clusters, picture) -> str:
    cells = []
    for i in members[:SHOWN]:
        data = io.BytesIO()
        picture(i).save(data, "JPEG", quality=80)
        name = html.escape(pictures.text(clusters.files[i]), quote=True)
        caption = f"{name}: cluster {clusters.labels[i] + 1}, certainty {clusters.certainty[i]:.2f}"
        cells.append(f'<img alt="{caption}" title="{caption}" loading="lazy" width="{SIDE}" height="{SIDE}" '
                     f'src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">')
    sure = f", mean certainty {clusters.certainty[members].mean():.2f}" if len(members) else ""
    more = f", {SHOWN} shown" if len(members) > SHOWN else ""
    return (f"<details open><summary><h2>{title}</h2> {len(members):,} files{sure}{more}</summary>\n"
            + "\n".join(cells) + "</details>")


def _sheet(images: list[Image.Image], path: Path, columns: int = 10) -> None:
    sheet = Image.new("RGB", (columns * SIDE, math.ceil(len(images) / columns) * SIDE), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * SIDE, i // columns * SIDE))
    with checkpoints.whole_file(path, sheet.width * sheet.height) as temporary:
        sheet.save(temporary, "JPEG", quality=85)


def _write_text(path: Path, text: str) -> None:
    with checkpoints.whole_file(path, len(text)) as temporary:
        # A file's name may hold bytes that are no text: they go back as they came.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Clusters of {place}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }}
h2 {{ display: inline; font-size: 1.2rem }} summary {{ margin: 1.5rem 0 .5rem; cursor: pointer }}
img {{ margin: 1px; border-radius: 3px }}
</style></head><body>
<h1>Clusters of {place}</h1>
<p>{summary}</p>
<p>The surest images of a cluster come first; a name and a certainty appear over each. All files are in
clusters.csv. A cluster has no meaning but what its images have in common.</p>
{sections}
</body></html>
"""
