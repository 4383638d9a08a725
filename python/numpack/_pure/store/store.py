"""An open store: looks arrays up, and keeps what its commits need."""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_module
import threading
import weakref

import numpy as np

from numpack._pure.format import names
from numpack._pure.format.manifest import Change, Record
from numpack._pure.format.upstream import OLD_TABLE
from numpack._pure.store import error as errors
from numpack._pure.store import upstream, writer
from numpack._pure.store.array import Array
from numpack._pure.store.data import DataFiles
from numpack._pure.store.log import ManifestLog
from numpack._pure.sys.lock import WritersLock
from numpack._pure.sys.storage import Directory, File


class Store:
    """An open store. Threads may share it."""

    def __init__(self, directory: Directory, manifest: ManifestLog, *, writable: bool) -> None:
        self.directory = directory
        self.manifest = manifest
        self.writable = writable
        self.durable = False
        self.files = DataFiles(directory, writable=writable)
        self.lock = WritersLock(directory, names.LOCK)
        # Data files that were written since the last sync, and whether names were given since.
        self.dirty: set[str] = set()
        self.names_dirty = True
        self.poison: errors.Poison | None = None
        # Whether leftovers of writers that died were looked for.
        self.is_swept = False
        # Held by the thread that changes the manifest, or reads what others did to it.
        self.following = threading.RLock()
        _STORES.add(self)

    @property
    def path(self) -> str:
        """The path that the store was opened with."""
        return self.directory.path

    @classmethod
    def open(cls, path: str, *, writable: bool) -> Store:
        """Open the store at ``path``."""
        directory = open_directory(path)
        return cls(directory, ManifestLog.load(directory, writable=writable), writable=writable)

    @classmethod
    def open_or_create(cls, path: str) -> Store:
        """Open the store at ``path`` for writing; create it where nothing is."""
        try:
            return cls.open(path, writable=True)
        except (FileNotFoundError, errors.NoManifest):
            pass
        try:
            os.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise errors.not_a_directory(path) from None
        except OSError as error:
            raise errors.io_error("create", path, error) from error
        directory = open_directory(path)
        lock = WritersLock(directory, names.LOCK)
        holding = _Locking(path, lock)
        writer.take(holding, lock.take)
        try:
            try:
                manifest = ManifestLog.load(directory, writable=True)
            except errors.NoManifest:
                manifest = ManifestLog.create(directory, writer.new_store_id())
        finally:
            lock.give_back()
            lock.close()
        return cls(directory, manifest, writable=True)

    @property
    def is_durable(self) -> bool:
        """Whether what is written must be on the disk before it counts. Of a host whose locks do not keep out others,
        these may see nothing earlier."""
        return self.durable or not self.directory.place.has_far_locks

    def refresh(self, *, thorough: bool = False) -> None:
        """Pick up the commits of others; costs next to nothing when there are none."""
        if not thorough and self.manifest.is_fresh():
            return
        with self.following:
            if self.manifest.catch_up(self.note_change, locked=False):
                self.names_dirty = True

    def record(self, name: str) -> Record:
        """The record of an array, as of the last refresh."""
        record = self.manifest.table.get(name)
        if record is None:
            raise errors.not_found(self.path, name)
        return record

    def current(self, name: str) -> Record:
        """The newest record of an array."""
        self.refresh()
        return self.record(name)

    def array(self, name: str) -> Array:
        """The newest state of an array, with its data file open."""
        self.refresh()
        seen = None
        while True:
            record = self.record(name)
            try:
                return Array(self, record, self.files.get(record))
            except FileNotFoundError:
                # Somebody may have overwritten the array since the refresh, and have removed its file.
                if seen == record.id:
                    raise errors.data_file(self.path, name, record.file, "is missing") from None
                seen = record.id
                self.refresh(thorough=True)

    def array_of(self, record: Record) -> Array:
        """An array as its record has it."""
        try:
            return Array(self, record, self.files.get(record))
        except FileNotFoundError:
            raise errors.data_file(self.path, record.name, record.file, "is missing") from None

    def new_file(self) -> File:
        """An empty file that has no name yet."""
        try:
            return self.directory.create_unnamed()
        except OSError as error:
            raise errors.io_error("create a file in", self.path, error) from error

    def check_writable(self) -> None:
        """Refuse to write where that is known to be in vain."""
        if self.manifest.upstream is not None:
            # Unless it was upgraded since.
            self.refresh(thorough=True)
        if self.manifest.upstream is not None:
            raise errors.old_layout(self.path, self.manifest.upstream)
        if not self.writable:
            raise errors.read_only(self.path)
        if self.poison is not None:
            raise self.poison.error()

    def check_free(self, name: str) -> None:
        """Refuse a name that an array has."""
        if name in self.manifest.table:
            raise errors.exists(self.path, name)

    def note_change(self, change: Change) -> None:
        """What somebody else did."""
        writer.note(self, change, is_own=False)

    def note_change_of_ours(self, change: Change) -> None:
        """What a commit of this store did."""
        writer.note(self, change, is_own=True)


