"""`LazyArray`: an array of a store that is read when, and as far as, somebody looks at it.

Where the data is contiguous in its file it is a read-only NumPy array over a mapping, and every index form has NumPy's
result because NumPy computes it. An array that is compressed or has dropped rows has no such mapping: the rows that an
index asks for are read, and NumPy does the rest.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, Literal

import numpy as np

from numpack import _by_rows
from numpack._errors import RowIndexError
from numpack._memory import zeros
from numpack._pure.cached import cached_property
from numpack._pure.store import error as errors
from numpack._pure.store.array import Array

HINTS = ("sequential", "random", "boolean", "heavy")


def _operand(other: Any) -> Any:
    """The other operand of an operator, as NumPy takes it."""
    return other._whole() if isinstance(other, LazyArray) else other


def _bitwise(function: Any, *operands: Any) -> Any:
    """A bitwise operator. NumPy's message about numbers that have no bits names none of the two arrays."""
    try:
        return function(*operands)
    except TypeError as error:
        raise TypeError("Bitwise operations are only supported for integer arrays") from error


def _operators(function: Any, *, is_bitwise: bool = False) -> tuple[Any, Any]:
    """The methods for an operator, and for the same with the operands the other way round."""

    def call(left: Any, right: Any) -> Any:
        return _bitwise(function, left, right) if is_bitwise else function(left, right)

    def method(self: LazyArray, other: Any, /) -> Any:
        return call(self._whole(), _operand(other))

    def reflected(self: LazyArray, other: Any, /) -> Any:
        return call(_operand(other), self._whole())

    return method, reflected


