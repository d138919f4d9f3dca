"""The data: what is read is what was meant, in any order; what is damaged is refused."""

import dataclasses
import io
import os
import pickle
import shutil
import urllib.request
import zipfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from cgmvae import data, datasets, files
from cgmvae.datasets import DATASETS, known, sample_of
from cgmvae.experiment import Experiment, ExperimentError

TRAIN, TEST = 60, 30
FULL = tuple(name for name, facts in DATASETS.items() if facts.source)


def fake(name, seed=0):
    """Arrays of a small random data set, with the keys of a full one."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        shape = (count, *DATASETS[name].images)
        arrays[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        classes = len(DATASETS[name].class_names) or 100
        arrays[f"{part}_labels"] = rng.integers(0, classes, count, dtype=np.uint8)
    return files._with_superclasses(name, arrays)


def digest(name, arrays):
    kinds = [k for k in ("images", "labels", "superclasses") if f"train_{k}" in arrays]
    hashes = [h for part in ("train", "test")
              for h in files.image_hashes(part, *(arrays[f"{part}_{k}"] for k in kinds))]
    if "class_names" in arrays:
        return files.digest_of(hashes, (*arrays["class_names"], *arrays["superclass_names"]))
    return files.digest_of(hashes, DATASETS[name].class_names)


@pytest.fixture(params=FULL)
def cached(request, tmp_path, monkeypatch):
    """A small data set that passes for the full one: its name, arrays and file."""
    name = request.param
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path))
    arrays = fake(name)
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(
        DATASETS[name], train=TRAIN, test=TEST, digest=digest(name, arrays)))
    path = tmp_path / f"{name}.npz"
    np.savez(path, **arrays)
    return name, arrays, path


@pytest.fixture
def no_network(monkeypatch):
    calls = []

    def refuse(*args, **kwargs):
        calls.append(args)
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return calls


def refused(name, path, *words):
    """Loading must fail with one message that names the file and says how to mend it."""
    with pytest.raises(datasets.DataError) as caught:
        data.load(name)
    message = str(caught.value)
    for word in (str(path), "was not used", "cut short, altered or unreadable",
                 "Delete it and run again", *words):
        assert word in message, (word, message)
    assert "\n" not in message


# The facts


def test_each_sample_is_that_of_a_full_set():
    assert {name: sample_of(name) for name in FULL} == {
        "mnist": "mnist-sample", "cifar100": "cifar100-sample", "fashion-mnist": None}
    assert sample_of("mnist-sample") is None
    assert known("mnist-sample") and not known("mnist-samples")


def test_a_digest_that_is_not_known_is_not_checked_but_recorded(tmp_path, monkeypatch):
    """Fashion-MNIST: in MNIST's format, with names for its labels, its own digest in the record."""
    facts = DATASETS["fashion-mnist"]
    assert facts.digest is None and facts.class_names[9] == "Ankle boot"
    assert (facts.images, facts.train, facts.test, facts.K) == ((1, 28, 28), 60_000, 10_000, 10)
    e = Experiment(dataset="fashion-mnist")
    assert (e.K, e.likelihood, e.binarisation) == (10, "cross_entropy", "none")
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path))
    monkeypatch.setitem(DATASETS, "fashion-mnist", dataclasses.replace(facts, train=TRAIN, test=TEST))
    for seed in (0, 1):
        arrays = fake("fashion-mnist", seed)
        np.savez(tmp_path / "fashion-mnist.npz", **arrays)
        images = data.load("fashion-mnist")
        assert images.digest == digest("fashion-mnist", arrays)
        assert images.group_names == facts.class_names
    np.savez(tmp_path / "fashion-mnist.npz", **{**arrays, "test_labels": arrays["test_labels"][1:]})
    refused("fashion-mnist", tmp_path / "fashion-mnist.npz", "test_labels")


# The cache folder


def test_the_cache_folder_is_the_chosen_one_else_the_platforms(tmp_path, monkeypatch):
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path))
    assert datasets.cache_folder() == tmp_path
    monkeypatch.setenv("CGMVAE_DATA", "~/images")
    assert datasets.cache_folder() == type(tmp_path).home() / "images"
    for unset in (lambda: monkeypatch.setenv("CGMVAE_DATA", ""),
                  lambda: monkeypatch.delenv("CGMVAE_DATA")):
        unset()
        assert "cgmvae" in str(datasets.cache_folder())


