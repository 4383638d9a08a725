"""NumPy's description of a dtype, as headers and records have it, to a dtype and back.

In headers and in this program a description is what `numpy.lib.format.dtype_to_descr` gives: a typestring, or a list of
tuples. In records the fields are maps; see "Record" in ``spec/npk-format.md``.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from numpack._pure.format.error import BadDtype, FormatError, Malformed

Descr = Any

MAX_DEPTH = 32
MAX_ITEMSIZE = 2**31 - 1

UNKNOWN = "is not a dtype of NumPy's"
OBJECTS = (
    "object arrays hold Python objects, which cannot be stored without pickle; convert to a fixed-size dtype"
)
STRINGS = "variable-width strings cannot be stored; convert to a fixed width such as U16"
TOO_LARGE = "has items over 2 GiB"

NUMBER_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8, 12, 16), "c": (8, 16, 24, 32)}
TIME_UNIT = re.compile(r"(\[\d*(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as|generic)\])?", re.ASCII)


def from_numpy(dtype: np.dtype) -> Descr:
    """The description of a dtype that can be stored.

    Raises
    ------
    FormatError
    """
    # As numpy.lib.format.dtype_to_descr, which warns of metadata, and that is nobody's concern here.
    descr = _literal(dtype.str if dtype.names is None else dtype.descr)
    itemsize(descr)
    return descr


def to_numpy(descr: Descr) -> np.dtype:
    """The dtype of a description that was checked."""
    return npy_format.descr_to_dtype(descr)


def _literal(descr: Descr) -> Descr:
    """What a header says, as `itemsize` knows it: fields are tuples of name, description and, if any, shape."""
    if isinstance(descr, str):
        return descr
    if not isinstance(descr, list):
        raise FormatError("npy header: descr is not a dtype description")
    fields = []
    for field in descr:
        if not isinstance(field, tuple) or len(field) not in (2, 3):
            raise FormatError("npy header: descr is not a dtype description")
        name, inner, *shape = field
        is_title = isinstance(name, tuple) and len(name) == 2 and all(isinstance(part, str) for part in name)
        if not isinstance(name, str) and not is_title:
            raise FormatError("npy header: descr is not a dtype description")
        if is_title and not name[0]:
            name = name[1]
        dims = (shape[0],) if shape and isinstance(shape[0], int) else tuple(shape[0]) if shape else ()
        if not all(type(dim) is int and dim >= 0 for dim in dims):
            raise FormatError("npy header: descr is not a dtype description")
        fields.append((name, _literal(inner), dims) if dims else (name, _literal(inner)))
    return fields


def parse(descr: object) -> Descr:
    """The description in a ``.npy`` header, checked."""
    try:
        found = _literal(descr)
        itemsize(found)
    except RecursionError:
        raise FormatError("npy header: descr is not a dtype description") from None
    return found


def to_stored(descr: Descr) -> Any:
    """The description as a record has it."""
    if isinstance(descr, str):
        return descr
    fields = []
    for name, inner, *shape in descr:
        title, name = name if isinstance(name, tuple) else ("", name)
        dims = list(shape[0]) if shape else []
        fields.append({"title": title, "name": name, "descr": to_stored(inner), "shape": dims})
    return fields


def from_stored(stored: Any, depth: int = 0) -> Descr:
    """The description that a record has, checked.

    Raises
    ------
    Malformed, BadDtype
    """
    if depth > MAX_DEPTH:
        raise BadDtype("dtype [...]: is nested too deeply")
    if isinstance(stored, str):
        descr: Descr = stored
    elif isinstance(stored, list):
        descr = []
        for field in stored:
            if not isinstance(field, dict) or set(field) != {"title", "name", "descr", "shape"}:
                raise Malformed("a field of a dtype is no map of title, name, descr and shape")
            title, name, dims = field["title"], field["name"], field["shape"]
            if not isinstance(title, str) or not isinstance(name, str) or not _is_shape(dims):
                raise Malformed("a field of a dtype has a title, name or shape that cannot be")
            inner = from_stored(field["descr"], depth + 1)
            name = (title, name) if title else name
            descr.append((name, inner, tuple(dims)) if dims else (name, inner))
    else:
        raise Malformed("descr is neither a string nor an array")
    if depth == 0:
        itemsize(descr)
        try:
            to_numpy(descr)
        except (TypeError, ValueError) as error:
            raise BadDtype(f"dtype {descr!r}: {error}") from None
    return descr


def _is_shape(dims: object) -> bool:
    return isinstance(dims, list) and all(type(dim) is int and 0 <= dim < 2**64 for dim in dims)


def itemsize(descr: Descr, depth: int = 0) -> int:
    """Bytes of one item.

    Raises
    ------
    BadDtype
        If it has no fixed size, or is none of NumPy's.
    """
    if depth > MAX_DEPTH:
        raise BadDtype("dtype [...]: is nested too deeply")
    if isinstance(descr, str):
        size = _scalar_itemsize(descr)
    else:
        size = 0
        for _, inner, *shape in descr:
            size += itemsize(inner, depth + 1) * int(np.prod(shape[0], dtype=object)) if shape else itemsize(inner, depth + 1)
            if size > MAX_ITEMSIZE:
                raise BadDtype(f"dtype {descr!r}: {TOO_LARGE}")
    if size > MAX_ITEMSIZE:
        raise BadDtype(f"dtype {descr!r}: {TOO_LARGE}")
    return size


def _scalar_itemsize(typestring: str) -> int:
    def refused(what: str) -> BadDtype:
        return BadDtype(f"dtype {typestring!r}: {what}")

    code = typestring[1:] if typestring[:1] in ("<", ">", "|", "=") else typestring
    kind, rest = code[:1], code[1:]
    if kind in ("M", "m"):
        if not rest.startswith("8") or not TIME_UNIT.fullmatch(rest[1:]):
            raise refused(UNKNOWN)
        return 8
    if kind == "O":
        raise refused(OBJECTS)
    if kind == "T":
        raise refused(STRINGS)
    if not kind or not rest or not rest.isascii() or not rest.isdigit():
        raise refused(UNKNOWN)
    if len(rest) > 20:
        raise refused(TOO_LARGE)
    size = int(rest)
    if kind in NUMBER_SIZES:
        if size not in NUMBER_SIZES[kind]:
            raise refused(UNKNOWN)
        return size
    if kind in ("S", "a", "V"):
        return size
    if kind == "U":
        return 4 * size
    raise refused(UNKNOWN)
