"""What every container of tensors promises: bytes come back, and no bytes do harm."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from coral.containers.container import HEAD_BYTES, OPAQUE, Container, take_apart
from coral.containers.file import CutShortError, NotThisError, Parsed, ParsedFile
from coral.containers.source import BytesFile, FileRange, StreamFile
from coral.errors import CoralError, FormatError
from coral.format.dtypes import BITS, byte_count, item_bytes
from coral.format.manifest import Manifest, Skeleton, TensorRecord
from coral.ids import ContentRef, inline_ref

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HURTFUL = [bytes(8), b"\xff" * 8, b"\xff" * 4, (1 << 31).to_bytes(4, "little"), (1 << 33).to_bytes(8, "little")]
LEAST_LARGE: Final = 4 << 20
"""Bytes of tensors beside which what is read around them does not count."""

_AROUND = 1 << 20
_MOST_MEMORY = 64 << 20
_MOST_SECONDS = 10.0
_TRIES = 120


class Memory:
    """An output that keeps the file in memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.patches = 0

    def write(self, data: Buffer) -> None:
        self.data += data

    def patch(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= len(self.data) - len(data), "a patch outside of what was written"
        self.data[offset : offset + len(data)] = data
        self.patches += 1


class _Watched(BytesFile):
    """A file that notes which bytes are read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.ranges: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> bytes:
        self.ranges.append((start, stop))
        return super().read(start, stop)

    def take(self, start: int, stop: int) -> Buffer:
        self.ranges.append((start, stop))
        return super().take(start, stop)


def kept(parsed: Parsed | ParsedFile) -> tuple[Manifest, dict[str, bytes]]:
    """A manifest of a file that was taken apart, and each record's bytes, read in pieces."""
    records, contents = [], {}
    for source in parsed.tensors:
        record = TensorRecord(source.name, source.dtype, source.shape, inline_ref(b""))
        half = record.nbytes // 2
        contents[source.name] = bytes(source.read(0, half)) + bytes(source.read(half, record.nbytes))
        records.append(record)
    rest = skeleton_of(parsed)
    skeleton = None if rest is None else Skeleton(ContentRef("b3:" + "0" * 64), len(rest))
    return Manifest(parsed.container, tuple(records), skeleton, parsed.metadata), contents


def skeleton_of(parsed: Parsed | ParsedFile) -> bytes | None:
    """The bytes that are not tensors."""
    return parsed.read_skeleton() if isinstance(parsed, Parsed) else parsed.skeleton


def reader(contents: Mapping[str, bytes]) -> Callable[[Iterable[TensorRecord]], Iterator[bytes]]:
    """Yields the bytes of records as a store would: in pieces, none of them empty."""

    def read(records: Iterable[TensorRecord]) -> Iterator[bytes]:
        for data in (contents.get(record.name, b"") for record in records):
            yield from filter(None, (data[:7], data[7:]))

    return read


class ContainerContract:
    """The promises of :class:`coral.containers.container.Container`.

    A subclass has the fixtures ``container``, and ``files``: sound ones, small, in which nothing is compressed, by
    names that say what is special of each; and ``large``, one with tensors of :data:`LEAST_LARGE` bytes.
    """

    def test_a_file_restores_byte_for_byte(self, container: Container, files: Mapping[str, bytes]) -> None:
        """A file is recognised by its first bytes, and is restored from its manifest's text, skeleton and records."""
        for name, data in files.items():
            assert container.recognises(data[:HEAD_BYTES]), name
            parsed = _parsed(container, data)
            assert parsed is not None and parsed.container == container.name, name
            assert _rebuilt(container, parsed) == data, name

    def test_a_part_is_what_it_says(self, container: Container, files: Mapping[str, bytes]) -> None:
        """Tensors have names that differ and as many bytes as their shapes say; a skeleton is within its limit."""
        for name, data in files.items():
            parsed = _parsed(container, data)
            assert parsed is not None
            names = [source.name for source in parsed.tensors]
            assert len(set(names)) == len(names), f"{name}: two tensors have one name"
            for source in parsed.tensors:
                nbytes = byte_count(source.dtype, source.shape)
                assert memoryview(source.read(0, nbytes + 1)).nbytes == nbytes, f"{name}: {source.name}"
            assert len(parsed.read_skeleton() or b"") <= container.traits.skeleton_limit, name

    def test_a_view_lies_in_its_record(self, container: Container, files: Mapping[str, bytes]) -> None:
        """Each tensor that a file shows is elements of one of its records, of that record's type."""
        for name, data in files.items():
            parsed = _parsed(container, data)
            assert parsed is not None
            manifest, _ = kept(parsed)
            for own, view in container.views(manifest, parsed.read_skeleton()).items():
                record = manifest[view.record_name]
                assert own == view.name and view.dtype == record.dtype, f"{name}: {own}"
                if view.stride is None:
                    assert byte_count(view.dtype, view.shape) == record.nbytes and not view.offset, f"{name}: {own}"
                elif BITS[view.dtype] >= 8 and 0 not in view.shape:
                    steps = zip(view.shape, view.stride, strict=True)
                    last = view.offset + sum((length - 1) * step for length, step in steps)
                    assert (last + 1) * item_bytes(view.dtype) <= record.nbytes, f"{name}: {own}"

    def test_a_tensor_is_read_once(self, container: Container, large: bytes) -> None:
        """To take a file apart its tensors are read once at most; to restore it each record is asked for once."""
        file = _Watched(large)
        parsed = container.parse(FileRange(file, 0, len(large)))
        assert parsed is not None
        before, file.ranges = file.ranges, []
        manifest, contents = kept(parsed)
        assert manifest.nbytes >= LEAST_LARGE, "the large file is small"
        read = sum(_common(one, other) for one in before for other in file.ranges)
        assert read <= manifest.nbytes + _AROUND, f"{read:,} of {manifest.nbytes:,} bytes of tensors are read"
        asked: Counter[str] = Counter()

        def give(records: Iterable[TensorRecord]) -> Iterator[Buffer]:
            wanted = list(records)
            asked.update(record.name for record in wanted)
            yield from reader(contents)(wanted)

        container.restore(manifest, parsed.read_skeleton(), give, Memory())
        assert asked == Counter(contents.keys())

    def test_what_flows_is_as_a_file(self, container: Container, files: Mapping[str, bytes]) -> None:
        """A container that flows reads a stream as it reads a file, however little came first, and never patches."""
        if not container.traits.flows:
            return
        for name, data in files.items():
            whole = _parsed(container, data)
            assert whole is not None
            out = Memory()
            container.restore(kept(whole)[0], whole.read_skeleton(), reader(kept(whole)[1]), out)
            assert not out.patches, f"{name}: bytes are overwritten"
            for came in {min(max(HEAD_BYTES, length), len(data)) for length in (0, len(data) // 2, len(data))}:
                stream = _stream(data, came)
                parsed = container.parse(FileRange(stream, 0, len(data)))
                assert parsed is not None, name
                found = kept(parsed), parsed.read_skeleton()
                assert found == (kept(whole), whole.read_skeleton()), f"{name}, of which {came} came"

    def test_a_stream_is_not_remembered(self, container: Container, large: bytes) -> None:
        """Of a stream that flows by, no tensor stays in memory."""
        if not container.traits.flows:
            return
        tracemalloc.start()
        try:
            parsed = container.parse(FileRange(_stream(large, HEAD_BYTES), 0, len(large)))
            assert parsed is not None
            for source in parsed.tensors:
                nbytes = byte_count(source.dtype, source.shape)
                for at in range(0, nbytes, _AROUND // 4):
                    source.read(at, min(at + _AROUND // 4, nbytes))
            parsed.read_skeleton()
            assert tracemalloc.get_traced_memory()[1] < 2 * _AROUND
        finally:
            tracemalloc.stop()

    def test_a_file_that_is_cut(self, container: Container, files: Mapping[str, bytes]) -> None:
        """Whatever is left of a file is restored, or not taken apart."""
        for name, data in files.items():
            for length in _some(range(len(data)), random.Random(name)):
                self._answers(container, data[:length], f"{name}, the first {length} bytes")

    def test_a_file_that_is_changed(self, container: Container, files: Mapping[str, bytes]) -> None:
        """A byte that is flipped, and a number that hurts in any place, do no harm."""
        for name, data in files.items():
            chance = random.Random(name)
            for at in _some(range(len(data)), chance):
                flipped = data[:at] + bytes([data[at] ^ chance.randrange(1, 256)]) + data[at + 1 :]
                self._answers(container, flipped, f"{name}, byte {at} flipped")
                number = chance.choice(_HURTFUL)
                self._answers(container, data[:at] + number + data[at + len(number) :], f"{name}, {number!r} at {at}")

    def test_any_bytes_at_all(self, container: Container, files: Mapping[str, bytes]) -> None:
        """Bytes of chance, and those after the beginning of a sound file, do no harm."""
        chance = random.Random(container.name)
        for _ in range(_TRIES):
            head = chance.choice([*files.values()])[: chance.choice((0, 4, 9, 16, 40))]
            self._answers(container, head + chance.randbytes(chance.choice((0, 1, 7, 64, 900))), "chance")

    def test_a_skeleton_from_elsewhere(self, container: Container, files: Mapping[str, bytes]) -> None:
        """A skeleton and a manifest that somebody made up are an error of coral's, or make some file."""
        for name, data in files.items():
            parsed = _parsed(container, data)
            assert parsed is not None
            manifest, contents = kept(parsed)
            chance, skeleton = random.Random(name), parsed.read_skeleton() or b""
            wrong = [None, b"", skeleton[:-1], skeleton + b"\0"]
            for at in _some(range(len(skeleton)), chance):
                number = chance.choice((chance.randbytes(1), *_HURTFUL))
                wrong.append(skeleton[:at] + number + skeleton[at + len(number) :])
            read = reader(contents)
            for theirs, made_up in [
                *((manifest, one) for one in wrong),
                *((one, skeleton) for one in _others(manifest)),
            ]:
                with _bounded(f"{name}, with a skeleton that is made up"):
                    _whatever(partial(container.restore, theirs, made_up, read, Memory()))
                    _whatever(partial(container.views, theirs, made_up))

    def test_its_suffixes_promise_it(self, container: Container, files: Mapping[str, bytes]) -> None:
        """A sound file under each suffix is taken apart in silence; one that lost its end never is."""
        for suffix, promise in container.promises.items():
            assert suffix == suffix.lower() and suffix.startswith("."), suffix
            for name, data in files.items():
                whole = take_apart(_range(data), promise, among=(container, OPAQUE))
                assert (whole.container, whole.reason) == (container.name, ""), f"{name} under {suffix}"
                cut = _parsed_or_none(container, data[: len(data) // 2])
                if promise.has_tensors and cut is None:
                    self._is_told(container, data[: len(data) // 2], suffix)

    def _is_told(self, container: Container, data: bytes, suffix: str) -> None:
        try:
            found = take_apart(_range(data), container.promises[suffix], among=(container, OPAQUE))
        except FormatError:
            return
        assert found.reason, f"half a file is kept in silence under {suffix}"

    def _answers(self, container: Container, data: bytes, what: str) -> None:
        """Parse bytes: what is taken apart restores, what is not is said, soon, and in bounded memory."""
        with _bounded(what):
            parsed = _parsed_or_none(container, data)
            if parsed is not None:
                assert _rebuilt(container, parsed) == data, f"{what}: not restored"
                container.views(kept(parsed)[0], parsed.read_skeleton())


@contextmanager
def _bounded(what: str) -> Iterator[None]:
    """Fail what takes long, or much memory."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < _MOST_MEMORY, f"{what}: {peak:,} bytes of memory"
    assert time.monotonic() - began < _MOST_SECONDS, f"{what}: takes too long"


def _range(data: bytes) -> FileRange:
    return FileRange(BytesFile(data), 0, len(data))


def _parsed(container: Container, data: bytes) -> Parsed | None:
    return container.parse(_range(data))


def _parsed_or_none(container: Container, data: bytes) -> Parsed | None:
    """What is found in any bytes, by the rules for those that a container recognises, and for others."""
    container.recognises(data[:HEAD_BYTES])
    try:
        return _parsed(container, data)
    except NotThisError as error:
        assert str(error), "no reason is given"
        assert isinstance(error, CutShortError) or type(error) is NotThisError
        return None


def _rebuilt(container: Container, parsed: Parsed) -> bytes:
    manifest, contents = kept(parsed)
    out = Memory()
    container.restore(Manifest.from_bytes(manifest.to_bytes()), parsed.read_skeleton(), reader(contents), out)
    return bytes(out.data)


def _whatever(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except CoralError:
        pass


def _others(manifest: Manifest) -> Iterator[Manifest]:
    """Manifests of fewer tensors, of more, and of the same in other shapes."""
    yield replace(manifest, records=manifest.records[1:])
    yield replace(manifest, records=(*manifest.records, TensorRecord("\uffff", "U8", (3,), inline_ref(b"abc"))))
    flat = (record._replace(dtype="U8", shape=(record.nbytes,)) for record in manifest.records)
    yield replace(manifest, records=tuple(flat))


def _stream(data: bytes, came: int) -> StreamFile:
    at = came

    def read_into(memory: memoryview) -> int:
        nonlocal at
        piece = data[at : at + len(memory)]
        memory[: len(piece)] = piece
        at += len(piece)
        return len(piece)

    return StreamFile("a stream", len(data), data[:came], read_into)


def _common(one: tuple[int, int], other: tuple[int, int]) -> int:
    """How many bytes two ranges share."""
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def _some(places: Sequence[int], chance: random.Random) -> Iterable[int]:
    return places if len(places) <= _TRIES else sorted(chance.sample(places, _TRIES))
