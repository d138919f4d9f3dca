"""Make the embedded samples in cgmvae/samples/ from the full data sets.

    python tools/make_samples.py

The full data sets are loaded as for a run (downloaded if the cache folder lacks them). The first
images of each class in the order of their hashes are taken, train from train and test from test,
none twice: a choice without a seed that does not depend on the order in the full files. They are
written, class after class, as lossless WebP sprite sheets beside an .npz of their labels. Prints
the digests, which belong in cgmvae/datasets.py, and the sizes.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from cgmvae.datasets import DATASETS, sample_of
from cgmvae.files import SAMPLES, SHEET_COLUMNS, digest_of, image_hashes, load


def sheet(images: np.ndarray) -> np.ndarray:
    """uint8 (N, C, H, W) as one picture, uint8 (rows * H, SHEET_COLUMNS * W, C)."""
    _, channels, height, width = images.shape
    tiles = images.reshape(-1, SHEET_COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    return tiles.reshape(-1, SHEET_COLUMNS * width, channels)


def make(dataset: str) -> None:
    """Write the sample of one data set: as many images of each class as its facts say."""
    images, sample = load(dataset), sample_of(dataset)
    labels, hashes = {}, []
    for part in ("train", "test"):
        count = getattr(DATASETS[sample], part) // len(images.class_names)
        classes = getattr(images, f"{part}_labels")
        pixels = getattr(images, f"{part}_images")
        twin = torch.zeros(len(pixels), dtype=torch.bool)  # CIFAR-100 has some images twice
        twin[1:] = (pixels[1:] == pixels[:-1]).flatten(1).all(1)
        chosen = torch.cat([torch.nonzero((classes == k) & ~twin)[:count, 0]
                            for k in range(len(images.class_names))])
        pixels = pixels[chosen].numpy()
        labels[f"{part}_labels"] = classes[chosen].numpy().astype(np.uint8)
        kinds = [labels[f"{part}_labels"]]
        if images.superclass_names:
            kinds.append(getattr(images, f"{part}_superclasses")[chosen].numpy().astype(np.uint8))
        hashes += image_hashes(part, pixels, *kinds)
        picture = Image.fromarray(sheet(pixels).squeeze())
        path = SAMPLES / f"{sample}-{part}.webp"
        picture.convert("RGB").save(path, lossless=True, quality=100, method=6)
        print(f"{path}: {len(pixels)} images, {path.stat().st_size} bytes")
    np.savez_compressed(SAMPLES / f"{sample}.npz", **labels)
    print(sample, digest_of(hashes, images.class_names + images.superclass_names))


if __name__ == "__main__":
    for name in filter(sample_of, list(DATASETS)):
        make(name)
