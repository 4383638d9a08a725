"""Commits: what happens between taking the writers' lock and releasing it, in the one order that a crash may cut
anywhere.

A new version of an array is written whole into a file without a name before the lock is taken. Then, with the lock: the
intent (which files come and go), the names of new files, the frame (the commit), headers, the removal of superseded
files, the end of the intent.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpack._dtypes import Descr
from numpack._pure.format import frame, names, npy
from numpack._pure.format.block_index import Index, Slot
from numpack._pure.format.codec import Codec
from numpack._pure.format.layout import Layout
from numpack._pure.format.manifest import Attrs, Change, Op, Record
from numpack._pure.store import error as errors
from numpack._pure.store.data import DataFile
from numpack._pure.sys.lock import WouldBlock, claiming_host, holder
from numpack._pure.sys.storage import File

if TYPE_CHECKING:
    from typing_extensions import Self

    from numpack._pure.store.store import Store

log = logging.getLogger("numpack")

# How long writers wait for each other, in seconds.
LOCK_TIMEOUT = 30.0
MAX_INTENT_LEN = 64 << 20
INTENT_HEADER = struct.Struct("<II")
# A full disk is known to have written nothing that counts.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Staged:
    """A new version of an array, in a file without a name."""

    name: str
    file: File
    descr: Descr
    layout: Layout
    offset: int
    codec: Codec | None = None
    index: Index | None = None
    # None: those that the name has.
    attrs: Attrs | None = None


@dataclass
class Place:
    """What a new version is called, and the attributes that its name has."""

    id: int
    file: str
    attrs: Attrs

    def record(self, new: Staged, now: int) -> Record:
        """The record of the new version."""
        return Record(
            name=new.name,
            id=self.id,
            file=self.file,
            descr=new.descr,
            layout=new.layout,
            offset=new.offset,
            codec=new.codec,
            index=new.index,
            mtime=now,
            # Attributes belong to the name: a new version keeps them.
            attrs=new.attrs if new.attrs is not None else self.attrs,
        )


@dataclass
class Commit:
    """One commit in the making.

    At the end of a ``with`` block, locks on data files end. If the block raises, new versions are gone as well: whoever
    keeps the exception keeps all that was made here, and neither room on the disk nor locks may wait for him.
    """

    staged: list[Staged] = field(default_factory=list)
    # Operations that come before the new versions.
    ops: list[Op] = field(default_factory=list)
    # Operations that come after them.
    last_ops: list[Op] = field(default_factory=list)
    # Arrays whose headers are to be written after the commit.
    headers: list[str] = field(default_factory=list)
    # Where there is room in the files of compressed arrays, once the commit is made.
    spaces: list[tuple[DataFile, Any]] = field(default_factory=list)
    # When the change was made, in nanoseconds since 1970, if that is not now.
    time: int = 0
    # Rows that are there already move to a new file: the commit is durable, since it removes the old one.
    moves_rows: bool = False
    # The versions that go, if the intent that names them and the files of new ones is written already.
    begun: list[Record] | None = None
    # The locks on the files that rows are moved from, which end with the commit.
    locked: list[File] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        for file in self.locked:
            file.close()
        if kind is not None:
            for new in self.staged:
                new.file.close()


@contextlib.contextmanager
def writing(store: Store) -> Iterator[None]:
    """Hold the writers' lock, and know everything that was committed before."""
    store.check_writable()
    lock = store.lock
    take(store, lock.take)
    try:
        with store.following:
            if not (store.is_swept and store.manifest.is_fresh()):
                _catch_up(store)
        yield
    finally:
        lock.give_back()


def take(store: Any, take_lock: Callable[[float], Any]) -> None:
    """Take a lock, and say who has it if that takes too long."""
    path = os.path.join(store.path, names.LOCK)
    try:
        take_lock(LOCK_TIMEOUT)
    except WouldBlock:
        raise errors.locked(store.path, LOCK_TIMEOUT, holder(path), claiming_host(path)) from None
    except OSError as error:
        raise errors.io_error("lock", path, error) from error


