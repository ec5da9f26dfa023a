"""The text of coral's pre-push hook, and telling it apart from the user's.

The hook that was there before runs first, under the name :data:`BEFORE` beside it, with the same arguments and the
same standard input; when it fails, nothing is pushed. The checksum says whether somebody edited the hook since.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Literal

from coral.ids import checksum

HOOK = "pre-push"
BEFORE = "pre-push.before-coral"
MODE = 0o755

State = Literal["coral", "edited", "foreign"]
"""Whose a hook is: as coral wrote it, coral's with changes of the user's, or the user's own."""

_MARK = re.compile(rb"^# coral pre-push ([0-9a-f]{16}): .*\n", re.MULTILINE)
_SCRIPT = """\
#!/bin/sh
# coral pre-push {checksum}: 'coral uninstall' takes this out, and puts back the hook that was here.
coral() {{ {command} "$@"; }}

# The dot keeps the line breaks at the end.
pushed=$(cat; echo .)
pushed=${{pushed%.}}

before=$(dirname -- "$0")/{before}
if [ -f "$before" ] && [ -x "$before" ]; then
	printf %s "$pushed" 2>/dev/null | "$before" "$@" || exit
fi

printf %s "$pushed" 2>/dev/null | coral git-pre-push "$@" && exit
status=$?
coral --version >/dev/null 2>&1 || printf '%s\\n' {complaint} >&2
exit $status
"""


def script(program: Sequence[str]) -> bytes:
    """The hook for the words that start coral's program."""
    command = shlex.join(program)
    complaint = (
        f"coral: nothing was pushed: {command} cannot be run",
        "hint: install coral again and run 'coral install' here; or 'git push --no-verify', without any tensors",
    )
    text = _SCRIPT.format(
        checksum="{checksum}", command=command, before=BEFORE, complaint=" ".join(map(shlex.quote, complaint))
    )
    data = text.encode(errors="surrogateescape")
    return data.replace(b"{checksum}", _digest(data), 1)


def state_of(data: bytes) -> State:
    """Whose a hook with these bytes is; a hook that another version of coral wrote is coral's as well."""
    match = _MARK.search(data)
    if match is None:
        return "foreign"
    start, end = match.span(1)
    return "coral" if _digest(data[:start] + b"{checksum}" + data[end:]) == match[1] else "edited"


def knows_its_name(data: bytes) -> bool:
    """Whether a hook seems to ask what it is called, which changes when coral's comes before it."""
    return (
        re.search(rb"""basename|\$\{0##|argv\[0\]|\$PROGRAM_NAME|__FILE__|__file__|husky|/h["']?$""", data) is not None
    )


def _digest(data: bytes) -> bytes:
    return f"{checksum(data):016x}".encode()
