"""The manifest as a file: reads it, follows the commits of others, appends commits, publishes snapshots.

A `ManifestLog` knows nothing of locks. `append` and `publish` are for the holder of the writers' lock, after `catch_up`
in the same critical section.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import struct
from typing import Any
from collections.abc import Callable

from numpack._pure.format import frame, names
from numpack._pure.format.error import BadMagic, Damaged, FormatError
from numpack._pure.format.manifest import Change, Edit, Op, Record, Table
from numpack._pure.format.upstream import is_data_file, is_table
from numpack._pure.store import error as errors
from numpack._pure.store import upstream
from numpack._pure.sys.storage import Directory, File

# The log may grow to this many bytes beyond twice its snapshot before a new snapshot is published.
MAX_LOG_LEN = 256 << 10
# A reader without a lock may see a torn end being cut off and written anew; it looks again this often.
READ_ATTEMPTS = 3
# Longest manifest that is read.
MAX_MANIFEST_LEN = 1 << 32

Tell = Callable[[Change], None]


def ignore(change: Change) -> None:
    """For who keeps nothing that follows from the table."""


class PublishedLength:
    """The published length in the header of a manifest, through a shared mapping: asked without a system call."""

    def __init__(self, file: File, *, writable: bool) -> None:
        self._map = file.map(frame.HEADER_LEN, writable=writable)
        # Reading and writing one item moves 8 aligned bytes at once.
        self._word = memoryview(self._map)[frame.PUBLISHED_OFFSET : frame.PUBLISHED_OFFSET + 8].cast("Q")

    def load(self) -> int:
        """What it is now."""
        return self._word[0]

    def store(self, length: int) -> None:
        """Set it, for all who have this file open."""
        self._word[0] = length


class ManifestLog:
    """An open manifest and the table that it holds."""

    def __init__(self, directory: Directory, file: File, *, writable: bool) -> None:
        """Read the manifest in ``file``."""
        self._directory = directory
        self._writable = writable
        self._open(file, file.stat())

    def _open(self, file: File, stat: os.stat_result) -> None:
        data = self._read(file, 0, stat.st_size)
        # The layout of the file, if NumPack 0.1 to 0.7 wrote it. Then it is only read, and only as a whole.
        self.upstream: str | None = None
        try:
            self.store_id = frame.parse_header(data)
        except FormatError as error:
            self._open_foreign(file, stat, data, error)
            return
        try:
            log = frame.Log(data[frame.HEADER_LEN :], frame.HEADER_LEN)
            snapshot = next(log, None)
            if snapshot is None:
                needed = frame.HEADER_LEN + frame.FRAME_HEADER.size
                raise FormatError(f"the snapshot needs {needed} bytes, the file has {stat.st_size}")
            refuse = functools.partial(errors.damaged, self._path())
            self.table = Table.decode(snapshot.payload, snapshot.offset, refuse)
            self.end = self._snapshot_end = self.synced_len = snapshot.end
            # Arrays that the last frame of somebody else gave rows or blocks: should he have died before he wrote their
            # headers, the next writer does.
            self.lagging: list[str] = []
            self._fold(log, ignore)
        except FormatError as error:
            raise self._damaged(error) from None
        self._file, self._stat, self._file_len = file, stat, stat.st_size
        is_mappable = stat.st_size >= frame.HEADER_LEN and not self._directory.place.is_shared
        self._published = PublishedLength(file, writable=self._writable) if is_mappable else None

    def _open_foreign(self, file: File, stat: os.stat_result, data: bytes, error: FormatError) -> None:
        """Read a file that does not begin like ours, if NumPack 0.1 to 0.7 wrote it, and tell whose it is if not."""
        if is_overwritten(self._directory, error):
            raise errors.overwritten(self._directory.path)
        if not (isinstance(error, BadMagic) and is_table(data)):
            raise self._damaged(error) from None
        self.table, self.upstream = upstream.load(self._directory, data)
        # Another one each time: what changed between two tables of these nobody can tell.
        self.store_id = secrets.token_bytes(frame.STORE_ID_LEN)
        self.end = self._snapshot_end = stat.st_size
        self.synced_len = 0
        self.lagging = []
        self._file, self._stat, self._file_len = file, stat, stat.st_size
        self._published = None

    @classmethod
    def load(cls, directory: Directory, *, writable: bool) -> ManifestLog:
        """Read the manifest of the store in ``directory``."""
        file = open_manifest(directory, writable=writable)
        for _ in range(READ_ATTEMPTS - 1):
            try:
                return cls(directory, file, writable=writable)
            except errors.CorruptStoreError:
                continue
        return cls(directory, file, writable=writable)

    @classmethod
    def create(cls, directory: Directory, store_id: bytes) -> ManifestLog:
        """Start a manifest without arrays, and publish it."""
        file = write_snapshot(directory, store_id, Table())
        directory.sync()
        return cls(directory, file, writable=True)

    def is_fresh(self) -> bool:
        """Whether it is certain, without asking the system, that nothing was committed since the last catching up, and
        that nothing follows the last frame: a writer takes the published length away before it writes."""
        return self._published is not None and self._published.load() == self.end

    def catch_up(self, tell: Tell, *, locked: bool) -> bool:
        """Read what was committed since. Returns whether it was anything.

        With the lock held (``locked``) what it finds is all there is; without, there may be more by now. Who has the lock
        calls `publish_length` when what writers that died had to do is done.
        """
        if locked and not self._directory.place.has_far_locks:
            self._try("stat", self._file.forget_cached)
        stat = self._file.stat()
        is_retired = self._published is None or self._published.load() == frame.RETIRED
        if is_retired or stat.st_nlink != self._stat.st_nlink:
            try:
                named = self._directory.stat(names.MANIFEST)
            except FileNotFoundError:
                raise without_manifest(self._directory) from None
            is_rewritten = self.upstream is not None and (
                (named.st_size, named.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns)
            )
            if is_rewritten or (named.st_dev, named.st_ino) != (stat.st_dev, stat.st_ino):
                new = ManifestLog.load(self._directory, writable=self._writable)
                tell_difference(self.table, new.table if new.store_id == self.store_id else None, tell)
                self.__dict__.update(new.__dict__)
                return True
            self._stat = stat
        if self.upstream is not None:
            return False
        self._file_len = stat.st_size
        before = self.end
        try:
            self._fold(frame.Log(self._read(self._file, before, max(before, stat.st_size)), before), tell)
        except Damaged as error:
            # Without the lock, a bad frame may be one that is being written.
            if locked:
                raise self._damaged(error) from None
        except FormatError as error:
            raise self._damaged(error) from None
        return self.end > before

    def _fold(self, log: frame.Log, tell: Tell) -> None:
        for entry in log:
            edit = Edit.decode(entry.payload, entry.offset)
            self.table.apply(edit, tell)
            self.lagging = [value[0] for op in edit.ops for key, value in op.items() if key in ("rows", "blocks")]
            self.end = entry.end
            self.synced_len = max(self.synced_len, min(entry.synced_len, entry.end))

    def append(self, time: int, ops: list[Op], tell: Tell, *, durable: bool) -> None:
        """Commit ``ops`` as one frame. With ``durable``, returns when it is on the disk.

        The caller calls `publish_length` when what follows a commit is done. On error nothing was committed, or, if the
        disk failed, nobody knows: the caller must stop writing.
        """
        edit = Edit(self.table.generation + 1, time, ops)
        data = frame.encode(edit.encode(), self.synced_len)
        # From here on, until the commit is complete, everybody must look at the file itself.
        self.retire()
        # Bytes after the last good frame are the torn end of a writer that died. They go before the frame comes: it
        # might be shorter than they are.
        if self._file_len > self.end:
            self._try("truncate", self._file.truncate, self.end)
        self._file_len = self.end + len(data)  # or less, if the next call fails
        self._try("write", self._file.write, data, self.end)
        if durable:
            self._try("sync", self._file.sync)
        self.table.apply(edit, tell)
        self.end += len(data)
        if durable:
            self.synced_len = self.end
        self.lagging = []

    def sync(self) -> None:
        """Make all frames so far durable."""
        if self.synced_len != self.end:
            self._try("sync", self._file.sync)
            self.synced_len = self.end

    def wants_snapshot(self) -> bool:
        """Whether the log has grown so long that a new snapshot is due."""
        return self.end - self._snapshot_end > MAX_LOG_LEN + 2 * self._snapshot_end

    def publish(self) -> None:
        """Replace the manifest by a new file with nothing but a snapshot. The caller syncs the directory before anything
        else is committed."""
        # Readers of the old file must look for the new one from now on; should this fail, they look in vain.
        self.retire()
        file = write_snapshot(self._directory, self.store_id, self.table)
        self.__dict__.update(ManifestLog(self._directory, file, writable=True).__dict__)

    def retire(self) -> None:
        """Let all who have this file open look whether it grew, or whether another one has taken its place."""
        if not self._writable:
            return
        if self._published is not None:
            self._published.store(frame.RETIRED)
        else:
            # Those may have it mapped who serve the file system that this process finds no mapping of.
            self._try("write", self._file.write, struct.pack("<Q", frame.RETIRED), frame.PUBLISHED_OFFSET)

    def publish_length(self) -> None:
        """Tell all who have this file open how long it is, if they see at once what is written to it, and that nothing is
        left to be done: no header, no file to be removed, no torn end. Who knows this length looks no further."""
        if self._writable and self._published is not None and self._file_len == self.end:
            self._published.store(self.end)

    def _read(self, file: File, start: int, end: int) -> bytes:
        if end > MAX_MANIFEST_LEN:
            raise self._damaged(FormatError(f"the manifest claims {end} bytes, the limit is {MAX_MANIFEST_LEN}"))
        try:
            return file.read(end - start, start)
        except OSError as error:
            raise errors.io_error("read", self._path(), error) from error

    def _try(self, action: str, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            raise errors.io_error(action, self._path(), error) from error

    def _path(self) -> str:
        return os.path.join(self._directory.path, names.MANIFEST)

    def _damaged(self, error: FormatError) -> Exception:
        return errors.damaged(self._path(), error)


def open_manifest(directory: Directory, *, writable: bool) -> File:
    """The manifest's file."""
    try:
        return directory.open_file(names.MANIFEST, writable=writable)
    except FileNotFoundError:
        raise without_manifest(directory) from None
    except OSError as error:
        raise errors.io_error("open", os.path.join(directory.path, names.MANIFEST), error) from error


