"""Packet lines: what is written is read back, whatever the pieces, and nonsense is refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.errors import CorruptionError, FormatError
from coral.git.pktline import FilterServer, PacketReader, PacketWriter

LINES = st.lists(st.binary(min_size=1, max_size=300).filter(lambda line: b"\n" not in line), max_size=5)


class Dribble(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = data, step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        count = min(len(view), self._step, len(self._data))
        view[:count], self._data = self._data[:count], self._data[count:]
        return count


class Sink(io.BytesIO):
    """A pipe that takes a few bytes at a time."""

    def write(self, data: object) -> int:
        return super().write(memoryview(data)[:70_000])  # type: ignore[arg-type]


@given(LINES, LINES)
def test_lists(first: list[bytes], second: list[bytes]) -> None:
    """Lists come back as they were sent, and then the input ends."""
    out = io.BytesIO()
    writer = PacketWriter(out)
    writer.write_list(first)
    writer.write_list(second)
    reader = PacketReader(Dribble(out.getvalue(), 7))
    assert [reader.read_list(), reader.read_list(), reader.read_list()] == [first, second, None]


@pytest.mark.parametrize("length", [0, 1, 65515, 65516, 65517, 16 * 65516, 3 << 20])
@pytest.mark.parametrize("step", [1000, 65520, 1 << 22])
@pytest.mark.parametrize("piece", [900, 65516, 1 << 20])
def test_contents(length: int, step: int, piece: int) -> None:
    """A content comes back as it was sent, whatever the pipe and the reader take at a time."""
    data = bytes(range(251)) * (length // 251 + 1)
    out = Sink()
    writer = PacketWriter(out)
    writer.write_content(data[:length])
    writer.end_content()
    writer.write_list([b"next"])
    reader = PacketReader(Dribble(out.getvalue(), step))
    reader.begin_content()
    found, buffer = b"", memoryview(bytearray(piece))
    while count := reader.read_into(buffer):
        found += buffer[:count]
        assert count == piece or len(found) == length
    assert found == data[:length]
    assert reader.read_list() == [b"next"]


def test_packets_are_as_git_allows() -> None:
    """No packet is longer than 65,520 bytes, its length included."""
    out = io.BytesIO()
    PacketWriter(out).write_content(bytes(200_000))
    data, lengths = out.getvalue(), []
    while data:
        length = int(data[:4], 16)
        lengths.append(length)
        data = data[length:]
    assert lengths == [65520, 65520, 65520, 200_000 - 3 * 65516 + 4]


def test_skipping() -> None:
    """The rest of a content can be passed over."""
    out = io.BytesIO()
    writer = PacketWriter(out)
    writer.write_content(bytes(300_000))
    writer.end_content()
    writer.write_list([b"next"])
    reader = PacketReader(io.BytesIO(out.getvalue()))
    reader.begin_content()
    reader.read_into(memoryview(bytearray(10)))
    assert reader.skip_content() == 299_990
    assert reader.read_list() == [b"next"]


@pytest.mark.parametrize("data", [b"00", b"zzzz", b"0003", b"fff5", b"-001", b"0009abc", b"0006ab"])
def test_nonsense(data: bytes) -> None:
    """What is no packet, and an input that ends within one, is a FormatError."""
    with pytest.raises(FormatError):
        PacketReader(io.BytesIO(data)).read_list()


def test_an_answer_that_fails() -> None:
    """What goes wrong while a content is sent reaches git as a status, after what was sent already."""
    out = io.BytesIO()

    def send(write: object) -> None:
        write(b"some")  # type: ignore[operator]
        raise CorruptionError("damaged")

    with pytest.raises(CorruptionError):
        FilterServer(io.BytesIO(), out).answer(send)
    assert out.getvalue() == b"0013status=success\n0000" + b"0008some" + b"0000" + b"0011status=error\n0000"
