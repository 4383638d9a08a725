"""What callers pass: arrays, attributes, shapes, codecs. Checked before a store writes anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from numpack import _rows
from numpack._pure.format.codec import Compression
from numpack._pure.lazy import LazyArray

# Values that are nested deeper are refused by the store; what is deeper still is no tree, but leads to itself.
MAX_DEPTH = 128


def to_save(arrays: Any) -> dict[str, np.ndarray]:
    """Arrays that a caller wants to save: contiguous, in the order that they have."""
    return {name: contiguous(_rows.storable(name, value)) for name, value in _rows.check_dict(arrays).items()}


def contiguous(array: np.ndarray) -> np.ndarray:
    """An array whose bytes are in C-order or in Fortran order, without gaps."""
    if array.flags.c_contiguous or array.flags.f_contiguous:
        return array
    return np.ascontiguousarray(array)


def to_rows(value: Any, dtype: np.dtype) -> np.ndarray:
    """Rows for an array of this dtype, in C-order and apart from any mapping.

    Lists and the like take the dtype if it is of their kind; arrays must have it, in either byte order. Of other dtypes
    they stay as they are, and are refused by who writes them.
    """
    rows = np.asarray(value)
    if rows.dtype != dtype:
        is_array = isinstance(value, (np.ndarray, LazyArray))
        # NumPy takes an empty list for floats.
        casting: Any = "equiv" if is_array else "same_kind" if rows.size else "unsafe"
        if np.can_cast(rows.dtype, dtype, casting):
            rows = np.asarray(rows if is_array else value, dtype)
    rows = np.asarray(rows, order="C")
    # Values that lie in a mapping of this very array would change while they are written.
    return rows if rows.flags.owndata else rows.copy()


def compression(argument: str, value: Any) -> Compression | None:
    """How arrays are to be compressed; None: not at all.

    Raises
    ------
    TypeError, ValueError
    """
    _rows.check_compress(argument, value)
    if value is None or (isinstance(value, (bool, np.bool_)) and not value):
        return None
    if isinstance(value, (bool, np.bool_)):
        return Compression()
    if isinstance(value, dict):
        default = Compression()
        name = value.get("filter", "auto")
        return Compression(
            int(value.get("level", default.level)),
            int(value.get("block", default.block_len)),
            None if name == "auto" else name,
        )
    return Compression(int(value))


def attributes(attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes as MessagePack has them: tuples become lists, and NumPy's scalars the numbers that they are.

    Raises
    ------
    TypeError, ValueError
    """
    for name in attrs:
        if not isinstance(name, str):
            raise TypeError("names of attributes are str")
    return {str(name): _value(name, value, 0) for name, value in attrs.items()}


def _value(name: str, value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"attribute '{name}' is nested deeper than 64 levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"attribute '{name}' is {value}, integers are from -2**63 to 2**64 - 1")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, (list, tuple)):
        return [_value(name, item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_key(name, key, depth + 1): _value(name, item, depth + 1) for key, item in value.items()}
    if isinstance(value, np.generic):
        item = value.item()
        if isinstance(item, (bool, int, float)):
            return _value(name, item, depth)
    raise TypeError(
        f"attribute '{name}' is of type {type(value).__name__}, expected None, bool, int, float, str, bytes, "
        "or lists and dicts of them"
    )


def _key(name: str, key: Any, depth: int) -> Any:
    if isinstance(key, tuple):
        return tuple(_key(name, item, depth + 1) for item in key)
    return _value(name, key, depth)
