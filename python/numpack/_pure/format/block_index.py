"""Where the blocks of a compressed array are: pointers with checksums, in a tree of small pages.

A pointer carries the checksum of what it points to, so one good pointer, the root in the manifest, vouches for the
whole array: a block or page that was overwritten, torn or damaged since is never taken for good. Blocks and pages are
pure values here; the package `store` reads and writes them.

On disk: spec/npk-format.md, "Compressed data files".
"""

import struct
import zlib
from typing import Any, NamedTuple, Optional

from ..._errors import CorruptStoreError, UnsupportedError
from . import messagepack
from .codec import ABSENT, KIND_NAMES, OPEN_TAIL, PAGE, RAW, Codec
from .error import Malformed

POINTER_LEN = 16
PAGE_FANOUT = 256
"""Pointers of a page at most."""
PAGE_LEN = PAGE_FANOUT * POINTER_LEN
"""Bytes of a page at most: pages end after their last pointer that points to something."""

FANOUT_BITS = 8
KIND_SHIFT = 56  # a pointer's offset has this many bits; the kind is above them
MAX_END = 1 << KIND_SHIFT
"""No data file goes on behind this offset, which is the first that a pointer cannot say."""

MAGIC = b"\x89NPD\r\n\x1a\n"
FILE_HEADER_LEN = 4096
"""Length of the header of a compressed data file. The array's ``.npy`` header follows, then blocks and pages."""

FILE_VERSION = 1
MAX_NPY_LEN = 1 << 20
SLOT_OFFSETS = (512, 1024)
"""Offsets of the two slots: in sectors of their own, so that a torn write spares one."""

_POINTER = struct.Struct("<QII")
_HEADER = struct.Struct("<8sIIII")
_SLOT = struct.Struct("<QQ48sI4x")
_INDEX = struct.Struct("<16s16sQQ")
CODEC_OFFSET = _HEADER.size
MAX_CODEC_LEN = SLOT_OFFSETS[0] - CODEC_OFFSET
SLOT_LEN = _SLOT.size
_SLOT_CRC_OFFSET = 64
INDEX_LEN = _INDEX.size
_HEADER_CRC_OFFSET = 20


class IndexFault(Exception):
    """What is wrong with an index or a page, as the end of a sentence that begins with it."""


class Pointer(NamedTuple):
    """Where a block or page is in the data file, what it is, and the checksum of its bytes there."""

    kind: int
    offset: int
    stored_len: int
    crc: int

    @property
    def end(self) -> int:
        """Where the bytes end in the data file."""
        return self.offset + self.stored_len

    def to_bytes(self) -> bytes:
        """The bytes on disk."""
        return _POINTER.pack(self.offset | self.kind << KIND_SHIFT, self.stored_len, self.crc)


NOWHERE = Pointer(ABSENT, 0, 0, 0)
"""The pointer to a block of zeros."""


def _pointer(word: int, stored_len: int, crc: int) -> Pointer:
    kind = word >> KIND_SHIFT
    if kind >= len(KIND_NAMES):
        raise IndexFault("has a pointer of an unknown kind")
    if kind == ABSENT:
        if word or stored_len or crc:
            raise IndexFault("has a pointer to nothing that is not empty")
        return NOWHERE
    return Pointer(kind, word & (MAX_END - 1), stored_len, crc)


