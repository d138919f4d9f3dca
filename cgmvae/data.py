"""Images as tensors on the device: splits, binarisation, and how a batch is made.

`load`, which reads the files, is in `files`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from cgmvae.binarisation import BINARISATIONS
from cgmvae.checks import refuse
from cgmvae.experiment import Experiment
from cgmvae.files import Images, load  # `data.load` and `data.split` are what a run asks for
from cgmvae.views import VIEWS

STATIC_SEED = 2019  # of the static binarisation: a fact of the data, the same for every run


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
        x = BINARISATIONS[self.binarisation](chosen, generator)
        return x.permute(0, 3, 1, 2)

    def view(self, index: Tensor, kind: str, generator: torch.Generator | None = None) -> Tensor:
        """A second view of the images of a batch, a name in VIEWS, made of the grey values or colours
        and binarised as the first is: x, (B, C, H, W)."""
        pixels = self.values.index_select(0, index).permute(0, 3, 1, 2)
        seen = VIEWS[kind](pixels.to(torch.float32) / 255, generator)
        return BINARISATIONS[self.binarisation]((255 * seen).round().to(torch.uint8), generator)


@dataclass(frozen=True, eq=False)
class Splits:
    """The images of one run on its device, and labels of images, int64 (N,) on the CPU.

    The labels are None where the data set has none.
    """

    train: Pixels
    validation: Pixels
    test: Pixels
    test_groups: Tensor | None  # the digit, or the superclass: what clusters are compared with
    test_labels: Tensor | None  # the digit, or the fine class
    validation_groups: Tensor | None = None  # as test_groups: only to name clusters after the training
    told: tuple[Tensor, Tensor] | None = None  # places in `train`, and the labels there, on the device


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
                  pixels(still.test_images, still_mode), images.test_groups, images.test_labels,
                  None if images.train_groups is None else images.train_groups[held_out],
                  told(experiment, images.train_groups[kept], device) if experiment.labelled else None)


def told(experiment: Experiment, groups: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The images whose class a run is told, the first of each class in the run's order: their places and classes.

    As many of each class, one more of the first if it does not come out even.
    """
    same = groups[:, None] == torch.arange(int(groups.max()) + 1)
    rank = (same.cumsum(0) * same).sum(1)  # 1 for the first of its class
    rows = (rank * same.shape[1] + groups).argsort(stable=True)[:experiment.labelled]
    return rows.to(device), groups[rows].to(device)


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
