"""The chunk store: content ids to bytes. Packs, indexes and codecs hide behind it."""

from coral.objects.parent import Memory, Parent
from coral.objects.source import BytesSource
from coral.objects.store import ChunkStore
from coral.objects.writer import StoreWriter, TensorHasher

__all__ = ["BytesSource", "ChunkStore", "Memory", "Parent", "StoreWriter", "TensorHasher"]
