"""What a container is, and the table of those that coral takes apart: a new one is one file, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Final, Protocol

from coral.containers import promises, zips
from coral.containers.file import CutShortError, NotThisError, Output, Parsed, ReadRecords, TensorView, Traits
from coral.containers.gguf import Gguf
from coral.containers.npy import Npy
from coral.containers.npz import Npz
from coral.containers.opaque import Opaque
from coral.containers.promises import Promise
from coral.containers.safetensors import Safetensors
from coral.containers.source import FileRange
from coral.containers.torch import Torch
from coral.errors import FormatError
from coral.format.manifest import Manifest

HEAD_BYTES: Final = 64
"""The first bytes of a file, by which a container recognises it."""


class Container(Protocol):
    """A kind of file: its tensors are spans of it, and what stands around them is the skeleton.

    What it parses it restores byte for byte, whatever the bytes are: where it would not, it says so while it parses,
    and the file is kept whole. It reads a file that may be hostile, and a skeleton and a manifest that may be: all
    numbers are checked before memory is taken for them.
    """

    @property
    def name(self) -> str:
        """As it stands in manifests, in :data:`coral.format.manifest.CONTAINER_NAMES`."""
        ...

    @property
    def traits(self) -> Traits:
        """What holds for every file of it."""
        ...

    @property
    def promises(self) -> Mapping[str, Promise]:
        """What a file is promised to be by each suffix, in lower case, that is this container's."""
        ...

    def recognises(self, head: bytes) -> bool:
        """Whether a file may be of this container that begins with these :data:`HEAD_BYTES`, or fewer if it is short.

        Others may recognise it too: the first in the table that can take it apart does.
        """
        ...

    def parse(self, data: FileRange) -> Parsed | None:
        """Take a file apart; None leaves it to the others that recognise it.

        No tensor is read twice, and none is held. The skeleton is at most as long as :attr:`traits` say. The names of
        tensors are all different, and they are in the file's order. One that flows reads from the front, where what
        was read may be read again, and nothing after the first tensor's beginning but by accident: of what stands
        between tensors it says where it is.

        Raises:
            NotThisError: it is malformed, and why.
            CutShortError: it ends before it should, and is refused where its name promises tensors.
            ConflictError: the file became shorter while it was read.
        """
        ...

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        """Write a file back, byte for byte.

        Args:
            manifest: what :meth:`parse` found, its tensors kept.
            skeleton: the skeleton's bytes; None when canonical.
            read: yields the bytes of the records it is given, in that order; asked for each of them once.
            out: appended to; bytes already written may be overwritten, unless it flows.

        Raises:
            FormatError: a skeleton that does not fit its manifest.
            CorruptionError: a record's bytes are not as many as they should be.
        """
        ...

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        """The tensors that a file holds, by name; each is a record, or a view of one.

        Raises:
            FormatError: a skeleton that does not fit its manifest.
        """
        ...


OPAQUE: Final = Opaque()
"""The container of whatever is of no other."""

CONTAINERS: Final[tuple[Container, ...]] = (Safetensors(), Gguf(), Npy(), Torch(), Npz(), OPAQUE)
"""All of them, in the order in which they are asked."""

_BY_NAME: Final = MappingProxyType({container.name: container for container in CONTAINERS})

PROMISES: Final[Mapping[str, Promise]] = MappingProxyType(
    {suffix: promise for container in CONTAINERS for suffix, promise in container.promises.items()}
)
"""What each suffix promises; any other promises nothing."""


def container_of(manifest: Manifest) -> Container:
    """The container of a file, of which this is the manifest."""
    return _BY_NAME[manifest.container]


def promise_of(name: str) -> Promise | None:
    """What a file's name promises; None when nothing."""
    return PROMISES.get(PurePath(name).suffix.lower())


def is_model_name(name: str) -> bool:
    """Whether a file so named is likely to hold weights."""
    promise = promise_of(name)
    return promise is not None and promise.is_sought


def begins_with_its_index(head: bytes) -> bool:
    """Whether a file that begins with these bytes can be taken apart from front to back, as it comes."""
    return all(container.traits.flows for container in CONTAINERS if container.recognises(head[:HEAD_BYTES]))


def take_apart(data: FileRange, promise: Promise | None, *, among: tuple[Container, ...] = CONTAINERS) -> Parsed:
    """A file's tensors and the rest, by the first container that can say.

    Args:
        promise: of the file's name.
        among: those to ask, the last of which takes whatever it is.

    Raises:
        FormatError: it is malformed, or cut short, and its name promises that it is not.
    """
    head = data.read(0, HEAD_BYTES)
    why = "no known container"
    for container in among:
        # Other formats may look like one; only the name makes it a promise that is broken.
        is_promised = promise is not None and promise.refuses_malformed and promise in container.promises.values()
        is_archive = head.startswith(zips.MEMBER_SIGNATURE)
        if not container.recognises(head) and (is_archive or not is_promised):
            continue
        try:
            found = container.parse(data)
        except NotThisError as error:
            is_cut = isinstance(error, CutShortError) and promise is not None and promise.has_tensors
            if is_promised or is_cut:
                raise FormatError(str(error), hint=error.hint or promises.AGAIN) from None
            why = str(error)
            continue
        if found is not None:
            return (
                found if container is not among[-1] else found._replace(reason=promises.why_whole(data, promise, why))
            )
    raise AssertionError("the last container takes any file")
