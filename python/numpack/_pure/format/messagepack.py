"""Reading MessagePack as the format has it: no extensions, strings in UTF-8, each key of a map once, and nothing behind
the end. What is read may still be of another kind than is expected: the functions here that check that refuse it."""

from __future__ import annotations

from typing import Any

import msgpack

from numpack._pure.format.error import Malformed

# Deepest nesting of arrays and maps in a value.
MAX_DEPTH = 64


def pack(value: Any) -> bytes:
    """The bytes of a value."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes) -> Any:
    """The value that ``data`` holds.

    Raises
    ------
    Malformed
    """
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, use_list=True, object_pairs_hook=_map, ext_hook=_no_extension
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(str(error)) from None


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        key = _hashable(key)
        if key in found:
            raise Malformed(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _hashable(key: Any) -> Any:
    return tuple(_hashable(item) for item in key) if isinstance(key, list) else key


def _no_extension(code: int, data: bytes) -> Any:
    raise Malformed("an extension where a value is expected")


def fields(value: Any, needed: set[str], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A map with all the keys that it needs and no other."""
    if not isinstance(value, dict):
        raise Malformed("a map is missing")
    for key in value:
        if key not in needed and key not in optional:
            raise Malformed(f"the key {key!r} is unknown")
    for key in needed:
        if key not in value:
            raise Malformed(f"the key {key!r} is missing")
    return value


def array(value: Any, length: int | None = None) -> list[Any]:
    """An array, of ``length`` values if that is given."""
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise Malformed("an array is missing, or has another length")
    return value


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise Malformed("a string is missing")
    return value


def blob(value: Any) -> bytes:
    """A byte string."""
    if not isinstance(value, bytes):
        raise Malformed("a byte string is missing")
    return value


def boolean(value: Any) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise Malformed("a boolean is missing")
    return value


def integer(value: Any) -> int:
    """An integer of 64 bits with a sign."""
    if type(value) is not int or value >= 2**63:
        raise Malformed("an integer is missing")
    return value


def count(value: Any) -> int:
    """An integer of at least 0."""
    if type(value) is not int or value < 0:
        raise Malformed("a count is missing")
    return value


def is_value(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a value is nested no deeper than that, and has no extension in it, as MessagePack's times are."""
    if isinstance(value, dict):
        return depth > 0 and all(is_value(key, depth - 1) and is_value(inner, depth - 1) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(is_value(inner, depth - 1) for inner in value)
    return value is None or isinstance(value, (bool, int, float, str, bytes))
