"""Every file restores byte for byte, whatever it is; what can be named in it, is."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coral.containers import TensorView, parse, views
from coral.errors import CoralError, FormatError, NotFoundError, UsageError
from coral.format.manifest import Manifest, is_manifest
from coral.tensors.numpy import NUMPY
from tests.containers.helpers import kept, rebuilt, roundtrip


def shown(view: TensorView, manifest: Manifest, contents: dict[str, bytes]) -> Any:
    """A tensor of a file, as numpy has it."""
    record = manifest[view.record_name]
    whole, data = NUMPY.empty(record.dtype, record.shape)
    data[:] = contents[record.name]
    return NUMPY.view(whole, view.shape, view.stride, view.offset) if view.stride else whole


def saved(value: object, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def checkpoint(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(2, 5)).sum().backward()
    optimizer.step()
    base = torch.randn(4, 6)
    return {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "tied": [base, base],
        "scalar": torch.tensor(seed),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "epoch": 3,
        "rng": torch.get_rng_state(),
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "numpy": [np.float64(0.5), np.arange(3)],
    }


def test_a_torch_checkpoint_is_named_tensors(tmp_path: Path) -> None:
    """Storages are records under the dotted path of the tensor that covers them; views and ties are derived."""
    value = checkpoint()
    container, found = roundtrip(saved(value, tmp_path / "last.pt"))
    assert container == "torch"
    assert found["model.weight"] == TensorView("model.weight", "model.weight", "F32", (3, 5))
    assert found["optimizer.state.0.exp_avg"].record_name == "optimizer.state.0.exp_avg"
    assert found["view"] == TensorView("view", "tied.0", "F32", (2, 3), (6, 2), 6)
    assert found["transposed"] == TensorView("transposed", "tied.0", "F32", (6, 4), (1, 6), 0)
    assert found["tied.1"].record_name == "tied.0" and found["tied.1"].stride is None
    assert found["parameter"].shape == (2,) and found["scalar"].shape == ()


def test_views_give_the_tensors_that_torch_loads(tmp_path: Path) -> None:
    """What is read through the views is equal to what torch.load gives, for every tensor of the file."""
    from coral.integrations.torch import FRAMEWORK

    path = saved(checkpoint(), tmp_path / "last.pt")
    loaded = torch.load(path, weights_only=False)
    with parse(path) as parsed:
        manifest, contents = kept(parsed)
        for name, view in views(manifest, parsed.skeleton).items():
            record = manifest[view.record_name]
            whole, data = FRAMEWORK.empty(record.dtype, record.shape)
            data[:] = contents[record.name]
            expected = loaded
            for key in name.split("."):
                expected = expected[int(key) if key.isdigit() else key]
            got = FRAMEWORK.view(whole, view.shape, view.stride, view.offset)
            assert isinstance(got, torch.Tensor) and torch.equal(got, expected.detach()), name


def test_the_skeleton_changes_only_with_the_structure(tmp_path: Path) -> None:
    """Two checkpoints of one structure have one skeleton: CRCs and the serialization id are not in it."""
    skeletons = []
    for seed in (0, 1):
        with parse(saved(checkpoint(seed), tmp_path / "last.pt")) as parsed:
            skeletons.append(parsed.skeleton)
    assert skeletons[0] == skeletons[1]


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.float8_e4m3fn),
    *(torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("protocol", [2, 5])
def test_every_dtype_and_protocol_of_torch(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    """A tensor of any dtype, saved with any protocol, is one record with its own dtype and shape."""
    tensor = torch.arange(48, dtype=torch.uint8).view(dtype).reshape(2, -1)
    path = saved({"w": tensor}, tmp_path / "x.bin", pickle_protocol=protocol)
    container, found = roundtrip(path)
    factor = 2 if dtype == torch.float4_e2m1fn_x2 else 1
    assert container == "torch" and found["w"].shape == (2, tensor.shape[1] * factor) and found["w"].stride is None


def test_crafted_pickles_are_refused(tmp_path: Path) -> None:
    """Broken, endless and exploding pickles end quickly in an opaque file."""
    bomb: list[Any] = [1]
    for _ in range(60):
        bomb = [bomb, bomb]
    tuples = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns."
    shared = pickle.dumps(bomb, 2)
    for crafted in (
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02c",
        b"\x80\x02r\xff\xff\xff\xffN.",
        tuples,
        shared,
        b"\x80\x02N" * 9,
    ):
        path = saved({"w": torch.ones(2)}, tmp_path / "x.pt")
        target = tmp_path / "crafted.pt"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as sink:
            for info in source.infolist():
                sink.writestr(info.filename, crafted if info.filename.endswith("data.pkl") else source.read(info))
        container, _ = roundtrip(target)
        assert container == "opaque" or crafted in (shared, tuples)


def test_archives_that_differ_in_what_is_derived(tmp_path: Path) -> None:
    """Wrong CRCs, no CRCs, no serialization id, another alignment: kept literally, restored exactly."""
    value = checkpoint()
    torch.serialization.set_crc32_options(False)
    try:
        plain = saved(value, tmp_path / "nocrc.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert roundtrip(plain)[0] == "torch"
    data = bytearray(saved(value, tmp_path / "x.pt").read_bytes())
    for needle in (b"PK\7\x08", b"PK\1\2", b"serialization_id"):
        changed = bytearray(data)
        changed[data.rindex(needle) + len(needle) + 3] ^= 1
        (tmp_path / "changed.pt").write_bytes(changed)
        roundtrip(tmp_path / "changed.pt")
    zipped = tmp_path / "rezipped.pt"
    with zipfile.ZipFile(tmp_path / "x.pt") as source, zipfile.ZipFile(zipped, "w") as sink:
        for info in source.infolist():
            sink.writestr(info.filename, source.read(info))
    assert roundtrip(zipped)[0] == "torch"


def test_big_endian_archives_and_bare_pickles_are_opaque(tmp_path: Path) -> None:
    """A big-endian archive and a pickle without an archive are kept whole."""
    path = saved({"w": torch.ones(2)}, tmp_path / "x.pt")
    swapped = tmp_path / "big.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(swapped, "w") as sink:
        for info in source.infolist():
            sink.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else source.read(info))
    assert roundtrip(swapped)[0] == "opaque"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": 1}))
    assert roundtrip(tmp_path / "x.pkl")[0] == "opaque"


ARRAYS = [
    (np.arange(6, dtype="<f4").reshape(2, 3), "F32", (2, 3)),
    (np.array(3, "<i8"), "I64", ()),
    (np.zeros((0, 4), "u1"), "U8", (0, 4)),
    (np.ones(3, bool), "BOOL", (3,)),
    (np.ones(2, "<c8"), "C64", (2,)),
]
FOREIGN: list[Any] = [
    np.arange(4, dtype=">f4"),
    np.array(["ab"]),
    np.ones(2, "<c16"),
    np.ones(2, np.longdouble),
    np.array(["2020-01-01"], "M8[D]"),
    np.zeros(2, [("a", "<f4"), ("b", "<i2")]),
    np.array([{}], object),
]


def label(value: object) -> str:
    return str(getattr(value, "dtype", value))


@pytest.mark.parametrize(("array", "dtype", "shape"), ARRAYS, ids=label)
def test_npy(tmp_path: Path, array: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """An array of a known type in C order is a record of its name."""
    np.save(tmp_path / "x.npy", array)
    container, found = roundtrip(tmp_path / "x.npy")
    assert container == "npy" and found == {"array": TensorView("array", "array", dtype, shape)}


@pytest.mark.parametrize("array", FOREIGN, ids=label)
def test_an_array_of_another_type_is_no_tensor_of_its_name(tmp_path: Path, array: Any) -> None:
    """What coral has no dtype for is bytes, under a name that says so; in an archive too."""
    np.save(tmp_path / "x.npy", array)
    container, found = roundtrip(tmp_path / "x.npy")
    assert container == "npy" and list(found) == ["array.bytes"] and found["array.bytes"].dtype == "U8"
    np.savez(tmp_path / "x.npz", plain=np.ones(3), odd=array)
    container, found = roundtrip(tmp_path / "x.npz")
    assert container == "npz" and found.keys() == {"plain", "odd.bytes"}


@given(
    shape=st.lists(st.integers(0, 4), max_size=5).map(tuple),
    axes=st.randoms(use_true_random=False),
    kind=st.sampled_from(["f4", "u1", "i8", "c8", "?"]),
)
@settings(max_examples=80, deadline=None)
def test_arrays_of_any_order_come_back_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], axes: random.Random, kind: str
) -> None:
    """An array in whatever order is shown with its own dtype, shape and elements; in an archive too."""
    order = axes.sample(range(len(shape)), len(shape))
    plain = np.arange(int(np.prod(shape))).reshape([shape[axis] for axis in order]).astype(kind)
    array = plain.transpose(np.argsort(order)) if shape else plain
    folder = tmp_path_factory.getbasetemp()
    np.save(folder / "x.npy", array)
    np.savez(folder / "x.npz", array=array, other=array.T)
    for path in (folder / "x.npy", folder / "x.npz"):
        roundtrip(path)
        with parse(path) as parsed:
            manifest, contents = kept(parsed)
            for name, view in views(manifest, parsed.skeleton).items():
                got = shown(view, manifest, contents)
                expected = array.T if name == "other" else array
                assert isinstance(got, np.ndarray) and got.dtype == expected.dtype and got.shape == expected.shape
                assert np.array_equal(got, expected)


_ALIKE = ("a", "a.T", "a.T.T", "a.T~2", "a.T~2.T", "a.bytes", "a.bytes~2")


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(_ALIKE), st.sampled_from(["C", "F", ">f4"]), min_size=1))
@example({"a": "F", "a.T": "C"})
@example({"a.T": "F", "a": "F", "a.T.T": "C", "a.T~2": "C"})
def test_arrays_whose_records_would_have_one_name(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, str]
) -> None:
    """An array that is called as another one's transpose, or as its bytes, keeps its name; all are shown."""
    path = tmp_path_factory.mktemp("alike") / "x.npz"
    arrays: dict[str, Any] = {}
    for number, (name, kind) in enumerate(kinds.items()):
        array = np.arange(6, dtype="f4" if kind != ">f4" else kind).reshape(2, 3) + number
        arrays[name] = np.asfortranarray(array) if kind == "F" else array
    np.savez(path, **arrays)
    assert roundtrip(path)[0] == "npz"
    with parse(path) as parsed:
        manifest, contents = kept(parsed)
        found = views(manifest, parsed.skeleton)
    assert len(found) == len(arrays)
    for name, kind in kinds.items():
        if kind != ">f4":
            assert np.array_equal(shown(found[name], manifest, contents), arrays[name])
            assert (found[name].record_name == name) == (kind == "C")


