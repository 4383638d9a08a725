"""NumPy's functions on lazy arrays that are not mapped, in bounded memory.

An array that is compressed or has dropped rows must be read before NumPy can look at it. Where a result is made of what
the single rows give, as of element-wise functions, products and reductions, the rows are read some at a time. All other
functions get the whole array, read; and arrays that are mapped, or that have no more than `CHUNK_LEN` bytes, as well.
Sums of parts are added up in the order of the rows, so they may differ from NumPy's in the last digits.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from numpack._rows import AnyArray

if TYPE_CHECKING:
    from numpack._native import LazyArray

# Bytes of rows that are read at once.
CHUNK_LEN = 16 << 20


def call_ufunc(lazy: Any, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``__array_ufunc__`` of a lazy array of the class of `lazy` returns."""
    kind = type(lazy)
    # What is stored is never the target.
    if any(isinstance(out, kind) for out in kwargs.get("out", ())):
        return NotImplemented
    found: Any = _NOT_BY_ROWS
    if any(_is_read_by_rows(kind, value) for value in inputs):
        if method == "__call__" and ufunc is np.matmul and not kwargs:
            found = _matmul(kind, *inputs)
        elif method == "__call__" and ufunc.signature is None:
            found = _elementwise(kind, ufunc, inputs, kwargs)
        elif method == "reduce":
            found = _reduce_call(kind, ufunc, inputs, kwargs)
    if found is not _NOT_BY_ROWS:
        return found
    return getattr(ufunc, method)(*(_array_of(kind, value) for value in inputs), **_arrays_in(kind, kwargs))


