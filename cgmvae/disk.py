"""Whole files or none: whoever is killed in the middle of a write leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError


class DiskError(OSError):
    """A file that could not be written. The message says which, why, and how much must be free."""


@contextlib.contextmanager
def whole_file(path: Path, size: int) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` in the end; gone if it does not come to that.

    `size` is about how many bytes there are to write. Raises DiskError if they cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        try:
            free = f"{shutil.disk_usage(path.parent).free:,}"
        except OSError:
            free = "no"
        raise DiskError(
            f"{path} could not be written ({error}): it takes about {size:,} bytes, and "
            f"{free} bytes are free in {path.parent}. Free what is lacking there, or choose another "
            "folder; what was written before is whole, and the same run goes on from it.") from error


def write_text(path: Path, text: str) -> None:
    """Raises DiskError."""
    with whole_file(path, len(text)) as temporary:
        # A file's name may hold bytes that are no text: they go back as they came.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def remove(path: Path) -> None:
    """Remove a file, and what a killed process left of it in the middle of a write."""
    path.unlink(missing_ok=True)
    for temporary in path.parent.glob(f".{path.name}.*"):
        pid = temporary.suffix[1:]
        if not (pid.isdecimal() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))):  # else it is being written
            temporary.unlink(missing_ok=True)
