"""Writes a store of NumPack 0.1 to 0.7 as one of the npk format: in its place, or somewhere else.

In its place, the rename of the new manifest over the table is the one moment at which the store turns from old to new.
Before it, new files are there besides, and the intent in the lock file names them; after it, old files are there besides,
and the copy of the table names them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os

from numpack._pure.format import names
from numpack._pure.format.codec import Compression
from numpack._pure.format.error import FormatError
from numpack._pure.format.manifest import Edit, Record, Table
from numpack._pure.format.upstream import OLD_TABLE, deleted_file, is_segmented, parse_table
from numpack._pure.store import error as errors
from numpack._pure.store import upstream, writer
from numpack._pure.store.new_blocks import with_filter
from numpack._pure.store.stage import read_elements, stage_copy
from numpack._pure.store.store import Store, remove_all
from numpack._pure.store.writer import Commit, writing
from numpack._pure.sys.storage import Directory

# Inode, length and time of the last change of a file; None: it is not there.
Look = dict[str, tuple[int, int, int] | None]


def in_place(path: str, compression: Compression | None) -> bool:
    """Upgrade the store at ``path`` in its place. Returns whether it was an old one.

    Whatever goes wrong, also if the machine loses power, the store is the old one or the new one, and a second upgrade
    does what is left to do.
    """
    store = Store.open(path, writable=False)
    writer.take(store, store.lock.take)
    try:
        store.refresh(thorough=True)
        if store.manifest.upstream is None:
            _remove_old_files(store)
            return False
        writer.finish_intent(store)
        records = store.manifest.table.records()
        before = _look(store, records)
        _check_readable(store, records)
        files = _free_files(store.directory, records)
        _intend(store, files)
        try:
            new = _write_all(store, store, records, files, compression)
            _copy_table(store.directory)
            _check_unchanged(store, before)
        except BaseException:
            writer.end_intent(store, files)
            # The next upgrade makes it anew.
            with contextlib.suppress(OSError):
                store.directory.remove(OLD_TABLE)
            raise
        manifest = store.manifest
        manifest.table = Table(functools.partial(errors.damaged, os.path.join(path, names.MANIFEST)))
        manifest.table.apply(Edit(1, 0, [{"put": record} for record in new]), lambda change: None)
        manifest.publish()
        _sync(store.directory)
        writer.end_intent(store, [])
        _remove_old_files(store)
        return True
    finally:
        store.lock.give_back()


def copy_to(path: str, target: str, compression: Compression | None) -> None:
    """Write the store at ``path`` as a new one at ``target``, in one commit; nothing but an empty store may be there."""
    store = Store.open(path, writable=False)
    if store.manifest.upstream is None:
        raise ValueError(f"{path}: is of this release already; nothing was written; copy it with cp -r")
    records = store.manifest.table.records()
    before = _look(store, records)
    _check_readable(store, records)
    is_new = not os.path.lexists(target)
    try:
        new = Store.open_or_create(target)
        if new.manifest.upstream is not None:
            raise errors.store_exists(target)
        new.durable = True
        with writing(new):
            # An upgrade that was killed left it empty.
            if new.manifest.table.generation:
                raise errors.store_exists(target)
            files = _free_files(new.directory, records)
            _intend(new, files)
            try:
                written = _write_all(store, new, records, files, compression)
                _check_unchanged(store, before)
            except BaseException:
                writer.end_intent(new, files)
                raise
            new.names_dirty = True
            writer.commit(new, Commit(ops=[{"put": record} for record in written]))
            writer.end_intent(new, [])
    except BaseException:
        if is_new:
            # What was begun is nothing that anybody wants.
            with contextlib.suppress(OSError, ValueError):
                remove_all(target)
        raise


def _look(store: Store, records: list[Record]) -> Look:
    """What the files of a store look like."""

    def of(stat: os.stat_result) -> tuple[int, int, int]:
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    found: Look = {}

    def note(name: str) -> None:
        try:
            found[name] = of(store.directory.stat(name))
        except (OSError, ValueError):
            found[name] = None

    note(names.MANIFEST)
    for record in records:
        note(deleted_file(record.name))
        note(record.file)
        if is_segmented(record.file):
            # Of segments, only who opens them knows.
            store.files.forget(record.id)
            with contextlib.suppress(OSError, errors.CorruptStoreError):
                found[f"segments of {record.name}"] = of(store.array_of(record).data.file.stat())
    return found


def _check_unchanged(store: Store, before: Look) -> None:
    """Refuse to go on if an old release has written to the store since."""
    store.refresh(thorough=True)
    now = _look(store, store.manifest.table.records())
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise errors.changed_meanwhile(os.path.join(store.path, name))


def _check_readable(store: Store, records: list[Record]) -> None:
    """Fail if an array cannot be read."""
    for record in records:
        store.array_of(record)


def _free_files(directory: Directory, records: list[Record]) -> list[str]:
    """Files of new versions of all arrays, where no file is yet."""
    taken = set(directory.list())
    ids = itertools.count(1)
    files = []
    for record in records:
        named = (names.data_file(record.name, array_id) for array_id in ids)
        files.append(next(file for file in named if file not in taken))
    return files


def _id_of(file: str) -> int:
    return int(file.removesuffix(".npkd").rpartition("~")[2])


def _intend(store: Store, files: list[str]) -> None:
    """Say which files come, and return when that is on the disk: they may be many, and long."""
    writer.write_intent(store, "\n".join(files))
    try:
        store.directory.open_file(names.LOCK, writable=True).sync()
    except OSError as error:
        raise errors.io_error("sync", os.path.join(store.path, names.LOCK), error) from error
    _sync(store.directory)


def _sync(directory: Directory) -> None:
    try:
        directory.sync()
    except OSError as error:
        raise errors.io_error("sync", directory.path, error) from error


def _write_all(
    store: Store, to: Store, records: list[Record], files: list[str], compression: Compression | None
) -> list[Record]:
    """Write arrays to ``files`` of another store, one after the other, and return their records there."""
    written = []
    for record, file in zip(records, files, strict=True):
        array = store.array_of(record)
        how = compression
        if how is not None:
            how = with_filter(how, record.dtype, record.nbytes, functools.partial(read_elements, array))
        with Commit([stage_copy(to, array, record.name, how)]) as change:
            staged = change.staged[0]
            # For a file system without permissions or times, these are not worth failing.
            stat = array.data.file.stat()
            with contextlib.suppress(OSError):
                os.fchmod(staged.file.fd, stat.st_mode & 0o7777)
                os.utime(staged.file.fd, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            action = "sync"
            try:
                staged.file.sync()
                action = "create"
                to.directory.link(staged.file, file)
            except OSError as error:
                raise errors.io_error(action, os.path.join(to.path, file), error) from error
        written.append(
            Record(
                name=record.name,
                id=_id_of(file),
                file=file,
                descr=staged.descr,
                layout=staged.layout,
                offset=staged.offset,
                codec=staged.codec,
                index=staged.index,
                mtime=record.mtime,
            )
        )
    _sync(to.directory)
    return written


def _copy_table(directory: Directory) -> None:
    """Keep a copy of the table, which says what the old files are called."""
    path = os.path.join(directory.path, OLD_TABLE)
    try:
        table = directory.open_file(names.MANIFEST, writable=False)
        data = table.read(table.stat().st_size, 0)
        file = directory.create_unnamed()
        file.write(data, 0)
        file.sync()
        directory.replace(file, OLD_TABLE)
    except OSError as error:
        raise errors.io_error("copy to", path, error) from error
    _sync(directory)


def _remove_old_files(store: Store) -> None:
    """Remove the files of the store that this one has taken the place of, if there are any. What cannot be removed is left
    to another upgrade."""
    directory = store.directory
    path = os.path.join(directory.path, OLD_TABLE)
    try:
        table = directory.open_file(OLD_TABLE, writable=False)
        data = table.read(table.stat().st_size, 0)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        raise errors.io_error("read", path, error) from error
    try:
        arrays = parse_table(data).arrays
    except FormatError as error:
        raise errors.damaged(path, error) from None
    upstream.remove_files(directory, arrays, live={record.file for record in store.manifest.table.records()})
    try:
        directory.remove(OLD_TABLE)
    except OSError as error:
        raise errors.io_error("remove", path, error) from error
    _sync(directory)
