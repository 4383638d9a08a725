"""NumPy's description of a dtype, as headers and records have it, to a dtype and back.

In headers and in this program a description is what `numpy.lib.format.dtype_to_descr` gives: a typestring, a list of
tuples, or, within a field, a tuple for an array. In records fields and arrays are maps; see "Record" in
``spec/npk-format.md``.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from numpack._dtypes import Descr, Field, Shape, describe, field
from numpack._errors import UnsupportedError
from numpack._pure.format import messagepack
from numpack._pure.format.error import BadDtype, FormatError

# Deepest nesting of structured dtypes and subarrays.
MAX_DEPTH = 32
# Largest item, and largest dimension of a field, that NumPy can have.
MAX_ITEMSIZE = 2**31 - 1
MAX_FIELD_NDIM = 64

UNKNOWN = "is not a dtype of NumPy's"
OBJECTS = (
    "object arrays hold Python objects, which cannot be stored without pickle; convert to a fixed-size dtype"
)
STRINGS = "variable-width strings cannot be stored; convert to a fixed width such as U16"
TOO_LARGE = "has items over 2 GiB"

NUMBER_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8, 12, 16), "c": (8, 16, 24, 32)}
TIME_UNIT = re.compile(r"\[([0-9]*)(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as|generic)\]")
MAX_TIME_COUNT = 2**31 - 1


def from_numpy(dtype: np.dtype[Any]) -> Descr:
    """The description of a dtype that can be stored.

    Raises
    ------
    BadDtype, Indescribable
    """
    descr = describe(dtype)
    itemsize(descr)
    return descr


def to_numpy(descr: Descr) -> np.dtype[Any]:
    """The dtype of a description that was checked.

    Raises
    ------
    UnsupportedError
        If NumPy has it on other machines only.
    """
    try:
        description: Any = descr
        found: np.dtype[Any] = npy_format.descr_to_dtype(description)
    except TypeError as error:
        raise UnsupportedError(f"dtype {shown(descr)} is not there on this machine: {error}") from None
    return found


def parse(literal: object) -> Descr:
    """The description in a ``.npy`` header, as NumPy itself would write it.

    Raises
    ------
    FormatError
    """
    descr = _parsed(literal, 0)
    itemsize(descr)
    return descr


def _parsed(literal: object, depth: int) -> Descr:
    malformed = FormatError("npy header: descr is not a dtype description")
    if depth > MAX_DEPTH:
        raise malformed
    if isinstance(literal, str):
        return _scalar(literal)[0]
    if isinstance(literal, tuple):
        if len(literal) != 2:
            raise malformed
        descr, shape = _parsed(literal[0], depth + 1), _shape(literal[1])
        return (descr, shape) if shape else descr
    if not isinstance(literal, list):
        raise malformed
    fields = []
    for item in literal:
        if not isinstance(item, tuple) or len(item) not in (2, 3):
            raise malformed
        names = item[0] if isinstance(item[0], tuple) else ("", item[0])
        if len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise malformed
        shape = _shape(item[2]) if len(item) == 3 else ()
        fields.append(field(*names, _parsed(item[1], depth + 1), shape))
    return fields


def _shape(literal: object) -> Shape:
    """A shape written as a tuple, or as one integer."""
    dims = literal if isinstance(literal, tuple) else (literal,)
    if not all(type(dim) is int and dim >= 0 for dim in dims):
        raise FormatError("npy header: descr is not a dtype description")
    return dims


def to_stored(descr: Descr) -> Any:
    """The description as a record has it."""
    if isinstance(descr, str):
        return descr
    if isinstance(descr, tuple):
        return {"descr": to_stored(descr[0]), "shape": list(descr[1])}
    fields = []
    for each in descr:
        title, name, inner, shape = parts(each)
        fields.append({"title": title, "name": name, "descr": to_stored(inner), "shape": list(shape)})
    return fields


def from_stored(stored: Any, depth: int = 0) -> Descr:
    """The description that a record has; `itemsize` checks it.

    Raises
    ------
    Malformed, BadDtype
    """
    if depth > MAX_DEPTH:
        raise BadDtype("dtype [...]: is nested too deeply")
    if isinstance(stored, str):
        return stored
    if not isinstance(stored, list):
        array = messagepack.fields(stored, {"descr", "shape"})
        return from_stored(array["descr"], depth + 1), _stored_shape(array["shape"])
    fields: list[Field] = []
    for item in stored:
        each = messagepack.fields(item, {"title", "name", "descr", "shape"})
        title, name = messagepack.text(each["title"]), messagepack.text(each["name"])
        inner, shape = from_stored(each["descr"], depth + 1), _stored_shape(each["shape"])
        if not shape and isinstance(inner, tuple):
            raise BadDtype("dtype [...]: has a field of arrays that has no shape")
        names = (title, name) if title else name
        fields.append((names, inner, shape) if shape else (names, inner))
    return fields


def _stored_shape(dims: object) -> Shape:
    return tuple(messagepack.count(dim) for dim in messagepack.array(dims))


def parts(each: Field) -> tuple[str, str, Descr, Shape]:
    """Title, name, description and shape of a field."""
    title, name = each[0] if isinstance(each[0], tuple) else ("", each[0])
    return title, name, each[1], each[2] if len(each) == 3 else ()


def itemsize(descr: Descr) -> int:
    """Bytes of one item of a description.

    Raises
    ------
    BadDtype
        If it is not the one that NumPy has for a dtype of fixed size.
    """
    if isinstance(descr, tuple):
        raise _refused(descr, "is that of an array, which only fields can have")
    return _itemsize(descr, 0)


def _itemsize(descr: Descr, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise BadDtype("dtype [...]: is nested too deeply")
    if isinstance(descr, str):
        canonical, size = _scalar(descr)
        if canonical != descr:
            raise _refused(descr, "is not as NumPy writes it")
    elif isinstance(descr, tuple):
        if not descr[1]:
            raise _refused(descr, "is that of an array without a shape")
        size = _nbytes(descr, _itemsize(descr[0], depth + 1), descr[1])
    else:
        _check_names(descr)
        size = 0
        for each in descr:
            _, _, inner, shape = parts(each)
            size += _nbytes(descr, _itemsize(inner, depth + 1), shape)
            if size > MAX_ITEMSIZE:
                raise _refused(descr, TOO_LARGE)
    if size > MAX_ITEMSIZE:
        raise _refused(descr, TOO_LARGE)
    return size


def _nbytes(descr: Descr, element_len: int, shape: Shape) -> int:
    """Bytes of a field of this shape."""
    if len(shape) > MAX_FIELD_NDIM:
        raise _refused(descr, "has a field of more than 64 dimensions")
    nbytes = element_len * math.prod(shape)
    if nbytes > MAX_ITEMSIZE or any(dim > MAX_ITEMSIZE for dim in shape):
        raise _refused(descr, TOO_LARGE)
    return nbytes


def _check_names(fields: list[Field]) -> None:
    """Names and titles of fields are different from each other. Padding has none."""
    names: list[str] = []
    for each in fields:
        title, name, inner, shape = parts(each)
        # What NumPy takes for bytes between fields.
        is_void = isinstance(inner, tuple) or (isinstance(inner, str) and inner.startswith("|V"))
        if name or not (is_void or shape):
            names += [name, title] if title else [name]
    if len(set(names)) < len(names):
        raise _refused(fields, "has two fields of one name or title")


def shown(descr: Descr) -> str:
    """A description as it stands in a header."""
    if isinstance(descr, str):
        return text_of(descr)
    if isinstance(descr, tuple):
        return f"({shown(descr[0])}, {descr[1]!r})"
    fields = []
    for each in descr:
        title, name, inner, shape = parts(each)
        names = f"({text_of(title)}, {text_of(name)})" if title else text_of(name)
        fields.append(f"({names}, {shown(inner)}, {shape!r})" if shape else f"({names}, {shown(inner)})")
    return f"[{', '.join(fields)}]"


def text_of(text: str) -> str:
    """A string as it stands in a header: as Python's repr, but only control characters are escaped."""
    quote = '"' if "'" in text and '"' not in text else "'"
    escapes = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", quote: f"\\{quote}"}

    def escaped(char: str) -> str:
        is_control = char < " " or "\x7f" <= char <= "\x9f"
        return escapes.get(char) or (f"\\x{ord(char):02x}" if is_control else char)

    return quote + "".join(map(escaped, text)) + quote


