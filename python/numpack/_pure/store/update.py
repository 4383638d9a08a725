"""Changes to a store: new versions, rows, names, attributes. Each costs what it changes.

Only a Fortran-ordered array is rewritten, in C-order, when rows are appended or dropped: its rows are not contiguous. So
is one whose header has no room for the new shape.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import time
from typing import Any
from collections.abc import Callable, Iterator

import numpy as np

from numpack import _rows
from numpack._dtypes import Descr
from numpack._pure.format import bitmap, names, npy
from numpack._pure.format import dtype as dtypes
from numpack._pure.format.codec import Codec, Compression
from numpack._pure.format.error import BadDtype, FormatError
from numpack._pure.format.layout import Layout, layout_of
from numpack._pure.format.manifest import Attrs, Op, Record, check_attrs
from numpack._pure.store import error as errors
from numpack._pure.store import writer
from numpack._pure.store.array import Array
from numpack._pure.store.compressed import append_rows, has_dead_bytes, punch, write_parts
from numpack._pure.store.data import MAX_RECENT, bytes_of, shaped
from numpack._pure.store.in_turn import MAX_UNNAMED, save_in_turn
from numpack._pure.store.new_blocks import with_filter
from numpack._pure.store.stage import Stage, read_elements, stage, stage_copy, stage_rows
from numpack._pure.store.store import Store
from numpack._pure.store.writer import Commit, Staged, writing
from numpack._pure.sys.lock import WouldBlock, set_lock, wait
from numpack._pure.sys.storage import File


def compression_of(codec: Codec | None) -> Compression | None:
    """The compression that an array has."""
    return None if codec is None else Compression(*codec)


def describe(name: str, array: np.ndarray) -> tuple[Descr, Layout]:
    """The description and layout of an array that is to be stored, which is contiguous."""
    try:
        names.check(name)
        descr = dtypes.from_numpy(array.dtype)
        is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        return descr, layout_of(array.shape, is_fortran, array.dtype.itemsize)
    except BadDtype as error:
        raise _rows.unstorable(name, array.dtype, str(error)) from None
    except FormatError as error:
        raise errors.refused(error) from None


def save(store: Store, arrays: dict[str, np.ndarray], compression: Compression | None) -> None:
    """Save arrays, all or none, replacing those that have these names."""
    store.check_writable()
    stages = _stages(store, arrays, dict.fromkeys(arrays, compression))
    with Commit() as commit:
        if len(stages) <= MAX_UNNAMED:
            commit.staged.extend(stage() for stage in stages.values())
        if stages:
            with writing(store):
                _commit_stages(store, commit, stages)


def _stages(
    store: Store, arrays: dict[str, np.ndarray], compressions: dict[str, Compression | None]
) -> dict[str, Callable[[], Staged]]:
    """What writes each array to a file; those that cannot be stored are refused here."""
    described = {name: (array, *describe(name, array)) for name, array in arrays.items()}
    return {
        name: functools.partial(stage, store, name, array, descr, layout, compressions[name])
        for name, (array, descr, layout) in described.items()
    }


def _commit_stages(store: Store, commit: Commit, stages: dict[str, Callable[[], Staged]]) -> None:
    """Commit arrays that are staged already, unless they are too many for that, with the writers' lock held."""
    if len(stages) > MAX_UNNAMED:
        save_in_turn(store, commit, stages)
    else:
        writer.commit(store, commit)


def change(
    store: Store,
    arrays: dict[str, np.ndarray],
    remove: list[str],
    compression: Compression | None,
    compressions: dict[str, Compression | None],
    attrs: dict[str | None, tuple[Attrs, list[str]]],
) -> None:
    """Save arrays, remove others, and set and remove attributes, in one commit.

    Those in ``compressions`` are compressed so, others like the array that has their name, or as ``compression`` says.
    """
    store.check_writable()
    for added, _ in attrs.values():
        _check_attrs(added)
    store.refresh()
    hows = {}
    for name in arrays:
        old = store.manifest.table.get(name)
        how = compression if old is None else compression_of(old.codec)
        hows[name] = compressions.get(name, how)
    stages = _stages(store, arrays, hows)
    with Commit() as commit:
        if len(stages) <= MAX_UNNAMED:
            commit.staged.extend(stage() for stage in stages.values())
        with writing(store):
            doomed = [name for name in dict.fromkeys(remove) if name not in arrays and name in store.manifest.table]
            commit.ops = [{"delete": name} for name in doomed]
            # The store's first.
            for of in sorted(attrs, key=lambda of: (of is not None, (of or "").encode())):
                if of is not None and of not in arrays:
                    store.record(of)
                commit.last_ops.append({"attrs": (of, *attrs[of])})
            _commit_stages(store, commit, stages)


