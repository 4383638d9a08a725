"""`batch_mode`: arrays are loaded once, changed in memory, and committed together at the end.

A store in such a block is an instance of another class, which has `BatchMethods` before the methods of the core: so
nothing is asked and nothing costs anything outside of a block. What a block changes is kept in an `Overlay` over the
store, and every method of the store that reads looks there first.
"""

import functools
import math
import operator
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, SupportsIndex, TypeVar, cast

import numpy as np

from numpack import _rows
from numpack._attrs import plain_attrs
from numpack._errors import AppendTargetError, ArrayExistsError, ArrayNotFoundError, RowIndexError
from numpack._memory import mapped_temporary, zeros
from numpack._rows import AnyArray, RowIndex

if TYPE_CHECKING:
    from types import TracebackType

    from numpack._native import LazyArray
    from numpack._native import NumPack as _Core
    from numpack._store import NumPack
else:
    _Core = object

# How many bytes are compared at once when an array may have been changed in place.
_PIECE_LEN = 1 << 20

# Held while a store's class changes; behind an overlay's lock, where both are.
_switching = threading.Lock()


class BatchModeContext:
    """The block of `NumPack.batch_mode`, for ``with``.

    Parameters
    ----------
    numpack_instance : NumPack
    memory_limit : int, optional
        Bytes; see `NumPack.batch_mode`.

    Attributes
    ----------
    npk : NumPack
        The store, which is used as always within the block.
    memory_limit : int or None
    """

    def __init__(self, numpack_instance: "NumPack", memory_limit: int | None = None) -> None:
        if memory_limit is not None:
            try:
                memory_limit = math.ceil(memory_limit)
            except (TypeError, ValueError, OverflowError):
                raise TypeError(
                    f"memory_limit is {memory_limit!r}, expected a number of bytes, or None for no limit"
                ) from None
            if memory_limit < 0:
                raise ValueError(f"memory_limit is {memory_limit}, expected at least 0 bytes, or None for no limit")
        self.npk = numpack_instance
        self.memory_limit = memory_limit

    def __enter__(self) -> "BatchModeContext":
        """Begin the block, or join the one that the store is in.

        Raises
        ------
        StoreClosedError
        """
        while True:
            overlay = self.npk._overlay
            if overlay is None:
                with _switching:
                    if self.npk._overlay is None:
                        # Raises unless the store is open.
                        self.npk.has_array("")
                        self.npk._overlay = Overlay(self.npk, self.memory_limit)
                        self.npk.__class__ = batch_class(type(self.npk))
                        return self
            else:
                # Waits for a block that another thread is ending.
                with overlay.lock:
                    if not overlay.is_over:
                        overlay.n_blocks += 1
                        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        """End the block: commit what it changed, or forget it if the block raised."""
        overlay = self.npk._overlay
        if overlay is None:
            return
        # Calls of other threads wait for the commit, and are the store's own behind it.
        with overlay.lock:
            overlay.n_blocks -= 1
            if overlay.n_blocks:
                return
            try:
                if error is None:
                    overlay.commit(self.npk)
            finally:
                with _switching:
                    overlay.is_over = True
                    self.npk._overlay = None
                    outside: Any = type(self.npk)
                    self.npk.__class__ = outside._outside


def batch_class(cls: "type[NumPack]") -> "type[NumPack]":
    """The class of a store of class `cls` within a block.

    It comes before `cls` where that is numpack's own, and behind what others derived from it: their methods go on
    calling ``super()``, and reach the block's.
    """
    found = cls.__dict__.get("_inside")
    if found is None:
        public = cls._public
        if cls is public:
            bases: tuple[type, ...] = (BatchMethods, cls)
        else:
            bases = (cls, batch_class(public))
        kind: Any = type(cls)
        namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        found = kind(cls.__name__, bases, namespace | {"_outside": cls, "__new__": _made_outside})
        cls._inside = found
    return cast("type[NumPack]", found)


def _made_outside(cls: Any, /, *args: Any, **kwargs: Any) -> "NumPack":
    """A store that is made within the block of another, by its type, is not in that block."""
    return cast("NumPack", cls._outside(*args, **kwargs))


