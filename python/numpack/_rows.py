"""Which rows a caller means, and rows that shall be stored, as plain NumPy arrays.

Batch modes work on arrays in memory with these. They accept and refuse what the store's own calls do, in the same
words.
"""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from numpack._dtypes import Indescribable, describe
from numpack._errors import RowIndexError
from numpack._text import quoted

AnyArray: TypeAlias = NDArray[Any]
RowIndex: TypeAlias = (
    SupportsIndex | Sequence[SupportsIndex] | Sequence[bool] | NDArray[np.integer[Any] | np.bool_] | slice
)
Rows: TypeAlias = slice | NDArray[np.intp]

_MAX_NAME_LEN = 4096


def check_dict(arrays: object) -> dict[str, Any]:
    """The dict of arrays that a caller passed, with names that can be stored."""
    if not isinstance(arrays, dict):
        raise ValueError(f"expected a dict of names and arrays, not {type(arrays).__name__}")
    for name in arrays:
        check_name(name)
    return arrays


def check_name(name: object) -> str:
    """A name that can be stored.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(name, str):
        raise TypeError(f"array names are str, not {type(name)}")
    if "\0" in name:
        raise ValueError(f"array name {quoted(name)}: holds a NUL character")
    if len(name.encode()) > _MAX_NAME_LEN:
        raise ValueError(f"array name {quoted(name)}: is longer than {_MAX_NAME_LEN} bytes")
    return name


def names_of(names: object) -> list[str]:
    """One name or a list of names, as a list."""
    if isinstance(names, str):
        return [check_text(names)]
    if not isinstance(names, (list, tuple)):
        raise TypeError(f"expected a name or a list of names, not {type(names)}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"array names are str, not {type(name)}")
        check_text(name)
    return list(names)


def check_text(name: str) -> str:
    """A name that can be looked for: text in UTF-8.

    Raises
    ------
    UnicodeEncodeError
    """
    name.encode()
    return name


def storable(name: str, value: object) -> AnyArray:
    """`value` as a plain array that a store can hold: itself if it is one.

    Raises
    ------
    TypeError
        If its items have no fixed size.
    """
    array = np.asarray(value)
    check_dtype(name, array.dtype)
    return array


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Check that a store can hold items of this dtype.

    Raises
    ------
    TypeError
    """
    if dtype.kind in "biufcSU" and dtype.isbuiltin == 1:
        return
    try:
        describe(dtype)
    except Indescribable as error:
        raise unstorable(name, dtype, str(error)) from None


def unstorable(name: str, dtype: np.dtype[Any], remedy: str) -> TypeError:
    """The refusal of a dtype."""
    return TypeError(f"array '{name}' has dtype {dtype}, which cannot be stored: {remedy}")


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """The shape that a caller wants, as a tuple.

    Raises
    ------
    ValueError
    """
    refused = ValueError(
        f"array '{name}': {value!r} is no shape: expected an int, or a tuple of int, none negative"
    )
    try:
        dims: tuple[int, ...] = (operator.index(value),)
    except TypeError:
        try:
            dims = tuple(map(operator.index, value))
        except TypeError:
            raise refused from None
    if any(dim < 0 for dim in dims):
        raise refused
    return dims


