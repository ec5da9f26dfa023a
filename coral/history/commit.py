"""Commits: what a commit says, and the bytes of the git object that says it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

from coral.errors import CorruptionError, UsageError
from coral.history import message as messages
from coral.ids import CommitHash, RunId

RUN, STEP, METRICS, METADATA = "Coral-Run", "Coral-Step", "Coral-Metrics", "Coral-Metadata"
ROOT = "Coral-Root"
CODE_COMMIT, CODE_BRANCH = "Coral-Code-Commit", "Coral-Code-Branch"
CODE_DIRTY, CODE_DIFF = "Coral-Code-Dirty", "Coral-Code-Diff"

MAX_STEP = 2**63 - 1
"""The largest step, either way from zero: what a column of a table holds."""

_HASH = re.compile(r"[0-9a-f]{40}", re.ASCII)
_IDENT = re.compile(r"(?P<who>.*?) (?P<when>-?\d{1,18}) (?P<sign>[+-])(?P<hours>\d\d)(?P<minutes>\d\d)", re.ASCII)
# JSON has no such numbers, so that a commit holds their names.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NAME_AND_EMAIL = re.compile(r"(.*?)<([^<>]*)>\s*", re.DOTALL)
# As git's ident.c: these may not begin or end a name.
_CRUD = "".join(map(chr, range(33))) + ".,:;<>\"\\'"


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit.

    Attributes:
        commit_hash: its id, 40 hexadecimal digits.
        parents: the hashes of the commits that it follows; two or more for a merge.
        message: as it was given, without the trailers.
        author: ``Name <email>``, or a name alone.
        time: when it was made, to the second, in the author's time zone.
        trailers: coral's own notes, by key (``Coral-Run``).
    """

    commit_hash: CommitHash
    parents: tuple[CommitHash, ...]
    message: str
    author: str
    time: datetime
    trailers: Mapping[str, str] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.short_hash} {self.subject}"

    @property
    def short_hash(self) -> str:
        """The first ten digits of the hash."""
        return self.commit_hash[:10]

    @property
    def subject(self) -> str:
        """The first line of the message."""
        return self.message.strip().split("\n", 1)[0].rstrip()

    @property
    def run_id(self) -> RunId | None:
        """The experiment that made the commit."""
        text = self.trailers.get(RUN)
        return RunId(text) if text is not None else None

    @property
    def step(self) -> int | None:
        """The training step that the weights are of."""
        text = self.trailers.get(STEP, "")
        step = int(text) if re.fullmatch(r"-?\d{1,19}", text, re.ASCII) else None
        return step if step is not None and abs(step) <= MAX_STEP else None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics given with the commit; empty when none were."""
        numbers = ((key, _number(value)) for key, value in self._json(METRICS).items())
        return {key: number for key, number in numbers if number is not None}

    @property
    def metadata(self) -> dict[str, object]:
        """The metadata given with the commit; empty when none was."""
        return self._json(METADATA)

    @property
    def root(self) -> str | None:
        """Of a signed commit, the BLAKE3 root of its manifests."""
        return self.trailers.get(ROOT)

    @property
    def code_commit(self) -> str | None:
        """The commit of the enclosing git repository, which holds the code."""
        return self.trailers.get(CODE_COMMIT)

    @property
    def code_branch(self) -> str | None:
        """The branch that the code was on."""
        return self.trailers.get(CODE_BRANCH)

    @property
    def code_dirty(self) -> bool | None:
        """Whether tracked code files were modified; None when it is not known."""
        return {"true": True, "false": False}.get(self.trailers.get(CODE_DIRTY, ""))

    @property
    def code_diff(self) -> str | None:
        """A hash of the changes to tracked code files; None when there were none, or it is not known."""
        return self.trailers.get(CODE_DIFF)

    def _json(self, key: str) -> dict[str, object]:
        try:
            value = json.loads(self.trailers.get(key, "{}"))
        except (ValueError, RecursionError):  # a trailer written by hand
            return {}
        return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, str):
        return _NOT_FINITE.get(value)
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # written by hand
        return None


class CommitObject(NamedTuple):
    """The git object of a commit, field by field.

    ``author`` is git's ``Name <email>``; ``when`` and ``committed`` are seconds since 1970; ``offset`` is the time
    zone in minutes; ``text`` is message and trailers together; ``signature`` is armoured text, of all the others.
    """

    tree: str
    parents: tuple[CommitHash, ...]
    author: str
    when: int
    offset: int
    committed: int
    text: str
    signature: str | None = None

    def to_bytes(self) -> bytes:
        """The object's bytes; author and committer are the same."""
        stamp = f"{self.author} {self.when} {format_offset(self.offset)}"
        lines = [f"tree {self.tree}", *(f"parent {parent}" for parent in self.parents)]
        lines += [f"author {stamp}", f"committer {stamp}"]
        if self.signature is not None:
            lines.append("gpgsig " + "\n ".join(self.signature.rstrip("\n").split("\n")))
        lines += ["", self.text]
        return "\n".join(lines).encode()

    @classmethod
    def from_bytes(cls, data: bytes, commit_hash: CommitHash) -> CommitObject:
        """Read a commit object, whoever wrote it. Raises CorruptionError."""
        head, _, text = data.decode("utf-8", "replace").partition("\n\n")
        fields: dict[str, list[str]] = {}
        for line in head.split("\n"):
            key, _, value = line.partition(" ")
            fields.setdefault(key, []).append(value)
        author, committer = (_IDENT.fullmatch(fields.get(key, [""])[0]) for key in ("author", "committer"))
        (tree,), parents = fields.get("tree", [""])[:1], fields.get("parent", [])
        if author is None or committer is None or not all(map(is_hash, (tree, *parents))):
            raise CorruptionError(f"the commit {commit_hash} is malformed", hint="run coral fsck")
        offset = (int(author["hours"]) * 60 + int(author["minutes"])) * (-1 if author["sign"] == "-" else 1)
        followed, when = tuple(map(CommitHash, parents)), int(author["when"])
        return cls(tree, followed, author["who"], when, offset, int(committer["when"]), text)

    def commit(self, commit_hash: CommitHash) -> Commit:
        """What the object says."""
        message, trailers = messages.decode(self.text)
        author = self.author.removesuffix("<>").strip()
        return Commit(commit_hash, self.parents, message, author, to_datetime(self.when, self.offset), trailers)


