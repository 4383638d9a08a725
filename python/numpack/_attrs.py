"""`Attributes`: small values that a user keeps with an array or a store, as a dict that is stored."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np

from numpack._errors import ArrayNotFoundError, StoreClosedError

if TYPE_CHECKING:
    from numpack._store import NumPack


class Attributes(MutableMapping[str, Any]):
    """The attributes of an array, or of a store: a dict with str keys, in their order, that is kept in the store.

    Every change is a commit of its own; `update` and `clear` are one commit each. What other processes change is seen
    at once. Values are None, bool, int (64 bits), float, str, bytes, and lists and dicts (with str keys) of these, at
    most 64 deep; NumPy's scalars and arrays are stored as the numbers and lists that they are, tuples as lists. A
    value that was got is a copy: changing a list in it changes nothing in the store.

    `NumPack.attrs` and `NumPack.attrs_of` make it. Attributes of an array stay when the array is saved anew.

    Examples
    --------
    >>> with NumPack("measured.npk") as npk:
    ...     npk.save({"t": np.zeros(3)})
    ...     npk.attrs_of("t")["unit"] = "K"
    ...     npk.attrs_of("t").update(offset=273.15, channels=[1, 2])
    ...     dict(npk.attrs_of("t"))
    {'channels': [1, 2], 'offset': 273.15, 'unit': 'K'}
    """

    def __init__(self, store: "NumPack", name: str | None) -> None:
        self._store = store
        self._name = name
        # Raises if there is no such array.
        store._get_attrs(name)

    def __getitem__(self, key: str, /) -> Any:
        return self._store._get_attrs(self._name)[key]

    def __setitem__(self, key: str, value: Any, /) -> None:
        self._store._set_attrs(self._name, plain_attrs({key: value}), [])

    def __delitem__(self, key: str, /) -> None:
        self[key]
        self._store._set_attrs(self._name, {}, [key])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._store._get_attrs(self._name)))

    def __len__(self) -> int:
        return len(self._store._get_attrs(self._name))

    def __contains__(self, key: object, /) -> bool:
        return key in self._store._get_attrs(self._name)

    def update(self, other: Any = (), /, **values: Any) -> None:
        """Set several attributes in one commit.

        Parameters
        ----------
        other : mapping, or iterable of pairs
        **values

        Raises
        ------
        TypeError, ValueError
            For keys and values that cannot be stored; nothing is set then.
        """
        attrs = plain_attrs(dict(other, **values))
        if attrs:
            self._store._set_attrs(self._name, attrs, [])

    def clear(self) -> None:
        """Remove all attributes in one commit."""
        names = list(self)
        if names:
            self._store._set_attrs(self._name, {}, names)

    def __repr__(self) -> str:
        of = "the store" if self._name is None else repr(self._name)
        try:
            return f"<attributes of {of}: {dict(self)!r}>"
        except StoreClosedError:
            return f"<attributes of {of}, which is closed>"
        except ArrayNotFoundError:
            return f"<attributes of {of}, which does not exist>"


def plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of attributes in the types that are stored.

    Raises
    ------
    TypeError
        For keys that are no str, and values of other types.
    ValueError
        For integers beyond 64 bits, and what is nested too deep.
    """
    plain = {}
    for key, value in attrs.items():
        if not isinstance(key, str):
            raise TypeError(f"attribute names are str, not {type(key).__name__}")
        plain[key] = _plain(key, value, 1)
    return plain


# The map of all attributes is the outermost level.
_MAX_DEPTH = 64


def _plain(of: str, value: Any, depth: int) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError(f"attribute {of!r}: {value} does not fit into 64 bits; store it as str or float")
        return int(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (list, tuple, Mapping)):
        if depth >= _MAX_DEPTH:
            raise ValueError(f"attribute {of!r} is nested more than {_MAX_DEPTH} deep")
        if isinstance(value, Mapping):
            return {_key(of, key): _plain(of, item, depth + 1) for key, item in value.items()}
        return [_plain(of, item, depth + 1) for item in value]
    raise TypeError(
        f"attribute {of!r}: values of type {type(value).__name__} cannot be stored, only None, bool, int, float, str, "
        "bytes, lists and dicts"
    )


def _key(of: str, key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"attribute {of!r}: keys of dicts are str, not {type(key).__name__}")
    return key
