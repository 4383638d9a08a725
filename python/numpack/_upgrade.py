"""`upgrade`: a store that NumPack 0.1 to 0.7 wrote becomes one of this release."""

import os
from typing import Any

from numpack._backend import core


def upgrade(
    store: str | os.PathLike[str], to: str | os.PathLike[str] | None = None, *, compress: Any = None
) -> bool:
    """Write a store of NumPack 0.1 to 0.7 as one of this release, as ``npkfs upgrade`` does.

    Until the last file is written the store is the old one, and from then on the new one, also if the program is killed
    or the machine loses power on the way; call it again to go on. It returns when the new store is on the disk and the
    files of the old one are gone. Rows that were dropped are left out, and the times of the last changes are kept.
    Nobody may write to the store with an old release meanwhile.

    Parameters
    ----------
    store : str or os.PathLike
        The store's directory.
    to : str or os.PathLike, optional
        Write the new store there, where nothing or an empty store is, and leave the old one alone.
    compress : bool, int or dict, optional
        As of `NumPack.save`; by default the arrays are not compressed.

    Returns
    -------
    bool
        Whether the store was an old one. If not, files that an interrupted upgrade left are removed.

    Raises
    ------
    FileNotFoundError, NotAStoreError
        If `store` is no store.
    FileExistsError
        If a store, or something else, is at `to`.
    ValueError
        If the store is of this release already, and `to` is given; for levels, blocks and filters that there are not.
    CorruptStoreError
        If an array cannot be read. The store stays the old one, and nothing is written.
    StoreLockedError
        If an old release wrote to the store meanwhile, or somebody else upgrades it.
    OSError
    """
    done: bool = core._upgrade(store, to, compress)
    return done
