"""A reader's image files, one by one: where they are, and what small square each becomes."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cgmvae.datasets import DataError
from cgmvae.files import reason

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the file's name says, nothing else is decoded
SIDES = {1: 28, 3: 32}  # of grey and of coloured images: those of the paper's data sets
LEAST_PIXELS = 8  # an image with a shorter side is an icon or a tracking pixel
TWELVE_BITS = 4095  # the most that a camera of 12 bits writes
SIXTEEN_BITS = 65_535


@dataclass(frozen=True)
class Source:
    """One image that may be read. `open` gives it; `part` is None where its hash decides."""

    where: str
    open: Callable[[], Image.Image]
    label: str | None = None
    part: str | None = None


def files(folder: Path, failed: list[str], without: Path | None = None) -> Iterator[Path]:
    """The files below a folder, hidden ones left out; links are followed, each folder once, `without` never."""
    seen = set() if without is None else {os.path.realpath(without)}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=lambda error: failed.append(
            f"{error.filename!r} ({error.strerror})")):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if f[0] != ".")
        yield from (Path(here, f) for f in sorted(names) if f[0] != ".")


def in_folder(folder: Path, without: Path | None = None) -> tuple[list[Source], list[str], list[str]]:
    """Its images, what could not be looked into, and the endings of all other files; see `files`."""
    sources, failed, others = [], [], []
    for path in files(folder, failed, without):
        inside = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES:
            others.append(text(path.suffix.lower()) or "no ending")
            continue
        label = text(inside.parts[0]) if len(inside.parts) > 1 else None
        sources.append(Source(str(inside), partial(_open, path), label))
    return sources, failed, others


def in_npz(path: Path) -> list[Source]:
    """Its images. Raises DataError."""
    sources = []
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for part in ("",) if "images" in arrays else ("train_", "test_"):
            images = arrays[f"{part}images"]
            if images.ndim == 4 and images.shape[1] in SIDES and images.shape[3] not in SIDES:
                images = images.transpose(0, 2, 3, 1)
            if images.ndim == 4 and images.shape[3] == 1:
                images = images[..., 0]
            if images.dtype != np.uint8 or images.ndim != 3 and images.shape[3:] != (3,):
                raise ValueError(f"its {part}images are {images.dtype} {images.shape} and not uint8 "
                                 "(N, H, W), (N, H, W, C) or (N, C, H, W)")
            labels = arrays.get(f"{part}labels", [None] * len(images))
            names = arrays.get("class_names")
            for k, (image, label) in enumerate(zip(images, labels, strict=True)):
                if label is not None:
                    label = text(str(label if names is None else names[label]))
                sources.append(Source(f"{part}images[{k}]", partial(Image.fromarray, image), label,
                                      part.rstrip("_") or None))
    except Exception as error:  # damage shows as almost any exception of zipfile or NumPy
        why = f"it lacks {error}" if isinstance(error, KeyError) else reason(error)
        raise DataError(f"{path} was not used, as it is neither a folder nor an .npz of images: {why}."
                        ) from error
    return sources


def opener(place: Path) -> Callable[[str], Image.Image]:
    """A function that opens the image that `in_folder` or `in_npz` named so. Raises DataError for an .npz that
    cannot be read; the function raises KeyError or OSError for an image that is no longer there."""
    if place.is_file():
        opens = {source.where: source.open for source in in_npz(place)}
        return lambda where: opens[where]()
    return lambda where: _open(place / where)


def text(name: str) -> str:
    """A class's name, alike whatever system wrote it, without what is no text."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())


def _open(path: Path) -> Image.Image:
    if not path.is_file():  # a pipe would be waited for
        raise OSError("no such file" if path.is_symlink() else "not a file")
    return Image.open(path, formats=FORMATS)


def white(sources: list[Source]) -> int:
    """What is white in those of the images that have 16 bits: 4,095 if nothing in any of them passes it, else 65,535.

    Microscopes and X-rays write 12 bits into 16. Of 65,535 their white is a sixteenth: nearly black. It is asked of all
    images together, so that two alike stay alike.
    """
    for source in sources:
        with contextlib.suppress(Exception), source.open() as image:  # `scaled` says what is wrong with it
            if image.mode[0] in "IF" and np.asarray(image).max() > TWELVE_BITS:
                return SIXTEEN_BITS
    return TWELVE_BITS


def scaled(source: Source, side: int | None, channels: int | None, white: int = SIXTEEN_BITS):
    """uint8 (H, W) in grey, if it is, and (H, W, 3) in colour, if it may be; or why it cannot be."""
    try:
        with source.open() as image:
            if min(image.size) < LEAST_PIXELS:
                return f"{image.width} x {image.height} pixels: too small"
            image.draft(None, (4 * (side or SIDES[3]),) * 2)  # a large JPEG need not be read whole
            upright = plain(image, white)
        grey, colour = None, None
        if channels != 1:
            colour = np.asarray(ImageOps.fit(upright.convert("RGB"), (side or SIDES[3],) * 2))
        if channels == 1 or channels is None and (colour == colour[..., :1]).all():
            grey = np.asarray(ImageOps.fit(upright.convert("L"), (side or SIDES[1],) * 2))
        return grey, colour
    except UnidentifiedImageError:
        return "no PNG, JPEG or WebP"
    except Exception as error:  # a damaged file can raise almost anything in Pillow
        return reason(error)


def plain(image: Image.Image, white: int) -> Image.Image:
    """The image upright, of 8 bits, without transparency: of mode L or RGB. `white` is that of 16 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 bits, which Pillow's own conversion can clip
        to_8_bits = (np.arange(SIXTEEN_BITS + 1) * (255 / white)).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(to_8_bits[np.asarray(image).clip(0, SIXTEEN_BITS).astype(np.uint16)])
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else image.convert("RGB")
