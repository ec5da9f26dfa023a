"""The git repository that holds the user's code: where it is, which commit it is at, and who commits there.

Nothing here writes, and nothing here fails: code that is in no repository, a machine without git, a repository that
git refuses to read are all None. Asking runs no program that the repository's own configuration names.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coral.git.command import ask
from coral.ids import code_hash

_STATUS = (
    *("status", "--porcelain=v2", "-z", "--branch", "--no-ahead-behind", "--no-renames"),
    *("--untracked-files=no", "--ignore-submodules=all"),
    # Models that coral keeps are no code, and git would read all of one to see whether it changed.
    *("--", ":(top,exclude,attr:filter=coral)"),
)
# In each kind of line: the old mode and blob, the mode on the disk, and the path, which is last.
_FIELDS = {"1 ": (3, 6, 5, 8), "u ": (4, 8, 6, 10)}
_LINK, _NO_FILE = "120000", "000000"
_READ_BYTES = 16 << 20
_HASH = re.compile(r"[0-9a-f]{40,64}", re.ASCII)
_NO_NAME = re.compile(r"[\x00-\x20.,:;<>\"\\']*", re.ASCII)
_HEADER = re.compile(r"\s*\[\s*([^\]]*?)\s*\]")
_LOCAL_FILTERS = ("config", "--show-scope", "--null", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process)$")
_OWN_SCOPES = ("local", "worktree")
_SETTINGS = ("config.worktree", "config")
_SETTINGS_BYTES = 1 << 20
# What git, and coral, write into; a link in its place leads into somebody else's.
_WRITTEN = ("config", "info", "coral")

Owner = Literal["this", "unsaid", "another"]
"""Whose repository a ``.git`` leads to: that of the folder it lies in, of another one, or nothing says."""


@dataclass(frozen=True, slots=True)
class CodeState:
    """Where the code is: ``commit`` is None before the first one, ``branch`` is None when HEAD is detached.

    ``dirty`` says whether a tracked file is modified or staged; untracked files do not count, nor does what coral's
    filter keeps. ``diff_hash`` is a hash of what changed against the commit, for trees that are dirty: the same for the
    same changes, whether they are staged or not.
    """

    commit: str | None
    branch: str | None
    dirty: bool
    diff_hash: str | None = None


def find_git(path: Path) -> Path | None:
    """The ``.git`` folder (or file, in a linked worktree) of the repository around a path; None for none."""
    start = Path(os.path.abspath(path))
    for folder in (start, *start.parents):
        if folder.name == ".coral":
            continue  # the history is not the user's code
        candidate = folder / ".git"
        if _git_dir(candidate) is not None:
            return candidate
    return None


def is_git_dir(folder: Path) -> bool:
    """Whether a folder is one of git's own, whatever it is called."""
    return (folder / "HEAD").is_file() and (folder / "objects").is_dir()


def common_dir(path: Path) -> Path | None:
    """The git folder that all worktrees of the repository around a path share; None for none."""
    found = find_git(path)
    git_dir = _git_dir(found) if found is not None else None
    return shared_dir(git_dir) if git_dir is not None else None


def shared_dir(git_dir: Path) -> Path:
    """The git folder that all worktrees share, by the one of a worktree."""
    shared = _first_line(git_dir / "commondir")
    return Path(os.path.normpath(git_dir / shared)) if shared else git_dir


def owner(folder: Path) -> Owner:
    """Whose the repository is that the ``.git`` in a folder leads to, by what only that repository's owner can say.

    A ``.git`` that came with an archive may lead anywhere. A linked worktree is this folder's where git's note of it
    names this ``.git``; a repository whose folder is elsewhere, such as a submodule's, where its ``core.worktree``
    names this folder.
    """
    dot_git = folder / ".git"
    git_dir = _git_dir(dot_git)
    if git_dir is None:
        return "unsaid"
    git_dir = Path(os.path.realpath(git_dir))
    if os.path.lexists(git_dir / "commondir"):
        return "this" if not dot_git.is_symlink() and _is_linked_from(git_dir, dot_git) else "another"
    if git_dir == Path(os.path.realpath(folder)) / ".git":
        return "another" if any((git_dir / name).is_symlink() for name in _WRITTEN) else "this"
    worktree = _setting(git_dir, "worktree")
    if worktree is not None:
        return "this" if _is_same(git_dir / worktree, folder) and not dot_git.is_symlink() else "another"
    # Beside the .git of a folder that is not this one there is another worktree.
    is_another = git_dir.name == ".git" or (_setting(git_dir, "bare") or "").lower() == "true"
    return "another" if is_another else "unsaid"


