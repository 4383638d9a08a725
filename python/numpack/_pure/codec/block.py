"""Encoding and decoding of one block: the choice between raw and compressed, and the filter before zstd."""

from typing import Any

import numpy as np

from ..format.codec import (
    ABSENT,
    FILTER_OF_KIND,
    KIND_NAMES,
    KIND_OF_FILTER,
    PAGE,
    RAW,
    STEP_OF_FILTER,
    Codec,
    filter_for_itemsize,
    is_raw,
)
from .delta import delta, undelta
from .error import CodecError
from .shuffle import shuffle, unshuffle
from .zstd import Compressor, decompress

MIN_SAVED_PART = 32
"""A block is stored raw unless zstd saves this part of it: less is not worth the time to decode it."""


class Encoder:
    """Encodes blocks of items of `itemsize` bytes. Of use to one thread at a time.

    Where the filter of `codec` is not made for such items, the next best is used: see `filter_for_itemsize`.
    """

    def __init__(self, codec: Codec, itemsize: int) -> None:
        self._filter = filter_for_itemsize(codec.filter, itemsize)
        self._itemsize = 1 if self._filter == "none" else itemsize
        self._compressor = Compressor(codec.level, self._filter != "none")

    def encode(self, raw: Any) -> tuple[int, Any]:
        """The kind of a block, and what is to be stored: `raw` itself where zstd saves less than a thirty-second of it.

        `raw` is a contiguous buffer. Raises `CodecError` if zstd has no memory.
        """
        filtered = np.frombuffer(raw, np.uint8)
        n = len(filtered)
        if step := STEP_OF_FILTER.get(self._filter):
            filtered = delta(step, self._itemsize, filtered)
        if self._itemsize > 1:
            filtered = shuffle(self._itemsize, filtered)
        max_len = n - -(-n // MIN_SAVED_PART)
        stored = self._compressor.compress(filtered, n // self._itemsize, max_len)
        return (RAW, raw) if stored is None else (KIND_OF_FILTER[self._filter], stored)


def decode(kind: int, itemsize: int, stored: Any, raw_len: int) -> Any:
    """The raw bytes, in a buffer, of the block of `kind` that is stored as `stored`. Items have `itemsize` bytes.

    Safe for hostile bytes: takes no memory but that of another block of this length. Raises `CodecError`: `stored` is
    not what a block of this kind and length can be encoded to.
    """
    if kind in (ABSENT, PAGE) or is_raw(kind):
        expected = raw_len if is_raw(kind) else 0
        if len(stored) != expected or kind == PAGE:
            found = f"{len(stored)} stored bytes, expected {expected}"
            raise CodecError(f"block of kind {KIND_NAMES[kind]} has {found}")
        return bytes(raw_len) if kind == ABSENT else stored
    filter = FILTER_OF_KIND[kind]
    if filter_for_itemsize(filter, itemsize) != filter:
        raise CodecError(f'filter "{filter}" is not made for items of {itemsize} bytes')
    content = decompress(stored, raw_len)
    if filter == "none":
        return content
    raw = np.frombuffer(content, np.uint8)
    raw = unshuffle(itemsize, raw) if itemsize > 1 else raw.copy()
    if step := STEP_OF_FILTER.get(filter):
        undelta(step, itemsize, raw)
    return raw.data
