"""The chunk store: content ids to bytes. Packs, indexes and codecs hide behind it."""

from coral.objects.source import BytesSource, TensorSource
from coral.objects.store import ChunkStore
from coral.objects.writer import Fingerprints, StoreWriter, TensorHasher

__all__ = ["BytesSource", "ChunkStore", "Fingerprints", "StoreWriter", "TensorHasher", "TensorSource"]
