"""Which branch a run's commits land on, so that two live runs never share one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from coral.errors import CoralError, RefNotFoundError
from coral.storage.contents import lock
from coral.storage.locks import file_lock

if TYPE_CHECKING:
    from coral.repository import Repository

_LOCK_SECONDS = 30.0
_NOT_IN_A_SLUG = re.compile(r"[^A-Za-z0-9_-]+")


def name_for(name: str, experiment_id: str) -> str:
    """``runs/<slug of the name>-<id>``."""
    slug = _NOT_IN_A_SLUG.sub("-", name).strip("-_")[:40].strip("-_").lower()
    return f"runs/{slug or 'run'}-{experiment_id}"


@contextlib.contextmanager
def one_at_a_time(repo: Repository) -> Iterator[None]:
    """Let runs start one after the other, so that two do not take the same branch; a disk that refuses is no reason
    not to start."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(CoralError):
            stack.enter_context(file_lock(repo.folder.path(lock("starting")), timeout=_LOCK_SECONDS))
        yield


def claim(repo: Repository, own_name: str, is_taken: Callable[[str], bool]) -> str | None:
    """Pin the repository to its branch, or to a branch of the run's own when that is taken or HEAD is detached."""
    branch = repo.branch
    if branch is not None and not is_taken(branch):
        return repo.pin(branch)
    return start_at(repo, own_name, branch or "HEAD")


def start_at(repo: Repository, own_name: str, ref: str) -> str | None:
    """Pin the repository to a new branch that starts at a commit; the shell's HEAD does not move."""
    try:
        repo.create_branch(own_name, ref)
    except RefNotFoundError:
        # No commit yet. The branch comes into being with the run's first one, where the repository allows that.
        try:
            return repo.pin(own_name)
        except RefNotFoundError:
            return repo.pin(repo.branch)
    return repo.pin(own_name)
