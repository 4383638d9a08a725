"""A small file system of its own, for tests of what becomes of a store when the disk is full."""

import contextlib
import errno
import os
import shutil
import subprocess

import pytest

BLOCK = 1024


class SmallDisk:
    """An ext4 file system in a file, mounted at `path`, whose room can be taken block by block."""

    def __init__(self, folder, mib=8, options="loop"):
        self.image = folder / "small.img"
        self.path = folder / "small"
        self.path.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(mib << 20)
        # Without a journal and room of root's, each block that is free can be had.
        features = "^has_journal,^resize_inode" + (",quota" if "quota" in options else "")
        make = ["mkfs.ext4", "-q", "-b", str(BLOCK), "-N", "256", "-m", "0", "-O", features, self.image]
        self._run(make)
        self._run(["mount", "-o", options, self.image, self.path])
        self._ballast = self.path / "ballast"

    def _run(self, command):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no {command[0]} here")
        if done.returncode != 0:
            pytest.skip(f"no small file system: {command[0]}: {done.stderr.strip()}")

    def fill(self, n_free):
        """Take all blocks but these many."""
        self.make_room()
        # What was removed is free only after this.
        os.sync()
        with open(self._ballast, "xb") as ballast:
            length = 0
            while (n := os.statvfs(self.path).f_bavail - n_free) > 0:
                try:
                    os.posix_fallocate(ballast.fileno(), length, n * BLOCK)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    # The file itself needs blocks that say where the others are.
                    n_free += 1
                else:
                    length += n * BLOCK

    def make_room(self):
        with contextlib.suppress(FileNotFoundError):
            self._ballast.unlink()

    def clear(self):
        """Remove everything."""
        for path in self.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fail(self):
        """Let the file system find an error, after which it only reads if it is mounted with ``errors=remount-ro``."""
        device = os.stat(self.path).st_dev
        name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        with open(f"/sys/fs/ext4/{name}/trigger_fs_error", "w") as trigger:
            trigger.write("1")

    def forget(self, folder):
        """Let the kernel forget what it has of files in memory."""
        os.sync()
        for path in folder.iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    @contextlib.contextmanager
    def cut(self, length):
        """Let reads from byte ``length`` of the disk on fail. What is there reads as zeros afterwards, so the rest of the
        image is kept and put back."""
        with open(self.image, "r+b") as image:
            image.seek(length)
            rest = image.read()
            image.truncate(length)
            try:
                yield
            finally:
                # What was written meanwhile has made it longer again.
                written = image.seek(0, os.SEEK_END)
                image.seek(length)
                newer = image.read(written - length)
                pieces = [
                    newer[at : at + BLOCK] if newer[at : at + BLOCK].strip(b"\0") else rest[at : at + BLOCK]
                    for at in range(0, len(rest), BLOCK)
                ]
                image.seek(length)
                image.write(b"".join(pieces))

    def unmount(self):
        subprocess.run(["umount", "--lazy", self.path], check=True)


@contextlib.contextmanager
def small_disk(folder, **how):
    """A small file system; skips the test, and says why, where it cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("no small file system: only root may mount one")
    disk = SmallDisk(folder, **how)
    try:
        yield disk
    finally:
        disk.unmount()
