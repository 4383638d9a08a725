"""Shuffling: the first byte of every item, then the second of every item, and so on.

Bytes that do not fill an item stay as they are, at the end.

On disk: spec/npk-format.md, "Filters".
"""

import numpy as np
from numpy.typing import NDArray


def shuffle(itemsize: int, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of all items plane by plane. `raw` and the result are arrays of uint8."""
    return _transposed(raw, -1, itemsize, itemsize)


def unshuffle(itemsize: int, planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undoes `shuffle`."""
    return _transposed(planes, itemsize, -1, itemsize)


def _transposed(raw: NDArray[np.uint8], n_rows: int, n_columns: int, itemsize: int) -> NDArray[np.uint8]:
    n_whole = len(raw) // itemsize * itemsize
    out = np.empty_like(raw)
    if n_whole:
        out[:n_whole].reshape(n_columns, n_rows)[...] = raw[:n_whole].reshape(n_rows, n_columns).T
    out[n_whole:] = raw[n_whole:]
    return out
