"""Scales: how many images and epochs. Every other choice is an Experiment's default."""

from __future__ import annotations

from typing import Any

from cgmvae.datasets import DATASETS, sample_of

PRESETS = {
    "paper": {},
    "half": {"epochs": 50},
    "small": {"train_limit": 20_000, "epochs": 20},
    "quick": {"epochs": 5, "batch_size": 32, "iw_samples": 10},
}
"""The paper's scale; all images in a quarter of its epochs; one for a laptop's hour; one for a laptop's
minute (on a sample)."""
QUICK_LIMIT = 4_000
"""Training images of the quick scale, as in MNIST's sample, of a data set that has no sample."""


def scale(name: str, dataset: str) -> dict[str, Any]:
    """A preset's choices for a data set: `quick` takes its sample, and no limit exceeds its images."""
    scale = dict(PRESETS[name])
    if name == "quick":
        sample = sample_of(dataset)
        if not sample:
            scale.setdefault("train_limit", QUICK_LIMIT)
        dataset = sample or dataset
    if (scale.get("train_limit") or 0) >= DATASETS[dataset].train:
        scale["train_limit"] = None
    return scale | {"dataset": dataset}