class Entry:
    """An array as the block has it."""

    __slots__ = ("array", "before", "compress", "in_memory", "modified", "tail")

    def __init__(self, array: AnyArray, before: "LazyArray | None" = None, in_memory: int = 0) -> None:
        # What load gives, but for the rows of `tail`, which were appended since somebody looked.
        self.array = array
        self.tail: list[AnyArray] = []
        # What the store had when the array was loaded; None if the block says that the array is written.
        self.before = before
        self.in_memory = in_memory
        # What `save` was given, in a tuple; empty: the array keeps its codec.
        self.compress: tuple[Any, ...] = ()
        self.modified: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.array.shape
        return (shape[0] + sum(map(len, self.tail)), *shape[1:]) if self.tail else shape

    def is_changed(self) -> bool:
        return self.before is None or bool(self.tail) or differs(self.array, self.before)


class Overlay:
    """What a block has loaded and changed, over the store as it is."""

    def __init__(self, store: "NumPack", memory_limit: int | None) -> None:
        # Held by each method of the store within the block.
        self.lock = threading.RLock()
        self.n_blocks = 1
        self.is_over = False
        self.entries: dict[str, Entry] = {}
        # Arrays of the store that the block has dropped, if it saved others under these names or not.
        self.gone: dict[str, None] = {}
        # All attributes of what the block gave others: of an array, or None for the store.
        self.attrs: dict[str | None, dict[str, Any]] = {}
        self.memory_limit = memory_limit
        self.in_memory = 0
        self.folder = store.path

    def put(self, name: str, entry: Entry) -> None:
        if name in self.entries:
            self.in_memory -= self.entries[name].in_memory
        self.in_memory += entry.in_memory
        self.entries[name] = entry

    def forget(self, name: str) -> None:
        self.in_memory -= self.entries.pop(name).in_memory

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[AnyArray, int]:
        """A new array with any items, and what of it counts for the limit: nothing if it lies in a file."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self.memory_limit is None or self.in_memory + nbytes <= self.memory_limit:
            return np.ndarray(shape, dtype), nbytes
        return mapped_temporary(self.folder, shape, dtype), 0

    def merged(self, name: str, entry: Entry) -> AnyArray:
        """The array with the rows that were appended to it."""
        if entry.tail:
            whole, in_memory = self.empty(entry.shape, entry.array.dtype)
            np.concatenate([entry.array, *entry.tail], out=whole)
            self.in_memory += in_memory - entry.in_memory
            entry.array, entry.tail, entry.in_memory = whole, [], in_memory
        return entry.array

    def commit(self, store: "NumPack") -> None:
        """Write what the block changed, in one commit."""
        changed = {name: entry for name, entry in self.entries.items() if entry.is_changed()}
        arrays = {name: self.merged(name, entry) for name, entry in changed.items()}
        # One that was dropped and saved again is a new one: it has nothing of the old one's but the place.
        compress: dict[str, Any] = {name: None for name in arrays if name in self.gone}
        compress |= {name: entry.compress[0] for name, entry in changed.items() if entry.compress}
        # Not what the block, or a class derived by somebody else, has under these names.
        public = store._public
        attrs = {}
        for of, wanted in self.attrs.items():
            if of is None or of in arrays or of not in self.gone:
                is_new = of in arrays and not public.has_array(store, of)
                found = {} if is_new else public._get_attrs(store, of)
                new = {key: value for key, value in wanted.items() if key not in found or found[key] != value}
                old = [key for key in found if key not in wanted]
                if new or old:
                    attrs[of] = (new, old)
        removed = [name for name in self.gone if name not in arrays]
        if arrays or removed or attrs:
            public._commit(store, arrays, removed, compress, attrs)


P = ParamSpec("P")
R = TypeVar("R")


def _within(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a store within a block, one at a time.

    A thread may call it just when another ends the block. Then it is the store's own method that is called, behind the
    commit.
    """
    name = method.__name__

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        store: Any = args[0]
        overlay = store._overlay
        if overlay is not None:
            with overlay.lock:
                if not overlay.is_over:
                    return method(*args, **kwargs)
        if name == "_load":
            _, array, rows, out = args
            return cast("R", store._public.load(store, array, rows=rows, out=out))
        return cast("R", getattr(store._public, name)(*args, **kwargs))

    return call