def _catch_up(store: Store) -> None:
    while store.manifest.catch_up(store.note_change, locked=True):
        # Others give names without waiting for the disk.
        store.names_dirty = True
        # A store that was removed and created anew has another lock file.
        if store.lock.is_current():
            break
        store.lock.close()
        take(store, store.lock.take_file)
    # Somebody else was here, and may have died before a commit that could be seen.
    store.is_swept = True
    finish_intent(store)
    _mend_headers(store)
    if store.is_swept:
        store.manifest.publish_length()


def commit(store: Store, change: Commit) -> None:
    """Commit, with the writers' lock held."""
    # Threads that read follow the manifest meanwhile.
    with store.following:
        _commit(store, change)


def _commit(store: Store, change: Commit) -> None:
    staged, ops = change.staged, list(change.ops)
    if not staged and not ops and not change.last_ops:
        return
    is_begun = change.begun is not None
    if change.moves_rows:
        for new in staged:
            _hand_on_permissions(store, new)
    durable = change.moves_rows or store.is_durable
    if durable:
        for new in staged:
            poisoning(store, "sync", names.data_file(new.name, 0), new.file.sync)
        # The commit takes earlier ones, that were not durable, to the disk with it: their elements go first.
        sync_dirty(store)
    now = change.time or time.time_ns()
    places: list[Place] = []
    if change.begun is not None:
        superseded = change.begun
    else:
        places, superseded = find_places(store, [new.name for new in staged], ops)
    for old in superseded:
        _keep_last_state(store, old)
    is_intended = is_begun or bool(places or superseded)
    if is_intended and not is_begun:
        begin_intent(store, places, superseded)
    records = [place.record(new, now) for place, new in zip(places, staged, strict=True)]
    for record, new in zip(records, staged, strict=True):
        link(store, new.file, record.file)
    if records:
        store.names_dirty = True
    if durable:
        sync_names(store)
    else:
        store.dirty.update(record.file for record in records)
    ops.extend({"put": record} for record in records)
    ops.extend(change.last_ops)
    try:
        store.manifest.append(now, ops, store.note_change_of_ours, durable=durable)
    except OSError as error:
        if error.errno in FULL:
            # Nothing that counts was written: the new versions can be committed again.
            for record, new in zip(records, staged, strict=True):
                with contextlib.suppress(OSError):
                    store.directory.unlink(new.file, record.file)
            for name in change.headers:
                grown = store.manifest.table.get(name)
                with contextlib.suppress(OSError, errors.CorruptStoreError):
                    if grown is not None:
                        cut_uncommitted(grown, store.files.get(grown))
        else:
            store.poison = store.poison or errors.Poison(store.path, error)
        raise
    # From here on the files belong to the store, whatever happens.
    change.staged = []
    # Not before: had the commit failed, somebody else's would get these identities.
    for record, new in zip(records, staged, strict=True):
        store.files.insert(record.id, DataFile(new.file))
    # The commit is made. What fails from here on is mended by the next writer.
    for data, space in change.spaces:
        data.space = space
    for name in change.headers:
        changed = store.manifest.table.get(name)
        if changed is None:
            continue
        try:
            write_header(store, changed, store.files.get(changed))
        except (OSError, errors.CorruptStoreError) as error:
            log.warning("%s", error)
            store.manifest.lagging.append(name)
        if not durable:
            store.dirty.add(changed.file)
    if is_intended:
        end_intent(store, [record.file for record in superseded])
    # Whoever finds the length that they know looks for nothing that is left to be done, so nothing may be.
    if store.is_swept and not store.manifest.lagging:
        store.manifest.publish_length()
    # A snapshot does not say whose headers lag behind.
    if store.manifest.wants_snapshot() and not store.manifest.lagging:
        _publish(store)


def cut_uncommitted(record: Record, data: DataFile) -> None:
    """Take away what a failed append has left behind the last row: who reads the file itself, as a kernel does that it was
    handed to, would take it for rows. What is mapped is what is committed."""
    if record.codec is None:
        with contextlib.suppress(OSError):
            data.file.truncate(record.data_end)


def _publish(store: Store) -> None:
    try:
        # The new file has a temporary name for a moment.
        write_intent(store, names.MANIFEST)
        store.manifest.publish()
        # Later commits go to the new file, and rest on its name.
        store.names_dirty = True
        sync_names(store)
    except OSError as error:
        log.warning("no new snapshot of the manifest: %s", error)
    end_intent(store, [])


