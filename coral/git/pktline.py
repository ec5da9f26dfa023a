"""git's packet lines, and the server's side of its long-running filter protocol (gitattributes(5), version 2).

A packet is four hexadecimal digits, its length with them, and so many bytes; ``0000`` ends a list or a content.
Contents are read and written in pieces, so that a model of any size passes through a fixed amount of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from coral.errors import CoralError, FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LENGTH_DIGITS = 4
_LARGEST_PACKET = 65520
_LARGEST_PAYLOAD = _LARGEST_PACKET - _LENGTH_DIGITS
_FLUSH = b"0000"
_BUFFER_BYTES = 1 << 20
_PACKETS_A_WRITE = 16


class RawInput(Protocol):
    """What an unbuffered binary file offers to be read."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class RawOutput(Protocol):
    """What an unbuffered binary file offers to be written."""

    def write(self, data: Buffer, /) -> int | None: ...


class PacketReader:
    """Reads packets, and contents that span many of them."""

    def __init__(self, source: RawInput) -> None:
        self._source = source
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._stop = 0
        self._left = 0
        self._ended = True

    def read_list(self) -> list[bytes] | None:
        """The packets up to the next flush, each without its newline; None at the end of the input.

        Raises:
            FormatError: the input ends within the list, or is no packet.
        """
        found: list[bytes] = []
        while True:
            length = self._read_length(may_end=not found)
            if length is None:
                return None
            if length == 0:
                return found
            packet = bytearray(length)
            self._fill(memoryview(packet))
            found.append(bytes(packet).removesuffix(b"\n"))

    def begin_content(self) -> None:
        """What follows is a content: :meth:`read_into` reads it up to its flush."""
        self._left, self._ended = 0, False

    def read_into(self, out: memoryview) -> int:
        """Fill ``out`` with the next bytes of the content; fewer come only at its end. Raises FormatError."""
        done = 0
        while done < len(out) and self._next_packet():
            take = min(self._left, len(out) - done)
            self._fill(out[done : done + take])
            self._left -= take
            done += take
        return done

    def read_whole(self) -> bytes:
        """All that is left of the content."""
        pieces = []
        piece = memoryview(bytearray(_LARGEST_PACKET))
        while count := self.read_into(piece):
            pieces.append(bytes(piece[:count]))
        return b"".join(pieces)

    def skip_content(self) -> int:
        """Read what is left of the content, for nothing; returns how many bytes it was."""
        spare, skipped = memoryview(bytearray(_LARGEST_PACKET)), 0
        while count := self.read_into(spare):
            skipped += count
        return skipped

    def _next_packet(self) -> bool:
        """Whether the content goes on."""
        while self._left == 0 and not self._ended:
            length = self._read_length(may_end=False)
            self._left, self._ended = length or 0, length == 0
        return not self._ended

    def _read_length(self, *, may_end: bool) -> int | None:
        digits = memoryview(bytearray(_LENGTH_DIGITS))
        if not self._fill(digits, may_end=may_end):
            return None
        try:
            length = int(bytes(digits), 16)
        except ValueError:
            raise FormatError(f"git sent {bytes(digits)!r} in place of a packet's length") from None
        if length and not _LENGTH_DIGITS <= length <= _LARGEST_PACKET:
            raise FormatError(f"git sent a packet of {length} bytes")
        return length and length - _LENGTH_DIGITS

    def _fill(self, out: memoryview, *, may_end: bool = False) -> bool:
        """Fill ``out``; False when the input ended before its first byte, and may."""
        done = 0
        while done < len(out):
            if self._start == self._stop:
                # What is much goes straight to where it is wanted.
                straight = len(out) - done >= _LARGEST_PAYLOAD // 2
                count = self._source.readinto(out[done:] if straight else self._buffer)
                if not count:
                    if may_end and done == 0:
                        return False
                    raise FormatError("git went away in the middle of a request")
                if straight:
                    done += count
                    continue
                self._start, self._stop = 0, count
            take = min(self._stop - self._start, len(out) - done)
            out[done : done + take] = self._buffer[self._start : self._start + take]
            self._start += take
            done += take
        return True