def _refused(descr: Descr, what: str) -> BadDtype:
    return BadDtype(f"dtype {shown(descr)}: {what}")


def _scalar(typestring: str) -> tuple[str, int]:
    """A typestring as NumPy writes it, and its size; it may be one that NumPy reads but does not write."""
    native = "<" if sys.byteorder == "little" else ">"
    order = typestring[0] if typestring[:1] in ("<", ">") else native
    code = typestring[1:] if typestring[:1] in ("<", ">", "|", "=") else typestring
    kind, rest = code[:1], code[1:]
    if kind in ("M", "m"):
        unit = _time_unit(rest[1:]) if rest.startswith("8") else None
        if unit is None:
            raise _refused(typestring, UNKNOWN)
        return f"{order}{kind}8{unit}", 8
    if kind == "O":
        raise _refused(typestring, OBJECTS)
    if kind == "T":
        raise _refused(typestring, STRINGS)
    if not kind or not rest or not rest.isascii() or not rest.isdigit():
        raise _refused(typestring, UNKNOWN)
    # Numbers of any length would take Python any time.
    count = int(rest.lstrip("0")[:20] or "0")
    if kind in NUMBER_SIZES:
        if count not in NUMBER_SIZES[kind]:
            raise _refused(typestring, TOO_LARGE if count >= 2**64 else UNKNOWN)
        return f"{'|' if count == 1 else order}{kind}{count}", count
    size = 4 * count if kind == "U" else count
    if kind not in ("S", "a", "V", "U"):
        raise _refused(typestring, UNKNOWN)
    if size > MAX_ITEMSIZE:
        raise _refused(typestring, TOO_LARGE)
    if kind == "U":
        return f"{order}U{count}", size
    return f"|{'S' if kind == 'a' else kind}{count}", size


def _time_unit(unit: str) -> str | None:
    """The unit of times as NumPy writes it, such as ``[25s]``; nothing for times without one; None for no unit."""
    if not unit:
        return ""
    found = TIME_UNIT.fullmatch(unit)
    if found is None:
        return None
    digits, name = found.groups()
    count = int(digits.lstrip("0")[:11] or "0") if digits else 1
    if count > MAX_TIME_COUNT:
        return None
    if name == "generic":
        return ""
    return f"[{name}]" if count == 1 else f"[{count}{name}]"
