"""What makes a part of tensors, or of a file, when a line of work stages it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coral.format.manifest import Manifest
from coral.verbs.parts import laid_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from coral.objects import Parent, StoreWriter
    from coral.objects.writer import Progress
    from coral.verbs.checkpoint import Part
    from coral.verbs.ingest import Tell
    from coral.verbs.line import Build


def of_tensors(part: Part, *, over: Callable[[], Manifest] | None = None, progress: Progress | None = None) -> Build:
    """A part of tensors.

    Args:
        over: looks up the part that these are laid over; None for a part of these alone.
    """

    def build(writer: StoreWriter, parent: Parent) -> Manifest:
        old = over() if over is not None else None
        records = tuple(writer.write_tensors(part.tensors, parent=parent, progress=progress))
        fresh = Manifest("safetensors", records, None, part.metadata)
        return fresh if old is None else laid_over(old, fresh)

    return build


def of_file(file: Path, tell: Tell, *, opaque: bool = False, progress: Progress | None = None) -> Build:
    """A part of a file; ``tell`` hears why it is kept whole, if it is and its name promises tensors."""
    from coral.verbs.ingest import manifest_of

    return lambda writer, parent: manifest_of(file, writer, opaque=opaque, parent=parent, progress=progress, tell=tell)
