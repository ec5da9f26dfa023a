"""Whether a commit is what somebody signed: the signature, the root that it covers, and the tensors below that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import SignatureError
from coral.git.signing import verify
from coral.verbs.commit import root_of

if TYPE_CHECKING:
    from coral.history import History
    from coral.ids import CommitHash
    from coral.objects import ChunkStore
    from coral.objects.writer import Progress
    from coral.verbs.parts import PartReader


@dataclass(frozen=True, slots=True)
class Verified:
    """A commit that is just what was signed.

    Attributes:
        commit: its full hash.
        root: the BLAKE3 root of its manifests, which the signature covers.
        report: what the signing program says of the signature, for people.
        nbytes: raw bytes that were read and verified.
    """

    commit: CommitHash
    root: str
    report: str
    nbytes: int


def verify_commit(
    history: History,
    reader: PartReader,
    store: ChunkStore,
    commit_hash: CommitHash,
    *,
    project: Path,
    read_data: bool = False,
    progress: Progress | None = None,
) -> Verified:
    """Check a commit's signature, that its manifests are those that were signed, and that their chunks are here.

    Args:
        project: where git is asked for the user's configuration.
        read_data: read and verify every byte.

    Raises:
        SignatureError: there is no signature, none by a trusted key, or it covers other manifests.
        CorruptionError: a chunk is missing or damaged.
    """
    signed = history.commit(commit_hash)
    if not history.is_signed(commit_hash):
        raise SignatureError(f"the commit {signed.short_hash} is not signed", hint="'coral commit -S' signs")
    checked = verify(history.git_dir, commit_hash, folder=project)
    if not checked.good:
        raise SignatureError(
            f"the commit {signed.short_hash} bears no signature that is trusted: {checked.report}",
            hint="ssh: list the key in gpg.ssh.allowedSignersFile; gpg: import it and trust it",
        )
    root = root_of(history, history.parts(commit_hash))
    if signed.root != root:
        raise SignatureError(
            f"the commit {signed.short_hash} holds other manifests than were signed"
            if signed.root
            else f"the signature of the commit {signed.short_hash} covers no root of its manifests",
            hint="do not use it" if signed.root else "sign with 'coral commit -S', not with git itself",
        )
    nbytes = 0
    for manifest in reader.at(commit_hash).values():
        for record in manifest.everything:
            store.check(record)
        for piece in store.stream(manifest.everything) if read_data else ():
            nbytes += len(piece)
            if progress is not None:
                progress(len(piece))
    return Verified(commit_hash, root, checked.report, nbytes)
