"""Clusters of images as files that can be looked at: a table, a contact sheet a cluster, one page."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from cgmvae import pictures
from cgmvae.datasets import DataError
from cgmvae.disk import whole_file, write_text

if TYPE_CHECKING:
    from cgmvae.own_clusters import Clusters
    from cgmvae.own_images import Found

SHOWN = 100  # images a cluster on the page, and on its sheet, which has the surest
LEAST = 20  # of those on the page are the least sure, where a cluster has more: the surest alone flatter it
DOUBTFUL = 40  # images of all clusters that the page shows as the least sure
SIDE = 96  # of a small picture, in pixels


def write(clusters: Clusters, place: Path, out: Path, found: Found) -> None:
    """`clusters.csv`, `cluster-*.jpg` and `index.html`, from the images at `place`. Raises DiskError.

    Training took its time. An image that cannot be opened any more is shown as the square in `found`.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("file", "cluster", "certainty"))
    writer.writerows((name, int(label) + 1, f"{sure:.4f}") for name, label, sure in
                     zip(clusters.files, clusters.labels, clusters.certainty, strict=True))
    write_text(out / "clusters.csv", table.getvalue())
    members = [clusters.members(k) for k in range(clusters.about["K"])]
    doubtful = np.argsort(clusters.certainty, kind="stable")[:DOUBTFUL]
    wanted = dict.fromkeys(i for some in (*members, doubtful) for i in (*some[:SHOWN], *some[-LEAST:]))
    small = _small([clusters.files[i] for i in wanted], place, found)
    sections, again = [], clusters.about["found_again"]
    for k, own in enumerate(members):
        sheet = out / f"cluster-{k + 1:02}.jpg"
        if len(own):
            _sheet([small[clusters.files[i]] for i in own[:SHOWN]], sheet)
        else:
            sheet.unlink(missing_ok=True)  # of a call with fewer seeds, which showed another run
        told = f", found again by {again[k]:.2f}" if again and len(own) else ""
        sections.append(_section(f"Cluster {k + 1}", own, clusters, small, told))
    sections += [_section("The least sure", doubtful, clusters, small), _left_out(clusters.about)]
    title = os.path.basename(os.path.abspath(place)) or str(place)  # also of `.`
    write_text(out / "index.html", PAGE.format(
        place=html.escape(pictures.text(title)), summary=html.escape(summary(clusters)),
        sections="\n".join(sections)))


def _small(names: list[str], place: Path, found: Found) -> dict[str, Image.Image]:
    """RGB pictures of SIDE x SIDE pixels, by the names of their files."""
    def square(name: str) -> Image.Image:
        part, row = found.rows[name]
        pixels = found.arrays[f"{part}_images"][row]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())

    def picture(name: str) -> Image.Image:
        try:
            with opened(name) as image:
                image.draft(None, (4 * SIDE,) * 2)  # a large JPEG need not be read whole
                seen = pictures.plain(image, found.white).convert("RGB")
        except Exception:  # removed, renamed or cut short meanwhile: that can raise almost anything in Pillow
            seen = square(name).convert("RGB")
        return ImageOps.fit(seen, (SIDE, SIDE))

    try:
        opened = pictures.opener(place)
    except DataError:  # the .npz is no longer whole
        opened = square
    return {name: picture(name) for name in tqdm(names, "Writing the page", leave=False, disable=None)}


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
                   "(adjusted Rand index: 1 for the same clusters, 0 for chance). Where they disagree, the images "
                   "do not fix the clusters.")


def _section(title: str, members: np.ndarray, clusters: Clusters, small: dict[str, Image.Image],
             told: str = "") -> str:
    shown, more = members, ""
    if len(members) > SHOWN:
        shown = np.concatenate([members[:SHOWN - LEAST], members[-LEAST:]])
        more = f", the {SHOWN - LEAST} surest and the {LEAST} least sure shown"
    cells = []
    for i in shown:
        data = io.BytesIO()
        small[clusters.files[i]].save(data, "JPEG", quality=80)
        name = html.escape(pictures.text(clusters.files[i]), quote=True)
        caption = f"{name}: cluster {clusters.labels[i] + 1}, certainty {clusters.certainty[i]:.2f}"
        cells.append(f'<img alt="{caption}" title="{caption}" loading="lazy" width="{SIDE}" height="{SIDE}" '
                     f'src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">')
    sure = f", mean certainty {clusters.certainty[members].mean():.2f}" if len(members) else ""
    return (f"<details open><summary><h2>{title}</h2> {len(members):,} files{sure}{told}{more}</summary>\n"
            + "\n".join(cells) + "</details>")


def _left_out(about: dict[str, Any]) -> str:
    """Each file that is in no cluster, with its reason, and how many of other kinds there are."""
    lines = [*about["left_out"], *(f"{count:,} {ending}: not a PNG, JPEG or WebP file"
                                   for ending, count in about["other_kinds"].items())]
    if not lines:
        return ""
    items = "\n".join(f"<li>{html.escape(pictures.text(line))}</li>" for line in lines)
    return (f"<details><summary><h2>Left out</h2> {len(about['left_out']):,} files, and "
            f"{sum(about['other_kinds'].values()):,} of other kinds</summary>\n<ul>\n{items}\n</ul></details>")


def _sheet(images: list[Image.Image], path: Path, columns: int = 10) -> None:
    sheet = Image.new("RGB", (columns * SIDE, math.ceil(len(images) / columns) * SIDE), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * SIDE, i // columns * SIDE))
    with whole_file(path, sheet.width * sheet.height) as temporary:
        sheet.save(temporary, "JPEG", quality=85)


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
clusters.csv. A cluster has no meaning but what its images have in common, and any cluster looks good in its surest
images. One that other runs find again by less than 0.5 is to be doubted (Jaccard index: 1 for the same images).</p>
{sections}
</body></html>
"""
