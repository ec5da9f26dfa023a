"""The text of a ``.gitattributes`` file: which patterns coral's filter has, one more of them, one less.

Text in, text out, decoded with ``surrogateescape``. Every line but the one in question stays as it is, to the byte,
and a text that did not end in a line break still does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from coral.errors import UsageError

FILE = ".gitattributes"
_WORDS = ("filter=coral", "diff=coral", "merge=coral", "-text")
_WANTED = {"filter": "coral", "diff": "coral", "merge": "coral", "text": False}
_MACROS = {"binary": ("-diff", "-merge", "-text")}
_MACRO = "[attr]"
_GITS_OWN = (FILE, ".gitignore", ".gitmodules")
_BOM = "\ufeff"
_CODING = ("utf-8", "surrogateescape")
# Git takes no notice of longer lines.
_LONGEST_LINE = 2048

_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_BLANKS = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[ \t\r]*[^ \t\r\n]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\[abfnrtv"\\]|\\[0-3][0-7][0-7])*)"')
_ESCAPE = re.compile(rb"\\([abfnrtv\"\\]|[0-7]{3})")
_MUST_ESCAPE = re.compile(r'["\\\x00-\x1f\x7f]')
_LETTERS = dict(zip('abfnrtv"\\', '\a\b\f\n\r\t\v"\\', strict=True))
_CHARACTERS = {character: letter for letter, character in _LETTERS.items()}

State = str | bool | None
"""What git makes of an attribute: its value, set, unset; None for unspecified."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that gives a pattern attributes: all up to the end of the pattern, each word with the blanks before it,
    and what is left."""

    pattern: str
    start: str
    words: tuple[str, ...]
    end: str

    def without_coral(self) -> str:
        """The line less coral's attributes; empty when nothing else was in it."""
        left = [word for word in self.words if _bare(word) not in _WORDS]
        return self.start + "".join(left) + self.end if left else ""


def normal(given: str) -> str:
    """The pattern that a user's words mean, as git's attribute files know it.

    Raises:
        UsageError: no attribute file can say it, or it would match nothing.
    """
    pattern = re.sub(r"\A(\./+)+", "", given)
    if not pattern or "\0" in pattern:
        raise UsageError(f"{given!r} is no pattern", hint="name files as in *.safetensors")
    if pattern.endswith("/"):
        raise UsageError(
            f"{given!r} is a folder, which git's attributes know nothing of", hint=f"{pattern}** is all in it"
        )
    if {".", ".."} & set(pattern.split("/")):
        raise UsageError(f"{given!r} matches nothing from here", hint="go to the folder, and name files as in *.pt")
    if pattern.startswith(_MACRO):
        raise UsageError(f"{given!r} would define a macro of git's", hint="write [rtta] for [attr]")
    *folders, name = pattern.split("/")
    for own in _GITS_OWN:
        if fnmatchcase(own, name) and set(folders) <= {"", "**"}:
            raise UsageError(f"{given!r} matches {own}, which git reads itself", hint="name files as in *.safetensors")
    if pattern.startswith("!"):  # git ignores those; with a backslash it is a letter like others
        pattern = f"\\{pattern}"
    if len(_line_for(pattern).encode(*_CODING)) >= _LONGEST_LINE - len("\r\n"):
        raise UsageError(f"{given[:40]!r}... is longer than git reads", hint="use * to shorten it")
    return pattern


def patterns(text: str) -> list[str]:
    """The patterns that this text alone gives coral's filter, in order."""
    filters: dict[str, State] = {}
    for _, line in _parsed(text):
        found = _states(line)
        if "filter" in found:
            filters[line.pattern] = found["filter"]
    return [pattern for pattern, name in filters.items() if name == "coral"]


def add(text: str, pattern: str) -> str:
    """The text with a pattern for coral; the same text when it says so already."""
    states: dict[str, State] = {}
    for _, line in _parsed(text):
        if line.pattern == pattern:
            states.update(_states(line))
    if _WANTED.items() <= states.items():
        return text
    lines = _LINES.findall(text)
    ended = [line for line in lines[-2:] if line.endswith("\n")]
    end = "\r\n" if ended and ended[-1].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        return text + end + _line_for(pattern)
    return text + _line_for(pattern) + end


def remove(text: str, pattern: str) -> str:
    """The text without coral's attributes for a pattern; the same text when it gives the pattern none."""
    lines = _LINES.findall(text)
    gone = set()
    for place, line in _parsed(text):
        if line.pattern == pattern and "filter=coral" in map(_bare, line.words):
            lines[place] = line.without_coral()
            if not lines[place]:
                gone.add(place)
    if len(lines) - 1 in gone and not text.endswith("\n"):
        before = max((place for place in range(len(lines)) if place not in gone), default=None)
        if before is not None:
            lines[before] = re.sub(r"\r?\n\Z", "", lines[before])
    return "".join(lines)


def quote(pattern: str) -> str:
    """A pattern as an attribute file writes it: in double quotes, with C's escapes, where it needs them."""
    if not pattern.startswith(("#", _BOM)) and not re.search(r'[ "\x00-\x1f\x7f]', pattern):
        return pattern
    return '"' + _MUST_ESCAPE.sub(lambda match: _escape(match[0]), pattern) + '"'


def _line_for(pattern: str) -> str:
    return " ".join((quote(pattern), *_WORDS))


def _escape(character: str) -> str:
    letter = _CHARACTERS.get(character)
    return f"\\{letter}" if letter is not None else f"\\{ord(character):03o}"


def _unquote(quoted: str) -> str:
    return _ESCAPE.sub(lambda match: _unescape(match[1]), quoted.encode(*_CODING)).decode(*_CODING)


def _unescape(code: bytes) -> bytes:
    return bytes([int(code, 8)]) if code.isdigit() else _LETTERS[code.decode()].encode()


def _parsed(text: str) -> Iterator[tuple[int, _Line]]:
    """The lines that give a pattern attributes, and their places."""
    for place, line in enumerate(_LINES.findall(text)):
        parsed = _parse(line, len(_BOM) if place == 0 and line.startswith(_BOM) else 0)
        if parsed is not None:
            yield place, parsed


def _parse(line: str, at: int) -> _Line | None:
    start = _match_end(_BLANKS, line, at)
    if start == len(line) or line[start] == "#":
        return None
    quoted = _QUOTED.match(line, start)
    if quoted is not None:
        pattern, end = _unquote(quoted[1]), quoted.end()
    else:
        end = _match_end(_WORD, line, start)
        pattern = line[start:end]
    if pattern.startswith((_MACRO, "!")):
        return None
    words = [match[0] for match in _WORD.finditer(line, end)]
    return _Line(pattern, line[:end], tuple(words), line[end + sum(map(len, words)) :])


def _bare(word: str) -> str:
    return word.lstrip(" \t\r")


def _match_end(expression: re.Pattern[str], line: str, at: int) -> int:
    match = expression.match(line, at)
    return match.end() if match is not None else at


def _states(line: _Line) -> dict[str, State]:
    states: dict[str, State] = {}
    for word in map(_bare, line.words):
        for one in (word, *_MACROS.get(word, ())):
            name, equals, value = one.lstrip("-!").partition("=")
            states[name] = value if equals else {"-": False, "!": None}.get(one[0], True)
    return states
