"""The exceptions of numpack.

Each is an `NpkError` and the builtin exception that fits, so that ``except KeyError`` and the like go on working.
Wrong dtypes raise plain `TypeError`, wrong shapes plain `ValueError`, and failures of the operating system plain
`OSError` with ``errno`` and ``filename``.
"""

import errno
import os


# What can be done about errors of the system, in the same words as in src/sys/remedy.rs.
_REMEDIES = {
    errno.ENOSPC: "make room on that disk and try again",
    errno.EDQUOT: "make room or have the quota raised, and try again",
    errno.EMFILE: "close arrays and stores, or raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free memory, or raise the limit on it, and try again",
    errno.EROFS: "the disk may have become read-only after an error: see the kernel's log (dmesg)",
    errno.EIO: "the disk may be failing: see the kernel's log (dmesg)",
}


def system_error(action: str, path: "str | os.PathLike[str]", error: OSError) -> OSError:
    """An error of the operating system that says what was attempted, and the next step where there is one."""
    number = error.errno or errno.EIO
    remedy = f"; {_REMEDIES[number]}" if number in _REMEDIES else ""
    return OSError(number, f"cannot {action}: {os.strerror(number)}{remedy}", os.fspath(path))


class NpkError(Exception):
    """Any error that is numpack's own."""


class ArrayNotFoundError(NpkError, KeyError):
    """The store has no array of this name."""

    # KeyError would show the repr of the message.
    __str__ = Exception.__str__


class AppendTargetError(ArrayNotFoundError, ValueError):
    """Rows were to be appended to an array that does not exist."""


class ArrayExistsError(NpkError, ValueError):
    """The store already has an array of this name."""


class RowIndexError(NpkError, IndexError, ValueError):
    """A row that is not there, a mask of the wrong length, or something that is no row index."""


class StoreClosedError(NpkError, RuntimeError):
    """The store was used before ``open()``, after ``close()``, or outside ``with`` in strict mode."""


class ReadOnlyError(NpkError, OSError):
    """The store can only be read: its directory is not writable."""


class StoreLockedError(NpkError, TimeoutError):
    """Another process kept the writers' lock for too long."""


class NotAStoreError(NpkError, ValueError):
    """The directory holds something else than an npk store."""


class CorruptStoreError(NpkError, ValueError):
    """The bytes of the store are not what they should be."""


class UnsupportedError(NpkError, NotImplementedError):
    """The store needs a newer release of numpack, or what was asked cannot be done with it."""


class PackageError(NpkError, ValueError, RuntimeError):
    """A file that is no package, is cut off, or is damaged."""
