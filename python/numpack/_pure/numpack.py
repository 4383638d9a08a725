"""`NumPack`: a store as Python sees it. Converts arguments, calls the store, converts back."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import operator
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from numpack import _rows
from numpack._errors import (
    AppendTargetError,
    ArrayNotFoundError,
    CorruptStoreError,
    RowIndexError,
    StoreClosedError,
    UnsupportedError,
)
from numpack._pure import values
from numpack._pure.format import dtype as dtypes
from numpack._pure.format.codec import Codec
from numpack._pure.format.manifest import Record
from numpack._pure.format.upstream import is_segmented
from numpack._pure.lazy import LazyArray
from numpack._pure.store import error as errors
from numpack._pure.store import update
from numpack._pure.store.array import Array
from numpack._pure.store.store import Store, as_rows, open_as_possible, remove_all

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("numpack")


class NumPack:
    """A store of named arrays: a directory, here as something like a dict of arrays.

    Nothing is touched before `open`, which creates the directory if there is none. A store can be opened and closed any
    number of times; ``with`` does both. Where the directory cannot be written, it opens for reading. Several processes
    may have the store open; each sees what the others commit. A forked process goes on with the stores, lazy arrays and
    iterators that it inherits.

    Parameters
    ----------
    filename : str or os.PathLike
        The directory.
    drop_if_exists : bool, default False
        Delete what is there at the first ``open``.
    strict_context_mode : bool, default False
        Refuse every call outside of ``with``.
    warn_no_context : bool, optional
        Warn at construction that ``with`` should be used.
    force_gc_on_close : bool, default False
        Collect garbage in ``close``.
    durable : bool, default False
        Let every change return when it is on the disk: then it is still there after a loss of power.
    codec : bool, int or dict, optional
        The `compress` of `save` and `create` where none is given; by default arrays are not compressed.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        drop_if_exists: bool = False,
        strict_context_mode: bool = False,
        warn_no_context: bool | None = None,
        force_gc_on_close: bool = False,
        *,
        durable: bool = False,
        codec: Any = None,
    ) -> None:
        self._path = os.fsdecode(os.fspath(filename))
        self._drop_first = bool(drop_if_exists)
        self._strict = bool(strict_context_mode)
        self._gc_on_close = bool(force_gc_on_close)
        self._durable = bool(durable)
        self._compression = None if codec is None else values.compression("codec", codec)
        self._store_or_none: Store | None = None
        self._n_contexts = 0
        self._opening = threading.Lock()
        # Arrays that were mapped to be written to, of which others may not have been told yet.
        self._mapped: list[tuple[str, weakref.ref[np.ndarray]]] = []
        warn = sys.platform == "win32" if warn_no_context is None else warn_no_context
        if warn and not strict_context_mode:
            warnings.warn('use "with NumPack(...) as npk:", which closes the store in any case', stacklevel=2)

    def open(self) -> None:
        """Open the store; create it, with its parent directories, if it is not there. Nothing happens if it is open.

        Raises
        ------
        FileExistsError
            If a file is at the path.
        NotAStoreError
            If the directory has something in it that is not an npk store.
        CorruptStoreError
            If the store is damaged.
        OSError
            If the directory can neither be written nor read.
        """
        with self._opening:
            if self._store_or_none is not None:
                return
            if self._drop_first:
                remove_all(self._path)
                self._drop_first = False
            store = open_as_possible(self._path)
            store.durable = self._durable
            self._store_or_none = store

    def close(self, force_gc: bool | None = None) -> None:
        """Close the store. Never raises; nothing happens if it is closed. Arrays that were loaded stay valid.

        Parameters
        ----------
        force_gc : bool, optional
            Collect garbage afterwards; by default as `force_gc_on_close` says.
        """
        store, self._store_or_none = self._store_or_none, None
        if store is not None:
            try:
                self._tell_mapped(store)
            except (OSError, ValueError) as error:
                log.warning("%s", error)
            self._mapped = []
        del store
        if self._gc_on_close if force_gc is None else force_gc:
            gc.collect()

    def __enter__(self) -> Self:
        self.open()
        self._n_contexts += 1
        return self

    def __exit__(self, *_exception: object) -> Literal[False]:
        self._n_contexts = max(0, self._n_contexts - 1)
        self.close()
        return False

    @property
    def is_opened(self) -> bool:
        """Whether the store is open."""
        return self._store_or_none is not None

    @property
    def is_closed(self) -> bool:
        """Whether the store is not open: not yet, or not any more."""
        return self._store_or_none is None

    @property
    def path(self) -> Path:
        """The store's directory, as a pathlib.Path."""
        return Path(self._path)

    @property
    def backend_type(self) -> str:
        """What runs: 'rust' or 'python'."""
        return "python"

    @property
    def _store(self) -> Store:
        store = self._store_or_none
        if store is None:
            raise StoreClosedError(
                f'{self._path}: the store is not opened or has been closed; call open() or use "with"'
            )
        if self._strict and not self._n_contexts:
            raise StoreClosedError(
                f'{self._path}: strict_context_mode allows calls only within "with NumPack(...) as npk:"'
            )
        return store

    def _current(self) -> Store:
        """The store with what other processes have committed by now."""
        store = self._store
        store.refresh()
        return store

    def _array(self, name: str) -> Array:
        return self._store.array(_name(name))

    def _how(self, argument: str, compress: Any) -> Any:
        return self._compression if compress is None else values.compression(argument, compress)

    def save(self, arrays: dict[str, Any], compress: Any = None) -> None:
        """Save arrays, replacing those that have these names. All of them are saved, or none.

        Parameters
        ----------
        arrays : dict of str to array_like
            Any shape, order and strides, any dtype of fixed size. Subclasses of ndarray are saved as plain arrays.
        compress : bool, int or dict, optional
            As in the other backend: not at all, at level 1, at a level, or ``"level"``, ``"block"`` and ``"filter"``.

        Raises
        ------
        TypeError
            For dtypes without a fixed size; for names that are not str; for values of `compress` of another type.
        ValueError
            If `arrays` is not a dict, or a name cannot be stored; for levels, blocks and filters that there are not.
        ReadOnlyError, OSError
        """
        compression = self._how("compress", compress)
        store = self._store
        update.save(store, values.to_save(arrays), compression)

    def load(self, name: str, lazy: bool = False, *, rows: Any = None, out: np.ndarray | None = None) -> Any:
        """Load an array.

        Parameters
        ----------
        name : str
        lazy : bool, default False
            Read nothing yet: return a `LazyArray`, over a mapping of the file if the array is not compressed.
        rows : int, list, tuple or array of int, slice, boolean mask; optional
            Read these rows only, as `getitem` does.
        out : ndarray, optional
            What is read goes there: a C-contiguous array of the right shape and dtype.

        Returns
        -------
        ndarray or LazyArray
            The ndarray is `out`, or new, writable, and in the order (C or Fortran) that was saved.

        Raises
        ------
        ArrayNotFoundError, RowIndexError
        TypeError, ValueError
            If `out` does not fit; for `lazy` with `rows` or `out`.
        CorruptStoreError, OSError
        """
        if lazy:
            if rows is not None or out is not None:
                raise ValueError(
                    "lazy=True reads nothing yet, so it takes no rows and no out; index what it returns"
                )
            return LazyArray._of(self._array(name))
        if rows is not None:
            return self.getitem(name, rows, out=out)
        array = self._array(name)
        if out is not None:
            _rows.check_out(out, array.record.dtype, array.record.shape)
        return array.read(out)

    def __getitem__(self, name: str, /) -> np.ndarray:
        loaded: np.ndarray = self.load(name)
        return loaded

    def append(self, arrays: dict[str, Any]) -> None:
        """Append rows to arrays. All names and shapes are checked before anything is written.

        Parameters
        ----------
        arrays : dict of str to array_like
            Rows of shape (n, \\*row_shape) and of the array's dtype.

        Raises
        ------
        AppendTargetError
            If an array does not exist (a KeyError and a ValueError).
        ValueError
            If the rows have another shape.
        TypeError
            If they have another dtype.
        ReadOnlyError, OSError
        """
        store = self._store
        given = _rows.check_dict(arrays)
        if not given:
            return
        store.refresh()
        try:
            rows = {name: values.to_rows(value, store.record(name).dtype) for name, value in given.items()}
            update.append(store, _storable(rows))
        except ArrayNotFoundError as error:
            raise AppendTargetError(str(error)) from None

    def replace(self, arrays: dict[str, Any], indexes: Any) -> None:
        """Overwrite rows in place. Other readers see this at once; it is not atomic. Of a compressed array, a crash
        leaves all of the rows changed or none.

        Parameters
        ----------
        arrays : dict of str to array_like
            As many rows as `indexes` selects, of the array's dtype.
        indexes : int, list, tuple or array of int, slice, boolean mask
            Which rows of each array. Negative numbers count from the end; of duplicates the last counts.

        Raises
        ------
        ArrayNotFoundError
        RowIndexError
            If a row is out of bounds (an IndexError and a ValueError); nothing is written then.
        ValueError
            If the shape or the number of rows differs.
        TypeError
            If the dtype differs.
        ReadOnlyError, OSError
        """
        store = self._store
        parsed = _rows.parse(indexes)
        todo = []
        for name, value in _rows.check_dict(arrays).items():
            record = store.current(name)
            if not record.shape:
                raise errors.no_rows(name)
            rows = as_rows(_rows.resolve(name, indexes, record.n_rows), record.n_rows)
            new = _storable({name: values.to_rows(value, record.dtype)})[name]
            if isinstance(parsed, int) and new.ndim + 1 == len(record.shape):
                # The row itself, as in array[index] = row.
                new = new[np.newaxis]
            update.check_rows(record, new)
            if len(new) != len(rows):
                raise ValueError(f'array "{name}": {len(new)} rows given for {len(rows)} indexes')
            todo.append((name, rows, new))
        store.check_writable()
        for name, rows, new in todo:
            if len(rows):
                update.replace(store, name, rows, new)

    def create(self, name: str, shape: Any, dtype: Any = None, *, compress: Any = None) -> None:
        """Make an array of zeros, which takes no space before something is written to it.

        Parameters
        ----------
        name : str
        shape : int or tuple of int
        dtype : dtype_like, optional
            By default float64.
        compress : bool, int or dict, optional
            As of `save`.

        Raises
        ------
        ArrayExistsError
            If there is an array of this name.
        TypeError, ValueError
            For a dtype, shape or name that no array can have.
        ReadOnlyError, OSError
        """
        compression = self._how("compress", compress)
        store = self._store
        kind = np.dtype(dtype)
        _rows.check_dtype(_name(name), kind)
        update.create(store, name, kind, _rows.check_shape(name, shape), compression)

    def write_rows(self, name: str, start: int, rows: Any) -> None:
        """Write rows over those that an array has, from row `start` on. Any number of processes and threads may do so at
        once, if no row is written by two.

        Parameters
        ----------
        name : str
        start : int
            The first row.
        rows : array_like, shape (n, \\*row_shape)
            Of the array's dtype.

        Raises
        ------
        ArrayNotFoundError
        RowIndexError
            If the array does not have these rows; nothing is written then.
        ValueError, TypeError
            If the rows have another shape or dtype.
        ReadOnlyError, OSError
        """
        store = self._store
        try:
            start = operator.index(start)
        except TypeError:
            raise TypeError(f"start is of type {type(start).__name__}, expected an int") from None
        if start < 0:
            raise RowIndexError(f"start is {start}, expected a row counted from the first one, which is 0")
        new = values.to_rows(rows, store.current(_name(name)).dtype)
        update.write_rows(store, name, start, _storable({name: new})[name])

    def clone(self, source: str, target: str) -> None:
        """Copy an array: its rows without those that were dropped, its codec and its attributes.

        Parameters
        ----------
        source, target : str

        Raises
        ------
        ArrayNotFoundError
            If there is no array `source`.
        ArrayExistsError
            If there is an array `target`.
        CorruptStoreError, ReadOnlyError, OSError
        """
        update.copy_array(self._store, _name(source), _name(target))

    def flush(self) -> None:
        """Return when everything that was written through this object since it was opened is on the disk. Nothing happens
        if it is opened for reading.

        Raises
        ------
        OSError
            After which the store takes no more changes until it is opened again.
        """
        store = self._store
        if store.writable:
            self._tell_mapped(store)
            update.flush(store)

    def _get_attrs(self, name: str | None) -> dict[str, Any]:
        store = self._current()
        return copy.deepcopy(store.manifest.table.attrs if name is None else store.record(name).attrs)

    def _set_attrs(self, name: str | None, set: dict[str, Any], remove: list[str]) -> None:
        update.set_attrs(self._store, name, values.attributes(set), list(remove))

    def _commit(
        self,
        save: dict[str, Any],
        remove: list[str],
        compress: dict[str, Any] | None = None,
        attrs: dict[str | None, tuple[dict[str, Any], list[str]]] | None = None,
    ) -> None:
        compressions = {name: self._how("compress", how) for name, how in (compress or {}).items()}
        changed = {of: (values.attributes(added), list(removed)) for of, (added, removed) in (attrs or {}).items()}
        update.change(self._store, values.to_save(save), list(remove), self._compression, compressions, changed)

    def _map(self, name: str) -> np.ndarray | None:
        mapped = update.map_writable(self._store, _name(name))
        if mapped is not None and mapped.nbytes:
            self._mapped.append((name, weakref.ref(mapped)))
        return mapped

    def _write_back(self, name: str, start: int, rows: np.ndarray) -> None:
        store = self._store
        if any(reference() is rows for of, reference in self._mapped if of == name):
            update.tell_mapped(store, name)
            return
        new = values.to_rows(rows, store.current(name).dtype)
        numbers = np.arange(start, start + len(new))
        update.replace(store, name, numbers, new, only_changed=True)

    def _tell_mapped(self, store: Store) -> None:
        """Tell others of what was written through mappings so far; keep those of which more may come."""
        mapped, self._mapped = self._mapped, []
        for name in dict.fromkeys(name for name, _ in mapped):
            update.tell_mapped(store, name)
        self._mapped += [(name, reference) for name, reference in mapped if reference() is not None]

    def drop(self, name: Any, indexes: Any = None) -> None:
        """Drop arrays, or rows of arrays.

        Parameters
        ----------
        name : str or list of str
            Names that are not there are ignored.
        indexes : int, list, tuple or array of int, slice, boolean mask; optional
            The rows to drop, of each of the arrays; those that are not there are ignored. Without it, the arrays
            themselves are dropped.

        Raises
        ------
        RowIndexError
            If `indexes` is no row index, or a mask of the wrong length.
        ReadOnlyError, OSError
        """
        store = self._store
        if indexes is not None:
            _rows.parse(indexes)
        given = _rows.names_of(name)
        if indexes is None:
            update.remove(store, given)
            return
        store.refresh()
        rows_of = {}
        for each in dict.fromkeys(given):
            record = store.manifest.table.get(each)
            if record is None:
                continue
            if not record.shape:
                raise errors.no_rows(each)
            rows = as_rows(_rows.resolve_existing(each, indexes, record.n_rows), record.n_rows)
            if len(rows):
                rows_of[each] = rows
        store.check_writable()
        if rows_of:
            update.drop_rows(store, rows_of)

    def getitem(self, name: str, indexes: Any, *, out: np.ndarray | None = None) -> np.ndarray:
        """Read rows of an array.

        Parameters
        ----------
        name : str
        indexes : int, list, tuple or array of int, slice, boolean mask
        out : ndarray, optional
            As of `load`.

        Returns
        -------
        ndarray, shape (n, \\*row_shape)
            `out`, or a new array, with the rows in the order of `indexes`; an int gives one row.

        Raises
        ------
        ArrayNotFoundError, RowIndexError, OSError
        TypeError, ValueError
            If `out` does not fit, as `load` says.
        """
        _rows.parse(indexes)
        array = self._array(name)
        record = array.record
        if not record.shape:
            raise errors.no_rows(name)
        rows = _rows.resolve(name, indexes, record.n_rows)
        n_rows = _rows.count(rows, record.n_rows)
        if out is not None:
            _rows.check_out(out, record.dtype, (n_rows, *record.shape[1:]))
        if isinstance(rows, slice):
            start, _, step = rows.indices(record.n_rows)
            if step == 1:
                return array.rows(start, start + n_rows, out)
        return array.gather(as_rows(rows, record.n_rows), out)

    def stream_load(self, array_name: str, buffer_size: int | None = None) -> Iterator[np.ndarray]:
        """Read an array from its first row to its last, some rows at a time.

        Parameters
        ----------
        array_name : str
        buffer_size : int, optional
            How many rows at a time; by default one.

        Returns
        -------
        iterator of ndarray, shape (n, \\*row_shape)
            Rows are read when they are asked for.

        Raises
        ------
        ArrayNotFoundError
        ValueError
            If `buffer_size` is not positive, or the array is 0-d.
        CorruptStoreError, OSError
        """
        array = self._array(array_name)
        at_once = 1 if buffer_size is None else buffer_size
        if not isinstance(at_once, (int, np.integer)) or at_once < 1:
            raise ValueError(
                f"buffer_size is {buffer_size!r}, expected a positive number of rows, or None for one row at a time"
            )
        if not array.record.shape:
            raise errors.no_rows(array_name)
        return RowStream(array, int(at_once))

    def get_shape(self, name: str | None = None) -> Any:
        """The shape of an array, or of all.

        Parameters
        ----------
        name : str, optional

        Returns
        -------
        tuple of int, or dict of str to tuple of int

        Raises
        ------
        ArrayNotFoundError
        """
        store = self._current()
        if name is not None:
            return store.record(_name(name)).shape
        return {record.name: record.shape for record in store.manifest.table.records()}

    def get_member_list(self) -> list[str]:
        """The names of all arrays, in the order of their first save."""
        return self._current().manifest.table.names()

    def get_metadata(self) -> dict[str, Any]:
        """What is in the store.

        Returns
        -------
        dict
            ``base_dir``, ``total_arrays``, and ``arrays``: for each name its ``shape`` (list), ``dtype`` ('Float32'),
            ``size_bytes``, ``data_file``, ``last_modified`` (microseconds since 1970), ``codec`` (a dict with ``level``,
            ``block`` and ``filter``, as `save` takes it; None if it is not compressed), and ``stored_bytes``, what the
            elements take in the file, dropped rows included.
        """
        store = self._current()
        records = store.manifest.table.records()
        arrays = {
            record.name: {
                "shape": list(record.shape),
                "data_file": record.file,
                "last_modified": _modified(store, record) // 1000,
                "size_bytes": record.nbytes,
                "stored_bytes": record.layout.nbytes if record.index is None else record.index.live,
                "codec": _described(record.codec),
                "dtype": _dtype_name(record),
            }
            for record in records
        }
        return {"total_arrays": len(records), "arrays": arrays, "base_dir": self._path}

    def has_array(self, name: object) -> bool:
        """Whether there is an array of this name."""
        table = self._current().manifest.table
        return isinstance(name, str) and name in table

    def __contains__(self, name: object, /) -> bool:
        return self.has_array(name)

    def __len__(self) -> int:
        return len(self._current().manifest.table)

    def __iter__(self) -> Iterator[str]:
        return iter(self.get_member_list())

    def __bool__(self) -> bool:
        # A store is true even if it is empty.
        return True

    def get_modify_time(self, name: str) -> int | None:
        """When an array was last changed.

        Returns
        -------
        int or None
            Microseconds since 1970; None if there is no such array.
        """
        store = self._current()
        record = store.manifest.table.get(_name(name))
        return None if record is None else _modified(store, record) // 1000

    def reset(self) -> None:
        """Remove all arrays. Files that are not the store's stay."""
        update.clear(self._store)

    def update(self, name: str) -> None:
        """Give back the space of dropped rows, and of what a compressed array does not need any more. Nothing happens if
        there is none.

        Raises
        ------
        ArrayNotFoundError, ReadOnlyError, OSError
        """
        update.compact(self._store, _name(name))

    def recompress(self, name: str, codec: Any = True) -> bool:
        """Compress an array that is stored, differently or not at all.

        Parameters
        ----------
        name : str
        codec : bool, int or dict, default True
            As `compress` of `save`; None or False: not compressed.

        Returns
        -------
        bool
            Whether anything had to be done. If so, the new version is on the disk.

        Raises
        ------
        ArrayNotFoundError
        TypeError, ValueError
            As `save` does for `compress`.
        CorruptStoreError, ReadOnlyError, OSError
        """
        to = values.compression("codec", codec)
        return update.recompress(self._store, _name(name), to)

    def __repr__(self) -> str:
        store = self._store_or_none
        if store is None:
            return f"NumPack({self._path}, status=closed)"
        return f"NumPack({self._path}, arrays={len(store.manifest.table)}, backend={self.backend_type})"


