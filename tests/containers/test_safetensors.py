"""safetensors files: our header is the library's byte for byte, and what the library refuses is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from coral.containers import parse, restore, views
from coral.containers.safetensors import canonical_header
from coral.errors import CorruptionError, FormatError
from coral.format.dtypes import BITS, byte_count
from coral.format.manifest import Manifest, TensorRecord
from coral.ids import inline_ref
from tests.clock import at_most

# The names that the library's writer takes; it writes no six-bit types.
LIBRARY_NAMES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def library_file(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None) -> bytes:
    """The file that the library writes; four-bit shapes are given to it in pairs."""
    buffers: list[Any] = []
    specs = {}
    for name, (dtype, shape) in tensors.items():
        data = np.random.default_rng(len(buffers)).integers(0, 256, max(1, byte_count(dtype, shape)), np.uint8)
        buffers.append(data)
        pairs = [*shape[:-1], shape[-1] // 2] if dtype == "F4" else list(shape)
        specs[name] = TensorSpec(
            dtype=LIBRARY_NAMES[dtype], shape=pairs, data_ptr=data.ctypes.data, data_len=byte_count(dtype, shape)
        )
    return bytes(serialize(specs, metadata))


def whole(path: Path) -> tuple[bytes | None, bytes]:
    """A file's skeleton, and the file restored from its parts."""
    with parse(path) as parsed:
        assert parsed.container == "safetensors"
        contents = {source.name: bytes(source.read(0, 1 << 40)) for source in parsed.tensors}
        records = tuple(TensorRecord(s.name, s.dtype, s.shape, inline_ref(b"")) for s in parsed.tensors)
        manifest = Manifest("safetensors", records, None, parsed.metadata)
        out = bytearray()

        class Sink:
            def write(self, data: Any) -> None:
                out.extend(data)

            def patch(self, offset: int, data: bytes) -> None:
                raise AssertionError("never needed")

        restore(
            manifest,
            parsed.skeleton,
            lambda records: (contents[record.name] for record in records if record.nbytes),
            Sink(),
        )
        assert {name: view.record_name for name, view in views(manifest, parsed.skeleton).items()} == {
            name: name for name in contents
        }
        return parsed.skeleton, bytes(out)


@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(LIBRARY_NAMES)), SHAPES), max_size=8),
    st.none() | st.dictionaries(NAMES, NAMES, max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_what_the_library_writes_is_canonical(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str] | None,
) -> None:
    """Any file that the library writes regenerates from names, dtypes, shapes and metadata alone."""
    # With no tensors and an empty metadata object the library writes a file that it cannot read itself.
    assume(tensors or metadata != {})
    tensors = {n: (d, (*s, 2) if d == "F4" else s) for n, (d, s) in tensors.items()}
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    path.write_bytes(library_file(tensors, metadata))
    skeleton, restored = whole(path)
    assert restored == path.read_bytes()
    # An empty metadata object is the one thing that a manifest cannot tell from none.
    assert (skeleton is None) == (metadata != {})


def test_every_dtype_has_its_place() -> None:
    """Every dtype of coral can be written, widest first, the six-bit ones where the library's own order has them."""
    records = [TensorRecord(dtype, dtype, (8,), inline_ref(b"")) for dtype in BITS]
    header = json.loads(canonical_header(records)[8:])
    assert list(header) == list(BITS)[::-1]


