"""Changes to compressed arrays, and their space: rows appended or written in place become new blocks, and one commit
leads to them.

The functions take a data file, as `blocks` says, that can also `write_at(bytes, offset)` and `punch(offset, length)`,
and has a `space`. Who calls them holds the writers' lock, and commits what they return.
"""

from itertools import groupby

from ..format.block_index import Slot
from ..format.codec import OPEN_TAIL
from .block_writer import BlockWriter, Space
from .blocks import BlockFault, file_header, read_block, read_pointer, walk

MAX_IN_HAND = 16 << 20
"""Decoded blocks that are in memory at once while an array is changed, in bytes."""

PUNCH_ALIGN = 4096
"""File systems give back space in pieces of this many bytes, or more."""


def append_rows(data, view, space, rows):
    """Puts rows, a contiguous buffer, behind the last one. Returns the new state and what is free then."""
    rows = memoryview(rows).cast("B")
    writer = BlockWriter(data, view, space)
    _put_rows(writer, view, data, rows)
    return writer.finish(view.nbytes + len(rows))


def write_parts(data, view, space, parts):
    """Puts parts of the stored elements, pairs of position and bytes, over what is there; of those that overlap the
    last counts. Returns the new state and what is free then."""
    writer = BlockWriter(data, view, space)
    _put_parts(writer, view, data, parts)
    return writer.finish(view.nbytes)


def space_for_writing(data, view, npy_len, sync):
    """Where blocks can be written, in a file that has room for as much as it has live: or else the disk is waited for,
    and dead bytes are used again. `sync` takes the data file, and every commit so far, to the disk."""
    space = Space.known(data, view.index)
    lost = view.index.dead(npy_len) - len(space)
    if lost > view.index.live // 2:
        try:
            space = reclaim(data, view, sync)
        except BlockFault:
            # What is damaged may be saved yet: nothing is overwritten.
            space = Space()
    return space


def has_dead_bytes(data, view, npy_len):
    """Whether there are dead bytes that, as far as is known, were not given back to the file system."""
    known = Space.known(data, view.index)
    return view.index.dead(npy_len) > (len(known) if known.is_punched else 0)


def reclaim(data, view, sync):
    """Finds what is dead in a data file, for good: brings the commits that made it so to the disk by `sync`.

    Returns what is free then, and gives it back to the file system meanwhile, if that can take it. Raises `BlockFault`.
    """
    sync()
    live = [(pointer.offset, view.reserved_len(pointer)) for _, pointer in walk(data, view)]
    space = Space.between(live, view.start, view.index)
    for offset, length in space.free:
        # Of a part of a page, nothing is given back.
        start = -(-offset // PUNCH_ALIGN) * PUNCH_ALIGN
        end = (offset + length) // PUNCH_ALIGN * PUNCH_ALIGN
        if start < end and not data.punch(start, end - start):
            return space
    space.is_punched = True
    return space


def write_slot(data, nbytes, index):
    """Notes the newest index in a data file's own header."""
    newest, offset = Slot.newest(file_header(data))
    sequence = 0 if newest is None else newest.sequence + 1
    data.write_at(Slot(sequence, nbytes, index).to_bytes(), offset)


def is_slot_current(data, index):
    """Whether a data file's own header has this index."""
    newest, _ = Slot.newest(file_header(data))
    return newest is not None and newest.index == index


def _put_rows(writer, view, data, rows):
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


def _put_parts(writer, view, data, parts):
    block_len = view.block_len
    changes = {}  # what each block gets, in the order given
    for offset, part in parts:
        rest = memoryview(part).cast("B")
        while len(rest):
            block, within = divmod(offset, block_len)
            now = rest[: block_len - within]
            changes.setdefault(block, []).append((within, now))
            offset += len(now)
            rest = rest[len(now) :]
    tail = changes.pop(view.n_full, None)
    blocks = sorted(changes)
    n_at_once = max(1, MAX_IN_HAND // block_len)
    for at in range(0, len(blocks), n_at_once):
        some = blocks[at : at + n_at_once]
        # Blocks that follow each other are written in order.
        for _, run in groupby(enumerate(some), lambda of: of[1] - of[0]):
            run = [block for _, block in run]
            raw = b"".join([_overlaid(view, data, block, changes[block]) for block in run])
            writer.put_full(run[0], raw)
    if tail is not None:
        raw = _overlaid(view, data, view.n_full, tail)
        writer.put_tail(raw, grows=view.index.tail.kind == OPEN_TAIL)


def _overlaid(view, data, block, parts):
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