def is_hash(text: str) -> bool:
    """Whether a text is a full hash."""
    return _HASH.fullmatch(text) is not None


def identity(author: str) -> str:
    """Git's ``Name <email>`` for ``Name <email>`` or a name alone, cleaned as git does.

    Raises:
        UsageError: no name is left.
    """
    messages.check_text(author, "the author")
    match = _NAME_AND_EMAIL.fullmatch(author)
    name, email = (match[1], match[2]) if match else (author, "")
    name, email = (re.sub(r"[<>\n]", "", text.strip(_CRUD)) for text in (name, email))
    if not name:
        raise UsageError(f"{author!r} is not an author", hint="write it as 'Name <email>', or a name alone")
    return f"{name} <{email}>"


def to_datetime(seconds: int, offset: int) -> datetime:
    """A time of git's, aware; one that the calendar does not reach becomes the nearest that it does."""
    zone = timezone(timedelta(minutes=offset if abs(offset) < 24 * 60 else 0))
    try:
        return datetime.fromtimestamp(seconds, zone)
    except (ValueError, OverflowError, OSError):
        return datetime(1970, 1, 1, tzinfo=UTC) if seconds < 0 else datetime(9999, 1, 1, tzinfo=UTC)


def from_datetime(time: datetime) -> tuple[int, int]:
    """Seconds since 1970 and time zone in minutes; a naive time is local. Raises UsageError before 1970."""
    aware = time.astimezone() if time.tzinfo is None else time
    seconds, offset = int(aware.timestamp()), aware.utcoffset() or timedelta()
    if seconds < 0:
        raise UsageError(f"{time} is before 1970, which git cannot store")
    return seconds, int(offset.total_seconds()) // 60


def format_offset(minutes: int) -> str:
    """A time zone as git writes it (``+0530``)."""
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02}{rest:02}"
