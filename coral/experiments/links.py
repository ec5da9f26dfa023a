"""Which commit is a point's: said exactly, inferred from the order of events, the last one before it, or the run's own.

The rule (design, "Which commit is the best step's?"): a commit made for that step is exact. Else metrics are
logged and then the commit is made, so the first commit after the point and before any later step is inferred;
else the last commit before the point is what there is. A run that was ended with its one commit, after many points,
has none of these for most of them: what answers then is the commit that the run came to.
"""

from __future__ import annotations

from collections.abc import Sequence

from coral.experiments.columns import MetricColumns
from coral.experiments.experiment import Experiment, LinkedCommit, LinkKind

Link = tuple[str, LinkKind]


def link_of(history: MetricColumns, commits: Sequence[LinkedCommit], name: str, index: int) -> Link | None:
    """The commit of a metric's point, and how it was found; None when the run made none that could be it."""
    if not commits:
        return None
    series = history.series[name]
    step, value = series.steps[index], series.values[index]
    place = history.position(name, index)
    exact = [one for one in commits if _says_so(one, step, name, value)]
    if exact:
        # A step that was reached twice has two commits: the one made right after this point is this point's.
        later = [one for one in exact if one.after > place]
        return (later[0] if later else exact[-1]).commit_hash, "exact"
    barrier = _next_later_step(history, name, step, place)
    for one in commits:
        if place < one.after <= barrier and (one.step is None or step is None):
            return one.commit_hash, "inferred"
    before = [one for one in commits if one.after <= place]
    return (before[-1].commit_hash, "before") if before else None


def own_commit(run: Experiment) -> Link | None:
    """What the run came to, for a point that no commit is linked to; None when it made none."""
    return (run.commit_hash, "run") if run.commit_hash is not None else None


def _says_so(commit: LinkedCommit, step: int | None, name: str, value: float) -> bool:
    if step is not None and commit.step == step:
        return True
    return commit.step == step and commit.metrics.get(name) == value


def _next_later_step(history: MetricColumns, name: str, step: int | None, place: int) -> int:
    """How many points had been logged when the run moved on: at the metric's next point, or any higher step."""
    names = list(history.series)
    counts = [0] * len(names)
    for number in history.order[: place + 1]:
        counts[number] += 1
    for later in range(place + 1, len(history.order)):
        number = history.order[later]
        reached = history.series[names[number]].steps[counts[number]]
        counts[number] += 1
        if names[number] == name or (step is not None and reached is not None and reached > step):
            return later
    return len(history.order)