def test_npz(tmp_path: Path) -> None:
    """A stored archive is its arrays, and its skeleton holds no content; a compressed one is opaque."""
    skeletons = []
    for fill in (1, 2):
        arrays: dict[str, Any] = {str(i): array + fill for i, (array, *_) in enumerate(ARRAYS[:3])}
        np.savez(tmp_path / "x.npz", **arrays)
        container, found = roundtrip(tmp_path / "x.npz")
        assert container == "npz" and found["0"].shape == (2, 3)
        with parse(tmp_path / "x.npz") as parsed:
            skeletons.append(parsed.skeleton)
    assert skeletons[0] == skeletons[1]
    np.savez_compressed(tmp_path / "c.npz", a=np.zeros(1000))
    assert roundtrip(tmp_path / "c.npz")[0] == "opaque"


def samples(tmp_path: Path) -> list[bytes]:
    """One file of each kind."""
    from safetensors.torch import save

    stream = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2), "v": torch.arange(9)[2:4]}, stream)
    npz, npy, other = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(npz, a=np.arange(5), b=np.ones((2, 2), np.float32))
    np.save(npy, np.arange(5))
    with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(1 << 20))
    return [save({"a": torch.ones(3)}), stream.getvalue(), npz.getvalue(), npy.getvalue(), other.getvalue()]


