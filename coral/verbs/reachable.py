"""The manifests in the user's own git repository: those that some git object still needs, wherever it is kept.

git keeps manifests as blobs. What of them can be reached, by a branch, a stash, a reflog, an index or a merge under
way, can come back into a file; so the chunks that it names are to be kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import FormatError
from coral.format.manifest import Manifest, is_manifest
from coral.git.blobs import read_found
from coral.git.enclosing import find_git
from coral.git.objects import Where, blobs_since, existing, reachable_blobs
from coral.ids import ChunkId, ContentRef

if TYPE_CHECKING:
    from coral.objects import ChunkStore

_MARKER = b"<<<"
_FIRST_WORDS = b"coral manifest "
_STORED = re.compile(rb"\bb3l?:[0-9a-f]{64}")


def manifests_of_git(project: Path) -> Iterator[tuple[Where, Manifest]]:
    """Every manifest that the git repository around a project reaches, and one place where it is.

    What looks like one and is malformed is left out, such as a file with conflict markers.

    Raises:
        GitCommandError: git failed, so that nobody knows what is reached.
        VersionError: a manifest was written by a newer coral.
    """
    return _parsed(texts_of_git(project))


def manifests_since(
    project: Path, tips: Iterable[str], *, known: Iterable[str] = (), remote: str | None = None
) -> Iterator[tuple[Where, Manifest]]:
    """The manifests that these tips reach, see :func:`coral.git.objects.blobs_since`. Raises as the above."""
    found = blobs_since(project, tips, known=known, remote=remote)
    return _parsed(read_found(project, found, wanted=_may_hold_refs))


def manifests_of_head(project: Path) -> Iterator[tuple[Where, Manifest]]:
    """The manifests of all commits that led to git's HEAD; none outside of git. Raises as the above."""
    if find_git(project) is not None and existing(project, ["HEAD"]):
        yield from manifests_since(project, ["HEAD"])


def chunks_of_git(project: Path, store: ChunkStore) -> Iterator[ChunkId]:
    """The ids of all chunks, and chunk lists, that the git repository around a project reaches: what gc must keep.

    The bases of deltas are not among them, see :meth:`ChunkStore.bases_of`; nor is what a chunk list names that the
    store lacks. What a file with conflict markers names is.

    Raises:
        GitCommandError: git failed, so that nobody knows what is reached.
        CorruptionError: a chunk list is damaged, so that nobody knows what it names.
    """
    seen: set[ContentRef] = set()
    for _, text in texts_of_git(project):
        for content in contents_in(text):
            if content not in seen:
                seen.add(content)
                yield from _chunks_of(content, store)


def texts_of_git(project: Path) -> Iterator[tuple[Where, bytes]]:
    """The manifests that git reaches, as they are; and what begins like one, or is one with conflict markers in it."""
    if find_git(project) is None:
        return
    for where, text in read_found(project, reachable_blobs(project), wanted=_may_hold_refs):
        if is_manifest(text) or _FIRST_WORDS in text:
            yield where, text


def contents_in(text: bytes) -> list[ContentRef]:
    """What a text refers to in the store, each once: a manifest of any version, or one with conflict markers in it."""
    return list(dict.fromkeys(ContentRef(found.decode()) for found in _STORED.findall(text)))


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


def _chunks_of(content: ContentRef, store: ChunkStore) -> Iterator[ChunkId]:
    kind, _, digits = content.partition(":")
    ident = ChunkId(bytes.fromhex(digits))
    yield ident
    if kind == "b3l" and ident in store.packs:
        yield from store.chunks_in(content)
