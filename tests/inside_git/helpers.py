"""What the tests of coral inside git share: a repository, models of every kind, and their bytes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

CORAL = f'"{sys.executable}" -m coral'
SUFFIXES = ("safetensors", "pt", "pth", "bin", "npz", "npy", "onnx", "gguf", "h5")
ATTRIBUTES = "".join(f"*.{suffix} filter=coral diff=coral merge=coral -text\n" for suffix in SUFFIXES)

Tensors = Mapping[str, np.ndarray]


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own git configuration, and repositories around the tests, out of them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "home" / ".gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("CORAL_SKIP_SMUDGE", raising=False)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "n")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "e")
    (tmp_path / "home").mkdir()


class Project:
    """A working tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def configure(self) -> None:
        """As ``coral install`` does it."""
        self.git("config", "filter.coral.process", f"{CORAL} git-filter")
        self.git("config", "filter.coral.required", "true")
        self.git("config", "diff.coral.command", f"{CORAL} git-diff")
        self.git("config", "merge.coral.driver", f"{CORAL} git-merge %O %A %B %L %P")
        self.git("config", "protocol.file.allow", "always")

    def run(self, *words: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[bytes]:
        """A program in the working tree."""
        done = subprocess.run(
            words, cwd=self.folder, check=False, capture_output=True, env={**os.environ, **environment}
        )
        if check and done.returncode:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}")
        return done

    def git(self, *arguments: str | Path, **environment: str) -> str:
        """What git prints."""
        return self.run("git", *arguments, check=True, **environment).stdout.decode().strip()

    def coral(self, *arguments: str | Path, check: bool = True, **environment: str) -> str:
        """What coral prints."""
        return self.run(sys.executable, "-m", "coral", *arguments, check=check, **environment).stdout.decode()

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def blob(self, name: str, revision: str = "") -> bytes:
        """What git keeps of a file: in the index, or in a revision."""
        return self.run("git", "cat-file", "blob", f"{revision}:{name}").stdout

    def commit(self, message: str, **files: bytes) -> str:
        """Write files (``model`` is ``model.safetensors``), add all and commit; returns the commit."""
        for name, data in files.items():
            self.write(f"{name}.safetensors", data)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def status(self) -> str:
        return self.git("status", "--porcelain")


def tensors(seed: int = 0, layers: int = 3, rows: int = 64) -> dict[str, np.ndarray]:
    """A small model."""
    random = np.random.default_rng(seed)
    found = {f"layer.{i}.weight": random.standard_normal((rows, 32)).astype("<f4") for i in range(layers)}
    found.update({f"layer.{i}.bias": random.standard_normal(32).astype("<f4") for i in range(layers)})
    return found


def safe(values: Tensors, **metadata: str) -> bytes:
    """A safetensors file."""
    return safetensors.numpy.save(dict(values), metadata=metadata or None)


def torch_file(values: Tensors) -> bytes:
    """A torch file."""
    out = io.BytesIO()
    torch.save({name: torch.from_numpy(value.copy()) for name, value in values.items()}, out)
    return out.getvalue()


def kinds() -> dict[str, bytes]:
    """Files of every kind, by name."""
    values = tensors()
    whole, archive = safe(values, format="pt"), io.BytesIO()
    np.savez(archive, values["layer.0.weight"], values["layer.0.bias"])
    array = io.BytesIO()
    np.save(array, values["layer.0.weight"])
    noise = np.random.default_rng(1).bytes(5 << 20)
    return {
        "model.safetensors": whole,
        "odd-header.safetensors": _spaced(whole),
        "truncated.safetensors": whole[:-100],
        "longer.safetensors": whole + b"more",
        "not-one.safetensors": b"not a safetensors file at all",
        "large.safetensors": safe(tensors(rows=1 << 14)),
        "large-truncated.safetensors": safe(tensors(rows=1 << 14))[:-5],
        "model-00001-of-00002.safetensors": safe(tensors(2)),
        "model-00002-of-00002.safetensors": safe(tensors(3)),
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "model.pt": torch_file(values),
        "model.pth": torch_file(tensors(rows=1 << 14)),
        "pytorch_model.bin": torch_file(tensors(4)),
        "arrays.npz": archive.getvalue(),
        "array.npy": array.getvalue(),
        "net.onnx": b"\x08\x07\x12\x07pytorch" + noise[:1000],
        "llama.gguf": b"GGUF\3\0\0\0" + noise,
        "keras.h5": b"\x89HDF\r\n\x1a\n" + noise[:70_000],
        "zip-no-more.pt": b"PK\3\4" + noise,
        "random.bin": noise,
        "one-byte.bin": b"\0",
        "empty.bin": b"",
        "text.bin": b"coral manifest of a ship\n",
        "pointer.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
    }


def _spaced(data: bytes) -> bytes:
    """The same file with a header that safetensors itself would not write."""
    length = int.from_bytes(data[:8], "little")
    return (length + 16).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 16 + data[8 + length :]
