"""What users write on the command line, as values: ``name=value`` pairs, parameters, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from coral.errors import UsageError

T = TypeVar("T")


def parse_pairs(pairs: Iterable[str], option: str, value: Callable[[str], T], separator: str = "=") -> dict[str, T]:
    """``name=value`` pairs, each value parsed; a name given twice is an error. Raises UsageError."""
    found: dict[str, T] = {}
    for pair in pairs:
        name, sign, text = pair.rpartition(separator) if separator == ":" else pair.partition(separator)
        if not sign or not name:
            raise UsageError(f"{pair!r} is not NAME{separator}VALUE", hint=f"as in: {option} name{separator}value")
        if name in found:
            raise UsageError(f"{name!r} is given twice")
        found[name] = value(text)
    return found


def parse_metrics(pairs: Iterable[str]) -> dict[str, float]:
    """``loss=0.5`` pairs."""
    return parse_pairs(pairs, "--metric", parse_number)


def parse_number(text: str) -> float:
    """A metric's value. Raises UsageError."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number") from None


def parse_params(pairs: Iterable[str]) -> dict[str, object]:
    """``lr=1e-3`` pairs: values that are JSON are parsed, all others are strings."""
    return parse_pairs(pairs, "-p", _json_or_text)


def parse_objective(pairs: Iterable[str]) -> dict[str, str]:
    """``val_loss:min`` pairs."""
    return parse_pairs(pairs, "--objective", _direction, separator=":")


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _direction(text: str) -> str:
    if text not in ("min", "max"):
        raise UsageError(f"{text!r} is neither min nor max")
    return text
