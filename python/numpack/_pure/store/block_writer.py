"""Writing compressed arrays: new blocks and index pages go where nothing is that a committed state needs, and one
pointer, the root, is what a commit changes.

What is not needed any more is dead. Dead bytes are written to again, and given back to the file system, only when the
commit that made them dead is on the disk: see `Space`.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from numpack._pure.codec import CodecError, Encoder
from numpack._pure.format import block_index
from numpack._pure.format.block_index import MAX_END, NOWHERE, PAGE_FANOUT, Index, Pointer
from numpack._pure.format.codec import ABSENT, OPEN_TAIL, PAGE, RAW
from numpack._pure.store.blocks import BlockFault, View, page, pointer_of, read_pointer

if TYPE_CHECKING:
    from numpack._pure.store.data import DataFile

BATCH_LEN = 1 << 20
"""Blocks are encoded in batches of this many raw bytes: each is written in one call."""

MAX_CHANGED = 1 << 16
"""Pointers that are collected before they are written to index pages."""


class Space:
    """Where in a data file new blocks can go: dead extents that nobody needs, in order, since the commit that made them
    so is on the disk. A list of ``[offset, length]``."""

    def __init__(self, free: Iterable[Sequence[int]] = (), is_punched: bool = False) -> None:
        self.free = [list(extent) for extent in free]
        self.is_punched = is_punched
        """Whether the file system has taken them back."""

    @classmethod
    def known(cls, data: DataFile, index: Index) -> Space:
        """The free space that is known for this state of the array: `data.space` is a state, and the space then."""
        if data.space is None or data.space[0] != index:
            return cls()
        space: Space = data.space[1]
        return cls(space.free, space.is_punched)

    @classmethod
    def between(cls, live: Iterable[tuple[int, int]], start: int, index: Index) -> Space:
        """What is between the live extents `live`, of a file whose blocks are in ``start..index.end``."""
        free = []
        at = start
        for offset, length in [*sorted(live), (index.end, 0)]:
            if offset > at:
                free.append((at, offset - at))
            at = max(at, offset + length)
        return cls(free)

    @property
    def nbytes(self) -> int:
        """Bytes that are free."""
        return sum(length for _, length in self.free)

    def take(self, length: int) -> int | None:
        """The offset of `length` bytes of the first free extent that has as many; None if there is none."""
        for nth, extent in enumerate(self.free):
            if extent[1] >= length:
                offset = extent[0]
                extent[0] += length
                extent[1] -= length
                if extent[1] == 0:
                    del self.free[nth]
                return offset
        return None


class BlockWriter:
    """Writes blocks of one array, and then the index that leads to them.

    Nothing of it counts before `finish` gave the index and that is committed. `view` is the state with what has been
    written so far, as far as it is in index pages.
    """

    def __init__(self, data: DataFile, view: View, space: Space) -> None:
        self._data, self.view, self._space = data, view, space
        self._changed: dict[int, Pointer] = {}  # pointers of full blocks that are not in index pages yet

    def read_block(self, block: int) -> Any:
        """The raw bytes, in a buffer, of a block, with what has been written so far."""
        pointer = self._pointer(block) if block < self.view.n_full else self.view.index.tail
        return read_pointer(self._data, self.view, pointer, self.view.raw_len(block))

    def _pointer(self, block: int) -> Pointer:
        """The pointer of a full block, with what has been written so far."""
        if block in self._changed:
            return self._changed[block]
        return pointer_of(self._data, self.view, block) if block < self.view.n_full else NOWHERE

    def put_full(self, first: int, raw: Any) -> None:
        """Encodes the full blocks ``first..``, which `raw` holds, and writes them in order."""
        raw = memoryview(raw)
        block_len = self.view.block_len
        per_batch = max(1, BATCH_LEN // block_len)
        encoder = self._encoder()
        for at in range(0, len(raw), per_batch * block_len):
            batch = raw[at : at + per_batch * block_len]
            blocks = [_encoded(encoder, batch[i : i + block_len]) for i in range(0, len(batch), block_len)]
            self._put_batch(first + at // block_len, blocks)

    def put_tail(self, raw: Any, grows: bool = False) -> None:
        """Makes `raw` the tail. `grows`: rows will be appended to it."""
        self.drop_tail()
        if not len(raw):
            return
        kind, stored = (OPEN_TAIL, raw) if grows else _encoded(self._encoder(), raw)
        reserved = self.view.block_len if grows else len(stored)
        offset = self._allocate(reserved)
        self._write(stored, offset)
        self._set(tail=Pointer(kind, offset, len(stored), zlib.crc32(stored)), live=self.view.index.live + reserved)

    def extend_tail(self, rows: Any) -> None:
        """Writes `rows` behind an open tail, in place."""
        tail = self.view.index.tail
        self._write(rows, tail.end)
        crc = zlib.crc32(rows, tail.crc)
        self._set(tail=tail._replace(stored_len=tail.stored_len + len(rows), crc=crc))

    def drop_tail(self) -> None:
        """The tail is dead."""
        index = self.view.index
        self._set(tail=NOWHERE, live=max(0, index.live - self.view.reserved_len(index.tail)))

    def finish(self, nbytes: int) -> tuple[View, Space]:
        """Writes the index pages for an array of `nbytes` bytes, and gives the state and what is free then."""
        self.flush_index(nbytes)
        return self.view, self._space

    @property
    def wants_flush(self) -> bool:
        """Whether so many pointers are collected that they should go to index pages, by `flush_index`."""
        return len(self._changed) >= MAX_CHANGED

    def flush_index(self, nbytes: int) -> None:
        """Writes the index pages of what has been written so far, of an array that has `nbytes` bytes by now."""
        before = block_index.height(self.view.n_full)
        self.view = self.view._replace(nbytes=nbytes)
        height = block_index.height(self.view.n_full)
        for _ in range(before, height):
            if self.view.index.root.kind != ABSENT:
                self._set(root=self._put_page([self.view.index.root]))
        if self._changed:
            changed = sorted(self._changed.items())
            self._changed = {}
            self._set(root=self._update(height, self.view.index.root, changed))

    def _update(self, level: int, pointer: Pointer, changed: list[tuple[int, Pointer]]) -> Pointer:
        """Writes the page at `pointer`, `level` levels above the blocks, anew with the pointers `changed`."""
        if level == 0:
            return changed[0][1]
        pointers = [NOWHERE] * PAGE_FANOUT
        if pointer.kind != ABSENT:
            try:
                pointers = list(page(self._data, self.view, pointer, level))
            except BlockFault as fault:
                raise fault.of(changed[0][0]) from None
        for first, group in groupby(changed, lambda of: block_index.first_block_of_page(of[0], level - 1)):
            slot = block_index.slot_in_page(first, level)
            pointers[slot] = self._update(level - 1, pointers[slot], list(group))
        self._set(live=max(0, self.view.index.live - pointer.stored_len))
        return self._put_page(pointers)

    def _put_page(self, pointers: list[Pointer]) -> Pointer:
        stored = block_index.encode_page(pointers)
        if not stored:
            return NOWHERE
        offset = self._allocate(len(stored))
        self._write(stored, offset)
        self._set(live=self.view.index.live + len(stored))
        return Pointer(PAGE, offset, len(stored), zlib.crc32(stored))

    def _put_batch(self, first: int, blocks: list[tuple[int, Any]]) -> None:
        """Writes blocks that are encoded, from `first` on."""
        length = sum(len(stored) for _, stored in blocks)
        # In one piece, where that is possible: so are they read.
        in_one = self._space.take(length)
        if in_one is None and not self._space.free:
            in_one = self._extend(length)
        if in_one is not None:
            self._write(b"".join(stored for _, stored in blocks), in_one)
        done = 0
        for block, (kind, stored) in enumerate(blocks, first):
            if in_one is not None:
                offset = in_one + done
            else:
                offset = self._allocate(len(stored))
                self._write(stored, offset)
            done += len(stored)
            try:
                before = self._pointer(block)
            except BlockFault as fault:
                raise fault.of(block) from None
            self._set(live=max(0, self.view.index.live - before.stored_len) + len(stored))
            self._changed[block] = Pointer(kind, offset, len(stored), zlib.crc32(stored))

    def _encoder(self) -> Encoder:
        return Encoder(self.view.codec, self.view.itemsize)

    def _allocate(self, length: int) -> int:
        offset = self._space.take(length)
        return self._extend(length) if offset is None else offset

    def _extend(self, length: int) -> int:
        offset = self.view.index.end
        self._set(end=offset + length)
        return offset

    def _write(self, stored: Any, offset: int) -> None:
        if offset + len(stored) > MAX_END:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._data.file.write(stored, offset)

    def _set(self, **fields: Any) -> None:
        self.view = self.view._replace(index=self.view.index._replace(**fields))


def _encoded(encoder: Encoder, raw: Any) -> tuple[int, Any]:
    """Kind and stored bytes of a block. What zstd cannot take, for want of memory, is stored as it is."""
    try:
        return encoder.encode(raw)
    except CodecError:
        return RAW, raw