def test_an_unknown_name_is_refused_before_any_work(no_network):
    with pytest.raises(ExperimentError, match="dataset.*'mnist-sample'.*'minst'"):
        data.load("minst")
    assert not no_network


# A good file


def test_a_good_file_is_read_whole(cached):
    name, arrays, _ = cached
    images = data.load(name)
    assert images.name == name and images.digest == DATASETS[name].digest
    for part, count in (("train", TRAIN), ("test", TEST)):
        pixels, labels = getattr(images, f"{part}_images"), getattr(images, f"{part}_labels")
        assert pixels.dtype == torch.uint8 and pixels.shape == (count, *DATASETS[name].images)
        assert labels.dtype == torch.int64
        found = {(p.numpy().tobytes(), int(y)) for p, y in zip(pixels, labels)}
        assert found == {(p.tobytes(), int(y)) for p, y in
                         zip(arrays[f"{part}_images"], arrays[f"{part}_labels"])}
    if DATASETS[name].superclasses is None:
        assert images.train_superclasses is None and images.test_superclasses is None
        assert images.class_names == images.group_names == DATASETS[name].class_names
        assert len(images.class_names) == 10
        assert images.superclass_names == ()
        assert images.train_groups is images.train_labels
        assert images.test_groups is images.test_labels
    else:
        assert images.train_superclasses.dtype == torch.int64
        assert images.train_groups is images.train_superclasses
        assert images.test_groups is images.test_superclasses
        assert len(images.class_names) == 100
        assert images.group_names == images.superclass_names and len(images.group_names) == 20


def test_the_order_in_the_file_does_not_matter(cached):
    name, arrays, path = cached
    first = data.load(name)
    rng = np.random.default_rng(1)
    for part, count in (("train", TRAIN), ("test", TEST)):
        order = rng.permutation(count)
        for key in arrays:
            if key.startswith(part):
                arrays[key] = arrays[key][order]
    np.savez_compressed(path, **arrays)
    again = data.load(name)
    assert again.digest == first.digest
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(first, key), getattr(again, key)), key
    assert torch.equal(first.train_groups, again.train_groups)
    assert torch.equal(first.test_groups, again.test_groups)


# A bad file


def test_a_file_cut_short_is_refused(cached):
    name, _, path = cached
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(name, path)


@pytest.mark.parametrize("where", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_flipped_bit_is_detected(cached, where):
    name, _, path = cached
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * where)] ^= 1
    path.write_bytes(raw)
    refused(name, path)


@pytest.mark.parametrize("key", ["train_images", "test_images", "train_labels", "test_labels",
                                 "train_superclasses", "class_names"])
def test_an_altered_array_in_a_sound_file_is_detected(cached, key):
    name, arrays, path = cached
    if key not in arrays:
        pytest.skip("only CIFAR-100 has superclasses")
    if key == "class_names":
        arrays[key][0] = "pear"
    else:
        arrays[key].flat[-1] ^= 1
    np.savez(path, **arrays)
    refused(name, path, "digest")


def test_images_moved_between_the_splits_are_detected(cached):
    name, arrays, path = cached
    for key in [k for k in arrays if k.startswith("train_")]:
        test = key.replace("train", "test")
        arrays[key][0], arrays[test][0] = arrays[test][0].copy(), arrays[key][0].copy()
    np.savez(path, **arrays)
    refused(name, path, "digest")


def test_a_missing_key_is_named(cached):
    name, arrays, path = cached
    for key in arrays:
        np.savez(path, **{k: v for k, v in arrays.items() if k != key})
        refused(name, path, "lacks", key)


def test_a_wrong_shape_or_type_is_named(cached):
    name, arrays, path = cached
    for key, wrong in (("train_images", arrays["train_images"][:-1]),
                       ("test_images", arrays["test_images"].transpose(0, 2, 3, 1)),
                       ("test_labels", arrays["test_labels"][:, None]),
                       ("train_labels", arrays["train_labels"].astype(np.int64))):
        np.savez(path, **{**arrays, key: wrong})
        refused(name, path, key, "uint8")


