"""What a file's name promises: files that plainly break it are refused, whichever suffix it is, and said to be so."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from coral.containers import BytesFile, ParsedFile, parse, parse_file
from coral.containers.container import PROMISES
from coral.errors import FormatError
from tests.containers.helpers import gguf

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"


def _torch(value: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _npy(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.arange(50), b=np.ones((3, 4)))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}" * 50)
    return stream.getvalue()


def _hdf5(version: int, width: int = 8) -> bytes:
    """The superblock of an HDF5 file of 200 bytes, and what may follow it."""
    middle = {0: bytes(4) + bytes([width, 8, 0, 4, 0, 16, 0]) + bytes(4), 2: bytes([width, 8, 0])}[version]
    head = b"\x89HDF\r\n\x1a\n" + bytes([version]) + middle
    return (head + bytes(2 * width) + (200).to_bytes(width, "little")).ljust(200, b"\1")


WHOLE = {
    "model.safetensors": save({"a": torch.ones(30), "b": torch.zeros(4, 4)}),
    "last.pt": _torch({"w": torch.ones(50), "step": 3}),
    "LAST.CKPT": _torch({"w": torch.ones(50)}),
    "pytorch_model.bin": _torch({"w": torch.ones(50)}),
    "old.pth": _torch({"w": torch.ones(50), "b": torch.ones(3)}, _use_new_zipfile_serialization=False),
    "f.npy": _npy(np.ones((5, 7), "f4")),
    "fortran.npy": _npy(np.asfortranarray(np.ones((5, 7)))),
    "scalar.npy": _npy(np.array(3.0)),
    "texts.npy": _npy(np.array(["ab", "cde"])),
    "times.npy": _npy(np.array(["2020-01-01"], "datetime64[s]")),
    "arrays.npz": _npz(),
    "llama.gguf": gguf({"a": (0, (3, 2), bytes(24)), "w": (2, (64, 4), b"ab" * 72)}, alignment=8),
    "model.keras": _zip(),
    "old.keras": _hdf5(0),
    "weights.h5": _hdf5(0),
    "new.h5": _hdf5(2),
    "narrow.h5": _hdf5(2, 4),
}
"""Files that are as long as their format says they are."""


def _parsed(data: bytes, name: str, *, keeps_broken: bool = False) -> ParsedFile:
    return parse_file(BytesFile(data), name=name, keeps_broken=keeps_broken)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_passes(name: str) -> None:
    """What holds its promise is neither refused nor spoken of."""
    assert _parsed(WHOLE[name], name).reason == ""


@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_file_never_passes_in_silence(name: str) -> None:
    """Wherever it is cut, a file is refused; or it is said why it is kept whole, where other tools use the name too."""

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(WHOLE[name]) - 1))
    def never(length: int) -> None:
        try:
            with _parsed(WHOLE[name][:length], name) as parsed:
                assert parsed.reason or (name.endswith(".bin") and length < 4)
                assert PROMISES[Path(name.lower()).suffix].held != "always"
        except FormatError:
            pass

    never()
    with pytest.raises(FormatError):
        _parsed(WHOLE[name][:-1], name)


@pytest.mark.parametrize("suffix", PROMISES)
def test_nothing_and_a_pointer_are_no_model(suffix: str) -> None:
    """An empty file and a pointer are refused under every suffix of a model; with what to do about it."""
    for pointer in (LFS, b"coral manifest 1\ncontainer opaque\n"):
        with pytest.raises(FormatError, match="pointer") as caught:
            _parsed(pointer, f"x{suffix}")
        assert "pull" in (caught.value.hint or "") and "--opaque" in (caught.value.hint or "")
    if suffix in (".distcp", ".bin"):  # of a rank that has nothing to write; of anybody
        assert _parsed(b"", f"x{suffix}").container == "opaque"
        return
    with pytest.raises(FormatError, match="empty"):
        _parsed(b"", f"x{suffix}")


@pytest.mark.parametrize("suffix", [*PROMISES, ".json", ""])
def test_other_content(suffix: str) -> None:
    """What begins as no file of the format is refused, or said, or nobody's business, as far as the name is taken."""
    promise = PROMISES.get(suffix)
    junk = b"<!DOCTYPE html><title>404</title>" * 9
    if promise is not None and (suffix == ".safetensors" or (promise.starts and promise.held == "always")):
        with pytest.raises(FormatError):
            _parsed(junk, f"x{suffix}")
    else:
        mostly = promise is not None and promise.held == "mostly"
        assert bool(_parsed(junk, f"x{suffix}").reason) == mostly


def test_a_pointer_is_refused_under_any_name(tmp_path: Path) -> None:
    """Nobody means to keep a pointer to a tokenizer."""
    (tmp_path / "tokenizer.json").write_bytes(LFS)
    with pytest.raises(FormatError, match="pointer"):
        parse(tmp_path / "tokenizer.json")
    assert parse(tmp_path / "tokenizer.json", opaque=True).reason == ""


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.sampled_from([*PROMISES, ".txt"]), st.integers(0, 400))
def test_a_broken_promise_changes_nothing_but_what_is_said(name: str, suffix: str, cut: int) -> None:
    """Where a broken file must be kept, it is kept as one whose name promises nothing, and said to be broken."""
    data = WHOLE[name][: max(0, len(WHOLE[name]) - cut)]
    found, plain = _parsed(data, f"x{suffix}", keeps_broken=True), _parsed(data, "")
    assert (found.container, found.skeleton, found.metadata) == (plain.container, plain.skeleton, plain.metadata)
    assert plain.reason == ""
    try:
        assert _parsed(data, f"x{suffix}").reason == found.reason
    except FormatError as error:
        assert found.reason == error.message


def test_a_reason_is_bounded() -> None:
    """A reason may quote the file, so it is cut."""
    crafted = b"\x80\x02c" + b"m" * 9000 + b"\n" + b"n" * 9000 + b"\n."
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", crafted)
    assert 0 < len(_parsed(stream.getvalue(), "x.pt").reason) < 400
