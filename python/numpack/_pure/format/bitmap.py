"""Sets of rows: 64-bit Roaring bitmaps in the portable serialization, of which each set of containers has one.

The library that reads them trusts the bytes that it is given; so they are checked here first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from numpack._pure.format.error import Malformed

NO_RUNS = 12346
WITH_RUNS = 12347
# From this number of containers on, offsets are there in any case.
OFFSETS_FROM = 4
MAX_ARRAY = 4096
BITS_LEN = 8192


def of_rows(rows: NDArray[Any]) -> BitMap64:
    """A set of rows, with the containers that other writers choose."""
    return BitMap64(rows.astype(np.uint64).tolist(), optimize=False)


def parse(data: bytes) -> BitMap64:
    """A set of rows from its serialization.

    Raises
    ------
    Malformed
    """
    try:
        _check(_Bytes(data))
    except _Wrong as wrong:
        raise Malformed(f"the bitmap of deleted rows: {wrong}") from None
    return BitMap64.deserialize(data)


class _Wrong(Exception):
    pass


class _Bytes:
    """Bytes that are taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0

    def take(self, length: int) -> bytes:
        taken = self.data[self.pos : self.pos + length]
        if len(taken) < length:
            raise _Wrong("it is cut")
        self.pos += length
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def numbers(self, count: int, dtype: str) -> NDArray[np.int64]:
        taken = self.take(count * np.dtype(dtype).itemsize)
        return np.frombuffer(taken, dtype).astype(np.int64)


def _check(data: _Bytes) -> None:
    last = -1
    for _ in range(data.number(8)):
        high = data.number(4)
        if high <= last:
            raise _Wrong("its parts are not in order")
        last = high
        _check_part(data)
    if data.pos != len(data.data):
        raise _Wrong("bytes follow it")


def _check_part(data: _Bytes) -> None:
    """A bitmap of 32 bits: a header, and containers of 16 bits each."""
    start = data.pos
    cookie = data.number(4)
    if cookie == NO_RUNS:
        n_containers = data.number(4)
        is_run = np.zeros(n_containers if n_containers <= 65536 else 0, bool)
    elif cookie & 0xFFFF == WITH_RUNS:
        n_containers = (cookie >> 16) + 1
        flags = np.frombuffer(data.take(-(-n_containers // 8)), np.uint8)
        bits = np.unpackbits(flags, bitorder="little").astype(bool)
        is_run = bits[:n_containers]
        if not is_run.any() or bits[n_containers:].any():
            raise _Wrong("it says wrongly which containers are runs")
    else:
        raise _Wrong("it has no such beginning")
    if not 0 < n_containers <= 65536:
        raise _Wrong(f"it has {n_containers} containers")
    keys, less_one = data.numbers(2 * n_containers, "<u2").reshape(-1, 2).T
    if (np.diff(keys) <= 0).any():
        raise _Wrong("its containers are not in order")
    offsets = None
    if cookie == NO_RUNS or n_containers >= OFFSETS_FROM:
        offsets = data.numbers(n_containers, "<u4")
    for nth in range(n_containers):
        if offsets is not None and offsets[nth] != data.pos - start:
            raise _Wrong("a container is not where it says")
        _check_container(data, int(less_one[nth]) + 1, is_run=bool(is_run[nth]))


def _check_container(data: _Bytes, n_values: int, *, is_run: bool) -> None:
    if is_run:
        starts, lengths = data.numbers(2 * data.number(2), "<u2").reshape(-1, 2).T
        ends = starts + lengths
        is_right = len(starts) > 0 and ends[-1] < 65536 and (starts[1:] > ends[:-1] + 1).all()
        found = int(lengths.sum()) + len(lengths)
    elif n_values <= MAX_ARRAY:
        values = data.numbers(n_values, "<u2")
        is_right, found = (np.diff(values) > 0).all(), n_values
    else:
        is_right, found = True, int.from_bytes(data.take(BITS_LEN), "little").bit_count()
    if not is_right or found != n_values:
        raise _Wrong("a container has other values than it says")

