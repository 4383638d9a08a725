"""One array as it is at one moment: its record, its open data file, and reading from it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, TYPE_CHECKING

import numpy as np

from numpack._pure.format.manifest import Record
from numpack._pure.store import error as errors
from numpack._pure.store.blocks import BlockElements
from numpack._pure.store.data import DataFile, Elements, bytes_of
from numpack._pure.store.upstream import SegmentElements, Segments

if TYPE_CHECKING:
    from numpack._pure.store.store import Store


class Array:
    """An array of a store. It stays readable whatever happens to the store."""

    def __init__(self, store: Store, record: Record, data: DataFile) -> None:
        self.store = store
        self.record = record
        self.data = data

    @property
    def elements(self) -> Any:
        """The stored elements, with deleted rows."""
        if isinstance(self.data.file, Segments):
            return SegmentElements(self.record, self.data.file)
        if self.record.codec is None:
            return Elements(self.record, self.data)
        return BlockElements(self.store, self.record, self.data)

    def view(self) -> np.ndarray | None:
        """The array over a mapping, read-only; None if it is compressed, in several files, or has deleted rows."""
        if self.record.nbytes == 0:
            empty = self.empty(self.record.shape)
            empty.flags.writeable = False
            return empty
        if not self._is_mapped or self.record.deleted:
            return None
        view: np.ndarray = self.elements.view()
        return view

    @property
    def _is_mapped(self) -> bool:
        """Whether the stored elements can be mapped as they are."""
        return self.record.codec is None and not isinstance(self.data.file, Segments)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """A new array of this dtype and order."""
        # Not np.empty, which gives strings of no width a width.
        return np.ndarray(shape, self.record.dtype, order="F" if self.record.layout.fortran_order else "C")

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        """All elements, in the order in which they are stored, or in ``out``, which is in C-order."""
        record = self.record
        if out is None:
            out = self.empty(record.shape)
        elif record.layout.fortran_order:
            out[...] = self.read()
            return out
        if record.live is None:
            self._fill(out, 0)
        else:
            self.gather(np.arange(record.n_rows), out)
        return out

    def rows(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Consecutive rows, in C-order."""
        record = self.record
        if out is None:
            out = np.ndarray((stop - start, *record.shape[1:]), record.dtype)
        if record.live is None and not record.layout.fortran_order:
            self._fill(out, start * record.layout.row_len)
            return out
        return self.gather(np.arange(start, stop), out)

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The rows with these numbers, in that order, in C-order."""
        record = self.record
        if out is None:
            out = np.ndarray((len(rows), *record.shape[1:]), record.dtype)
        if out.nbytes == 0:
            return out
        stored = rows if record.live is None else record.live[rows]
        if self._is_mapped:
            # NumPy takes the rows out of the mapping; take() cannot write to every dtype's out.
            out[...] = self.elements.view()[stored]
        elif record.layout.fortran_order:
            whole = self.empty(record.layout.shape)
            self._fill(whole, 0)
            out[...] = whole[stored]
        else:
            with self.reading():
                self.elements.gather(stored, bytes_of(out))
        return out

    def _fill(self, out: np.ndarray, offset: int) -> None:
        data = bytes_of(out)
        if not len(data):
            return
        self.read_into(data, offset)

    def read_into(self, out: memoryview, offset: int) -> None:
        """Bytes of the stored elements."""
        with self.reading():
            self.elements.read_into(out, offset)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Let errors of the system name the file."""
        try:
            yield
        except OSError as error:
            if error.filename is not None:
                raise
            path = os.path.join(self.store.path, self.record.file)
            raise errors.io_error("read", path, error) from error

    def modified(self) -> int:
        """Time of the last commit, or of a later write in place, in nanoseconds since 1970."""
        try:
            written: int = self.data.file.stat().st_mtime_ns
            return max(self.record.mtime, written)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return self.record.mtime
