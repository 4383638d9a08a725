"""What can go wrong with a store, as the exceptions that both backends raise, in the same words."""

from __future__ import annotations

import errno
import os

from numpack._errors import (
    ArrayExistsError,
    ArrayNotFoundError,
    CorruptStoreError,
    NotAStoreError,
    ReadOnlyError,
    RowIndexError,
    StoreLockedError,
    UnsupportedError,
    system_error,
)
from numpack._pure.format import names
from numpack._pure.format.error import BadDtype, FormatError, quoted

__all__ = ["CorruptStoreError"]
from numpack._pure.sys.lock import claim_name


def not_found(store: str, array: str) -> ArrayNotFoundError:
    """No array has this name."""
    return ArrayNotFoundError(f"{store}: array {quoted(array)} does not exist")


def exists(store: str, array: str) -> ArrayExistsError:
    """An array has this name already."""
    return ArrayExistsError(f"{store}: array {quoted(array)} already exists")


def missing(path: str) -> OSError:
    """Nothing is at the path."""
    what = f'no such directory; create a store with "npkfs import FILE.npy {path}"'
    return FileNotFoundError(errno.ENOENT, what, path)


def not_a_directory(path: str) -> OSError:
    """Something else than a directory is at the path."""
    return FileExistsError(errno.EEXIST, "is not a directory, and an npk store is one", path)


class NoManifest(NotAStoreError):
    """A directory without a manifest, which may become a store."""


def no_manifest(path: str) -> NotAStoreError:
    """The directory has no manifest."""
    return NoManifest(f"{path}: is not an npk store: it has no metadata.npkm")


def manifest_lost(path: str) -> NotAStoreError:
    """The directory has data files, but no manifest."""
    return NotAStoreError(
        f'{path}: has data files but no metadata.npkm; "npkfs repair {path}" makes it anew; or move the data files '
        "away to start anew"
    )


def overwritten(path: str) -> CorruptStoreError:
    """An old release replaced the manifest."""
    return CorruptStoreError(
        f'{path}: metadata.npkm was replaced by NumPack 0.1-0.7; "npkfs repair {path}" restores the store from '
        "metadata.npkm.bak"
    )


def table_lost(path: str) -> CorruptStoreError:
    """The directory has data files of an old release, whose table has no array."""
    return CorruptStoreError(
        f"{path}: metadata.npkm lists no array, but there are data files: NumPack 0.2.1-0.7 replaces a table that it "
        "cannot read by an empty one; restore metadata.npkm from a backup, or move the data files away"
    )


def old_layout(store: str, layout: str) -> ReadOnlyError:
    """The store was written by an old release."""
    what = (
        f'the store has the layout of NumPack {layout}, which is only read; run "npkfs upgrade {store}", or call '
        "numpack.upgrade in Python"
    )
    return ReadOnlyError(errno.EROFS, what, store)


def store_exists(path: str) -> OSError:
    """A store is where one is to be written."""
    return FileExistsError(errno.EEXIST, "a store is already there", path)


def changed_meanwhile(path: str) -> StoreLockedError:
    """An old release wrote to a store while it was upgraded."""
    what = (
        "was changed while the store was upgraded; end the programs that have it open with NumPack 0.1-0.7, and try again"
    )
    return StoreLockedError(errno.EBUSY, what, path)


def read_only(store: str) -> ReadOnlyError:
    """The store was opened for reading."""
    return ReadOnlyError(errno.EROFS, "the store is opened for reading only", store)


def locked(store: str, waited: float, holder: int | None, host: str | None = None) -> StoreLockedError:
    """Somebody else had the lock for too long: a process, or another host."""
    who = f"process {holder}" if holder is not None else "another process"
    remedy = "try again when it is done"
    if holder is None and host is not None:
        who = f"host {host}"
        claim = os.path.join(store, claim_name(names.LOCK))
        remedy += f", or, if nothing writes to the store there any more, remove {claim}"
    what = f"in use: waited {waited:.1f} s for the writers' lock, which {who} holds; {remedy}"
    return StoreLockedError(errno.ETIMEDOUT, what, store)


def damaged(file: str, source: FormatError) -> Exception:
    """The bytes of a file do not follow the format."""
    kind = UnsupportedError if source.is_unsupported else CorruptStoreError
    return kind(f'{file}: {source}; run "npkfs verify {os.path.dirname(file)}"')


def data_file(store: str, array: str, file: str, what: str) -> CorruptStoreError:
    """A data file is not what the manifest says."""
    return CorruptStoreError(
        f'{store}: array {quoted(array)}: data file {file} {what}; run "npkfs verify {store}"'
    )


def block(store: str, array: str, file: str, number: int, offset: int, what: str) -> CorruptStoreError:
    """A block is not what the index says."""
    return CorruptStoreError(
        f'{store}: array {quoted(array)}: block {number} at byte {offset} of {file} {what}; run "npkfs verify {store}"'
    )


def refused(source: FormatError) -> Exception:
    """What a caller asked for cannot be."""
    return TypeError(str(source)) if isinstance(source, BadDtype) else ValueError(str(source))


def row_out_of_range(array: str, index: int, n_rows: int) -> RowIndexError:
    """A row is not there."""
    return RowIndexError(f"array {quoted(array)}: row {index} is out of range for {n_rows} rows")


def no_rows(array: str) -> RowIndexError:
    """The operation needs rows, and a 0-d array has none."""
    return RowIndexError(f"array {quoted(array)} is 0-d and has no rows; save it anew to change it")


def shape_mismatch(array: str, found: tuple[int, ...], expected: tuple[int, ...]) -> ValueError:
    """Rows do not have the shape of the array's rows."""
    what = (
        "only the first dimension may differ"
        if len(found) == len(expected)
        else f"{len(found)} dimensions, expected {len(expected)}"
    )
    return ValueError(
        f"array {quoted(array)}: rows of shape {list(found)} do not fit the array's shape {list(expected)}: {what}"
    )


def dtype_mismatch(array: str, found: object, expected: object) -> TypeError:
    """Rows do not have the array's dtype."""
    return TypeError(
        f"array {quoted(array)}: dtype {found} is not the array's dtype {expected}; convert with astype first"
    )


def io_error(action: str, path: str, error: OSError) -> OSError:
    """The operating system refused."""
    return system_error(action, path, error)


class Poison:
    """The first failure after which nothing is known to be on the disk any more."""

    def __init__(self, store: str, first: OSError) -> None:
        self.store = store
        self.first = first

    def error(self) -> OSError:
        """What later writes say."""
        first = f"{self.first.strerror} {self.first.filename}"
        what = f"{self.store}: not written, because an earlier write failed: {first}; reopen the store"
        return OSError(self.first.errno, what, self.first.filename)
