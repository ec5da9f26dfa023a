"""``coral remote``: what it prints, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.repository.helpers import git

Call = Callable[..., Result]
Ask = Callable[..., Any]


@pytest.fixture
def project(project: Path) -> Path:
    """A git project with coral in it, which is the working folder."""
    git(project, "init", "-q", "-b", "main")
    return project


def test_a_remote_comes_and_goes(project: Path, call: Call, ask: Ask) -> None:
    """add, list and remove; the bare command lists, and -v says where."""
    assert call("remote").stdout == ""
    assert "commit .coralconfig" in call("remote", "add", "origin", "../shared").stdout
    assert (project.parent / "shared" / "packs").is_dir()
    call("remote", "add", "usb", str(project.parent / "usb"), "--private")
    assert call("remote").stdout == call("remote", "list").stdout == "origin\nusb\n"
    listed = f"origin\t../shared\nusb\t{project.parent}/usb\n"
    assert call("remote", "-v").stdout == call("remote", "list", "-v").stdout == listed
    assert (
        ask("remote")
        == ask("remote", "list")
        == [
            {"name": "origin", "url": "../shared", "adopted": True},
            {"name": "usb", "url": f"{project.parent}/usb", "adopted": True},
        ]
    )
    assert "also from .coralconfig" in call("remote", "remove", "origin").stdout
    assert ask("remote", "remove", "usb") == {"name": "usb", "no_longer_offered_in": None}
    assert ask("remote") == []
    call("remote", "remove", "usb", code=3)


def test_an_offer_is_shown_and_adopted(project: Path, call: Call, ask: Ask) -> None:
    """What only .coralconfig names is told apart, hinted at, and adopted when asked, aloud even with -q."""
    (project / ".coralconfig").write_text('[remotes.origin]\nurl = "/mnt/x"\n')
    shown = call("remote")
    assert shown.stdout == "" and "coral remote adopt" in shown.stderr
    assert call("remote", "-v").stdout == "origin\t/mnt/x\t(offered by .coralconfig)\n"
    assert ask("remote") == [{"name": "origin", "url": "/mnt/x", "adopted": False}]
    assert call("-q", "remote", "adopt").stdout == "adopted remote 'origin': /mnt/x\n"
    assert ask("remote") == [{"name": "origin", "url": "/mnt/x", "adopted": True}]
    assert call("remote", "adopt").stdout == "nothing new to adopt\n"
    assert json.loads(call("remote", "adopt", "--json").stdout) == []


def test_what_is_no_remote(project: Path, call: Call) -> None:
    """A place of another kind is wrong usage, and the hint names the kinds; so is a subcommand that is none."""
    refused = call("remote", "add", "origin", "s3://bucket", code=2)
    assert "not supported" in refused.stderr and "file:///path" in refused.stderr
    call("remote", "rename", code=2)
    call("remote", "add", "origin", code=2)
