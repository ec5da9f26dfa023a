"""Making a commit of an overlay, and moving a branch to it without losing anybody else's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypedDict

from coral.errors import (
    ConflictError,
    LockedError,
    NothingToCommitError,
    RefNotFoundError,
    UnsupportedValueError,
    UsageError,
)
from coral.history.commit import MAX_STEP, ROOT
from coral.ids import chunk_id
from coral.timings import step

if TYPE_CHECKING:
    from coral.git.enclosing import CodeState
    from coral.history import Commit, History
    from coral.ids import BlobId, CommitHash
    from coral.verbs.staging import Overlay

_ATTEMPTS = 100
_WRITE = "write git objects"
_MAX_NESTING = 100


class CommitObserver(Protocol):
    """Someone who wants to be linked to the commits of a repository, such as a run."""

    def trailers(self, *, step: int | None, metrics: Mapping[str, float] | None) -> Mapping[str, str]:
        """Trailers to write into the next commit, so that the link is atomic with it."""

    def committed(self, commit: Commit) -> None:
        """The branch points at the commit now."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a commit will say."""

    message: str
    author: str
    trailers: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    allow_empty: bool = False
    time: datetime | None = None
    sign: Callable[[bytes], str] | None = None


class CommitOptions(TypedDict, total=False):
    """What :meth:`Repository.commit` takes by keyword."""

    tags: Sequence[str]
    metadata: Mapping[str, object] | None
    allow_empty: bool
    step: int | None
    metrics: Mapping[str, float] | None
    sign: bool | str


def land(
    history: History,
    overlay: Overlay,
    draft: Draft,
    *,
    branch: str | None,
    written: Callable[[CommitHash], None] = lambda commit_hash: None,
) -> Commit:
    """Commit an overlay on a branch (or on a detached HEAD), by compare-and-swap.

    Args:
        overlay: what changes; its chunks must be durable already.
        branch: the branch to move; None moves a detached HEAD.
        written: told of the commit that the branch is about to be moved to. Whatever is raised afterwards, the branch
            itself says whether it was.

    Raises:
        NothingToCommitError: the overlay changes nothing.
        ConflictError: the branch moved since, and changed a part that the overlay changes as well, and that does not
            stand whatever becomes of it. The overlay lies over that move now.
    """
    with step(_WRITE):
        blobs = {
            name: None if manifest is None else history.write_blob(manifest.to_bytes())
            for name, manifest in overlay.parts.items()
        }
    for _ in range(_ATTEMPTS):
        tip = _tip(history, branch)
        if tip is None and overlay.base is not None:
            raise RefNotFoundError(f"the branch {branch!r} was deleted", hint="create it again, then commit")
        if tip != overlay.base:
            _check_unrelated(history, overlay, blobs, tip)
        if not draft.allow_empty and all(_part(history, tip, name) == oid for name, oid in blobs.items()):
            why = "what is staged is what the branch holds already" if blobs else "nothing is staged"
            raise NothingToCommitError(
                f"nothing to commit: {why}",
                hint="stage something that changed ('coral add'), or pass allow_empty=True (--allow-empty)",
            )
        with step(_WRITE):
            commit = _write(history, draft, tip, blobs)
        written(commit.commit_hash)
        try:
            with step("move the branch"):
                _move(history, branch, commit, tip)
        except LockedError:
            raise
        except ConflictError:
            if _tip(history, branch) == tip:
                raise  # no lost race: to try again would end no better
            continue
        return commit
    raise ConflictError(f"{branch or 'HEAD'} kept moving under {_ATTEMPTS} attempts to commit", hint="try again")


def _write(history: History, draft: Draft, tip: CommitHash | None, blobs: Mapping[str, BlobId | None]) -> Commit:
    return history.write_commit(
        base=tip,
        overlay=blobs,
        parents=[tip] if tip else [],
        message=draft.message,
        author=draft.author,
        trailers=_trailers(history, draft, tip, blobs),
        time=draft.time,
        sign=draft.sign,
    )


def _tip(history: History, branch: str | None) -> CommitHash | None:
    return history.branch_tip(branch) if branch is not None else history.head().commit


def _trailers(
    history: History, draft: Draft, tip: CommitHash | None, blobs: Mapping[str, BlobId | None]
) -> Mapping[str, str]:
    """The draft's, and of a signed commit what the signature is to cover beyond git's own hashes."""
    if draft.sign is None:
        return draft.trailers
    parts = {**history.parts(tip), **blobs}
    kept = {name: oid for name, oid in parts.items() if oid is not None}
    return {**draft.trailers, ROOT: root_of(history, kept)}


