"""Writing compressed arrays: new blocks and index pages go where nothing is that a committed state needs, and one pointer,
the root, is what a commit changes.

What is not needed any more is dead. Dead bytes are written to again, and given back to the file system, only when the
commit that made them dead is on the disk: see `Space`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from numpack._pure.codec import CodecError, Encoder, choose_filter
from numpack._pure.format.block_index import (
    MAX_END,
    NOWHERE,
    PAGE_FANOUT,
    FileHeader,
    Index,
    Pointer,
    Slot,
    encode_page,
    first_block_of_page,
    height,
    slot_in_page,
)
from numpack._pure.format.codec import ABSENT, OPEN_TAIL, PAGE, RAW, Codec, Compression
from numpack._pure.format.layout import Layout
from numpack._pure.format.manifest import Record
from numpack._pure.store import error as errors
from numpack._pure.store import writer
from numpack._pure.store.blocks import BlockFault, View, decoded, newest_view, page_at, pointer_of
from numpack._pure.sys.storage import File

if TYPE_CHECKING:
    from numpack._pure.store.data import DataFile
    from numpack._pure.store.store import Store

# Blocks are encoded in batches of this many raw bytes: each is written in one call.
BATCH_LEN = 1 << 20
# Pointers that are collected before they are written to index pages.
MAX_CHANGED = 1 << 16
# Elements that are collected before they are encoded.
CHUNK_LEN = 8 << 20
# What is looked at to choose a filter: this many pieces, none longer than this.
MAX_SAMPLES = 8
SAMPLE_BLOCK_LEN = 64 << 10
# Holes are made of whole pages.
PUNCH_ALIGN = 4096
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS)

Extent = tuple[int, int]


class Space:
    """Where in a data file new blocks can go: dead extents that nobody needs, in order, in one state of the array. The
    commit that made them so is on the disk."""

    def __init__(self, of: Index | None = None, free: list[Extent] | None = None) -> None:
        self.of = of
        self.free = free or []
        self.is_punched = False

    @classmethod
    def known(cls, data: DataFile, index: Index) -> Space:
        """The free space that is known for this state of the array."""
        known = data.space
        if known is None or known.of != index:
            return cls()
        space = cls(index, list(known.free))
        space.is_punched = known.is_punched
        return space

    @classmethod
    def between(cls, live: list[Extent], start: int, index: Index) -> Space:
        """What is between the live extents of a file whose blocks begin at ``start``."""
        free, at = [], start
        for offset, length in [*sorted(live), (index.end, 0)]:
            if offset > at:
                free.append((at, offset - at))
            at = max(at, offset + length)
        return cls(index, free)

    def __len__(self) -> int:
        return sum(length for _, length in self.free)

    def take(self, length: int) -> int | None:
        """Take so many bytes of the first free extent that has as many."""
        for place, (offset, there) in enumerate(self.free):
            if there >= length:
                self.free[place : place + 1] = [(offset + length, there - length)] if there > length else []
                return offset
        return None


class BlockPutter:
    """Writes blocks of one array, and then the index that leads to them. Nothing of it counts before `finish` gave the
    index and that is committed."""

    def __init__(self, data: DataFile, view: View, space: Space) -> None:
        self.data = data
        self.view = view
        self.space = space
        self._encoder: Encoder | None = None
        # Pointers of full blocks that are not in index pages yet.
        self._changed: dict[int, Pointer] = {}

    def put_full(self, first: int, raw: memoryview) -> None:
        """Encode and write the full blocks from ``first`` on, which ``raw`` holds."""
        block_len = self.view.block_len
        per_batch = max(1, BATCH_LEN // block_len)
        for start in range(0, len(raw), per_batch * block_len):
            batch = raw[start : start + per_batch * block_len]
            blocks = [batch[at : at + block_len] for at in range(0, len(batch), block_len)]
            self._put_batch(first + start // block_len, [self._encode(block) for block in blocks])

    def put_tail(self, raw: memoryview, *, grows: bool) -> None:
        """Make ``raw`` the last, partial block. ``grows``: rows will be appended to it."""
        self._drop_tail()
        if not len(raw):
            return
        kind, stored = (OPEN_TAIL, raw) if grows else self._encode(raw)
        reserved = self.view.block_len if grows else len(stored)
        offset = self._allocate(reserved)
        self._write(stored, offset)
        tail = Pointer(kind, offset, len(stored), zlib.crc32(stored))
        self._set(tail=tail, live=self.view.index.live + reserved)

    def extend_tail(self, rows: memoryview) -> None:
        """Write ``rows`` behind an open tail, in place."""
        tail = self.view.index.tail
        self._write(rows, tail.end)
        stored_len, crc = tail.stored_len + len(rows), zlib.crc32(rows, tail.crc)
        self._set(tail=tail._replace(stored_len=stored_len, crc=crc))

    def finish(self, nbytes: int) -> Index:
        """Write the index pages of what has been written, of an array that has ``nbytes`` bytes by now."""
        before = height(self.view.n_full)
        self.view = self.view._replace(nbytes=nbytes)
        levels = height(self.view.n_full)
        for _ in range(before, levels):
            if self.view.index.root.kind != ABSENT:
                self._set(root=self._put_page([self.view.index.root]))
        changed, self._changed = sorted(self._changed.items()), {}
        if changed:
            self._set(root=self._update(levels, self.view.index.root, changed))
        return self.view.index

    def wants_flush(self) -> bool:
        """Whether so many pointers are collected that they should go to index pages, by `finish`."""
        return len(self._changed) >= MAX_CHANGED

    def _update(self, level: int, pointer: Pointer, changed: list[tuple[int, Pointer]]) -> Pointer:
        """Write the page at ``pointer`` anew with these pointers."""
        if level == 0:
            return changed[0][1]
        pointers = [NOWHERE] * PAGE_FANOUT
        if pointer.kind != ABSENT:
            pointers = list(page_at(self.data, self.view, changed[0][0], pointer, level))
        groups: dict[int, list[tuple[int, Pointer]]] = {}
        for block, child in changed:
            groups.setdefault(first_block_of_page(block, level - 1), []).append((block, child))
        for group in groups.values():
            slot = slot_in_page(group[0][0], level)
            pointers[slot] = self._update(level - 1, pointers[slot], group)
        self._set(live=max(0, self.view.index.live - pointer.stored_len))
        return self._put_page(pointers)

    def _put_page(self, pointers: list[Pointer]) -> Pointer:
        stored = encode_page(pointers)
        if not stored:
            return NOWHERE
        offset = self._allocate(len(stored))
        self._write(stored, offset)
        self._set(live=self.view.index.live + len(stored))
        return Pointer(PAGE, offset, len(stored), zlib.crc32(stored))

    def _put_batch(self, first: int, encoded: list[tuple[int, Any]]) -> None:
        stored = b"".join(part for _, part in encoded)
        # In one piece, where that is possible: so are they read.
        in_one = self.space.take(len(stored))
        if in_one is None and not self.space.free:
            in_one = self._extend(len(stored))
        if in_one is not None:
            self._write(stored, in_one)
        done = 0
        for block, (kind, part) in enumerate(encoded, first):
            if in_one is None:
                offset = self._allocate(len(part))
                self._write(part, offset)
            else:
                offset = in_one + done
            done += len(part)
            before = self._pointer(block)
            self._set(live=max(0, self.view.index.live - before.stored_len) + len(part))
            self._changed[block] = Pointer(kind, offset, len(part), zlib.crc32(part))

    def _pointer(self, block: int) -> Pointer:
        """The pointer of a full block, with what has been written so far."""
        if block in self._changed:
            return self._changed[block]
        return pointer_of(self.data, self.view, block) if block < self.view.n_full else NOWHERE

    def _encode(self, raw: memoryview) -> tuple[int, Any]:
        if self._encoder is None:
            self._encoder = Encoder(self.view.codec, self.view.itemsize)
        try:
            return self._encoder.encode(raw)
        except CodecError:
            # What zstd cannot take, for want of memory, is stored as it is.
            return RAW, raw

    def _drop_tail(self) -> None:
        index = self.view.index
        self._set(tail=NOWHERE, live=max(0, index.live - self.view.reserved_len(index.tail)))

    def _allocate(self, length: int) -> int:
        offset = self.space.take(length)
        return self._extend(length) if offset is None else offset

    def _extend(self, length: int) -> int:
        offset = self.view.index.end
        self._set(end=offset + length)
        return offset

    def _set(self, **changes: Any) -> None:
        self.view = self.view._replace(index=self.view.index._replace(**changes))

    def _write(self, stored: Any, offset: int) -> None:
        if offset + len(stored) > MAX_END:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self.data.file.write(stored, offset)


class BlockStage:
    """The blocks of a new array, in a file that has no name yet."""

    def __init__(
        self, data: DataFile, dtype: np.dtype, layout: Layout, header: bytes, compression: Compression
    ) -> None:
        self._data = data
        self._dtype = dtype
        self._nbytes = layout.nbytes
        self._header = header
        self._compression = compression
        # Made when there are elements to choose a filter by.
        self._putter: BlockPutter | None = None
        self._n_done = 0
        # Elements that do not fill a block yet, or of which there are few.
        self._pending = bytearray()

    def push(self, elements: memoryview) -> None:
        """The next elements."""
        if not self._pending and self._n_done + len(elements) == self._nbytes:
            # All there is: no copy is needed.
            self._put(elements)
            return
        self._pending += elements
        if len(self._pending) >= max(CHUNK_LEN, self._compression.block_len):
            pending, self._pending = self._pending, bytearray()
            self._put(memoryview(pending))

    def finish(self) -> tuple[Codec, Index]:
        """Write the index and the headers; elements that did not come are zeros."""
        if self._pending or self._n_done:
            pending, self._pending = self._pending, bytearray()
            self._put(memoryview(pending))
            self._putter_for(memoryview(b"")).put_tail(memoryview(self._pending), grows=False)
        putter = self._putter_for(memoryview(b""))
        index, codec = putter.finish(self._nbytes), putter.view.codec
        head = bytearray(FileHeader(len(self._header), codec).to_bytes())
        slot = Slot(0, self._nbytes, index).to_bytes()
        head[512 : 512 + len(slot)] = slot
        self._data.file.write(bytes(head) + self._header, 0)
        return codec, index

    def _put(self, elements: memoryview) -> None:
        """Encode the whole blocks of ``elements``, which begin with a block, and keep what follows them."""
        block_len = self._compression.block_len
        full = len(elements) - len(elements) % block_len
        putter = self._putter_for(elements[:full])
        putter.put_full(self._n_done // block_len, elements[:full])
        self._n_done += full
        self._pending = bytearray(elements[full:])
        if putter.wants_flush():
            putter.finish(self._nbytes)

    def _putter_for(self, raw: memoryview) -> BlockPutter:
        if self._putter is None:

            def read(offset: int, length: int) -> memoryview:
                return raw[offset : offset + length]

            how = with_filter(self._compression, self._dtype, len(raw), read)
            codec = Codec(how.level, how.block_len, how.filter)
            npy_len = len(self._header)
            index = Index.empty(npy_len)
            view = View(index, codec, self._nbytes, self._dtype.itemsize, index.end)
            self._putter = BlockPutter(self._data, view, Space())
        return self._putter


def with_filter(compression: Compression, dtype: np.dtype, length: int, read) -> Compression:
    """``compression`` with the filter that makes a sample of the elements smallest, if it has none.

    ``read(offset, length)`` gives some of the ``length`` bytes of elements.
    """
    if compression.filter is not None:
        return compression
    block_len = min(compression.block_len, SAMPLE_BLOCK_LEN)
    step = max(1, -(-(-(-length // block_len)) // MAX_SAMPLES))
    starts = range(0, length, step * block_len)
    blocks = [read(start, min(block_len, length - start)) for start in starts]
    try:
        return compression._replace(filter=choose_filter(dtype, blocks, compression.level))
    except CodecError:
        # It fails only where zstd finds no memory, as encoding will.
        return compression._replace(filter="none")


class BlockWriter:
    """Changes the blocks of a stored array, with the writers' lock held."""

    def __init__(self, store: Store, record: Record, data: DataFile) -> None:
        self._store = store
        self._record = record
        self._data = data
        self.view = newest_view(store, record, data, thorough=False)
        self._putter = self._try(lambda: BlockPutter(data, self.view, self._room()))

    @property
    def space(self) -> Space:
        """What is free when the change is committed."""
        space = self._putter.space
        space.of = self._putter.view.index
        return space

    def append(self, rows: memoryview) -> Index:
        """Put rows behind the last one, and return the index that has them."""
        return self._try(lambda: self._append(rows))

    def write(self, parts: list[tuple[int, memoryview]], *, only_changed: bool) -> Index | None:
        """Put parts of the stored elements over what is there; None if nothing changed."""
        index = self._try(lambda: self._write(parts, only_changed=only_changed))
        return None if index == self.view.index else index

    def _append(self, rows: memoryview) -> Index:
        view, putter = self.view, self._putter
        nbytes = view.nbytes + len(rows)
        block_len, tail_len, tail = view.block_len, view.tail_len, view.index.tail
        if tail_len + len(rows) < block_len and tail.kind == OPEN_TAIL:
            putter.extend_tail(rows)
            return putter.finish(nbytes)
        raw = bytearray(decoded(self._data, view, view.n_full, tail) if tail_len else b"")
        missing = min(len(rows), block_len - tail_len)
        raw += rows[:missing]
        rest = rows[missing:]
        if len(raw) < block_len:
            putter.put_tail(memoryview(raw), grows=True)
            return putter.finish(nbytes)
        putter.put_full(view.n_full, memoryview(raw))
        n_full = len(rest) - len(rest) % block_len
        putter.put_full(view.n_full + 1, rest[:n_full])
        putter.put_tail(rest[n_full:], grows=True)
        return putter.finish(nbytes)

    def _write(self, parts: list[tuple[int, memoryview]], *, only_changed: bool) -> Index:
        view, putter = self.view, self._putter
        blocks: dict[int, list[tuple[int, memoryview]]] = {}
        for block, within, piece in pieces(view, parts):
            blocks.setdefault(block, []).append((within, piece))
        runs: list[tuple[int, bytearray]] = []
        for block, changes in sorted(blocks.items()):
            raw = self._overlaid(block, changes, only_changed=only_changed)
            if raw is None:
                continue
            if block == view.n_full:
                putter.put_tail(memoryview(raw), grows=view.index.tail.kind == OPEN_TAIL)
                continue
            # Blocks that follow each other are written in order.
            if runs and runs[-1][0] + len(runs[-1][1]) // view.block_len == block and len(runs[-1][1]) < CHUNK_LEN:
                runs[-1][1].extend(raw)
            else:
                self._put_runs(runs)
                runs = [(block, raw)]
        self._put_runs(runs)
        return putter.finish(view.nbytes)

    def _put_runs(self, runs: list[tuple[int, bytearray]]) -> None:
        for first, raw in runs:
            self._putter.put_full(first, memoryview(raw))

    def _overlaid(self, block: int, changes: list[tuple[int, memoryview]], *, only_changed: bool) -> bytearray | None:
        """A block with what is put over it; None if it is the same as before."""
        view = self.view
        raw_len = view.raw_len(block)
        if not only_changed and any(len(piece) == raw_len for _, piece in changes):
            raw = bytearray(raw_len)
        else:
            raw = bytearray(decoded(self._data, view, block, pointer_of(self._data, view, block)))
        if only_changed and all(raw[within : within + len(piece)] == piece for within, piece in changes):
            return None
        for within, piece in changes:
            raw[within : within + len(piece)] = piece
        return raw

    def _room(self) -> Space:
        """Where new blocks can go: or else the disk is waited for, and dead bytes are used again."""
        store, record, view = self._store, self._record, self.view
        space = Space.known(self._data, view.index)
        lost = max(0, view.index.dead(record.offset) - len(space))
        if lost > view.index.live // 2:
            try:
                space = reclaim(store, record, self._data, view)
            except BlockFault as fault:
                # What is damaged may be saved yet: nothing is overwritten.
                writer.log.warning("no space is given back: %s", fault.of(store, record))
                space = Space()
        # Not before: what is reclaimed was synced, and what is written now is not.
        store.dirty.add(record.file)
        return space

    def _try(self, call):
        try:
            return call()
        except BlockFault as fault:
            raise fault.of(self._store, self._record) from None
        except OSError as error:
            if error.filename is not None:
                raise
            path = os.path.join(self._store.path, self._record.file)
            raise errors.io_error("write", path, error) from error


