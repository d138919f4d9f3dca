"""What every test runs under: the quick scale, no progress bars, no window, no user's data."""

import contextlib
import os
import sys
from unittest.mock import patch

import matplotlib
import pytest
import torch
import torch._dynamo  # noqa: F401  it inspects torch when imported: before a test replaces a part

# In the environment, because the kernels of the chapters inherit it.
os.environ["CGMVAE_PRESET"] = "quick"
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # no choice by how busy it is
os.environ.pop("MPLBACKEND", None)  # with it set, a kernel draws no figures
matplotlib.use("Agg")


@pytest.fixture(scope="session", autouse=True)
def own_data_folder(tmp_path_factory):
    """An empty data folder: a test must not pass or fail by what this machine has downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CGMVAE_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def no_work(monkeypatch):
    """Fail if images are loaded or a trainer made: not for bad input, not for a run that is done."""
    from cgmvae import data

    def forbidden(*_, **__):
        pytest.fail("work started where none was due")
    monkeypatch.setattr(data, "load", forbidden)
    monkeypatch.setattr(sys.modules["cgmvae.run"], "Trainer", forbidden)


@pytest.fixture(autouse=True)
def registries_as_they_are():
    """What a test registers goes with it, and so does what a chapter's solution that it executes does."""
    from cgmvae import annealing, binarisation, datasets, estimators, model, networks, own_images, views

    with contextlib.ExitStack() as stack:
        for registry in (annealing.SCHEDULES, estimators.ESTIMATORS, model.LIKELIHOODS,
                         binarisation.BINARISATIONS, networks.INITIALISATIONS,
                         datasets.DATASETS, own_images._registered, views.VIEWS):
            stack.enter_context(patch.dict(registry))
        yield
