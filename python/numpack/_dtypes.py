"""NumPy's description of a dtype: what stores keep, and what headers of ``.npy`` files say."""

from typing import Any, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]
# Name, or title and name; the description of one element; the shape, if the field has one.
Field: TypeAlias = tuple[Any, ...]
# A typestring, the fields of a structured dtype, or the description and shape of an array within an element.
Descr: TypeAlias = str | list[Field] | tuple[Any, Shape]

USER_TYPE = "NumPy has no description of it; store a view as a dtype of NumPy's, such as .view('u2')"
OVERLAPPING = "its fields overlap or are out of order; see numpy.lib.recfunctions.repack_fields"
STRINGS = "its strings have no fixed width; convert it, for example with .astype('U16')"
OBJECTS = "its items are Python objects; convert it to a dtype of fixed size, such as float64 or 'U16'"
SUBARRAY = "it is that of an array; take that of its items, and give the array the dimensions"
NO_TEXT = "the names and titles of its fields are to be texts in UTF-8"


class Indescribable(Exception):
    """A dtype that no store can hold: what can be done about it."""


def describe(dtype: np.dtype[Any]) -> Descr:
    """The description of a dtype of fixed size, as `numpy.save` writes it.

    Metadata is left out, as there, but without a warning.

    Raises
    ------
    Indescribable
    """
    if type(dtype).__name__ == "StringDType":
        raise Indescribable(STRINGS)
    if dtype.hasobject:
        raise Indescribable(OBJECTS)
    if dtype.subdtype is not None:
        raise Indescribable(SUBARRAY)
    return _describe(dtype)


def _describe(dtype: np.dtype[Any]) -> Descr:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _describe(base), shape
    if dtype.names is None:
        if dtype.isbuiltin == 2:
            raise Indescribable(USER_TYPE)
        return dtype.str
    fields: list[Field] = []
    end = 0
    for name in dtype.names:
        inner, offset, *title = dtype.fields[name]  # type: ignore[index]
        if not all(_is_text(text) for text in [name, *title]):
            raise Indescribable(NO_TEXT)
        if offset < end:
            raise Indescribable(OVERLAPPING)
        if offset > end:
            fields.append(("", f"|V{offset - end}"))
        end = offset + inner.itemsize
        fields.append(field(title[0] if title else "", name, _describe(inner), ()))
    if dtype.itemsize > end:
        fields.append(("", f"|V{dtype.itemsize - end}"))
    return fields


def field(title: str, name: str, descr: Descr, shape: Shape) -> Field:
    """A field. One of arrays that has no shape has that of the arrays, as in NumPy."""
    while not shape and isinstance(descr, tuple):
        descr, shape = descr
    names = (title, name) if title else name
    return (names, descr, shape) if shape else (names, descr)


def _is_text(text: object) -> bool:
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False
