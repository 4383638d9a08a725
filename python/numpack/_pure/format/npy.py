"""The ``.npy`` header: reads versions 1.0, 2.0 and 3.0 as NumPy does, writes version 1.0 where the text fits it."""

from __future__ import annotations

import struct

from numpack._dtypes import Descr
from numpack._pure.format import dtype, literal
from numpack._pure.format.error import BadMagic, FormatError
from numpack._pure.format.layout import Layout, layout_of

MAGIC = b"\x93NUMPY"
MAX_HEADER_LEN = 1 << 20
# One page, so that the elements start page-aligned.
ALIGNED_HEADER_LEN = 4096
# The longest header that NumPy reads unasked is 10,000 bytes of text, so two pages may be filled up.
MAX_ALIGNED_LEN = 2 * ALIGNED_HEADER_LEN
NUMPY_ALIGN = 64


def parse(data: bytes) -> tuple[Descr, Layout]:
    """Read a header, which ``data`` holds whole.

    Raises
    ------
    FormatError
    """
    if not data.startswith(MAGIC):
        raise BadMagic(f"begins with {data[:6]!r}, not as a .npy file")
    version = tuple(data[6:8])
    if version == (1, 0):
        offset, fmt = 10, "<H"
    elif version in ((2, 0), (3, 0)):
        offset, fmt = 12, "<I"
    else:
        raise FormatError(f"npy header: version {list(version)} is none of 1.0, 2.0, 3.0")
    if len(data) < offset:
        raise FormatError(f"the npy header needs 12 bytes, the file has {len(data)}")
    end = offset + struct.unpack_from(fmt, data, 8)[0]
    if end > MAX_HEADER_LEN:
        raise FormatError(f"the npy header claims {end} bytes, the limit is {MAX_HEADER_LEN}")
    if len(data) < end:
        raise FormatError(f"the npy header needs {end} bytes, the file has {len(data)}")
    try:
        text = data[offset:end].decode("utf-8" if version == (3, 0) else "latin-1")
    except UnicodeDecodeError:
        raise FormatError("npy header: text is not UTF-8") from None
    found = literal.parse(text)
    if not isinstance(found, literal.Dict):
        raise FormatError("npy header: text is not a dict")
    fields = {}
    for key, value in found.entries:
        is_right = (
            key == "descr"
            or (key == "fortran_order" and isinstance(value, bool))
            or (key == "shape" and isinstance(value, tuple) and all(type(dim) is int for dim in value))
        )
        if not is_right:
            raise FormatError(f"npy header: entry {key!r} is unknown or of the wrong type")
        fields[key] = value
    for key in ("descr", "fortran_order", "shape"):
        if key not in fields:
            raise FormatError(f"npy header: has no {key}")
    descr = dtype.parse(fields["descr"])
    return descr, layout_of(fields["shape"], fields["fortran_order"], dtype.itemsize(descr))


def encode(descr: Descr, layout: Layout) -> bytes:
    """A header for a new file: filled up to a page, or to 64 bytes where NumPy would refuse to read the longer text.

    Raises
    ------
    FormatError
        If it is over 1 MiB long.
    """
    text = _text(descr, layout)
    needed = 12 + len(text.encode()) + 1
    length = -(-needed // ALIGNED_HEADER_LEN) * ALIGNED_HEADER_LEN
    if length > MAX_ALIGNED_LEN:
        length = -(-needed // NUMPY_ALIGN) * NUMPY_ALIGN
    header = encode_within(descr, layout, length)
    if header is None:
        raise FormatError(f"the npy header claims {length} bytes, the limit is {MAX_HEADER_LEN}")
    return header


def encode_within(descr: Descr, layout: Layout, length: int) -> bytes | None:
    """A header of exactly ``length`` bytes, so that it can take the place of one; None if the text does not fit."""
    text, is_latin = _encoded(_text(descr, layout))
    if length > MAX_HEADER_LEN:
        return None
    for version, offset, fmt in ((1, 10, "<H"), (2, 12, "<I"), (3, 12, "<I")):
        if (version == 3) == is_latin or length - offset >= 1 << (8 * struct.calcsize(fmt)):
            continue
        if length < offset + len(text) + 1:
            return None
        head = MAGIC + bytes([version, 0]) + struct.pack(fmt, length - offset)
        return head + text + b" " * (length - offset - len(text) - 1) + b"\n"
    return None


def _text(descr: Descr, layout: Layout) -> str:
    described = dtype.shown(descr)
    return f"{{'descr': {described}, 'fortran_order': {layout.fortran_order}, 'shape': {layout.shape!r}, }}"


def _encoded(text: str) -> tuple[bytes, bool]:
    """The text as bytes, and whether it is Latin-1, as all but version 3.0 need it."""
    try:
        return text.encode("latin-1"), True
    except UnicodeEncodeError:
        return text.encode(), False