def test_what_is_not_an_npz_is_refused_and_never_unpickled(cached, tmp_path):
    name, _, path = cached
    mark = tmp_path / "unpickled"

    class Bomb:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    array = io.BytesIO()
    np.save(array, np.zeros(3))
    objects = io.BytesIO()
    np.savez(objects, train_images=np.array([Bomb()], dtype=object))
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    for raw in (b"<html>not found</html>", pickle.dumps(Bomb()), array.getvalue(),
                objects.getvalue(), text.getvalue()):
        path.write_bytes(raw)
        refused(name, path)
    path.unlink()
    path.mkdir()
    refused(name, path)
    assert not mark.exists()


# The download


class FakeTorchvision:
    """Stands for torchvision's MNIST and CIFAR100: the same attributes, and files in its folder."""

    arrays: dict
    downloads = 0

    def __init__(self, root, train, download):
        assert download
        type(self).downloads += 1
        with open(os.path.join(root, "raw"), "w") as file:
            file.write("what was downloaded")
        part = "train" if train else "test"
        images, labels = self.arrays[f"{part}_images"], self.arrays[f"{part}_labels"]
        if images.shape[1] == 1:
            self.data, self.targets = torch.tensor(images[:, 0]), torch.tensor(labels).long()
        else:
            self.data, self.targets = images.transpose(0, 2, 3, 1), labels.tolist()


@pytest.fixture
def torchvision_has(cached, monkeypatch):
    name, arrays, path = cached
    path.unlink()
    source = type("Source", (FakeTorchvision,), {"arrays": arrays, "downloads": 0})
    monkeypatch.setattr(torchvision.datasets, DATASETS[name].source, source)
    return name, arrays, path, source


def test_a_missing_file_is_made_once_from_torchvisions_download(torchvision_has):
    name, arrays, path, source = torchvision_has
    first = data.load(name)
    assert source.downloads == 2  # train and test
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing else is left
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == set(arrays)
        for key in arrays:
            assert file[key].dtype == arrays[key].dtype
            np.testing.assert_array_equal(file[key], arrays[key], err_msg=key)
    again = data.load(name)
    assert source.downloads == 2
    assert torch.equal(first.train_images, again.train_images)


def test_a_folder_that_does_not_exist_is_made(torchvision_has, monkeypatch):
    name, _, path, _ = torchvision_has
    monkeypatch.setenv("CGMVAE_DATA", str(path.parent / "a" / "b"))
    data.load(name)
    assert (path.parent / "a" / "b" / path.name).exists()


def test_a_full_disk_leaves_no_file(torchvision_has, monkeypatch):
    name, _, path, _ = torchvision_has

    def full(file, **arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(datasets.DataError, match="No space left on device"):
        data.load(name)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", FULL)
def test_without_a_network_the_way_out_is_said(name, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path))
    with pytest.raises(datasets.DataError) as caught:
        data.load(name)
    message = str(caught.value)
    for word in (f"download of '{name}' failed", "no network", str(tmp_path / f"{name}.npz")):
        assert word in message
    assert ("is embedded in the package" in message) == (sample_of(name) is not None)
    assert f"{sample_of(name)!r}" in message or sample_of(name) is None
    assert "\n" not in message
    assert no_network and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FULL)
def test_a_folder_that_cannot_be_written_is_refused_before_the_download(
        name, tmp_path, monkeypatch, no_network):
    (tmp_path / "file").write_text("in the way")  # holds for root too, unlike permissions
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("CGMVAE_DATA", str(folder))
        with pytest.raises(datasets.DataError, match="cannot be written to.*CGMVAE_DATA") as caught:
            data.load(name)
        assert str(folder) in str(caught.value)
    assert no_network == []


def test_a_file_that_may_not_be_read_is_not_to_be_deleted(cached, monkeypatch):
    name, _, path = cached

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(np, "load", closed)
    with pytest.raises(datasets.DataError, match=f"{path} could not be read: .*The file may be good") as caught:
        data.load(name)
    assert "Delete" not in str(caught.value)


# The samples


@pytest.mark.parametrize("name, train, test", [("mnist-sample", 400, 100),
                                               ("cifar100-sample", 20, 5)])