def begin_intent(store: Store, places: list[Place], superseded: list[Record]) -> None:
    """Say in the lock file which files come and go."""
    # Should this process die, whoever comes next must look, also one that knows this state.
    store.manifest.retire()
    write_intent(store, "\n".join([*(place.file for place in places), *(record.file for record in superseded)]))


def find_places(store: Store, new_names: list[str], ops: list[Op]) -> tuple[list[Place], list[Record]]:
    """Identities and files of new versions of these names, and the records of the versions that they and ``ops``
    supersede."""
    table = store.manifest.table
    superseded = [table.get(value) for op in ops for key, value in op.items() if key == "delete"]
    # Names without an id are for a store that still has every version it ever had: later, such a name may have been
    # that of a version that is gone, and who did not see it go would take the new file for it.
    has_all = len(table) + 1 == table.next_id
    places = []
    for array_id, name in enumerate(new_names, table.next_id):
        old = table.get(name)
        if old is not None:
            superseded.append(old)
        file = names.first_data_file(name) if has_all and old is None else None
        if file is None or _is_there(store, file):
            file = names.data_file(name, array_id)
        places.append(Place(array_id, file, {} if old is None else old.attrs))
    return places, [record for record in superseded if record is not None]


def _is_there(store: Store, file: str) -> bool:
    try:
        store.directory.stat(file)
    except OSError:
        return False
    return True


def link(store: Store, file: File, name: str) -> None:
    """Name a new data file. A file of that name is not referred to by any record: ids are never used twice."""
    try:
        try:
            store.directory.link(file, name)
        except FileExistsError:
            store.directory.remove(name)
            store.directory.link(file, name)
    except OSError as error:
        raise errors.io_error("create", os.path.join(store.path, name), error) from error


def _hand_on_permissions(store: Store, new: Staged) -> None:
    """Let the file of a new version have the permissions and the owner of the present one: who moves rows shows them to
    nobody else."""
    old = store.manifest.table.get(new.name)
    if old is not None:
        new.file.resemble(store.files.get(old).file.stat())


def _keep_last_state(store: Store, record: Record) -> None:
    """Let the data file of a version that is about to go say where its blocks are: nothing else will."""
    if record.codec is None:
        return
    with contextlib.suppress(OSError, errors.CorruptStoreError):
        data = store.files.get(record)
        if not _is_slot_current(record, data):
            _write_slot(record, data)


def write_header(store: Store, record: Record, data: DataFile) -> None:
    """Let the headers in the data file follow the record."""
    if record.codec is not None:
        _write_slot(record, data)
        # Elements that were written in place change no .npy header.
        if data.describes(record):
            return
    header = npy.encode_within(record.descr, record.layout, record.offset)
    if header is None:
        what = "has a header that describes another array"
        raise errors.data_file(store.path, record.name, record.file, what)
    data.file.write(header, record.header_offset)


def _slots(data: DataFile) -> tuple[Slot | None, int]:
    found: tuple[Slot | None, int] = Slot.newest(data.file.read(2048, 0))
    return found


def _is_slot_current(record: Record, data: DataFile) -> bool:
    slot, _ = _slots(data)
    return slot is not None and (slot.nbytes, slot.index) == (record.layout.nbytes, record.index)


def _write_slot(record: Record, data: DataFile) -> None:
    newest, place = _slots(data)
    assert record.index is not None, "only arrays with blocks have slots"
    sequence = 0 if newest is None else newest.sequence + 1
    data.file.write(Slot(sequence, record.layout.nbytes, record.index).to_bytes(), place)


def _mend_headers(store: Store) -> None:
    """Write the headers that a writer that died did not get to write."""
    lagging, store.manifest.lagging = store.manifest.lagging, []
    for name in lagging:
        try:
            record = store.manifest.table.get(name)
            if record is None:
                continue
            data = store.files.get(record)
            is_current = record.codec is None or _is_slot_current(record, data)
            if not (is_current and data.describes(record)):
                store.dirty.add(record.file)
                write_header(store, record, data)
        except (OSError, errors.CorruptStoreError) as error:
            log.warning("%s", error)


