"""Open data files, and the elements in them.

`Elements` is what is in a data file of an array that is not compressed; `numpack._pure.store.blocks` has the same face
for one that is. Offsets are those of stored elements, in bytes.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numpack._pure.format import npy
from numpack._pure.format.error import FormatError
from numpack._pure.format.manifest import Record
from numpack._pure.store import error as errors
from numpack._pure.store import upstream
from numpack._pure.store.blocks import BlockCache
from numpack._pure.store.upstream import Segments
from numpack._pure.sys.storage import Directory, File

# Data files that stay open after their last use.
MAX_RECENT = 64


class DataFile:
    """An open data file of one version of an array, and what is kept of it."""

    def __init__(self, file: File | Segments) -> None:
        # Of an array with blocks, or that somebody writes to, it is a file.
        self.file: Any = file
        # Whether no record tells of the version any more.
        self.is_gone = False
        # Of a compressed array: what was read of it, and where there is room, as `Space.known` has it.
        self.blocks = BlockCache()
        self.space: Any = None
        self._map: NDArray[np.uint8] | None = None

    def map(self, length: int) -> np.ndarray:
        """The bytes of the file from its start, mapped; they stay so as long as the array lives."""
        if self._map is None or self._map.nbytes < length:
            self._map = np.frombuffer(self.file.map(length), np.uint8)
        return self._map

    def header(self, record: Record) -> bytes:
        """The ``.npy`` header that is in the file, or that it would have."""
        if record.upstream is not None:
            # It has the length that such a header takes.
            return npy.encode_within(record.descr, record.layout, record.offset) or b""
        return bytes(self.file.read(record.offset, record.header_offset))

    def describes(self, record: Record) -> bool:
        """Whether the ``.npy`` header that is in the file is that of ``record``."""
        try:
            return npy.parse(self.header(record)) == (record.descr, record.layout)
        except FormatError:
            return False


class DataFiles:
    """The data files that are open. Each version of an array is open once at the most."""

    def __init__(self, directory: Directory, *, writable: bool) -> None:
        self._directory = directory
        self._writable = writable
        self._by_id: weakref.WeakValueDictionary[int, DataFile] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[int, DataFile] = OrderedDict()

    def get(self, record: Record) -> DataFile:
        """The open data file of ``record``.

        Raises
        ------
        FileNotFoundError
            If it is missing, which may be because the version is gone.
        CorruptStoreError, OSError
        """
        data = self._by_id.get(record.id)
        if data is None:
            try:
                data = DataFile(self._open(record, writable=self._writable))
                self.insert(record.id, data)
            except OSError as error:
                if error.errno != errno.EROFS or not self._writable:
                    raise
                # The disk went read-only since the store was opened, as it does after an error. What is there can be read;
                # and should it be writable again, the file is opened anew when nobody has it open any more.
                data = self._by_id[record.id] = DataFile(self._open(record, writable=False))
        return data

    def insert(self, array_id: int, data: DataFile) -> None:
        """Remember a file that was just opened or written."""
        self._by_id[array_id] = data
        self._recent[array_id] = data
        while len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)

    def forget(self, array_id: int) -> None:
        """Close a version that is gone, unless somebody still uses it."""
        self._recent.pop(array_id, None)
        data = self._by_id.pop(array_id, None)
        if data is not None:
            data.is_gone = True

    def forget_space(self, array_id: int) -> None:
        """Forget where there was room in the file of a version: somebody else may have used it."""
        data = self._by_id.get(array_id)
        if data is not None:
            data.space = None
            if not self._directory.place.has_far_locks:
                # It may have been another host.
                data.file.forget_cached()

    def _open(self, record: Record, *, writable: bool) -> File | Segments:
        directory = self._directory
        if record.upstream is not None:
            return upstream.open_elements(directory, record)
        try:
            file = directory.open_file(record.file, writable=writable)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EINVAL) or _is_irregular(directory, record.file):
                what = "is not a regular file, and links are not followed"
                raise errors.data_file(directory.path, record.name, record.file, what) from None
            raise errors.io_error("open", os.path.join(directory.path, record.file), error) from error
        length = file.stat().st_size
        if length < record.data_end and not directory.place.has_far_locks:
            # Another host has just made it longer.
            file.forget_cached()
            length = file.stat().st_size
        if length < record.data_end:
            what = f"has {length} bytes, expected {record.data_end}"
            raise errors.data_file(directory.path, record.name, record.file, what)
        return file


def _is_irregular(directory: Directory, name: str) -> bool:
    try:
        return not stat_module.S_ISREG(directory.stat(name).st_mode)
    except OSError:
        return False


class Elements:
    """The elements of an array that is not compressed."""

    def __init__(self, record: Record, data: DataFile) -> None:
        self._record = record
        self._data = data

    def read_into(self, out: memoryview, offset: int) -> None:
        """Read as many bytes as ``out`` takes."""
        if self._data.file.read_into(out, self._record.elements_offset + offset) < len(out):
            raise OSError(errno.EIO, "the data file ends before the array")

    def view(self) -> np.ndarray:
        """All stored elements, mapped: read-only, in the order and shape of the layout."""
        layout, start = self._record.layout, self._record.elements_offset
        data = self._data.map(start + layout.nbytes)[start : start + layout.nbytes]
        return shaped(data, self._record.dtype, layout.shape, fortran_order=layout.fortran_order)


def shaped(data: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], *, fortran_order: bool) -> np.ndarray:
    """Bytes as an array over the same memory."""
    return np.ndarray(shape, dtype, data, order="F" if fortran_order else "C")


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array that is contiguous, in the order in which they are in memory."""
    flat = array.T if array.flags.f_contiguous and not array.flags.c_contiguous else array
    if flat.nbytes == 0:
        return memoryview(b"")
    buffer: Any = np.ndarray(flat.nbytes, np.uint8, flat)
    return memoryview(buffer)