class Index(NamedTuple):
    """What an array's record says about its blocks."""

    root: Pointer
    """The tree of the full blocks: see `height`."""
    tail: Pointer
    """The last block, if it is not full. It is raw while it grows."""
    end: int
    """Where the data file ends, as far as it is in use or reserved."""
    live: int
    """Bytes of all blocks and pages that `root` and `tail` lead to."""

    @classmethod
    def empty(cls, npy_len: int) -> "Index":
        """The index of an array without elements whose ``.npy`` header has `npy_len` bytes."""
        return cls(NOWHERE, NOWHERE, FILE_HEADER_LEN + npy_len, 0)

    def dead(self, npy_len: int) -> int:
        """Bytes in the data file that belong to no block, page or header."""
        return max(0, self.end - FILE_HEADER_LEN - npy_len - self.live)

    def to_bytes(self) -> bytes:
        """The bytes on disk."""
        return _INDEX.pack(self.root.to_bytes(), self.tail.to_bytes(), self.end, self.live)

    @classmethod
    def parse(cls, stored: bytes) -> "Index":
        """Reads `to_bytes`. Raises `IndexFault`."""
        if len(stored) != INDEX_LEN:
            raise IndexFault("has another length than that of an index")
        root, tail, end, live = _INDEX.unpack(stored)
        return cls(_pointer(*_POINTER.unpack(root)), _pointer(*_POINTER.unpack(tail)), end, live)

    def check(self, nbytes: int, npy_len: int, codec: Codec) -> None:
        """Checks this index of an array of `nbytes` bytes, as far as it can be checked without the data file.

        Raises `IndexFault`.
        """
        start = FILE_HEADER_LEN + npy_len
        if self.end > MAX_END or self.end < start or self.live > self.end:
            raise IndexFault("has an end or a size that no file has")
        n_full, tail_len = divmod(nbytes, codec.block_len)
        if n_full == 0 and self.root.kind != ABSENT:
            raise IndexFault("has a root, but no full block")
        check_pointer(self.root, height(n_full), codec.block_len, start, self.end)
        if tail_len == 0 and self.tail.kind != ABSENT:
            raise IndexFault("has a tail, but no partial block")
        if self.tail.kind != OPEN_TAIL:
            check_pointer(self.tail, 0, tail_len, start, self.end)
            return
        is_inside = start <= self.tail.offset and self.tail.offset + codec.block_len <= self.end
        if self.tail.stored_len != tail_len or not is_inside:
            raise IndexFault("has a tail that is not where it can be")