def create(
    store: Store, name: str, dtype: np.dtype, shape: tuple[int, ...], compression: Compression | None
) -> None:
    """Add an array of zeros, in C-order, that takes no space before something is written to it."""
    store.check_writable()
    try:
        names.check(name)
        store.refresh()
        store.check_free(name)
        descr = dtypes.from_numpy(dtype)
        layout = layout_of(shape, False, dtype.itemsize)
        header = npy.encode(descr, layout)
    except FormatError as error:
        raise errors.refused(error) from None
    with Stage(store, name, descr, layout, header, compression) as new, Commit() as change:
        change.staged.append(new.finish(zeros=True))
        with writing(store):
            store.check_free(name)
            writer.commit(store, change)


def copy_array(store: Store, source: str, target: str) -> None:
    """Add a copy of an array, without its dropped rows, compressed and with attributes like it."""
    store.check_writable()
    array = store.array(source)
    try:
        names.check(target)
    except FormatError as error:
        raise errors.refused(error) from None
    store.check_free(target)
    with Commit([stage_copy(store, array, target, compression_of(array.record.codec))]) as change:
        change.staged[0].attrs = array.record.attrs
        with writing(store):
            store.check_free(target)
            writer.commit(store, change)


def remove(store: Store, doomed: list[str]) -> None:
    """Remove arrays. Missing ones are ignored."""
    with writing(store):
        there = [name for name in dict.fromkeys(doomed) if name in store.manifest.table]
        writer.commit(store, Commit(ops=[{"delete": name} for name in there]))


def clear(store: Store) -> None:
    """Remove all arrays."""
    with writing(store):
        doomed = store.manifest.table.names()
        writer.commit(store, Commit(ops=[{"delete": name} for name in doomed]))


def set_attrs(store: Store, name: str | None, added: Attrs, removed: list[str]) -> None:
    """Set and remove attributes of an array, or of the store."""
    _check_attrs(added)
    with writing(store):
        if name is not None:
            store.record(name)
        writer.commit(store, Commit(ops=[{"attrs": (name, added, removed)}]))


def _check_attrs(attrs: Attrs) -> None:
    try:
        check_attrs(attrs)
    except FormatError as error:
        raise errors.refused(error) from None


def check_rows(record: Record, rows: np.ndarray) -> None:
    """Check that rows have the dtype and the row shape of an array."""
    if not record.shape:
        raise errors.no_rows(record.name)
    if rows.ndim != len(record.shape) or rows.shape[1:] != record.shape[1:]:
        raise errors.shape_mismatch(record.name, rows.shape, record.shape)
    found = dtypes.from_numpy(rows.dtype)
    if found != record.descr:
        raise errors.dtype_mismatch(record.name, found, record.descr)


def append(store: Store, arrays: dict[str, np.ndarray]) -> None:
    """Append rows to arrays, to all or none. Never moves the rows that are there."""
    with writing(store), Commit() as change:
        records = {name: store.record(name) for name in arrays}
        for name, rows in arrays.items():
            check_rows(records[name], rows)
        for name, rows in arrays.items():
            if len(rows):
                _append_rows(store, records[name], rows, change)
        writer.commit(store, change)


def _append_rows(store: Store, record: Record, rows: np.ndarray, change: Commit) -> None:
    n_stored = record.layout.n_rows + len(rows)
    try:
        layout = record.layout.with_rows(n_stored)
    except FormatError as error:
        raise errors.refused(error) from None
    array = store.array_of(record)
    if record.layout.fortran_order or npy.encode_within(record.descr, layout, record.offset) is None:
        # No room for the rows or for the header: the array moves to a new file.
        change.locked.append(lock_data(store, record, fcntl.F_WRLCK))
        staged = stage_rows(store, array, record.name, None, compression_of(record.codec), rows)
        change.staged.append(staged)
        change.moves_rows = True
        return
    if record.codec is not None:
        index, space = append_rows(store, record, array.data, bytes_of(rows))
        change.ops.append({"blocks": (record.name, n_stored, index)})
        # What is not kept is found again; what is keeps the file open.
        if len(change.spaces) < MAX_RECENT:
            change.spaces.append((array.data, space))
    else:
        store.dirty.add(record.file)
        try:
            _write(store, record, array.data.file, bytes_of(rows), record.data_end)
        except OSError:
            writer.cut_uncommitted(record, array.data)
            raise
        change.ops.append({"rows": (record.name, n_stored)})
    change.headers.append(record.name)


def _write(store: Store, record: Record, file: File, data: Any, offset: int) -> None:
    try:
        file.write(data, offset)
    except OSError as error:
        raise errors.io_error("write", os.path.join(store.path, record.file), error) from error


