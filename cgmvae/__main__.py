"""The package from a shell: `python -m cgmvae train --dataset cifar100 --K 20`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from cgmvae import (
    check,
    checkpoints,
    data,
    disk,
    gallery,
    own_clusters,
    own_images,
    parallel,
    records,
    sweep,
    tables,
    training,
)
from cgmvae.checks import ExperimentError, explained, refuse
from cgmvae.datasets import DATASETS, DataError, known
from cgmvae.devices import COMPILATIONS, DEVICES, PRECISIONS, OutOfMemory
from cgmvae.experiment import Experiment, preset
from cgmvae.presets import PRESETS
from cgmvae.run import run
from cgmvae.views import VIEWS

BAD_INPUT = (ExperimentError, DataError, checkpoints.CheckpointError, training.NonFiniteLoss,
             FileExistsError, disk.DiskError, OutOfMemory)


def parser() -> argparse.ArgumentParser:
    """One subcommand a task. Values stay text: Experiment checks them, as for a notebook."""
    top = argparse.ArgumentParser(prog="python -m cgmvae", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="run one experiment and record it")
    train.add_argument("--preset", default="paper", help="scale: " + ", ".join(PRESETS))
    for f in dataclasses.fields(Experiment):
        train.add_argument(f"--{f.name}", help=explained(f).replace("%", "%%"))
    train.add_argument("--device", default="auto", help=DEVICES)
    train.add_argument("--precision", default="auto", help=", ".join(PRECISIONS))
    train.add_argument("--compile", default="auto", help=", ".join(COMPILATIONS))
    train.add_argument("--results", help="folder for records and weights")
    train.set_defaults(task=_train)

    sound = commands.add_parser("check", help="what this machine can do, and whether it does it right")
    sound.add_argument("--device", default="auto", help=DEVICES)
    sound.set_defaults(task=_check)

    table = commands.add_parser("table", help="print what the records say")
    table.add_argument("--results", help="folder of the records")
    table.set_defaults(task=_table)

    many = commands.add_parser("sweep", help="run what is missing of tables, or show what is there")
    many.add_argument("tables", nargs="+", help="one or more, in this order: " + ", ".join(tables.TABLES))
    many.add_argument("--status", action="store_true", help="only show what is there")
    many.add_argument("--publish", action="store_true",
                      help="write the median seed's model of each cell to results/checkpoints")
    many.add_argument("--minutes", type=float, default=60 * 24 * 7, help="stop after so many, for all tables together")
    many.add_argument("--out", type=Path, help="results folder to write to")
    many.add_argument("--device", default="auto", help=DEVICES)
    many.add_argument("--precision", default="auto", help=", ".join(PRECISIONS))
    many.add_argument("--at-once", help="runs that share the device (1; 8 on a GPU)")
    many.set_defaults(task=_sweep)

    sort = commands.add_parser("cluster", help="sort a folder of images into clusters, and show them on a page")
    sort.add_argument("images", help="a folder or an .npz of images")
    sort.add_argument("--out", type=Path, required=True, help="folder for the page and the table, a new one")
    sort.add_argument("--K", default=10, help="number of clusters, at least 2; 10")
    sort.add_argument("--seeds", default=2, help="runs from different first weights; the one whose "
                      "labels know most is shown; 2; with more, a later call goes on from those that are there")
    sort.add_argument("--views", help="what does not matter for a cluster: " + ", ".join(VIEWS)
                      + "; digits for grey images, photos for coloured ones")
    sort.add_argument("--epochs", help="of training; as many as make 3,000 steps, at least 10")
    sort.add_argument("--device", default="auto", help=DEVICES)
    sort.add_argument("--precision", default="auto", help=", ".join(PRECISIONS))
    sort.set_defaults(task=_cluster)

    fetch = commands.add_parser("data", help="download a data set, or read your own images, and check")
    fetch.add_argument("dataset", help=", ".join(DATASETS) + ", or a folder or an .npz of images")
    fetch.add_argument("--side", type=int, help="of your own images: their height and width")
    fetch.add_argument("--channels", type=int, help="of your own images: 1, grey, or 3, colour")
    fetch.set_defaults(task=_data)
    return top


def _train(args: argparse.Namespace) -> None:
    choices = {f.name: getattr(args, f.name) for f in dataclasses.fields(Experiment)}
    experiment = preset(args.preset, **choices)
    before = records.Paths(args.results, experiment).record.exists()
    record = run(experiment, device=args.device, precision=args.precision, compile=args.compile, results=args.results)
    if not parallel.first():
        return
    if before:
        print("This run was made before. Its record says:")
    metrics, progress = record["metrics"], record["progress"]
    print(f"{record['id']} ({record['preset']}): {progress['epochs']} epochs, {progress['stopped']}; "
          f"{record['seconds']['training']:.0f} s of training, "
          f"{progress['images_per_second']:.0f} images/s")
    for name, value in metrics.items():
        value = "none: no labels" if value is None else value
        print(f"  {name:24} {value:.4f}" if isinstance(value, float) else f"  {name:24} {value}")
    print(f"  in {records.Paths(args.results, experiment).record}")


def _check(args: argparse.Namespace) -> int:
    return 0 if check.check(args.device) else 1


def _table(args: argparse.Namespace) -> None:
    table = records.table(records.read_all(args.results))
    if table.empty:
        print("There are no records yet.")
        return
    choices = {"preset", *Experiment.__dataclass_fields__} - {"dataset", "estimator", "K"}
    shown = [c for c in table.columns if c not in choices or table[c].nunique(dropna=False) > 1]
    print(table[shown].to_string(index=False, float_format=lambda v: f"{v:.3f}"))


def _sweep(args: argparse.Namespace) -> None:
    out = records.results_folder(args.out)
    for name in args.tables:
        tables.runs(name)  # the names are right before anything starts
    if args.publish:
        for name in args.tables:
            print(*sweep.publish(name, out), sep="\n")
        return
    start, finished = time.monotonic(), 0
    for name in [] if args.status else args.tables:
        left = args.minutes - (time.monotonic() - start) / 60
        finished += sweep.sweep(name, out=out, minutes=left, device=args.device,
                                precision=args.precision, at_once=args.at_once)
    if not args.status:
        hours = (time.monotonic() - start) / 3600
        print(f"{finished} runs finished, {finished / hours:.1f} an hour")
    for name in args.tables:
        print(f"\n{name}\n{sweep.status(name, [records.results_folder(), out]).to_string(index=False)}")


def _cluster(args: argparse.Namespace) -> None:
    clusters = own_clusters.cluster(args.images, args.out, K=args.K, seeds=args.seeds, views=args.views,
                                    epochs=args.epochs, device=args.device, precision=args.precision)
    print(gallery.summary(clusters))
    print(f"Look at {args.out / 'index.html'}; all files are in {args.out / 'clusters.csv'}.")


def _data(args: argparse.Namespace) -> None:
    if not known(args.dataset) and os.path.exists(os.path.expanduser(args.dataset)):
        found = own_images.read_images(args.dataset, args.side, args.channels)
        own_images.keep(found)
        print(found)
        return
    dataset = own_images.find_dataset(args.dataset)
    for name in ("side", "channels"):
        if getattr(args, name) is not None:
            refuse(name, getattr(args, name), f"left out for {dataset!r}, which has its own")
    images = data.load(dataset)
    print(f"{args.dataset}: {len(images.train_images)} training and {len(images.test_images)} "
          f"test images, digest {images.digest}")


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 1 if `check` finds something wrong; 2, with one sentence on stderr, for bad input
    or a run that lacks memory or room on the disk; 130 for Ctrl-C.
    """
    args = parser().parse_args(argv)
    try:
        return args.task(args) or 0
    except BAD_INPUT as error:
        if parallel.first():
            print(f"cgmvae: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"cgmvae: stopped. {stop} The same command goes on from there.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
