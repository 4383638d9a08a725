"""The blocks of a new version of a compressed array, in a file that has no name yet."""

from ..codec import CodecError, choose_filter
from ..format.block_index import SLOT_OFFSETS, FileHeader, Index, Slot
from .block_writer import BlockWriter, Space
from .blocks import View

# What is looked at to choose a filter: this many pieces, none longer than this.
MAX_SAMPLES = 8
SAMPLE_BLOCK_LEN = 64 << 10

CHUNK_LEN = 8 << 20
"""Elements that are collected before they are compressed, in bytes."""


class NewBlocks:
    """Elements that come one behind the other; those that never come, behind the last, are zeros and take no space.

    `header` is the ``.npy`` header of the array, which has `nbytes` bytes of elements of `dtype`.
    """

    def __init__(self, data, header, dtype, nbytes, compression):
        compression.codec("none")  # refused before anything is written
        self._data, self._header, self._dtype, self._nbytes = data, header, dtype, nbytes
        self._compression = compression
        self._writer = None  # made when there are elements to choose a filter by
        self._done = 0
        self._pending = bytearray()  # elements that do not fill a block yet, or of which there are few

    def push(self, elements):
        """Puts elements, a contiguous buffer, behind those so far."""
        elements = memoryview(elements).cast("B")
        at = self._done
        self._done += len(elements)
        if not self._pending and self._done == self._nbytes:
            # All there is: no copy is needed.
            self._put(at, elements)
            return
        self._pending += elements
        if len(self._pending) >= max(CHUNK_LEN, self._compression.block_len):
            self._put_pending()

    def finish(self):
        """Writes the index and the headers. Returns the codec and the index."""
        self._put_pending()
        writer = self._writer_for(self._pending)
        if self._pending:
            writer.put_tail(bytes(self._pending))
        writer.flush_index(self._nbytes)
        return self._seal()

    def finish_absent(self):
        """The same for an array whose elements did not come: all are zeros."""
        self._writer_for(b"").flush_index(self._nbytes)
        return self._seal()

    def _seal(self):
        codec, index = self._writer.view.codec, self._writer.view.index
        header = bytearray(FileHeader(len(self._header), codec).to_bytes())
        slot = Slot(0, self._nbytes, index).to_bytes()
        header[SLOT_OFFSETS[0] : SLOT_OFFSETS[0] + len(slot)] = slot
        self._data.write_at(bytes(header) + self._header, 0)
        return codec, index

    def _put_pending(self):
        pending, self._pending = self._pending, bytearray()
        self._put(self._done - len(pending), memoryview(pending))

    def _put(self, at, elements):
        """Encodes the whole blocks of `elements`, which begin with a block at byte `at`, and keeps what follows them."""
        block_len = self._compression.block_len
        full = len(elements) - len(elements) % block_len
        if full:
            writer = self._writer_for(elements[:full])
            writer.put_full(at // block_len, elements[:full])
            if writer.wants_flush:
                writer.flush_index(self._nbytes)
        self._pending = bytearray(elements[full:])

    def _writer_for(self, raw):
        if self._writer is None:
            codec = self._compression.codec(self._compression.filter or self._chosen(raw))
            npy_len = len(self._header)
            view = View.new(Index.empty(npy_len), codec, self._nbytes, self._dtype.itemsize, npy_len)
            self._writer = BlockWriter(self._data, view, Space())
        return self._writer

    def _chosen(self, raw):
        """The filter for an array that begins with `raw`."""
        starts = sample_ranges(len(raw), self._compression)
        return _choose(self._dtype, [raw[start:end] for start, end in starts], self._compression)


def sample_ranges(length, compression):
    """Where the sample of so many bytes is: a few blocks, from all over."""
    block_len = min(compression.block_len, SAMPLE_BLOCK_LEN)
    step = max(1, -(-(-(-length // block_len)) // MAX_SAMPLES))
    return [(start, min(length, start + block_len)) for start in range(0, length, step * block_len)]


def with_filter(compression, dtype, length, read):
    """`compression` with the filter that saving `length` bytes of elements as a whole chooses: for those who write them
    piece by piece. ``read(start, end)`` gives bytes of them."""
    if compression.filter is not None:
        return compression
    blocks = [read(start, end) for start, end in sample_ranges(length, compression)]
    return compression._replace(filter=_choose(dtype, blocks, compression))


def _choose(dtype, blocks, compression):
    try:
        return choose_filter(dtype, blocks, compression.level)
    except CodecError:
        # It fails only where zstd finds no memory, as encoding will.
        return "none"
