"""Which kind of file system a folder lies on: locks and fsync promise less over a network."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")
_NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "fuse.sshfs", "fuse.s3")


def network_file_system(path: Path) -> str | None:
    """The name of the network file system that a path lies on; None for a local one, or where it cannot be told."""
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return kind_at(os.path.realpath(path), lines)


def kind_at(path: str, mounts: list[str]) -> str | None:
    """The network file system among ``/proc/mounts`` lines that holds a path; None when that one is local."""
    best, kind = "", ""
    for line in mounts:
        _, point, found = line.split(" ")[:3]
        # Blanks in a mount point are written in octal.
        point = point.encode("latin-1", "replace").decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind if kind.startswith(_NETWORK) else None
