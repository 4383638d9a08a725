"""Blocks of bytes, encoded and decoded: a filter, then zstd.

Knows neither files nor arrays. What the words and numbers on disk mean is in the package `format`; checksums are over
the stored bytes and belong to those who store them. Hostile bytes raise `CodecError`, and memory is bounded by the raw
length that the caller knows, never by what the bytes claim.
"""

from .block import Encoder, decode
from .choose import choose_filter
from .error import CodecError

__all__ = ["CodecError", "Encoder", "choose_filter", "decode"]
