"""`numpack.upgrade` of this backend."""

from __future__ import annotations

import os
from typing import Any

from numpack._pure import values
from numpack._pure.store import upgrade


def _upgrade(store: str | os.PathLike[str], to: str | os.PathLike[str] | None, compress: Any) -> bool:
    compression = values.compression("compress", compress)
    path = os.fsdecode(os.fspath(store))
    if to is None:
        return upgrade.in_place(path, compression)
    upgrade.copy_to(path, os.fsdecode(os.fspath(to)), compression)
    return True
