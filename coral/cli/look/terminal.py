"""What a terminal would obey is shown instead: names and messages come from other people."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Final

# Control characters but line break and tab, marks that turn the direction of writing, and what is no unicode. Colours,
# which coral itself writes, are left: whoever else writes one can do no more with it than colour.
_COLOUR = r"\x1b\[(?:[012]|3[0-7]|9[0-7])?m"
_OBEYED: Final = re.compile(
    f"(?P<colour>{_COLOUR})"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with each character that a terminal obeys written as ``\\u001b``, as JSON writes it."""
    return _OBEYED.sub(lambda match: match["colour"] or f"\\u{ord(match[0]):04x}", text)


class _Visible(io.TextIOWrapper):
    """A text stream that writes what is visible."""

    def write(self, text: str) -> int:
        super().write(visible(text))
        return len(text)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let nothing but visible text, and colours, be printed meanwhile."""
    plain = sys.stdout
    if not isinstance(plain, io.TextIOWrapper):  # somebody else's; it is no terminal
        yield
        return
    plain.flush()
    out = _Visible(plain.buffer, plain.encoding, plain.errors, line_buffering=plain.line_buffering)
    sys.stdout = out
    try:
        yield
    finally:
        sys.stdout = plain
        if not out.closed:
            with contextlib.suppress(BrokenPipeError):
                out.flush()
            out.detach()
