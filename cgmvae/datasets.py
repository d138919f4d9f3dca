"""Facts about each data set, known before it is loaded: what a run, its checks and its loading ask.

A new data set is one entry in DATASETS. Nothing elsewhere knows one by its name.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DataError(RuntimeError):
    """Data that cannot be had. Its message names the file or folder and the way to mend it."""


@dataclass(frozen=True)
class Dataset:
    """Facts about a data set that can be checked before it is loaded.

    How its pixels become 0 or 1 is no fact of it: it follows from the likelihood that is chosen,
    which needs binary pixels or does not.
    """

    images: tuple[int, int, int]  # channels, height, width
    train: int  # training images, before the validation split
    test: int
    K: int  # number of clusters where none is asked for; the paper's where it has one
    full: str  # the data set that this one is, or is a sample of
    likelihood: str = "cross_entropy"  # where none is asked for
    source: str | None = None  # its class in torchvision.datasets, which downloads it
    digest: str | None = None  # what `files.digest_of` must give; None: not known, so not checked
    class_names: tuple[str, ...] = ()  # what the labels 0, 1, ... mean
    superclasses: str | None = None  # the file in samples/ with the classes of each superclass

    @property
    def labelled(self) -> bool:
        """Whether its images have labels, which only the scores of clusters use."""
        return bool(self.class_names or self.superclasses)

    @property
    def groups(self) -> int:
        """How many classes clusters are compared with: the superclasses, else the classes; 0 without."""
        return self.K if self.superclasses else len(self.class_names)


OWN_NAME = re.compile(r"images-[a-z0-9-]+-([0-9a-f]{8})")
"""The name of a reader's own images: from the folder's name, and from the images' digest."""

DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
            "Bag", "Ankle boot")

DATASETS = {
    "mnist": Dataset(
        (1, 28, 28), 60_000, 10_000, K=10, full="mnist", likelihood="bernoulli", source="MNIST",
        digest="4455cd1caae7731441d5c22d6bf450ce8717251d35f5358efe09983163c24808",
        class_names=DIGITS),
    "cifar100": Dataset(
        (3, 32, 32), 50_000, 10_000, K=20, full="cifar100", source="CIFAR100",
        digest="382622a6da07885bf7d221b39fcd5763e59ef7e15f81dfd5dfdd985b6d04a12e",
        superclasses="cifar100.json"),
    "mnist-sample": Dataset(
        (1, 28, 28), 4_000, 1_000, K=10, full="mnist", likelihood="bernoulli",
        digest="f5e380b4c40e46364eb7584f74f8b8c46cc37183a9a08d0b87d03506a6333fa1",
        class_names=DIGITS),
    "cifar100-sample": Dataset(
        (3, 32, 32), 2_000, 500, K=20, full="cifar100",
        digest="677a1d27eb7ff1797d2f4a0d721d2a64fc02a8eef4b8c423ec6bb74e7756a948",
        superclasses="cifar100.json"),
    # Cross-entropy on grey pixels: its greys are shades of cloth, which a threshold at one half
    # would blacken or bleach, and not the soft edge of ink.
    "fashion-mnist": Dataset(
        (1, 28, 28), 60_000, 10_000, K=10, full="fashion-mnist", source="FashionMNIST",
        class_names=GARMENTS),
}
"""The samples are in the package, those with a source are downloaded. A reader's own images are
added, under a name that begins `images-`, when they are first asked for (see `own_images`)."""


def sample_of(dataset: str) -> str | None:
    """The embedded sample of a full data set; None if it has none."""
    return next((name for name, facts in DATASETS.items()
                 if name != dataset and facts.full == dataset), None)


def cache_folder() -> Path:
    """The folder of the full data sets: CGMVAE_DATA, else the platform's user cache folder."""
    if chosen := os.environ.get("CGMVAE_DATA"):
        return Path(chosen).expanduser()
    import platformdirs  # only here: who sets CGMVAE_DATA does without it
    return Path(platformdirs.user_cache_dir("cgmvae"))


def known(dataset: str) -> bool:
    """Whether DATASETS has it, or its file of own images is in the cache folder and adds it.

    Raises DataError if that file is damaged.
    """
    if dataset in DATASETS or not (own := OWN_NAME.fullmatch(dataset)):
        return dataset in DATASETS
    path = cache_folder() / f"{dataset}.npz"
    if not os.path.exists(path):
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
        if not facts["digest"].startswith(own[1]):
            raise ValueError("its digest is not that of its name")
        facts |= {key: tuple(facts[key]) for key in ("images", "class_names")}
        DATASETS[dataset] = Dataset(**facts)
    except Exception as error:  # damage shows as almost any exception
        raise DataError(f"{path} was not used, as it is cut short, altered or unreadable ({error}). "
                        "Delete it and give the path of the images again.") from error
    return True
