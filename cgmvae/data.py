"""Images on disk to uint8 tensors on the device: loading, checking, splitting, binarising.

A full data set is one file, NAME.npz, in the cache folder. Its keys: `train_images` and
`test_images`, uint8 (N, C, H, W); `train_labels` and `test_labels`, uint8 (N,), the digit or
the fine class; for CIFAR-100 also `train_superclasses` and `test_superclasses`, uint8 (N,), and
`class_names` and `superclass_names`, in alphabetical order, which is the order of the labels.

Files made on different roads hold the same images in different orders. So a file is checked by
a digest that no order changes, and its images are then put in the order of their hashes: the
same images give the same run.
"""

from __future__ import annotations

import dataclasses
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

from cgmvae.checks import one_of, refuse
from cgmvae.experiment import DATASETS, Experiment

DIGESTS = {
    "mnist": "4455cd1caae7731441d5c22d6bf450ce8717251d35f5358efe09983163c24808",
    "cifar100": "382622a6da07885bf7d221b39fcd5763e59ef7e15f81dfd5dfdd985b6d04a12e",
    "mnist-sample": "f5e380b4c40e46364eb7584f74f8b8c46cc37183a9a08d0b87d03506a6333fa1",
    "cifar100-sample": "677a1d27eb7ff1797d2f4a0d721d2a64fc02a8eef4b8c423ec6bb74e7756a948",
}
"""What `digest_of` must give for the images that are loaded."""

SAMPLES = Path(__file__).parent / "samples"  # see its README.md
SHEET_COLUMNS = 50  # images in a row of a sample's sprite sheet
STATIC_SEED = 2019  # of the static binarisation: a fact of the data, the same for every run


class DataError(RuntimeError):
    """Data that cannot be had. Its message names the file or folder and the way to mend it."""


@dataclass(frozen=True, eq=False)
class Images:
    """A whole data set on the CPU: images uint8 (N, C, H, W), labels int64 (N,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    train_superclasses: Tensor | None  # None for MNIST
    test_superclasses: Tensor | None
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]  # empty for MNIST
    digest: str  # says which images these are

    @property
    def train_groups(self) -> Tensor:
        """(N,) The labels that clusters are compared with, the digit or the superclass."""
        return self.train_labels if self.train_superclasses is None else self.train_superclasses

    @property
    def test_groups(self) -> Tensor:
        """(N,) The same for the test images."""
        return self.test_labels if self.test_superclasses is None else self.test_superclasses

    @property
    def group_names(self) -> tuple[str, ...]:
        """What the numbers in `train_groups` and `test_groups` mean."""
        return self.superclass_names or self.class_names


def cache_folder() -> Path:
    """The folder of the full data sets: CGMVAE_DATA, else the platform's user cache folder."""
    if chosen := os.environ.get("CGMVAE_DATA"):
        return Path(chosen).expanduser()
    import platformdirs  # only here: who sets CGMVAE_DATA does without it
    return Path(platformdirs.user_cache_dir("cgmvae"))


def load(dataset: str) -> Images:
    """The images of a name in DATASETS, each split in the order of its images' hashes.

    A full data set whose file is missing is downloaded. Raises ExperimentError for an unknown
    name; DataError if the data cannot be had, or its file is not whole and as it should be.
    """
    one_of("dataset", dataset, DATASETS)
    sample = dataset != DATASETS[dataset].full
    path = (SAMPLES if sample else cache_folder()) / f"{dataset}.npz"
    if not sample and not os.path.exists(path):
        download(dataset)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if sample:
            arrays = _with_superclasses(dataset, arrays | _sheets(dataset))
        return _checked(dataset, arrays)
    except Exception as error:  # damage shows as almost any exception of zipfile, NumPy or pillow
        mend = ("Reinstall the package." if sample else "Delete it and run again to download it "
                "anew, or put a good file in its place.")
        raise DataError(f"{path} was not used, as it is cut short, altered or unreadable: "
                        f"{_reason(error)}. {mend}") from error


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
            f"The data folder {folder} cannot be written to ({_reason(error)}), so {dataset!r} was "
            "not downloaded. Set CGMVAE_DATA to a folder that can be written to.") from error
    with temporary as work:
        try:
            np.savez(Path(work, path.name), **_from_torchvision(dataset, work))
            os.replace(Path(work, path.name), path)
        except (OSError, RuntimeError, HTTPException) as error:
            raise DataError(
                f"The download of {dataset!r} failed ({_reason(error)}). '{dataset}-sample' is "
                f"embedded in the package and needs no network; for the full data, put the file "
                f"at {path}.") from error


def _from_torchvision(dataset: str, folder: str) -> dict[str, np.ndarray]:
    from torchvision import datasets  # slow to import, and needed once
    source = {"mnist": datasets.MNIST, "cifar100": datasets.CIFAR100}[dataset]
    arrays = {}
    for part in ("train", "test"):
        found = source(folder, train=part == "train", download=True)
        images = np.asarray(found.data)  # (N, H, W) of MNIST, (N, H, W, C) of CIFAR-100
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
    """CIFAR-100's superclasses, which torchvision leaves out, from the table in samples/."""
    if DATASETS[dataset].full == "mnist":
        return arrays
    members = json.loads((SAMPLES / "cifar100.json").read_text(encoding="utf-8"))
    names = sorted(members)
    above = {fine: k for k, name in enumerate(names) for fine in members[name]}
    table = np.array([above[fine] for fine in sorted(above)], np.uint8)
    superclasses = {f"{part}_superclasses": table[arrays[f"{part}_labels"]]
                    for part in ("train", "test")}
    return {**arrays, **superclasses, "class_names": np.array(sorted(above)),
            "superclass_names": np.array(names)}


