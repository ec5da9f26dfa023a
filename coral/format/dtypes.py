"""The element types of tensors, under their safetensors names."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Final

from coral.errors import FormatError

BITS: Final = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits of one element, by dtype name."""

NUMPY_NAMES: Final = MappingProxyType(
    {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "I16": "int16",
        "U16": "uint16",
        "F16": "float16",
        "BF16": "bfloat16",
        "I32": "int32",
        "U32": "uint32",
        "F32": "float32",
        "C64": "complex64",
        "F64": "float64",
        "I64": "int64",
        "U64": "uint64",
    }
)
"""The numpy (or ml_dtypes) name of each dtype that is made of whole bytes."""


def byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises FormatError for an unknown dtype or a size that is not whole bytes."""
    try:
        bits = BITS[dtype] * math.prod(shape)
    except KeyError:
        raise FormatError(f"unknown dtype {dtype!r}") from None
    if bits % 8:
        raise FormatError(f"{dtype} tensor of shape {list(shape)} is not a whole number of bytes")
    return bits // 8


def item_bytes(dtype: str) -> int:
    """Bytes of one element, at least 1 (sub-byte elements are packed)."""
    return max(1, BITS[dtype] // 8)
