"""Arrays in unnamed temporary files: memory that the kernel can write out when it needs the room."""

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from numpack._errors import system_error
from numpack._rows import AnyArray


def mapped_temporary(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    """A writable array of zeros in C order, over a mapping of a file without a name on the file system of `folder`.

    The file is gone as soon as nobody holds the array or a view of it. Its room on the disk is reserved here: without
    it, the first write to a full disk would kill the process.

    Raises
    ------
    OSError
        If the disk has no room for it.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes == 0:
        return zeros(shape, dtype)
    with temporary_file(folder) as file:
        reserve: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
        try:
            if reserve is None:
                file.truncate(nbytes)
            else:
                reserve(file.fileno(), 0, nbytes)
        except OSError as error:
            raise system_error(f"make a temporary file of {nbytes} bytes in", folder, error) from error
        return np.ndarray(shape, dtype, buffer=mmap.mmap(file.fileno(), nbytes))


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    """A new array of zeros in C order.

    `numpy.zeros` and `numpy.empty` give strings of no width a width, and times without a unit the machine's byte order.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    return np.ndarray(shape, dtype, np.zeros(nbytes, np.uint8) if nbytes else None)


def temporary_file(folder: Path) -> Any:
    """A file without a name in `folder`, or where temporary files go if nothing may be written there."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise
        return tempfile.TemporaryFile()
