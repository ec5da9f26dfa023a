"""Which commit is a point's: exact, inferred, before, or none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from coral.experiments.columns import MetricColumns
from coral.experiments.experiment import LinkedCommit
from coral.experiments.links import link_of

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def link(story: str, index: int = 0) -> tuple[str, str] | None:
    """The link of the index-th point of ``v`` in a story.

    ``v3`` logs v at step 3, ``v`` without a step, ``x7`` another metric at step 7; ``A`` makes commit A,
    ``A@3`` for step 3, ``A=0`` with the metric v of value 0.
    """
    history, commits = MetricColumns(), []
    for word in story.split():
        if word[0].isupper():
            name, _, step = word.partition("@")
            name, _, value = name.partition("=")
            metrics = {"v": float(value)} if value else {}
            commits.append(LinkedCommit(name, int(step) if step else None, metrics, TIME, len(history)))
        else:
            history.append(word[0], float(len(history)), int(word[1:]) if word[1:] else None, 0)
    return link_of(history, commits, "v", index)


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ("v3 A", ("A", "inferred")),
        ("v3 A@3", ("A", "exact")),
        ("v3 x4 A@3", ("A", "exact")),
        ("A@3 v3", ("A", "exact")),
        ("v3 x4 A", None),
        ("v3 x3 A", ("A", "inferred")),
        ("v3 x2 A", ("A", "inferred")),
        ("v3 A B", ("A", "inferred")),
        ("A v3 x4 B", ("A", "before")),
        ("A B v3 x4", ("B", "before")),
        ("v A", ("A", "inferred")),
        ("v v A", None),
        ("v x9 A", ("A", "inferred")),
        ("A v v B", ("A", "before")),
        ("v3 A@4", None),
        ("v3 A@2", None),
        ("v A@2", ("A", "inferred")),
        ("v3 A@3 v3 B@3", ("A", "exact")),
        ("v A=0", ("A", "exact")),
        ("v3", None),
    ],
)
def test_the_rule(story: str, expected: tuple[str, str] | None) -> None:
    """Of that step: exact; else the first after the point and before any later step; else the last before."""
    assert link(story) == expected


def test_a_step_reached_twice_has_the_commit_made_right_after() -> None:
    """The second pass through a step is linked to the second commit of it."""
    assert link("v3 A@3 v3 B@3", index=1) == ("B", "exact")