def call_function(lazy: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``__array_function__`` of a lazy array of the class of `lazy` returns."""
    kind = type(lazy)
    if function in _OF_SHAPE and args and isinstance(args[0], kind):
        return function(_stand_in(args[0]), *args[1:], **kwargs)
    by_rows = _FUNCTIONS.get(function)
    # Options are hardly ever given by their place.
    if by_rows is not None and len(args) <= 2 and any(_is_read_by_rows(kind, value) for value in args):
        found = by_rows(kind, *args, **kwargs)
        if found is not _NOT_BY_ROWS:
            return found
    return function(*_arrays_in(kind, args), **_arrays_in(kind, kwargs))


# What says that a call is none of those that are made by rows.
_NOT_BY_ROWS: Any = object()


def _stand_in(lazy: Any) -> AnyArray:
    """An array of the same shape and dtype that takes no memory."""
    return np.broadcast_to(np.zeros((), lazy.dtype), lazy.shape)


def _array_of(kind: Any, value: Any) -> Any:
    return value.__array__() if isinstance(value, kind) else value


def _arrays_in(kind: Any, value: Any) -> Any:
    """The same with arrays for lazy arrays, wherever they are in lists, tuples and dicts."""
    if isinstance(value, kind):
        return cast("LazyArray", value).__array__()
    if type(value) in (list, tuple):
        return type(value)(_arrays_in(kind, item) for item in value)
    if type(value) is dict:
        return {key: _arrays_in(kind, item) for key, item in value.items()}
    return value


def _is_read_by_rows(kind: Any, value: Any) -> bool:
    if not isinstance(value, kind):
        return False
    lazy = cast("LazyArray", value)
    return lazy._is_read_by_rows and lazy.nbytes > CHUNK_LEN


def _ranges(*arrays: Any) -> Iterator[slice]:
    """Rows of these arrays, which are equally many, some at a time."""
    n_rows = len(arrays[0])
    n_at_once = max(1, CHUNK_LEN * n_rows // max(1, *(array.nbytes for array in arrays)))
    for start in range(0, n_rows, n_at_once):
        yield slice(start, min(n_rows, start + n_at_once))


def _part(value: Any, rows: slice, shape: tuple[int, ...]) -> Any:
    """Of what is broadcast to `shape`, what belongs to these rows."""
    if getattr(value, "ndim", None) == len(shape) and value.shape[0] == shape[0] > 1:
        return value[rows]
    return value


def _elementwise(kind: Any, ufunc: np.ufunc, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    outs = kwargs.get("out", ())
    if any(value is None for value in inputs):
        return _NOT_BY_ROWS
    # Numbers stay what they are: their dtypes give way to those of arrays.
    inputs = tuple(value if hasattr(value, "shape") or np.isscalar(value) else np.asarray(value) for value in inputs)
    others = [value for value in (*inputs, *outs, kwargs.get("where", True)) if hasattr(value, "shape")]
    try:
        shape = np.broadcast_shapes(*(value.shape for value in others))
    except ValueError:
        return _NOT_BY_ROWS
    by_rows = [value for value in others if _is_read_by_rows(kind, value)]
    if any(value.ndim != len(shape) or len(value) != shape[0] for value in by_rows):
        return _NOT_BY_ROWS
    # One of fewer rows or dimensions is the same to all rows, and read once.
    inputs = tuple(value if _is_read_by_rows(kind, value) else _array_of(kind, value) for value in inputs)
    results = list(outs) or [None] * ufunc.nout
    for rows in _ranges(*by_rows):
        parts = [_part(value, rows, shape) for value in inputs]
        options = dict(kwargs)
        if "where" in kwargs:
            options["where"] = _part(kwargs["where"], rows, shape)
        if outs:
            options["out"] = tuple(None if out is None else out[rows] for out in outs)
        found = ufunc(*parts, **options)
        for n, part in enumerate(found if ufunc.nout > 1 else (found,)):
            if results[n] is None:
                results[n] = np.empty(shape, part.dtype)
            if n >= len(outs) or outs[n] is None:
                results[n][rows] = part
    return tuple(results) if ufunc.nout > 1 else results[0]


def _matmul(kind: Any, left: Any, right: Any) -> Any:
    left, right = (value if hasattr(value, "ndim") else np.asarray(value) for value in (left, right))
    if not (1 <= left.ndim <= 2 and 1 <= right.ndim <= 2):
        return _NOT_BY_ROWS
    return _dot(kind, left, right, function=np.matmul)


def _dot(kind: Any, left: Any, right: Any, out: Any = None, *, function: Callable[..., Any] = np.dot) -> Any:
    left, right = (value if hasattr(value, "ndim") else np.asarray(value) for value in (left, right))
    if out is not None or not left.ndim or not right.ndim or right.ndim > 2:
        return _NOT_BY_ROWS
    if left.shape[-1] != right.shape[0]:
        return _NOT_BY_ROWS
    if _is_read_by_rows(kind, left) and left.ndim > 1:
        # Each row of the left one gives one of the result.
        right = _array_of(kind, right)
        return _joined((function(left[rows], right) for rows in _ranges(left)), len(left), 0)
    # The axis that is summed over is that of the rows.
    if not _is_read_by_rows(kind, right):
        right = _array_of(kind, right)
    if not _is_read_by_rows(kind, left):
        left = _array_of(kind, left)
    total: Any = None
    for rows in _ranges(right) if _is_read_by_rows(kind, right) else _ranges(left):
        total = _added(total, function(left[..., rows] if left.ndim > 1 else left[rows], right[rows]))
    return total


def _inner(kind: Any, left: Any, right: Any) -> Any:
    left, right = (value if hasattr(value, "ndim") else np.asarray(value) for value in (left, right))
    if not left.ndim or not right.ndim or left.shape[-1] != right.shape[-1]:
        return _NOT_BY_ROWS
    if left.ndim == right.ndim == 1:
        return _dot(kind, left, right, function=np.inner)
    if _is_read_by_rows(kind, right) and right.ndim > 1:
        left = _array_of(kind, left)
        return _joined((np.inner(left, right[rows]) for rows in _ranges(right)), len(right), left.ndim - 1)
    if _is_read_by_rows(kind, left) and left.ndim > 1:
        right = _array_of(kind, right)
        return _joined((np.inner(left[rows], right) for rows in _ranges(left)), len(left), 0)
    return _NOT_BY_ROWS


def _joined(parts: Iterator[AnyArray], n_rows: int, axis: int) -> Any:
    """Results of some rows each, along an axis that the rows have in the result."""
    whole: AnyArray | None = None
    done = 0
    for part in parts:
        if whole is None:
            whole = np.empty((*part.shape[:axis], n_rows, *part.shape[axis + 1 :]), part.dtype)
        end = done + part.shape[axis]
        whole[(slice(None),) * axis + (slice(done, end),)] = part
        done = end
    return whole


def _added(total: Any, part: Any) -> Any:
    return part if total is None else np.add(total, part)


def _reduce_call(kind: Any, ufunc: np.ufunc, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = ("axis", "dtype", "out", "keepdims", "initial", "where")
    options = dict(zip(names, inputs[1:], strict=False)) | kwargs
    if options.pop("out", None) not in (None, (None,)) or "initial" in options or "where" in options:
        return _NOT_BY_ROWS
    return _reduce(inputs[0], ufunc, options.get("axis", 0), options.get("dtype"), bool(options.get("keepdims", False)))


def _axes(lazy: Any, axis: Any) -> tuple[int, ...] | None:
    """The axes that a reduction is over; None for those that NumPy refuses."""
    if axis is None:
        return tuple(range(lazy.ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    try:
        axes = tuple(int(each) % lazy.ndim if -lazy.ndim <= each < lazy.ndim else lazy.ndim for each in axes)
    except TypeError:
        return None
    return axes if len(set(axes)) == len(axes) and all(each < lazy.ndim for each in axes) else None


def _reduce(lazy: Any, ufunc: Any, axis: Any, dtype: Any = None, keepdims: bool = False) -> Any:
    """`ufunc.reduce`, by rows."""
    axes = _axes(lazy, axis)
    # Others, as of differences, depend on where a part begins.
    if axes is None or ufunc not in _ASSOCIATIVE or not axes:
        return _NOT_BY_ROWS
    if 0 not in axes:
        parts = (ufunc.reduce(lazy[rows], axis=axes, dtype=dtype, keepdims=keepdims) for rows in _ranges(lazy))
        return _joined(parts, len(lazy), 0)
    total: Any = None
    for rows in _ranges(lazy):
        part = ufunc.reduce(lazy[rows], axis=axes, dtype=dtype, keepdims=keepdims)
        total = part if total is None else ufunc(total, part, **({"dtype": dtype} if dtype is not None else {}))
    return total


_ASSOCIATIVE = (
    np.add,
    np.multiply,
    np.minimum,
    np.maximum,
    np.fmin,
    np.fmax,
    np.logical_and,
    np.logical_or,
    np.bitwise_and,
    np.bitwise_or,
    np.bitwise_xor,
)

_UNSET: Any = np._NoValue


def _reduction(ufunc: np.ufunc, *, takes_dtype: bool = False) -> Callable[..., Any]:
    """A function of NumPy's that is the reduction of a ufunc."""

    def by_rows(
        kind: Any, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any
    ) -> Any:
        if out is not None or any(value is not _UNSET for value in others.values()):
            return _NOT_BY_ROWS
        return _reduce(a, ufunc, axis, dtype, keepdims is not _UNSET and bool(keepdims))

    if takes_dtype:
        return by_rows
    return lambda kind, a, axis=None, out=None, keepdims=_UNSET, **others: by_rows(
        kind, a, axis, None, out, keepdims, **others
    )


def _count(lazy: Any, axes: tuple[int, ...]) -> int:
    return math.prod(lazy.shape[each] for each in axes)


def _mean(
    kind: Any, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = _UNSET, **others: Any
) -> Any:
    axes = _axes(a, axis)
    is_plain = out is None and all(value is _UNSET for value in others.values()) and a.dtype.kind in "biufc"
    if not axes or not is_plain:
        return _NOT_BY_ROWS
    keeps = keepdims is not _UNSET and bool(keepdims)
    if 0 not in axes:
        return _joined((np.mean(a[rows], axis=axes, dtype=dtype, keepdims=keeps) for rows in _ranges(a)), len(a), 0)
    # As NumPy: integers are added up as float64, halves as float32.
    summed_in, result = dtype, None
    if dtype is None and a.dtype.kind in "biu":
        summed_in = np.dtype("f8")
    elif dtype is None and a.dtype == np.float16:
        summed_in, result = np.dtype("f4"), np.dtype("f2")
    total = _reduce(a, np.add, axes, summed_in, keeps)
    mean = np.true_divide(total, _count(a, axes))
    wanted = result if result is not None else np.asarray(total).dtype
    return mean.astype(wanted) if mean.dtype != wanted and wanted.kind in "fc" else mean


def _variance(
    kind: Any,
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: Any = 0,
    keepdims: Any = _UNSET,
    **others: Any,
) -> Any:
    axes = _axes(a, axis)
    is_plain = out is None and all(value is _UNSET for value in others.values()) and a.dtype.kind in "biufc"
    if not axes or not is_plain or a.dtype == np.float16 or dtype is not None:
        return _NOT_BY_ROWS
    keeps = keepdims is not _UNSET and bool(keepdims)
    if 0 not in axes:
        return _joined((np.var(a[rows], axis=axes, ddof=ddof, keepdims=keeps) for rows in _ranges(a)), len(a), 0)
    mean = _mean(kind, a, axes, None, None, True)
    total: Any = None
    for rows in _ranges(a):
        deviation = a[rows] - mean
        squares = (deviation * deviation.conj()).real if deviation.dtype.kind == "c" else np.square(deviation)
        total = _added(total, np.sum(squares, axis=axes, keepdims=keeps))
    n = _count(a, axes) - ddof
    if n <= 0:
        return _NOT_BY_ROWS
    return np.true_divide(total, n).astype(np.asarray(total).dtype)


def _deviation(kind: Any, *args: Any, **kwargs: Any) -> Any:
    found = _variance(kind, *args, **kwargs)
    return found if found is _NOT_BY_ROWS else np.sqrt(found)


def _by_single_rows(function: Any) -> Callable[..., Any]:
    """A function that takes an axis: by rows, where that is another than theirs."""

    def by_rows(kind: Any, a: Any, axis: Any = None, **others: Any) -> Any:
        axes = _axes(a, axis)
        is_plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in others.values())
        if axis is None or not axes or 0 in axes or not is_plain:
            return _NOT_BY_ROWS
        return _joined((function(a[rows], axis=axis, **others) for rows in _ranges(a)), len(a), 0)

    return by_rows