def write_intent(store: Store, files: str) -> None:
    """Say in the lock file which data files come and go, or that the manifest is replaced."""
    text = files.encode()
    if len(text) > MAX_INTENT_LEN - INTENT_HEADER.size:
        text = b""
    try:
        lock = store.directory.open_file(names.LOCK, writable=True)
        lock.write(INTENT_HEADER.pack(len(text), zlib.crc32(text)) + text, 0)
    except OSError as error:
        raise errors.io_error("write", os.path.join(store.path, names.LOCK), error) from error


def finish_intent(store: Store) -> None:
    """Finish what a writer that died had begun: remove the files of its intent that no record refers to."""
    try:
        lock = store.directory.open_file(names.LOCK, writable=False)
        data = lock.read(min(lock.stat().st_size, MAX_INTENT_LEN), 0)
    except OSError as error:
        log.warning("%s: %s", os.path.join(store.path, names.LOCK), error)
        return
    files = parse_intent(data)
    if files is None:
        return
    try:
        live = {record.file for record in store.manifest.table.records()}
    except errors.CorruptStoreError as error:
        # It stays for a writer who knows which files are needed.
        log.warning("%s", error)
        return
    with contextlib.suppress(OSError):
        store.directory.sweep_temporaries()
    end_intent(store, [file for file in files if file not in live])


def parse_intent(data: bytes) -> list[str] | None:
    """The data files that an intent names; None if there is none, or it is torn, and so was never acted upon."""
    if len(data) < INTENT_HEADER.size:
        return None
    length, crc = INTENT_HEADER.unpack_from(data)
    text = data[INTENT_HEADER.size : INTENT_HEADER.size + length]
    if not text or len(text) < length or zlib.crc32(text) != crc:
        return None
    try:
        return [file for file in text.decode().split("\n") if names.is_data_file(file)]
    except UnicodeDecodeError:
        return None


def end_intent(store: Store, files: Iterable[str]) -> None:
    """Remove the files that nobody needs any more, and then the intent that names them."""
    all_gone = True
    for file in files:
        try:
            store.directory.remove(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("cannot remove %s: %s", os.path.join(store.path, file), error)
            all_gone = False
    # What could not be removed stays in the intent, and is tried again with the next write.
    store.is_swept = all_gone
    if all_gone:
        try:
            write_intent(store, "")
        except OSError as error:
            log.warning("%s", error)


def sync_all(store: Store) -> None:
    """Let everything that was written through this store reach the disk: elements, names, commits."""
    sync_dirty(store)
    sync_names(store)
    poisoning(store, "sync", names.MANIFEST, store.manifest.sync)


def sync_dirty(store: Store) -> None:
    """Let the elements that were written reach the disk."""
    dirty, store.dirty = store.dirty, set()
    for name in dirty:

        def sync(name: str = name) -> None:
            try:
                file = store.directory.open_file(name, writable=True)
            except FileNotFoundError:
                return
            except OSError as error:
                raise errors.io_error("sync", os.path.join(store.path, name), error) from error
            file.sync()

        poisoning(store, "sync", name, sync)


def sync_names(store: Store) -> None:
    """Let names that were given reach the disk."""
    if store.names_dirty:
        store.names_dirty = False
        poisoning(store, "sync the directory of", names.MANIFEST, store.directory.sync)


def poisoning(store: Store, action: str, name: str, call: Callable[[], Any]) -> None:
    """Do something after whose failure nobody knows what is on the disk: then writing stops."""
    try:
        call()
    except OSError as error:
        if error.filename is None:
            error = errors.io_error(action, os.path.join(store.path, name), error)
        store.poison = store.poison or errors.Poison(store.path, error)
        raise error from None


def note(store: Store, change: Change, *, is_own: bool) -> None:
    """Close the files of versions that are gone, and forget where there was room in those that others wrote to."""
    if change.kind == "removed":
        store.files.forget(change.id)
    elif change.kind in ("resized", "written") and not is_own:
        store.files.forget_space(change.id)


def new_store_id() -> bytes:
    """A random identity, so that two stores are never taken for one."""
    return os.urandom(frame.STORE_ID_LEN)
