"""The files of one directory, held open, so that it stays the same one when it is renamed.

New files have no name at first (``O_TMPFILE``), and vanish with their process. Where the file system has none, they are
called ``tmp_<16 hexadecimal digits>.npkd`` and locked (``flock``) by their writer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import secrets
import stat as stat_module
import time
from collections.abc import Callable
from typing import Any

from numpack._pure.cached import cached_property
from numpack._pure.sys.netfs import Place, place_of

TEMPORARY = re.compile(r"tmp_[0-9a-f]{16}\.npkd")
# What file systems and kernels without O_TMPFILE answer (man 2 open, "BUGS").
NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS)
# A temporary whose writer cannot be asked for by a lock is forgotten when it was not written to for a day, in seconds.
FORGOTTEN_AFTER = 24 * 60 * 60
# What file systems without symbolic links answer.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# Longest note that is read.
MAX_NOTE_LEN = 4096
# Most bytes that one call of the system reads or writes.
MAX_IO_LEN = 1 << 30
# Modes of fallocate(2), which the module os does not have.
KEEP_SIZE = 1
PUNCH_HOLE = 2


# Arguments of statx(2), which the module os does not have either: of an open file, asked of the server, what stat(2) has.
AT_EMPTY_PATH = 0x1000
AT_STATX_FORCE_SYNC = 0x2000
STATX_BASIC_STATS = 0x7FF
STATX_LEN = 256


def _statx() -> Any:
    """The C library's function, or None."""
    found = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
    return found


_STATX = _statx()


def _fallocate() -> Any:
    """The C library's function with offsets of 64 bits, or None."""
    library = ctypes.CDLL(None, use_errno=True)
    name = "fallocate" if ctypes.sizeof(ctypes.c_long) == 8 else "fallocate64"
    found = getattr(library, name, None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found


_FALLOCATE = _fallocate()


class File:
    """An open file, closed with its last reference.

    An exception that somebody keeps has a reference, too: files that must not outlive a failure are closed there.
    """

    def __init__(self, fd: int, temporary: tuple[Directory, str] | None = None) -> None:
        self.fd = fd
        # The directory and name of a file that shall vanish with this object.
        self.temporary = temporary

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, with the locks on it. One that has no name but a temporary one is gone."""
        if self.fd < 0:
            return
        if self.temporary is not None:
            directory, name = self.temporary
            with contextlib.suppress(OSError):
                directory.remove(name)
        os.close(self.fd)
        self.fd = -1

    def stat(self) -> os.stat_result:
        """What the system knows about the file."""
        return os.fstat(self.fd)

    def read(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes: fewer at the end of the file."""
        data = bytearray(length)
        return bytes(memoryview(data)[: self.read_into(data, offset)])

    def read_into(self, buffer: Any, offset: int) -> int:
        """Fill a buffer, and return how many bytes there were."""
        view, done = memoryview(buffer), 0
        while done < len(view):
            n = os.preadv(self.fd, [view[done : done + MAX_IO_LEN]], offset + done)
            if n == 0:
                break
            done += n
        return done

    def write(self, data: Any, offset: int) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while len(view):
            try:
                n = os.pwrite(self.fd, view[:MAX_IO_LEN], offset)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                # It is open, so it is open for reading: nothing else could be had.
                raise OSError(errno.EROFS, os.strerror(errno.EROFS)) from None
            view, offset = view[n:], offset + n

    def forget_cached(self) -> None:
        """Let later calls see what other hosts wrote before this one, as far as the file system has an answer."""
        if _STATX is not None:
            answer = ctypes.create_string_buffer(STATX_LEN)
            if _STATX(self.fd, b"", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, answer) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, length: int) -> None:
        """Set the length of the file."""
        os.ftruncate(self.fd, length)

    def resemble(self, other: os.stat_result) -> None:
        """Have the permissions of another file, and its owner and group, as far as this process may."""
        own = self.stat()
        # Only root gives files away; and some file systems know neither owners nor permissions.
        if own.st_uid != other.st_uid:
            with contextlib.suppress(OSError):
                os.fchown(self.fd, other.st_uid, -1)
        if own.st_gid != other.st_gid:
            with contextlib.suppress(OSError):
                os.fchown(self.fd, -1, other.st_gid)
        mode = stat_module.S_IMODE(other.st_mode)
        if mode != stat_module.S_IMODE(own.st_mode):
            with contextlib.suppress(PermissionError):
                os.fchmod(self.fd, mode)

    def punch(self, offset: int, length: int) -> bool:
        """Give the space of a range back, which then reads as zeros. Returns whether the file system can."""
        if _FALLOCATE is None:
            return False
        while _FALLOCATE(self.fd, PUNCH_HOLE | KEEP_SIZE, offset, length):
            number = ctypes.get_errno()
            if number in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True

    def sync(self) -> None:
        """Return when the bytes are on the disk."""
        os.fdatasync(self.fd)

    def map(self, length: int, *, writable: bool = False) -> mmap.mmap:
        """The file from its start, mapped."""
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        try:
            try:
                return mmap.mmap(self.fd, length, access=access)
            except OSError as error:
                if error.errno != errno.EROFS or writable:
                    raise
            # On a disk that went read-only, what is open for writing cannot even be mapped for reading.
            with open(f"/proc/self/fd/{self.fd}", "rb") as read_only:
                return mmap.mmap(read_only.fileno(), length, access=access)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MemoryError(f"cannot map {length} bytes of a file: {error.strerror}") from None


