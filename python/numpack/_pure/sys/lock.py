"""Locks that die with their process: open-file-description locks of Linux, which both backends take.

The writers' lock is byte 0 of the lock file. Watchers, who keep copies of what is in the data files, share a lock on byte
1; a writer asks for both bytes at once, and is content with byte 0: so it learns that it is watched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time

FIRST_PAUSE = 50e-6
LONGEST_PAUSE = 5e-3

# struct flock: l_type, l_whence, l_start, l_len, l_pid, which must be 0 for these locks.
FLOCK = struct.Struct("@hhqqi4x")


class WouldBlock(Exception):
    """Somebody else has the lock."""


def set_lock(fd: int, kind: int, start: int, length: int) -> bool:
    """Set or clear (``kind`` F_UNLCK) a lock; False if another description has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_read_locked(fd: int, start: int) -> bool:
    """Whether another description shares a lock on this byte."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
    return FLOCK.unpack(found)[0] == fcntl.F_RDLCK


def wait(try_lock, timeout: float):
    """Call ``try_lock`` until it gives something other than None.

    Raises
    ------
    WouldBlock
        After ``timeout`` seconds.
    """
    deadline, pause = None, FIRST_PAUSE
    while (taken := try_lock()) is None:
        now = time.monotonic()
        if deadline is None:
            deadline = now + timeout
        if now >= deadline:
            raise WouldBlock
        time.sleep(min(pause, deadline - now))
        pause = min(2 * pause, LONGEST_PAUSE)
    return taken


class WritersLock:
    """The writers' lock of one open store, among its threads and among processes."""

    def __init__(self, directory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._threads = threading.Lock()
        self._fd = -1
        self._pid = -1
        self.is_watched = False

    def take(self, timeout: float) -> None:
        """Take the lock.

        Raises
        ------
        WouldBlock
        OSError
        """
        if not self._threads.acquire(timeout=timeout):
            raise WouldBlock
        try:
            self.take_file(timeout)
        except BaseException:
            self._threads.release()
            raise

    def take_file(self, timeout: float) -> None:
        """Take the lock among processes, by a thread that has it among the threads."""
        while True:
            opened = self._open()
            waited = False

            def try_lock():
                nonlocal waited
                for length, is_watched in ((2, False), (1, True)):
                    if set_lock(self._fd, fcntl.F_WRLCK, 0, length):
                        return (is_watched,)
                waited = True
                return None

            (self.is_watched,) = wait(try_lock, timeout)
            # Whoever removes a store removes its lock file last: it may have gone while this one waited.
            if not (opened or waited) or self.is_current():
                return
            self.close()

    def is_current(self) -> bool:
        """Whether the file that is locked still has its name."""
        ours = os.fstat(self._fd)
        try:
            named = self._directory.stat(self._name)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)

    def give_back(self) -> None:
        """Release the lock."""
        # In a forked child the lock is still the parent's, and not ours to release.
        if self._pid == os.getpid():
            set_lock(self._fd, fcntl.F_UNLCK, 0, 2)
        self._threads.release()

    def is_watched_now(self) -> bool:
        """Whether somebody has the watchers' lock, asked without the writers' lock."""
        with self._threads:
            self._open()
            return is_read_locked(self._fd, 1)

    def after_fork(self) -> None:
        """Forget what threads that are not there any more held."""
        self._threads = threading.Lock()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the lock file; a lock that this process has ends."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> bool:
        """Have the lock file open in this process; says whether it was opened just now."""
        if self._fd >= 0 and self._pid == os.getpid():
            return False
        self.close()
        self._fd = self._directory.open(self._name, os.O_RDWR | os.O_CREAT)
        self._pid = os.getpid()
        return True


def holder(path: str) -> int | None:
    """A process that holds a lock on the file at ``path``, where that can be seen, for an error message."""
    try:
        stat = os.stat(path, follow_symlinks=False)
        processes = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return None
    wanted = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for process in processes:
        folder = f"/proc/{process}/fdinfo"
        try:
            for info in os.listdir(folder):
                with open(f"{folder}/{info}") as file:
                    for line in file:
                        words = line.split()
                        if words[:1] == ["lock:"] and words[2:5:2] == ["OFDLCK", "WRITE"] and wanted in words:
                            return int(process)
        except OSError:
            continue
    return None