class _Locking:
    """What `writer.take` needs to know of a store that is not there yet."""

    def __init__(self, path: str, lock: WritersLock) -> None:
        self.path = path
        self.lock = lock


# All that are open in this process.
_STORES: weakref.WeakSet[Store] = weakref.WeakSet()


def _forget_threads() -> None:
    """In a forked process: the threads that held locks are not there."""
    for store in _STORES:
        store.lock.after_fork()
        if not store.following.acquire(blocking=False):
            # One of them was changing what is known of the manifest, and is not there to finish that.
            store.files = DataFiles(store.directory, writable=store.writable)
            with contextlib.suppress(OSError, ValueError):
                store.manifest = ManifestLog.load(store.directory, writable=store.writable)
        store.following = threading.RLock()


os.register_at_fork(after_in_child=_forget_threads)


def open_directory(path: str) -> Directory:
    """The directory at ``path``."""
    try:
        return Directory(path)
    except FileNotFoundError:
        raise errors.missing(path) from None
    except NotADirectoryError:
        raise errors.not_a_directory(path) from None
    except OSError as error:
        raise errors.io_error("open", path, error) from error


def open_as_possible(path: str) -> Store:
    """Open the store at ``path`` for writing, create it if there is none, or open it for reading where that is all we
    may do."""
    try:
        return Store.open_or_create(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        try:
            return Store.open(path, writable=False)
        except Exception:
            raise error from None


def remove_all(path: str) -> None:
    """Delete what is at ``path``, if it is a store of any release, or a plain file."""
    try:
        stat = os.lstat(path)
    except FileNotFoundError:
        return
    if stat_module.S_ISREG(stat.st_mode):
        os.unlink(path)
        return
    directory = open_directory(path)
    files = [file for file in directory.list() if _is_own(file)]
    if files:
        lock = WritersLock(directory, names.LOCK)
        writer.take(_Locking(path, lock), lock.take)
        try:
            old_table = upstream.table_in(directory)
            try:
                ManifestLog.load(directory, writable=True).retire()
            except (OSError, ValueError):
                pass
            # The manifest goes first, so that a crash leaves no store with missing files; the lock goes last.
            for file in sorted(files, key=lambda file: (file == names.LOCK, not file.startswith(names.MANIFEST))):
                try:
                    directory.remove(file)
                except FileNotFoundError:
                    continue
            if old_table is not None:
                upstream.remove_files(directory, old_table)
            directory.sweep_temporaries()
        finally:
            lock.give_back()
            lock.close()
    try:
        os.rmdir(path)
    except OSError:
        # Foreign files stay, and the folder with them; so does a link to the folder.
        pass


def _is_own(file: str) -> bool:
    return names.is_data_file(file) or file in (names.MANIFEST, names.MANIFEST_BACKUP, names.LOCK, OLD_TABLE)


def as_rows(rows: slice | np.ndarray, n_rows: int) -> np.ndarray:
    """Row numbers of a slice."""
    return np.arange(n_rows)[rows] if isinstance(rows, slice) else rows
