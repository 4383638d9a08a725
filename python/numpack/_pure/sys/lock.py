"""Locks that die with their process: open-file-description locks of Linux, which both backends take.

The writers' lock is byte 0 of the lock file. Watchers, who keep copies of what is in the data files, share a lock on byte
1; a writer asks for both bytes at once, and is content with byte 0: so it learns that it is watched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from numpack._pure.sys.storage import Directory

log = logging.getLogger("numpack")

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
    kind: int = FLOCK.unpack(found)[0]
    return kind == fcntl.F_RDLCK


def wait(try_lock: Callable[[], Any], timeout: float) -> Any:
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
    """The writers' lock of one open store, among its threads, among processes, and among hosts.

    Where locks keep out only those who come through the same mount of the same host, a claim goes with it: a symbolic link
    beside the lock file, or a file where there are no links, made by who has the lock, and removed before the lock is
    released. That it must not be there yet is for the server to decide. Its text says who made it: the boot of the host's kernel, the device number, the process,
    the host's name. A writer that dies leaves it, and who next has the lock through the same mount takes it over.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._threads = threading.Lock()
        self._fd = -1
        self._pid = -1
        self._is_claimed = False
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

            def try_lock() -> tuple[bool] | None:
                nonlocal waited
                for length, is_watched in ((2, False), (1, True)):
                    if set_lock(self._fd, fcntl.F_WRLCK, 0, length):
                        if has_far_locks:
                            return (is_watched,)
                        if self._claim():
                            # Others watch as well, and are not seen.
                            return (True,)
                        set_lock(self._fd, fcntl.F_UNLCK, 0, 2)
                        break
                waited = True
                return None

            has_far_locks = self._directory.place.has_far_locks
            (self.is_watched,) = wait(try_lock, timeout)
            # Whoever removes a store removes its lock file last: it may have gone while this one waited.
            if (has_far_locks and not (opened or waited)) or self.is_current():
                return
            self._unclaim()
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
            self._unclaim()
            set_lock(self._fd, fcntl.F_UNLCK, 0, 2)
        self._threads.release()

    def _claim(self) -> bool:
        """Make the claim, with the lock held; False if another host has it."""
        name = claim_name(self._name)
        ours = f"{boot_id()} {os.fstat(self._directory.fd).st_dev} "
        text = f"{ours}{os.getpid()} {os.uname().nodename}"
        while True:
            try:
                self._is_claimed = True
                self._directory.make_note(name, text)
                return True
            except FileExistsError:
                self._is_claimed = False
                with contextlib.suppress(FileNotFoundError):  # Whoever had it is done.
                    self._is_claimed = self._directory.read_note(name).startswith(ours)
                    return self._is_claimed
            except OSError:
                self._is_claimed = False
                raise

    def _unclaim(self) -> None:
        if self._is_claimed:
            self._is_claimed = False
            try:
                self._directory.remove(claim_name(self._name))
            except FileNotFoundError:
                pass
            except OSError as error:
                # Whoever writes next on this host takes it over; others wait until then.
                log.warning("%s cannot be removed: %s", claim_name(self._name), error)

    def is_watched_now(self) -> bool:
        """Whether somebody has the watchers' lock, asked without the writers' lock."""
        with self._threads:
            self._open()
            return is_read_locked(self._fd, 1)

    def after_fork(self) -> None:
        """Forget what threads that are not there any more held."""
        self._threads = threading.Lock()
        self._is_claimed = False

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


def claim_name(lock: str) -> str:
    """The name of the claim that goes with a lock file."""
    return f"{lock}.host"


def boot_id() -> str:
    """Which boot of which host this is."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def claiming_host(path: str) -> str | None:
    """The host that claims the lock on the file at ``path``, for an error message."""
    folder, name = os.path.split(path)
    try:
        words = Directory(folder).read_note(claim_name(name)).split()
    except OSError:
        return None
    return words[3] if len(words) > 3 else "unknown"


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
