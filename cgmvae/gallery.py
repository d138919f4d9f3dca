"""Clusters of images as files that can be looked at: a table, a contact sheet a cluster, one page."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from cgmvae import checkpoints, pictures

if TYPE_CHECKING:
    from cgmvae.own_clusters import Clusters

SHOWN = 100  # images a cluster on the page and on its sheet, the surest first
DOUBTFUL = 40  # images of all clusters that the page shows as the least sure
SIDE = 96  # of a small picture, in pixels


def write(clusters: Clusters, place: Path, out: Path) -> None:
    """`clusters.csv`, `cluster-*.jpg` and `index.html`, from the images at `place`. Raises DiskError."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("file", "cluster", "certainty"))
    writer.writerows((name, int(label) + 1, f"{sure:.4f}") for name, label, sure in
                     zip(clusters.files, clusters.labels, clusters.certainty, strict=True))
    write_text(out / "clusters.csv", table.getvalue())
    sources = pictures.in_folder(place)[0] if place.is_dir() else pictures.in_npz(place)
    by_name = {s.where: s for s in sources}
    small: dict[int, Image.Image] = {}

    def picture(k: int) -> Image.Image:
        if k not in small:
            with by_name[clusters.files[k]].open() as image:
                small[k] = ImageOps.fit(pictures.plain(image).convert("RGB"), (SIDE, SIDE))
        return small[k]

    sections, again = [], clusters.about["found_again"]
    for k in range(clusters.about["K"]):
        members = clusters.members(k)
        if len(members):
            _sheet([picture(i) for i in members[:SHOWN]], out / f"cluster-{k + 1:02}.jpg")
        told = f", found again by {again[k]:.2f}" if again and len(members) else ""
        sections.append(_section(f"Cluster {k + 1}", members, clusters, picture, told))
    doubtful = np.argsort(clusters.certainty, kind="stable")[:DOUBTFUL]
    sections.append(_section("The least sure", doubtful, clusters, picture))
    write_text(out / "index.html", PAGE.format(
        place=html.escape(place.name), summary=html.escape(summary(clusters)), sections="\n".join(sections)))


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
                   "(adjusted Rand index: 1 for the same clusters, 0 for chance). Where they disagree, at least "
                   "one of them is not to be trusted.")


def _section(title: str, members: np.ndarray, clusters: Clusters, picture, told: str = "") -> str:
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
    return (f"<details open><summary><h2>{title}</h2> {len(members):,} files{sure}{told}{more}</summary>\n"
            + "\n".join(cells) + "</details>")


def _sheet(images: list[Image.Image], path: Path, columns: int = 10) -> None:
    sheet = Image.new("RGB", (columns * SIDE, math.ceil(len(images) / columns) * SIDE), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * SIDE, i // columns * SIDE))
    with checkpoints.whole_file(path, sheet.width * sheet.height) as temporary:
        sheet.save(temporary, "JPEG", quality=85)


def write_text(path: Path, text: str) -> None:
    """A whole file or none. Raises DiskError."""
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
clusters.csv. A cluster has no meaning but what its images have in common. One that other runs find again by less
than 0.5 is to be doubted (Jaccard index: 1 for the same images).</p>
{sections}
</body></html>
"""
