"""A project folder to work in, and the two ways to call the command line: in this process, and as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

import coral
from coral.cli import main


class Call(Protocol):
    """Call the command line in this process."""

    def __call__(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result: ...


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new repository, which is the working folder."""
    folder = tmp_path / "project"
    coral.Repository(folder, init=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call() -> Call:
    """Run ``coral`` with arguments in this process, and check its exit code."""

    def run(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(main, arguments, env=env, prog_name="coral")
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def ask(call: Call) -> Callable[..., Any]:
    """Run ``coral`` with ``--json`` in this process, and parse what it prints."""
    return lambda *arguments: json.loads(call(*arguments, "--json").stdout)


@pytest.fixture
def shell(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``coral`` as a program in the project, and check its exit code."""

    def run(*arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "coral", *arguments],
            cwd=project,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def write(project: Path) -> Callable[..., bytes]:
    """Write a model file whose tensors follow from a seed; returns the file's bytes."""

    def make(name: str = "model.safetensors", seed: int = 0) -> bytes:
        random = np.random.default_rng(seed)
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "layer.weight": random.normal(size=(32, 16)).astype(np.float32),
            "layer.bias": np.zeros(16, np.float32),
        }
        save_file(tensors, path)
        return path.read_bytes()

    return make


@pytest.fixture
def history(project: Path, call: Call, write: Callable[..., bytes]) -> list[str]:
    """Two commits on main, newest first."""
    write(seed=1)
    call("commit", "-m", "one", ".")
    write(seed=2)
    call("commit", "-m", "two", "-m", "because", "--tag", "v2", ".")
    return [commit["commit_hash"] for commit in json.loads(call("log", "--json").stdout)]