class PacketWriter:
    """Writes packets, and contents as many of them."""

    def __init__(self, target: RawOutput) -> None:
        self._target = target
        self._buffer = bytearray(_PACKETS_A_WRITE * _LARGEST_PACKET)

    def write_list(self, lines: Iterable[bytes]) -> None:
        """Some packets, each ended by a newline, and a flush."""
        packets = [b"%04x%s\n" % (len(line) + 1 + _LENGTH_DIGITS, line) for line in lines]
        self._write(b"".join([*packets, _FLUSH]))

    def write_content(self, data: Buffer) -> None:
        """A piece of a content. :meth:`end_content` ends it."""
        view = memoryview(data).cast("B")
        step = _PACKETS_A_WRITE * _LARGEST_PAYLOAD
        for start in range(0, len(view), step):
            self._write_packets(view[start : start + step])

    def end_content(self) -> None:
        """End a content."""
        self._write(_FLUSH)

    def _write_packets(self, view: memoryview) -> None:
        # One system call for many packets.
        end = 0
        for start in range(0, len(view), _LARGEST_PAYLOAD):
            payload = view[start : start + _LARGEST_PAYLOAD]
            body = end + _LENGTH_DIGITS
            self._buffer[end:body] = b"%04x" % (len(payload) + _LENGTH_DIGITS)
            end = body + len(payload)
            self._buffer[body:end] = payload
        self._write(memoryview(self._buffer)[:end])

    def _write(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            view = view[self._target.write(view) or 0 :]


class Request(NamedTuple):
    """What git asks of a filter.

    Attributes:
        command: ``clean``, ``smudge`` or ``list_available_blobs``.
        pathname: relative to the top of the working tree, as git's bytes; empty for ``list_available_blobs``.
        can_delay: the answer may be given later.
    """

    command: str
    pathname: bytes
    can_delay: bool


class FilterServer:
    """One conversation with git.

    Args:
        source, target: the unbuffered standard input and output.
    """

    def __init__(self, source: RawInput, target: RawOutput) -> None:
        self.content = PacketReader(source)
        self._out = PacketWriter(target)

    def shake_hands(self, capabilities: Sequence[str]) -> None:
        """Agree on the version and on what may be asked. Raises FormatError when git speaks something else."""
        hello = self.content.read_list() or []
        if hello[:1] != [b"git-filter-client"] or b"version=2" not in hello:
            raise FormatError("this is not git's filter protocol, version 2", hint="git itself calls this command")
        self._out.write_list([b"git-filter-server", b"version=2"])
        offered = self.content.read_list() or []
        agreed = [b"capability=" + name.encode() for name in capabilities]
        self._out.write_list([line for line in agreed if line in offered])

    def requests(self) -> Iterator[Request]:
        """What git asks, one after another; each must be answered, and its content read, before the next."""
        while (lines := self.content.read_list()) is not None:
            keys: Mapping[bytes, bytes] = {key: value for key, _, value in (line.partition(b"=") for line in lines)}
            request = Request(
                keys.get(b"command", b"").decode(errors="replace"),
                keys.get(b"pathname", b""),
                keys.get(b"can-delay") == b"1",
            )
            if request.command in ("clean", "smudge"):
                self.content.begin_content()
            yield request

    def answer(self, send: Callable[[Callable[[Buffer], None]], None]) -> None:
        """Send a content, piece by piece; what goes wrong while it is made is raised, after git was told.

        Args:
            send: is given what writes one piece.
        """
        self._out.write_list([b"status=success"])
        try:
            send(self._out.write_content)
        except CoralError:
            self._out.end_content()
            self._out.write_list([b"status=error"])
            raise
        self._out.end_content()
        self._out.write_list([])  # the status stays as it was

    def delay(self) -> None:
        """The content will be asked for again, once it is among those available."""
        self._out.write_list([b"status=delayed"])

    def list_available(self, pathnames: Iterable[bytes]) -> None:
        """Which delayed contents may be asked for now; none when none is left."""
        self._out.write_list([b"pathname=" + name for name in pathnames])
        self._out.write_list([b"status=success"])

    def fail(self) -> None:
        """Refuse what was asked; git then tells its user, and goes on or not as ``filter.NAME.required`` says."""
        self._out.write_list([b"status=error"])
