"""The objects of the user's git repository: those that are pushed, and all that can be reached.

Ids are as git prints them: 40 digits, or 64 where objects are named by SHA-256. Nothing here reads a blob.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from coral.errors import GitCommandError
from coral.git.blobs import BLOCK, look_up
from coral.git.command import ask, converse, lines

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


def existing(folder: Path, names: Iterable[str], *, options: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """The objects that names lead to, as id and kind; names that lead to none are left out.

    Args:
        options: of git itself, such as ``--git-dir``.

    Raises:
        GitCommandError: git failed.
    """
    rest, found = iter(names), {}
    with converse(folder, [*options, "--no-replace-objects", "cat-file", "--batch-check"]) as talk:
        while block := list(islice(rest, BLOCK)):
            for name, answer in zip(block, look_up(talk, block), strict=True):
                if len(answer) == 3:
                    found[name] = (answer[0], answer[1])
    return found


# -- what can be reached


def blobs_since(
    folder: Path,
    tips: Iterable[str],
    *,
    known: Iterable[str] = (),
    remote: str | None = None,
    options: Sequence[str] = (),
) -> Iterator[tuple[str, Where]]:
    """The objects that tips reach, each once, and one place where it is; trees and tags may be among them.

    Args:
        tips: names or ids of commits and tags.
        known: ids of commits; what they reach is left out, as far as git sees that cheaply.
        remote: what was last seen of this remote's branches is left out.
        options: of git itself, such as ``--git-dir``.

    Raises:
        GitCommandError: git failed, or an object is missing, other than in a partial clone.
    """
    told = "".join(f"{tip}\n" for tip in tips) + "".join(f"^{ident}\n" for ident in known)
    but = ["--not", f"--remotes={remote}"] if remote is not None else []
    arguments = [*options, *_REV_LIST, "--in-commit-order", "--stdin", *but]
    return _placed(lines(folder, arguments, data=told.encode()))


def reachable_blobs(folder: Path, *, options: Sequence[str] = ()) -> Iterator[tuple[str, Where]]:
    """All objects that git keeps from its own garbage collection for being reachable, and one place of each.

    That is: all refs (stashes, remote-tracking branches and notes among them), the reflogs of all of them, and for the
    main and each linked worktree its HEAD and that one's reflog, its own refs, its index with what is in conflict, and
    what a merge, a rebase, a cherry-pick, an am or a bisect under way has noted. Trees and tags may be among them.

    Args:
        options: of git itself, such as ``--git-dir``.

    Raises:
        GitCommandError: git failed, or an object is missing, other than in a partial clone.
    """
    tips = _tips(folder, options)
    refs = {ident: name for ident, kind, name in _refs(folder, options=options) if kind in _NO_COMMITS}
    shared = dict(_held(folder, refs, options))
    own = dict(_held(folder, {ident: name for ident, (kind, name) in tips.items() if kind in _NO_COMMITS}, options))
    rest = {**own, **dict(_indexed(folder, options))}
    told = "".join(f"{ident}\n" for ident, (kind, _) in tips.items() if kind not in _NO_COMMITS)
    arguments = [*options, *_REV_LIST, "--in-commit-order", "--all", "--reflog", "--stdin"]
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


def _indexed(folder: Path, options: Sequence[str]) -> Iterator[tuple[str, Where]]:
    for line in lines(folder, [*options, *_REV_LIST, "--indexed-objects"]):
        ident, _, path = line.partition(b" ")
        yield ident.decode(), Where("index", os.fsdecode(path))


def _held(folder: Path, roots: Mapping[str, str], options: Sequence[str]) -> Iterator[tuple[str, Where]]:
    """The objects of trees and blobs that no commit need hold, by the name of what holds them."""
    if not roots:
        return
    name = ""
    told = "".join(f"{ident}\n" for ident in roots)
    for line in lines(folder, [*options, *_REV_LIST, "--stdin"], data=told.encode()):
        ident, _, path = line.partition(b" ")
        name = roots.get(ident.decode(), name)
        yield ident.decode(), Where(name, os.fsdecode(path))


def _tips(folder: Path, options: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Ids to kind and name of what holds objects and is no ref that all worktrees share.

    git lists the refs and the pseudo refs of one worktree only, and of a rebase under way nothing.
    """
    found: dict[str, tuple[str, str]] = {}
    for git_dir in _git_dirs(folder, options):
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


def _git_dirs(folder: Path, options: Sequence[str]) -> list[Path]:
    """The git folder of each worktree, the main one first."""
    answer = ask(folder, [*options, "rev-parse", "--git-common-dir"])
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
