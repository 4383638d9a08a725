"""What can be wrong with a store of NumPack 0.1 to 0.7. The layer above adds the names of the store and the file."""

from __future__ import annotations

from numpack._pure.format.error import FormatError


class TableError(FormatError):
    """A table that does not follow ``spec/upstream-layouts.md``: the store cannot be opened."""


class Fault(ValueError):
    """What is wrong with one array, or with a file of it. The others can be read."""
