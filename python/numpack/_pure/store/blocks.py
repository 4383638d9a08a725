"""Reading compressed arrays: from positions in the stored elements to blocks, through the index to their bytes.

A `View` is one committed state of an array's blocks. Whoever holds an old one may find its blocks overwritten, which their
checksums show: then there is a newer view, in the manifest or in the data file itself, and only if there is none is it
damage. So readers need no lock.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from numpack._errors import CorruptStoreError
from numpack._pure.codec import CodecError, decode
from numpack._pure.format.block_index import (
    FILE_HEADER_LEN,
    NOWHERE,
    Index,
    IndexFault,
    Pointer,
    Slot,
    check_pointer,
    height,
    parse_page,
    slot_in_page,
)
from numpack._pure.format.codec import ABSENT, OPEN_TAIL, Codec
from numpack._pure.format.error import quoted
from numpack._pure.format.manifest import Record
from numpack._pure.store import error as errors

if TYPE_CHECKING:
    from numpack._pure.store.data import DataFile
    from numpack._pure.store.store import Store

# Decoded blocks that are kept for each open array, for those who read it row by row: so many, of so many bytes in all.
MAX_RECENT = 64
MAX_RECENT_LEN = 4 << 20
# Index pages that are kept for each open array.
MAX_PAGES = 256
# How often a reader looks for newer blocks, and how often it reads the same state again, which may have been another one
# meanwhile: contents that come back, at places that are used in turn, have the same index.
MAX_ATTEMPTS = 100
MAX_SAME = 3
# The header of a compressed data file, up to the end of its slots.
SLOTS_END = 2048


class View(NamedTuple):
    """One committed state of the blocks of an array: ``start`` is where blocks begin in the data file."""

    index: Index
    codec: Codec
    nbytes: int
    itemsize: int
    start: int

    @classmethod
    def of(cls, record: Record) -> View:
        """The state that the record of a compressed array describes."""
        layout = record.layout
        return cls(record.index, record.codec, layout.nbytes, layout.itemsize, FILE_HEADER_LEN + record.offset)

    @property
    def block_len(self) -> int:
        """Raw bytes of a full block."""
        return self.codec.block_len

    @property
    def n_full(self) -> int:
        """Blocks that are not the tail."""
        return self.nbytes // self.block_len

    @property
    def tail_len(self) -> int:
        """Bytes of the last, partial block."""
        return self.nbytes % self.block_len

    def raw_len(self, block: int) -> int:
        """Raw bytes of a block."""
        return self.block_len if block < self.n_full else self.tail_len

    def reserved_len(self, pointer: Pointer) -> int:
        """Bytes of the data file that belong to what a pointer leads to: an open tail has room to grow."""
        return self.block_len if pointer.kind == OPEN_TAIL else pointer.stored_len


class BlockFault(Exception):
    """A block, or a page of the index that leads to it, that cannot be read: which, where, and what is wrong."""

    def __init__(self, block: int, offset: int, what: str) -> None:
        super().__init__(what)
        self.block, self.offset, self.what = block, offset, what

    def of(self, store: Store, record: Record) -> CorruptStoreError:
        """The error that names the array."""
        return CorruptStoreError(
            f"{store.path}: array {quoted(record.name)}: block {self.block} at byte {self.offset} of {record.file} "
            f'{self.what}; run "npkfs verify {store.path}"'
        )


def read_stored(data: DataFile, block: int, pointer: Pointer) -> bytes:
    """The stored bytes that a pointer leads to, checked."""
    stored = data.file.read(pointer.stored_len, pointer.offset)
    if len(stored) < pointer.stored_len:
        what = f"has {len(stored)} bytes before the end of the file, expected {pointer.stored_len}"
        raise BlockFault(block, pointer.offset, what)
    found = zlib.crc32(stored)
    if found != pointer.crc:
        raise BlockFault(block, pointer.offset, f"has crc32 {found:#010x}, expected {pointer.crc:#010x}")
    return stored


def page_at(data: DataFile, view: View, block: int, pointer: Pointer, level: int) -> list[Pointer]:
    """The pointers of an index page that is ``level`` levels above the blocks."""
    page = data.pages.get(pointer)
    if page is None:
        stored = read_stored(data, block, pointer)
        try:
            page = parse_page(stored)
            for child in page:
                check_pointer(child, level - 1, view.block_len, view.start, view.index.end)
        except IndexFault as error:
            raise BlockFault(block, pointer.offset, f"is behind an index that {error}") from None
        if len(data.pages) >= MAX_PAGES:
            # Readers go on through the array, or jump about: no page is better than another.
            data.pages.clear()
        data.pages[pointer] = page
    return page


def pointer_of(data: DataFile, view: View, block: int) -> Pointer:
    """The pointer of a block."""
    if block >= view.n_full:
        return view.index.tail
    pointer = view.index.root
    for level in range(height(view.n_full), 0, -1):
        if pointer.kind == ABSENT:
            break
        pointer = page_at(data, view, block, pointer, level)[slot_in_page(block, level)]
    return pointer


def decoded(data: DataFile, view: View, block: int, pointer: Pointer) -> memoryview:
    """The raw bytes of a block."""
    if pointer.kind == ABSENT:
        return memoryview(bytes(view.raw_len(block)))
    stored = read_stored(data, block, pointer)
    try:
        return memoryview(decode(pointer.kind, view.itemsize, stored, view.raw_len(block)))
    except CodecError as error:
        raise BlockFault(block, pointer.offset, f"cannot be decoded: {error}") from None


def newest_view(store: Store, record: Record, data: DataFile, *, thorough: bool) -> View:
    """The newest state of the blocks of the version that ``record`` describes."""
    own = View.of(record)
    # A store that is damaged or gone does not keep those who have an array open from reading it.
    with contextlib.suppress(OSError, ValueError):
        store.refresh(thorough=thorough)
    current = current_of(store, record, data)
    if current is not None:
        return View.of(current)
    # Overwritten or removed: the file says what was written to it last.
    noted, _ = Slot.newest(data.file.read(SLOTS_END, 0))
    if noted is not None and noted.nbytes >= own.nbytes:
        with contextlib.suppress(IndexFault):
            noted.index.check(noted.nbytes, record.offset, own.codec)
            return own._replace(index=noted.index, nbytes=noted.nbytes)
    return own


def current_of(store: Store, record: Record, data: DataFile) -> Record | None:
    """The newest record of the version that ``record`` describes, whatever name it has by now; None if it is gone."""
    current = None if data.is_gone else store.manifest.table.by_id(record.id)

    def key(record: Record) -> tuple:
        return record.file, record.descr, record.codec, record.offset

    # Another one has this identity if it is of a store that was made anew.
    if current is None or key(current) != key(record) or current.layout.nbytes < record.layout.nbytes:
        return None
    return current


class BlockElements:
    """The elements of a compressed array, with the face of `numpack._pure.store.data.Elements`."""

    def __init__(self, store: Store, record: Record, data: DataFile) -> None:
        self._store = store
        self._record = record
        self._data = data
        self._view = newest_view(store, record, data, thorough=False)

    def read_into(self, out: memoryview, offset: int) -> None:
        """Read as many bytes as ``out`` takes."""
        block_len = self._view.block_len
        done = 0
        while done < len(out):
            block, within = divmod(offset + done, block_len)
            is_kept = within > 0 or len(out) - done < block_len
            raw = self.block(block, is_kept=is_kept)
            part = raw[within : within + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def gather(self, stored: np.ndarray, out: memoryview) -> None:
        """Read the rows with these numbers. Each block is decoded once."""
        row_len = self._record.layout.row_len
        for place in np.argsort(stored, kind="stable"):
            start = int(place) * row_len
            self.read_into(out[start : start + row_len], int(stored[place]) * row_len)

    def block(self, block: int, *, is_kept: bool = True) -> memoryview:
        """The raw bytes of a block, which are kept for a while if more of them may be asked for."""
        n, n_same = 0, 0
        while True:
            try:
                return self._decoded(block, is_kept=is_kept)
            except BlockFault as fault:
                newest = newest_view(self._store, self._record, self._data, thorough=True)
                n += 1
                if newest != self._view and n < MAX_ATTEMPTS:
                    self._view, n_same = newest, 0
                elif newest == self._view and n_same < MAX_SAME:
                    n_same += 1
                else:
                    raise fault.of(self._store, self._record) from None
            except OSError as error:
                path = os.path.join(self._store.path, self._record.file)
                raise errors.io_error("read", path, error) from error

    def _decoded(self, block: int, *, is_kept: bool) -> memoryview:
        data, view = self._data, self._view
        pointer = pointer_of(data, view, block)
        raw = data.recent.get(pointer)
        if raw is None:
            raw = decoded(data, view, block, pointer)
            if is_kept and pointer is not NOWHERE:
                n_kept = max(1, min(MAX_RECENT, MAX_RECENT_LEN // max(1, len(raw))))
                while len(data.recent) >= n_kept:
                    data.recent.popitem(last=False)
                data.recent[pointer] = raw
        return raw