class BatchMethods(_Core):
    """The methods of a store within a block: `super()` has those of the store."""

    _overlay: Overlay

    def load(self, name: str, lazy: bool = False, *, rows: RowIndex | None = None, out: AnyArray | None = None) -> Any:
        overlay = self._overlay
        entry = overlay.entries.get(name) if overlay is not None else None
        # What loops do, without more ado: everything below gives the same.
        if entry is not None and not entry.tail and rows is None and out is None:
            return entry.array
        return self._load(name, rows, out)

    @_within
    def _load(self, name: str, rows: RowIndex | None, out: AnyArray | None) -> Any:
        overlay = self._overlay
        entry = overlay.entries.get(name)
        if entry is None:
            self._check_not_gone(name)
            if rows is not None or out is not None:
                return super().load(name, rows=rows, out=out)
            entry = self._read(name)
        array = overlay.merged(name, entry)
        if rows is not None:
            return _rows_of(name, array, rows, out)
        if out is not None:
            _rows.check_out(out, array.dtype, array.shape)[...] = array
            return out
        return array

    @_within
    def save(self, arrays: dict[str, Any], compress: Any = None) -> None:
        overlay = self._overlay
        if compress is None and type(arrays) is dict:
            # What loops do, without more ado: saving what was loaded.
            for name, value in arrays.items():
                entry = overlay.entries.get(name)
                if entry is None or entry.array is not value or entry.tail or entry.compress:
                    break
                if entry.before is not None:
                    _touch(entry)
            else:
                return
        _rows.check_dict(arrays)
        _rows.check_compress("compress", compress)
        new = {name: _rows.storable(name, value) for name, value in arrays.items()}
        for name, array in new.items():
            entry = overlay.entries.get(name)
            if entry is not None and entry.array is array and not entry.tail:
                entry.before = None
            else:
                # Load gives arrays that can be written. What the caller made is his memory, not the cache's.
                entry = Entry(array if array.flags.writeable else array.copy())
                overlay.put(name, entry)
            entry.compress = () if compress is None else (compress,)
            entry.modified = _now()

    @_within
    def append(self, arrays: dict[str, Any]) -> None:
        overlay = self._overlay
        _rows.check_dict(arrays)
        new = []
        for name, value in arrays.items():
            try:
                entry = self._entry(name)
            except ArrayNotFoundError as error:
                raise AppendTargetError(str(error)) from None
            # The caller may change the rows afterwards.
            rows = np.array(_rows.rows_like(name, value, entry.shape, entry.array.dtype), order="C")
            if len(rows):
                new.append((entry, rows))
        for entry, rows in new:
            entry.tail.append(rows)
            _touch(entry)

    @_within
    def replace(self, arrays: dict[str, Any], indexes: RowIndex) -> None:
        overlay = self._overlay
        _rows.parse(indexes)
        new = []
        for name, value in _rows.check_dict(arrays).items():
            entry = self._entry(name)
            array = overlay.merged(name, entry)
            new.append((entry, *_replacement(name, array, value, indexes)))
        for entry, rows, values in new:
            if not entry.array.flags.writeable:
                entry.array = entry.array.copy()
            entry.array[rows] = values
            _touch(entry)

    @_within
    def write_rows(self, name: str, start: SupportsIndex, rows: Any) -> None:
        overlay = self._overlay
        start = operator.index(start)
        entry = self._entry(name)
        array = overlay.merged(name, entry)
        values = _rows.rows_like(name, rows, array.shape, array.dtype)
        if start < 0 or start + len(values) > len(array):
            raise RowIndexError(
                f"rows {start} to {start + len(values)} are out of bounds for array '{name}' "
                f"with {len(array)} rows; append adds rows"
            )
        array[start : start + len(values)] = values
        _touch(entry)

    @_within
    def drop(self, name: Any, indexes: RowIndex | None = None) -> None:
        overlay = self._overlay
        names = _rows.names_of(name)
        if indexes is None:
            for each in names:
                self._remove(each)
            return
        _rows.parse(indexes)
        kept = []
        for each in dict.fromkeys(names):
            if not self.has_array(each):
                continue
            shape = self.get_shape(each)
            if not shape:
                raise ValueError(_rows.no_rows(each))
            rows = _rows.resolve_existing(each, indexes, shape[0])
            if _rows.count(rows, shape[0]):
                kept.append((each, rows))
        for each, rows in kept:
            entry = self._entry(each)
            array = overlay.merged(each, entry)
            keep = np.ones(len(array), np.bool_)
            keep[rows] = False
            whole, in_memory = overlay.empty((int(keep.sum()), *array.shape[1:]), array.dtype)
            np.compress(keep, array, axis=0, out=whole)
            overlay.in_memory += in_memory - entry.in_memory
            entry.array, entry.in_memory = whole, in_memory
            _touch(entry)

    @_within
    def getitem(self, name: str, indexes: RowIndex, *, out: AnyArray | None = None) -> AnyArray:
        overlay = self._overlay
        entry = overlay.entries.get(name)
        if entry is None:
            self._check_not_gone(name)
            return super().getitem(name, indexes) if out is None else super().getitem(name, indexes, out=out)
        return _rows_of(name, overlay.merged(name, entry), indexes, out)

    @_within
    def stream_load(self, array_name: str, buffer_size: int | None = None) -> Iterator[AnyArray]:
        overlay = self._overlay
        entry = overlay.entries.get(array_name)
        if entry is None:
            self._check_not_gone(array_name)
            return super().stream_load(array_name, buffer_size)
        n_at_once = 1 if buffer_size is None else buffer_size
        if not isinstance(n_at_once, (int, np.integer)) or n_at_once < 1:
            raise ValueError(
                f"buffer_size is {buffer_size!r}, expected a positive number of rows, or None for one row at a time"
            )
        array = overlay.merged(array_name, entry)
        if not array.ndim:
            raise ValueError(_rows.no_rows(array_name))
        starts = range(0, len(array), int(n_at_once))
        return (array[start : start + int(n_at_once)].copy() for start in starts)

    @_within
    def get_shape(self, name: str | None = None) -> Any:
        overlay = self._overlay
        if name is not None:
            entry = overlay.entries.get(name)
            if entry is not None:
                return entry.shape
            self._check_not_gone(name)
            return super().get_shape(name)
        stored = super().get_shape()
        shapes = {}
        for each in self._names(stored):
            entry = overlay.entries.get(each)
            shapes[each] = stored[each] if entry is None else entry.shape
        return shapes

    @_within
    def get_member_list(self) -> list[str]:
        return self._names(super().get_member_list())

    @_within
    def has_array(self, name: object) -> bool:
        overlay = self._overlay
        # Of a closed store, this raises.
        is_stored = super().has_array(name)
        return isinstance(name, str) and (name in overlay.entries or (is_stored and name not in overlay.gone))

    def __contains__(self, name: object, /) -> bool:
        return self.has_array(name)

    def __len__(self) -> int:
        return len(self.get_member_list())

    def __iter__(self) -> Iterator[str]:
        return iter(self.get_member_list())

    @_within
    def get_metadata(self) -> dict[str, Any]:
        overlay = self._overlay
        metadata = super().get_metadata()
        stored = metadata["arrays"]
        metadata["arrays"] = arrays = {}
        for name in self._names(stored):
            entry = overlay.entries.get(name)
            if entry is None:
                arrays[name] = stored[name]
                continue
            known = stored.get(name) if name not in overlay.gone else None
            nbytes = math.prod(entry.shape) * entry.array.dtype.itemsize
            of_entry = {"shape": list(entry.shape), "dtype": _rows.dtype_name(entry.array.dtype), "size_bytes": nbytes}
            if known is None:
                rest = {"data_file": None, "last_modified": entry.modified, "stored_bytes": nbytes, "codec": None}
                arrays[name] = of_entry | rest
            else:
                arrays[name] = known | of_entry
                if entry.modified is not None:
                    arrays[name]["last_modified"] = entry.modified
        metadata["total_arrays"] = len(arrays)
        return metadata

    @_within
    def get_modify_time(self, name: str) -> int | None:
        overlay = self._overlay
        entry = overlay.entries.get(name)
        if entry is not None and entry.modified is not None:
            return entry.modified
        if entry is None and name in overlay.gone:
            return None
        return super().get_modify_time(name)

    @_within
    def reset(self) -> None:
        for name in self.get_member_list():
            self._remove(name)

    @_within
    def update(self, name: str) -> None:
        overlay = self._overlay
        if name in overlay.entries:
            return
        self._check_not_gone(name)
        super().update(name)

    @_within
    def recompress(self, name: str, codec: Any = True) -> bool:
        _rows.check_compress("codec", codec)
        entry = self._entry(name)
        _touch(entry)
        entry.compress = (codec,)
        return True

    @_within
    def clone(self, source: str, target: str) -> None:
        overlay = self._overlay
        if not self.has_array(source):
            raise self._not_found(source)
        self._check_free(target)
        compress, attrs = self._codec(source), self._get_attrs(source)
        if source in overlay.entries:
            of_source = self.load(source)
        else:
            # In the order (C or Fortran) that it has.
            of_source = super().load(source)
        array, in_memory = of_source, of_source.nbytes
        if overlay.memory_limit is not None and overlay.in_memory + in_memory > overlay.memory_limit:
            array, in_memory = mapped_temporary(overlay.folder, of_source.shape, of_source.dtype), 0
            array[...] = of_source
        elif source in overlay.entries:
            array = of_source.copy(order="K")
        entry = Entry(array, in_memory=in_memory)
        entry.compress = compress
        entry.modified = _now()
        overlay.put(target, entry)
        overlay.attrs[target] = attrs

    @_within
    def create(self, name: str, shape: Any, dtype: Any = None, *, compress: Any = None) -> None:
        overlay = self._overlay
        self._check_free(name)
        _rows.check_compress("compress", compress)
        dims, kind = _rows.check_shape(name, shape), np.dtype(dtype)
        _rows.check_dtype(name, kind)
        nbytes = math.prod(dims) * kind.itemsize
        if overlay.memory_limit is None or overlay.in_memory + nbytes <= overlay.memory_limit:
            entry = Entry(zeros(dims, kind), in_memory=nbytes)
        else:
            # What was never written in a file is zero.
            entry = Entry(mapped_temporary(overlay.folder, dims, kind))
        entry.compress = () if compress is None else (compress,)
        entry.modified = _now()
        overlay.put(name, entry)
        overlay.attrs[name] = {}

    @_within
    def _get_attrs(self, name: str | None) -> dict[str, Any]:
        overlay = self._overlay
        if name in overlay.gone and name not in overlay.entries:
            raise self._not_found(name)
        if name in overlay.attrs:
            return plain_attrs(overlay.attrs[name])
        if name in overlay.entries and not super().has_array(name):
            return {}
        return super()._get_attrs(name)

    @_within
    def _set_attrs(self, name: str | None, set: dict[str, Any], remove: list[str]) -> None:  # noqa: A002
        overlay = self._overlay
        attrs = self._get_attrs(name)
        for key in remove:
            attrs.pop(key, None)
        overlay.attrs[name] = attrs | plain_attrs(set)

    def _entry(self, name: str) -> Entry:
        """The array as the block has it; loaded if need be."""
        entry = self._overlay.entries.get(name)
        if entry is None:
            self._check_not_gone(name)
            entry = self._read(name)
        return entry

    def _codec(self, name: str) -> tuple[Any, ...]:
        """How the array will be compressed: what `save` takes, in a tuple; empty for not at all."""
        overlay = self._overlay
        entry = overlay.entries.get(name)
        if entry is not None and entry.compress:
            return entry.compress
        if name in overlay.gone:
            return ()
        known = super().get_metadata()["arrays"].get(name, {}).get("codec")
        return () if known is None else (known,)

    def _read(self, name: str) -> Entry:
        overlay = self._overlay
        before = super().load(name, lazy=True)
        if overlay.memory_limit is None or overlay.in_memory + before.nbytes <= overlay.memory_limit:
            entry = Entry(super().load(name), before, before.nbytes)
        else:
            array = mapped_temporary(overlay.folder, before.shape, before.dtype)
            entry = Entry(super().load(name, out=array), before)
        overlay.put(name, entry)
        return entry

    def _remove(self, name: str) -> None:
        overlay = self._overlay
        if name in overlay.entries:
            overlay.forget(name)
        overlay.attrs.pop(name, None)
        if super().has_array(name):
            overlay.gone[name] = None
            # An array that is saved under this name has no attributes of the old one's.
            overlay.attrs[name] = {}

    def _names(self, stored: Any) -> list[str]:
        """The names that the block sees, in order, over those that are stored."""
        overlay = self._overlay
        # One that was dropped and saved again has its old place: it is one array of the commit, not two.
        names = dict.fromkeys(name for name in stored if name not in overlay.gone or name in overlay.entries)
        names.update(dict.fromkeys(overlay.entries))
        return list(names)

    def _check_not_gone(self, name: str) -> None:
        if name in self._overlay.gone:
            raise self._not_found(name)

    def _check_free(self, name: object) -> None:
        if self.has_array(_rows.check_name(name)):
            raise ArrayExistsError(f'{self._overlay.folder}: array "{name}" already exists')

    def _not_found(self, name: str) -> ArrayNotFoundError:
        return ArrayNotFoundError(f'{self._overlay.folder}: array "{name}" does not exist')