def height(n_blocks: int) -> int:
    """Levels of pages above `n_blocks` full blocks: 0 if the root points to the only block, or nowhere."""
    return -(-max(0, n_blocks - 1).bit_length() // FANOUT_BITS)


def slot_in_page(block: int, level: int) -> int:
    """Which pointer leads to `block`, in a page that is `level` levels above the blocks."""
    return block >> (level - 1) * FANOUT_BITS & PAGE_FANOUT - 1


def blocks_below(level: int) -> int:
    """How many blocks are below a pointer that is `level` levels above them."""
    return 1 << level * FANOUT_BITS


def first_block_of_page(block: int, level: int) -> int:
    """The first block under the page that holds `block`, `level` levels above the blocks."""
    shift = level * FANOUT_BITS
    return block >> shift << shift


def check_pointer(pointer: Pointer, level: int, raw_len: int, start: int, end: int) -> None:
    """Checks a pointer in a page `level` levels above the blocks, or with `level` 0 one to a block of `raw_len` bytes.

    ``start..end`` is the part of the data file where blocks and pages are. Raises `IndexFault`.
    """
    kind, offset, stored_len, _ = pointer
    if kind == ABSENT:
        return
    if kind == PAGE:
        fits = level > 0 and 0 < stored_len <= PAGE_LEN and stored_len % POINTER_LEN == 0
    elif kind == RAW:
        fits = level == 0 and stored_len == raw_len
    elif kind == OPEN_TAIL:
        fits = False
    else:
        fits = level == 0 and 0 < stored_len < raw_len
    if not fits:
        raise IndexFault("points to something of a wrong kind or length")
    if offset < start or offset + stored_len > end:
        raise IndexFault("points outside of the data file's blocks")


def encode_page(pointers: list[Pointer]) -> bytes:
    """The bytes of a page."""
    used = len(pointers)
    while used and pointers[used - 1].kind == ABSENT:
        used -= 1
    return b"".join([pointer.to_bytes() for pointer in pointers[:used]])


def parse_page(stored: Any) -> list[Pointer]:
    """The pointers of a page, `PAGE_FANOUT` of them. Raises `IndexFault`."""
    if len(stored) > PAGE_LEN or len(stored) % POINTER_LEN:
        raise IndexFault("has a length that no page has")
    pointers = [_pointer(*fields) for fields in _POINTER.iter_unpack(stored)]
    return pointers + [NOWHERE] * (PAGE_FANOUT - len(pointers))


class FileHeader(NamedTuple):
    """The header of a compressed data file, without its slots."""

    npy_len: int
    codec: Codec

    def to_bytes(self) -> bytes:
        """The bytes on disk, with empty slots."""
        codec = messagepack.pack(self.codec.to_map())
        start = _HEADER.pack(MAGIC, FILE_VERSION, self.npy_len, len(codec), 0)[:_HEADER_CRC_OFFSET]
        crc = zlib.crc32(codec, zlib.crc32(start))
        return (start + struct.pack("<I", crc) + codec).ljust(FILE_HEADER_LEN, b"\0")

    @classmethod
    def parse(cls, header: bytes) -> "FileHeader":
        """Reads the header at the start of `header`. Raises `CorruptStoreError` or `UnsupportedError`."""
        part = "the header of a compressed data file"
        if not header.startswith(MAGIC):
            raise CorruptStoreError(f"begins with {header[: len(MAGIC)].hex(' ')}, not as {part}")
        needed = CODEC_OFFSET + MAX_CODEC_LEN
        if len(header) < CODEC_OFFSET:
            raise CorruptStoreError(f"{part} needs {needed} bytes, the file has {len(header)}")
        _, version, npy_len, codec_len, expected = _HEADER.unpack_from(header)
        if version != FILE_VERSION:
            raise UnsupportedError(
                f"has format version {version}, this program reads versions up to {FILE_VERSION}; "
                "install a newer release"
            )
        if codec_len > MAX_CODEC_LEN:
            raise CorruptStoreError(f"{part} claims {codec_len} bytes, the limit is {MAX_CODEC_LEN}")
        codec = header[CODEC_OFFSET : CODEC_OFFSET + codec_len]
        if len(codec) < codec_len:
            raise CorruptStoreError(f"{part} needs {needed} bytes, the file has {len(header)}")
        found = zlib.crc32(codec, zlib.crc32(header[:_HEADER_CRC_OFFSET]))
        if found != expected:
            raise CorruptStoreError(f"{part} at byte 0 has crc32 {found:#010x}, expected {expected:#010x}")
        if npy_len > MAX_NPY_LEN:
            raise CorruptStoreError(f"the .npy header claims {npy_len} bytes, the limit is {MAX_NPY_LEN}")
        try:
            value = messagepack.unpack(codec)
        except Malformed as error:
            raise CorruptStoreError(f"frame at byte {CODEC_OFFSET} does not decode: {error}") from None
        return cls(npy_len, Codec.from_map(value))


class Slot(NamedTuple):
    """The newest index, as the data file itself tells it."""

    sequence: int
    """Counts the changes of the index; the slot with the larger one counts."""
    nbytes: int
    """Bytes of the stored elements."""
    index: Index  # type: ignore[assignment]

    def to_bytes(self) -> bytes:
        """The bytes on disk."""
        stored = _SLOT.pack(self.sequence, self.nbytes, self.index.to_bytes(), 0)[:_SLOT_CRC_OFFSET]
        return stored + struct.pack("<I4x", zlib.crc32(stored))

    @classmethod
    def parse(cls, header: bytes, offset: int) -> "Optional[Slot]":
        """The slot that starts at `offset` of a data file's header; None if it is empty or torn."""
        stored = header[offset : offset + SLOT_LEN]
        if len(stored) < SLOT_LEN:
            return None
        sequence, nbytes, index, crc = _SLOT.unpack(stored)
        if zlib.crc32(stored[:_SLOT_CRC_OFFSET]) != crc:
            return None
        try:
            return cls(sequence, nbytes, Index.parse(index))
        except IndexFault:
            return None

    @classmethod
    def newest(cls, header: bytes) -> "tuple[Optional[Slot], int]":
        """The newer of the two slots of a data file's header or None, and the offset of the other, which is next."""
        first, second = (cls.parse(header, offset) for offset in SLOT_OFFSETS)
        if first is not None and (second is None or first.sequence > second.sequence):
            return first, SLOT_OFFSETS[1]
        return second, SLOT_OFFSETS[0]
