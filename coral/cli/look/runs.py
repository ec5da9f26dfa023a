"""How runs look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coral.cli.look.output import age, duration, print_table

if TYPE_CHECKING:
    from coral.experiments import Experiment


def run_data(run: Experiment) -> dict[str, Any]:
    """A run for JSON, without its points."""
    commits = [
        {"commit_hash": one.commit_hash, "step": one.step, "metrics": one.metrics, "time": one.timestamp}
        for one in run.commits
    ]
    artifacts = [
        {"name": one.name, "kind": one.kind, "bytes": one.nbytes, "time": one.timestamp} for one in run.list_artifacts()
    ]
    return {
        **run.to_dict(),
        "owner": run.owner,
        "duration": run.duration,
        "commits": commits,
        "artifacts": artifacts,
        "metrics": metrics_data(run),
    }


def metrics_data(run: Experiment) -> dict[str, dict[str, object]]:
    """Latest, least and greatest value, and number of points of each metric."""
    import math

    found: dict[str, dict[str, object]] = {}
    for name in run.metric_names:
        points = run.get_metric_history(name)
        finite = [value for value in points.values if math.isfinite(value)]
        found[name] = {
            "latest": points.values[-1] if points.values else None,
            "step": points.steps[-1] if points.steps else None,
            "min": min(finite, default=None),
            "max": max(finite, default=None),
            "count": len(points),
        }
    return found


def print_runs(runs: Sequence[Experiment]) -> None:
    """Print a table of runs."""
    rows = [
        [
            run.experiment_id,
            str(run.status),
            age(run.started_at or run.created_at),
            duration(run.duration),
            run.branch or "-",
            run.name,
        ]
        for run in runs
    ]
    print_table(("id", "status", "started", "took", "branch", "name"), rows, right=(3,), spare=4)


def describe_end(run: Experiment) -> str:
    """How a run ended, in one line."""
    at = f", commit {run.commit_hash[:10]}" if run.commit_hash else ""
    return f"{run.name} ({run.experiment_id}) {run.status} after {duration(run.duration)}{at}"


def param_text(value: object) -> str:
    """A parameter in one line, as -p takes it."""
    import json

    return value if isinstance(value, str) else json.dumps(value)
