"""Stores of NumPack 0.1 to 0.7: their tables become records whose elements begin at offset 0 of their files, and
everything that reads an array reads them too. See ``spec/upstream-layouts.md``.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
from typing import Any

import numpy as np
from pyroaring import BitMap64

from numpack._pure.format import names, npy
from numpack._pure.format.error import FormatError
from numpack._pure.format.layout import layout_of
from numpack._pure.format.manifest import Edit, Record, Table
from numpack._pure.format.upstream import (
    MAX_SEGMENTS_LEN,
    SAVE_LOCK,
    WRITE_AHEAD_LOG,
    Entry,
    Fault,
    Source,
    deleted_file,
    deleted_file_len,
    is_data_file,
    is_segmented,
    is_table,
    parse_deleted,
    parse_segments,
    parse_table,
)
from numpack._pure.store import error as errors
from numpack._pure.sys.storage import Directory, File

NOT_A_FILE = "is not a regular file, and links are not followed"


def load(directory: Directory, data: bytes) -> tuple[Table, str]:
    """The records of a store from the bytes of its ``metadata.npkm``, and the name of its layout."""
    path = os.path.join(directory.path, names.MANIFEST)
    try:
        found = parse_table(data)
    except FormatError as error:
        raise errors.damaged(path, error) from None
    files = set(directory.list())
    if not found.arrays and any(map(is_data_file, files)):
        raise errors.table_lost(directory.path)
    records = [_record(directory, n, entry, files) for n, entry in enumerate(found.arrays, 1)]
    table = Table()
    table.apply(Edit(1, 0, [{"put": record} for record in records]), lambda change: None)
    return table, found.layout


def _record(directory: Directory, array_id: int, entry: Entry, files: set[str]) -> Record:
    layout = layout_of(entry.shape, False, entry.dtype.itemsize)
    fault = None if entry.fault is None else (entry.file, entry.fault)
    deleted = BitMap64()
    file = deleted_file(entry.name)
    if file in files:
        try:
            deleted = _read_deleted(directory, file, entry.shape[0] if entry.shape else 0)
        except Fault as error:
            fault = fault or (file, error)
    descr = entry.dtype.str
    return Record(
        name=entry.name,
        id=array_id,
        file=entry.file,
        descr=descr,
        layout=layout,
        # As long as the header of all rows, which is no shorter than that of those that are left.
        offset=len(npy.encode(descr, layout)),
        deleted=deleted,
        mtime=entry.modified,
        upstream=Source(fault),
    )


def _read_deleted(directory: Directory, name: str, n_rows: int) -> BitMap64:
    """A file of deleted rows. What is wrong with it keeps its array from being read, and no other."""
    path = os.path.join(directory.path, name)
    try:
        file = directory.open_file(name, writable=False)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ELOOP):
            raise Fault(NOT_A_FILE) from None
        raise errors.io_error("open", path, error) from error
    length = file.stat().st_size
    try:
        data = file.read(min(length, deleted_file_len(n_rows)), 0)
    except OSError as error:
        raise errors.io_error("read", path, error) from error
    return BitMap64(parse_deleted(data, length, n_rows))


def open_elements(directory: Directory, record: Record) -> File | Segments:
    """The file of an array's elements, which must be all that is in it."""
    if record.upstream is not None and record.upstream.fault is not None:
        of, fault = record.upstream.fault
        raise _refused(directory, record, of, str(fault))
    file = _open(directory, record, record.file)
    if is_segmented(record.file):
        return _open_segments(directory, record, file)
    _check_length(directory, record, record.file, file, record.layout.nbytes)
    return file


def _open_segments(directory: Directory, record: Record, listing: File) -> Segments:
    newest = listing.stat()
    length = newest.st_size
    if length > MAX_SEGMENTS_LEN:
        raise _refused(directory, record, record.file, f"is no list of segments: {length} bytes are too many")
    try:
        segments = parse_segments(listing.read(length, 0), record.layout.nbytes)
    except Fault as fault:
        raise _refused(directory, record, record.file, str(fault)) from None
    parts = []
    for segment in segments:
        name = f"{segment.folder}/{segment.file}"
        try:
            folder = directory.folder(segment.folder)
        except OSError as error:
            # It may be a link, or a file.
            if error.errno == errno.ENOTDIR:
                raise _refused(directory, record, name, NOT_A_FILE) from None
            raise _open_failed(directory, record, name, error) from error
        file = _open(folder, record, segment.file, within=directory, shown=name)
        _check_length(directory, record, name, file, segment.len)
        newest = max(newest, file.stat(), key=lambda stat: stat.st_mtime_ns)
        if segment.len:
            parts.append(file.map(segment.len))
    return Segments(newest, parts)


