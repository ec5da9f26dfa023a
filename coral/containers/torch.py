"""torch's files: archives of storages, and the five pickles of before 1.6."""

from __future__ import annotations

from collections.abc import Mapping

from coral.containers import torchfile, torchlegacy, torchzip, zips
from coral.containers.file import Output, Parsed, ReadRecords, TensorView, Traits, needed
from coral.containers.promises import Promise, Start
from coral.containers.source import FileRange
from coral.format.manifest import Manifest

_PROMISE = Promise("torch file", (zips.START, Start(b"\x80")), "mostly")


class Torch:
    """Files of torch.save and torch.jit.save."""

    name = "torch"
    traits = Traits(zips.SKELETON_LIMIT, flows=False)
    promises: Mapping[str, Promise] = {
        ".pt": _PROMISE,
        ".pth": _PROMISE,
        ".ckpt": _PROMISE,
        ".bin": _PROMISE._replace(held="sometimes"),
    }

    def recognises(self, head: bytes) -> bool:
        """Whether a file begins as an archive, or with the first of the five pickles."""
        return head.startswith(zips.MEMBER_SIGNATURE) or torchlegacy.is_legacy(head)

    def parse(self, data: FileRange) -> Parsed | None:
        """Take a file apart; None for an archive without torch's pickle."""
        is_zip = data.read(0, len(zips.MEMBER_SIGNATURE)) == zips.MEMBER_SIGNATURE
        return torchzip.parse(data) if is_zip else torchlegacy.parse(data)

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        """Write a file back, and what is computed of its storages."""
        zips.restore(manifest, needed(skeleton), read, out)

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        """The tensors that the pickles name."""
        return torchfile.views(manifest, needed(skeleton))
