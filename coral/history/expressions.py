"""Every way to name a commit: git's grammar of revisions, as far as it names one commit.

``main``, ``v1``, ``3f2a9c``, ``HEAD``, ``@``, ``refs/heads/main``, ``origin/main``, each followed by any of ``~2``,
``^``, ``^2``, ``^{commit}``; ``main@{2}``, ``@{1}`` from a reflog, ``@{-1}`` for the branch one was on before.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from coral.errors import ConflictError, InvalidNameError, RefNotFoundError
from coral.format.names import check_ref, check_ref_name
from coral.history.commit import CommitObject, is_hash
from coral.history.libgit import Handle
from coral.history.refs import BRANCHES, TAGS, Refs, near_misses
from coral.ids import CommitHash

_PARTS = re.compile(r"(?P<base>(?:(?!@\{)[^~^])*)(?:@\{(?P<entry>-?\d{1,9})\})?(?P<steps>.*)", re.ASCII | re.DOTALL)
_STEP = re.compile(r"~(?P<up>\d{0,9})|\^\{(?:commit)?\}|\^(?P<parent>\d{0,9})", re.ASCII)
# The order in which git looks a name up.
_PLACES = ("refs/", TAGS, BRANCHES, "refs/remotes/")
_SPECIAL = re.compile(r"HEAD|[A-Z]+_HEAD", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{4,39}", re.ASCII)
_MAX_TAG_DEPTH = 10


class Expressions:
    """Looks names up in one repository; ``read`` gives a commit by its hash."""

    def __init__(self, handle: Handle, refs: Refs, read: Callable[[CommitHash], CommitObject]) -> None:
        self._handle = handle
        self._refs = refs
        self._read = read

    def resolve(self, expression: str) -> CommitHash:
        """The full hash of the commit that an expression names.

        Raises:
            RefNotFoundError: it names nothing, or something that is not a commit; the hint has near misses.
            InvalidNameError: it is not of the grammar.
            UsageError: it is no text.
        """
        match = _PARTS.fullmatch(check_ref(expression))
        if match is None or not expression:
            raise _invalid(expression)
        base, entry, steps = match["base"], match["entry"], _steps(match["steps"], expression)
        found = self._entry(base, int(entry), expression) if entry is not None else self._base(base, expression)
        for up, parent in steps:
            found = self._step(found, up, parent, expression)
        return found

    def peel(self, oid: str, expression: str) -> CommitHash:
        """The commit that an object is, or that it tags. Raises RefNotFoundError for other objects."""
        for _ in range(_MAX_TAG_DEPTH):
            kind, data = self._handle.read(oid)
            if kind == "commit":
                return CommitHash(oid)
            if kind != "tag":
                raise RefNotFoundError(f"{expression!r} names a {kind}, not a commit")
            oid = data[len(b"object ") :][:40].decode("latin-1")
            if not is_hash(oid):
                break
        raise RefNotFoundError(f"{expression!r} names a malformed tag, not a commit", hint="run coral fsck")

    # -- the name itself

    def _base(self, base: str, expression: str) -> CommitHash:
        if is_hash(base):
            if not self._handle.exists(base):
                raise self._unknown(base, expression)
            return self.peel(base, expression)
        ref = self._ref(base or "HEAD", expression)
        if ref is not None:
            return self.peel(ref[1], expression)
        if _PREFIX.fullmatch(base):
            return self._short(base, expression)
        raise self._unknown(base, expression)

    def _ref(self, name: str, expression: str) -> tuple[str, str] | None:
        """The full name of the ref that a name means, and the object it leads to."""
        name = "HEAD" if name == "@" else name
        if _SPECIAL.fullmatch(name):
            names = [name]
        else:
            try:
                check_ref_name(name)
            except InvalidNameError:
                raise _invalid(expression) from None
            names = [name] if name.startswith("refs/") else []
        for full in (*names, *(place + name for place in _PLACES), f"refs/remotes/{name}/HEAD"):
            oid = self._refs.oid(full)
            if oid is not None:
                return full, oid
        return None

    def _short(self, prefix: str, expression: str) -> CommitHash:
        found = self._handle.with_prefix(prefix)
        # Blobs and trees share the name space, but nobody means them.
        means = [oid for oid in found if self._handle.kind(oid) in ("commit", "tag")] if len(found) > 1 else found
        if not found:
            raise self._unknown(prefix, expression)
        if len(means) != 1:
            listed = ", ".join(oid[:12] for oid in (means or found)[:5])
            raise RefNotFoundError(f"the short hash {prefix!r} is ambiguous", hint=f"give more digits: {listed}")
        return self.peel(means[0], expression)

    # -- what follows it

    def _entry(self, base: str, entry: int, expression: str) -> CommitHash:
        if entry < 0:
            if base:
                raise _invalid(expression)
            return self._base(self._branch_before(-entry, expression), expression)
        name = base or self._refs.head().branch or "HEAD"
        found = self._ref(name, expression)
        if found is None:
            raise self._unknown(name, expression)
        moves = self._refs.reflog(found[0])
        targets = [move.new for move in moves] + [move.old for move in moves[-1:]]
        oid = (targets[entry] if entry < len(targets) else None) if targets or entry else found[1]
        if oid is None:
            raise RefNotFoundError(
                f"{expression!r} names no commit", hint=f"the reflog of {name} knows {len(moves)} of its moves"
            )
        return self.peel(oid, expression)

    def _branch_before(self, count: int, expression: str) -> str:
        moves = (move.reason.split(" ") for move in self._refs.reflog("HEAD"))
        left = [words[3] for words in moves if words[:3] == ["checkout:", "moving", "from"] and len(words) > 3]
        if count > len(left):
            raise RefNotFoundError(f"{expression!r} names no branch", hint=f"HEAD was moved {len(left)} times")
        return left[count - 1]

    def _step(self, commit_hash: CommitHash, up: int, parent: int, expression: str) -> CommitHash:
        for _ in range(up):
            parents = self._read(commit_hash).parents
            if len(parents) < parent:
                what = f"has {len(parents)} parents" if parents else "is the first commit"
                raise RefNotFoundError(f"{expression!r} names no commit", hint=f"{commit_hash[:10]} {what}")
            commit_hash = parents[parent - 1]
        return commit_hash

    # -- errors

    def _unknown(self, base: str, expression: str) -> RefNotFoundError:
        return RefNotFoundError(f"{expression!r} names no commit, branch or tag", hint=self._hint(base))

    def _hint(self, base: str) -> str:
        try:
            head = self._refs.head()
        except ConflictError:
            head = None
        if head is not None and head.commit is None and base in ("HEAD", "@", "", head.branch):
            return f"the branch {head.branch!r} has no commit yet; make one with coral commit"
        if 0 < len(base) < 4 and not base.strip("0123456789abcdef"):
            return "a short hash has at least 4 digits"
        names = [*self._handle.refs(BRANCHES), *self._handle.refs(TAGS)]
        return near_misses(base, names) or "list names with coral branch and coral tag, hashes with coral log"


def _steps(text: str, expression: str) -> list[tuple[int, int]]:
    """``~3^2`` as pairs: how often, to which parent."""
    steps, position = [], 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            raise _invalid(expression)
        position = match.end()
        if match["up"] is not None:
            steps.append((int(match["up"] or 1), 1))
        elif match["parent"] is not None:
            parent = int(match["parent"] or 1)
            steps.append((1 if parent else 0, parent))
    return steps


def _invalid(expression: str) -> InvalidNameError:
    return InvalidNameError(
        f"{expression!r} is not a valid way to name a commit",
        hint="name a branch, a tag or a hash; HEAD~2 is two commits before HEAD",
    )
