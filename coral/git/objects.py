"""The blobs of the user's git repository: of a tree, of the index, of what is pushed, of all that can be reached.

Ids are as git prints them: 40 digits, or 64 where objects are named by SHA-256. Nothing here reads an object that
nobody asked for: git lists ids and sizes, and contents are read in their turn from one process.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from coral.errors import GitCommandError
from coral.git.command import Conversation, ask, converse, lines, run

T = TypeVar("T")
LARGEST = 256 << 20
"""Bytes of the largest blob that is read: a manifest of two million tensors."""
HEAD_BYTES = 64
_PIECE = 1 << 16
# Ids that are told, and the answers, must fit into a pipe of 16 KiB while nobody reads.
_BLOCK = 128
_FILES = (b"100644", b"100755")
_REV_LIST = ("--no-replace-objects", "rev-list", "--objects", "--missing=allow-promisor")
_NO_COMMITS = ("tree", "blob")
_OWN_REFS = ("refs/bisect", "refs/worktree", "refs/rewritten")
# Files in git's folder, or records of its newer table of refs.
_PSEUDO_REFS = (
    *("HEAD", "ORIG_HEAD", "MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD", "AUTO_MERGE"),
    *("FETCH_HEAD", "BISECT_HEAD", "BISECT_EXPECTED_REV", "MERGE_AUTOSTASH"),
)
_PSEUDO_REF = re.compile(r"[A-Z][A-Z_]*")
_UNDER_WAY = ("rebase-merge", "rebase-apply", "sequencer")
_ID = re.compile(rb"\b(?:[0-9a-f]{64}|[0-9a-f]{40})\b")


class Where(NamedTuple):
    """One of the places where a blob is.

    Attributes:
        commit: a commit's hash, or what else holds it: ``index``, a ref, a file of git's such as ``AUTO_MERGE``.
        path: the file's path there; empty for a blob that has none.
    """

    commit: str
    path: str


def blobs_at(folder: Path, treeish: str) -> dict[str, str]:
    """The files of a commit or tree: path to blob id; neither symbolic links nor submodules. Raises GitCommandError."""
    output = run(folder, ["ls-tree", "-r", "-z", "--full-tree", "--end-of-options", treeish])
    return dict(_listed(output, place=2))


def index_blobs(folder: Path) -> dict[str, str]:
    """The files of the index: path from the top to blob id; none that is in conflict. Raises GitCommandError."""
    output = run(folder, ["ls-files", "--stage", "-z", "--full-name", "--", ":/"])
    return dict(_listed(output, place=1, last=b"0"))


def _listed(output: bytes, *, place: int, last: bytes | None = None) -> Iterator[tuple[str, str]]:
    for entry in output.split(b"\0")[:-1]:
        head, _, path = entry.partition(b"\t")
        words = head.split(b" ")
        if words[0] in _FILES and last in (None, words[-1]):
            yield os.fsdecode(path), words[place].decode()


# -- contents


def read_blobs(
    folder: Path, ids: Iterable[str], *, wanted: Callable[[bytes], bool] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Blobs by id, one at a time; what is no blob, is not there, or is larger than any manifest is left out.

    Args:
        wanted: is given the first 64 bytes of each blob, and says whether to read the rest.

    Raises:
        GitCommandError: git failed.
    """
    return read_found(folder, ((ident, ident) for ident in ids), wanted=wanted)


def read_found(
    folder: Path, found: Iterable[tuple[str, T]], *, wanted: Callable[[bytes], bool] | None = None
) -> Iterator[tuple[T, bytes]]:
    """As :func:`read_blobs`, of ids that come with something to tell them by."""
    rest = iter(found)
    first = list(islice(rest, _BLOCK))
    if not first:
        return
    with (
        converse(folder, ["--no-replace-objects", "cat-file", "--batch-check"]) as sizes,
        converse(folder, ["--no-replace-objects", "cat-file", "--batch"]) as contents,
    ):
        block = first
        while block:
            answers = _check(sizes, [ident for ident, _ in block])
            small = [(ident, what) for (ident, what), answer in zip(block, answers, strict=True) if _is_small(answer)]
            contents.tell(b"".join(f"{ident}\n".encode() for ident, _ in small))
            for _, what in small:
                data = _read_one(contents, wanted)
                if data is not None:
                    yield what, data
            block = list(islice(rest, _BLOCK))


