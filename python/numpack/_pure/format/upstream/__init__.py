"""What NumPack 0.1 to 0.7 wrote: tables of arrays, files of deleted rows, lists of segments. Only read.

The statement of these layouts in words is ``spec/upstream-layouts.md``. None of them has a checksum, so what two parts
of a store say is compared wherever they say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from numpack._pure.format import names
from numpack._pure.format.error import FormatError, quoted
from numpack._pure.format.layout import layout_of
from numpack._pure.format.upstream import binary, messagepack
from numpack._pure.format.upstream.deleted import deleted_file, deleted_file_len, parse_deleted
from numpack._pure.format.upstream.fault import Fault, TableError
from numpack._pure.format.upstream.raw import RawEntry
from numpack._pure.format.upstream.segments import MAX_SEGMENTS_LEN, Segment, parse_segments

__all__ = [
    "MAX_SEGMENTS_LEN",
    "OLD_TABLE",
    "SAVE_LOCK",
    "WRITE_AHEAD_LOG",
    "Entry",
    "Fault",
    "Segment",
    "Source",
    "Table",
    "TableError",
    "deleted_file",
    "deleted_file_len",
    "is_data_file",
    "is_segmented",
    "is_table",
    "parse_deleted",
    "parse_segments",
    "parse_table",
]

# What the files of a store are called besides those that the npk format has.
WRITE_AHEAD_LOG = "metadata.wal"
SAVE_LOCK = "save.lock"
# The table of a store that was upgraded, until its files are removed.
OLD_TABLE = "metadata.npkm.upgraded"

# What the layouts are called, after the releases that wrote them.
BINCODE = "0.1-0.2.0"
BINCODE_PYTHON = "0.2.0 (Python)"
MESSAGE_PACK = "0.2.1"
NPKB = "0.3-0.7"

# The dtypes by their numbers; None: the layout has no such number.
DTYPES = ("|b1", "|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16")
# The same in 0.1, which had neither half-precision nor complex numbers.
DTYPES_0_1 = ("|b1", "|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8", "<f4", "<f8")
# The same in 0.2.0 without its Rust extension.
DTYPES_0_2_0_PYTHON = (
    *(None, "|i1", "<i2", "|u1", "<u2", "<u4", "<u8", "<i4", "<i8"),
    *("<f2", "<f4", "<f8", "|b1", "<c8", "<c16"),
)

Numbers = tuple[str | None, ...]

# With its header, no array may be longer than a file can be.
MAX_NBYTES = 2**63 - 2**21

SECOND = 1_000_000_000
MICROSECOND = 1_000


@dataclass(frozen=True)
class Entry:
    """One array of a table: as it is stored, with its deleted rows.

    ``modified`` is in nanoseconds since 1970. ``fault`` says why the elements cannot be read, if that shows in the
    table.
    """

    name: str
    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    modified: int
    fault: Fault | None

    @property
    def nbytes(self) -> int:
        """Bytes of all stored elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Source:
    """What keeps the elements of an array from being read, as far as that showed when the table was read: a file, and
    what is wrong with it."""

    fault: tuple[str, Fault] | None


@dataclass(frozen=True)
class Table:
    """The table of a store, with the arrays in its order."""

    layout: str
    arrays: list[Entry]


def is_table(data: bytes) -> bool:
    """Whether these are the first bytes of a table of NumPack 0.1 to 0.7."""
    return data.startswith((binary.NPKB_MAGIC, binary.BINCODE_VERSION)) or messagepack.is_map(data)


def parse_table(data: bytes) -> Table:
    """Read a table for which `is_table` is true.

    Raises
    ------
    TableError
        It does not decode, or has an array that cannot be.
    """
    if data.startswith(binary.NPKB_MAGIC):
        return _parse(NPKB, binary.parse_npkb, data)
    if not data.startswith(binary.BINCODE_VERSION):
        return _parse(MESSAGE_PACK, messagepack.parse, data)
    # Both begin alike. Where one has the number of a dtype, the other has the length of a file's name, and no file's
    # name begins as the next bytes do.
    try:
        return _parse(BINCODE, binary.parse_bincode, data)
    except TableError as error:
        try:
            return _parse(BINCODE_PYTHON, binary.parse_bincode_python, data)
        except TableError:
            raise error from None


def _parse(layout: str, parse: Callable[[bytes], list[RawEntry]], data: bytes) -> Table:
    try:
        raw = parse(data)
        dtypes: Numbers = DTYPES
        if layout == BINCODE and any(map(_is_of_0_1, raw)):
            dtypes = DTYPES_0_1
        elif layout == BINCODE_PYTHON:
            dtypes = DTYPES_0_2_0_PYTHON
        nanos = SECOND if layout == BINCODE else MICROSECOND
        seen = set()
        for entry in raw:
            if entry.name in seen:
                raise ValueError(f"array {quoted(entry.name)}: is there twice")
            seen.add(entry.name)
        return Table(layout, [_checked(entry, dtypes, nanos) for entry in raw])
    except ValueError as error:
        raise TableError(f"metadata of NumPack {layout}: {error}") from None


def _is_of_0_1(entry: RawEntry) -> bool:
    """Whether an array has a dtype and size that only 0.1 can have given it."""
    if entry.dtype not in (9, 10) or entry.size == 0:
        return False
    return math.prod(entry.shape) * np.dtype(DTYPES_0_1[entry.dtype]).itemsize == entry.size


def _checked(entry: RawEntry, dtypes: Numbers, nanos: int) -> Entry:
    """Check that there can be such an array."""
    try:
        names.check(entry.name)
        if not is_data_file(entry.file):
            raise ValueError(f"{quoted(entry.file)} is not the name of a data file within the store")
        typestring = dtypes[entry.dtype] if entry.dtype < len(dtypes) else None
        if typestring is None:
            raise ValueError(f"dtype {entry.dtype} is not known")
        dtype = np.dtype(typestring)
        expected = layout_of(tuple(entry.shape), False, dtype.itemsize).nbytes
        if expected > MAX_NBYTES:
            raise ValueError("does not fit a file")
    except (FormatError, ValueError) as error:
        raise ValueError(f"array {quoted(entry.name)}: {error}") from None
    fault = None
    if entry.is_compressed:
        fault = Fault("is compressed in a way that no release of NumPack wrote")
    elif entry.size != expected:
        fault = Fault(f"is {entry.size} bytes long in metadata.npkm, and its shape needs {expected}")
    modified = min(entry.modified * nanos, 2**63 - 1)
    return Entry(entry.name, entry.file, dtype, tuple(entry.shape), modified, fault)


def is_data_file(file: str) -> bool:
    """Whether ``file`` is a name that data files and lists of segments have."""
    if len(file.encode()) > 255 or "/" in file or "\0" in file:
        return False
    return file.startswith("data_") and file.endswith((".npkd", ".npkseg"))


def is_segmented(file: str) -> bool:
    """Whether ``file``, for which `is_data_file` is true, is a list of segments."""
    return file.endswith(".npkseg")
