"""How the parts of a commit look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coral.cli.look.output import record_data

if TYPE_CHECKING:
    from coral.format.manifest import Manifest


def part_data(name: str, manifest: Manifest) -> dict[str, object]:
    """A part for JSON."""
    from coral.verbs.parts import is_state

    return {
        "name": name,
        "container": manifest.container,
        "state": is_state(manifest),
        "bytes": manifest.nbytes,
        "tensors": [record_data(record) for record in manifest.records],
    }