def replace(store: Store, name: str, rows: np.ndarray, values: np.ndarray, *, only_changed: bool = False) -> None:
    """Replace rows in place; of rows named twice, the last counts."""
    with writing(store):
        record = store.record(name)
        check_rows(record, values)
        if len(values) != len(rows):
            raise ValueError(f'array "{name}": {len(values)} rows given for {len(rows)} indexes')
        _check_range(record, rows)
        _write_elements(store, record, rows, values, only_changed=only_changed)
        if store.is_durable:
            writer.sync_all(store)
        _tell_written(store, record)


def _check_range(record: Record, rows: np.ndarray) -> None:
    beyond = rows[rows >= record.n_rows]
    if len(beyond):
        raise errors.row_out_of_range(record.name, int(beyond[0]), record.n_rows)


def _write_elements(
    store: Store, record: Record, rows: np.ndarray, values: np.ndarray, *, only_changed: bool
) -> None:
    if values.nbytes == 0:
        return
    stored = rows if record.live is None else record.live[rows]
    data = store.array_of(record).data
    if record.codec is None:
        store.dirty.add(record.file)
        for offset, part in _parts(record, stored, values):
            _write(store, record, data.file, part, record.offset + offset)
        return
    written = write_parts(store, record, data, _parts(record, stored, values), only_changed=only_changed)
    if written is None:
        return
    index, space = written
    ops = [{"blocks": (record.name, record.layout.n_rows, index)}]
    writer.commit(store, Commit(ops=ops, headers=[record.name], spaces=[(data, space)]))


def _parts(record: Record, stored: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, memoryview]]:
    """Where the bytes of rows go in the stored elements."""
    breaks = np.flatnonzero(np.diff(stored) != 1) + 1
    for run, part in zip(np.split(stored, breaks), np.split(values, breaks), strict=True):
        if not len(run):
            continue
        first = int(run[0])
        if not record.layout.fortran_order:
            yield first * record.layout.row_len, bytes_of(np.ascontiguousarray(part))
            continue
        # Of each column of a Fortran-ordered array, the rows are contiguous.
        columns = np.ascontiguousarray(part.reshape(len(run), -1, order="F").T)
        column_len = record.layout.n_rows * record.layout.itemsize
        for column, items in enumerate(columns):
            yield column * column_len + first * record.layout.itemsize, bytes_of(items)


def _tell_written(store: Store, record: Record) -> None:
    """Tell those who watch that elements were written in place."""
    # Of blocks, the commit itself tells.
    if record.codec is None and store.lock.is_watched and store.manifest.table.get(record.name) is not None:
        writer.commit(store, Commit(ops=[{"written": record.name}]))


def write_rows(store: Store, name: str, start: int, values: np.ndarray) -> None:
    """Write rows over those from ``start`` on. Any number of processes may do so at once, if no row is written by two."""
    store.check_writable()
    with contextlib.ExitStack() as locked:
        if not _write_region(store, name, start, values, locked):
            return
    # Who begins to watch from now on sees what was written.
    if store.lock.is_watched_now():
        tell_written(store, name)


def _write_region(
    store: Store, name: str, start: int, values: np.ndarray, locked: contextlib.ExitStack
) -> bool:
    """Write rows with the data file locked, until ``locked`` ends. Returns whether nobody who watches knows of it."""
    file: File | None = None
    locked_name = None
    seen = None
    while True:
        record = store.current(name)
        check_rows(record, values)
        end = start + len(values)
        if end > record.n_rows:
            raise errors.row_out_of_range(name, max(start, record.n_rows), record.n_rows)
        rows = np.arange(start, end)
        # All who write to one with blocks take turns, and so do all where locks do not keep out other hosts.
        if record.codec is not None or not store.directory.place.has_far_locks:
            replace(store, name, rows, values)
            return False
        if not len(values):
            return False
        if file is not None and locked_name == record.file:
            # Nobody moves the rows any more, and nobody has since the lock was asked for.
            break
        locked.close()
        try:
            file, locked_name = lock_data(store, record, fcntl.F_RDLCK), record.file
            locked.callback(file.close)
        except FileNotFoundError:
            # Overwritten since the refresh, or really missing.
            if seen == record.id:
                raise errors.data_file(store.path, name, record.file, "is missing") from None
            seen = record.id
            store.refresh(thorough=True)
    stored = rows if record.live is None else record.live[rows]
    for offset, part in _parts(record, stored, values):
        _write(store, record, file, part, record.offset + offset)
    if store.is_durable:
        writer.poisoning(store, "sync", record.file, file.sync)
    else:
        store.dirty.add(record.file)
    return True


