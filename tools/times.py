"""How long each chapter took when the book was last built here, and on what.

    python tools/times.py

prints it from the build's own notes: jupyter-cache keeps the seconds of each execution.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
from jupyter_cache import get_cache

from cgmvae.run import processor

ROOT = Path(__file__).resolve().parents[1]


def machine() -> str:
    """The machine in a few words: how many cores are ours, of what, and the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    return f"{cores} core{'s' if cores > 1 else ''} of {processor()}, {memory:.0f} GiB of memory"


def times(cache: Path) -> dict[str, tuple[float, str]]:
    """Seconds of each chapter's latest execution and its day, by the chapter's name."""
    found = {}
    for record in sorted(get_cache(cache).list_cache_records(), key=lambda r: r.created):
        name = Path(record.uri).stem
        if "execution_seconds" in record.data:
            found[name] = (record.data["execution_seconds"], f"{record.created:%Y-%m-%d}")
    return dict(sorted(found.items()))


if __name__ == "__main__":
    cache = ROOT / "_build" / ".jupyter_cache"
    if not cache.is_dir() or not (rows := times(cache)):
        sys.exit("No chapter has been executed here yet: make book.")
    for name, (seconds, day) in rows.items():
        print(f"{name:24} {seconds:5.0f} s  on {day}")
    print(f"{'together':24} {sum(seconds for seconds, _ in rows.values()):5.0f} s, one after another")
    print(f"At the quick scale, on {machine()}. A chapter's kernel takes a few seconds more to start.")