def pieces(view: View, parts: list[tuple[int, memoryview]]) -> Iterator[tuple[int, int, memoryview]]:
    """Parts of the stored elements, cut where blocks end: which block, where in it, and what."""
    for offset, data in parts:
        done = 0
        while done < len(data):
            block, within = divmod(offset + done, view.block_len)
            piece = data[done : done + view.block_len - within]
            yield block, within, piece
            done += len(piece)


def has_dead_bytes(record: Record, data: DataFile) -> bool:
    """Whether an array has dead bytes that, as far as is known, were not given back to the file system."""
    if record.codec is None:
        return False
    known = Space.known(data, record.index)
    return record.index.dead(record.offset) > (len(known) if known.is_punched else 0)


def punch(store: Store, record: Record, data: DataFile) -> bool:
    """Give dead bytes back to the file system. Returns whether it could: if not, only a new version takes less space."""
    try:
        space = reclaim(store, record, data, View.of(record))
    except BlockFault as fault:
        raise fault.of(store, record) from None
    data.space = space
    return space.is_punched


def reclaim(store: Store, record: Record, data: DataFile, view: View) -> Space:
    """Find what is dead in a data file, for good: bring the commits that made it so to the disk.

    What is free then is given back to the file system meanwhile, if that can take it.
    """
    writer.poisoning(store, "sync", record.file, data.file.sync)
    writer.sync_all(store)
    live = [(pointer.offset, view.reserved_len(pointer)) for pointer in walk(data, view)]
    space = Space.between(live, view.start, view.index)
    for offset, length in space.free:
        # Of a part of a page, nothing is given back.
        start, end = -(-offset // PUNCH_ALIGN) * PUNCH_ALIGN, (offset + length) // PUNCH_ALIGN * PUNCH_ALIGN
        if start < end and not punch_hole(data.file, start, end - start):
            return space
    space.is_punched = True
    return space


def walk(data: DataFile, view: View) -> Iterator[Pointer]:
    """Each pointer of an array that leads somewhere."""
    # Pages that lead to each other would have no end.
    room = data.file.stat().st_size

    def below(block: int, level: int, pointer: Pointer) -> Iterator[Pointer]:
        nonlocal room
        if pointer.kind == ABSENT:
            return
        room -= pointer.stored_len
        if room < 0:
            raise BlockFault(block, pointer.offset, "is behind an index that leads to more than the file has")
        if block >= view.n_full:
            what = "is behind an index that leads to blocks that the array does not have"
            raise BlockFault(block, pointer.offset, what)
        yield pointer
        if level:
            for place, child in enumerate(page_at(data, view, block, pointer, level)):
                yield from below(block + (place << 8 * (level - 1)), level - 1, child)

    yield from below(0, height(view.n_full), view.index.root)
    if view.index.tail.kind != ABSENT:
        yield view.index.tail


def punch_hole(file: File, offset: int, length: int) -> bool:
    """Give a part of a file back to the file system, where it can take that. It reads as zeros then."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return False
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    done = libc.fallocate(file.fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_HOLES:
        return False
    raise OSError(number, os.strerror(number))
