"""The book's published models, held against the records that they belong to."""

import os
from pathlib import Path

import pytest
import torch

from cgmvae import checkpoints, data, evaluation, records
from cgmvae.datasets import DATASETS
from cgmvae.objectives import given_y

RESULTS = Path(records.__file__).resolve().parents[1] / "results"
PUBLISHED = sorted((RESULTS / "checkpoints").glob("*.safetensors"))
ALL = pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
FULL_DATA = os.environ.get("CGMVAE_DATA")  # the tests' own is set later
SAMPLE = {choice.full: name for name, choice in DATASETS.items() if choice.full != name}


@ALL
def test_a_published_model_has_its_record_and_is_small(path):
    _, experiment = checkpoints.load_weights(path)
    record = records.read(RESULTS / "runs" / f"{path.stem}.json")
    assert record["experiment"] == experiment.as_dict()
    assert path.stat().st_size <= 8e6


@ALL
def test_the_test_value_follows_from_the_model_on_the_embedded_images(path):
    """Within four standard errors: the embedded test images are a sample of all of them."""
    model, experiment = checkpoints.load_weights(path)
    if experiment.dataset not in SAMPLE:
        pytest.skip(f"no images of {experiment.dataset} are embedded")
    recorded = records.read(RESULTS / "runs" / f"{path.stem}.json")["metrics"]["test_log_px"]
    here = experiment.but(dataset=SAMPLE[experiment.dataset], train_limit=None)
    pixels = data.split(here, data.load(here.dataset), "cpu").test
    noise = torch.Generator().manual_seed(0)
    values = []
    with torch.no_grad():
        for start in range(0, len(pixels), 100):
            x = pixels.batch(slice(start, start + 100))
            h = model.encode(x)
            y = model.log_q_y(h).argmax(-1)
            normal = torch.randn(len(x), model.z_dim, generator=noise)
            values.append(given_y(model, x, model.q_z_h(h), y, normal)[0])
    value = torch.cat(values).double()
    error = value.std() / len(value) ** 0.5
    assert abs(value.mean() - recorded) < 4 * error


@pytest.mark.skipif(FULL_DATA is None, reason="needs all test images: set CGMVAE_DATA")
@ALL
def test_the_test_value_follows_from_the_model_on_all_test_images(path, monkeypatch):
    """The same images and the same noise: only the weights' half precision is between."""
    monkeypatch.setenv("CGMVAE_DATA", FULL_DATA)
    model, experiment = checkpoints.load_weights(path)
    recorded = records.read(RESULTS / "runs" / f"{path.stem}.json")["metrics"]["test_log_px"]
    splits = data.split(experiment, data.load(experiment.dataset), torch.device("cpu"))
    again = evaluation.evaluate(model, splits, experiment.but(iw_samples=1))["test_log_px"]
    assert again == pytest.approx(recorded, abs=0.1)