def test_the_samples_are_balanced_real_and_need_nothing(name, train, test, monkeypatch, no_network):
    monkeypatch.setenv("CGMVAE_DATA", "/dev/null/none")
    images = data.load(name)
    classes = len(images.class_names)
    assert torch.bincount(images.train_labels).tolist() == [train] * classes
    assert torch.bincount(images.test_labels).tolist() == [test] * classes
    assert images.train_images.shape == (DATASETS[name].train, *DATASETS[name].images)
    assert images.test_images.shape == (DATASETS[name].test, *DATASETS[name].images)
    assert images.digest == DATASETS[name].digest
    mean = {"mnist-sample": 33.3184, "cifar100-sample": 121.9363}[name]  # of the full data set
    assert abs(images.train_images.double().mean() - mean) < 3
    every = torch.cat([images.train_images, images.test_images]).numpy()
    assert len({image.tobytes() for image in every}) == len(every)  # none twice
    assert no_network == []


def test_digits_are_upright_and_their_labels_right():
    # A one has most of its ink in the middle columns; a zero has a hole there.
    images = data.load("mnist-sample")
    mean = {k: images.train_images[images.train_labels == k].float().mean(0)[0] for k in (0, 1)}
    assert mean[1][10:18, 13:15].mean() > 150 > 60 > mean[0][12:16, 13:15].mean()
    seven = images.train_images[images.train_labels == 7].float().mean(0)[0]
    assert seven[6:10].mean() > seven[18:22].mean()  # its bar is at the top


def test_the_samples_are_small_and_their_terms_stated():
    assert sum(f.stat().st_size for f in files.SAMPLES.iterdir()) <= 6_000_000
    text = (files.SAMPLES / "README.md").read_text(encoding="utf-8")
    for word in ("LeCun", "CC BY-SA 3.0", "Krizhevsky", "no explicit licence", "make_samples.py"):
        assert word in text


@pytest.mark.parametrize("name", ["cifar100-sample-test.webp", "cifar100-sample.npz",
                                  "cifar100.json"])
def test_a_damaged_sample_says_to_reinstall(name, tmp_path, monkeypatch):
    copy = tmp_path / "samples"
    shutil.copytree(files.SAMPLES, copy)
    monkeypatch.setattr(files, "SAMPLES", copy)
    data.load("cifar100-sample")
    (copy / name).write_bytes((copy / name).read_bytes()[:-40])
    with pytest.raises(datasets.DataError, match="was not used.*Reinstall"):
        data.load("cifar100-sample")


def test_each_superclass_has_its_five_fine_classes():
    images = data.load("cifar100-sample")
    assert list(images.class_names) == sorted(set(images.class_names))
    assert list(images.superclass_names) == sorted(set(images.superclass_names))
    above = dict(zip(images.train_labels.tolist(), images.train_superclasses.tolist()))
    assert len(above) == 100 and [*above.values()].count(0) == 5
    named = {images.class_names[y]: images.superclass_names[s] for y, s in above.items()}
    assert named["maple_tree"] == "trees" and named["whale"] == "aquatic_mammals"
    assert named["tank"] == "vehicles_2" and named["apple"] == "fruit_and_vegetables"
    tests = zip(images.test_labels.tolist(), images.test_superclasses.tolist())
    assert all(above[y] == s for y, s in tests)


# The split


def small(**choices):
    return Experiment(**{"dataset": "mnist-sample", "batch_size": 16, **choices})


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist-sample")


