"""Which run is meant: by its id, the first digits of one, or its name; one rule for wherever a run is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from coral.errors import ExperimentNotFoundError, UsageError
from coral.experiments.experiment import from_ms

_PREFIX = re.compile(r"[0-9a-f]{4,12}", re.ASCII)
_SHOWN = 8
_COLUMNS = 78


def find(
    wanted: object,
    names: Mapping[str, str],
    *,
    facts: Mapping[str, tuple[int, str]] = MappingProxyType({}),
    listing: str = "coral exp list",
) -> str:
    """The id of the one run that is meant.

    A whole id means its run, whatever others are called; what is both the beginning of one run's id and another's name
    means neither.

    Args:
        names: the runs there are: each id's name.
        facts: when each was created, in milliseconds since 1970, and its status, where that is known.
        listing: the command that lists these.

    Raises:
        ExperimentNotFoundError: no run is called so; the hint has near misses.
        UsageError: several are, which the hint lists, newest first; or it is no text.
    """
    if not isinstance(wanted, str):
        raise UsageError(f"{wanted!r} names no run", hint="give its experiment_id, or its name")
    if wanted in names:
        return wanted
    is_prefix = _PREFIX.fullmatch(wanted) is not None
    found = [run_id for run_id, name in names.items() if name == wanted or (is_prefix and run_id.startswith(wanted))]
    found = found if wanted else []  # a damaged run's name is empty
    if len(found) > 1:
        newest = sorted(found, key=lambda run_id: (facts.get(run_id, (0, "")), run_id), reverse=True)
        lines = [_line(run_id, names[run_id], facts.get(run_id)) for run_id in newest[:_SHOWN]]
        more = [f"and {len(found) - _SHOWN} more: {listing!r}"] if len(found) > _SHOWN else []
        listed = "\n  ".join(["give the id of one:", *lines, *more])
        raise UsageError(f"{wanted!r} could be any of {len(found)} runs", hint=listed)
    if not found:
        hint = near(wanted, [*dict.fromkeys(names.values()), *names]) or f"{listing!r} lists the runs"
        raise ExperimentNotFoundError(f"no run has the id or the name {wanted!r}", hint=hint)
    return found[0]


def _line(run_id: str, name: str, facts: tuple[int, str] | None) -> str:
    """One of several runs, in a line that fits a terminal."""
    told = f"  {from_ms(facts[0]).astimezone():%Y-%m-%d %H:%M}  {facts[1]:<9}" if facts else ""
    return f"{run_id}{told}  {name}"[:_COLUMNS].rstrip()


def near(wanted: str, known: Iterable[str]) -> str | None:
    """A hint that names what the caller may have meant."""
    from difflib import get_close_matches  # for who mistyped a name

    close = get_close_matches(wanted, [*known], n=3)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else None
