"""How numbers, tables and progress look."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.cli.look import output
from coral.cli.look.progress import progress_bar
from coral.cli.values import parse_params
from coral.errors import UsageError


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234567, "1.2 MB"),
        (99_400_000, "99.4 MB"),
        (99_949_999, "100 MB"),
        (999_499, "999 kB"),
    ],
)
def test_sizes_are_for_people(nbytes: int, text: str) -> None:
    """At most three digits, in powers of a thousand."""
    assert output.size(nbytes) == text


@given(st.integers(0, 10**18))
def test_a_size_is_short(nbytes: int) -> None:
    """No size takes more than seven characters, so that columns stay narrow."""
    assert len(output.size(nbytes)) <= 7


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.0001, "<0.1 %"), (0.99999, ">99.9 %"), (0.5, "50.0 %")],
)
def test_a_share_does_not_lie(share: float, text: str) -> None:
    """A little is not shown as nothing, nor almost all as all."""
    assert output.percent(share) == text


def test_times_are_for_people() -> None:
    """The largest unit alone says how long ago; durations have two."""
    now = datetime.now(UTC)
    assert output.age(now - timedelta(hours=1, minutes=5)) == "1 hour ago"
    assert output.age(now - timedelta(days=3)) == "3 days ago"
    assert [output.duration(seconds) for seconds in (0.25, 59.4, 61, 3725)] == ["0.2s", "59s", "1m01s", "1h02m"]


def test_json_is_json_whatever_was_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN and infinities, which JSON does not know, are strings."""
    output.print_json({"values": (float("nan"), float("inf"), -float("inf"), 0.5)})
    assert json.loads(capsys.readouterr().out) == {"values": ["NaN", "Infinity", "-Infinity", 0.5]}


def test_a_piped_table_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are aligned, nothing is cut, and no line ends in blanks."""
    output.print_table(("name", "n"), [["a" * 100, "1"], ["b", "22"]], right=(1,))
    assert capsys.readouterr().out == f"{'name':<100}   n\n{'a' * 100}   1\n{'b':<100}  22\n"


def test_a_narrow_terminal_is_spared_a_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spare column goes where a line would wrap; a pipe gets all of them."""
    table = ("id", "branch", "name"), [["1", "b" * 70, "first-try"]]
    output.print_table(*table, spare=1)
    assert "branch" in capsys.readouterr().out
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    for width, words in ((85, 3), (84, 2)):
        monkeypatch.setattr(output, "terminal_width", lambda width=width: width)
        output.print_table(*table, spare=1)
        assert len(capsys.readouterr().out.splitlines()[0].split()) == words


def test_nobody_watches_a_pipe() -> None:
    """Where standard error is no terminal there is no bar, and no cost."""
    with progress_bar("adding", 10) as progress:
        assert progress is None


@given(st.text())
def test_any_text_is_a_parameter(text: str) -> None:
    """A value is JSON or else the string itself, never an error."""
    value = parse_params([f"name={text}"])["name"]
    try:
        assert json.dumps(value) == json.dumps(json.loads(text))
    except ValueError:
        assert value == text


def test_a_pair_needs_a_name() -> None:
    """What has no name, or no sign, is refused."""
    for pair in ("=1", "name", ""):
        with pytest.raises(UsageError):
            parse_params([pair])
