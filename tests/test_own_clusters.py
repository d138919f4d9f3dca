"""A folder to clusters that can be looked at: every file is told, nothing of the user's is touched."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score

from cgmvae import checkpoints, data, gallery, own_clusters, pictures
from cgmvae.__main__ import main
from cgmvae.checks import ExperimentError
from cgmvae.data import Pixels
from cgmvae.datasets import DATASETS
from cgmvae.evaluation import assign
from cgmvae.experiment import Experiment, filled_in
from cgmvae.own_clusters import cluster
from cgmvae.own_images import read_images
from cgmvae.records import Paths

CHOICES = {"K": 3, "epochs": 1, "progress_bar": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 coloured images with odd names, one of them twice, one broken, one tiny, and a text."""
    place = tmp_path_factory.mktemp("images") / "Größe & <b>"
    (place / "one").mkdir(parents=True)
    for k in range(120):
        pixels = np.random.default_rng(k).integers(0, 256, (40 + k % 7, 33, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / ("one" if k % 2 else "") / f'{k} "ä" <i>.png')
    shutil.copy(place / '0 "ä" <i>.png', os.fsencode(place) + b"/caf\xe9.png")
    (place / "broken.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (3, 3)).save(place / "tiny.png")
    (place / "notes.txt").write_text("mine")
    return place


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """The folder, clustered once: the clusters, and where they were written."""
    out = tmp_path_factory.mktemp("made") / "new" / "out"
    before = state(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CGMVAE_DATA", str(tmp_path_factory.mktemp("cache")))
        names = dict(DATASETS)
        clusters = cluster(folder, out, seeds=2, **CHOICES)
        yield clusters, out
        DATASETS.clear()
        DATASETS.update(names)
    assert state(folder) == before


def state(folder):
    return {os.fsencode(p): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in folder.rglob("*") if p.is_file()}


def rows(out):
    with open(out / "clusters.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_every_good_file_has_its_cluster_and_the_others_are_named(folder, made):
    clusters, out = made
    table = rows(out)
    good = {str(p.relative_to(folder)) for p in folder.rglob("*.png")} - {"broken.png", "tiny.png"}
    assert {r["file"] for r in table} == good and len(table) == 121
    assert all(r["cluster"] in "123" and 1 / 3 <= float(r["certainty"]) <= 1.0 for r in table)
    twins = [r for r in table if r["file"].startswith(('0 "', "caf"))]
    assert len(twins) == 2 and len({(r["cluster"], r["certainty"]) for r in twins}) == 1
    about = json.loads((out / "about.json").read_text())
    assert about["images"] == 120 and about["files"] == 121 and about["duplicates"] == 1
    assert [re.search(r"'(.*?)'", line)[1] for line in about["left_out"]] == ["broken.png", "tiny.png"]
    sizes = np.bincount(clusters.labels, minlength=3)
    assert list(sizes) == sorted(sizes, reverse=True)  # of distinct images, and all but one are


def test_a_files_cluster_is_that_of_its_own_pixels(folder, made):
    """One by one, from the file: no row of another image is taken."""
    clusters, out = made
    model, e = checkpoints.load_weights(Paths(out / "models", dataset_run(out)).weights)
    named = set()
    for i in range(0, 121, 5):
        with Image.open(folder / clusters.files[i]) as image:
            square = pictures.scaled(pictures.Source("", lambda image=image: image.copy()), None, 3)[1]
        q = assign(model, Pixels(torch.from_numpy(square.copy())[None], e.binarisation)).double()
        assert float(q.max()) == pytest.approx(clusters.certainty[i], abs=1e-4)
        named.add((int(q.argmax()), int(clusters.labels[i])))
    assert len({a for a, _ in named}) == len({b for _, b in named}) == len(named)  # only renamed


def dataset_run(out):
    """The experiment of the run that is shown."""
    about = json.loads((out / "about.json").read_text())
    record = json.loads((out / "models" / "runs" / f"{about['shown']}.json").read_text())
    return Experiment(**filled_in(record["experiment"]))


def test_the_best_of_the_runs_is_shown_and_their_agreement_told(made):
    _, out = made
    about = json.loads((out / "about.json").read_text())
    records = {i: json.loads((out / "models" / "runs" / f"{i}.json").read_text()) for i in about["ids"]}
    labels, known, certainties = [], {}, []
    for r in records.values():
        e = Experiment(**filled_in(r["experiment"]))
        model, _ = checkpoints.load_weights(Paths(out / "models", e).weights)
        images = data.load(e.dataset)
        values = torch.cat([images.train_images, images.test_images]).permute(0, 2, 3, 1).contiguous()
        q = assign(model, Pixels(values, e.binarisation)).double().numpy()
        labels.append(q.argmax(1))
        certainties.append(q.max(1).mean())
        known[r["id"]] = entropy(q.mean(0)) - entropy(q, axis=1).mean()
    assert len(known) == 2 and about["shown"] == max(known, key=known.get)
    assert about["information_nats"] == pytest.approx(max(known.values()), abs=1e-6)
    best = about["ids"].index(about["shown"])
    assert about["mean_certainty"] == pytest.approx(certainties[best], abs=1e-6)
    assert about["share_of_ln_K"] == pytest.approx(about["information_nats"] / np.log(3))
    again = []
    for k in range(3):
        own = set(np.flatnonzero(labels[best] == k))
        others = [set(np.flatnonzero(labels[1 - best] == j)) for j in range(3)]
        again.append((len(own), max(len(own & o) / len(own | o) for o in others) if own else 0))
    again = [share for _, share in sorted(again, key=lambda a: -a[0])]
    assert about["found_again"] == pytest.approx(again)
    assert about["agreement_of_seeds_ari"] == pytest.approx(adjusted_rand_score(*labels), abs=1e-9)
    assert np.array(about["pairs_ari"])[[0, 0, 1], [0, 1, 0]] == pytest.approx(
        [1, about["agreement_of_seeds_ari"], about["agreement_of_seeds_ari"]])


def test_the_defaults_are_those_of_the_images():
    for name, kind in (("mnist-sample", "digits"), ("cifar100-sample", "photos")):
        found = SimpleNamespace(name=name, facts=DATASETS[name])
        e = own_clusters.experiment_of(found, 3, None, None, 0)
        assert e.views == kind and e.epochs >= 10 and 0 <= e.epochs * e.steps_per_epoch - 3000 < e.steps_per_epoch


@pytest.mark.parametrize("train, batch, epochs", [
    (60_000, 128, 10), (1_500, 128, 300), (1_499, 32, 72), (50, 25, 3_000)])
def test_few_images_make_small_batches_and_many_are_each_seen_a_few_times(train, batch, epochs):
    DATASETS["some"] = dataclasses.replace(DATASETS["mnist-sample"], train=train, full="some")
    e = own_clusters.experiment_of(SimpleNamespace(name="some", facts=DATASETS["some"]), 3, None, None, 0)
    assert (e.batch_size, e.epochs) == (batch, epochs)


def told(label_of_each, **changes):
    """The summary of five images in six files, whose labels are these."""
    about = {"ids": ["a"], "images": 5, "files": 6, "K": 3, "information_nats": 0.5, "share_of_ln_K": 0.455,
             "labels": "in use", "mean_certainty": 0.7, "agreement_of_seeds_ari": None, **changes}
    return gallery.summary(SimpleNamespace(about=about, labels=np.array(label_of_each)))


def test_the_summary_counts_images_files_and_the_clusters_that_have_some():
    assert told([0, 0, 0, 0, 1, 1]).startswith(
        "5 different images of 6 files in 2 of 3 clusters, of 2 to 4 files. The labels know 0.50 nats")


@pytest.mark.parametrize("labels", ["in use", "uniform", "one for all"])
def test_the_summary_says_when_the_clusters_say_nothing(labels):
    assert ("say nothing of the images" in told([0, 1], labels=labels)) == (labels != "in use")


def test_the_summary_tells_how_far_the_runs_agree():
    assert "One run:" in told([0, 1]) and "agree by" not in told([0, 1])
    assert "Runs from 2 first weights agree by 0.25" in told([0, 1], ids=["a", "b"], agreement_of_seeds_ari=0.25)


def test_a_sheet_is_filled_row_by_row(tmp_path):
    gallery._sheet([Image.new("RGB", (96, 96), (9 * i,) * 3) for i in range(23)], tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (960, 288)
        seen = [sheet.getpixel((96 * (i % 10) + 48, 96 * (i // 10) + 48))[0] for i in range(23)]
    assert seen == pytest.approx([9 * i for i in range(23)], abs=5)


def test_the_least_sure_are_shown_and_each_sheet_has_its_own_images(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    for i, name in enumerate(names):
        Image.new("RGB", (96, 96), (4 * i,) * 3).save(tmp_path / name)
    about = {"ids": ["a"], "images": 60, "files": 60, "K": 2, "information_nats": 0.5, "share_of_ln_K": 0.7,
             "labels": "in use", "mean_certainty": 0.7, "agreement_of_seeds_ari": None, "found_again": None,
             "left_out": [], "other_kinds": {}}
    clusters = own_clusters.Clusters(names, (np.arange(60) >= 30).astype(int), np.linspace(0.4, 1, 60),
                                     np.zeros((1, 60), int), about)
    out = tmp_path / "out"
    out.mkdir()
    gallery.write(clusters, tmp_path, out, SimpleNamespace(white=65_535, rows={}, arrays={}))
    last = BeautifulSoup((out / "index.html").read_text(), "html.parser").find_all("details")[2]
    assert last.find("h2").get_text() == "The least sure"
    assert [image["alt"].split(":")[0] for image in last.find_all("img")] == names[:40]
    for k, surest in ((1, 29), (2, 59)):  # it stands in the corner of its sheet
        with Image.open(out / f"cluster-{k:02}.jpg") as sheet:
            assert abs(sheet.convert("L").getpixel((48, 48)) - 4 * surest) < 6


def test_the_page_needs_nothing_else_and_shows_names_as_text(made):
    clusters, out = made
    page = BeautifulSoup((out / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert page.find("h1").get_text() == "Clusters of Größe & <b>" and page.find("i") is None
    images = page.find_all("img")
    assert all(i["src"].startswith("data:image/jpeg;base64,") and i["alt"] for i in images)
    assert not page.find_all(["script", "link", "iframe"])
    told = [s.get_text() for s in page.find_all("summary")]
    again = clusters.about["found_again"]
    assert f"found again by {again[0]:.2f}" in told[0] and "found again" not in told[3]
    headings = [h.get_text() for h in page.find_all("h2")]
    assert headings == ["Cluster 1", "Cluster 2", "Cluster 3", "The least sure", "Left out"]
    assert told[-1] == "Left out 2 files, and 1 of other kinds"
    left_out = [item.get_text() for item in page.find_all("li")]
    assert left_out[:2] == clusters.about["left_out"] and "'tiny.png' (3 x 3 pixels: too small)" in left_out
    assert left_out[2:] == ["1 .txt: not a PNG, JPEG or WebP file"]
    first = page.find("details").find_all("img")
    sure = [float(i["alt"].rsplit(" ", 1)[1]) for i in first]
    assert sure == sorted(sure, reverse=True) and len(first) == min((clusters.labels == 0).sum(), 100)
    for k in np.unique(clusters.labels):
        with Image.open(out / f"cluster-{k + 1:02}.jpg") as sheet:
            assert sheet.width == 10 * gallery.SIDE


def test_interrupted_between_two_runs_it_goes_on_and_ends_the_same(folder, made, tmp_path, monkeypatch):
    calls, train = [], own_clusters.run

    def stopped(e, **choices):
        calls.append(e.seed)
        if e.seed == 1:
            raise KeyboardInterrupt
        return train(e, **choices)
    monkeypatch.setattr(own_clusters, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        cluster(folder, tmp_path / "out", seeds=2, **CHOICES)
    assert calls == [0, 1] and not (tmp_path / "out" / "index.html").exists()
    monkeypatch.setattr(own_clusters, "run", train)
    cluster(folder, tmp_path / "out", seeds=2, **CHOICES)
    assert (tmp_path / "out" / "clusters.csv").read_bytes() == (made[1] / "clusters.csv").read_bytes()


def test_called_again_it_trains_nothing(folder, made, no_work):
    clusters, out = made
    before = (out / "clusters.csv").read_bytes()
    (out / "clusters.csv").unlink()
    again = cluster(folder, out, seeds=2, **CHOICES)  # no_work: a training would fail
    assert (out / "clusters.csv").read_bytes() == before and again.about == clusters.about


@pytest.fixture
def again(folder, made, tmp_path):
    """A copy of the folder, of the same name, and one of what was written: a call finds its runs there."""
    place, out = tmp_path / folder.name, tmp_path / "out"
    shutil.copytree(folder, place)
    shutil.copytree(made[1], out)
    return place, out


def test_a_file_that_is_gone_before_the_page_is_written_is_shown_as_the_model_saw_it(
        again, folder, made, monkeypatch):
    place, out = again
    write, name = gallery.write, made[0].files[int(made[0].members(0)[0])]
    before = (out / "clusters.csv").read_bytes()

    def late(clusters, *rest):
        (place / name).unlink()
        write(clusters, *rest)
    monkeypatch.setattr(gallery, "write", late)
    clusters = cluster(place, out, seeds=2, **CHOICES)
    assert clusters.files == made[0].files and (out / "clusters.csv").read_bytes() == before
    pages = [BeautifulSoup((o / "index.html").read_text(encoding="utf-8"), "html.parser") for o in (out, made[1])]
    shown, usual = (page.find("img") for page in pages)
    assert shown["alt"] == usual["alt"] and name in shown["alt"]
    found = read_images(folder)
    part, row = found.rows[name]
    square = Image.fromarray(found.arrays[f"{part}_images"][row].transpose(1, 2, 0).copy()).resize((96, 96), 3)
    square.save(expected := io.BytesIO(), "JPEG", quality=80)
    assert base64.b64decode(shown["src"].split(",")[1]) == expected.getvalue() and shown["src"] != usual["src"]
    shutil.rmtree(place)  # a drive that was pulled out
    monkeypatch.undo()
    gallery.write(clusters, place, out, found)
    assert len(BeautifulSoup((out / "index.html").read_text(encoding="utf-8"), "html.parser").find_all("img")) > 121


def test_more_seeds_go_on_from_those_that_are_there(again, made, monkeypatch):
    place, out = again
    trained, train = [], own_clusters.run

    def counted(e, **choices):
        trained.extend([] if Paths(choices["results"], e).record.exists() else [e.seed])
        return train(e, **choices)
    monkeypatch.setattr(own_clusters, "run", counted)
    clusters = cluster(place, out, seeds=3, **CHOICES)
    assert trained == [2] and clusters.about["ids"][:2] == made[0].about["ids"] and clusters.runs.shape == (3, 121)
    pairs = np.array(clusters.about["pairs_ari"])
    assert pairs.shape == (3, 3) and pairs[0, 1] == pytest.approx(made[0].about["agreement_of_seeds_ari"])
    assert clusters.about["agreement_of_seeds_ari"] == pytest.approx(pairs[[0, 0, 1], [1, 2, 2]].mean())
    best = clusters.about["ids"].index(clusters.about["shown"])
    labels = np.delete(clusters.runs, clusters.files.index("caf\udce9.png"), 1)  # the copy
    mine = np.delete(clusters.labels, clusters.files.index("caf\udce9.png"))
    shares = [own_clusters.found_again(mine, labels[i], 3) for i in range(3) if i != best]
    assert clusters.about["found_again"] == pytest.approx(np.mean(shares, 0))  # over the other two
    assert {int(p.stem[-2:]) - 1 for p in out.glob("cluster-*.jpg")} == set(clusters.labels.tolist())
    with pytest.raises(ExperimentError, match="other images or other choices"):
        cluster(place, out, seeds=2, **CHOICES)  # the page would no longer be of all runs there


def test_the_page_is_named_after_the_folder_that_is_meant(again, monkeypatch, no_work):
    place, out = again
    monkeypatch.chdir(place)
    cluster(".", out, seeds=2, **CHOICES)
    page = BeautifulSoup((out / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert page.find("h1").get_text() == page.find("title").get_text() == "Clusters of Größe & <b>"


def test_a_link_to_what_was_written_brings_no_images(again, no_work):
    place, out = again
    (place / "results").symlink_to(out)
    assert cluster(place, out, seeds=2, **CHOICES).about["images"] == 120


def test_of_a_large_cluster_the_surest_and_the_least_sure_are_shown(folder, made, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "SHOWN", 10)
    monkeypatch.setattr(gallery, "LEAST", 3)
    gallery.write(made[0], folder, tmp_path, read_images(folder))
    first = BeautifulSoup((tmp_path / "index.html").read_text(encoding="utf-8"), "html.parser").find("details")
    members = made[0].members(0)
    assert [i["alt"].split(":")[0] for i in first.find_all("img")] == [
        made[0].files[i] for i in (*members[:7], *members[-3:])]
    assert "the 7 surest and the 3 least sure shown" in first.find("summary").get_text()


def test_an_empty_cluster_has_no_sheet_nor_the_one_of_an_earlier_call(folder, made, tmp_path):
    (tmp_path / "cluster-03.jpg").touch()
    fewer = dataclasses.replace(made[0], labels=np.minimum(made[0].labels, 1))
    gallery.write(fewer, folder, tmp_path, read_images(folder))
    assert sorted(p.name for p in tmp_path.glob("*.jpg")) == ["cluster-01.jpg", "cluster-02.jpg"]


def test_an_out_that_cannot_be_looked_into_is_refused_in_one_sentence(folder, tmp_path, monkeypatch, no_work):
    def closed(self):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setenv("CGMVAE_DATA", str(tmp_path / "cache"))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(own_clusters.Path, "iterdir", closed)
    with pytest.raises(ExperimentError, match="out must be a folder that can be looked into .Permission denied.; it is"):
        cluster(folder, tmp_path / "out", **CHOICES)


@pytest.mark.parametrize("changes, words", (
    ({"seeds": 0}, "seeds must be a whole number from 1 to 20"),
    ({"K": 1}, "K must be a whole number of at least 2; it is 1"),
    ({"epochs": 0}, "epochs must be a whole number of at least 1; it is 0"),
    ({"K": 0}, "K must be"), ({"views": "digit"}, "views must be"), ({"epochs": -1}, "epochs must be"),
    ({"out": "inside"}, "a folder outside"), ({"out": "used"}, "a new or empty folder"),
    ({"out": "other"}, "other images or other choices")))
def test_bad_input_is_refused_before_any_work(folder, made, no_work, tmp_path, changes, words):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep me")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "about.json").write_text('{"ids": ["of another"]}')
    place = folder / "out" if changes.get("out") == "inside" else tmp_path / changes.get("out", "new")
    with pytest.raises(ExperimentError, match=words):
        cluster(folder, place, **{**CHOICES, **{k: v for k, v in changes.items() if k != "out"}})
    assert not (folder / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "used"]
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["mine.txt"]


def test_the_command(folder, made, capsys, monkeypatch, tmp_path):
    seen = {}

    def instead(images, out, **choices):
        seen.update(images=images, out=out, **choices)
        return made[0]
    monkeypatch.setattr(own_clusters, "cluster", instead)
    assert main(["cluster", str(folder), "--out", str(tmp_path / "o"), "--K", "4", "--seeds", "3"]) == 0
    assert seen["K"] == "4" and seen["seeds"] == "3" and seen["views"] is None
    assert "nats of their images" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["cluster", str(folder / "nowhere"), "--out", str(tmp_path / "o")]) == 2


def test_own_images_are_read_with_the_row_of_each_file(folder):
    found = read_images(folder)
    assert len(found.rows) == 121 and len(set(found.rows.values())) == 120
