"""The list of the files that a long array is cut into, as 0.7 wrote it: JSON."""

from __future__ import annotations

import json
from typing import NamedTuple

from numpack._pure.format.upstream.fault import Fault

VERSION = 1
# Longest list that is read: of a petabyte in segments of the usual size.
MAX_SEGMENTS_LEN = 1 << 30


class Segment(NamedTuple):
    """One file of elements: a folder within the store's folder, the name in it, bytes. It need not end with a row."""

    folder: str
    file: str
    len: int


def parse_segments(data: bytes, nbytes: int) -> list[Segment]:
    """Read the list of segments of an array of ``nbytes`` bytes.

    Raises
    ------
    Fault
        What does not decode, does not fit the array, or leads out of the store.
    """
    try:
        listed = _decode(data)
    except (ValueError, RecursionError) as error:
        raise Fault(f"is no list of segments: {error}") from None
    segments = [Segment(*_split(file), n_bytes) for file, n_bytes in listed]
    found = sum(segment.len for segment in segments)
    if found != nbytes:
        raise Fault(f"lists {found} bytes, expected {nbytes}")
    return segments


def _decode(data: bytes) -> list[tuple[str, int]]:
    listing = json.loads(data.decode())
    if type(listing) is not dict:
        raise ValueError("it is no object")
    if not _is_count(version := listing.get("version")):
        raise ValueError(f"version is {version!r}")
    segments = listing.get("segments")
    if type(segments) is not list:
        raise ValueError("segments is no list")
    for segment in segments:
        is_segment = type(segment) is dict and type(segment.get("file")) is str and _is_count(segment.get("bytes"))
        if not is_segment:
            raise ValueError(f"{segment!r} is no segment")
    if version != VERSION:
        raise ValueError(f"has version {version}, expected {VERSION}")
    return [(segment["file"], segment["bytes"]) for segment in segments]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _split(path: str) -> tuple[str, str]:
    """The folder and the name in it, if that is what ``path`` is."""
    folder, slash, name = path.partition("/")
    is_folder = folder.startswith("data_") and folder.endswith("_segments")
    is_plain = name not in ("", ".", "..") and "/" not in name
    if not (slash and is_folder and is_plain and "\0" not in path):
        raise Fault(f"names the segment {path}, which is outside of the store")
    return folder, name