class Segments:
    """The segments of a long array as one file. They are mapped: there may be more of them than a process may have open
    files."""

    def __init__(self, newest: os.stat_result, parts: list[Any]) -> None:
        self._newest = newest
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64).tolist()

    def stat(self) -> os.stat_result:
        """What the system knows about the file that was changed last."""
        return self._newest

    def read_into(self, buffer: Any, offset: int) -> int:
        """Fill a buffer, and return how many bytes there were."""
        view, done = memoryview(buffer).cast("B"), 0
        n = bisect.bisect_right(self._ends, offset)
        while done < len(view) and n < len(self._parts):
            part = self._parts[n]
            start = offset + done - (self._ends[n] - len(part))
            taken = min(len(view) - done, len(part) - start)
            view[done : done + taken] = memoryview(part)[start : start + taken]
            done, n = done + taken, n + 1
        return done

    def read(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes: fewer at the end of the last segment."""
        data = bytearray(length)
        return bytes(memoryview(data)[: self.read_into(data, offset)])


class SegmentElements:
    """The elements of an array that is cut into segments."""

    def __init__(self, record: Record, segments: Segments) -> None:
        self._row_len = record.layout.row_len
        self._segments = segments

    def read_into(self, out: memoryview, offset: int) -> None:
        """Read as many bytes as ``out`` takes."""
        self._segments.read_into(out, offset)

    def gather(self, rows: np.ndarray, out: memoryview) -> None:
        """Read the stored rows with these numbers, one after the other."""
        for n, row in enumerate(rows.tolist()):
            start = n * self._row_len
            self._segments.read_into(out[start : start + self._row_len], row * self._row_len)


def _open(directory: Directory, record: Record, name: str, *, within: Directory | None = None, shown: str = "") -> File:
    try:
        return directory.open_file(name, writable=False)
    except OSError as error:
        raise _open_failed(within or directory, record, shown or name, error) from error


def _open_failed(directory: Directory, record: Record, name: str, error: OSError) -> Exception:
    if error.errno == errno.ENOENT:
        return _refused(directory, record, name, "is missing")
    if error.errno in (errno.EINVAL, errno.ELOOP):
        return _refused(directory, record, name, NOT_A_FILE)
    return errors.io_error("open", os.path.join(directory.path, name), error)


def _check_length(directory: Directory, record: Record, name: str, file: File, expected: int) -> None:
    found = file.stat().st_size
    if found != expected:
        raise _refused(directory, record, name, f"has {found} bytes, expected {expected}")


def _refused(directory: Directory, record: Record, file: str, what: str) -> Exception:
    return errors.data_file(directory.path, record.name, file, what)


def table_in(directory: Directory) -> list[Entry] | None:
    """The arrays of a store of NumPack 0.1 to 0.7; None if that is not what is in the directory, or its table cannot be
    read."""
    try:
        file = directory.open_file(names.MANIFEST, writable=False)
        data = file.read(file.stat().st_size, 0)
        return parse_table(data).arrays if is_table(data) else None
    except (OSError, FormatError):
        return None


def remove_files(directory: Directory, arrays: list[Entry], live: set[str] | None = None) -> None:
    """Remove what belongs to the arrays of a table, but for the files that are ``live``."""
    for entry in arrays:
        if entry.file not in (live or ()):
            if is_segmented(entry.file):
                _remove_segments(directory, entry)
            _remove(directory, entry.file)
        # After the elements: who reads them without it has rows that were deleted.
        _remove(directory, deleted_file(entry.name))
    _remove(directory, WRITE_AHEAD_LOG)
    _remove(directory, SAVE_LOCK)


def _remove_segments(directory: Directory, entry: Entry) -> None:
    try:
        listing = directory.open_file(entry.file, writable=False)
        segments = parse_segments(listing.read(min(listing.stat().st_size, MAX_SEGMENTS_LEN), 0), entry.nbytes)
    except (OSError, Fault):
        return
    for folder in {segment.folder for segment in segments}:
        try:
            opened = directory.folder(folder)
        except OSError:
            continue
        for segment in segments:
            if segment.folder == folder:
                _remove(opened, segment.file)
        # Other files in it are somebody else's.
        with contextlib.suppress(OSError):
            directory.remove_folder(folder)


def _remove(directory: Directory, name: str) -> None:
    try:
        directory.remove(name)
    except OSError as error:
        # An array's name may be one that no file can have.
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG):
            raise errors.io_error("remove", os.path.join(directory.path, name), error) from error
