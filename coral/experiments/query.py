"""Questions about runs that have been loaded: comparing them, and their family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coral.experiments.experiment import Experiment, aware
from coral.experiments.scalars import flatten
from coral.experiments.seams import Best

_MOST_GENERATIONS = 200


@dataclass(frozen=True, slots=True)
class Lineage:
    """A run's family: whom it resumed, oldest first, and who resumed it. ``str()`` draws the tree."""

    experiment: Experiment
    ancestors: tuple[Experiment, ...] = ()
    descendants: tuple[Lineage, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"{'  ' * depth}{_line(run)}" for depth, run in enumerate(self.ancestors)]
        return "\n".join([*lines, *self._tree(len(self.ancestors), mark=" *")])

    def _tree(self, depth: int, mark: str = "") -> list[str]:
        lines = [f"{'  ' * depth}{_line(self.experiment)}{mark}"]
        for child in self.descendants:
            lines += child._tree(depth + 1)
        return lines


def _line(run: Experiment) -> str:
    return f"{run.experiment_id} {run.name} ({run.status})"


def lineage(
    experiment_id: str, load: Callable[[str], Experiment | None], children: Callable[[str], Sequence[str]]
) -> Lineage | None:
    """A run's family; None when there is no such run. Forged circles are cut, and so are 200 generations."""
    run = load(experiment_id)
    if run is None:
        return None
    seen, ancestors, parent = {run.experiment_id}, list[Experiment](), run.parent_experiment
    while parent and parent not in seen and len(ancestors) < _MOST_GENERATIONS and (elder := load(parent)) is not None:
        seen.add(parent)
        ancestors.append(elder)
        parent = elder.parent_experiment
    return Lineage(run, tuple(reversed(ancestors)), _descendants(run.experiment_id, load, children, seen, 1))


def _descendants(
    run_id: str,
    load: Callable[[str], Experiment | None],
    children: Callable[[str], Sequence[str]],
    seen: set[str],
    generation: int,
) -> tuple[Lineage, ...]:
    found = []
    for child in children(run_id) if generation <= _MOST_GENERATIONS else ():
        if child not in seen and (one := load(child)) is not None:
            seen.add(child)
            found.append(Lineage(one, (), _descendants(child, load, children, seen, generation + 1)))
    return tuple(found)


def compare(runs: Sequence[Experiment], metrics: Sequence[str] | None) -> dict[str, object]:
    """Runs side by side: what they are, how their metrics went, and which parameters differ.

    Returns:
        ``experiments``: a list of basic facts; ``metrics``: by name and id, ``latest``, ``min``, ``max``, ``count``;
        ``params``: by dotted name and id, those that differ (None where a run lacks one); ``params_same``: the rest.
    """
    names = sorted({name for run in runs for name in run.history.series}) if metrics is None else list(metrics)
    flat = {run.experiment_id: flatten(run.params) for run in runs}
    differing: dict[str, dict[str, object]] = {}
    same: dict[str, object] = {}
    for name in sorted({name for params in flat.values() for name in params}):
        values: dict[str, object] = {run_id: params.get(name) for run_id, params in flat.items()}
        first = next(iter(values.values()))
        if all(name in params for params in flat.values()) and all(value == first for value in values.values()):
            same[name] = first
        else:
            differing[name] = values
    return {
        "experiments": [facts(run) for run in runs],
        "metrics": {name: _metric(runs, name) for name in names},
        "params": differing,
        "params_same": same,
    }


def facts(run: Experiment) -> dict[str, object]:
    """The basic facts of a run, JSON-able."""
    return {
        "experiment_id": run.experiment_id,
        "name": run.name,
        "status": str(run.status),
        "created_at": aware(run.created_at).isoformat(timespec="milliseconds"),
        "duration": run.duration,
        "branch": run.branch,
        "commit_hash": run.commit_hash,
        "group": run.group,
        "tags": list(run.tags),
        "parent_experiment": run.parent_experiment,
    }


def _metric(runs: Sequence[Experiment], name: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for run in runs:
        series = run.history.series.get(name)
        if series:
            low, high = series.best("min"), series.best("max")
            found[run.experiment_id] = {
                "latest": series.values[-1],
                "min": None if low is None else series.values[low],
                "max": None if high is None else series.values[high],
                "count": len(series),
            }
    return found


def as_result(best: Best) -> dict[str, object]:
    """One of ``find_best``'s results."""
    run = best.experiment
    return {
        "experiment_id": run.experiment_id,
        "name": run.name,
        "best_value": best.value,
        "best_step": best.step,
        "commit_hash": best.commit_hash,
        "link": best.link,
        "params": run.params,
        "tags": list(run.tags),
        "branch": run.branch,
        "status": str(run.status),
    }
