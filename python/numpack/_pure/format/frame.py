"""The manifest as bytes: a file header, then a log of checksummed frames.

What a crash leaves is a log whose end is missing. What lies after a bad frame decides whether it is such an end, which is
silently not there, or damage: see "Torn ends and damage" in ``spec/npk-format.md``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from numpack._pure.format.error import BadMagic, Damaged, FormatError, Unsupported

MAGIC = b"\x89NPK\r\n\x1a\n"
VERSION = 1
KNOWN_FEATURES = 0
STORE_ID_LEN = 16
# Magic, version, features, identity; then their crc32, 4 reserved bytes, the published length, 16 reserved bytes.
HEADER = struct.Struct("<8sII16s")
PUBLISHED_OFFSET = 40
HEADER_LEN = 64
# The published length while a commit is being written, and of a manifest that has been replaced.
RETIRED = 2**64 - 1

# Mark, crc32, length of the payload, 4 reserved bytes, synced length.
FRAME_HEADER = struct.Struct("<4sIIIQ")
MARK = b"npkF"
CRC_END = 8
FRAME_ALIGN = 8
MAX_PAYLOAD_LEN = 1 << 30
# The unit that disks write whole.
SECTOR_LEN = 512
# How many times the length of the log bad frames may claim before the search for a later one gives up.
MAX_OVERLAP = 8


def encode_header(store_id: bytes, published: int) -> bytes:
    """The file header."""
    head = HEADER.pack(MAGIC, VERSION, 0, store_id)
    return head + struct.pack("<IIQ", zlib.crc32(head), 0, published) + bytes(16)


def parse_header(data: bytes) -> bytes:
    """The store's identity, from the first bytes of a manifest.

    Raises
    ------
    FormatError
    """
    if not data.startswith(MAGIC):
        raise BadMagic(f"begins with {shown(data[:8])}, not as an npk manifest")
    if len(data) < HEADER_LEN:
        raise FormatError(f"the manifest's header needs {HEADER_LEN} bytes, the file has {len(data)}")
    _, version, features, store_id = HEADER.unpack_from(data)
    # The version comes before the checksum: a newer version may compute another one.
    if version != VERSION:
        raise Unsupported(
            f"has format version {version}, this program reads versions up to {VERSION}; install a newer release"
        )
    (expected,) = struct.unpack_from("<I", data, HEADER.size)
    found = zlib.crc32(data[: HEADER.size])
    if found != expected:
        raise Damaged(f"the manifest's header at byte 0 has crc32 {found:#010x}, expected {expected:#010x}")
    if unknown := features & ~KNOWN_FEATURES:
        raise Unsupported(
            f"needs features {unknown:#x} that this program does not know; install a newer release"
        )
    return bytes(store_id)


def shown(data: bytes) -> str:
    """Bytes of a file as a person can read them."""
    return '"' + repr(data)[2:-1].replace('"', '\\"') + '"' if data else "nothing"


def encode(payload: bytes, synced_len: int) -> bytes:
    """One frame: header, payload, zeros up to the alignment.

    Raises
    ------
    FormatError
        If the payload is over 1 GiB long.
    """
    if len(payload) > MAX_PAYLOAD_LEN:
        raise FormatError(f"a manifest frame claims {len(payload)} bytes, the limit is {MAX_PAYLOAD_LEN}")
    covered = FRAME_HEADER.pack(MARK, 0, len(payload), 0, synced_len)[CRC_END:] + payload
    return MARK + struct.pack("<I", zlib.crc32(covered)) + covered + bytes(-len(payload) % FRAME_ALIGN)


@dataclass(frozen=True)
class Frame:
    """One good frame: where it starts and ends in the manifest, and what is in it."""

    offset: int
    end: int
    synced_len: int
    payload: bytes


class Log:
    """A run of bytes of the manifest that starts at a frame boundary, read frame by frame.

    Iterating ends where the log ends, which may be torn, and raises `Damaged` where a bad frame is followed by good ones
    and cannot be a write that never reached the disk.
    """

    def __init__(self, data: bytes, start: int) -> None:
        self.data = memoryview(data)
        self.start = start
        self.pos = 0

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self.pos == len(self.data):
            raise StopIteration
        try:
            frame = self._frame_at(self.pos)
        except Damaged:
            good = self._frame_after(self.pos)
            if good and (good.synced_len > self.start + self.pos or not self._is_unwritten(good.offset)):
                raise
            raise StopIteration from None
        self.pos = frame.end - self.start
        return frame

    def _frame_at(self, pos: int) -> Frame:
        offset = self.start + pos

        def bad(found: int, expected: int) -> Damaged:
            return Damaged(
                f"manifest frame at byte {offset} has crc32 {found:#010x}, expected {expected:#010x}"
            )

        if len(self.data) - pos < FRAME_HEADER.size:
            raise bad(0, 0)
        mark, expected, payload_len, _, synced_len = FRAME_HEADER.unpack_from(self.data, pos)
        end = pos + FRAME_HEADER.size + payload_len
        if mark != MARK or payload_len > MAX_PAYLOAD_LEN or end > len(self.data):
            raise bad(0, expected)
        found = zlib.crc32(self.data[pos + CRC_END : end])
        padded = end + -payload_len % FRAME_ALIGN
        if found != expected or padded > len(self.data):
            raise bad(found, expected)
        payload = bytes(self.data[pos + FRAME_HEADER.size : end])
        return Frame(offset, self.start + padded, synced_len, payload)

    def _frame_after(self, bad: int) -> Frame | None:
        """The first good frame after the bad one at ``bad``."""
        data = bytes(self.data[bad:])
        # Frames do not overlap, so that checking them all takes their bytes once. Marks that are none could claim the
        # rest of the file each: who has claimed several times its length is not believed any more.
        believed = len(self.data) * MAX_OVERLAP
        found = data.find(MARK, FRAME_ALIGN)
        while found >= 0:
            if found % FRAME_ALIGN == 0:
                pos = bad + found
                try:
                    return self._frame_at(pos)
                except Damaged:
                    rest = len(self.data) - pos
                    claimed = FRAME_HEADER.size
                    if rest >= FRAME_HEADER.size:
                        claimed += FRAME_HEADER.unpack_from(self.data, pos)[2]
                    believed -= claimed if claimed <= rest else FRAME_HEADER.size
                    if believed < 0:
                        return None
            found = data.find(MARK, found + 1)
        return None

    def _is_unwritten(self, next_offset: int) -> bool:
        """Whether a sector between here and ``next_offset`` holds nothing: the write of a lost page."""
        start, end = self.start + self.pos, next_offset
        while start < end:
            sector_end = min((start // SECTOR_LEN + 1) * SECTOR_LEN, end)
            if not any(self.data[start - self.start : sector_end - self.start]):
                return True
            start = sector_end
        return False
