"""NumPy arrays on disk, in a store that appends, replaces and drops rows in place.

>>> import numpy as np
>>> from numpack import NumPack
>>> with NumPack("data.npk") as npk:
...     npk.save({"points": np.zeros((3, 2), np.float32)})
...     npk.append({"points": np.ones((1, 2), np.float32)})
...     npk.load("points", lazy=True)[-1]
array([1., 1.], dtype=float32)
"""

import gc
import platform

from numpack._errors import (
    AppendTargetError,
    ArrayExistsError,
    ArrayNotFoundError,
    CorruptStoreError,
    NotAStoreError,
    NpkError,
    ReadOnlyError,
    RowIndexError,
    StoreClosedError,
    StoreLockedError,
    UnsupportedError,
)
from numpack._native import LazyArray, NumPack, __version__

__all__ = [
    "AppendTargetError",
    "ArrayExistsError",
    "ArrayNotFoundError",
    "CorruptStoreError",
    "LazyArray",
    "NotAStoreError",
    "NpkError",
    "NumPack",
    "ReadOnlyError",
    "RowIndexError",
    "StoreClosedError",
    "StoreLockedError",
    "UnsupportedError",
    "__version__",
    "force_cleanup_windows_handles",
    "get_backend_info",
]


def get_backend_info() -> dict[str, object]:
    """What numpack runs on.

    Returns
    -------
    dict
        ``backend_type`` ('rust'), ``platform`` (as `platform.system`), ``is_windows``, ``version``.
    """
    system = platform.system()
    return {
        "backend_type": "rust",
        "platform": system,
        "is_windows": system == "Windows",
        "version": __version__,
    }


def force_cleanup_windows_handles() -> bool:
    """Collect garbage, so that stores and arrays nobody uses release their files. Returns True."""
    gc.collect()
    return True
