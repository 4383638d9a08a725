"""How the blocks of a compressed array are encoded: the words and their limits. Encoding itself is in ``codec``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpack._pure.format.error import FormatError, Unsupported, quoted

BLOCK_ALIGN = 4096
MAX_BLOCK_LEN = 16 << 20
MIN_LEVEL = -7
MAX_LEVEL = 22
DEFAULT_LEVEL = 1
DEFAULT_BLOCK_LEN = 64 << 10

# How many items before it the one is that is taken from an item.
STEPS = {"delta": 1, "delta2": 2, "delta3": 3, "delta4": 4}
FILTERS = ("none", "shuffle", *STEPS)

# What a block or page is: the top byte of its pointer. On disk: never renumber.
ABSENT, RAW, ZSTD, OPEN_TAIL, PAGE = 0, 1, 2, 5, 6
KIND_OF_FILTER = {"none": 2, "shuffle": 3, "delta": 4, "delta2": 7, "delta3": 8, "delta4": 9}
FILTER_OF_KIND = {kind: name for name, kind in KIND_OF_FILTER.items()}
KINDS = frozenset({ABSENT, RAW, OPEN_TAIL, PAGE, *FILTER_OF_KIND})


def filter_for_itemsize(name: str, itemsize: int) -> str:
    """The filter that is applied to items of this size where ``name`` is asked for."""
    if name in STEPS and itemsize in (1, 2, 4, 8):
        return name
    return "shuffle" if name != "none" and 2 <= itemsize <= 255 else "none"


def check(level: int, block_len: int) -> None:
    """Check the limits of a codec.

    Raises
    ------
    FormatError
    """
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise FormatError(f"codec: level is {level}, expected -7 (fastest) to 22 (smallest)")
    if not BLOCK_ALIGN <= block_len <= MAX_BLOCK_LEN or block_len % BLOCK_ALIGN:
        raise FormatError(
            f"codec: block length is {block_len}, "
            "expected a multiple of 4096 bytes, from 4096 to 16777216 (16 MiB)"
        )


@dataclass(frozen=True)
class Codec:
    """How the blocks of an array are encoded: always zstd."""

    level: int
    block_len: int
    filter: str

    def to_stored(self) -> dict[str, Any]:
        """As a record has it."""
        return {"name": "zstd", "level": self.level, "block": self.block_len, "filter": self.filter}

    @classmethod
    def from_stored(cls, stored: Any) -> Codec:
        """Read what a record has.

        Raises
        ------
        FormatError
        """
        level, block_len, name = _fields(stored)
        if name is None:
            raise FormatError("a codec has no filter")
        return cls(level, block_len, name)


@dataclass(frozen=True)
class Compression:
    """How a new array is to be compressed; without a filter by the one that makes a sample of it smallest."""

    level: int = DEFAULT_LEVEL
    block_len: int = DEFAULT_BLOCK_LEN
    filter: str | None = None

    def to_stored(self) -> dict[str, Any]:
        """As a snapshot has it."""
        stored = {"name": "zstd", "level": self.level, "block": self.block_len}
        return stored if self.filter is None else stored | {"filter": self.filter}

    @classmethod
    def from_stored(cls, stored: Any) -> Compression:
        """Read what a snapshot has.

        Raises
        ------
        FormatError
        """
        return cls(*_fields(stored))

    @classmethod
    def of(cls, codec: Codec | None) -> Compression | None:
        """The compression that an array has."""
        return None if codec is None else cls(codec.level, codec.block_len, codec.filter)


def _fields(stored: Any) -> tuple[int, int, str | None]:
    if not isinstance(stored, dict) or not isinstance(stored.get("name"), str):
        raise FormatError("a codec is no map with a name")
    # The name comes first, so that an unknown one is refused by its name and not for its parameters.
    if stored["name"] != "zstd":
        raise Unsupported(f"codec {quoted(stored['name'])} is not known to this release; install a newer one")
    if not {"name", "level", "block"} <= set(stored) <= {"name", "level", "block", "filter"}:
        raise FormatError("a codec has other keys than name, level, block and filter")
    level, block_len, name = stored["level"], stored["block"], stored.get("filter")
    if type(level) is not int or type(block_len) is not int or not isinstance(name, str | None):
        raise FormatError("a codec has a level, block or filter that cannot be")
    if name is not None and name not in FILTERS:
        raise Unsupported(f"filter {quoted(name)} is not known to this release; install a newer one")
    check(level, block_len)
    return level, block_len, name
