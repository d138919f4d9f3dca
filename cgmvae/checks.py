"""A choice: what is said of it, what is allowed, and the sentence that a bad one gets.

The checks of `Experiment`, the shell's help and the records' schema come from what `choice` was told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import typing
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any


class ExperimentError(ValueError):
    """A choice that cannot be run. Its message names the field, the value and what is allowed."""


def refuse(name: str, value: Any, allowed: str) -> None:
    """Raise the one sentence that every bad choice gets."""
    raise ExperimentError(f"{name} must be {allowed}; it is {value!r}.")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The known name that is nearest, whatever its case, in brackets after a blank; nothing if none is near."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ExperimentError unless `value` is among the names in `allowed`."""
    if value not in tuple(allowed):
        refuse(name, value, "one of " + ", ".join(map(repr, allowed)) + did_you_mean(value, allowed))


def check_number(name: str, value: float, least: int | None = None, most: int | None = None,
                 above: float | None = None, below: float | None = None) -> None:
    """Raise ExperimentError unless `value` is within the bounds that are given, and finite."""
    if least is not None and most is not None and not least <= value <= most:
        refuse(name, value, f"a whole number from {least} to {most}")
    if least is not None and value < least:
        refuse(name, value, f"a whole number of at least {least}")
    if above is not None and not above < value < (math.inf if below is None else below):
        refuse(name, value, f"a number above {above}" if below is None
               else f"a number between {above} and {below}")


UNFIT = {"collapsed": (("spread_logits", False, "which has no network for q(y|x)"),
                       ("annealing", "none", "whose q(y|x) is the best one at weight 1"),
                       ("beta", 1.0, "whose q(y|x) is the best one at weight 1")),
         "sparse": (("labelled", 0, "whose q(y|x) has zeros"), ("views", "none", "whose q(y|x) has zeros"))}
"""By posterior: a field, the one value that it can have there, and why."""


def refuse_unfit(posterior: str, estimator: str, fields: Mapping[str, Any]) -> None:
    """Raise ExperimentError for a field of an experiment that has no meaning with its posterior."""
    for name, only, why in UNFIT.get(posterior, ()):
        if fields[name] != only:
            refuse(name, fields[name], f"{'false' if only is False else repr(only)} with {estimator!r}, {why}")


NO_NEUTRAL = object()


def choice(default: Any, help: str, paper: str = "not said", reason: str = "", *,
           options: Collection[str] | None = None, neutral: Any = NO_NEUTRAL,
           least: int | None = None, most: int | None = None,
           above: float | None = None, below: float | None = None, null: bool = False) -> Any:
    """A field: its explanation, what the paper says of it and, where that leaves a choice, the reason
    for ours; and what is allowed. The shell prints the first, the book all.

    Args:
        options: the names that are allowed: a registry, so that what is added to it is allowed.
        neutral: of a field that came after the first records: what all earlier runs did. While the
            field has this value it is no part of the id, and a record that lacks the field is read
            as having it.
        null: whether it can be None in a finished experiment, as where it is not used.
        least, most: bounds of a whole number. above, below: what a number must be strictly between.
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "paper": paper, "reason": reason, "options": options, "neutral": neutral,
        "null": null,
        "bounds": {"least": least, "most": most, "above": above, "below": below}})


def check(f: dataclasses.Field, value: Any, kind: Any) -> Any:
    """`value` as the type `kind` of a field made by `choice`. Raises ExperimentError if it is not allowed."""
    value = typed(f.name, value, kind, f.metadata["bounds"])
    if value is None:
        return None
    if f.metadata["options"] is not None:
        one_of(f.name, value, f.metadata["options"])
    elif not isinstance(value, str):
        check_number(f.name, value, **f.metadata["bounds"])
    return value


def typed(name: str, value: Any, kind: Any, bounds: dict[str, Any]) -> Any:
    """`value` as its field's type. Text that is a number counts as one: so `-y` and shells write it."""
    kinds = typing.get_args(kind) or (kind,)  # of `int | None`, its parts
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is bool:
        given = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        return given if isinstance(given, bool) else refuse(name, value, "true or false")
    if kind is str:
        return value if isinstance(value, str) else refuse(name, value, "a name in text")
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = kind(value)
    real = isinstance(number, Real) and not isinstance(number, bool)  # NumPy's numbers too
    if kind is float:
        return float(number) if real else refuse(name, value, "a number")
    whole = real and isinstance(number, Integral)
    least = 1 if bounds["least"] is None else bounds["least"]
    return int(number) if whole else refuse(name, value, f"a whole number of at least {least}")


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A number that is no field of an Experiment, as an int. Raises ExperimentError if it is not allowed."""
    value = typed(name, value, int, {"least": least})
    check_number(name, value, least, most)
    return value


def schema_of(f: dataclasses.Field, kind: Any) -> dict[str, Any]:
    """What a record may hold for a field of this type, as a JSON schema."""
    optional = f.metadata["null"]
    text = {"description": f.metadata["help"]}
    if f.metadata["options"] is not None:
        return {**text, "enum": [*f.metadata["options"], *([None] if optional else [])]}
    plain = (typing.get_args(kind) or (kind,))[0]
    bounds = {"least": "minimum", "most": "maximum", "above": "exclusiveMinimum",
              "below": "exclusiveMaximum"}
    names = {int: "integer", float: "number", bool: "boolean", str: "string"}
    return {**text, "type": [names[plain], "null"] if optional else names[plain],
            **{bounds[k]: v for k, v in f.metadata["bounds"].items() if v is not None}}


def explained(f: dataclasses.Field) -> str:
    """The help of a field, with the names that are allowed now."""
    names = f.metadata["options"]
    return f.metadata["help"] + (f" ({', '.join(names)})" if names else "")
