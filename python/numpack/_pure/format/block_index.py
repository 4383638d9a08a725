"""Where the blocks of a compressed array are: pointers with checksums, in a tree of small pages.

A pointer carries the checksum of what it points to, so one good pointer, the root in the manifest, vouches for the whole
array. Blocks and pages are pure values here; ``store`` reads and writes them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import msgpack

from numpack._pure.format.codec import ABSENT, FILTER_OF_KIND, KINDS, OPEN_TAIL, PAGE, RAW, Codec
from numpack._pure.format.error import FormatError, quoted

POINTER = struct.Struct("<QII")
PAGE_FANOUT = 256
PAGE_LEN = PAGE_FANOUT * POINTER.size
FANOUT_BITS = 8
KIND_SHIFT = 56
# No data file goes on behind this offset, which is the first that a pointer cannot say.
MAX_END = 1 << KIND_SHIFT

MAGIC = b"\x89NPD\r\n\x1a\n"
FILE_VERSION = 1
# Length of the header of a compressed data file. The array's .npy header follows, then blocks and pages.
FILE_HEADER_LEN = 4096
# Magic, version, length of the .npy header, length of the codec; then their crc32, and the codec.
FILE_HEADER = struct.Struct("<8sIII")
CODEC_OFFSET = FILE_HEADER.size + 4
MAX_CODEC_LEN = 512 - CODEC_OFFSET
# In sectors of their own, so that a torn write spares one.
SLOT_OFFSETS = (512, 1024)
SLOT_LEN = 72
INDEX_LEN = 48


@dataclass(frozen=True)
class Pointer:
    """Where a block or page is in the data file, what it is, and the crc32 of its bytes there."""

    kind: int = ABSENT
    offset: int = 0
    stored_len: int = 0
    crc: int = 0

    @property
    def is_absent(self) -> bool:
        """Whether it points nowhere, and what would be there is all zeros."""
        return self.kind == ABSENT

    @property
    def end(self) -> int:
        """Where the bytes end in the data file."""
        return self.offset + self.stored_len

    def to_bytes(self) -> bytes:
        """The bytes on disk."""
        return POINTER.pack(self.offset | self.kind << KIND_SHIFT, self.stored_len, self.crc)

    @classmethod
    def parse(cls, data: bytes, offset: int) -> Pointer:
        """Read `to_bytes`; a ValueError says what is wrong."""
        word, stored_len, crc = POINTER.unpack_from(data, offset)
        pointer = cls(word >> KIND_SHIFT, word & (MAX_END - 1), stored_len, crc)
        if pointer.kind not in KINDS:
            raise ValueError("has a pointer of an unknown kind")
        if pointer.is_absent and pointer != NOWHERE:
            raise ValueError("has a pointer to nothing that is not empty")
        return pointer


NOWHERE = Pointer()


@dataclass(frozen=True)
class Index:
    """What an array's record says about its blocks: the tree of the full ones, the last one if it is not full, where
    the data file ends as far as it is in use, and how many bytes all blocks and pages have."""

    root: Pointer
    tail: Pointer
    end: int
    live: int

    @classmethod
    def empty(cls, npy_len: int) -> Index:
        """The index of an array without elements."""
        return cls(NOWHERE, NOWHERE, FILE_HEADER_LEN + npy_len, 0)

    def dead(self, npy_len: int) -> int:
        """Bytes in the data file that belong to no block, page or header."""
        return max(0, self.end - FILE_HEADER_LEN - npy_len - self.live)

    def to_bytes(self) -> bytes:
        """The bytes on disk."""
        return self.root.to_bytes() + self.tail.to_bytes() + struct.pack("<QQ", self.end, self.live)

    @classmethod
    def parse(cls, data: object, name: str) -> Index:
        """Read `to_bytes` of the array ``name``.

        Raises
        ------
        FormatError
        """
        try:
            return cls.parse_bytes(data)
        except ValueError as error:
            raise FormatError(f"array {quoted(name)}: the block index {error}") from None

    @classmethod
    def parse_bytes(cls, data: object) -> Index:
        """Read `to_bytes`; a ValueError says what is wrong."""
        if not isinstance(data, bytes) or len(data) != INDEX_LEN:
            raise ValueError("has another length than that of an index")
        end, live = struct.unpack_from("<QQ", data, 2 * POINTER.size)
        return cls(Pointer.parse(data, 0), Pointer.parse(data, POINTER.size), end, live)


def check_index(index: Index, nbytes: int, npy_len: int, codec: Codec) -> str | None:
    """What is wrong with the index of an array of ``nbytes`` bytes, as far as it shows without the data file."""
    start = FILE_HEADER_LEN + npy_len
    if index.end > MAX_END or index.end < start or index.live > index.end:
        return "has an end or a size that no file has"
    n_blocks, tail_len = divmod(nbytes, codec.block_len)
    if n_blocks == 0 and not index.root.is_absent:
        return "has a root, but no full block"
    if what := check_pointer(index.root, height(n_blocks), codec.block_len, start, index.end):
        return what
    if tail_len == 0 and not index.tail.is_absent:
        return "has a tail, but no partial block"
    if index.tail.kind == OPEN_TAIL:
        fits = (
            index.tail.stored_len == tail_len
            and index.tail.offset >= start
            and index.tail.offset + codec.block_len <= index.end
        )
        return None if fits else "has a tail that is not where it can be"
    return check_pointer(index.tail, 0, tail_len, start, index.end)


def height(n_blocks: int) -> int:
    """Levels of pages above so many full blocks: 0 if the root points to the only block, or nowhere."""
    return -(-max(0, n_blocks - 1).bit_length() // FANOUT_BITS)


def slot_in_page(block: int, level: int) -> int:
    """Which pointer leads to a block, in a page that is ``level`` levels above the blocks."""
    return block >> (level - 1) * FANOUT_BITS & 0xFF


def check_pointer(pointer: Pointer, level: int, raw_len: int, start: int, end: int) -> str | None:
    """What is wrong with a pointer in a page ``level`` levels above the blocks, or, with level 0, one to a block.

    ``start`` and ``end`` are those of the part of the data file where blocks and pages are.
    """
    stored_len = pointer.stored_len
    if pointer.is_absent:
        return None
    if pointer.kind == PAGE:
        fits = level > 0 and 0 < stored_len <= PAGE_LEN and stored_len % POINTER.size == 0
    elif pointer.kind == RAW:
        fits = level == 0 and stored_len == raw_len
    else:
        fits = pointer.kind in FILTER_OF_KIND and level == 0 and 0 < stored_len < raw_len
    if not fits:
        return "points to something of a wrong kind or length"
    if pointer.offset < start or pointer.end > end:
        return "points outside of the data file's blocks"
    return None


def encode_page(pointers: list[Pointer]) -> bytes:
    """The bytes of a page: up to its last pointer that points to something."""
    used = max((place + 1 for place, pointer in enumerate(pointers) if not pointer.is_absent), default=0)
    return b"".join(pointer.to_bytes() for pointer in pointers[:used])


def parse_page(data: bytes) -> list[Pointer]:
    """The pointers of a page, 256 of them; a ValueError says what is wrong."""
    if len(data) > PAGE_LEN or len(data) % POINTER.size:
        raise ValueError("has a length that no page has")
    pointers = [Pointer.parse(data, offset) for offset in range(0, len(data), POINTER.size)]
    return pointers + [NOWHERE] * (PAGE_FANOUT - len(pointers))


def encode_file_header(npy_len: int, codec: Codec) -> bytes:
    """The header of a compressed data file, with empty slots."""
    stored = msgpack.packb(codec.to_stored(), use_bin_type=True)
    head = FILE_HEADER.pack(MAGIC, FILE_VERSION, npy_len, len(stored))
    crc = zlib.crc32(stored, zlib.crc32(head))
    return (head + struct.pack("<I", crc) + stored).ljust(FILE_HEADER_LEN, b"\0")


@dataclass(frozen=True)
class Slot:
    """The newest index, as the data file itself tells it."""

    sequence: int
    nbytes: int
    index: Index

    def to_bytes(self) -> bytes:
        """The bytes on disk."""
        data = struct.pack("<QQ", self.sequence, self.nbytes) + self.index.to_bytes()
        return data + struct.pack("<II", zlib.crc32(data), 0)

    @classmethod
    def parse(cls, header: bytes, offset: int) -> Slot | None:
        """The slot at ``offset`` of a data file's header, unless it is empty or torn."""
        data = header[offset : offset + SLOT_LEN]
        if len(data) < SLOT_LEN or zlib.crc32(data[:64]) != struct.unpack_from("<I", data, 64)[0]:
            return None
        try:
            return cls(*struct.unpack_from("<QQ", data), Index.parse_bytes(data[16:64]))
        except ValueError:
            return None

    @classmethod
    def newest(cls, header: bytes) -> tuple[Slot | None, int]:
        """The newer of the two slots of a data file's header, and the offset of the other, which is next."""
        first, second = (cls.parse(header, offset) for offset in SLOT_OFFSETS)
        if first is not None and (second is None or first.sequence > second.sequence):
            return first, SLOT_OFFSETS[1]
        return second, SLOT_OFFSETS[0]