def rows_like(name: str, value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    """`value` as rows of an array of `shape` and `dtype`.

    Lists and the like take the array's dtype if that is of their kind; arrays must have it, in either byte order.

    Raises
    ------
    ValueError
        If the shape differs in more than the number of rows.
    TypeError
        If the dtype differs.
    """
    if not shape:
        raise ValueError(no_rows(name))
    rows = np.asarray(value)
    if rows.ndim != len(shape):
        raise ValueError(
            f'array "{name}": rows of shape {list(rows.shape)} do not fit the array\'s shape {list(shape)}: '
            f"{rows.ndim} dimensions, expected {len(shape)}"
        )
    if rows.shape[1:] != shape[1:]:
        raise ValueError(
            f'array "{name}": rows of shape {list(rows.shape)} do not fit the array\'s shape {list(shape)}: '
            "only the first dimension may differ"
        )
    if rows.dtype != dtype:
        # NumPy takes an empty list for floats.
        is_array = isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__")
        casting: Any = "equiv" if is_array else "same_kind" if rows.size else "unsafe"
        if not np.can_cast(rows.dtype, dtype, casting):
            raise TypeError(
                f'array "{name}": dtype {rows.dtype} is not the array\'s dtype {dtype}; convert with astype first'
            )
        rows = np.asarray(rows if is_array else value, dtype)
    return rows


def parse(index: object) -> slice | int | AnyArray:
    """A row index in one of three forms: a slice, an int, or a 1-D array of integers or booleans.

    Raises
    ------
    RowIndexError
        For anything that is no row index.
    """
    if isinstance(index, slice):
        return index
    if isinstance(index, (bool, np.bool_)):
        raise _unsuitable(index)
    if isinstance(index, SupportsIndex) and not isinstance(index, np.ndarray):
        return operator.index(index)
    try:
        array = np.asarray(index)
    except ValueError:
        raise _unsuitable(index) from None
    if array.ndim == 0 and array.dtype.kind in "iu":
        return int(array)
    if array.ndim != 1:
        raise _unsuitable(index)
    if array.dtype.kind in "biu":
        return array
    if array.size == 0 and not isinstance(index, np.ndarray):
        return array.astype(np.intp)
    if array.dtype.kind == "O" and all(isinstance(item, int) and not isinstance(item, bool) for item in array):
        # Integers beyond 64 bits: no array has such a row.
        top = np.iinfo(np.intp).max
        return np.array([min(max(item, -top), top) for item in array], np.intp)
    raise _unsuitable(index)


def resolve(name: str, index: object, n_rows: int) -> Rows:
    """The rows of an array of `n_rows` rows. Negative numbers count from the end, slices are clipped.

    Raises
    ------
    RowIndexError
        For a row that is not there, or a mask of another length.
    """
    parsed = parse(index)
    if isinstance(parsed, slice):
        return _checked_slice(parsed, index)
    if isinstance(parsed, int):
        parsed = np.array([parsed if abs(parsed) <= n_rows else n_rows])
    elif parsed.dtype.kind == "b":
        return _mask(name, parsed, n_rows)
    bad = (parsed >= n_rows) | (parsed < -n_rows if parsed.dtype.kind == "i" else False)
    if bad.any():
        is_one = isinstance(index, SupportsIndex) and not isinstance(index, np.ndarray)
        row = index if is_one else parsed[bad][0]
        raise RowIndexError(f"row {row} is out of bounds for array '{name}' with {n_rows} rows")
    rows = parsed.astype(np.intp)
    rows[rows < 0] += n_rows
    return rows


def resolve_existing(name: str, index: object, n_rows: int) -> Rows:
    """As `resolve`, but integers for rows that are not there are left out."""
    parsed = parse(index)
    if isinstance(parsed, slice) or (not isinstance(parsed, int) and parsed.dtype.kind == "b"):
        return resolve(name, index, n_rows)
    parsed = np.atleast_1d(np.asarray(parsed, object if isinstance(parsed, int) else None))
    there = parsed[(parsed < n_rows) & (parsed >= -n_rows)]
    return resolve(name, there.astype(np.intp), n_rows)


def count(rows: Rows, n_rows: int) -> int:
    """How many rows those are."""
    return len(range(*rows.indices(n_rows))) if isinstance(rows, slice) else len(rows)


def _mask(name: str, mask: AnyArray, n_rows: int) -> NDArray[np.intp]:
    if len(mask) != n_rows:
        raise RowIndexError(
            f"boolean mask has {len(mask)} items, array '{name}' has {n_rows} rows; they must be equally many"
        )
    return np.flatnonzero(mask)


def _checked_slice(index: slice, shown: object) -> slice:
    try:
        index.indices(0)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{shown!r} does not index rows: {error}") from None
    return index


def _unsuitable(index: object) -> RowIndexError:
    shown = repr(index)
    if len(shown) > 60:
        shown = type(index).__name__
    return RowIndexError(
        f"{shown} does not index rows; use an integer, a list or 1-D array of integers, a slice, or a boolean mask"
    )


def no_rows(name: str) -> str:
    """What is wrong with a 0-d array where rows are needed."""
    return f'array "{name}" is 0-d and has no rows; save it anew to change it'


def check_compress(argument: str, value: object) -> None:
    """Check how an array shall be compressed, as far as that is possible without a store.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return
    if isinstance(value, dict):
        unknown = next((key for key in value if key not in ("level", "block", "filter")), None)
        if unknown is not None:
            raise ValueError(f"{argument} has the unknown key {unknown!r}, expected 'level', 'block' or 'filter'")
        _check_number(f"{argument}['level']", value.get("level", 1), _LEVELS, "-7 (fastest) to 22 (smallest)")
        block = value.get("block", 4096)
        _check_number(f"{argument}['block']", block, _BLOCKS, _BLOCK_LIMITS)
        found = value.get("filter", "auto")
        if not isinstance(found, str):
            raise TypeError(f"{argument}['filter'] is of type {type(found).__name__}, expected {_FILTERS}")
        if f"'{found}'" not in _FILTERS:
            raise ValueError(f"{argument}['filter'] is '{found}', expected {_FILTERS}")
    elif isinstance(value, (int, np.integer)):
        _check_number(argument, value, _LEVELS, "-7 (fastest) to 22 (smallest)")
    else:
        raise TypeError(
            f"{argument} is of type {type(value).__name__}, expected None, a bool, a level (int), or a dict with "
            "'level', 'block' or 'filter'"
        )


_LEVELS = range(-7, 23)
_BLOCKS = range(4096, (16 << 20) + 1, 4096)
_BLOCK_LIMITS = "a multiple of 4096 bytes, from 4096 to 16777216 (16 MiB)"
_FILTERS = "'auto', 'none', 'shuffle', 'delta', 'delta2', 'delta3' or 'delta4'"


def _check_number(what: str, value: object, allowed: range, expected: str) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{what} is of type {type(value).__name__}, expected an int")
    if int(value) not in allowed:
        raise ValueError(f"{what} is {value}, expected {expected}")


def check_out(out: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> AnyArray:
    """The array that a caller wants to be filled.

    Raises
    ------
    TypeError
        If it is no ndarray, or has another dtype.
    ValueError
        If it has another shape, is not C-contiguous, or cannot be written to.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is of type {type(out).__name__}, expected an ndarray")
    if out.dtype != dtype:
        raise TypeError(f"out has dtype {out.dtype}, expected {dtype}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, expected {shape}")
    if not out.flags.c_contiguous:
        raise ValueError("out is not C-contiguous; pass one that numpy.empty makes")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    return out


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a dtype in `NumPack.get_metadata`: as NumPack has always called it, or NumPy's text."""
    kinds = {"b": "Bool", "i": "Int", "u": "Uint", "f": "Float", "c": "Complex"}
    if dtype.kind not in kinds or not dtype.isnative:
        return str(dtype)
    return "Bool" if dtype.kind == "b" else f"{kinds[dtype.kind]}{dtype.itemsize * 8}"
