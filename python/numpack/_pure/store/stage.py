"""New versions of arrays: written whole into files without names, before anybody waits for a lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TYPE_CHECKING

import numpy as np

from numpack._dtypes import Descr
from numpack._pure.format import dtype as dtypes
from numpack._pure.format import npy
from numpack._pure.format.codec import Compression
from numpack._pure.format.layout import Layout
from numpack._pure.store import error as errors
from numpack._pure.store.array import Array
from numpack._pure.store.data import DataFile, bytes_of
from numpack._pure.store.new_blocks import NewBlocks, with_filter
from numpack._pure.store.writer import Staged

if TYPE_CHECKING:
    from typing_extensions import Self

    from numpack._pure.store.store import Store

# Bytes that are copied at once when an array is rewritten.
COPY_LEN = 8 << 20


class Stage:
    """A new version whose elements come one after the other, in a ``with`` block: if that raises, the file is gone."""

    def __init__(
        self,
        store: Store,
        name: str,
        descr: Descr,
        layout: Layout,
        header: bytes,
        compression: Compression | None,
    ) -> None:
        """A compression without a filter gets the one for arrays of which nothing is known but the dtype."""
        self._store = store
        self._file = store.new_file()
        self._staged = Staged(name, self._file, descr, layout, len(header))
        self._blocks = None
        self._header = header
        self._end = len(header)
        if compression is not None:
            codec = with_filter(compression, dtypes.to_numpy(descr), 0, None).codec("none")
            self._staged.codec = codec
            self._blocks = NewBlocks(DataFile(self._file), codec, layout, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        # Else it would take room on the disk for as long as somebody keeps the exception.
        if kind is not None:
            self._file.close()

    def push(self, data: memoryview) -> None:
        """The next elements."""
        if self._blocks is None:
            self._write(data, self._end)
            self._end += len(data)
        else:
            self._try(self._blocks.push, data)

    def finish(self, *, zeros: bool = False) -> Staged:
        """The version, when it has all its elements; with ``zeros`` those that did not come are zeros."""
        if self._blocks is not None:
            self._staged.index = self._try(self._blocks.finish)
        else:
            self._write(self._header, 0)
            if zeros:
                self._try(self._file.truncate, self._staged.offset + self._staged.layout.nbytes)
        return self._staged

    def _write(self, data: Any, offset: int) -> None:
        self._try(self._file.write, data, offset)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            path = os.path.join(self._store.path, f"(new data file of {self._staged.name})")
            raise errors.io_error("write", path, error) from error


def stage(store: Store, name: str, array: np.ndarray, descr: Descr, layout: Layout, compression: Compression | None) -> Staged:
    """A new version with the elements of ``array``, which is contiguous."""
    data = bytes_of(array)

    if compression is not None:
        # The tail is not looked at.
        whole = len(data) - len(data) % compression.block_len
        compression = with_filter(compression, array.dtype, whole, lambda at, length: data[at : at + length])
    with Stage(store, name, descr, layout, npy.encode(descr, layout), compression) as new:
        new.push(data)
        return new.finish()


def stage_copy(store: Store, array: Array, name: str, compression: Compression | None) -> Staged:
    """A copy without the deleted rows; if there are none, header and order are as they were."""
    record = array.record
    if record.deleted:
        return stage_rows(store, array, name, None, compression)
    with array.reading():
        header, is_described = array.data.header(record), array.data.describes(record)
    if not is_described:
        header = npy.encode_within(record.descr, record.layout, record.offset) or npy.encode(
            record.descr, record.layout
        )

    with Stage(store, name, record.descr, record.layout, header, compression) as new:
        for offset in range(0, record.layout.nbytes, COPY_LEN):
            new.push(read_elements(array, offset, min(COPY_LEN, record.layout.nbytes - offset)))
        return new.finish()


def read_elements(array: Array, offset: int, length: int) -> memoryview:
    """Bytes of the elements, without deleted rows, as they are stored."""
    record, row_len = array.record, array.record.layout.row_len
    if not record.deleted:
        data = memoryview(bytearray(length))
        array.read_into(data, offset)
        return data
    first, last = offset // row_len, -(-(offset + length) // row_len)
    return bytes_of(array.rows(first, last))[offset - first * row_len :][:length]


def stage_rows(
    store: Store,
    array: Array,
    name: str,
    rows: np.ndarray | None,
    compression: Compression | None,
    further: np.ndarray | None = None,
) -> Staged:
    """A copy with the rows of these numbers, or all, and ``further`` ones behind them, in C-order."""
    record = array.record
    n_old = record.n_rows if rows is None else len(rows)
    n_rows = n_old + (0 if further is None else len(further))
    layout = record.layout.with_rows(n_rows) if record.layout.shape else record.layout
    row_len = layout.row_len

    def read(start: int, stop: int) -> np.ndarray:
        return array.rows(start, stop) if rows is None else array.gather(rows[start:stop])

    at_once = max(1, COPY_LEN // max(1, row_len))
    with Stage(store, name, record.descr, layout, npy.encode(record.descr, layout), compression) as new:
        for start in range(0, n_old if row_len else 0, at_once):
            new.push(bytes_of(read(start, min(n_old, start + at_once))))
        if further is not None:
            new.push(bytes_of(further))
        return new.finish()
