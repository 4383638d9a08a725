"""The table of 0.2.1: one MessagePack map."""

from __future__ import annotations

from typing import Any
import msgpack

from numpack._pure.format.error import quoted
from numpack._pure.format.upstream.raw import RawEntry

VERSION = 1
# The types of the fields of an array. A bool is no integer.
FIELDS = {"name": str, "shape": list, "data_file": str, "last_modified": int, "size_bytes": int, "dtype": int}


class Pairs(list[tuple[Any, Any]]):
    """A map as the pairs in it, in their order, also those with the same key."""


def is_map(data: bytes) -> bool:
    """Whether these are the first bytes of a MessagePack map."""
    return bool(data) and (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF))


def parse(data: bytes) -> list[RawEntry]:
    """MessagePack, as 0.2.1 wrote it. ValueError says what is wrong."""
    unpacker = msgpack.Unpacker(
        object_pairs_hook=Pairs,
        max_buffer_size=max(len(data), 1),
        # Nothing but strings and maps of them is read.
        max_ext_len=0,
        strict_map_key=False,
    )
    unpacker.feed(data)
    try:
        table = unpacker.unpack()
    except msgpack.OutOfData:
        raise ValueError(f"is cut off after {len(data)} bytes") from None
    except UnicodeDecodeError:
        raise ValueError("has a text that is not UTF-8") from None
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"is no MessagePack: {type(error).__name__}: {error}") from None
    fields = _fields(table, {"version": int, "arrays": Pairs, "total_size": int}, "the table")
    if fields["version"] != VERSION:
        raise ValueError(f"has version {fields['version']}, expected {VERSION}")
    if rest := len(data) - unpacker.tell():
        raise ValueError(f"ends at byte {unpacker.tell()}, and {rest} bytes follow")
    return [_entry(key, value) for key, value in fields["arrays"]]


def _entry(key: Any, value: Any) -> RawEntry:
    if type(key) is not str:
        raise ValueError(f"an array has the name {key!r}, which is no text")
    entry = _fields(value, FIELDS, f"array {quoted(key)}")
    if any(type(dim) is not int or dim < 0 for dim in entry["shape"]):
        raise ValueError(f"array {quoted(key)}: shape {entry['shape']!r} is none")
    if key != entry["name"]:
        raise ValueError(f"array {quoted(key)} is called {quoted(entry['name'])} as well")
    return RawEntry(
        entry["name"],
        entry["shape"],
        entry["data_file"],
        entry["last_modified"],
        entry["size_bytes"],
        entry["dtype"],
    )


def _fields(value: Any, types: dict[str, Any], whose: str) -> dict[str, Any]:
    """The fields of a map, whose names and types are those of ``types``. Others are not read."""
    if type(value) is not Pairs:
        raise ValueError(f"{whose} is no map")
    fields = {}
    for key, field in value:
        # Another key may be of a type that cannot be looked up.
        if type(key) is not str or key not in types:
            continue
        if key in fields:
            raise ValueError(f"{whose}: {key} is there twice")
        if type(field) is not types[key] or (types[key] is int and field < 0):
            raise ValueError(f"{whose}: {key} is {field!r}")
        fields[key] = field
    if missing := types.keys() - fields.keys():
        raise ValueError(f"{whose}: {min(missing)} is missing")
    return fields