def _count_nonzero(kind: Any, a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    axes = _axes(a, axis)
    if not axes:
        return _NOT_BY_ROWS
    parts = (np.count_nonzero(a[rows], axis=axis, keepdims=keepdims) for rows in _ranges(a))
    return _joined(cast("Iterator[AnyArray]", parts), len(a), 0) if 0 not in axes else sum(parts)


# What is asked of these is not what the items are.
_OF_SHAPE = (np.shape, np.ndim, np.size, np.iscomplexobj, np.isrealobj)

_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.inner: _inner,
    np.dot: _dot,
    np.sum: _reduction(np.add, takes_dtype=True),
    np.prod: _reduction(np.multiply, takes_dtype=True),
    np.max: _reduction(np.maximum),
    np.min: _reduction(np.minimum),
    np.amax: _reduction(np.maximum),
    np.amin: _reduction(np.minimum),
    np.any: _reduction(np.logical_or),
    np.all: _reduction(np.logical_and),
    np.mean: _mean,
    np.var: _variance,
    np.std: _deviation,
    np.count_nonzero: _count_nonzero,
    np.argmax: _by_single_rows(np.argmax),
    np.argmin: _by_single_rows(np.argmin),
    np.median: _by_single_rows(np.median),
    np.linalg.norm: lambda kind, x, ord=None, axis=None, keepdims=False: _by_single_rows(np.linalg.norm)(
        kind, x, axis, ord=ord, keepdims=keepdims
    ),
}
