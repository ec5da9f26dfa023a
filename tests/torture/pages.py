"""Imported by the watched processes: their packs are small, and shall be written piece by piece all the same."""

from __future__ import annotations

from coral.storage import direct

direct.BUFFER_BYTES = 4096