def existing(folder: Path, names: Iterable[str], *, options: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """The objects that names lead to, as id and kind; names that lead to none are left out.

    Args:
        options: of git itself, such as ``--git-dir``.

    Raises:
        GitCommandError: git failed.
    """
    rest, found = iter(names), {}
    with converse(folder, [*options, "--no-replace-objects", "cat-file", "--batch-check"]) as talk:
        while block := list(islice(rest, _BLOCK)):
            for name, answer in zip(block, _check(talk, block), strict=True):
                if len(answer) == 3:
                    found[name] = (answer[0], answer[1])
    return found


def _check(talk: Conversation, names: Sequence[str]) -> list[list[str]]:
    """What git says of each name: id, kind and size; fewer words for one that is missing."""
    talk.tell(b"".join(f"{name}\n".encode() for name in names))
    answers = [talk.stdout.readline() for _ in names]
    if not all(answers):
        raise talk.failure()
    return [[] if answer.endswith((b" missing\n", b" ambiguous\n")) else answer.decode().split() for answer in answers]


def _is_small(answer: Sequence[str]) -> bool:
    return len(answer) == 3 and answer[1] == "blob" and int(answer[2]) <= LARGEST


def _read_one(talk: Conversation, wanted: Callable[[bytes], bool] | None) -> bytes | None:
    words = talk.stdout.readline().split()
    if len(words) != 3:
        raise talk.failure() if not words else GitCommandError(f"git lost the object {words[0].decode()}")
    size = int(words[2])
    head = talk.stdout.read(min(size, HEAD_BYTES))
    rest = size - len(head)
    if wanted is None or wanted(head):
        data = head + talk.stdout.read(rest)
    else:
        data = None
        while rest > 0 and (piece := talk.stdout.read(min(rest, _PIECE))):
            rest -= len(piece)
    if talk.stdout.read(1) != b"\n":
        raise talk.failure()
    return data


# -- what can be reached


def blobs_since(
    folder: Path, tips: Iterable[str], *, known: Iterable[str] = (), remote: str | None = None
) -> Iterator[tuple[str, Where]]:
    """The objects that tips reach, each once, and one place where it is; trees and tags may be among them.

    Args:
        tips: names or ids of commits and tags.
        known: ids of commits; what they reach is left out, as far as git sees that cheaply.
        remote: what was last seen of this remote's branches is left out.

    Raises:
        GitCommandError: git failed, or an object is missing, other than in a partial clone.
    """
    told = "".join(f"{tip}\n" for tip in tips) + "".join(f"^{ident}\n" for ident in known)
    but = ["--not", f"--remotes={remote}"] if remote is not None else []
    return _placed(lines(folder, [*_REV_LIST, "--in-commit-order", "--stdin", *but], data=told.encode()))


def reachable_blobs(folder: Path) -> Iterator[tuple[str, Where]]:
    """All objects that git keeps from its own garbage collection for being reachable, and one place of each.

    That is: all refs (stashes, remote-tracking branches and notes among them), the reflogs of all of them, and for the
    main and each linked worktree its HEAD and that one's reflog, its own refs, its index with what is in conflict, and
    what a merge, a rebase, a cherry-pick, an am or a bisect under way has noted. Trees and tags may be among them.

    Raises:
        GitCommandError: git failed, or an object is missing, other than in a partial clone.
    """
    tips = _tips(folder)
    shared = dict(_held(folder, {ident: name for ident, kind, name in _refs(folder) if kind in _NO_COMMITS}))
    own = dict(_held(folder, {ident: name for ident, (kind, name) in tips.items() if kind in _NO_COMMITS}))
    rest = {**own, **dict(_indexed(folder))}
    told = "".join(f"{ident}\n" for ident, (kind, _) in tips.items() if kind not in _NO_COMMITS)
    arguments = [*_REV_LIST, "--in-commit-order", "--all", "--reflog", "--stdin"]
    for ident, where in _placed(lines(folder, arguments, data=told.encode())):
        rest.pop(ident, None)
        # git lists what refs to trees and blobs hold after any commit.
        yield ident, shared.pop(ident, where)
    yield from (shared | rest).items()


def _placed(output: Iterable[bytes]) -> Iterator[tuple[str, Where]]:
    """The objects that git lists in the order of the commits that hold them."""
    commit = ""
    for line in output:
        ident, space, path = line.partition(b" ")
        if space:
            yield ident.decode(), Where(commit, os.fsdecode(path))
        else:
            commit = ident.decode()


def _indexed(folder: Path) -> Iterator[tuple[str, Where]]:
    for line in lines(folder, [*_REV_LIST, "--indexed-objects"]):
        ident, _, path = line.partition(b" ")
        yield ident.decode(), Where("index", os.fsdecode(path))


def _held(folder: Path, roots: Mapping[str, str]) -> Iterator[tuple[str, Where]]:
    """The objects of trees and blobs that no commit need hold, by the name of what holds them."""
    if not roots:
        return
    name = ""
    for line in lines(folder, [*_REV_LIST, "--stdin"], data="".join(f"{ident}\n" for ident in roots).encode()):
        ident, _, path = line.partition(b" ")
        name = roots.get(ident.decode(), name)
        yield ident.decode(), Where(name, os.fsdecode(path))


def _tips(folder: Path) -> dict[str, tuple[str, str]]:
    """Ids to kind and name of what holds objects and is no ref that all worktrees share.

    git lists the refs and the pseudo refs of one worktree only, and of a rebase under way nothing.
    """
    found: dict[str, tuple[str, str]] = {}
    for git_dir in _git_dirs(folder):
        own = [f"--git-dir={git_dir}"]
        noted = _noted(git_dir)
        found |= {ident: (kind, noted[ident]) for ident, (_, kind) in existing(folder, noted, options=own).items()}
        pseudo = existing(folder, _PSEUDO_REFS, options=own)
        found |= {ident: (kind, name) for name, (ident, kind) in pseudo.items()}
        found |= {ident: (kind, name) for ident, kind, name in _refs(folder, *_OWN_REFS, options=own)}
    return found


def _refs(folder: Path, *under: str, options: Sequence[str] = ()) -> Iterator[tuple[str, str, str]]:
    """Id, kind and name of refs."""
    arguments = [*options, "for-each-ref", "--format=%(objectname) %(objecttype) %(refname)", *under]
    for line in lines(folder, arguments):
        ident, kind, name = line.decode(errors="surrogateescape").split(" ", 2)
        yield ident, kind, name


def _git_dirs(folder: Path) -> list[Path]:
    """The git folder of each worktree, the main one first."""
    answer = ask(folder, ["rev-parse", "--git-common-dir"])
    if answer is None:
        raise GitCommandError(f"git does not open the repository around {folder}")
    common = folder / answer.rstrip("\n")
    with contextlib.suppress(OSError):
        linked = sorted(path for path in (common / "worktrees").iterdir() if (path / "HEAD").is_file())
        return [common, *linked]
    return [common]


def _noted(git_dir: Path) -> dict[str, str]:
    """The ids that stand in the files of what is under way, and in which of them."""
    files = [path for path in _files(git_dir) if _PSEUDO_REF.fullmatch(path.name)]
    files += [path for name in _UNDER_WAY for path in _files(git_dir / name)]
    found: dict[str, str] = {}
    for path in files:
        with contextlib.suppress(OSError):
            found |= {ident.decode(): path.relative_to(git_dir).as_posix() for ident in _ID.findall(path.read_bytes())}
    return found


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.is_file())
    return []
