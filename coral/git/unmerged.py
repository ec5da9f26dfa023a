"""What git knows of a merge that is not finished: the three versions of a file, and the rule for its conflicts."""

from __future__ import annotations

from pathlib import Path

from coral.git.command import ask

ATTRIBUTE = "coral-merge"
SETTING = "coral.merge"


def stages(folder: Path) -> dict[str, dict[int, str]]:
    """The blobs of every file in conflict, by its name (from the top of the working tree) and stage.

    Stage 1 is the common ancestor's, 2 ours, 3 theirs.
    """
    found: dict[str, dict[int, str]] = {}
    for entry in (ask(folder, ["ls-files", "--unmerged", "--full-name", "-z"]) or "").split("\0"):
        head, tab, name = entry.partition("\t")
        if tab:
            _, blob, stage = head.split(" ")
            found.setdefault(name, {})[int(stage)] = blob
    return found


def merge_rule(folder: Path, name: str) -> str | None:
    """What ``.gitattributes``, else git's configuration, wants done about a file's conflicts; None when neither says.

    Args:
        folder: the top of the working tree.
        name: of the file, from there.
    """
    answer = ask(folder, ["check-attr", "-z", ATTRIBUTE, "--", name]) or ""
    value = answer.split("\0")[2] if answer.count("\0") >= 3 else ""
    if value and value not in ("unspecified", "unset", "set"):
        return value
    return (ask(folder, ["config", "--get", SETTING], nothing_found=1) or "").strip() or None
