"""Changes to compressed arrays, and their space: rows appended or written in place become new blocks, and one commit
leads to them.

Who calls these functions holds the writers' lock, and commits what they return.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

from numpack._pure.format.block_index import Index
from numpack._pure.format.codec import OPEN_TAIL
from numpack._pure.format.manifest import Record
from numpack._pure.store import writer as writers
from numpack._pure.store.block_writer import BlockWriter, Space
from numpack._pure.store.blocks import (
    BlockFault,
    Cursor,
    View,
    block_error,
    naming,
    newest_view,
    read_block,
    read_pointer,
    walk,
)

if TYPE_CHECKING:
    from numpack._pure.store.data import DataFile
    from numpack._pure.store.store import Store

log = logging.getLogger("numpack")

# Positions and bytes, of an array or of each of its blocks; and what a commit and `DataFile.space` get.
Parts: TypeAlias = Iterable[tuple[int, Any]]
Changes: TypeAlias = dict[int, list[tuple[int, Any]]]
Written: TypeAlias = tuple[Index, tuple[Index, Space]]

MAX_IN_HAND = 16 << 20
"""Decoded blocks that are in memory at once while an array is changed, in bytes."""

PUNCH_ALIGN = 4096
"""File systems give back space in pieces of this many bytes, or more."""


def append_rows(store: Store, record: Record, data: DataFile, rows: memoryview) -> Written:
    """Puts rows behind the last one. Returns the new index, and what is free then, for `DataFile.space`."""
    view = View.of(record)
    with naming(store, record, "write"):
        writer = BlockWriter(data, view, _space_for_writing(store, record, data, view))
        _put_rows(writer, view, data, rows)
        new, space = writer.finish(view.nbytes + len(rows))
    return new.index, (new.index, space)


def write_parts(
    store: Store, record: Record, data: DataFile, parts: Parts, *, only_changed: bool = False
) -> Written | None:
    """Puts parts of the stored elements, pairs of position and bytes, over what is there; of those that overlap the
    last counts. With `only_changed`, blocks in which nothing differs stay as they are.

    Returns as `append_rows`; None if nothing was written.
    """
    view = newest_view(store, record, data)
    with naming(store, record, "write"):
        changes = _by_block(view, parts)
        if only_changed:
            changes = _changed(Cursor(store, record, data), changes)
        if not changes:
            return None
        writer = BlockWriter(data, view, _space_for_writing(store, record, data, view))
        _put_changes(writer, view, data, changes)
        new, space = writer.finish(view.nbytes)
    return new.index, (new.index, space)


def _space_for_writing(store: Store, record: Record, data: DataFile, view: View) -> Space:
    """Where blocks can be written, in a file that has room for as much as it has live: or else the disk is waited for,
    and dead bytes are used again."""
    space = Space.known(data, view.index)
    lost = view.index.dead(record.offset) - space.nbytes
    if lost > view.index.live // 2:
        try:
            space = _reclaim(store, record, data, view)
        except BlockFault as fault:
            # What is damaged may be saved yet: nothing is overwritten.
            log.warning("no space is given back: %s", block_error(store, record, fault))
            space = Space()
    # Not before: what is reclaimed was synced, and what is written now is not.
    store.dirty.add(record.file)
    return space


def has_dead_bytes(store: Store, record: Record, data: DataFile) -> bool:
    """Whether there are dead bytes that, as far as is known, were not given back to the file system."""
    if record.codec is None:
        return False
    view = newest_view(store, record, data)
    known = Space.known(data, view.index)
    return view.index.dead(record.offset) > (known.nbytes if known.is_punched else 0)


def punch(store: Store, record: Record, data: DataFile) -> bool:
    """Gives dead bytes of a compressed array back to the file system. Returns whether it could: if not, only a new
    version takes less space."""
    view = newest_view(store, record, data)
    with naming(store, record, "give back space of"):
        space = _reclaim(store, record, data, view)
    data.space = (view.index, space)
    return space.is_punched


def _reclaim(store: Store, record: Record, data: DataFile, view: View) -> Space:
    """Finds what is dead in a data file, for good: brings the commits that made it so to the disk.

    Returns what is free then, and gives it back to the file system meanwhile, if that can take it.
    """
    writers.poisoning(store, "sync", record.file, data.file.sync)
    writers.sync_all(store)
    live = [(pointer.offset, view.reserved_len(pointer)) for _, pointer in walk(data, view)]
    space = Space.between(live, view.start, view.index)
    for offset, length in space.free:
        # Of a part of a page, nothing is given back.
        start = -(-offset // PUNCH_ALIGN) * PUNCH_ALIGN
        end = (offset + length) // PUNCH_ALIGN * PUNCH_ALIGN
        if start < end and not data.file.punch(start, end - start):
            return space
    space.is_punched = True
    return space


def _put_rows(writer: BlockWriter, view: View, data: DataFile, rows: Any) -> None:
    block_len, tail_len, tail = view.block_len, view.tail_len, view.index.tail
    if tail_len + len(rows) < block_len and tail.kind == OPEN_TAIL:
        writer.extend_tail(rows)
        return
    raw = b""
    if tail_len:
        try:
            raw = bytes(read_pointer(data, view, tail, tail_len))
        except BlockFault as fault:
            raise fault.of(view.n_full) from None
    missing = min(len(rows), block_len - tail_len)
    raw += rows[:missing]
    if len(raw) < block_len:
        writer.put_tail(raw, grows=True)
        return
    rest = rows[missing:]
    full = len(rest) - len(rest) % block_len
    writer.put_full(view.n_full, raw)
    writer.put_full(view.n_full + 1, rest[:full])
    writer.put_tail(rest[full:], grows=True)


def _by_block(view: View, parts: Parts) -> Changes:
    """What each block gets, in the order given: positions within the block, and bytes."""
    changes: Changes = {}
    for offset, rest in parts:
        while len(rest):
            block, within = divmod(offset, view.block_len)
            now = rest[: view.block_len - within]
            changes.setdefault(block, []).append((within, now))
            offset += len(now)
            rest = rest[len(now) :]
    return changes


def _changed(cursor: Cursor, changes: Changes) -> Changes:
    """Those changes that make a difference."""
    changed = {}
    for block, parts in sorted(changes.items()):
        raw = memoryview(cursor.block(block))
        if any(raw[within : within + len(part)] != part for within, part in parts):
            changed[block] = parts
    return changed


def _put_changes(writer: BlockWriter, view: View, data: DataFile, changes: Changes) -> None:
    """Puts parts of blocks over what is there."""
    block_len = view.block_len
    tail = changes.pop(view.n_full, None)
    blocks = sorted(changes)
    n_at_once = max(1, MAX_IN_HAND // block_len)
    for at in range(0, len(blocks), n_at_once):
        some = blocks[at : at + n_at_once]
        # Blocks that follow each other are written in order.
        for _, numbered in groupby(enumerate(some), lambda of: of[1] - of[0]):
            run = [block for _, block in numbered]
            raw = b"".join([_overlaid(view, data, block, changes[block]) for block in run])
            writer.put_full(run[0], raw)
    if tail is not None:
        writer.put_tail(_overlaid(view, data, view.n_full, tail), grows=view.index.tail.kind == OPEN_TAIL)


def _overlaid(view: View, data: DataFile, block: int, parts: list[tuple[int, Any]]) -> bytearray:
    """A block as it is after its parts are put over it."""
    raw_len = view.raw_len(block)
    if any(len(part) == raw_len for _, part in parts):
        raw = bytearray(raw_len)
    else:
        try:
            raw = bytearray(read_block(data, view, block))
        except BlockFault as fault:
            raise fault.of(block) from None
    for within, part in parts:
        raw[within : within + len(part)] = part
    return raw
