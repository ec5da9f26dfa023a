"""Tracking: the attribute file of a folder, what git makes of it, and what is in git already."""

from __future__ import annotations

from pathlib import Path

import pytest

from coral.errors import ConflictError, NotFoundError, UsageError
from coral.format.manifest import Manifest
from coral.git.surroundings import surroundings_of
from coral.verbs import layout
from coral.verbs.inside_git.track import Edited, Pattern, Tracked, track, tracked, untrack
from tests.git.conftest import Git
from tests.repository.helpers import at_once

LINE = "*.safetensors filter=coral diff=coral merge=coral -text\n"
MANIFEST = Manifest("safetensors", (), None, ()).to_bytes().decode()


@pytest.fixture
def code(git: Git, tmp_path: Path) -> Path:
    """A repository with a subfolder."""
    git(tmp_path, "init", "-q", "-b", "main", "code")
    (tmp_path / "code/sub folder").mkdir()
    return tmp_path / "code"


def add(git: Git, code: Path, files: dict[str, str]) -> None:
    """Put texts into git."""
    for name, text in files.items():
        (code / name).write_text(text)
    git(code, "add", ".")


def test_track_writes_the_attributes_of_the_folder(git: Git, code: Path) -> None:
    """As git lfs does: the file of the folder one is in, and only paths below it are meant."""
    sub = code / "sub folder"
    assert track(surroundings_of(sub), ["*.safetensors", "*.safetensors", "./a b.pt"]).changed == (
        "*.safetensors",
        "a b.pt",
    )
    assert (sub / ".gitattributes").read_text() == f'{LINE}"a b.pt" filter=coral diff=coral merge=coral -text\n'
    assert not (code / ".gitattributes").exists()
    add(git, code, {"a b.pt": "x", "sub folder/a b.pt": "x", "m.safetensors": "x", "sub folder/m.safetensors": "x"})
    assert tracked(surroundings_of(code)).files == ("sub folder/a b.pt", "sub folder/m.safetensors")
    assert untrack(surroundings_of(sub), ["a b.pt"]).changed == ("a b.pt",)
    assert (sub / ".gitattributes").read_text() == LINE


def test_tracking_twice_changes_nothing(code: Path) -> None:
    """Not even the file's time."""
    track(surroundings_of(code), ["*.pt"])
    before = (code / ".gitattributes").stat()
    assert track(surroundings_of(code), ["*.pt"]) == Edited((), ())
    after = (code / ".gitattributes").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_wrong_pattern_writes_nothing(code: Path) -> None:
    """All or nothing, for track and for untrack; what is known is named."""
    with pytest.raises(UsageError):
        track(surroundings_of(code), ["*.pt", "models/"])
    assert not (code / ".gitattributes").exists()
    with pytest.raises(NotFoundError, match="does not track"):
        untrack(surroundings_of(code), ["*.pt"])
    track(surroundings_of(code), ["*.pt", "*.bin"])
    before = (code / ".gitattributes").read_bytes()
    with pytest.raises(NotFoundError) as error:
        untrack(surroundings_of(code), ["*.pt", "*.npy"])
    assert "*.bin" in (error.value.hint or "") and (code / ".gitattributes").read_bytes() == before


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_the_file_keeps_its_mode_and_bytes(code: Path, mode: int) -> None:
    """Permissions, line ends, and bytes that are no UTF-8 are the user's."""
    file = code / ".gitattributes"
    file.write_bytes(b"*.txt text\r\n\xff\xfe binary")
    file.chmod(mode)
    track(surroundings_of(code), ["*.pt"])
    untrack(surroundings_of(code), ["*.pt"])
    assert file.read_bytes() == b"*.txt text\r\n\xff\xfe binary"
    assert file.stat().st_mode & 0o777 == mode


def test_a_link_is_refused(code: Path) -> None:
    """Git reads no .gitattributes that is a symbolic link; it is neither followed nor replaced."""
    (code / "shared").write_text("# shared\n")
    (code / ".gitattributes").symlink_to("shared")
    with pytest.raises(ConflictError, match="symbolic link"):
        track(surroundings_of(code), ["*.pt"])
    assert (code / ".gitattributes").is_symlink() and (code / "shared").read_text() == "# shared\n"


