"""The journal's lines: any cut reads as the events before it, and damage costs itself only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.experiments.columns import MetricColumns
from coral.experiments.events import Event, Fold
from coral.experiments.experiment import Experiment
from coral.experiments.local.journal import JournalReader, damaged, decode, encode, line

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
EVENTS = st.lists(
    st.one_of(
        st.builds(lambda v, s: {"e": "m", "t": 5, "s": s, "v": {"loss": v}}, NUMBERS, st.integers(-(2**60), 2**60)),
        st.builds(lambda k, v: {"e": "p", "t": 6, "v": {k: v}}, st.text(max_size=5), st.text(max_size=5)),
    ),
    max_size=6,
)


def some_events() -> list[Event]:
    """One of each kind."""
    return [
        {"e": "m", "t": 1000, "s": 1, "v": {"loss": 0.5, "acc": "NaN"}, "d": {"split": "ü"}},
        {"e": "p", "t": 1001, "v": {"opt": {"lr": 0.1}}},
        {
            "e": "set",
            "t": 1002,
            "v": {"add_tags": ["a"], "notes": "n", "labels": {"k": "v"}, "objective": {"loss": "min"}},
        },
        {"e": "c", "t": 1003, "hash": "a" * 40, "step": 1, "metrics": {}},
        {"e": "drop", "t": 1004, "n": 3},
        {"e": "end", "t": 1005, "status": "completed", "failure": None, "commit": None},
    ]


@given(EVENTS)
def test_lines_come_back(events: list[Event]) -> None:
    """What was encoded is decoded, and the last line's end is where reading goes on."""
    data = b"".join(map(encode, events))
    found, used = decode(data)
    assert found == events
    assert used == len(data)


def test_a_cut_at_every_byte_reads_as_the_events_before_it() -> None:
    """A journal cut anywhere never raises, never gives a value that was not logged, and loses only the cut line."""
    events = some_events()
    data = b"".join(map(encode, events))
    ends = [len(b"".join(map(encode, events[: n + 1]))) - 1 for n in range(len(events))]  # less the last line break
    for cut in range(len(data) + 1):
        found, _ = decode(data[:cut])
        assert found == events[: sum(end <= cut for end in ends)]


def test_a_flipped_bit_costs_its_line_only() -> None:
    """No damaged line is believed, and the lines around it are."""
    events = some_events()
    data = b"".join(map(encode, events))
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        found, _ = decode(bytes(damaged))
        assert all(event in events for event in found)
        assert len(found) >= len(events) - 2  # a damaged line break joins two lines


def test_a_torn_line_does_not_take_the_next_with_it() -> None:
    """What a full disk cut off is skipped; the line written after it is read."""
    first, second = encode({"e": "p", "t": 1, "v": {"a": 1}}), encode({"e": "p", "t": 2, "v": {"b": 2}})
    for cut in range(1, len(first) - 1):
        assert decode(first[:cut] + second)[0] == [{"e": "p", "t": 2, "v": {"b": 2}}]


def test_damage_is_counted_and_a_crash_is_not() -> None:
    """A flip costs one line or two, and is counted; a cut anywhere, and a torn line that was written again, are not."""
    events = some_events()
    data = b"".join(map(encode, events))
    assert damaged(data) == 0
    for place in range(len(data)):
        for bit in (1, 0x80):
            flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            assert decode(flipped)[0] == events or damaged(flipped), place
    for cut in range(len(data)):
        assert damaged(data[:cut]) == 0
        again = next(
            len(b"".join(map(encode, events[:n])))
            for n in range(7)
            if len(b"".join(map(encode, events[: n + 1]))) > cut
        )
        assert damaged(data[:cut] + data[again:]) == 0


def test_a_journal_of_an_older_coral_is_whole() -> None:
    """Lines with no line break of their own after them are read, and are no damage."""
    events = some_events()
    data = b"".join(encode(event)[:-1] for event in events)
    assert decode(data) == (events, len(data)) and damaged(data) == 0
    assert damaged(data.replace(b"loss", b"lost", 1)) == 1


def test_a_reader_follows_a_growing_journal(tmp_path: Path) -> None:
    """Each read gives what was appended since, also when the last one saw half a line."""
    path, events = tmp_path / "j", some_events()
    data = b"".join(map(encode, events))
    reader, seen = JournalReader(path), list[Event]()
    for start in range(0, len(data), 17):
        with path.open("ab") as file:
            file.write(data[start : start + 17])
        seen += [event for block in reader.read() for event in block]
    assert seen == events


def test_a_reader_counts_each_damaged_line_once(tmp_path: Path) -> None:
    """Be it the last one there is, or followed by others; what is still being written is none."""
    path, (first, second, *_) = tmp_path / "j", map(encode, some_events())
    bad, worse = (first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :] for at in (20, 21))
    reader, written = JournalReader(path), b""
    for piece, count in ((second, 0), (bad, 1), (second[:9], 1), (second[9:], 1), (worse, 2), (bad, 3), (second, 3)):
        written += piece
        path.write_bytes(written)
        list(reader.read())
        assert reader.damaged == count, written


def test_a_line_longer_than_a_block_is_read(tmp_path: Path) -> None:
    """A parameter of several megabytes does not stop the reader."""
    events: list[Event] = [{"e": "p", "t": 1, "v": {"text": "x" * 3_000_000}}, {"e": "p", "t": 2, "v": {"b": 2}}]
    path = tmp_path / "j"
    path.write_bytes(b"".join(map(encode, events)))
    assert [event for block in JournalReader(path).read() for event in block] == events


@pytest.mark.parametrize(
    "body",
    [
        b'{"e":"m"}',
        b'{"e":"m","t":1}',
        b'{"e":"m","t":"x","v":{}}',
        b'{"e":"m","t":1e400,"v":{"a":1.0}}',
        b'{"e":"m","t":99999999999999999,"v":{"a":1.0}}',
        b'{"e":"m","t":1,"s":1.5,"v":{"a":1.0}}',
        b'{"e":"m","t":1,"s":99999999999999999999,"v":{"a":1.0}}',
        b'{"e":"m","t":1,"v":{"a":"loud"}}',
        b'{"e":"m","t":1,"v":[1]}',
        b'{"e":"c","t":1}',
        b'{"e":"a","t":1,"v":{"name":"x"}}',
        b'{"e":"set","t":1,"v":{"objective":{"a":"up"}}}',
        b'{"e":"end","t":1,"status":"glorious"}',
        b'{"e":"drop","t":1,"n":"many"}',
        b'{"e":["m"],"t":1}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"{nonsense}",
    ],
)
def test_forged_events_change_nothing(body: bytes) -> None:
    """An event with a right checksum that makes no sense is left out, and those after it count."""
    good: Event = {"e": "m", "t": 5, "s": 1, "v": {"loss": 0.5}}
    fold = Fold(Experiment("a" * 12, "x"), MetricColumns())
    fold.apply_all(decode(line(body) + encode(good))[0])
    assert list(fold.history.series) == ["loss"]
    assert fold.history.series["loss"].values == [0.5]
    assert not fold.ended