def write_snapshot(directory: Directory, store_id: bytes, table: Table) -> File:
    """A new manifest with nothing but a snapshot, in the place of the old one."""
    snapshot = frame.encode(table.encode(), 0)
    data = frame.encode_header(store_id, frame.HEADER_LEN + len(snapshot)) + snapshot
    path = os.path.join(directory.path, names.MANIFEST)
    action = "create"
    try:
        file = directory.create_unnamed()
        # Who may not read the one before may not read this one either.
        with contextlib.suppress(FileNotFoundError):
            file.resemble(directory.stat(names.MANIFEST))
        action = "write"
        file.write(data, 0)
        action = "sync"
        file.sync()
        action = "replace"
        directory.replace(file, names.MANIFEST)
    except OSError as error:
        raise errors.io_error(action, path, error) from error
    try:
        directory.link_existing(names.MANIFEST, names.MANIFEST_BACKUP)
    except OSError:
        # The second name is a help for people, and not needed.
        pass
    return file


def without_manifest(directory: Directory) -> Exception:
    """What a directory without a manifest is."""
    if any(map(is_data_file, directory.list())):
        return errors.manifest_lost(directory.path)
    return errors.no_manifest(directory.path)


def is_overwritten(directory: Directory, error: FormatError) -> bool:
    """Whether a manifest that does not begin like ours has taken the place of one that did."""
    if not isinstance(error, BadMagic):
        return False
    try:
        head = directory.open_file(names.MANIFEST_BACKUP, writable=False).read(len(frame.MAGIC), 0)
    except OSError:
        return False
    return head == frame.MAGIC


def tell_difference(old: Table, new: Table | None, tell: Tell) -> None:
    """What changed between two tables, when the frames between them are not there any more; None: another store."""
    for was in old.records():
        now: Record | None = None if new is None else new.by_id(was.id)
        if now is None:
            tell(Change(was.id, "removed"))
        elif (was.layout, was.deleted, was.mtime, was.index) != (now.layout, now.deleted, now.mtime, now.index):
            tell(Change(was.id, "written"))
