"""What takes a minute: files of over 4 GiB through git's own commands; ``make torture`` runs it."""

from __future__ import annotations

from tests.inside_git.helpers import Project

SIZE = 5 * 10**9


def test_five_gigabytes(project: Project) -> None:
    """A sparse file of over 4 GiB passes, and comes back without git holding it in memory."""
    path = project.folder / "huge.bin"
    marks = {0: b"first", (1 << 32) - 2: b"over", SIZE - 4: b"last"}
    with path.open("wb") as file:
        for place, mark in marks.items():
            file.seek(place)
            file.write(mark)
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "huge")
    path.unlink()
    project.git("checkout", "--", ".", CORAL_SKIP_SMUDGE="1")
    project.coral("pull")
    assert path.stat().st_size == SIZE
    with path.open("rb") as file:
        for place, mark in marks.items():
            file.seek(place)
            assert file.read(len(mark)) == mark
    assert project.status() == ""
    path.unlink()
