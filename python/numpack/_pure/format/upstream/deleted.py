"""The file of deleted rows: a header, and one bit for each row that is there."""

from __future__ import annotations

import numpy as np

from numpack._pure.format.upstream.fault import Fault

# Number of rows, number of deleted rows; 8 bytes each.
WORDS_OFFSET = 16
WORD_LEN = 8
WORD_BITS = 64


def deleted_file(name: str) -> str:
    """The file that says which rows of an array are deleted, where there are any."""
    return f"deleted_{name}.npkb"


def deleted_file_len(n_rows: int) -> int:
    """Length of the file of deleted rows, in bytes."""
    return WORDS_OFFSET + -(-n_rows // WORD_BITS) * WORD_LEN


def parse_deleted(data: bytes, found_len: int, n_rows: int) -> np.ndarray:
    """Read the file of deleted rows of an array with ``n_rows`` stored rows, 0 if it is 0-d.

    Parameters
    ----------
    data : bytes
        As many bytes of the file as it should have, or all of it if it is shorter.
    found_len : int
        How many bytes the file has.

    Returns
    -------
    ndarray of int64
        The numbers of the deleted rows, ascending.

    Raises
    ------
    Fault
        What does not fit the array, or itself.
    """
    expected_len = deleted_file_len(n_rows)
    if len(data) < WORDS_OFFSET:
        raise Fault(f"has {found_len} bytes, expected {expected_len}")
    total, n_deleted = (int(n) for n in np.frombuffer(data, "<u8", 2))
    if total != n_rows:
        raise Fault(f"counts {total} rows, metadata.npkm {n_rows}")
    if found_len != expected_len:
        raise Fault(f"has {found_len} bytes, expected {expected_len}")
    is_there = np.unpackbits(np.frombuffer(data, np.uint8)[WORDS_OFFSET:], bitorder="little")
    if is_there[n_rows:].any():
        raise Fault("has bits behind its last row")
    deleted = np.flatnonzero(is_there[:n_rows] == 0)
    if len(deleted) != n_deleted:
        raise Fault(f"says that {n_deleted} rows are deleted, and its bits that {len(deleted)} are")
    return deleted
