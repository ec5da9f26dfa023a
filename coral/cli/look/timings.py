"""How the time that a commit took looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coral.cli.look.output import print_table

if TYPE_CHECKING:
    from coral.timings import Timings


def print_timings(timings: Timings, *, started: float) -> None:
    """Print where the time went, by step; those below a tenth of a millisecond are left out.

    Args:
        started: CPU seconds that it took to get as far as the command itself.
    """
    total = timings.total + started
    rows = [[f"{1e3 * started:,.1f} ms", f"{started / total:.0%}", "start Python and coral"]]
    rows += [
        [f"{1e3 * seconds:,.1f} ms", f"{seconds / total:.0%}", name]
        for name, seconds in timings.steps.items()
        if seconds >= 1e-4
    ]
    print_table(("time", "share", "step"), [*rows, [f"{1e3 * total:,.1f} ms", "", "in all"]], right=(0, 1))
