"""Images on disk to uint8 tensors: reading, downloading, checking.

A full data set is one file, NAME.npz, in the cache folder. Its keys: `train_images` and
`test_images`, uint8 (N, C, H, W); where it is labelled, `train_labels` and `test_labels`, uint8
(N,), the digit or the fine class; for CIFAR-100 also `train_superclasses` and `test_superclasses`,
uint8 (N,), and `class_names` and `superclass_names`, in alphabetical order, which is the order of
the labels.

Files made on different roads hold the same images in different orders. So a file is checked by
a digest that no order changes, and its images are then put in the order of their hashes: the
same images give the same run.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import textwrap
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cgmvae.checks import one_of
from cgmvae.datasets import DATASETS, DataError, cache_folder, known, sample_of

SAMPLES = Path(__file__).parent / "samples"  # see its README.md
SHEET_COLUMNS = 50  # images in a row of a sample's sprite sheet
LABELS = (np.uint8, np.uint16)  # the second for own images of many classes


@dataclass(frozen=True, eq=False)
class Images:
    """A whole data set on the CPU: images uint8 (N, C, H, W), labels int64 (N,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor | None  # None for own images without classes
    test_images: Tensor
    test_labels: Tensor | None
    train_superclasses: Tensor | None  # None but for CIFAR-100
    test_superclasses: Tensor | None
    class_names: tuple[str, ...]  # empty where there are no labels
    superclass_names: tuple[str, ...]  # empty but for CIFAR-100
    digest: str  # says which images these are

    @property
    def train_groups(self) -> Tensor | None:
        """(N,) The labels that clusters are compared with: the superclass, else the class."""
        return self.train_labels if self.train_superclasses is None else self.train_superclasses

    @property
    def test_groups(self) -> Tensor | None:
        """(N,) The same for the test images."""
        return self.test_labels if self.test_superclasses is None else self.test_superclasses

    @property
    def group_names(self) -> tuple[str, ...]:
        """What the numbers in `train_groups` and `test_groups` mean."""
        return self.superclass_names or self.class_names


def load(dataset: str) -> Images:
    """The images of a name in DATASETS, each split in the order of its images' hashes.

    A full data set whose file is missing is downloaded. Raises ExperimentError for an unknown
    name; DataError if the data cannot be had, or its file is not whole and as it should be.
    """
    if not known(dataset):
        one_of("dataset", dataset, DATASETS)
    facts = DATASETS[dataset]
    sample = dataset != facts.full
    path = (SAMPLES if sample else cache_folder()) / f"{dataset}.npz"
    if facts.source and not os.path.exists(path):
        download(dataset)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if sample:
            arrays = _with_superclasses(dataset, arrays | _sheets(dataset))
        return _checked(dataset, arrays)
    except Exception as error:  # damage shows as almost any exception of zipfile, NumPy or pillow
        if isinstance(error, MemoryError | PermissionError):
            raise DataError(f"{path} could not be read: {reason(error)}. The file may be good.") from error
        if sample:
            mend = "Reinstall the package."
        elif facts.source:
            mend = "Delete it and run again to download it anew, or put a good file in its place."
        else:
            mend = "Delete it and give the path of the images again."
        raise DataError(f"{path} was not used, as it is cut short, altered or unreadable: "
                        f"{reason(error)}. {mend}") from error


def download(dataset: str) -> None:
    """Make NAME.npz in the cache folder from torchvision's download, checked, with its bar.

    torchvision's files go to a temporary folder, removed afterwards; the new file gets its name
    when it is whole. Raises DataError if the folder cannot be written to (before the download
    starts), or if the download fails.
    """
    folder = cache_folder()
    path = folder / f"{dataset}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=f".{dataset}-")
    except OSError as error:
        raise DataError(
            f"The data folder {folder} cannot be written to ({reason(error)}), so {dataset!r} was "
            "not downloaded. Set CGMVAE_DATA to a folder that can be written to.") from error
    with temporary as work:
        try:
            np.savez(Path(work, path.name), **_from_torchvision(dataset, work))
            os.replace(Path(work, path.name), path)
        except (OSError, RuntimeError, HTTPException) as error:
            sample = sample_of(dataset)
            instead = (f", or take {sample!r}, which is embedded in the package and needs no network"
                       if sample else "")
            raise DataError(f"The download of {dataset!r} failed ({reason(error)}). For the full "
                            f"data, put the file at {path}{instead}.") from error


def _from_torchvision(dataset: str, folder: str) -> dict[str, np.ndarray]:
    from torchvision import datasets  # slow to import, and needed once
    source = getattr(datasets, DATASETS[dataset].source)
    arrays = {}
    for part in ("train", "test"):
        found = source(folder, train=part == "train", download=True)
        images = np.asarray(found.data)  # (N, H, W) of grey images, (N, H, W, C) of colours
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        arrays[f"{part}_images"] = np.ascontiguousarray(images)
        arrays[f"{part}_labels"] = np.asarray(found.targets, dtype=np.uint8)
    return _with_superclasses(dataset, arrays)


def _sheets(dataset: str) -> dict[str, np.ndarray]:
    channels, height, width = DATASETS[dataset].images
    arrays = {}
    for part in ("train", "test"):
        with Image.open(SAMPLES / f"{dataset}-{part}.webp") as sheet:
            pixels = np.asarray(sheet.convert("L" if channels == 1 else "RGB"))
        tiles = pixels.reshape(-1, height, SHEET_COLUMNS, width, channels).transpose(0, 2, 4, 1, 3)
        arrays[f"{part}_images"] = tiles.reshape(-1, channels, height, width)
    return arrays


def _with_superclasses(dataset: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The superclasses of CIFAR-100, which torchvision leaves out, from the table in samples/."""
    table_file = DATASETS[dataset].superclasses
    if table_file is None:
        return arrays
    members = json.loads((SAMPLES / table_file).read_text(encoding="utf-8"))
    names = sorted(members)
    above = {fine: k for k, name in enumerate(names) for fine in members[name]}
    table = np.array([above[fine] for fine in sorted(above)], np.uint8)
    superclasses = {f"{part}_superclasses": table[arrays[f"{part}_labels"]]
                    for part in ("train", "test")}
    return {**arrays, **superclasses, "class_names": np.array(sorted(above)),
            "superclass_names": np.array(names)}


def image_hashes(part: str, images: np.ndarray, *labels: np.ndarray) -> list[bytes]:
    """16 bytes an image, of its pixels, its labels ((N,) each, or none) and `train` or `test`."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    tags = np.stack(labels, axis=1) if labels else np.empty((len(rows), 0), np.uint8)
    return [hashlib.blake2b(row, digest_size=16, person=part.encode(), salt=tag.tobytes()).digest()
            for row, tag in zip(rows, tags)]


def digest_of(hashes: list[bytes], names: tuple[str, ...]) -> str:
    """SHA-256 of all images' hashes, in any order, and of the classes' and superclasses' names."""
    return hashlib.sha256(b"".join(sorted(hashes)) + "\n".join(names).encode()).hexdigest()


def _checked(dataset: str, arrays: dict[str, np.ndarray]) -> Images:
    """The arrays as Images, each split in the order of its hashes. ValueError: what is wrong."""
    facts = DATASETS[dataset]
    kinds, names = ("images", "labels") if facts.labelled else ("images",), ()
    if facts.superclasses:
        kinds, names = (*kinds, "superclasses"), ("class_names", "superclass_names")
    keys = [f"{part}_{kind}" for part in ("train", "test") for kind in kinds] + list(names)
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    tensors: dict = dict.fromkeys(("train_labels", "test_labels", "train_superclasses",
                                   "test_superclasses"))
    all_hashes = []
    for part, count in (("train", facts.train), ("test", facts.test)):
        found = {f"{part}_{kind}": arrays[f"{part}_{kind}"] for kind in kinds}
        for key, array in found.items():
            is_images = key.endswith("images")
            shape = (count, *facts.images) if is_images else (count,)
            if array.dtype not in LABELS[: 1 if is_images else None] or array.shape != shape:
                raise ValueError(f"its {key} are {array.dtype} {array.shape} and not uint8 {shape}")
        hashes = image_hashes(part, *found.values())
        all_hashes += hashes
        order = sorted(range(count), key=hashes.__getitem__)
        for key, array in found.items():
            ordered = array[order]
            tensors[key] = torch.from_numpy(ordered if key.endswith("images")
                                            else ordered.astype(np.int64))
    classes, superclasses = facts.class_names, ()
    if names:
        classes, superclasses = (tuple(map(str, arrays[key].flat)) for key in names)
    digest = digest_of(all_hashes, classes + superclasses)
    if digest != (facts.digest or digest):  # where none is known, the record has the file's own
        raise ValueError(f"the digest of its images, labels and names is not that of {dataset!r}")
    return Images(dataset, **tensors, class_names=classes, superclass_names=superclasses,
                  digest=digest)


def reason(error: Exception) -> str:
    """What an error says, in one short line."""
    if "pickle" in str(error):  # NumPy's own sentence advises to load it all the same
        return "it holds pickled Python objects, which can run code and are never read here"
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