def numbered(images):
    """The same images, the first pixels holding each image's number, so that it can be told."""
    marked = images.train_images.clone()
    number = torch.arange(len(marked))
    marked[:, 0, 0, 0], marked[:, 0, 0, 1] = (number // 256).byte(), (number % 256).byte()
    return dataclasses.replace(images, train_images=marked)


def numbers(pixels):
    return (pixels.values[:, 0, 0, 0].int() * 256 + pixels.values[:, 0, 1, 0].int()).tolist()


def test_the_split_is_disjoint_complete_and_fixed_by_the_seed(digits):
    images = numbered(digits)
    parts = data.split(small(seed=3), images, "cpu")
    train, held_out = numbers(parts.train), numbers(parts.validation)
    assert len(held_out) == 400 and len(train) == 3600
    assert sorted(train + held_out) == list(range(4000))
    again = data.split(small(seed=3, K=7), images, "cpu")
    assert numbers(again.train) == train and numbers(again.validation) == held_out
    other = numbers(data.split(small(seed=4), images, "cpu").validation)
    assert other != held_out and len(set(other) & set(held_out)) < 100
    torch.manual_seed(0)  # the global generator has no part in it
    torch.rand(5)
    assert numbers(data.split(small(seed=3), images, "cpu").train) == train


def test_the_split_keeps_to_the_limits(digits):
    images = numbered(digits)
    choices = small(train_limit=101, validation_fraction=0.3)
    parts = data.split(choices, images, "cpu")
    assert len(parts.train) == choices.train_size
    assert len(parts.validation) == choices.validation_size
    assert len(parts.train) + len(parts.validation) == 101 and len(parts.validation) == 30
    used = set(numbers(parts.train) + numbers(parts.validation))
    assert len(used) == 101 and max(used) > 1000  # drawn from all of the images
    assert len(parts.test) == 1000


def test_the_split_brings_the_test_labels(digits):
    parts = data.split(small(), digits, "cpu")
    assert torch.equal(parts.test.values[..., 0], digits.test_images[:, 0])
    assert torch.equal(parts.test_groups, digits.test_labels)
    images = data.load("cifar100-sample")
    parts = data.split(small(dataset="cifar100-sample"), images, "cpu")
    assert torch.equal(parts.test_groups, images.test_superclasses)
    assert torch.equal(parts.test_labels, images.test_labels)


def test_images_of_another_data_set_are_refused(digits):
    with pytest.raises(ExperimentError, match="images.*'cifar100-sample'.*'mnist-sample'"):
        data.split(small(dataset="cifar100-sample"), digits, "cpu")


# Binarisation and batches


def grey_choices(binarisation, **choices):
    likelihood = "cross_entropy" if binarisation == "none" else "bernoulli"
    return small(binarisation=binarisation, likelihood=likelihood, **choices)


@pytest.mark.parametrize("name", ["mnist-sample", "cifar100-sample"])
@pytest.mark.parametrize("binarisation", ["threshold", "static", "dynamic", "none"])
def test_batches_are_float32_channels_last(name, binarisation):
    images = data.load(name)
    parts = data.split(grey_choices(binarisation, dataset=name), images, "cpu")
    C, H, W = DATASETS[name].images
    for pixels in (parts.train, parts.validation, parts.test):
        assert pixels.values.dtype == torch.uint8 and pixels.values.is_contiguous()
        assert pixels.values.shape == (len(pixels), H, W, C)
        for index in (torch.tensor([5, 3, 3, 0, 9, 11, 2, 7]), slice(4, 12)):
            x = pixels.batch(index)
            assert x.shape == (8, C, H, W) and x.dtype == torch.float32
            assert x.stride() == (C * H * W, 1, W * C, C)
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert 0 <= x.min() and x.max() == 1
            assert binarisation == "none" or set(x.unique().tolist()) == {0.0, 1.0}


def test_an_index_and_a_slice_give_the_same_images(digits):
    pixels = data.split(grey_choices("none"), digits, "cpu").test
    assert torch.equal(pixels.batch(slice(10, 20)), pixels.batch(torch.arange(10, 20)))
    assert len(pixels.batch(slice(990, 1010))) == 10


def test_grey_values_are_the_images_over_255(digits):
    pixels = data.split(grey_choices("none"), digits, "cpu").test
    index = torch.tensor([7, 0, 999])
    assert torch.equal(pixels.batch(index), digits.test_images[index].float() / 255)


def test_colours_stay_in_their_channels():
    images = data.load("cifar100-sample")
    pixels = data.split(small(dataset="cifar100-sample"), images, "cpu").test
    assert torch.equal(pixels.batch(slice(0, 50)), images.test_images[:50].float() / 255)


def test_threshold_is_at_one_half(digits):
    every = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    x = data.Pixels(every, "threshold").batch(slice(None)).flatten()
    assert torch.equal(x, (every.flatten().float() / 255 >= 0.5).float())
    assert x.sum() == 128 and x[127] == 0 and x[128] == 1
    parts = data.split(small(), digits, "cpu")
    expected = (digits.test_images / 255 >= 0.5).float()
    assert torch.equal(parts.test.batch(slice(None)), expected)


def draws(parts):
    rows = torch.cat([parts.train.values, parts.validation.values]).flatten(1)
    return sorted(row.tobytes() for row in rows.numpy())


def test_static_is_one_draw_whatever_the_seed(digits):
    one, two = (data.split(grey_choices("static", seed=s), digits, "cpu") for s in (0, 1))
    assert torch.equal(one.test.values, two.test.values)
    assert draws(one) == draws(two)  # each image has its one draw; the seed only orders them
    assert torch.equal(one.train.batch(slice(0, 9)), one.train.batch(slice(0, 9)))
    limited = data.split(grey_choices("static", train_limit=100), digits, "cpu")
    assert set(draws(limited)) < set(draws(one))
    threshold = data.split(small(), digits, "cpu").test.batch(slice(None))
    assert not torch.equal(one.test.batch(slice(None)), threshold)


def test_a_static_pixel_is_white_with_the_probability_of_its_grey(digits):
    values = torch.tensor([0, 51, 128, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    flat = values.expand(20_000, 1, 1, 4).contiguous()
    images = dataclasses.replace(digits, train_images=flat, test_images=flat)
    drawn = data.static_draw(images)
    assert not torch.equal(drawn.train_images, drawn.test_images)
    for part in (drawn.train_images, drawn.test_images):
        assert set(part.unique().tolist()) == {0, 255}
        share = (part / 255).mean(0).flatten()
        assert share[0] == 0 and share[3] == 1
        assert torch.allclose(share, values.flatten() / 255, atol=0.015)  # 4 standard errors


def test_dynamic_is_drawn_anew_with_the_probability_of_its_grey():
    values = torch.tensor([0, 51, 128, 255], dtype=torch.uint8).expand(20_000, 1, 4).unsqueeze(-1)
    pixels = data.Pixels(values.contiguous(), "dynamic")
    first, second = pixels.batch(slice(None)), pixels.batch(slice(None))
    assert not torch.equal(first, second)
    share = first.mean((0, 1, 2))
    assert share[0] == 0 and share[3] == 1
    assert torch.allclose(share, torch.tensor([0, 51, 128, 255]) / 255, atol=0.015)
    again = [pixels.batch(slice(None), torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)


def test_dynamic_leaves_validation_and_test_at_the_static_draw(digits):
    dynamic = data.split(grey_choices("dynamic"), digits, "cpu")
    static = data.split(grey_choices("static"), digits, "cpu")
    grey = data.split(grey_choices("none"), digits, "cpu")
    assert dynamic.train.binarisation == "dynamic"
    assert torch.equal(dynamic.train.values, grey.train.values)
    for name in ("validation", "test"):
        kept, expected = getattr(dynamic, name), getattr(static, name)
        assert torch.equal(kept.values, expected.values)
        assert torch.equal(kept.batch(slice(0, 50)), kept.batch(slice(0, 50)))


def test_another_default_type_does_not_leak_in(digits):
    pixels = data.split(grey_choices("none"), digits, "cpu").test
    torch.set_default_dtype(torch.float64)
    try:
        for mode in ("none", "threshold", "dynamic"):
            assert data.Pixels(pixels.values, mode).batch(slice(0, 2)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("binarisation", ["threshold", "static", "dynamic", "none"])
def test_a_cuda_graph_holds_a_batch_and_the_device_changes_no_split(digits, binarisation):
    choices = grey_choices(binarisation)
    parts, on_cpu = data.split(choices, digits, "cuda"), data.split(choices, digits, "cpu")
    assert torch.equal(parts.train.values.cpu(), on_cpu.train.values)
    assert torch.equal(parts.validation.values.cpu(), on_cpu.validation.values)
    index = torch.arange(16, device="cuda")
    parts.train.batch(index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = parts.train.batch(index)
    index.copy_(torch.arange(100, 116))
    graph.replay()
    first = x.clone()
    graph.replay()
    if binarisation == "dynamic":
        assert not torch.equal(first, x)
    else:
        assert torch.allclose(x.cpu(), on_cpu.train.batch(torch.arange(100, 116)), atol=1e-6)