def test_damaged_files_restore_or_are_refused(tmp_path: Path) -> None:
    """Cut, garbled, prolonged, or empty: a file is kept exactly or, if its name promises a format, a FormatError."""
    chance = random.Random(0)
    for data in samples(tmp_path):
        damaged = [data[: chance.randrange(len(data))] for _ in range(20)]
        damaged += [data + b"\0", data + data, b"", b"PK\3\4", data[:-1]]
        for _ in range(80):
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 3))):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            damaged.append(bytes(changed))
        for content in damaged:
            (tmp_path / "x").write_bytes(content)
            roundtrip(tmp_path / "x")
            for suffix in (".safetensors", ".bin", ".npy"):
                (tmp_path / "x").rename(tmp_path / f"x{suffix}")
                with contextlib.suppress(FormatError):
                    roundtrip(tmp_path / f"x{suffix}")
                (tmp_path / f"x{suffix}").rename(tmp_path / "x")


def test_a_hostile_skeleton_is_a_coral_error(tmp_path: Path) -> None:
    """A skeleton that came from elsewhere may be anything; it never crashes nor writes out of bounds."""
    chance = random.Random(0)
    for data in samples(tmp_path)[:4]:
        (tmp_path / "x.bin").write_bytes(data)
        with parse(tmp_path / "x.bin") as parsed:
            manifest, contents = kept(parsed)
            for _ in range(200):
                skeleton = bytearray(parsed.skeleton or b"{}")
                for _ in range(chance.choice((1, 2, 5))):
                    skeleton[chance.randrange(min(len(skeleton), 400))] = chance.choice(b'0123456789[],"{}:\n\xff')
                if chance.random() < 0.2:
                    skeleton = skeleton[: chance.randrange(len(skeleton))]
                for attempt in (rebuilt, lambda m, s, _: views(m, s)):
                    try:
                        attempt(manifest, bytes(skeleton), contents)
                    except CoralError:
                        pass


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_bytes_at_all(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Any file restores; a pointer when it is asked for."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    try:
        roundtrip(path)
    except FormatError as error:
        assert "pointer" in error.message and (is_manifest(data) or data.startswith(b"version"))
    roundtrip(path, opaque=True)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A missing file, a folder and a device are errors with names."""
    with pytest.raises(NotFoundError):
        parse(tmp_path / "missing")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match=str(path)):
            parse(path)


def test_a_zip64_archive(tmp_path: Path) -> None:
    """64-bit sizes and offsets are read, as torch writes them for archives over 4 GB."""
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3))
    with zipfile.ZipFile(path, "a") as archive, archive.open("big.npy", "w", force_zip64=True) as member:
        np.save(member, np.arange(4))
    assert set(roundtrip(path)[1]) == {"a", "big"}


def test_names_with_dots_never_clash(tmp_path: Path) -> None:
    """Two tensors whose dotted paths are equal both keep a name."""
    value = OrderedDict({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    _, found = roundtrip(saved(value, tmp_path / "x.pt"))
    assert set(found) == {"a.b", "a.b~2"}


def test_tensors_outlive_the_parsed_file(tmp_path: Path) -> None:
    """Bytes handed out stay valid after the file is closed."""
    (tmp_path / "x").write_bytes(struct.pack("<I", 77))
    with parse(tmp_path / "x") as parsed:
        data = parsed.tensors[0].read(0, 4)
    assert bytes(data) == struct.pack("<I", 77)