def tell_written(store: Store, name: str) -> None:
    """Tell those who watch that elements were written in place."""
    with writing(store):
        record = store.manifest.table.get(name)
        if record is not None:
            _tell_written(store, record)


def lock_data(store: Store, record: Record, kind: int) -> File:
    """Lock the data file of an array: shared by those who write regions, alone for those who move the rows.

    It ends when what is returned is closed.
    """
    path = os.path.join(store.path, record.file)
    try:
        file = store.directory.open_file(record.file, writable=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise errors.io_error("open", path, error) from error
    try:
        wait(lambda: set_lock(file.fd, kind, 0, 1) or None, writer.LOCK_TIMEOUT)
    except BaseException as error:
        file.close()
        if isinstance(error, WouldBlock):
            raise errors.locked(store.path, writer.LOCK_TIMEOUT, None) from None
        if isinstance(error, OSError):
            raise errors.io_error("lock", path, error) from error
        raise
    return file


def drop_rows(store: Store, rows_of: dict[str, np.ndarray]) -> None:
    """Drop rows of arrays: they are marked, and `compact` gives their space back."""
    with writing(store), Commit() as change:
        for name in sorted(rows_of, key=str.encode):
            record = store.manifest.table.get(name)
            if record is None:
                continue
            if not record.shape:
                raise errors.no_rows(name)
            rows = np.unique(rows_of[name])
            rows = rows[rows < record.n_rows]
            if not len(rows):
                continue
            layout = record.layout.with_rows(record.n_rows - len(rows))
            if record.layout.fortran_order or npy.encode_within(record.descr, layout, record.offset) is None:
                change.locked.append(lock_data(store, record, fcntl.F_WRLCK))
                kept = np.delete(np.arange(record.n_rows), rows)
                compression = compression_of(record.codec)
                change.staged.append(stage_rows(store, store.array_of(record), name, kept, compression))
                change.moves_rows = True
                continue
            stored = rows if record.live is None else record.live[rows]
            change.ops.append({"drop_rows": (name, bitmap.of_rows(stored))})
        writer.commit(store, change)


def compact(store: Store, name: str) -> bool:
    """Give back the space of dropped rows, and of blocks that were written anew. Returns whether there were any."""
    with writing(store):
        record = store.record(name)
        array = store.array_of(record)
        if not record.deleted:
            if not has_dead_bytes(store, record, array.data):
                return False
            if punch(store, record, array.data):
                return True
        _move(store, array, compression_of(record.codec))
        return True


def recompress(store: Store, name: str, to: Compression | None) -> bool:
    """Store an array anew, compressed or not. Returns whether anything had to be done."""
    with writing(store):
        array = store.array_of(store.record(name))
        record = array.record
        if to is not None:
            to = with_filter(to, record.dtype, record.nbytes, functools.partial(read_elements, array))
        if compression_of(record.codec) == to:
            return False
        _move(store, array, to)
        return True


def _move(store: Store, array: Array, to: Compression | None) -> None:
    """Write an array to a new file."""
    with Commit(moves_rows=True) as change:
        change.locked.append(lock_data(store, array.record, fcntl.F_WRLCK))
        change.staged.append(stage_copy(store, array, array.record.name, to))
        writer.commit(store, change)


def flush(store: Store) -> None:
    """Return when everything that was written through this store is on the disk."""
    with writing(store):
        writer.sync_all(store)


def map_writable(store: Store, name: str) -> np.ndarray | None:
    """The elements over a mapping that can be written to; None if they are compressed."""
    store.check_writable()
    while True:
        array = store.array(name)
        record = array.record
        if record.codec is not None:
            return None
        if not record.deleted:
            break
        compact(store, name)
    store.dirty.add(record.file)
    layout = record.layout
    if layout.nbytes == 0:
        return array.empty(layout.shape)
    mapped = array.data.file.map(record.data_end, writable=True)
    data = np.frombuffer(mapped, np.uint8)[record.offset :]
    return shaped(data, record.dtype, layout.shape, fortran_order=layout.fortran_order)


def tell_mapped(store: Store, name: str) -> None:
    """Let others know that elements were written through a mapping, by now."""
    with writing(store):
        record = store.manifest.table.get(name)
        if record is None or record.codec is not None:
            return
        data = store.array_of(record).data
        with contextlib.suppress(OSError):
            # Not every file system sets it for a write through a mapping.
            os.utime(data.file.fd, ns=(data.file.stat().st_atime_ns, time.time_ns()))
        store.dirty.add(record.file)
        if store.is_durable:
            writer.sync_all(store)
        _tell_written(store, record)