class RowStream:
    """The iterator of `NumPack.stream_load`: rows of one version of an array, some at a time."""

    def __init__(self, array: Array, at_once: int) -> None:
        self._array = array
        self._at_once = at_once
        # Threads that share an iterator get different rows.
        self._starts = itertools.count(0, at_once)
        self._n_given = 0

    def __iter__(self) -> RowStream:
        return self

    def __next__(self) -> np.ndarray:
        start = next(self._starts)
        n_rows = self._array.record.n_rows
        if start >= n_rows:
            raise StopIteration
        self._n_given += 1
        return self._array.rows(start, min(n_rows, start + self._at_once))

    def __length_hint__(self) -> int:
        return max(0, -(-self._array.record.n_rows // self._at_once) - self._n_given)


def _name(name: object) -> str:
    if not isinstance(name, str):
        shown = "'None'" if name is None else f"'{type(name).__name__}' object"
        raise TypeError(f"{shown} is not an instance of 'str'")
    return _rows.check_text(name)


def _storable(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: _rows.storable(name, value) for name, value in rows.items()}


def _modified(store: Store, record: Record) -> int:
    """Time of the last commit, or of a later write in place, in nanoseconds since 1970."""
    try:
        if is_segmented(record.file):
            return store.array_of(record).modified()
        return max(record.mtime, store.directory.stat(record.file).st_mtime_ns)
    except (OSError, CorruptStoreError):
        return record.mtime


def _dtype_name(record: Record) -> str:
    try:
        return _rows.dtype_name(record.dtype)
    except UnsupportedError:
        # One of another machine's.
        return record.descr if isinstance(record.descr, str) else dtypes.shown(record.descr)


def _described(codec: Codec | None) -> dict[str, Any] | None:
    return None if codec is None else {"level": codec.level, "block": codec.block_len, "filter": codec.filter}
