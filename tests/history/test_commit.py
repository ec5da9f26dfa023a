"""What a commit says, in and out of its git object."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.errors import CorruptionError, UsageError
from coral.history.commit import MAX_STEP, Commit, CommitObject, from_datetime, identity, to_datetime
from coral.ids import CommitHash

_HASH = CommitHash("a" * 40)


@pytest.mark.parametrize(
    ("author", "expected"),
    [
        ("Ada Lovelace <ada@x.org>", "Ada Lovelace <ada@x.org>"),
        ("coral", "coral <>"),
        ("  Ada,  ", "Ada <>"),
        ("A\nB <a@x>", "AB <a@x>"),
        ("A <b", "A b <>"),
        ("A > B <c>", "A  B <c>"),
        ("Jörg <j@x> ", "Jörg <j@x>"),
    ],
)
def test_identity(author: str, expected: str) -> None:
    """An author is cleaned as git cleans it."""
    assert identity(author) == expected


@pytest.mark.parametrize("author", ["", " ", "<a@x>", "<>", ".,;", "a\0b", "\udc80"])
def test_identity_refused(author: str) -> None:
    """An author without a name is refused, as git does."""
    with pytest.raises(UsageError):
        identity(author)


@given(st.text(), st.text())
def test_identity_never_breaks_the_object(name: str, email: str) -> None:
    """Whatever the author, the object reads back with the same author, or the author is refused."""
    try:
        who = identity(f"{name} <{email}>")
    except UsageError:
        return
    made = CommitObject(_HASH, (), who, 5, 0, 5, "text\n")
    assert CommitObject.from_bytes(made.to_bytes(), _HASH) == made


@given(
    st.integers(0, 2**33),
    st.integers(-14 * 60, 14 * 60),
    st.lists(st.sampled_from([_HASH, CommitHash("b" * 40)])),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_object_round_trip(seconds: int, offset: int, parents: list[CommitHash], text: str) -> None:
    """A commit object comes back field by field."""
    made = CommitObject(_HASH, tuple(parents), "A <a@x>", seconds, offset, seconds, text)
    assert CommitObject.from_bytes(made.to_bytes(), _HASH) == made


@given(st.binary())
def test_malformed(data: bytes) -> None:
    """Bytes that are no commit are corruption, never another error."""
    with pytest.raises(CorruptionError):
        CommitObject.from_bytes(data, _HASH)


def test_times() -> None:
    """A time keeps its zone; before 1970 is refused; what the calendar does not reach still shows."""
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
    assert to_datetime(*from_datetime(time)) == time
    assert to_datetime(*from_datetime(time)).utcoffset() == time.utcoffset()
    assert from_datetime(datetime(2026, 1, 2))[0] == int(datetime(2026, 1, 2).timestamp())
    with pytest.raises(UsageError):
        from_datetime(datetime(1969, 1, 1, tzinfo=UTC))
    assert to_datetime(10**17, 0).year == 9999


def test_trailer_properties() -> None:
    """The trailers are read as what they mean, and a malformed one as absent."""
    trailers = {
        "Coral-Run": "ab",
        "Coral-Step": "400",
        "Coral-Metrics": '{"loss": 0.5, "nan": NaN, "odd": "text"}',
        "Coral-Metadata": '{"a": [1]}',
        "Coral-Code-Commit": _HASH,
        "Coral-Code-Branch": "main",
        "Coral-Code-Dirty": "true",
        "Coral-Code-Diff": "d" * 64,
    }
    made = Commit(_HASH, (), "subject\nbody", "coral", datetime.now(UTC), trailers)
    assert (made.run_id, made.step, made.metadata, made.subject) == ("ab", 400, {"a": [1]}, "subject")
    assert (made.code_commit, made.code_branch, made.code_dirty) == (_HASH, "main", True)
    assert made.code_diff == "d" * 64
    assert made.metrics["loss"] == 0.5 and set(made.metrics) == {"loss", "nan"}
    odd = Commit(_HASH, (), "m", "coral", datetime.now(UTC), {"Coral-Step": "x", "Coral-Metrics": "[" * 10_000})
    assert (odd.step, odd.metrics, odd.run_id, odd.code_dirty, odd.code_diff) == (None, {}, None, None, None)
    assert len({made, made}) == 1


def test_metrics_that_json_lacks() -> None:
    """NaN and infinities are kept by name; another text, or a number beyond floats, is no metric."""
    text = '{"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": "nan", "e": 1%s, "f": 2, "g": [1], "h": -Infinity}'
    made = Commit(_HASH, (), "m", "coral", datetime.now(UTC), {"Coral-Metrics": text % ("0" * 400)})
    found = made.metrics
    assert math.isnan(found.pop("a"))
    assert found == {"b": math.inf, "c": -math.inf, "f": 2.0, "h": -math.inf}
    assert all(isinstance(value, float) for value in found.values())


@pytest.mark.parametrize("step", [0, -1, 10**18, MAX_STEP, -MAX_STEP])
def test_a_step_of_63_bits(step: int) -> None:
    """Every step that may be committed reads back; one that does not fit a 64-bit column is absent."""
    made = Commit(_HASH, (), "m", "coral", datetime.now(UTC), {"Coral-Step": str(step)})
    assert made.step == step
    beyond = Commit(_HASH, (), "m", "coral", datetime.now(UTC), {"Coral-Step": str(2**63)})
    assert beyond.step is None
