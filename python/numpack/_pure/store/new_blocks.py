"""The blocks of a new version of a compressed array, in a file that has no name yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from numpack._pure.codec import CodecError, choose_filter
from numpack._pure.format.block_index import FILE_HEADER_LEN, SLOT_OFFSETS, FileHeader, Index, Slot
from numpack._pure.format.codec import Codec, Compression
from numpack._pure.format.layout import Layout
from numpack._pure.store.block_writer import BlockWriter, Space
from numpack._pure.store.blocks import View

if TYPE_CHECKING:
    from numpack._pure.store.data import DataFile

# What is looked at to choose a filter: this many pieces, none longer than this.
MAX_SAMPLES = 8
SAMPLE_BLOCK_LEN = 64 << 10

CHUNK_LEN = 8 << 20
"""Elements that are collected before they are compressed, in bytes."""


class NewBlocks:
    """Elements that come one behind the other, or none: then all are zeros and take no space.

    `header` is the ``.npy`` header of the array.
    """

    def __init__(self, data: DataFile, codec: Codec, layout: Layout, header: bytes) -> None:
        self._data, self._codec, self._header, self._nbytes = data, codec, header, layout.nbytes
        start = FILE_HEADER_LEN + len(header)
        view = View(Index.empty(len(header)), codec, layout.nbytes, layout.itemsize, start)
        self._writer = BlockWriter(data, view, Space())
        self._done = 0
        self._pending = bytearray()  # elements that do not fill a block yet, or of which there are few

    def push(self, elements: Any) -> None:
        """Puts elements, a contiguous buffer, behind those so far."""
        at = self._done
        self._done += len(elements)
        if not self._pending and self._done == self._nbytes:
            # All there is: no copy is needed.
            self._put(at, elements)
            return
        self._pending += elements
        if len(self._pending) >= max(CHUNK_LEN, self._codec.block_len):
            self._put_pending()

    def finish(self) -> Index:
        """Writes the index and the headers. Returns the index."""
        self._put_pending()
        self._writer.put_tail(bytes(self._pending))
        self._writer.flush_index(self._nbytes)
        index = self._writer.view.index
        header = bytearray(FileHeader(len(self._header), self._codec).to_bytes())
        slot = Slot(0, self._nbytes, index).to_bytes()
        header[SLOT_OFFSETS[0] : SLOT_OFFSETS[0] + len(slot)] = slot
        self._data.file.write(bytes(header) + self._header, 0)
        return index

    def _put_pending(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self._put(self._done - len(pending), memoryview(pending))

    def _put(self, at: int, elements: Any) -> None:
        """Encodes the whole blocks of `elements`, which begin with a block at byte `at`, and keeps what follows them."""
        block_len = self._codec.block_len
        full = len(elements) - len(elements) % block_len
        self._writer.put_full(at // block_len, elements[:full])
        if self._writer.wants_flush:
            self._writer.flush_index(self._nbytes)
        self._pending = bytearray(elements[full:])


def sample_ranges(length: int, compression: Compression) -> list[tuple[int, int]]:
    """Where the sample of so many bytes is: a few blocks, from all over."""
    block_len = min(compression.block_len, SAMPLE_BLOCK_LEN)
    step = max(1, -(-(-(-length // block_len)) // MAX_SAMPLES))
    return [(start, min(length, start + block_len)) for start in range(0, length, step * block_len)]


def with_filter(
    compression: Compression, dtype: np.dtype[Any], length: int, read: Callable[[int, int], Any] | None
) -> Compression:
    """`compression` with the filter that suits `length` bytes of elements of `dtype`, if it has none.

    ``read(offset, length)`` gives some of them; there are none to choose by without it.
    """
    if compression.filter is not None:
        return compression
    blocks = [] if read is None else [read(start, end - start) for start, end in sample_ranges(length, compression)]
    try:
        return compression._replace(filter=choose_filter(dtype, blocks, compression.level))
    except CodecError:
        # It fails only where zstd finds no memory, as encoding will.
        return compression._replace(filter="none")
