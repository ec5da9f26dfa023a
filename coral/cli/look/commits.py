"""How commits look: the lines of the log, the names that point at them, and their JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from coral.cli.look.output import date, metrics_line

if TYPE_CHECKING:
    from coral.history import Commit
    from coral.ids import CommitHash
    from coral.repository import Repository


class Names:
    """What points at commits: HEAD, branches, tags."""

    def __init__(self, repo: Repository) -> None:
        self.head = repo.history.head()
        self.branches: dict[CommitHash, list[str]] = defaultdict(list)
        self.tags: dict[CommitHash, list[str]] = defaultdict(list)
        for name, tip in repo.branches().items():
            self.branches[tip].append(name)
        for name, commit_hash in repo.tags().items():
            self.tags[commit_hash].append(name)

    def of(self, commit_hash: CommitHash) -> str:
        """A commit's names in brackets, coloured as git does."""
        here, labels = commit_hash == self.head.commit, []
        branches = sorted(self.branches.get(commit_hash, ()), key=lambda name: (name != self.head.branch, name))
        if here and self.head.branch is None:
            labels.append(click.style("HEAD", fg="cyan", bold=True))
        for name in branches:
            arrow = click.style("HEAD -> ", fg="cyan", bold=True) if here and name == self.head.branch else ""
            labels.append(arrow + click.style(name, fg="green", bold=True))
        labels += [click.style(f"tag: {name}", fg="yellow", bold=True) for name in self.tags.get(commit_hash, ())]
        if not labels:
            return ""
        comma = click.style(", ", fg="yellow")
        return f" {click.style('(', fg='yellow')}{comma.join(labels)}{click.style(')', fg='yellow')}"


def one_line(commit: Commit, names: Names) -> str:
    """A commit in one line."""
    # save() gives commits the message "step N": said once, that is enough.
    step = f"step {commit.step}"
    extra = [] if commit.step is None or commit.subject == step else [step]
    extra += [metrics_line(commit.metrics)] if commit.metrics else []
    tail = click.style(f"  [{' '.join(extra)}]", dim=True) if extra else ""
    return f"{click.style(commit.short_hash, fg='yellow')}{names.of(commit.commit_hash)} {commit.subject}{tail}"


def full(commit: Commit, names: Names) -> Iterator[str]:
    """The lines that git's log would show, and the run, step and metrics."""
    yield click.style(f"commit {commit.commit_hash}", fg="yellow") + names.of(commit.commit_hash)
    if len(commit.parents) > 1:
        yield "Merge:   " + " ".join(parent[:10] for parent in commit.parents)
    yield f"Author:  {commit.author}"
    yield f"Date:    {date(commit.time)}"
    if commit.run_id is not None:
        yield f"Run:     {commit.run_id}"
    if commit.step is not None:
        yield f"Step:    {commit.step}"
    if commit.metrics:
        yield f"Metrics: {metrics_line(commit.metrics)}"
    if commit.code_commit is not None:
        branch = f" on {commit.code_branch}" if commit.code_branch else ""
        diff = f" ({commit.code_diff[:10]})" if commit.code_diff else ""
        yield f"Code:    {commit.code_commit[:10]}{branch}{f', modified{diff}' if commit.code_dirty else ''}"
    yield ""
    yield from (f"    {line}".rstrip() for line in commit.message.strip().splitlines())


def commit_data(commit: Commit) -> dict[str, Any]:
    """A commit for JSON."""
    code = None
    if commit.code_commit is not None or commit.code_branch is not None:
        code = {
            "commit": commit.code_commit,
            "branch": commit.code_branch,
            "dirty": commit.code_dirty,
            "diff": commit.code_diff,
        }
    return {
        "commit_hash": commit.commit_hash,
        "parents": list(commit.parents),
        "author": commit.author,
        "time": commit.time,
        "subject": commit.subject,
        "message": commit.message,
        "run_id": commit.run_id,
        "step": commit.step,
        "metrics": commit.metrics,
        "metadata": commit.metadata,
        "code": code,
    }


def named_data(commit: Commit, names: Names) -> dict[str, Any]:
    """A commit for JSON, with what points at it."""
    return {
        **commit_data(commit),
        "branches": names.branches.get(commit.commit_hash, []),
        "tags": names.tags.get(commit.commit_hash, []),
        "head": commit.commit_hash == names.head.commit,
    }
