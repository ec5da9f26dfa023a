"""Copies of tensors, taken at once, so that a commit can be made of them while training changes the originals.

The memory is kept and used again by the next one: fresh pages cost four times the copying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from coral.format.dtypes import byte_count

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from coral.format.tensors import TensorSource
    from coral.objects import ChunkStore

_PIECE = 4 << 20
_GROUP = 32 << 20
_ALIGNMENT = 64


class DeviceSource(Protocol):
    """A tensor that lies in a device's memory, and has its own way to be copied from there."""

    def start_copy(self, held: object | None) -> tuple[object, Callable[[], memoryview]] | None:
        """Begin to copy the tensor into the program's memory; None when it lies there already.

        Args:
            held: what an earlier call returned for a tensor of the same name, to be used again.

        Returns:
            what holds the copy, and what waits for it and gives its bytes.
        """


class CopiedTensor:
    """A tensor's bytes as they were."""

    def __init__(self, source: TensorSource, data: Callable[[], memoryview]) -> None:
        self.name, self.dtype, self.shape = source.name, source.dtype, source.shape
        self._wait = data
        self._data: memoryview | None = None

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop)."""
        if self._data is None:
            self._data = self._wait()
        return self._data[start:stop]


class Copies:
    """The memory that one part's tensors are copied into."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")
        self._held: dict[str, object] = {}

    def take(self, sources: Sequence[TensorSource], store: ChunkStore) -> list[TensorSource]:
        """Copy tensors; what was copied before is overwritten. Those of a device may still be on their way."""
        started = {}
        for source in sources:
            start_copy = getattr(source, "start_copy", None)  # an isinstance() of a protocol takes 20 times as long
            copy = start_copy(self._held.get(source.name)) if start_copy is not None else None
            if copy is not None:
                started[source.name] = copy
        self._held = {name: held for name, (held, _) in started.items()}
        plain = [source for source in sources if source.name not in started]
        ranges = dict(zip((source.name for source in plain), self._lay_out(plain), strict=True))
        self._fill(plain, ranges, store)
        copied: list[TensorSource] = []
        for source in sources:
            if source.name in started:
                copied.append(CopiedTensor(source, started[source.name][1]))
            else:
                data = ranges[source.name]
                copied.append(CopiedTensor(source, lambda data=data: data))  # type: ignore[misc]
        return copied

    def _lay_out(self, sources: Sequence[TensorSource]) -> list[memoryview]:
        import numpy as np

        starts, stop = [], 0
        for source in sources:
            starts.append(stop)
            stop += -(-byte_count(source.dtype, source.shape) // _ALIGNMENT) * _ALIGNMENT
        if len(self._memory) < stop:
            self._memory = np.empty(stop, np.uint8).data
        return [
            self._memory[start : start + byte_count(source.dtype, source.shape)]
            for source, start in zip(sources, starts, strict=True)
        ]

    def _fill(self, sources: Sequence[TensorSource], ranges: dict[str, memoryview], store: ChunkStore) -> None:
        from coral.objects.jobs import batched

        pieces = (
            (source, start, min(start + _PIECE, len(ranges[source.name])))
            for source in sources
            for start in range(0, len(ranges[source.name]), _PIECE)
        )
        # A few at a time: of a tensor that is not contiguous, what is read is a copy already.
        before: list[Future[None]] = []
        for group in batched(pieces, lambda piece: piece[2] - piece[1], _GROUP):
            jobs = _start_copying(
                [(ranges[source.name][start:stop], source.read(start, stop)) for source, start, stop in group], store
            )
            for job in before:
                job.result()
            before = jobs
        for job in before:
            job.result()


def _start_copying(pairs: Sequence[tuple[memoryview, Buffer]], store: ChunkStore) -> list[Future[None]]:
    """Fill each first with each second, on all cores; the arrays are made here, so that the workers only copy."""
    import numpy as np

    arrays = [
        (np.frombuffer(target, np.uint8), np.frombuffer(memoryview(live).cast("B"), np.uint8)) for target, live in pairs
    ]

    def copy(first: int) -> None:
        for target, live in arrays[first :: store.threads]:
            np.copyto(target, live)

    return [store.submit(copy, number) for number in range(store.threads)]