def file_of(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def info(dtype: str, shape: list[Any], start: Any, stop: Any) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


VALID = [
    file_of({"b": info("U8", [2], 0, 2), "a": info("F32", [1], 2, 6)}, bytes(6)),
    file_of(b'{"a":{"shape":[1],"data_offsets":[0,1],"dtype":"U8"}}      ', b"x"),
    file_of({"__metadata__": {}, "a": info("F6_E2M3", [4], 0, 3)}, b"abc"),
    file_of({"__metadata__": None}),
    file_of({"e": info("F32", [0], 0, 0), "f": info("F32", [3, 0], 0, 0)}),
    file_of({"a[[": info("U8", [1], 0, 1), '"{': info("U8", [1], 1, 2)}, b"ab"),
    file_of(b" \n{}\t "),
]
TWICE = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
HOSTILE = {
    "empty": b"",
    "short": b"\1\0\0",
    "header longer than the file": file_of({}, length=99),
    "huge length": file_of({}, length=(1 << 64) - 1),
    "over 100 MB": file_of({}, bytes(8), length=100_000_001),
    "not utf-8": file_of(b'{"\xff":1}'),
    "not json": file_of(b"{"),
    "a list": file_of([]),
    "a gap": file_of({"a": info("U8", [1], 0, 1), "b": info("U8", [1], 2, 3)}, bytes(3)),
    "a gap at the start": file_of({"a": info("U8", [1], 1, 2)}, bytes(2)),
    "an overlap": file_of({"a": info("U8", [2], 0, 2), "b": info("U8", [2], 1, 3)}, bytes(3)),
    "the same bytes": file_of({"a": info("U8", [2], 0, 2), "b": info("U8", [2], 0, 2)}, bytes(2)),
    "backwards": file_of({"a": info("U8", [2], 2, 0)}, bytes(2)),
    "trailing bytes": file_of({"a": info("U8", [1], 0, 1)}, bytes(2)),
    "truncated": file_of({"a": info("U8", [9], 0, 9)}, bytes(8)),
    "wrong size": file_of({"a": info("F32", [1], 0, 1)}, bytes(1)),
    "negative": file_of({"a": info("U8", [-1], 0, -1)}),
    "a fraction": file_of({"a": info("U8", [1.0], 0, 1)}, b"x"),
    "a bool": file_of({"a": info("U8", [True], 0, 1)}, b"x"),
    "overflow": file_of({"a": info("U8", [1 << 40, 1 << 40], 0, 1 << 80)}),
    "overflow to nothing": file_of({"a": info("U8", [1 << 40, 1 << 40, 0], 0, 0)}),
    "half a byte": file_of({"a": info("F4", [1], 0, 0)}),
    "unknown dtype": file_of({"a": info("C128", [1], 0, 16)}, bytes(16)),
    "duplicate name": file_of(TWICE, b"xy"),
    "duplicate field": file_of(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}}),
    "metadata list": file_of({"__metadata__": []}),
    "lone surrogate": file_of(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "NaN": file_of(b'{"a":NaN}'),
    "missing field": file_of({"a": {"dtype": "U8", "shape": [1]}}, b"x"),
    "deep": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "many dimensions": file_of({"a": info("U8", [1] * 65, 0, 1)}, b"x"),
    "huge number": file_of(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"x"),
}


@pytest.mark.parametrize("data", VALID)
def test_odd_but_valid_files_restore(tmp_path: Path, data: bytes) -> None:
    """Any order, spacing and field order that the library reads is kept, with a literal skeleton."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    deserialize(data)
    assert whole(path)[1] == data


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, kind: str) -> None:
    """A malformed file is a FormatError by its name, and opaque under another one."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(FormatError):
        parse(path)
    with parse(path, opaque=True) as parsed:
        assert parsed.container == "opaque"
    with parse(path.rename(tmp_path / "x")) as parsed:
        assert parsed.container == "opaque"
    if kind not in ("duplicate name", "unknown dtype", "many dimensions"):
        with pytest.raises(SafetensorError):
            deserialize(HOSTILE[kind])


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"0,", b'"a":{},', b'"":[0],', b'"":0,', b"\\\\"], ids=str)
def test_a_large_hostile_header_is_refused_quickly(tmp_path: Path, unit: bytes) -> None:
    """A header of 20 MB that is one long array or object costs no more than a few seconds, and no gigabytes."""
    start = b'{"a":{"dtype":"U8","shape":[' if unit[:1] in b"[{0" else b"{"
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(start + unit * (20_000_000 // len(unit))))
    with at_most(2), pytest.raises(FormatError):
        parse(path)


def test_a_pointer_is_named_as_such(tmp_path: Path) -> None:
    """A git-lfs pointer under the name of a model gets a hint, not a riddle."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(FormatError, match="pointer"):
        parse(path)


def test_missing_bytes_are_corruption(tmp_path: Path) -> None:
    """A record that yields too few bytes never makes a file that looks whole."""
    record = TensorRecord("a", "U8", (4,), inline_ref(b""))
    out = bytearray()

    class Sink:
        def write(self, data: Any) -> None:
            out.extend(data)

        def patch(self, offset: int, data: bytes) -> None: ...

    with pytest.raises(CorruptionError, match="'a'"):
        restore(Manifest("safetensors", (record,)), None, lambda _: iter([b"abc"]), Sink())


def test_many_tensors_are_quick(tmp_path: Path) -> None:
    """5,000 tensors parse in well under a second of CPU."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(library_file({f"layer.{i}.weight": ("F32", (2, 2)) for i in range(5_000)}, None))
    with at_most(3):
        skeleton, restored = whole(path)
    assert skeleton is None and restored == path.read_bytes()
