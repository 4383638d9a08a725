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

from numpack._attrs import Attributes
from numpack._backend import backend_type as _backend_type
from numpack._backend import core as _core
from numpack._batch import BatchModeContext
from numpack._errors import (
    AppendTargetError,
    ArrayExistsError,
    ArrayNotFoundError,
    CorruptStoreError,
    NotAStoreError,
    NpkError,
    PackageError,
    ReadOnlyError,
    RowIndexError,
    StoreClosedError,
    StoreLockedError,
    UnsupportedError,
)
from numpack._groups import Group
from numpack._package import get_package_info, pack, unpack
from numpack._store import NumPack
from numpack._upgrade import upgrade
from numpack._writable import WritableBatchMode

LazyArray = _core.LazyArray
__version__ = _core.__version__

__all__ = [
    "AppendTargetError",
    "ArrayExistsError",
    "ArrayNotFoundError",
    "Attributes",
    "BatchModeContext",
    "CorruptStoreError",
    "Group",
    "LazyArray",
    "NotAStoreError",
    "NpkError",
    "NumPack",
    "PackageError",
    "ReadOnlyError",
    "RowIndexError",
    "StoreClosedError",
    "StoreLockedError",
    "UnsupportedError",
    "WritableBatchMode",
    "__version__",
    "force_cleanup_windows_handles",
    "get_backend_info",
    "get_package_info",
    "pack",
    "unpack",
    "upgrade",
]


def get_backend_info() -> dict[str, object]:
    """What numpack runs on.

    The environment chooses, when numpack is imported: ``NUMPACK_BACKEND`` = rust or python; else
    ``NUMPACK_FORCE_PYTHON_BACKEND`` or ``NUMPACK_DISABLE_RUST`` = 1, true or yes for python; else rust, or python
    where the extension module is missing. Both backends do the same with the same files.

    Returns
    -------
    dict
        ``backend_type`` ('rust' or 'python'), ``platform`` (as `platform.system`), ``is_windows``, ``version``.
    """
    system = platform.system()
    return {
        "backend_type": _backend_type,
        "platform": system,
        "is_windows": system == "Windows",
        "version": __version__,
    }


def force_cleanup_windows_handles() -> bool:
    """Collect garbage, so that stores and arrays nobody uses release their files. Returns True."""
    gc.collect()
    return True
