"""How the blocks of a compressed array are encoded, as records and block pointers say it.

Only the words and their limits; encoding and decoding is the package `codec`. What a release does not know is refused
by its name, so that the reader learns what to install.

On disk: spec/npk-format.md, "Codecs".
"""

from typing import Any, NamedTuple, Optional

from ..._errors import CorruptStoreError, UnsupportedError

BLOCK_ALIGN = 4096  # the raw length of a block is a multiple of this
MAX_BLOCK_LEN = 16 << 20
MIN_LEVEL = -7
MAX_LEVEL = 22
DEFAULT_LEVEL = 1
DEFAULT_BLOCK_LEN = 64 << 10

ZSTD_NAME = "zstd"
"""The name of the only codec, as it stands on disk."""

# How one block is stored: the top byte of its pointer. On disk: never renumber.
ABSENT = 0  # nowhere: the block is all zeros
RAW = 1
ZSTD = 2
ZSTD_SHUFFLE = 3
ZSTD_DELTA = 4
OPEN_TAIL = 5  # the raw bytes of a last, partial block, behind which rows are appended in place
PAGE = 6  # no block, but a page of the block index
ZSTD_DELTA2 = 7
ZSTD_DELTA3 = 8
ZSTD_DELTA4 = 9

KIND_NAMES = (
    "Absent",
    "Raw",
    "Zstd",
    "ZstdShuffle",
    "ZstdDelta",
    "OpenTail",
    "Page",
    "ZstdDelta2",
    "ZstdDelta3",
    "ZstdDelta4",
)

FILTERS = ("none", "shuffle", "delta", "delta2", "delta3", "delta4")
"""The reversible steps before compression, in the order in which they are tried."""

KIND_OF_FILTER = {
    "none": ZSTD,
    "shuffle": ZSTD_SHUFFLE,
    "delta": ZSTD_DELTA,
    "delta2": ZSTD_DELTA2,
    "delta3": ZSTD_DELTA3,
    "delta4": ZSTD_DELTA4,
}
FILTER_OF_KIND = {kind: name for name, kind in KIND_OF_FILTER.items()}

STEP_OF_FILTER = {"delta": 1, "delta2": 2, "delta3": 3, "delta4": 4}
"""How many items before it the one is that is taken from an item."""


def filter_for_itemsize(filter: str, itemsize: int) -> str:
    """The filter that is applied to items of `itemsize` bytes where `filter` is asked for.

    Differences are made of integers of 1, 2, 4 and 8 bytes, ``shuffle`` is for items of 2 to 255 bytes.
    """
    if filter in STEP_OF_FILTER and itemsize in (1, 2, 4, 8):
        return filter
    if filter != "none" and 2 <= itemsize <= 255:
        return "shuffle"
    return "none"


def is_raw(kind: int) -> bool:
    """Whether the stored bytes of a block of this kind are the raw bytes."""
    return kind in (RAW, OPEN_TAIL)


class CodecLimitError(CorruptStoreError):
    """A parameter of a codec that is outside of its limits: `part`, `found`, `expected`."""

    def __init__(self, part: str, found: int, expected: str) -> None:
        super().__init__(f"codec: {part} is {found}, expected {expected}")
        self.part, self.found, self.expected = part, found, expected


class Codec(NamedTuple):
    """How the blocks of an array are encoded: always zstd, after `filter`."""

    level: int
    block_len: int
    filter: str

    def check(self) -> "Codec":
        """Raises `CodecLimitError` if the level or the length of a block is outside of its limits."""
        if not MIN_LEVEL <= self.level <= MAX_LEVEL:
            raise CodecLimitError("level", self.level, "-7 (fastest) to 22 (smallest)")
        if not BLOCK_ALIGN <= self.block_len <= MAX_BLOCK_LEN or self.block_len % BLOCK_ALIGN:
            expected = "a multiple of 4096 bytes, from 4096 to 16777216 (16 MiB)"
            raise CodecLimitError("block length", self.block_len, expected)
        return self

    def to_map(self) -> dict[str, Any]:
        """The map on disk."""
        return {"name": ZSTD_NAME, "level": self.level, "block": self.block_len, "filter": self.filter}

    @classmethod
    def from_map(cls, value: Any) -> "Codec":
        """Reads `to_map`. Raises `UnsupportedError` or `CorruptStoreError`."""
        level, block_len, filter = _fields(value)
        if filter is None:
            raise CorruptStoreError("codec: has no filter")
        return cls(level, block_len, filter).check()


class Compression(NamedTuple):
    """How a new array is to be compressed. `filter` None: the one that makes a sample of it smallest."""

    level: int = DEFAULT_LEVEL
    block_len: int = DEFAULT_BLOCK_LEN
    filter: Optional[str] = None

    def codec(self, filter: str) -> Codec:
        """The codec, with `filter` where none is asked for."""
        return Codec(self.level, self.block_len, filter if self.filter is None else self.filter).check()

    def to_map(self) -> dict[str, Any]:
        """The map on disk, as the store's default."""
        stored = {"name": ZSTD_NAME, "level": self.level, "block": self.block_len}
        return stored if self.filter is None else stored | {"filter": self.filter}

    @classmethod
    def from_map(cls, value: Any) -> "Compression":
        """Reads `to_map`. Raises `UnsupportedError` or `CorruptStoreError`."""
        compression = cls(*_fields(value))
        compression.codec("none")
        return compression


def _fields(value: Any) -> tuple[int, int, Optional[str]]:
    """Level, block length and filter or None of a stored map."""
    if not isinstance(value, dict):
        raise CorruptStoreError("codec: is no map")
    # First, so that an unknown codec is refused by its name and not for the parameters that it has.
    _known("codec", value.get("name"), (ZSTD_NAME,))
    if unknown := [key for key in value if key not in ("name", "level", "block", "filter")]:
        raise CorruptStoreError(f"codec: has the unknown key {unknown[0]!r}")
    for key in ("level", "block"):
        if type(value.get(key)) is not int:
            raise CorruptStoreError(f"codec: {key} is {value.get(key)!r}, expected an integer")
    filter = value.get("filter")
    if "filter" in value:
        _known("filter", filter, FILTERS)
    return value["level"], value["block"], filter


def _known(part: str, name: object, names: tuple[str, ...]) -> None:
    if not isinstance(name, str):
        raise CorruptStoreError(f"codec: the name of the {part} is {name!r}, expected a string")
    if name not in names:
        quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        raise UnsupportedError(f"{part} {quoted} is not known to this release; install a newer one")
