"""Mounting a store in several ways at once."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

NPKFS = Path(sys.executable).parent / "npkfs"


@contextlib.contextmanager
def mounted(store, folder, ways):
    """The store, mounted with each of these options in a folder below ``folder``; unmounted at the end, come what may."""
    mounts = [folder / f"mnt{i}" for i in range(len(ways))]
    try:
        for mnt, way in zip(mounts, ways, strict=True):
            mnt.mkdir()
            subprocess.run([NPKFS, "mount", "-q", "-o", way, store, mnt], check=True)
        yield mounts
        for mnt in mounts:
            subprocess.run([NPKFS, "umount", mnt], check=True)
    finally:
        for mnt in mounts:
            if os.path.ismount(mnt):
                subprocess.run([NPKFS, "umount", "--lazy", mnt])
