"""The bars that benchmarks measure themselves against: a missed one is said, and is a failure only with ``--bars``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

MET = "met"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option that makes a missed bar a failure."""
    parser.add_argument("--bars", action="store_true", help="end with status 1 when a bar is missed")


def verdict(value: float, limit: float, shown: Callable[[float], str], *, at_least: bool = False) -> str:
    """``MET``, or ``missed`` and by what; at most the limit is wanted, unless ``at_least``."""
    return MET if (value >= limit if at_least else value <= limit) else f"missed: {shown(value)}"


def status(missed: Collection[str], *, asked: bool) -> int:
    """What a benchmark ends with; where it was asked, it says which bars it missed."""
    if not asked:
        return 0
    print(f"\nbars missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0
