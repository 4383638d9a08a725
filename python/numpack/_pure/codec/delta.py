"""Differences: each item less the one some items before it, which leaves less to say where items rise, fall or wave.
They are folded: small ones of either sign become small numbers, whose upper bytes are zero.

Items are little-endian integers that wrap around; the bits of floating-point numbers are taken for integers, whose
order is the same. Bytes that do not fill an item stay as they are, at the end.

On disk: spec/npk-format.md, "Filters".
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def delta(step: int, itemsize: int, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The differences of items of `itemsize` bytes to those `step` items before, in an array of uint8 as `raw` is.

    What is before the first item counts as zeros.
    """
    out = raw.copy()
    items, before = _items(itemsize, out), _items(itemsize, raw)
    items[step:] -= before[:-step]
    # 0, -1, 1, -2, 2 ... become 0, 1, 2, 3, 4 ...: the sign is the lowest bit.
    signs = items >> (8 * itemsize - 1)
    np.negative(signs, out=signs)
    items <<= 1
    items ^= signs
    return out


def undelta(step: int, itemsize: int, raw: NDArray[np.uint8]) -> None:
    """Undoes `delta`, in place."""
    items = _items(itemsize, raw)
    signs = items & 1
    np.negative(signs, out=signs)
    items >>= 1
    items ^= signs
    for first in range(step):
        every = items[first::step]
        np.add.accumulate(every, dtype=items.dtype, out=every)


def _items(itemsize: int, raw: NDArray[np.uint8]) -> NDArray[Any]:
    """The whole items of an array of uint8."""
    return raw[: len(raw) // itemsize * itemsize].view(f"<u{itemsize}")
