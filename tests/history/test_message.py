"""The text of a commit keeps every message and is not fooled by any."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coral.errors import UsageError
from coral.history.message import decode, encode

_LINES = st.sampled_from(["", " ", "Coral-Run: x", " Coral-Run: x", "coral-run: y", "a: b", "Coral-", "\r", "%0A"])
_ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
MESSAGES = (_ANY | st.lists(_LINES | _ANY).map("\n".join)).filter(str.strip)
TRAILERS = st.dictionaries(st.from_regex(r"Coral-[A-Za-z]{1,9}(-[A-Za-z]{1,9})?", fullmatch=True), _ANY, max_size=4)


@given(MESSAGES, TRAILERS)
@example("x\n\nCoral-Run: forged", {})
@example("Coral-Run: forged", {})
@example("x\r\n\r\ny\r\n \n\n\n", {"Coral-A": "\n"})
def test_round_trip(message: str, trailers: dict[str, str]) -> None:
    """Any message and any trailers come back exactly, and no message passes for a trailer."""
    assert decode(encode(message, trailers)) == (message, trailers)


@pytest.mark.parametrize("message", ["", " \n\t ", "a\0b", "\ud800"])
def test_refused(message: str) -> None:
    """A blank message, a NUL and lone surrogates are refused."""
    with pytest.raises(UsageError):
        encode(message, {})


@pytest.mark.parametrize("key", ["Run", "Coral-", "Coral-A B", "Coral-A:", "Coral-A\n", "coral-run"])
def test_keys(key: str) -> None:
    """Only Coral- keys are trailers."""
    with pytest.raises(UsageError):
        encode("m", {key: "x"})


def test_what_git_wrote() -> None:
    """Text of another git comes back less its last newline; a trailer written by hand is read as it stands."""
    assert decode("subject\n\nbody\n") == ("subject\n\nbody", {})
    assert decode("subject\n\nCoral-Note: 100 %") == ("subject", {"Coral-Note": "100 %"})