def differs(array: AnyArray, before: "LazyArray") -> bool:
    """Whether an array has another shape, dtype or other bytes than before."""
    if array.shape != before.shape or array.dtype != before.dtype:
        return True
    if not array.size or not array.dtype.itemsize:
        return False
    stored: Any = before
    try:
        stored = before.__array__(copy=False)
    except ValueError:
        # There is no view of it: it is read piece by piece.
        if array.ndim == 0:
            stored = np.asarray(before)
    if array.ndim == 0:
        return bool(array.tobytes() != stored.tobytes())
    if isinstance(stored, np.ndarray) and not array.flags.c_contiguous and array.flags.f_contiguous:
        array, stored = array.T, stored.T
    n_rows = max(1, _PIECE_LEN * len(array) // array.nbytes)
    starts = range(0, len(array), n_rows)
    return any(_bytes_differ(array[start : start + n_rows], stored[start : start + n_rows]) for start in starts)


def _bytes_differ(one: AnyArray, other: AnyArray) -> bool:
    one, other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    if one.nbytes % 8 == 0:
        one, other = one.view(np.uint64), other.view(np.uint64)
    return not np.array_equal(one, other)


def _replacement(name: str, array: AnyArray, value: Any, indexes: RowIndex) -> tuple[_rows.Rows, AnyArray]:
    """Which rows of `array` get which values."""
    if not array.ndim:
        raise ValueError(_rows.no_rows(name))
    rows = _rows.resolve(name, indexes, len(array))
    is_one = isinstance(_rows.parse(indexes), int)
    if is_one and np.ndim(value) + 1 == array.ndim:
        # The row itself, as in array[index] = row.
        value = np.asarray(value)[np.newaxis] if hasattr(value, "__array__") else [value]
    values = _rows.rows_like(name, value, array.shape, array.dtype)
    n_rows = _rows.count(rows, len(array))
    if len(values) != n_rows:
        raise ValueError(f'array "{name}": {len(values)} rows given for {n_rows} indexes')
    # Values that lie in the array itself would change while they are written.
    return rows, values.copy() if np.may_share_memory(values, array) else values


def _rows_of(name: str, array: AnyArray, indexes: RowIndex, out: AnyArray | None) -> AnyArray:
    if not array.ndim:
        raise ValueError(_rows.no_rows(name))
    rows = np.array(array[_rows.resolve(name, indexes, len(array))], order="C")
    if out is None:
        return rows
    _rows.check_out(out, rows.dtype, rows.shape)[...] = rows
    return out


def _touch(entry: Entry) -> None:
    """Say that the array is written at the end of the block, whatever is in it."""
    entry.before = None
    entry.modified = _now()


def _now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000
