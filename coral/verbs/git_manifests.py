"""The manifests in the user's own git repository: those that some git object still needs, wherever it is kept.

git keeps manifests as blobs. What of them can be reached, by a branch, a stash, a reflog, an index or a merge under
way, can come back into a file; so the chunks that it names are to be kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from coral.errors import FormatError
from coral.format.manifest import Manifest, is_manifest
from coral.git.blobs import read_found
from coral.git.enclosing import find_git
from coral.git.objects import Where, blobs_since, existing, reachable_blobs
from coral.ids import ContentRef

_MARKER = b"<<<"
_FIRST_WORDS = b"coral manifest "
STORED = re.compile(rb"\bb3l?:([0-9a-f]{64})", re.ASCII)
"""What a text refers to in the store; the group is the hash in it."""


def manifests_since(
    project: Path,
    tips: Iterable[str],
    *,
    known: Iterable[str] = (),
    remote: str | None = None,
    options: Sequence[str] = (),
) -> Iterator[tuple[Where, Manifest]]:
    """The manifests that these tips reach, see :func:`coral.git.objects.blobs_since`.

    What looks like one and is malformed is left out, such as a file with conflict markers.

    Raises:
        GitCommandError: git failed.
        VersionError: a manifest was written by a newer coral.
    """
    found = blobs_since(project, tips, known=known, remote=remote, options=options)
    return _parsed(read_found(project, found, wanted=_may_hold_refs, options=options))


def manifests_of_head(project: Path, *, git_dir: Path | None = None) -> Iterator[tuple[Where, Manifest]]:
    """The manifests of all commits that led to git's HEAD; none outside of git. Raises as the above.

    Args:
        git_dir: the git folder that is meant; None means the repository around the project.
    """
    folder, options = _where(project, git_dir)
    if folder is not None and existing(folder, ["HEAD"], options=options):
        yield from manifests_since(folder, ["HEAD"], options=options)


def texts_of_git(
    project: Path, *, git_dir: Path | None = None, seen: set[str] | None = None
) -> Iterator[tuple[Where, bytes]]:
    """The manifests that git reaches, as they are, and one place of each; and what has conflict markers in it.

    Args:
        git_dir: the git folder that is meant; None means the repository around the project, if there is one.
        seen: ids of blobs that need not be read again; those that are read now are put into it.

    Raises:
        GitCommandError: git failed, so that nobody knows what is reached.
    """
    folder, options = _where(project, git_dir)
    if folder is None:
        return
    found = _fresh(reachable_blobs(folder, options=options), seen)
    for where, text in read_found(folder, found, wanted=_may_hold_refs, options=options):
        if is_manifest(text) or _FIRST_WORDS in text:
            yield where, text


def _where(project: Path, git_dir: Path | None) -> tuple[Path | None, tuple[str, ...]]:
    """Where to ask git, and by which options of its own; None for nowhere."""
    if git_dir is not None:
        return git_dir, (f"--git-dir={git_dir}",)
    return project if find_git(project) is not None else None, ()


def _fresh(found: Iterable[tuple[str, Where]], seen: set[str] | None) -> Iterator[tuple[str, Where]]:
    for blob, where in found:
        if seen is not None:
            if blob in seen:
                continue
            seen.add(blob)
        yield blob, where


def contents_in(text: bytes) -> list[ContentRef]:
    """What a text refers to in the store, each once: a manifest of any version, or one with conflict markers in it."""
    return list(dict.fromkeys(ContentRef(found[0].decode()) for found in STORED.finditer(text)))


def is_conflicted(text: bytes) -> bool:
    """Whether a text has the markers of a merge that somebody is to finish."""
    return re.search(rb"^<{3,}(?: |$)", text, re.MULTILINE) is not None


def _may_hold_refs(head: bytes) -> bool:
    # A conflict about a whole file begins with its marker.
    return is_manifest(head) or head.startswith(_MARKER)


def _parsed(texts: Iterable[tuple[Where, bytes]]) -> Iterator[tuple[Where, Manifest]]:
    for where, text in texts:
        if is_manifest(text):
            try:
                yield where, Manifest.from_bytes(text)
            except FormatError:
                continue
