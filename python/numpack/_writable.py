"""`writable_batch_mode`: arrays of a store, mapped for writing.

What is written to such an array is written to the data file, by the kernel, when it sees fit. A compressed array has
no such file: it is decoded into a temporary one without a name, and at the end of the block those of its blocks that
differ are encoded and committed.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from numpack import _rows
from numpack._errors import ArrayNotFoundError
from numpack._memory import mapped_temporary, zeros
from numpack._rows import AnyArray

if TYPE_CHECKING:
    from types import TracebackType

    from numpack._store import NumPack

# How many bytes of a compressed array are compared and encoded at once.
_PIECE_LEN = 64 << 20


class WritableBatchMode:
    """The block of `NumPack.writable_batch_mode`, for ``with``: it loads arrays that are mapped for writing.

    Parameters
    ----------
    numpack_instance : NumPack

    Examples
    --------
    >>> with NumPack("big.npk") as npk:
    ...     npk.save({"a": np.arange(4.0)})
    ...     with npk.writable_batch_mode() as wb:
    ...         a = wb.load("a")
    ...         a *= 2
    ...     npk.load("a")
    array([0., 2., 4., 6.])
    """

    def __init__(self, numpack_instance: "NumPack") -> None:
        self._store = numpack_instance
        self._prefix = ""
        self._n_blocks = 0
        self._mapped: dict[str, AnyArray] = {}
        # The data files of those that are a decoded copy: who saves over such an array, or drops it, leaves the copy.
        self._decoded: dict[str, str] = {}

    def _under(self, prefix: str) -> "WritableBatchMode":
        """The same for the arrays of a group, under their short names."""
        self._prefix = prefix
        return self

    def __enter__(self) -> "WritableBatchMode":
        """Begin the block.

        Raises
        ------
        StoreClosedError
        RuntimeError
            Within `batch_mode`, whose arrays are in memory.
        """
        if self._store._overlay is not None:
            raise RuntimeError(
                "writable_batch_mode changes the files at once, batch_mode at its end: leave the batch_mode block "
                "first, or use npk.load and npk.save in it"
            )
        # Raises unless the store is open.
        self._store.has_array("")
        self._n_blocks += 1
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        """End the block, after an exception too: what was written to the arrays stays written.

        Raises
        ------
        StoreClosedError
            If the store was closed within the block, and what was written to compressed arrays is lost.
        """
        self._n_blocks -= 1
        if self._n_blocks:
            return
        try:
            # A store that was closed meanwhile has told about those that are mapped itself.
            if self._decoded or self._store.is_opened:
                self.flush()
        finally:
            self._mapped = {}
            self._decoded = {}

    def load(self, name: str) -> AnyArray:
        """An array of the store, mapped: writing to it changes the store.

        Parameters
        ----------
        name : str

        Returns
        -------
        ndarray
            Of the array's shape and dtype, writable, without memory of its own; the same object each time. It stays
            valid after the block. Of a compressed array it is a decoded copy, whose changes are committed at the end
            of the block, and lost if they are made later.

        Raises
        ------
        ArrayNotFoundError, ReadOnlyError, CorruptStoreError, OSError
        RuntimeError
            Outside of the block.
        """
        self._check_inside()
        found = self._mapped.get(name)
        if found is not None:
            return found
        full = self._full(name)
        array = self._store._map(full)
        if array is None:
            file = self._file(full)
            lazy = self._store.load(full, lazy=True)
            array = mapped_temporary(self._store.path, lazy.shape, lazy.dtype)
            self._store.load(full, out=array)
            self._decoded[name] = file
        self._mapped[name] = array
        return array

    def save(self, arrays: Mapping[str, Any]) -> None:
        """Copy arrays into the mapped ones of these names. Nothing needs to be saved that was loaded in the block.

        Parameters
        ----------
        arrays : dict of str to array_like
            Each of the shape and dtype that the array has; the object that `load` gave, and views of all of it, are
            left as they are. All are checked before anything is written.

        Raises
        ------
        ArrayNotFoundError
            For new names.
        ValueError
            For another shape.
        TypeError
            For another dtype.
        """
        self._check_inside()
        checked = []
        for name, value in _rows.check_dict(arrays).items():
            try:
                array = self.load(name)
            except ArrayNotFoundError as error:
                raise ArrayNotFoundError(
                    f"{error}; writable_batch_mode makes no new arrays: use npk.save, or batch_mode"
                ) from None
            if value is array:
                continue
            new = np.asarray(value)
            advice = "writable_batch_mode keeps shape and dtype; use batch_mode to change them"
            if new.shape != array.shape:
                raise ValueError(f"array '{name}' has shape {array.shape}, not {new.shape}; {advice}")
            if new.dtype != array.dtype:
                is_array = isinstance(value, (np.ndarray, np.generic))
                if not np.can_cast(new.dtype, array.dtype, "equiv" if is_array else "same_kind"):
                    raise TypeError(f"array '{name}' has dtype {array.dtype}, not {new.dtype}; {advice}")
            checked.append((array, new))
        for array, new in checked:
            # NumPy notices if they overlap, and does nothing if they are the same memory.
            array[...] = new

    def flush(self) -> None:
        """Commit what was written to compressed arrays up to now, and tell mounts what was written to the others."""
        store = self._store
        stored = store.get_metadata()["arrays"] if self._decoded else {}
        for name, array in self._mapped.items():
            full = self._full(name)
            file = self._decoded.get(name)
            if file is None:
                # Its elements are where they belong; this tells those who keep copies, if it is still there.
                with contextlib.suppress(ArrayNotFoundError):
                    store._write_back(full, 0, array)
            elif full in stored and stored[full]["data_file"] == file:
                self._write_back(full, array, stored[full]["codec"]["block"])

    def _write_back(self, full: str, array: AnyArray, block_len: int) -> None:
        """Commit those blocks of a compressed array that are not as stored."""
        if array.ndim:
            for start, piece in _pieces(array, block_len):
                self._store._write_back(full, start, piece)
        elif array.tobytes() != self._store.load(full).tobytes():
            # It has no rows that could be written.
            self._store._commit({full: array}, [])
            self._decoded[full.removeprefix(self._prefix)] = self._file(full)

    def _file(self, full: str) -> str:
        """The data file, which no two versions of an array share."""
        return str(self._store.get_metadata()["arrays"][full]["data_file"])

    def _full(self, name: object) -> str:
        if not isinstance(name, str):
            raise TypeError(f"array names are str, not {type(name)}")
        return self._prefix + name

    def _check_inside(self) -> None:
        if not self._n_blocks:
            raise RuntimeError('the block is over, or was not entered; use "with npk.writable_batch_mode() as wb:"')

    def __repr__(self) -> str:
        return f"<WritableBatchMode of {self._store!r}, {len(self._mapped)} arrays mapped>"


def _pieces(array: AnyArray, block_len: int) -> list[tuple[int, AnyArray]]:
    """Parts of an array, and the row at which each begins: where blocks begin, so that no block is written twice."""
    if array.nbytes <= _PIECE_LEN:
        return [(0, array)]
    row_len = array.nbytes // len(array)
    n_rows = max(1, _PIECE_LEN // row_len)
    in_blocks = block_len // math.gcd(block_len, row_len)
    if in_blocks <= n_rows:
        n_rows -= n_rows % in_blocks
    return [(start, array[start : start + n_rows]) for start in range(0, len(array), n_rows)]


class WritableArray:
    """A file of bare elements, without a header, mapped as an array: for ``with``.

    It has nothing to do with a store. The array stays valid after the block.

    Parameters
    ----------
    file_path : str or os.PathLike
    shape : tuple of int
    dtype : data-type
    mode : {'r+', 'r', 'c', 'w+'}, default 'r+'
        As of `numpy.memmap`.

    Examples
    --------
    >>> np.zeros(4).tofile("bare.bin")
    >>> with WritableArray("bare.bin", (2, 2), np.float64) as array:
    ...     array[1] = 7
    >>> np.fromfile("bare.bin")
    array([0., 0., 7., 7.])
    """

    def __init__(self, file_path: Any, shape: Any, dtype: Any, mode: str = "r+") -> None:
        self.file_path = file_path
        self.shape = tuple(shape) if np.iterable(shape) else (int(shape),)
        self.dtype = np.dtype(dtype)
        self.mode = mode
        self._mapped: np.memmap[Any, Any] | None = None

    def __enter__(self) -> AnyArray:
        """Map the file.

        Returns
        -------
        ndarray
            Of the shape and dtype that were asked for.

        Raises
        ------
        OSError
        ValueError
            If the file is shorter than the array.
        """
        if 0 in self.shape or not self.dtype.itemsize:
            return zeros(self.shape, self.dtype)
        self._mapped = np.memmap(self.file_path, self.dtype, self.mode, shape=self.shape)  # type: ignore[call-overload]
        return np.asarray(self._mapped)

    def __exit__(self, *_exception: object) -> None:
        """Write what was changed to the disk."""
        if self._mapped is not None:
            self._mapped.flush()
            self._mapped = None