def root_of(history: History, parts: Mapping[str, BlobId]) -> str:
    """The BLAKE3 root of all manifests of a commit: of their names, and of the hashes of their bytes, in order.

    git names them by SHA-1; a signature that covers this root does not rest on it.
    """
    lines = (f"{chunk_id(history.read_blob(oid)).hex()} {name}\n" for name, oid in sorted(parts.items()))
    return f"b3:{chunk_id(''.join(lines).encode()).hex()}"


def _move(history: History, branch: str | None, commit: Commit, tip: CommitHash | None) -> None:
    reason = f"commit{'' if tip else ' (initial)'}: {commit.subject}"
    if branch is not None:
        history.move_branch(branch, commit.commit_hash, expected=tip, reason=reason)
    elif tip is not None:
        history.move_detached_head(commit.commit_hash, expected=tip, reason=reason)


def _check_unrelated(
    history: History, overlay: Overlay, blobs: Mapping[str, BlobId | None], tip: CommitHash | None
) -> None:
    """The overlay may be laid over a new tip only where the tip left the staged parts alone, or changed them alike."""
    by_hand = {name: oid for name, oid in blobs.items() if name not in overlay.standing}
    base = overlay.base
    touched = [
        name for name, oid in by_hand.items() if _part(history, tip, name) not in (_part(history, base, name), oid)
    ]
    if touched:
        # Told of this commit, the caller may try again: on top of it, and of no later one unseen.
        overlay.rebase(tip)
        raise ConflictError(
            f"another commit changed {', '.join(sorted(touched))} since you staged it",
            hint="look at the new commit ('coral log'); committing again puts yours on top of it",
        )


def _part(history: History, commit_hash: CommitHash | None, name: str) -> BlobId | None:
    return history.part(commit_hash, name) if commit_hash is not None else None


def build_trailers(
    *,
    step: int | None,
    metrics: Mapping[str, float] | None,
    metadata: Mapping[str, object] | None,
    code: CodeState | None,
) -> dict[str, str]:
    """The trailers that the repository itself writes. Raises UnsupportedValueError for what is not JSON."""
    trailers: dict[str, str] = {}
    if step is not None:
        trailers["Coral-Step"] = str(_whole(step))
    if metrics:
        trailers["Coral-Metrics"] = _json(
            {name: _named(_number(name, value)) for name, value in metrics.items()}, "metrics"
        )
    if metadata:
        trailers["Coral-Metadata"] = _json(dict(metadata), "metadata")
    if code is not None and code.commit is not None:
        trailers["Coral-Code-Commit"] = code.commit
        if code.branch is not None:
            trailers["Coral-Code-Branch"] = code.branch
        trailers["Coral-Code-Dirty"] = str(code.dirty).lower()
        if code.diff_hash is not None:
            trailers["Coral-Code-Diff"] = code.diff_hash
    return trailers


def _whole(step: object) -> int:
    try:
        whole = int(step.__index__())  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise UsageError(f"step must be a whole number, not {step!r}") from None
    if abs(whole) > MAX_STEP:
        raise UsageError("step must be a whole number of at most 63 bits")
    return whole


def _number(name: str, value: object) -> float:
    # numpy scalars and 0-d tensors of any framework, without importing one.
    item = getattr(value, "item", None)
    try:
        plain = item() if callable(item) else value
        if isinstance(plain, bool | int | float):
            return float(plain)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass  # an array of several, or a number out of range
    raise UsageError(f"metric {name!r} must be a number, not {type(value).__name__}")


def _named(number: float) -> float | str:
    """A number as JSON can hold it: NaN and the infinities by the names that :attr:`Commit.metrics` knows."""
    return number if math.isfinite(number) else json.dumps(number)


def _json(value: object, what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
        text.encode()
        nesting = _nesting(value)
    except (TypeError, ValueError) as error:
        raise UnsupportedValueError(f"{what} must be JSON: {error}") from None
    except RecursionError:
        nesting = _MAX_NESTING + 1
    if nesting > _MAX_NESTING:  # a reader further down its stack than this writer could not take it apart
        raise UnsupportedValueError(f"{what} must not be nested deeper than {_MAX_NESTING} levels")
    return text


def _nesting(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_nesting, value), default=0) if isinstance(value, list | tuple) else 0