def test_files_in_git_whole_are_named(git: Git, code: Path) -> None:
    """Those that match and are no manifest yet must be added again; links, and files beside the folder, never."""
    files = {"m.safetensors": "whole", "sub folder/n.safetensors": "whole", "done.safetensors": MANIFEST, "x.py": "x"}
    (code / "link.safetensors").symlink_to("m.safetensors")
    add(git, code, files)
    assert track(surroundings_of(code / "sub folder"), ["*.safetensors"]).stale == ("sub folder/n.safetensors",)
    assert track(surroundings_of(code), ["*.safetensors"]).stale == ("m.safetensors", "sub folder/n.safetensors")
    assert track(surroundings_of(code / "sub folder"), ["*.safetensors"]).stale == ("sub folder/n.safetensors",)
    assert track(surroundings_of(code), ["*.py"]).stale == ("m.safetensors", "sub folder/n.safetensors", "x.py")


def test_files_in_git_by_coral_are_named(git: Git, code: Path) -> None:
    """After untracking, what is in git as a manifest must be added again, unless another pattern still has it."""
    track(surroundings_of(code), ["*.safetensors", "kept*"])
    add(git, code, {"a.safetensors": MANIFEST, "kept.safetensors": MANIFEST, "whole.safetensors": "whole"})
    assert untrack(surroundings_of(code), ["*.safetensors"]) == Edited(("*.safetensors",), ("a.safetensors",))


def test_tracked_lists_all_attribute_files(git: Git, code: Path) -> None:
    """Of every folder, new or in git, and git's own info/attributes; not those that git ignores or does not read."""
    track(surroundings_of(code / "sub folder"), ["*.pt"])
    (code / ".git/info").mkdir(exist_ok=True)
    (code / ".git/info/attributes").write_text("private* filter=coral\n")
    for folder in ("ignored", "linked"):
        (code / folder).mkdir()
    (code / "ignored/.gitattributes").write_text("*.no filter=coral\n")
    (code / "linked/.gitattributes").symlink_to("../.gitattributes")
    (code / ".gitignore").write_text("ignored\n")
    add(git, code, {"private.bin": "x", "ö\nü.pt": "x", "sub folder/m.pt": "x", "m.safetensors": "x", "other": "x"})
    track(surroundings_of(code), ["*.safetensors"])
    assert tracked(surroundings_of(code / "sub folder")) == Tracked(
        (
            Pattern("*.safetensors", ".gitattributes"),
            Pattern("*.pt", "sub folder/.gitattributes"),
            Pattern("private*", ".git/info/attributes"),
        ),
        ("m.safetensors", "private.bin", "sub folder/m.pt"),
    )


def test_a_repository_without_a_commit_or_a_file(code: Path) -> None:
    """Nothing is tracked, and that is no error."""
    assert tracked(surroundings_of(code)) == Tracked((), ())


def test_conflicts_and_submodules_are_listed_once(git: Git, code: Path, tmp_path: Path) -> None:
    """A file in conflict has several blobs in the index and is one file; a submodule is no file."""
    track(surroundings_of(code), ["*.pt"])
    git(tmp_path, "clone", "-q", str(code), "other")
    git(tmp_path / "other", "commit", "-q", "--allow-empty", "-m", "x")
    git(code, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(tmp_path / "other"), "sub.pt")
    blobs = [git(code, "hash-object", "-w", "--stdin", data=text).strip() for text in "abc"]
    lines = "".join(f"100644 {blob} {stage + 1}\tm.pt\n" for stage, blob in enumerate(blobs))
    git(code, "update-index", "--index-info", data=lines)
    assert tracked(surroundings_of(code)).files == ("m.pt",)


def test_sha256_repositories(git: Git, tmp_path: Path) -> None:
    """Longer object names are no matter."""
    git(tmp_path, "init", "-q", "--object-format=sha256", "code")
    add(git, tmp_path / "code", {"a.pt": "whole", "b.pt": MANIFEST})
    assert track(surroundings_of(tmp_path / "code"), ["*.pt"]).stale == ("a.pt",)


def test_eight_processes_may_track_at_once(code: Path) -> None:
    """No pattern is lost to another process that writes the same file."""
    layout.create(code)
    at_once(lambda number: str(track(surroundings_of(code), [f"{number}.pt"])), 8)
    lines = (code / ".gitattributes").read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == [f"{number}.pt" for number in range(8)]