class LazyArray:
    """An array of a store that is not read until it is used.

    ``NumPack.load(name, lazy=True)`` makes it. Indexing gives what it gives on a NumPy array, always as a copy; NumPy's
    functions and operators take it like an array (``np.sum(lazy)``, ``np.inner(row, lazy)``, ``matrix @ lazy``,
    ``lazy * 2 > other``) and give what they give for one. ``lazy += x`` makes the name one of an ndarray: what is stored
    stays as it is.

    It keeps the length it had when it was made: rows appended later are not in it. Rows replaced in place do show. It
    stays valid after the store is closed and after the array is overwritten or dropped.

    Of an array that is compressed or has dropped rows, NumPy's element-wise functions, products and reductions read some
    rows at a time. ``np.asarray(lazy)``, other functions, other operators, ``T`` and `reshape` read the whole array.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    ndim, size, itemsize, nbytes : int
        As of an ndarray; dropped rows do not count.
    """

    _name: str
    _attrs: dict[str, Any]
    _array: Array

    __hash__ = None  # type: ignore[assignment]

    def __new__(cls, *_arguments: object) -> LazyArray:
        """Refuse: `NumPack.load` makes these."""
        raise TypeError("cannot create 'LazyArray' instances; use NumPack.load(name, lazy=True)")

    @classmethod
    def _of(cls, array: Array) -> LazyArray:
        lazy = object.__new__(cls)
        lazy._name, lazy._attrs, lazy._array = array.record.name, array.record.attrs, array
        return lazy

    def _of_view(self, view: np.ndarray) -> LazyArray:
        lazy = object.__new__(LazyArray)
        lazy._name, lazy._attrs, lazy._array, lazy._view = self._name, self._attrs, self._array, view
        return lazy

    @cached_property
    def _view(self) -> np.ndarray | None:
        """The array over a mapping, where there is one. Made when first used: the open file is there until then."""
        return self._array.view()

    def _whole(self) -> np.ndarray:
        """The whole: a read-only view of the mapping where there is one, else read."""
        return self._array.read() if self._view is None else self._view

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, a tuple of int; dropped rows do not count."""
        return self._array.record.shape if self._view is None else self._view.shape

    @property
    def dtype(self) -> np.dtype:
        """The numpy.dtype of the items."""
        return self._array.record.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of items."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def itemsize(self) -> int:
        """Bytes of one item."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return self.size * self.itemsize

    @property
    def T(self) -> LazyArray:
        """The transposed array, over the same data; over a copy if the array is compressed or has dropped rows."""
        return self._of_view(self._whole().T)

    def reshape(self, *shape: Any) -> LazyArray:
        """The same data in another shape.

        Parameters
        ----------
        *shape : int or tuple of int
            One dimension may be -1: it follows from the others.

        Returns
        -------
        LazyArray

        Raises
        ------
        ValueError
            If the shape has another number of items.
        """
        return self._of_view(self._whole().reshape(*shape))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __bool__(self) -> bool:
        # True, also without rows, as it always was.
        return True

    def __getitem__(self, index: Any) -> Any:
        found = self._view[index] if self._view is not None else self._select(index)
        # A record is a view, too.
        if isinstance(found, np.void) or (
            isinstance(found, np.ndarray) and (found.base is not None or not found.flags.writeable)
        ):
            return copy.copy(found) if isinstance(found, np.void) else found.copy("K")
        return found

    def _select(self, index: Any) -> Any:
        """What an index gives, of an array that must be read: no more rows than it has something of."""
        array, shape = self._array, self.shape
        parts = index if isinstance(index, tuple) else (index,)
        first = parts[0] if parts else Ellipsis
        rest = parts[1:]
        # The other parts mean the same, whatever rows there are, unless they are paired with this one.
        is_basic = all(part is None or part is Ellipsis or isinstance(part, (slice, int)) for part in rest)
        if isinstance(first, (bool, np.bool_)):
            pass
        elif isinstance(first, slice) and is_basic:
            start, stop, step = first.indices(shape[0]) if shape else (0, 0, 1)
            n_rows = len(range(start, stop, step))
            if shape and n_rows:
                if step == 1:
                    return array.rows(start, start + n_rows)[(slice(None), *rest)]
                return array.gather(np.arange(start, stop, step))[(slice(None), *rest)]
        elif isinstance(first, (int, np.integer)) and is_basic and shape:
            row = operator.index(first)
            if -shape[0] <= row < shape[0]:
                row %= shape[0]
                return array.rows(row, row + 1)[(0, *rest)]
        elif isinstance(first, (list, np.ndarray)) and is_basic and shape:
            rows = np.asarray(first)
            if rows.ndim == 1 and rows.dtype.kind == "b" and len(rows) == shape[0]:
                rows = np.flatnonzero(rows)
            if rows.ndim == 1 and (rows.dtype.kind in "iu" or (rows.size == 0 and isinstance(first, list))):
                rows = rows.astype(np.intp)
                if not len(rows) or (rows.min() >= -shape[0] and rows.max() < shape[0]):
                    read, place = np.unique(rows % max(1, shape[0]), return_inverse=True)
                    return array.gather(read)[(place.reshape(-1), *rest)]
        # What is left NumPy does over all rows that the index touches.
        return self._select_by_rows(index)

    def _select_by_rows(self, index: Any) -> Any:
        shape = self.shape
        is_field = isinstance(index, str) or (isinstance(index, list) and any(isinstance(n, str) for n in index))
        if not shape or 0 in shape or is_field:
            return self._whole()[index]
        numbers = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        # Which row each item is of; an index that NumPy refuses is refused here, before anything is read.
        touched = np.unique(np.broadcast_to(numbers, shape)[index])
        if len(touched) == shape[0]:
            return self._whole()[index]
        # The other rows are there, and take no memory: nobody looks at them.
        whole = zeros(shape, self.dtype)
        whole[touched] = self._array.gather(touched)
        return whole[index]

    def __iter__(self) -> Any:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return map(self.__getitem__, range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        is_same = dtype is None or np.can_cast(self.dtype, dtype, "equiv")
        if copy is False and (self._view is None or not is_same):
            why = "is compressed" if self._array.record.codec is not None else "has dropped rows"
            why = why if is_same else "has another dtype"
            raise ValueError(f"array '{self._name}' cannot be had without a copy: it {why}")
        whole = self._whole()
        if not is_same:
            return whole.astype(dtype)
        return whole.copy("K") if copy and self._view is not None else whole

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _by_rows.call_ufunc(self, ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _by_rows.call_function(self, func, args, kwargs)

    @property
    def _is_read_by_rows(self) -> bool:
        """Whether it is read, not mapped, and some rows can be read without the others."""
        layout = self._array.record.layout
        return self._view is None and bool(layout.shape) and not layout.fortran_order

    # `lazy += x` is none of these: it makes the name one of the new array that `lazy + x` gives.
    __add__, __radd__ = _operators(operator.add)
    __sub__, __rsub__ = _operators(operator.sub)
    __mul__, __rmul__ = _operators(operator.mul)
    __truediv__, __rtruediv__ = _operators(operator.truediv)
    __floordiv__, __rfloordiv__ = _operators(operator.floordiv)
    __mod__, __rmod__ = _operators(operator.mod)
    __divmod__, __rdivmod__ = _operators(divmod)
    __and__, __rand__ = _operators(operator.and_, is_bitwise=True)
    __or__, __ror__ = _operators(operator.or_, is_bitwise=True)
    __xor__, __rxor__ = _operators(operator.xor, is_bitwise=True)
    __lshift__, __rlshift__ = _operators(operator.lshift, is_bitwise=True)
    __rshift__, __rrshift__ = _operators(operator.rshift, is_bitwise=True)
    __lt__, __gt__ = _operators(operator.lt)[0], _operators(operator.gt)[0]
    __le__, __ge__ = _operators(operator.le)[0], _operators(operator.ge)[0]
    __eq__, __ne__ = _operators(operator.eq)[0], _operators(operator.ne)[0]

    def __matmul__(self, other: Any, /) -> Any:
        return np.matmul(self, other)

    def __rmatmul__(self, other: Any, /) -> Any:
        return np.matmul(other, self)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self._whole(), _operand(other), modulo)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(_operand(other), self._whole(), modulo)

    def __neg__(self) -> Any:
        return -self._whole()

    def __pos__(self) -> Any:
        return +self._whole()

    def __abs__(self) -> Any:
        return abs(self._whole())

    def __invert__(self) -> Any:
        return _bitwise(operator.invert, self._whole())

    def __contains__(self, value: Any) -> bool:
        return value in self._whole()

    def to_numpy(self) -> np.ndarray:
        """A new ndarray with these items."""
        return self._array.read() if self._view is None else self._view.copy("K")

    def copy(self) -> np.ndarray:
        """As `to_numpy`."""
        return self.to_numpy()

    def __copy__(self) -> np.ndarray:
        return self.to_numpy()

    def __deepcopy__(self, _memo: Any) -> np.ndarray:
        return self.to_numpy()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise TypeError("cannot pickle 'numpack.LazyArray' object")

    @property
    def attrs(self) -> dict[str, Any]:
        """The user's attributes of the array, as they were when this was made: a new dict."""
        return copy.deepcopy(self._attrs)

    def close(self) -> None:
        """Nothing has to be closed: the file is released with the last array over it."""

    def __enter__(self) -> LazyArray:
        return self

    def __exit__(self, *_exception: object) -> Literal[False]:
        return False

    def vectorized_gather(self, indices: Any) -> Any:
        """The rows of these numbers, in this order: as indexing gives them.

        Raises
        ------
        IndexError
            If a row is out of bounds.
        """
        return self[list(indices) if isinstance(indices, tuple) else indices]

    def mega_batch_get_rows(self, indices: Any, batch_size: int) -> list[Any]:
        """The rows of these numbers, each as an array of its own; they are read `batch_size` at a time.

        Raises
        ------
        IndexError
            If a row is out of bounds.
        ValueError
            If `batch_size` is not positive.
        """
        batch_size = operator.index(batch_size)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected a positive number of rows")
        indices = np.asarray(list(indices) if isinstance(indices, tuple) else indices)
        starts = range(0, len(indices), batch_size)
        return [row for start in starts for row in self[indices[start : start + batch_size]]]

    def parallel_boolean_index(self, mask: Any) -> Any:
        """The rows where `mask` is true, as indexing gives them. This and the four that do the same are from older
        releases.

        Raises
        ------
        RowIndexError
            If the mask has not one item for each row.
        TypeError
            If its items are no bools.
        """
        return self[self._row_mask(mask)]

    def boolean_index_production(self, mask: Any) -> Any:
        """As `parallel_boolean_index`."""
        return self.parallel_boolean_index(mask)

    def boolean_index_adaptive_algorithm(self, mask: Any) -> Any:
        """As `parallel_boolean_index`."""
        return self.parallel_boolean_index(mask)

    def boolean_index_smart(self, mask: Any) -> Any:
        """As `parallel_boolean_index`."""
        return self.parallel_boolean_index(mask)

    def boolean_index_adaptive(self, mask: Any) -> Any:
        """As `parallel_boolean_index`."""
        return self.parallel_boolean_index(mask)

    def choose_optimal_algorithm(self, mask: Any) -> str:
        """How the rows where `mask` is true are read: 'mapped', 'gathered' (around dropped rows) or 'decoded'."""
        self._row_mask(mask)
        if self._view is not None:
            return "mapped"
        return "decoded" if self._array.record.codec is not None else "gathered"

    def intelligent_warmup(self, hint: str) -> None:
        """Does nothing but check `hint`, for programs written for older releases: the kernel reads ahead by itself.

        Parameters
        ----------
        hint : {'sequential', 'random', 'boolean', 'heavy'}

        Raises
        ------
        ValueError
            For another hint.
        """
        if hint not in HINTS:
            raise ValueError(f"hint is '{hint}', expected 'sequential', 'random', 'boolean' or 'heavy'")

    def get_performance_stats(self) -> list[tuple[str, int]]:
        """Some numbers about the array: its rows, its bytes, and those of an item.

        Returns
        -------
        list of (str, int)
        """
        n_rows = self.shape[0] if self.shape else 1
        return [("rows", n_rows), ("nbytes", self.nbytes), ("itemsize", self.itemsize)]

    def _row_mask(self, mask: Any) -> np.ndarray:
        found = np.asarray(mask)
        # An empty list has no bool to tell its dtype by.
        if found.dtype.kind != "b" and found.size:
            raise TypeError(f"mask has dtype {found.dtype}, expected bool")
        if not self.shape:
            raise errors.no_rows(self._name)
        if found.shape != self.shape[:1]:
            raise RowIndexError(
                f"boolean mask has shape {found.shape}, array '{self._name}' has {self.shape[0]} rows; "
                "there must be one bool for each"
            )
        return found.astype(bool)

    def __repr__(self) -> str:
        return f"LazyArray({self._name!r}, shape={self.shape}, dtype={self.dtype})"
