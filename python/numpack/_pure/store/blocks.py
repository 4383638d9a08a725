"""Reading compressed arrays: from positions in the stored elements to blocks, through the index to their bytes.

A `View` is one committed state of an array's blocks. Whoever holds an old one may find its blocks overwritten, which
their checksums show: then there is a newer view, in the manifest or in the data file itself, and only if there is none
is it damage. So readers need no lock, and see what is written in place as they do in an uncompressed array.

"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numpack._pure.codec import CodecError, decode
from numpack._pure.format import block_index
from numpack._pure.format.block_index import (
    FILE_HEADER_LEN,
    SLOT_LEN,
    SLOT_OFFSETS,
    Index,
    IndexFault,
    Pointer,
    Slot,
)
from numpack._pure.format.codec import ABSENT, OPEN_TAIL, Codec
from numpack._pure.format.manifest import Record
from numpack._pure.store import error as errors

if TYPE_CHECKING:
    from numpack._pure.store.data import DataFile
    from numpack._pure.store.store import Store

MAX_PAGES = 256
"""Index pages that are kept for each open array: those of 4 GiB in blocks of 64 KiB."""

MAX_RECENT = 64
"""Decoded blocks that are kept for each open array, for those who read it row by row."""

MAX_RECENT_LEN = 4 << 20
"""Decoded blocks that are kept have this many bytes in all."""

MAX_RUN_LEN = 1 << 20
"""Longest run of blocks that is read from the file in one call, in stored bytes."""

MAX_ATTEMPTS = 100
"""How often a reader looks for newer blocks. Each time, a writer has overwritten blocks that were committed at the time
before, for which it has to wait for the disk."""

MAX_SAME = 3
"""How often it reads the same state again. It may have been another one meanwhile: contents that come back, at places
that are used in turn, have the same index."""


class BlockFault(Exception):
    """A block or page whose bytes are not those that its pointer says, at `offset` of the data file: `what`."""

    def __init__(self, offset: int, what: str, block: int | None = None) -> None:
        super().__init__(what)
        self.offset, self.what, self.block = offset, what, block

    def of(self, block: int) -> BlockFault:
        """The same, of this block, unless it is known to be of another."""
        if self.block is None:
            self.block = block
        return self


class View(NamedTuple):
    """One committed state of the blocks of an array."""

    index: Index  # type: ignore[assignment]
    codec: Codec
    nbytes: int
    """Bytes of the stored elements."""
    itemsize: int
    """Bytes of one element, which the filters work on."""
    start: int
    """Where blocks and pages begin in the data file."""

    @classmethod
    def of(cls, record: Record) -> View:
        """The state that the record of a compressed array describes."""
        layout = record.layout
        assert record.index is not None and record.codec is not None, "it is compressed"
        return cls(record.index, record.codec, layout.nbytes, layout.itemsize, FILE_HEADER_LEN + record.offset)

    @property
    def block_len(self) -> int:
        """Raw bytes of a full block."""
        return self.codec.block_len

    @property
    def n_full(self) -> int:
        """Blocks that are not the tail."""
        return self.nbytes // self.codec.block_len

    @property
    def tail_len(self) -> int:
        """Bytes of the last, partial block."""
        return self.nbytes % self.codec.block_len

    @property
    def n_blocks(self) -> int:
        """Blocks, the tail included."""
        return -(-self.nbytes // self.codec.block_len)

    def reserved_len(self, pointer: Pointer) -> int:
        """Bytes of the data file that belong to what a pointer leads to: an open tail has room to grow."""
        return self.codec.block_len if pointer.kind == OPEN_TAIL else pointer.stored_len

    def raw_len(self, block: int) -> int:
        """Decoded bytes of a block."""
        return self.codec.block_len if block < self.n_full else self.tail_len


class BlockCache:
    """What is kept of the blocks of an open data file.

    Entries are found by pointers, which are of one state of a block or page only, so none is ever out of date.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[Pointer, list[Pointer]] = {}
        self._recent: dict[Pointer, Any] = {}
        self._order: deque[Pointer] = deque()

    def page(self, pointer: Pointer) -> list[Pointer] | None:
        """The pointers of the page at `pointer`, or None."""
        return self._pages.get(pointer)

    def keep_page(self, pointer: Pointer, page: list[Pointer]) -> None:
        """Keeps a page, unless another thread is at it."""
        with self._changing() as may_change:
            if may_change:
                if len(self._pages) >= MAX_PAGES:
                    # Readers go on through the array, or jump about: no page is better than another.
                    self._pages.clear()
                self._pages[pointer] = page

    def recent(self, pointer: Pointer) -> Any:
        """The raw bytes of the block at `pointer`, or None."""
        return self._recent.get(pointer)

    def keep_recent(self, pointer: Pointer, raw: Any) -> None:
        """Keeps a decoded block, and as few others as are the limit, unless another thread is at it."""
        with self._changing() as may_change:
            if may_change:
                n_kept = max(1, min(MAX_RECENT, MAX_RECENT_LEN // max(1, len(raw))))
                while len(self._order) >= n_kept:
                    self._recent.pop(self._order.popleft(), None)
                if pointer not in self._recent:
                    self._order.append(pointer)
                self._recent[pointer] = raw

    @contextlib.contextmanager
    def _changing(self) -> Iterator[bool]:
        # Not waited for: in a forked process, whoever has it may not be there.
        may_change = self._lock.acquire(blocking=False)
        try:
            yield may_change
        finally:
            if may_change:
                self._lock.release()


def file_header(data: DataFile) -> bytes:
    """The header of a compressed data file: up to the end of its slots, or that of the file."""
    header: bytes = data.file.read(SLOT_OFFSETS[1] + SLOT_LEN, 0)
    return header


def _read_stored(data: DataFile, pointer: Pointer) -> bytes:
    """The stored bytes at `pointer`, checked."""
    stored: bytes = data.file.read(pointer.stored_len, pointer.offset)
    _check_stored(pointer, stored)
    return stored


def _check_stored(pointer: Pointer, stored: Any) -> None:
    if len(stored) < pointer.stored_len:
        expected = pointer.stored_len
        what = f"has {len(stored)} bytes before the end of the file, expected {expected}"
        raise BlockFault(pointer.offset, what)
    found = zlib.crc32(stored)
    if found != pointer.crc:
        raise BlockFault(pointer.offset, f"has crc32 {found:#010x}, expected {pointer.crc:#010x}")


def page(data: DataFile, view: View, pointer: Pointer, level: int) -> list[Pointer]:
    """The pointers of an index page that is `level` levels above the blocks of `view`."""
    found = data.blocks.page(pointer)
    if found is not None:
        return found
    stored = _read_stored(data, pointer)
    try:
        found = block_index.parse_page(stored)
        for child in found[: len(stored) // block_index.POINTER_LEN]:
            block_index.check_pointer(child, level - 1, view.block_len, view.start, view.index.end)
    except IndexFault as fault:
        raise BlockFault(pointer.offset, f"is behind an index that {fault}") from None
    data.blocks.keep_page(pointer, found)
    return found


def pointer_of(data: DataFile, view: View, block: int) -> Pointer:
    """The pointer of a block."""
    if block >= view.n_full:
        return view.index.tail
    pointer = view.index.root
    for level in range(block_index.height(view.n_full), 0, -1):
        if pointer.kind == ABSENT:
            break
        pointer = page(data, view, pointer, level)[block_index.slot_in_page(block, level)]
    return pointer


def read_pointer(data: DataFile, view: View, pointer: Pointer, raw_len: int) -> Any:
    """The raw bytes, in a buffer, of the block at `pointer`, which has `raw_len` of them."""
    if pointer.kind == ABSENT:
        return bytes(raw_len)
    return _decoded(view, pointer, _read_stored(data, pointer), raw_len)


def read_block(data: DataFile, view: View, block: int) -> Any:
    """The raw bytes, in a buffer, of a whole block."""
    return read_pointer(data, view, pointer_of(data, view, block), view.raw_len(block))


def _decoded(view: View, pointer: Pointer, stored: Any, raw_len: int) -> Any:
    try:
        return decode(pointer.kind, view.itemsize, stored, raw_len)
    except CodecError as error:
        raise BlockFault(pointer.offset, f"cannot be decoded: {error}") from None


def _read_blocks(data: DataFile, view: View, first: int, out: Any) -> None:
    """Decodes whole blocks from `first` on into `out`, which ends with a block, or with the tail."""
    block, at = first, 0
    while at < len(out):
        # Blocks that follow each other in the file are read in one call.
        run: list[Pointer] = []
        raw_len = run_len = 0
        while at + raw_len < len(out):
            nth = block + len(run)
            try:
                pointer = pointer_of(data, view, nth)
            except BlockFault as fault:
                raise fault.of(nth) from None
            is_next = not run or (ABSENT not in (run[-1].kind, pointer.kind) and run[-1].end == pointer.offset)
            if not is_next or (run and run_len + pointer.stored_len > MAX_RUN_LEN):
                break
            raw_len += view.raw_len(nth)
            run_len += pointer.stored_len
            run.append(pointer)
        start = run[0].offset
        stored = memoryview(data.file.read(run_len, start) if run_len else b"")
        for pointer in run:
            raw_len = view.raw_len(block)
            if pointer.kind == ABSENT:
                raw = bytes(raw_len)
            else:
                part = stored[pointer.offset - start : pointer.end - start]
                try:
                    _check_stored(pointer, part)
                    raw = _decoded(view, pointer, part, raw_len)
                except BlockFault as fault:
                    raise fault.of(block) from None
            out[at : at + raw_len] = raw
            at += raw_len
            block += 1


class Cursor:
    """Reads one array from any position on, and remembers the block it read last.

    That has what the record describes, and all that was written in place since.
    """

    def __init__(self, store: Store, record: Record, data: DataFile) -> None:
        self._store, self._record, self._data = store, record, data
        self._view = newest_view(store, record, data)
        self._block: int | None = None
        self._raw: Any = None

    def gather(self, rows: NDArray[Any], row_len: int, out: Any) -> None:
        """Reads stored rows, by their numbers, into `out`; each block is decoded once."""
        if not len(rows) or not row_len:
            return
        out = np.frombuffer(out, f"V{row_len}")
        order = np.argsort(rows, kind="stable")
        starts = rows[order].astype(np.int64) * row_len
        block_len = self._view.block_len
        blocks = starts // block_len
        ends = np.flatnonzero(np.diff(blocks)) + 1
        for first, end in zip([0, *ends.tolist()], [*ends.tolist(), len(order)], strict=True):
            block = int(blocks[first])
            within = starts[first:end] - block * block_len
            # Rows of one block begin at multiples of their length from the first of them; the last may go on in the
            # next block.
            n_inside = int(np.searchsorted(within, block_len - row_len, side="right"))
            if n_inside:
                raw = self.block(block)
                n_inside = min(n_inside, int(np.searchsorted(within, len(raw) - row_len, side="right")))
            if n_inside:
                phase = int(within[0]) % row_len
                items = np.ndarray((len(raw) - phase) // row_len, out.dtype, raw, phase)
                out[order[first : first + n_inside]] = items[within[:n_inside] // row_len]
            for place in range(first + n_inside, end):
                at = int(order[place])
                self.read(int(starts[place]), out[at : at + 1].view(np.uint8))

    def read(self, offset: int, out: Any) -> None:
        """Reads from byte `offset` of the stored elements on into `out`, a writable buffer of bytes."""
        out = memoryview(out)
        while len(out):
            block, within = divmod(offset, self._view.block_len)
            done = self._whole_len(block, within, len(out))
            if done:
                self._read_whole(block, out[:done])
            else:
                raw = self.block(block)
                done = min(len(out), len(raw) - within)
                out[:done] = memoryview(raw)[within : within + done]
            offset += done
            out = out[done:]

    def _whole_len(self, block: int, within: int, length: int) -> int:
        """How many of `length` bytes from position `within` of `block` on are those of whole blocks."""
        if within:
            return 0
        n_full, rest = divmod(length, self._view.block_len)
        # The tail is whole only as the view has it: the record may have an earlier, shorter one.
        is_end = block + n_full >= self._view.n_full
        return length if is_end and rest == self._view.tail_len else length - rest

    def _read_whole(self, block: int, out: Any) -> None:
        for attempt in _attempts():
            try:
                return _read_blocks(self._data, self._view, block, out)
            except BlockFault as fault:
                self._look_again(fault.of(block), attempt)
            if self._whole_len(block, 0, len(out)) != len(out):
                # The tail has grown.
                return self.read(block * self._view.block_len, out)

    def block(self, block: int) -> Any:
        """The raw bytes, in a buffer, of a block."""
        if self._block == block:
            return self._raw
        for attempt in _attempts():
            try:
                raw = self._read_one(block)
                break
            except BlockFault as fault:
                self._look_again(fault.of(block), attempt)
        self._block, self._raw = block, raw
        return raw

    def _read_one(self, block: int) -> Any:
        pointer = pointer_of(self._data, self._view, block)
        raw_len = self._view.raw_len(block)
        if pointer.kind == ABSENT:
            return bytes(raw_len)
        raw = self._data.blocks.recent(pointer)
        if raw is None:
            raw = read_pointer(self._data, self._view, pointer, raw_len)
            self._data.blocks.keep_recent(pointer, raw)
        return raw

    def _look_again(self, fault: BlockFault, attempt: _Attempt) -> None:
        """After `fault`: goes on with a newer view, or says what is damaged."""
        newest = newest_view(self._store, self._record, self._data, thorough=True)
        attempt.n += 1
        if newest != self._view and attempt.n < MAX_ATTEMPTS:
            attempt.n_same = 0
            self._view, self._block = newest, None
        elif newest == self._view and attempt.n_same < MAX_SAME:
            attempt.n_same += 1
        else:
            raise block_error(self._store, self._record, fault) from None


class _Attempt:
    """How often a reader has looked for newer blocks."""

    n = 0
    n_same = 0


def _attempts() -> Iterator[_Attempt]:
    return itertools.repeat(_Attempt())


def newest_view(store: Store, record: Record, data: DataFile, *, thorough: bool = False) -> View:
    """The newest state of the blocks of the version that `record` describes.

    `thorough` asks the system instead of the shared word.
    """
    # A store that is damaged or gone does not keep those who have an array open from reading it.
    with contextlib.suppress(OSError, ValueError, NotImplementedError):
        store.refresh(thorough=thorough)
    own = View.of(record)
    current = current_record(store, record, data)
    if current is not None:
        return View.of(current)
    # Overwritten or removed: the file says what was written to it last.
    slot, _ = Slot.newest(file_header(data))
    if slot is None or slot.nbytes < own.nbytes:
        return own
    try:
        slot.index.check(slot.nbytes, record.offset, own.codec)
    except IndexFault:
        return own
    return own._replace(index=slot.index, nbytes=slot.nbytes)


def current_record(store: Store, record: Record, data: DataFile) -> Record | None:
    """The newest record of the version that `record` describes, whatever name it has by now; None if it is gone."""
    try:
        current = None if data.is_gone else store.manifest.table.by_id(record.id)
    except errors.CorruptStoreError:
        return None
    if current is None or current is record:
        return current

    def key(of: Record) -> tuple[Any, ...]:
        return of.file, of.descr, of.codec, of.offset

    # Another one has this identity if it is of a store that was made anew.
    is_later = current.layout.nbytes >= record.layout.nbytes
    return current if key(current) == key(record) and is_later else None


def block_error(store: Store, record: Record, fault: BlockFault) -> Exception:
    """What callers see of a block that stays damaged."""
    number = 0 if fault.block is None else fault.block
    return errors.block(store.path, record.name, record.file, number, fault.offset, fault.what)


@contextlib.contextmanager
def naming(store: Store, record: Record, action: str) -> Iterator[None]:
    """Lets errors name the array and the file."""
    try:
        yield
    except BlockFault as fault:
        raise block_error(store, record, fault) from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise errors.io_error(action, os.path.join(store.path, record.file), error) from error


class BlockElements:
    """The elements of a compressed array, as `numpack._pure.store.data.Elements` those of others."""

    def __init__(self, store: Store, record: Record, data: DataFile) -> None:
        self._store, self._record, self._data = store, record, data

    def read_into(self, out: memoryview, offset: int) -> None:
        """Read as many bytes as ``out`` takes."""
        with naming(self._store, self._record, "read"):
            Cursor(self._store, self._record, self._data).read(offset, out)

    def gather(self, rows: np.ndarray, out: memoryview) -> None:
        """Read stored rows, by their numbers, of an array in C-order."""
        with naming(self._store, self._record, "read"):
            cursor = Cursor(self._store, self._record, self._data)
            cursor.gather(np.asarray(rows), self._record.layout.row_len, out)


def walk(data: DataFile, view: View) -> Iterator[tuple[int, Pointer]]:
    """Yields each pointer of an array that leads somewhere, with the first block that it leads to.

    Raises `BlockFault` for a page that cannot be read.
    """
    n_full = view.n_full
    # Pages that lead to each other would have no end.
    room = data.file.stat().st_size

    def below(block: int, level: int, pointer: Pointer) -> Iterator[tuple[int, Pointer]]:
        nonlocal room
        if pointer.kind == ABSENT:
            return
        room -= pointer.stored_len
        if room < 0:
            what = "is behind an index that leads to more than the file has"
            raise BlockFault(pointer.offset, what, block)
        if block >= n_full:
            what = "is behind an index that leads to blocks that the array does not have"
            raise BlockFault(pointer.offset, what, block)
        yield block, pointer
        if level == 0:
            return
        try:
            children = page(data, view, pointer, level)
        except BlockFault as fault:
            raise fault.of(block) from None
        step = block_index.blocks_below(level - 1)
        for nth, child in enumerate(children):
            if child.kind != ABSENT:
                yield from below(block + nth * step, level - 1, child)

    yield from below(0, block_index.height(n_full), view.index.root)
    if view.index.tail.kind != ABSENT:
        yield n_full, view.index.tail
