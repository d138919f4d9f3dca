"""What every bad choice gets: one sentence that names the field, the value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ExperimentError(ValueError):
    """A choice that cannot be run. Its message names the field, the value and what is allowed."""


def refuse(name: str, value: Any, allowed: str) -> None:
    """Raise the one sentence that every bad choice gets."""
    raise ExperimentError(f"{name} must be {allowed}; it is {value!r}.")


def nearest(name: Any, known: Iterable[str]) -> str | None:
    """The known name that is nearest, whatever its case; None if none is near."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1)
    return by_lower[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question after a sentence about an unknown name, with a blank before it, or nothing."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ExperimentError unless `value` is among the names in `allowed`."""
    if value not in tuple(allowed):
        near = nearest(value, allowed)
        hint = f" (did you mean {near!r}?)" if near else ""
        refuse(name, value, "one of " + ", ".join(map(repr, allowed)) + hint)


def at_least(name: str, value: int, least: int) -> None:
    """Raise ExperimentError unless `value` is at least `least`."""
    if value < least:
        refuse(name, value, f"a whole number of at least {least}")