def _is_linked_from(git_dir: Path, dot_git: Path) -> bool:
    """Whether this is git's folder of the linked worktree with this ``.git``, within the repository that it names."""
    back = git_dir / _first_line(git_dir / "gitdir")
    common = git_dir / _first_line(git_dir / "commondir")
    return (
        back.name == dot_git.name
        and _is_same(back.parent, dot_git.parent)
        and git_dir.parent.name == "worktrees"
        and _is_same(common, git_dir.parent.parent)
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _setting(git_dir: Path, name: str) -> str | None:
    """What a git folder's own configuration says of ``core``; None where it does not, in a way understood here."""
    for file in _SETTINGS:
        found, section = None, ""
        for line in _text(git_dir / file).splitlines():
            header = _HEADER.match(line)
            section = header[1].lower() if header is not None else section
            key, equals, value = line[header.end() if header is not None else 0 :].partition("=")
            if equals and section == "core" and key.strip().lower() == name:
                found = value.strip()
        if found:
            return _unquoted(found)
    return None


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return re.sub(r"\\(.)", r"\1", value)


def code_state(path: Path) -> CodeState | None:
    """Commit, branch and changes of the repository around a path; None for none, or when git cannot say."""
    found = find_git(path)
    if found is None:
        return None
    options = _without_filters(found.parent)
    text = ask(found.parent, [*options, *_STATUS]) if options is not None else None
    return _parse_status(found.parent, text) if text is not None else None


def code_commit(path: Path, revision: str) -> str | None:
    """The full hash of the commit that a revision names in the repository around a path; None for none."""
    found = find_git(path)
    if found is None:
        return None
    text = ask(found.parent, ["rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"])
    return text.strip() if text is not None else None


def code_subject(path: Path, commit_hash: str) -> str | None:
    """The first line that the repository around a path has for a commit; None when it does not have the commit."""
    found = find_git(path)
    if found is None or not _HASH.fullmatch(commit_hash):
        return None
    # Not git log, which may run the program that checks signatures.
    text = ask(found.parent, ["cat-file", "commit", commit_hash])
    return text.partition("\n\n")[2].strip().partition("\n")[0] if text is not None else None


def identity(path: Path) -> str | None:
    """``Name <email>`` as git would commit with at a path; None when git knows no name, or none that it would take."""
    start = Path(os.path.abspath(path))
    folder = next((folder for folder in (start, *start.parents) if folder.is_dir()), start)
    text = ask(folder, ["config", "--null", "--get-regexp", r"^user\.(name|email)$"])
    known = (text or "").encode(errors="surrogateescape").decode(errors="replace")
    pairs = (item.partition("\n") for item in known.split("\0"))
    found = {key: value.strip() for key, _, value in pairs}
    name, email = found.get("user.name", ""), found.get("user.email", "")
    if _NO_NAME.fullmatch(name):
        return None
    return f"{name} <{email}>" if email else name


def _git_dir(candidate: Path) -> Path | None:
    """What a ``.git`` leads to, if that is a repository."""
    try:
        if candidate.is_file():
            key, _, target = _first_line(candidate).partition(": ")
            candidate = Path(os.path.normpath(candidate.parent / target)) if key == "gitdir" else candidate
        return candidate if (candidate / "HEAD").is_file() else None
    except (OSError, ValueError):
        return None


def _first_line(path: Path) -> str:
    return _text(path).partition("\n")[0]


def _text(path: Path) -> str:
    """The beginning of a regular file; empty for anything else, such as a pipe, which nobody writes to."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            return os.fsdecode(file.read(_SETTINGS_BYTES)) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    except OSError:
        return ""


def _without_filters(folder: Path) -> list[str] | None:
    """Options that switch off the filter programs which the repository itself configures; the user's own stay.

    None when git will not say which, or one cannot be switched off.
    """
    listed = ask(folder, _LOCAL_FILTERS, nothing_found=1)
    if listed is None:
        return None
    words = listed.split("\0")
    keys = [key for scope, key in zip(words[::2], words[1::2], strict=False) if scope in _OWN_SCOPES]
    if any("=" in key for key in keys):
        return None
    options = (("-c", f"{key}=", "-c", f"{key.rpartition('.')[0]}.required=false") for key in keys)
    return [word for option in options for word in option]


def _parse_status(top: Path, text: str) -> CodeState:
    head: dict[str, str] = {}
    changes: list[str] = []
    for line in text.split("\0"):
        if line.startswith("# branch."):
            key, _, value = line.removeprefix("# branch.").partition(" ")
            head[key] = value
        elif line[:2] in _FIELDS:
            changes.append(_change(top, line))
    commit, branch = head.get("oid"), head.get("head")
    return CodeState(
        commit if commit != "(initial)" else None,
        branch if branch != "(detached)" else None,
        bool(changes),
        code_hash("\0".join(sorted(changes)).encode(errors="surrogateescape")) if changes else None,
    )


def _change(top: Path, line: str) -> str:
    """What a line of the status says of one file, and the file itself: from which blob and mode to which bytes."""
    fields = line.split(" ", max(_FIELDS[line[:2]]))
    old_mode, old_blob, new_mode, path = (fields[place] for place in _FIELDS[line[:2]])
    return f"{path}\0{old_mode} {old_blob} {new_mode} {_content(top / path, new_mode)}"


def _content(path: Path, mode: str) -> str:
    """A hash of a file's bytes; of a large one its size and its beginning count."""
    if mode == _NO_FILE:
        return ""
    try:
        if mode == _LINK:
            return code_hash(os.fsencode(os.readlink(path)))
        # What took the file's place meanwhile may be a pipe, which nobody writes to.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            return f"{os.fstat(fd).st_size} {code_hash(file.read(_READ_BYTES))}"
    except OSError:
        return "?"
