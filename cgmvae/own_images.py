"""A reader's own images: a folder of PNG, JPEG and WebP files, or an .npz, as one more data set.

Each image becomes a square of a small side. They are kept in the cache folder, as the downloaded
sets are, under a name made of the folder's name and a digest of the images: two machines with the
same pixels give a run the same id, wherever the folder is. (Versions of the JPEG library may round
pixels differently: then the names differ, since the images do.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import unicodedata
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cgmvae.checks import did_you_mean, refuse
from cgmvae.datasets import DATASETS, OWN_NAME, DataError, Dataset, cache_folder, known
from cgmvae.disk import DiskError, whole_file
from cgmvae.files import digest_of, image_hashes
from cgmvae.pictures import SIDES, Source, files, in_folder, in_npz, scaled, white

LEAST_IMAGES = 100
"""With a fifth of them for the test and a tenth of the rest for the validation, fewer would not leave
two batches of the quick scale."""
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}  # no folder of a class has such a name
TEST_EVERY = 5  # one image in so many is a test image
AT_ONCE = 4  # files that are read at the same time: each is in the memory whole until it is scaled
K = 10  # clusters where none is asked for
_registered: dict[tuple, str] = {}  # so that a folder that has not changed is read once a process


@dataclass(frozen=True, eq=False)
class Found:
    """What a path holds: the data set that was made of it, and what was not taken."""

    name: str
    facts: Dataset
    arrays: dict[str, np.ndarray]  # as in the file of a full data set, see `files`
    rows: dict[str, tuple[str, int]]  # where each file's image is: `train` or `test`, and its row there
    left_out: list[str]  # each with its reason
    duplicates: int
    others: list[str]  # the endings of files that are none of the three kinds
    white: int  # of those of 16 bits, see `pictures.white`

    def __str__(self) -> str:
        facts, (channels, height, width) = self.facts, self.facts.images
        kind = "grey" if channels == 1 else "colour"
        labels = f"{len(facts.class_names)} classes, for scores only" if facts.labelled else "none"
        return "\n".join((
            f"{self.name}: {facts.train} training and {facts.test} test images",
            f"  digest: {facts.digest}",
            f"  pixels: {height} x {width}, {kind}", f"  labels: {labels}",
            f"  duplicates, counted once: {self.duplicates}",
            f"  left out: {_some(self.left_out)}", f"  files of other kinds: {_kinds(self.others)}"))


def find_dataset(value: str | os.PathLike) -> str:
    """The name in DATASETS of a data set that is given by its name, or by a path of own images.

    A path is read and registered (see `register_images`). Raises ExperimentError for a name or path
    that there is not; DataError if its images cannot be used.
    """
    if not isinstance(value, (str, os.PathLike)):
        refuse("dataset", value, "a name in text")
    value = os.fspath(value)
    if known(value):
        return value
    if os.path.exists(os.path.expanduser(value)):
        return register_images(value)
    if OWN_NAME.fullmatch(value):
        refuse("dataset", value, f"own images that are in {cache_folder()}, or their path, which "
               "puts them there")
    if "/" in value or os.sep in value or value.endswith(".npz"):
        refuse("dataset", value, "the path of a folder of images or of an .npz file that exists")
    refuse("dataset", value, f"one of {', '.join(map(repr, DATASETS))}{did_you_mean(value, DATASETS)}, or the path of "
           "your own images")


def register_images(path: str | os.PathLike) -> str:
    """Read images, keep them in the cache folder, and return the name that they have in DATASETS.

    A later process knows that name without the path. One line a fact goes to stderr: how many
    there are, and what was left out. See `read_images` for what it raises.
    """
    place = Path(os.path.expanduser(path))
    stamps = ((f, (os.stat if os.path.exists(f) else os.lstat)(f))  # of what a link leads to, if it leads somewhere
              for f in (files(place, []) if place.is_dir() else [place]))
    state = frozenset((str(f), stamp.st_size, stamp.st_mtime_ns) for f, stamp in stamps)
    key = (os.path.abspath(place), state)
    name = _registered.get(key)
    kept = cache_folder() / f"{name}.npz"  # gone, if it was damaged and is deleted, or the folder is another
    if name is None or not (kept.exists() and known(name)):
        found = read_images(path)
        keep(found)
        print(found, file=sys.stderr)
        _registered[key] = name = found.name
    return name


def keep(found: Found) -> None:
    """Write the images to the cache folder, and add them to DATASETS. Raises DataError."""
    path = cache_folder() / f"{found.name}.npz"
    facts = np.array(json.dumps(dataclasses.asdict(found.facts)))
    size = sum(array.nbytes for array in found.arrays.values())
    try:
        with whole_file(path, size) as temporary, open(temporary, "wb") as file:
            np.savez(file, facts=facts, **found.arrays)
    except DiskError as error:
        raise DataError(f"The data folder {path.parent} cannot be written to ({error.__cause__}). Set "
                        "CGMVAE_DATA to a folder that can be written to.") from error
    DATASETS[found.name] = found.facts


def read_images(path: str | os.PathLike, side: int | None = None, channels: int | None = None,
                without: str | os.PathLike | None = None) -> Found:
    """Read a folder or an .npz, to which nothing is ever written.

    A folder's images are its PNG, JPEG and WebP files at any depth, hidden ones left out. Where all
    of them are in subfolders, and these are two or more, the subfolders are their classes. An .npz
    holds `images`, or `train_images` and `test_images`: uint8 (N, H, W), (N, H, W, C) or
    (N, C, H, W); and, if it has them, `labels`, or `train_labels` and `test_labels`, (N,).

    Each image is turned as its camera says, put on white where it is transparent, cropped to its
    centred square and scaled. Images of equal pixels are one; it has the first class by alphabet. An
    image's pixels alone decide whether it is a test image, as one in five is, so that it stays one
    when files are renamed or added.

    Args:
        side: of the squares, in pixels; None: 28 for grey and 32 for coloured images.
        channels: 1 for grey, 3 for colour; None: grey if all images are.
        without: a folder that is not looked into, should a link in `path` lead there.

    Raises ExperimentError for a side or channels that cannot be; DataError if the file cannot be
    read, too few images are left, or the subfolders are parts such as `train`. A file that cannot be read is left out and named.
    """
    if channels not in (None, *SIDES):
        refuse("channels", channels, "1 for grey images or 3 for coloured ones")
    if side is not None and (side not in range(16, 257) or side % 4):
        refuse("side", side, "a multiple of 4 from 16 to 256, since the networks halve it twice")
    place = Path(os.path.expanduser(path))
    if place.resolve() in (cache := cache_folder().resolve(), *cache.parents):
        raise DataError(f"The data folder {cache} is in {place}, to which nothing is to be written. "
                        "Set CGMVAE_DATA to another folder.")
    without = None if without is None else Path(os.path.expanduser(without))
    sources, left_out, others = in_folder(place, without) if place.is_dir() else (in_npz(place), [], [])
    with warnings.catch_warnings(), ThreadPoolExecutor(AT_ONCE) as pool:
        warnings.simplefilter("ignore")  # of odd metadata
        most = white(sources)
        squares = list(tqdm(pool.map(partial(scaled, side=side, channels=channels, white=most), sources),
                            "Reading images", len(sources), leave=False, disable=None))
    left_out += [f"{s.where!r} ({why})" for s, why in zip(sources, squares) if isinstance(why, str)]
    good = [(s, pair) for s, pair in zip(sources, squares) if not isinstance(pair, str)]
    is_grey = all(grey is not None for _, (grey, _) in good)
    classes = sorted({s.label or "" for s, _ in good})  # "" if one of them has no class
    classes = classes if len(classes) > 1 and "" not in classes else []
    if classes and {name.lower() for name in classes} <= PARTS:
        raise DataError(f"{place} has the folders {', '.join(map(repr, classes))}, which are parts of a data set and not "
                        "classes. Give the path of one of them, or an .npz with train_images and test_images.")
    chosen: dict[bytes, Source] = {}
    raws: dict[str, bytes] = {}  # of every file, also of those that are one image
    # A test image keeps its place, should a training image of an .npz be the same.
    for source, pair in sorted(good, key=lambda g: (g[0].part != "test", g[0].label or "")):
        pixels = pair[0][None] if is_grey else pair[1].transpose(2, 0, 1)
        raws[source.where] = pixels.tobytes()
        chosen.setdefault(raws[source.where], source)
    parts: dict[str, dict[bytes, Source]] = {"train": {}, "test": {}}
    for raw, source in chosen.items():
        number = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
        parts[source.part or ("train" if number % TEST_EVERY else "test")][raw] = source
    if len(chosen) < LEAST_IMAGES or not all(parts.values()):
        raise DataError(
            f"{place} has {len(parts['train'])} training and {len(parts['test'])} test images, and "
            f"together {LEAST_IMAGES} different ones are the least to learn from; left out: "
            f"{_some(left_out)}; duplicates: {len(good) - len(chosen)}; files of other kinds: "
            f"{_kinds(others)}.")
    row = {raw: (part, k) for part, images in parts.items() for k, raw in enumerate(images)}
    return _found(place, parts, pixels.shape, classes, rows={where: row[raw] for where, raw in raws.items()},
                  left_out=left_out, duplicates=len(good) - len(chosen), others=others, white=most)


def _found(place: Path, parts: dict[str, dict[bytes, Source]], shape: tuple[int, int, int],
           classes: list[str], **rest) -> Found:
    number = {name: k for k, name in enumerate(classes)}
    arrays, hashes = {}, []
    for part, chosen in parts.items():
        images = np.frombuffer(b"".join(chosen), np.uint8).reshape(-1, *shape)
        labels = [np.array([number[s.label] for s in chosen.values()], np.uint16)] if classes else []
        arrays |= {f"{part}_images": images} | {f"{part}_labels": array for array in labels}
        hashes += image_hashes(part, images, *labels)
    digest = digest_of(hashes, tuple(classes))
    plain = unicodedata.normalize("NFKD", os.path.basename(os.path.abspath(place)))
    plain = plain.encode("ascii", "ignore").decode().lower().removesuffix(".npz")
    safe = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:30].strip("-")
    name = f"images-{safe or 'own'}-{digest[:8]}"
    train, test = (len(parts[part]) for part in ("train", "test"))
    facts = Dataset(shape, train, test, K, name, digest=digest, class_names=tuple(classes))
    return Found(name, facts, arrays, **rest)


def _some(items: list[str]) -> str:
    """How many, and the first three."""
    more = f"; and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{len(items)}" + (f": {'; '.join(items[:3])}{more}" if items else "")


def _kinds(endings: list[str]) -> str:
    """How many, and of which endings, the most frequent first: who has .heic files learns why they are not there."""
    counts = Counter(sorted(endings)).most_common()  # of equally many, by alphabet
    named = [f"{count:,} {ending}" for ending, count in counts[:5]]
    named += [f"and {len(counts) - 5} more"] if len(counts) > 5 else []
    return f"{len(endings)}" + (f" ({', '.join(named)})" if named else "")
