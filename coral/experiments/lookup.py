"""Which run is meant: by its id, the first digits of one, or its name; one rule for wherever a run is named."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from coral.errors import ExperimentNotFoundError, UsageError

_PREFIX = re.compile(r"[0-9a-f]{4,12}", re.ASCII)
_SHOWN = 8


def find(wanted: object, names: Mapping[str, str], *, listing: str = "coral exp list") -> str:
    """The id of the one run that is meant.

    A whole id means its run, whatever others are called; what is both the beginning of one run's id and another's name
    means neither.

    Args:
        names: the runs there are: each id's name.
        listing: the command that lists these.

    Raises:
        ExperimentNotFoundError: no run is called so; the hint has near misses.
        UsageError: several are, which the hint lists; or it is no text.
    """
    if not isinstance(wanted, str):
        raise UsageError(f"{wanted!r} names no run", hint="give its experiment_id, or its name")
    if wanted in names:
        return wanted
    is_prefix = _PREFIX.fullmatch(wanted) is not None
    found = [run for run, name in names.items() if name == wanted or (is_prefix and run.startswith(wanted))]
    found = found if wanted else []  # a damaged run's name is empty
    if len(found) > 1:
        listed = ", ".join(f"{run} ({names[run]})" for run in sorted(found)[:_SHOWN])
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageError(f"{wanted!r} could be any of {len(found)} runs", hint=f"give the id of one: {listed}{more}")
    if not found:
        hint = near(wanted, [*dict.fromkeys(names.values()), *names]) or f"{listing!r} lists the runs"
        raise ExperimentNotFoundError(f"no run has the id or the name {wanted!r}", hint=hint)
    return found[0]


def near(wanted: str, known: Iterable[str]) -> str | None:
    """A hint that names what the caller may have meant."""
    close = difflib.get_close_matches(wanted, [*known], n=3)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else None
