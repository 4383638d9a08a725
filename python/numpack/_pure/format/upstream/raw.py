"""An array as a table has it, before anything of it is checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RawEntry:
    """The fields of one array. ``modified`` is in the unit of the layout."""

    name: str
    shape: list[int]
    file: str
    modified: int
    size: int
    dtype: int
    is_compressed: bool = False
