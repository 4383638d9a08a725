"""The tables that are written field after field: ``NPKB``, bincode, and what looked like bincode."""

from __future__ import annotations

from numpack._pure.format.error import quoted
from numpack._pure.format.layout import MAX_NDIM
from numpack._pure.format.upstream.raw import RawEntry

# How a table of 0.3 to 0.7 begins, and how one of 0.1 and 0.2.0 does.
NPKB_MAGIC = b"NPKB"
BINCODE_VERSION = b"\x01\0\0\0"
# The only version of all of these.
VERSION = 1

# Bytes of one block in the table of a compressed array.
NPKB_BLOCK_LEN = 24


def parse_npkb(data: bytes) -> list[RawEntry]:
    """``NPKB``, as 0.3 to 0.7 wrote it. ValueError says what is wrong."""
    fields = Fields(data, len(NPKB_MAGIC))
    fields.version()
    fields.u64()  # sum of the sizes
    entries = []
    for _ in range(fields.u32()):
        name = fields.text(fields.u32())
        shape = fields.shape(fields.u32())
        file = fields.text(fields.u32())
        modified, size = fields.u64(), fields.u64()
        dtype, compression = fields.u8(), fields.u8()
        fields.u32(), fields.u64(), fields.u64()  # level, size before, size after
        if fields.u8() != 0:
            fields.u8(), fields.u64(), fields.u64()
            for _ in range(fields.u32()):
                fields.take(NPKB_BLOCK_LEN)
        entries.append(RawEntry(name, shape, file, modified, size, dtype, compression != 0))
    fields.end()
    return entries


def parse_bincode(data: bytes) -> list[RawEntry]:
    """bincode, as 0.1 and 0.2.0 wrote it. ValueError says what is wrong."""
    fields = Fields(data, 0)
    fields.version()
    entries = []
    for _ in range(fields.u64()):
        name = fields.key_and_name()
        shape = fields.shape(fields.u64())
        file = fields.text(fields.u64())
        modified, size, dtype = fields.u64(), fields.u64(), fields.u32()
        entries.append(RawEntry(name, shape, file, modified, size, dtype))
    fields.u64()  # sum of the sizes
    fields.end()
    return entries


def parse_bincode_python(data: bytes) -> list[RawEntry]:
    """What 0.2.0 wrote without its Rust extension. ValueError says what is wrong."""
    fields = Fields(data, 0)
    fields.version()
    entries = []
    for _ in range(fields.u64()):
        name = fields.key_and_name()
        shape = fields.shape(fields.u64())
        dtype = fields.u64()
        file = fields.text(fields.u64())
        modified = fields.u64()
        fields.u64()  # the same number for every array
        entries.append(RawEntry(name, shape, file, modified, fields.u64(), dtype))
    fields.end()
    return entries


class Fields:
    """Fields that are read one after the other. Nothing is allocated that the bytes do not hold."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        end = self.offset + length
        if end > len(self.data):
            raise ValueError(
                f"is cut off after {len(self.data)} bytes, within the field at byte {self.offset}"
            )
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def u8(self) -> int:
        """An integer of 1 byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """An integer of 4 bytes."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """An integer of 8 bytes."""
        return int.from_bytes(self.take(8), "little")

    def text(self, length: int) -> str:
        """Text of ``length`` bytes."""
        start = self.offset
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise ValueError(f"the text at byte {start} is not UTF-8") from None

    def key_and_name(self) -> str:
        """A name that is there twice."""
        key, name = self.text(self.u64()), self.text(self.u64())
        if key != name:
            raise ValueError(f"array {quoted(key)} is called {quoted(name)} as well")
        return name

    def shape(self, n_dims: int) -> list[int]:
        """As many dimensions."""
        if n_dims > MAX_NDIM:
            raise ValueError(f"an array has {n_dims} dimensions at byte {self.offset}")
        return [self.u64() for _ in range(n_dims)]

    def version(self) -> None:
        """The version, which must be the only one."""
        if (version := self.u32()) != VERSION:
            raise ValueError(f"has version {version}, expected {VERSION}")

    def end(self) -> None:
        """Check that nothing follows."""
        if rest := len(self.data) - self.offset:
            raise ValueError(f"ends at byte {self.offset}, and {rest} bytes follow")