def image_hashes(part: str, images: np.ndarray, *labels: np.ndarray) -> list[bytes]:
    """16 bytes an image, of its pixels, its labels (uint8 (N,) each) and `train` or `test`."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    return [hashlib.blake2b(row, digest_size=16, person=part.encode(), salt=tag.tobytes()).digest()
            for row, tag in zip(rows, np.stack(labels, axis=1))]


def digest_of(hashes: list[bytes], names: tuple[str, ...]) -> str:
    """SHA-256 of all images' hashes, in any order, and of the classes' and superclasses' names."""
    return hashlib.sha256(b"".join(sorted(hashes)) + "\n".join(names).encode()).hexdigest()


def _checked(dataset: str, arrays: dict[str, np.ndarray]) -> Images:
    """The arrays as Images, each split in the order of its hashes. ValueError: what is wrong."""
    facts = DATASETS[dataset]
    kinds, names = ("images", "labels"), ()
    if facts.full == "cifar100":
        kinds, names = (*kinds, "superclasses"), ("class_names", "superclass_names")
    keys = [f"{part}_{kind}" for part in ("train", "test") for kind in kinds] + list(names)
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    tensors: dict = {"train_superclasses": None, "test_superclasses": None}
    all_hashes = []
    for part, count in (("train", facts.train), ("test", facts.test)):
        found = {f"{part}_{kind}": arrays[f"{part}_{kind}"] for kind in kinds}
        for key, array in found.items():
            shape = (count, *facts.images) if key.endswith("images") else (count,)
            if array.dtype != np.uint8 or array.shape != shape:
                raise ValueError(f"its {key} are {array.dtype} {array.shape} and not uint8 {shape}")
        hashes = image_hashes(part, *found.values())
        all_hashes += hashes
        order = sorted(range(count), key=hashes.__getitem__)
        for key, array in found.items():
            tensor = torch.from_numpy(array[order])
            tensors[key] = tensor if key.endswith("images") else tensor.long()
    classes, superclasses = tuple("0123456789"), ()
    if names:
        classes, superclasses = (tuple(map(str, arrays[key].flat)) for key in names)
    digest = digest_of(all_hashes, classes + superclasses)
    if digest != DIGESTS[dataset]:
        raise ValueError(f"the digest of its images, labels and names is not that of {dataset!r}")
    return Images(dataset, **tensors, class_names=classes, superclass_names=superclasses,
                  digest=digest)


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError) and "pickle" in str(error):  # NumPy advises to read it unsafely
        return "it is no NumPy file, or holds pickled objects, which can run code and are never read"
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images on the device, uint8 (N, H, W, C) and contiguous, and how batches of them are made."""

    values: Tensor
    binarisation: str

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """Gather, scale and binarise on the device: x, float32 (B, C, H, W) in [0, 1].

        `index` is a slice, or int64 (B,) on the device; `generator` is for `dynamic`. x has the
        strides of channels_last. No step waits for the device and no shape depends on a pixel,
        so that a CUDA graph can hold them.
        """
        by_slice = isinstance(index, slice)
        chosen = self.values[index] if by_slice else self.values.index_select(0, index)
        if self.binarisation == "threshold":
            x = (chosen >= 128).to(torch.float32)
        else:  # the pixels of `static` are 0 and 255 already
            x = chosen.to(torch.float32).div_(255)
        if self.binarisation == "dynamic":
            noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = (noise < x).to(torch.float32)
        return x.permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Splits:
    """The images of one run on its device, and the test images' labels, int64 (N,) on the CPU."""

    train: Pixels
    validation: Pixels
    test: Pixels
    test_groups: Tensor  # the digit, or the superclass: what clusters are compared with
    test_labels: Tensor  # the digit, or the fine class


def split(experiment: Experiment, images: Images, device: torch.device | str) -> Splits:
    """The run's images on the device, the validation images held out.

    The experiment's seed, and nothing else, orders the training images. The first `available`
    are used, and the first `validation_size` of those are held out. With `dynamic` only the
    training images are drawn anew: validation and test have the `static` draw, since losses
    can be compared only on the same pixels. Raises ExperimentError if the images are others
    than the experiment's.
    """
    if images.name != experiment.dataset:
        refuse("images", images.name, f"those of the experiment's dataset, {experiment.dataset!r}")
    seeded = torch.Generator().manual_seed(experiment.seed)
    order = torch.randperm(len(images.train_images), generator=seeded)[: experiment.available]
    held_out, kept = order[: experiment.validation_size], order[experiment.validation_size :]
    moving = still = images
    mode = still_mode = experiment.binarisation
    if mode in ("static", "dynamic"):
        still, still_mode = static_draw(images), "static"
        moving = still if mode == "static" else images

    def pixels(values: Tensor, binarisation: str) -> Pixels:
        # A clone and not .contiguous(), which keeps odd strides where C is 1.
        values = values.to(device).permute(0, 2, 3, 1)
        return Pixels(values.clone(memory_format=torch.contiguous_format), binarisation)

    return Splits(pixels(moving.train_images[kept], mode),
                  pixels(still.train_images[held_out], still_mode),
                  pixels(still.test_images, still_mode), images.test_groups, images.test_labels)


def static_draw(images: Images) -> Images:
    """The images binarised once: a pixel v is 255 with probability v / 255, else 0.

    Drawn on the CPU with one seed: the same for every run and device.
    """
    generator = torch.Generator().manual_seed(STATIC_SEED)
    drawn = {}
    for key in ("train_images", "test_images"):
        grey = getattr(images, key)
        noise = torch.randint(255, grey.shape, dtype=torch.uint8, generator=generator)  # 0 to 254
        drawn[key] = (noise < grey).to(torch.uint8) * 255
    return dataclasses.replace(images, **drawn)