class Directory:
    """An open directory."""

    def __init__(self, path: str, fd: int | None = None) -> None:
        """Open it, if there is no open descriptor ``fd`` of it yet."""
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if fd is None else fd
        self._has_unnamed = os.path.exists("/proc/self/fd")
        self._has_swept = False

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a regular file. Links are not followed, and a pipe of that name is not waited for.

        Raises
        ------
        OSError
            EINVAL if it is no regular file, ELOOP if it is a link.
        """
        check_name(name)
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(name, flags, 0o666, dir_fd=self.fd)
        if not stat_module.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", name)
        return fd

    def open_file(self, name: str, *, writable: bool) -> File:
        """A file, as `open` does."""
        return File(self.open(name, os.O_RDWR if writable else os.O_RDONLY))

    def make_note(self, name: str, text: str) -> None:
        """Make a symbolic link that leads nowhere, but says something: it is there with its text, or not at all. A file
        with this text where there are no links.

        Raises
        ------
        FileExistsError
            If there is anything of that name.
        """
        check_name(name)
        try:
            os.symlink(text, name, dir_fd=self.fd)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            fd = self.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                os.write(fd, text.encode())
            except OSError:
                self.remove(name)
                raise
            finally:
                os.close(fd)

    def read_note(self, name: str) -> str:
        """What `make_note` wrote."""
        check_name(name)
        try:
            return os.readlink(name, dir_fd=self.fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return self.open_file(name, writable=False).read(MAX_NOTE_LEN, 0).decode(errors="replace")

    def folder(self, name: str) -> Directory:
        """A directory in this one. Links are not followed.

        Raises
        ------
        OSError
            ENOTDIR if it is no directory, or a link.
        """
        check_name(name)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return Directory(os.path.join(self.path, name), os.open(name, flags, dir_fd=self.fd))

    def create_unnamed(self) -> File:
        """An empty file that has no name yet."""
        if self._has_unnamed:
            try:
                flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
                return File(os.open(".", flags, 0o666, dir_fd=self.fd))
            except OSError as error:
                if error.errno not in NO_UNNAMED:
                    raise
        if not self._has_swept:
            # Those of writers that died before they had the lock. What cannot be removed is in nobody's way.
            self._has_swept = True
            with contextlib.suppress(OSError):
                self.sweep_temporaries()
        while True:
            name = temporary_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                file = File(os.open(name, flags, 0o666, dir_fd=self.fd), (self, name))
            except FileExistsError:
                continue
            fcntl.flock(file.fd, fcntl.LOCK_EX)
            # A sweep may have been faster than the lock, and have removed the name.
            if file.stat().st_nlink:
                # Remembered only after a success: a full or removed directory says nothing about the file system.
                self._has_unnamed = False
                return file

    def link(self, file: File, name: str) -> None:
        """Give a file of `create_unnamed` its name, which must be free."""
        check_name(name)
        if file.temporary is None:
            self._link_unnamed(file, name)
            return
        temporary = file.temporary[1]
        try:
            os.link(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except PermissionError:
            # No hard links there: a look before the jump must do, and the writers' lock keeps others from jumping.
            with contextlib.suppress(FileNotFoundError):
                self.stat(name)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        else:
            self.remove(temporary)
        file.temporary = None

    def unlink(self, file: File, name: str) -> None:
        """Take the name of a file away again: it gets a temporary one, from which it can be named once more."""
        fcntl.flock(file.fd, fcntl.LOCK_EX)
        temporary = temporary_name()
        os.rename(name, temporary, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        file.temporary = (self, temporary)

    def replace(self, file: File, name: str) -> None:
        """Let a file of `create_unnamed` take the place of the one of this name."""
        check_name(name)
        if file.temporary is None:
            # Keeps sweeps away from the name that it has for a moment.
            fcntl.flock(file.fd, fcntl.LOCK_EX)
            self._replace_via(name, lambda temporary: self._link_unnamed(file, temporary))
        else:
            os.rename(file.temporary[1], name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            file.temporary = None

    def link_existing(self, source: str, name: str) -> None:
        """Give a file another name, whatever had it."""

        def link(target: str) -> None:
            os.link(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)

        try:
            link(name)
        except FileExistsError:
            self._replace_via(name, link)

    def remove(self, name: str) -> None:
        """Take a file's name away."""
        check_name(name)
        os.unlink(name, dir_fd=self.fd)

    def remove_folder(self, name: str) -> None:
        """Remove an empty directory in this one."""
        check_name(name)
        os.rmdir(name, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result:
        """What the system knows about a file; of a link, about the link itself."""
        check_name(name)
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def list(self) -> list[str]:
        """The names of all files."""
        return os.listdir(self.fd)

    def sync(self) -> None:
        """Return when the names are on the disk."""
        os.fsync(self.fd)

    def sweep_temporaries(self) -> None:
        """Remove the temporaries of writers that died: those that nobody locks."""
        for name in self.list():
            if not TEMPORARY.fullmatch(name):
                continue
            with contextlib.suppress(OSError):
                # Of another host's, only its age tells.
                if not self.place.has_far_locks and time.time() - self.stat(name).st_mtime < FORGOTTEN_AFTER:
                    continue
                file = self.open_file(name, writable=True)
                fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.remove(name)

    @cached_property
    def place(self) -> Place:
        """The kind of file system, and how far locks reach there."""
        return place_of(self.fd)

    def _link_unnamed(self, file: File, name: str) -> None:
        os.link(f"/proc/self/fd/{file.fd}", name, dst_dir_fd=self.fd, follow_symlinks=True)

    def _replace_via(self, name: str, make: Callable[[str], None]) -> None:
        while True:
            temporary = temporary_name()
            try:
                make(temporary)
                break
            except FileExistsError:
                continue
        os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        # rename(2) between two names of one file does nothing.
        with contextlib.suppress(FileNotFoundError):
            self.remove(temporary)


def temporary_name() -> str:
    """A name for a file that is being written."""
    return f"tmp_{secrets.token_hex(8)}.npkd"


def check_name(name: str) -> None:
    """Check that a name is one within the directory."""
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise OSError(errno.EINVAL, "not a plain file name", name)
