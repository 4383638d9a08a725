"""Names: which ones an array can have, and the data file that a name leads to."""

from __future__ import annotations

import string

from numpack._pure.format.error import FormatError, quoted

MANIFEST = "metadata.npkm"
MANIFEST_BACKUP = "metadata.npkm.bak"
LOCK = "metadata.npkm.lock"

MAX_NAME_LEN = 4096
# Bytes of the escaped name that go into a file name; file systems allow 255 in all.
MAX_ESCAPED_LEN = 200
PLAIN = frozenset(string.ascii_letters + string.digits + "_-.+=@,")


def check(name: str) -> None:
    """Check that an array may have this name."""
    if "\0" in name:
        raise FormatError(f"array name {quoted(name)}: holds a NUL character")
    if len(name.encode()) > MAX_NAME_LEN:
        raise FormatError(f"array name {quoted(name)}: is longer than 4096 bytes")


def first_data_file(name: str) -> str | None:
    """The data file of a name's first version, if the name is short enough to have one without its id."""
    escaped = escape(name)
    return f"data_{escaped}.npkd" if len(escaped) <= MAX_ESCAPED_LEN else None


def data_file(name: str, array_id: int) -> str:
    """The data file of one version of an array. No two versions share it."""
    escaped = escape(name)
    if len(escaped) > MAX_ESCAPED_LEN:
        # An escape is cut nowhere: at most two of its three bytes would remain.
        cuts = range(MAX_ESCAPED_LEN - 2, MAX_ESCAPED_LEN + 1)
        cut = next((cut for cut in cuts if escaped[cut : cut + 1] == "%"), MAX_ESCAPED_LEN)
        escaped = escaped[:cut]
    return f"data_{escaped}~{array_id}.npkd"


def is_data_file(file: str) -> bool:
    """Whether ``file`` is a name that data files have: within the store's folder, and nothing else's."""
    return (
        file.startswith("data_")
        and file.endswith(".npkd")
        and "/" not in file
        and "\0" not in file
        and len(file.encode("utf-8", "surrogateescape")) <= 255
    )


def escape(name: str) -> str:
    """The name with each byte of other characters than plain ones as ``%XX``."""
    parts = (char if char in PLAIN else "".join(f"%{byte:02X}" for byte in char.encode()) for char in name)
    return "".join(parts)
