"""A reader's own images: what is taken from a folder or an .npz, what is left out, and who is told."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

import cgmvae
from cgmvae import data, datasets, evaluation, own_images, pictures, records
from cgmvae.__main__ import main
from cgmvae.datasets import DATASETS, DataError, known
from cgmvae.experiment import Experiment, ExperimentError, preset
from cgmvae.notebook import settings
from cgmvae.own_images import find_dataset, read_images, register_images

SCHEMA = records.schema()
SHORT = {"epochs": 2, "batch_size": 32, "iw_samples": 2, "z_dim": 8, "K": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of its own; afterwards DATASETS and what was read are as before."""
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(own_images, "_registered", {})
    before = dict(DATASETS)
    yield tmp_path / "cache"
    DATASETS.clear()
    DATASETS.update(before)


def pixels(k, shape=(20, 20, 3)):
    return np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8)


def fill(folder, count=110, shape=(20, 20, 3), start=0):
    """So many different images as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(start, start + count):
        Image.fromarray(pixels(k, shape)).save(folder / f"{k}.png")
    return folder


def forget():
    """As a new process: only the cache folder remains."""
    for name in [name for name in DATASETS if name.startswith("images-")]:
        del DATASETS[name]
    own_images._registered.clear()


# A folder becomes a data set


def test_a_folder_is_a_data_set_like_another(tmp_path, own_cache, capsys):
    folder = fill(tmp_path / "My Photos é 📷")
    e = Experiment(dataset=folder, **SHORT)
    name = e.dataset
    facts = DATASETS[name]
    assert name == f"images-my-photos-e-{facts.digest[:8]}" and e.id.startswith(f"{name}-concrete-K3-s0-")
    assert facts.images == (3, 32, 32) and facts.train + facts.test == 110 and not facts.labelled
    assert (e.likelihood, e.binarisation) == ("cross_entropy", "none")
    assert f"{name}: {facts.train} training" in capsys.readouterr().err
    images = data.load(name)
    assert images.digest == facts.digest and images.name == name
    assert images.train_images.shape == (facts.train, 3, 32, 32)
    assert images.train_labels is images.test_groups is images.test_labels is None
    assert images.group_names == ()
    assert [p.name for p in own_cache.iterdir()] == [f"{name}.npz"]
    assert Experiment(dataset=str(folder), **SHORT) == e  # not read again
    assert capsys.readouterr().err == ""


def test_a_later_process_knows_the_name_without_the_folder(tmp_path):
    folder = fill(tmp_path / "a")
    first = Experiment(dataset=folder, **SHORT)
    before = data.load(first.dataset)
    shutil.rmtree(folder)
    forget()
    again = Experiment(**first.as_dict())
    assert again == first and again.id == first.id
    assert torch.equal(data.load(first.dataset).train_images, before.train_images)
    code = f"import cgmvae; print(cgmvae.preset('quick', dataset={first.dataset!r}).image_shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(3, 32, 32)\n", done.stderr


def test_the_id_does_not_hang_on_the_path_the_order_or_the_files_names(tmp_path):
    first = Experiment(dataset=fill(tmp_path / "a" / "set"), **SHORT)
    other = tmp_path / "b" / "set"
    other.mkdir(parents=True)
    for k in range(110):
        sub = other / str(k % 2 and "x") if k % 2 else other
        sub.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "a" / "set" / f"{k}.png", sub / f"z{110 - k}.PNG")
    before = data.load(first.dataset)
    forget()
    second = Experiment(dataset=other, **SHORT)
    assert second.id == first.id
    assert torch.equal(data.load(second.dataset).test_images, before.test_images)


def test_an_image_stays_on_its_side_when_others_are_added(tmp_path):
    folder = fill(tmp_path / "a")

    def sides(found):
        return [{image.tobytes() for image in found.arrays[f"{part}_images"]} for part in ("train", "test")]
    train, test = sides(read_images(folder))
    assert len(train) > 60 and len(test) > 5 and not train & test
    more_train, more_test = sides(read_images(fill(folder, 200, start=110)))
    assert train < more_train and test < more_test
    assert len(more_test) == pytest.approx(310 / 5, abs=28)  # 4 standard deviations


def test_changed_images_are_another_data_set(tmp_path):
    folder = fill(tmp_path / "a")
    first = register_images(folder)
    assert register_images(folder) == first
    fill(folder, 1, start=500)
    second = register_images(folder)
    assert second != first and known(first) and known(second)


def test_images_behind_links_are_read_again_when_they_have_changed(tmp_path):
    """The links stay as they are."""
    fill(tmp_path / "elsewhere")
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "a" / path.name).symlink_to(path)
    (tmp_path / "a" / "broken.png").symlink_to(tmp_path / "nowhere")
    first = register_images(tmp_path / "a")
    Image.fromarray(pixels(999)).save(tmp_path / "elsewhere" / "0.png")
    assert register_images(tmp_path / "a") != first


@pytest.mark.parametrize("deleted", [True, False])
def test_a_cache_file_that_is_not_there_any_more_is_made_again_by_the_path(deleted, tmp_path, own_cache, monkeypatch):
    """In the process that had read it too: so says the message about a damaged one."""
    folder = fill(tmp_path / "a")
    name = register_images(folder)
    if deleted:
        (own_cache / f"{name}.npz").unlink()
    else:
        monkeypatch.setenv("CGMVAE_DATA", str(tmp_path / "another"))
    assert register_images(folder) == name and data.load(name).name == name


# What an image becomes


def grey(value, size=(20, 20)):
    return Image.new("L", size, value)


def only(found):
    """The values of the images of one colour, a set of (r, g, b) or of grey values."""
    rows = np.concatenate([found.arrays["train_images"], found.arrays["test_images"]])
    return {tuple(map(int, image[:, 9, 9])) for image in rows if (image == image[:, :1, :1]).all()}


def test_modes_are_converted(tmp_path):
    folder = fill(tmp_path / "a")
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.save(folder / "clear.png")
    Image.new("RGBA", (20, 20), (0, 0, 255, 128)).save(folder / "half.webp", lossless=True)
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(folder / "red.jpg", quality=100)
    Image.fromarray(np.full((20, 20), 60_000, np.uint16)).save(folder / "deep.png")
    Image.new("P", (20, 20), 0).save(folder / "palette.png")
    Image.new("1", (20, 20), 1).resize((21, 20)).save(folder / "bits.png")
    found = read_images(folder)
    assert found.left_out == []
    colours = only(found)
    assert (255, 255, 255) in colours and found.duplicates == 1  # clear on white, and the bits
    assert (round(60_000 / 257),) * 3 in colours and (0, 0, 0) in colours
    assert (127, 127, 255) in colours or (126, 126, 255) in colours
    assert [c for c in colours if c[0] > 200 and c[1] < 60 and c[2] < 60]  # the red, decoded


def test_a_palettes_transparent_colour_is_white_as_well(tmp_path):
    folder = fill(tmp_path / "a")
    Image.new("P", (20, 20), 0).save(folder / "palette.png", transparency=0)
    assert only(read_images(folder)) == {(255, 255, 255)}


def test_all_grey_is_one_channel_and_one_colour_makes_three(tmp_path):
    folder = fill(tmp_path / "a", shape=(20, 20))
    Image.merge("RGB", [grey(77)] * 3).save(folder / "grey in colour.png")
    found = read_images(folder)
    assert found.facts.images == (1, 28, 28) and (77,) in only(found)
    assert read_images(folder, channels=3).facts.images == (3, 32, 32)
    assert read_images(folder, side=48).facts.images == (1, 48, 48)
    Image.new("RGB", (20, 20), (200, 0, 0)).save(folder / "red.png")
    assert read_images(folder).facts.images == (3, 32, 32)
    one = read_images(folder, channels=1)
    assert one.facts.images == (1, 28, 28) and (60,) in only(one)  # 0.299 of 200
    assert read_images(folder, side=64, channels=1).facts.images == (1, 64, 64)


@pytest.mark.parametrize(("choice", "value"), [("side", 30), ("side", 12), ("side", 1000), ("channels", 4)])
def test_a_side_or_channels_that_cannot_be(choice, value, tmp_path):
    with pytest.raises(ExperimentError, match=f"{choice} must be .*; it is {value}"):
        read_images(tmp_path, **{choice: value})


def test_the_centred_square_is_cut_and_a_turned_camera_heeded(tmp_path):
    folder = fill(tmp_path / "a", shape=(40, 40))
    wide = np.zeros((40, 120), np.uint8)
    wide[:, 40:80] = 255
    Image.fromarray(wide).save(folder / "wide.png")  # only the white middle remains
    upper = np.zeros((40, 40), np.uint8)
    upper[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    Image.fromarray(upper).save(folder / "turned.jpg", exif=exif, quality=100)
    found = read_images(folder)
    rows = np.concatenate([found.arrays["train_images"], found.arrays["test_images"]])[:, 0]
    assert len([image for image in rows if image[:, 2:-2].min() == 255]) == 1
    halves = [image for image in rows if image[:13].max() < 20 and image[15:].min() > 235]
    assert len(halves) == 1 and not [i for i in rows if i[:13].min() > 235 and i[15:].max() < 20]


@pytest.mark.parametrize(("white", "most"), [(4095, 4095), (3000, 4095), (4096, 65_535), (60_000, 65_535)])
def test_twelve_bits_in_sixteen_are_not_nearly_black(white, most):
    deep = np.array([[0, white // 2], [white // 2, white]], np.uint16)
    image = Image.fromarray(deep)
    assert pictures.white([pictures.Source("", image.copy)]) == most
    plain = np.asarray(pictures.plain(image, most))
    assert plain.dtype == np.uint8
    assert plain.tolist() == np.round(deep * 255.0 / most).astype(int).tolist()


def test_images_of_16_bits_in_one_folder_have_one_white(tmp_path):
    """A dark one beside a bright one stays dark: 12 bits are no property of one image."""
    folder, rng = fill(tmp_path / "a"), np.random.default_rng(0)
    dark = rng.integers(0, 3000, (28, 28)).astype(np.uint16)
    Image.fromarray(dark).save(folder / "dark.png")

    def dark_one(found):
        part, row = found.rows["dark.png"]
        return found.arrays[f"{part}_images"][row, 0]
    assert dark_one(read_images(folder)).max() > 150
    Image.fromarray(dark * 20).save(folder / "bright.png")
    assert dark_one(read_images(folder)).max() <= 12


def test_a_large_image_of_16_bits_takes_little_memory(tmp_path):
    Image.fromarray(np.full((2000, 3000), 60_000, np.uint16)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        tracemalloc.start()
        pictures.plain(image, 65_535)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 8 * 6_000_000  # bytes a pixel; as floats it were 24


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    fill(tmp_path / "all" / "Train"), fill(tmp_path / "all" / "test", start=200)
    with pytest.raises(DataError, match="'Train', 'test', which are parts"):
        read_images(tmp_path / "all")


def test_few_files_are_read_at_the_same_time(tmp_path, monkeypatch):
    """Each is in the memory whole: one for each core would be too many large ones."""
    lock, now, seen = threading.Lock(), [0], []

    def slow(source, **choices):
        with lock:
            now[0] += 1
            seen.append(now[0])
        time.sleep(0.002)
        with lock:
            now[0] -= 1
        return pictures.scaled(source, **choices)
    monkeypatch.setattr(own_images, "scaled", slow)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    read_images(fill(tmp_path / "a"))
    assert len(seen) == 110 and 1 < max(seen) <= 4


def test_a_large_jpeg_keeps_its_picture(tmp_path):
    folder = fill(tmp_path / "a")
    quarter = np.zeros((1600, 1600, 3), np.uint8)
    quarter[:800, 800:] = (250, 250, 10)
    Image.fromarray(quarter).save(folder / "large.jpg", quality=95)
    found = read_images(folder)
    rows = np.concatenate([found.arrays["train_images"], found.arrays["test_images"]]).astype(int)
    expected = np.zeros((3, 32, 32), int)
    expected[:, :16, 16:] = np.array([250, 250, 10])[:, None, None]
    assert min(abs(image - expected).mean() for image in rows) < 6


# What is left out, and counted


def test_what_cannot_be_used_is_named_and_counted(tmp_path, capsys):
    folder = fill(tmp_path / "a")
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (5, 300)).save(folder / "thin.png")
    Image.new("L", (30, 30)).save(folder / "other.png", format="GIF")
    (folder / "gone\n.png").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jpg")
    shutil.copy(folder / "1.png", folder / "once more.png")
    Image.open(folder / "2.png").save(folder / "again.webp", lossless=True)
    for other in ("notes.txt", "a.HEIC", "b.heic", "LICENCE"):
        (folder / other).write_text("not read")
    (folder / ".hidden.png").write_text("not seen")
    (folder / ".thumbnails").mkdir()
    Image.new("L", (30, 30)).save(folder / ".thumbnails" / "a.png")
    found = read_images(folder)
    assert found.facts.train + found.facts.test == 110
    assert found.duplicates == 2
    assert sorted(line.split("'")[1] for line in found.left_out) == [
        "cut.png", "empty.png", "gone\\n.png", "other.png", "pipe.jpg", "text.jpg", "thin.png"]
    assert "'thin.png' (5 x 300 pixels: too small)" in found.left_out
    assert main(["data", str(folder)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[:2] == [
        f"{found.name}: {found.facts.train} training and {found.facts.test} test images",
        f"  digest: {found.facts.digest}"]
    assert lines[2:5] == ["  pixels: 32 x 32, colour", "  labels: none", "  duplicates, counted once: 2"]
    assert lines[5].startswith("  left out: 7: 'cut.png' (") and lines[5].endswith("; and 4 more")
    assert lines[6:] == ["  files of other kinds: 4 (2 .heic, 1 .txt, 1 no ending)"]


def test_the_most_frequent_endings_are_named(tmp_path):
    """A folder of .heic photographs is not taken for an empty one, whatever else is in it."""
    folder = fill(tmp_path / "a")
    for k in range(7):
        (folder / f"{k}.HEIC").touch()
    for ending in ("aae", "bin", "csv", "doc", "eml", "gif", "gif"):
        (folder / f"{len(list(folder.iterdir()))}.{ending}").touch()
    line = str(read_images(folder)).splitlines()[-1]
    assert line == "  files of other kinds: 14 (7 .heic, 2 .gif, 1 .aae, 1 .bin, 1 .csv, and 2 more)"


def test_too_few_images_say_what_was_found(tmp_path, own_cache):
    folder = fill(tmp_path / "a", 99)
    shutil.copy(folder / "1.png", folder / "once more.png")
    (folder / "broken.png").touch()
    (folder / "a.heic").touch()
    with pytest.raises(DataError) as error:
        Experiment(dataset=folder)
    message = str(error.value)
    for part in (str(folder), "100 different ones", "left out: 1: 'broken.png'", "duplicates: 1",
                 "files of other kinds: 1 (1 .heic)."):
        assert part in message, message
    assert "\n" not in message and not own_cache.exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="0 training and 0 test images"):
        Experiment(dataset=tmp_path / "none")


def test_links_are_followed_and_loops_are_not(tmp_path):
    folder = fill(tmp_path / "a")
    fill(tmp_path / "elsewhere", 10, start=200)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    found = read_images(folder)
    assert (found.facts.train + found.facts.test, found.duplicates, found.left_out) == (120, 0, [])


@pytest.mark.parametrize("link", ["out", ""])
def test_a_folder_that_is_left_out_is_so_behind_a_link(link, tmp_path):
    """Else the contact sheets of one call would be images of the next."""
    folder = fill(tmp_path / "a")
    fill(tmp_path / "results" / "out", 10, start=200)
    fill(tmp_path / "results" / "other", 10, start=300)
    (folder / "linked").symlink_to(tmp_path / "results" / link)
    expected = 110 if link else 120  # what lies beside it stays
    found = read_images(folder, without=tmp_path / "results" / "out")
    assert found.facts.train + found.facts.test == expected
    assert not [name for name in found.rows if "out" in name]


def test_the_folder_is_never_written_to(tmp_path, monkeypatch):
    folder = fill(tmp_path / "a")
    before = sorted(folder.rglob("*"))
    for cache in (folder, folder / "b"):
        monkeypatch.setenv("CGMVAE_DATA", str(cache))
        with pytest.raises(DataError, match="nothing is to be written. Set CGMVAE_DATA"):
            register_images(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match="cannot be written to .* Set CGMVAE_DATA"):
        register_images(fill(tmp_path / "a"))


# Classes, which only scores use


def test_subfolders_are_classes(tmp_path):
    for name, start in (("cats", 0), ("dogs", 60)):
        fill(tmp_path / "a" / name, 60, start=start)
    shutil.copy(tmp_path / "a" / "dogs" / "60.png", tmp_path / "a" / "cats" / "also a dog.png")
    found = read_images(tmp_path / "a")
    assert found.facts.class_names == ("cats", "dogs") and found.duplicates == 1
    assert "2 classes, for scores only" in str(found)
    images = data.load(register_images(tmp_path / "a"))
    assert torch.bincount(torch.cat([images.train_groups, images.test_groups])).tolist() == [61, 59]
    assert images.group_names == ("cats", "dogs")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "a").rglob("*.png"):
        shutil.copy(path, flat / f"{path.parent.name} {path.name}")
    plain = read_images(flat)  # the same split without the classes, and another digest
    assert not plain.facts.labelled and plain.facts.digest != found.facts.digest
    assert ({i.tobytes() for i in plain.arrays["test_images"]}
            == {i.tobytes() for i in found.arrays["test_images"]})
    fill(tmp_path / "a", 1, start=300)  # an image of no class: then there are none
    assert not read_images(tmp_path / "a").facts.labelled


def test_a_class_has_one_name_whatever_system_wrote_it():
    """macOS may write an accent as a letter of its own: the digest would be another."""
    assert pictures.text("cafe\u0301s") == pictures.text("caf\u00e9s") == "caf\u00e9s"


# An .npz


def test_an_npz_of_images(tmp_path):
    images = np.stack([pixels(k, (28, 28)) for k in range(120)])
    labels = np.arange(120) % 3
    np.savez(tmp_path / "shapes.npz", images=images, labels=labels)
    name = register_images(tmp_path / "shapes.npz")
    assert name.startswith("images-shapes-")
    loaded = data.load(name)
    assert loaded.class_names == ("0", "1", "2")
    known_labels = {image.tobytes(): int(y) for image, y in zip(images, labels)}
    for image, y in zip(loaded.train_images.numpy(), loaded.train_labels):
        assert known_labels[image.tobytes()] == int(y)  # 28 x 28 stays as it is
    np.savez(tmp_path / "shapes.npz", images=images)
    assert data.load(register_images(tmp_path / "shapes.npz")).train_labels is None


def test_an_npz_can_name_its_classes(tmp_path):
    images = np.stack([pixels(k, (28, 28)) for k in range(120)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(120) % 2, class_names=np.array(["owl", "ant"]))
    found = read_images(tmp_path / "a.npz")
    assert found.facts.class_names == ("ant", "owl")
    part, row = found.rows["images[3]"]
    assert found.arrays[f"{part}_labels"][row] == 0  # 3 % 2 is an ant


@pytest.mark.parametrize("last", [True, False])
def test_an_npz_with_its_own_split_keeps_it(last, tmp_path):
    images = np.stack([pixels(k, (32, 32, 3)) for k in range(130)])
    stored = images if last else images.transpose(0, 3, 1, 2)
    np.savez(tmp_path / "a.npz", train_images=stored[:100], test_images=stored[95:])
    found = read_images(tmp_path / "a.npz")
    assert (found.facts.train, found.facts.test, found.duplicates) == (95, 35, 5)  # none in both
    assert ({i.tobytes() for i in found.arrays["test_images"]}
            == {i.transpose(2, 0, 1).tobytes() for i in images[95:]})


@pytest.mark.parametrize(("arrays", "said"), [
    ({"train_images": np.zeros((9, 8, 8), np.uint8)}, "lacks .*test_images"),
    ({"pictures": np.zeros(3)}, "lacks .*train_images"),
    ({"images": np.zeros((9, 8, 8))}, "images are float64"),
    ({"images": np.zeros((9, 8, 8, 5), np.uint8)}, r"images are uint8 \(9, 8, 8, 5\)"),
    ({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.zeros(8)}, "shorter"),
    ({"images": np.array([{}], dtype=object)}, "pickled Python objects, which can run code")])
def test_an_npz_that_cannot_be_used_says_why(arrays, said, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"a.npz was not used, .*{said}") as error:
        register_images(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_npz(tmp_path):
    grey(3).save(tmp_path / "one.png")
    with pytest.raises(DataError, match="one.png was not used, as it is neither a folder nor an .npz"):
        Experiment(dataset=tmp_path / "one.png")


# Names and paths that there are not


@pytest.mark.parametrize(("value", "said"), [
    ("no/such/folder", "the path of a folder of images or of an .npz file that exists"),
    ("photos.npz", "the path of a folder of images or of an .npz file that exists"),
    ("images-photos-0123abcd", "own images that are in .*cache, or their path"),
    ("minst", "one of 'mnist', .*did you mean 'm.*or the path of your own images"),
    (7, "a name in text"), ("", "one of 'mnist'"), ("a\0b", "one of 'mnist'")])
def test_a_data_set_that_there_is_not(value, said, no_work):
    for ask in (find_dataset, lambda v: Experiment(dataset=v), lambda v: preset("quick", dataset=v)):
        with pytest.raises(ExperimentError, match=f"dataset must be {said}.*; it is ") as error:
            ask(value)
        assert repr(value) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "pixel", "facts"])
def test_a_damaged_cache_file_is_refused_and_mended_by_the_path(damage, tmp_path, own_cache):
    folder = fill(tmp_path / "a")
    name = register_images(folder)
    path = own_cache / f"{name}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "pixel":
        arrays["train_images"][0, 0, 0, 0] ^= 1
        np.savez(path, **arrays)
    else:
        np.savez(path, **arrays | {"facts": np.array(str(arrays["facts"]).replace(name[-8:], "0" * 8))})
    forget()
    with pytest.raises(DataError, match="was not used, .* Delete it and give the path of the images again"):
        data.load(name)
    forget()
    assert register_images(folder) == name and data.load(name).digest.startswith(name[-8:])


# Runs


def test_the_scales_of_own_images(tmp_path):
    name = register_images(fill(tmp_path / "a", 120))
    assert preset("quick", dataset=name).preset == "quick"
    assert preset("quick", dataset=name).dataset == name and preset("quick", dataset=name).train_limit is None
    small = preset("small", dataset=name, batch_size=32)
    assert (small.train_limit, small.epochs, small.preset) == (None, 20, "small")
    assert preset("paper", dataset=name, batch_size=8).preset == "paper"
    with pytest.raises(ExperimentError, match="batch_size must be at most the .* images"):
        Experiment(dataset=name)
    assert preset("quick", dataset="fashion-mnist").train_limit == 4000
    assert preset("quick", dataset="fashion-mnist").preset == "quick"


def test_a_notebook_takes_a_path(tmp_path):
    folder = fill(tmp_path / "a")
    chosen = settings({"preset": "quick", "dataset": str(folder), "K": "4"})
    e = chosen.experiment()
    assert (e.dataset, e.K, e.preset) == (register_images(folder), 4, "quick")
    assert f"`{e.dataset}`" in chosen._repr_markdown_()


@pytest.mark.parametrize("classes", [True, False])
def test_a_run_from_the_shell(classes, tmp_path, capsys, monkeypatch):
    """Scores where the folder has classes, and null where there is nothing to compare with."""
    folder = tmp_path / "my photos"
    for k, name in enumerate(("cats", "dogs") if classes else ("", "")):
        fill(folder / name, 60, start=60 * k)
    argv = ["train", "--preset", "quick", "--dataset", str(folder), "--results", str(tmp_path / "r")]
    argv += [f"--{name}={value}" for name, value in SHORT.items()]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    path, = (tmp_path / "r" / "runs").glob("*.json")
    record = records.read(path)
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    name = record["experiment"]["dataset"]
    assert out.startswith(f"{record['id']} (") and record["id"].startswith(f"{name}-") and name in err
    assert record["environment"]["data_digest"] == DATASETS[name].digest
    assert str(folder) not in path.read_text()
    scores = [record["metrics"][f"test_{score}"] for score in ("acc", "nmi", "ari")]
    assert scores.count(None) == (0 if classes else 3)
    assert out.count("none: no labels") == (0 if classes else 3)
    assert records.frame([record])["test_acc"].isna().item() is not classes
    assert records.table([record])["test_acc"].isna().item() is not classes
    assert main(["table", "--results", str(tmp_path / "r")]) == 0
    # Given again, by path or by name, the run is there already.
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("repeated"))
    assert main(argv) == 0
    assert main([name if a == str(folder) else a for a in argv]) == 0


def test_the_command_reads_a_side_and_refuses_one_for_a_named_set(tmp_path, capsys):
    folder = fill(tmp_path / "a")
    assert main(["data", str(folder), "--side", "16", "--channels", "1"]) == 0
    out = capsys.readouterr().out
    assert "pixels: 16 x 16, grey" in out
    name = out.split(":")[0]
    assert Experiment(dataset=name, **SHORT).image_shape == (1, 16, 16)
    assert main(["data", "mnist-sample", "--side", "16"]) == 2
    assert capsys.readouterr().err.startswith("cgmvae: side must be left out for 'mnist-sample'")
    assert main(["data", "no/folder"]) == 2


def test_datasets_imports_nothing_of_the_package_but_checks():
    source = Path(datasets.__file__).read_text()
    assert {line for line in source.splitlines() if "cgmvae." in line and "import" in line} <= {
        "from cgmvae.checks import refuse"}
