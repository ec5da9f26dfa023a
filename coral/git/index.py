"""What git's index and trees list: files with their modes and blobs; and putting other blobs into the index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from coral.errors import GitCommandError, NotFoundError, RefNotFoundError
from coral.git.command import ask, run

FILE_MODES = ("100644", "100755")
"""The modes of regular files, executable or not."""
_SPARSE = "S"
_SHA1_DIGITS = 40
_TEXT = ("utf-8", "surrogateescape")


class Entry(NamedTuple):
    """One line of an index or a tree.

    Attributes:
        name: from the top of the working tree.
        mode: as git writes it, six octal digits.
        blob: the object's id.
        stage: 0, or one of the three sides of a conflict.
        sparse: git leaves it out of the working tree.
    """

    name: str
    mode: str
    blob: str
    stage: int = 0
    sparse: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, and neither a link nor another repository."""
        return self.mode in FILE_MODES


def index_entries(folder: Path, paths: Sequence[str] = ()) -> list[Entry]:
    """What the index lists.

    Args:
        folder: the top of the working tree, or a folder in it.
        paths: files and folders, as ``folder`` names them; none means all of the working tree.

    Raises:
        GitCommandError: no repository.
    """
    wanted = [f":(literal){path}" for path in paths] or [":/"]
    found = []
    for line in _fields(run(folder, ["ls-files", "-z", "-t", "--stage", "--full-name", "--", *wanted])):
        head, _, name = line.partition("\t")
        tag, mode, blob, stage = head.split(" ")
        found.append(Entry(name, mode, blob, int(stage), tag == _SPARSE))
    return found


def filtered(top: Path, names: Iterable[str]) -> set[str]:
    """Those of the files that git's attributes give coral's filter."""
    fields = list(_fields(run(top, ["check-attr", "--stdin", "-z", "filter"], data=_joined(names))))
    return {name for name, value in zip(fields[::3], fields[2::3], strict=True) if value == "coral"}


def attribute_files(top: Path) -> list[str]:
    """The ``.gitattributes`` of a working tree, new ones included, by their names from the top."""
    pattern = ":(glob)**/.gitattributes"
    return sorted(
        set(_fields(run(top, ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern])))
    )


def blob_id(text: bytes, like: str) -> str:
    """The id that git gives to a blob.

    Args:
        like: any id of the same repository, which tells SHA-1 from SHA-256.
    """
    hashed = hashlib.sha1(usedforsecurity=False) if len(like) == _SHA1_DIGITS else hashlib.sha256()
    hashed.update(b"blob %d\0" % len(text) + text)
    return hashed.hexdigest()


def tree_entries(top: Path, revision: str) -> list[Entry]:
    """All that a commit's tree lists. Raises RefNotFoundError."""
    words = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{tree}}"]
    tree = (ask(top, words) or "").strip()
    if not tree:
        raise RefNotFoundError(f"git knows no commit {revision!r}", hint="'git log --all' lists what there is")
    found = []
    for line in _fields(run(top, ["ls-tree", "-r", "-z", "--full-tree", tree])):
        head, _, name = line.partition("\t")
        mode, _, blob = head.split(" ")
        found.append(Entry(name, mode, blob))
    return found


def matching(folder: Path, patterns: Sequence[str]) -> set[str]:
    """The files of the index that git's own patterns (pathspecs) mean in a folder; named from the top.

    Raises:
        NotFoundError: a pattern that means none.
    """
    for pattern in patterns:
        if not ask(folder, ["ls-files", "-z", "--", pattern]):
            raise NotFoundError(f"{pattern!r} is no file that git tracks")
    return set(_fields(run(folder, ["ls-files", "-z", "--full-name", "--", *patterns])))


def staged(top: Path) -> set[str]:
    """The files that the next commit would change; before the first commit none counts. Raises GitCommandError."""
    if ask(top, ["rev-parse", "--verify", "--quiet", "HEAD"]) is None:
        return set()
    return set(_fields(run(top, ["diff-index", "--cached", "--no-renames", "--name-only", "-z", "HEAD", "--"])))


def changed(top: Path, patterns: Sequence[str] = (), *, staged: bool = True, untracked: bool = True) -> list[str]:
    """The files that are not as the last commit has them. Raises GitCommandError.

    Args:
        patterns: git's own (pathspecs); empty for all files.
        staged: those count that are as the index has them.
        untracked: those count that git does not know yet, unless they are ignored.
    """
    which = "all" if untracked else "no"
    options = ["-z", "--no-renames", f"--untracked-files={which}", "--ignore-submodules=all"]
    lines = _fields(run(top, ["status", "--porcelain", *options, "--", *patterns]))
    return [line[3:] for line in lines if staged or line[1] != " "]


def write_files(top: Path, names: Iterable[str]) -> None:
    """Write files as the index has them over those of the working tree. Raises GitCommandError."""
    run(top, ["checkout-index", "--force", "-z", "--stdin"], data=_joined(names))


def stage(top: Path, entries: Iterable[Entry], *, index: Path | None = None) -> None:
    """Put entries into the index, all or none of them.

    Args:
        index: another file than git's own.

    Raises:
        GitCommandError: git refuses, perhaps because another git holds the index.
    """
    wanted = list(entries)
    environment = {"GIT_INDEX_FILE": str(index)} if index is not None else {}
    lines = (f"{entry.mode} {entry.blob}\t{entry.name}" for entry in wanted)
    run(top, ["update-index", "-z", "--index-info"], data=_joined(lines), environment=environment)
    sparse = [entry.name for entry in wanted if entry.sparse]
    if sparse and index is None:
        run(top, ["update-index", "--skip-worktree", "-z", "--stdin"], data=_joined(sparse))


def attribute(top: Path, name: str, files: Iterable[str], *, index: Path) -> dict[str, str]:
    """The value of one attribute of each file, by the ``.gitattributes`` files in an index. Raises GitCommandError."""
    output = run(
        top,
        ["check-attr", "--cached", "-z", "--stdin", name],
        data=_joined(files),
        environment={"GIT_INDEX_FILE": str(index)},
    )
    fields = list(_fields(output))
    return dict(zip(fields[::3], fields[2::3], strict=True))


def update(top: Path, names: Iterable[str]) -> None:
    """Have git look at files anew, and stage them as they are. Raises GitCommandError."""
    data = _joined(names)
    if data:
        run(top, ["update-index", "-z", "--stdin"], data=data)


def refresh(top: Path) -> None:
    """Have git see which files are as the index says, so that it need not look again. A file that is not is fine."""
    try:
        run(top, ["update-index", "-q", "--refresh"])
    except GitCommandError:
        pass


def _fields(output: bytes) -> Iterator[str]:
    return (field.decode(*_TEXT) for field in output.split(b"\0")[:-1])


def _joined(fields: Iterable[str]) -> bytes:
    return b"".join(field.encode(*_TEXT) + b"\0" for field in fields)
