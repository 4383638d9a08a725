"""What this machine can do at best, measured in the same run as the rows that are measured against it.

Nobody loads faster than memory is copied, reads through a mount faster than one that answers with zeros, or decodes
faster than zstd does with nothing else to do. Each limit is measured when first asked for, as often as a row is, and its
median counts. All buffers were written to before: the limit is of the work, not of getting memory for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import subprocess

import numpy as np

from datasets import KINDS
from harness import Ceiling, Result, Row, expect, timed
from mounting import ServedMount, read_through, tool

# As in src/fuse/readahead.rs.
READ_AHEAD_KB = 512
ENOUGH = 0.002  # seconds of one sample: what is shorter is done several times for it
MIB = 2**20


def sampled(rounds, work):
    """Seconds of ``work``, one figure a round."""
    once, _ = timed(work)
    n_calls = max(1, int(ENOUGH / once)) if once > 0 else 1000

    def calls():
        for _ in range(n_calls):
            work()

    return [timed(calls)[0] / n_calls for _ in range(rounds)]


class Decoding:
    """The blocks of a saved array, decoded in memory on all cores or on ``n_threads``. See decode.rs."""

    def __init__(self, store, array, n_threads=None):
        command = [tool("decode"), store, array, *([str(n_threads)] if n_threads else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.communicate()


class NullMount(ServedMount):
    """A FUSE mount that answers with zeros: what any server could reach at best."""

    def __init__(self, mountpoint, source):
        super().__init__(mountpoint, tool("null_mount"), mountpoint, source)
        self.raise_read_ahead(READ_AHEAD_KB)


class Ceilings:
    """The limits, each as the seconds that so many bytes take."""

    def __init__(self, folder, rounds):
        self.folder = folder
        self.rounds = rounds

    @functools.cache
    def samples(self, what, nbytes):
        return getattr(self, f"time_{what}")(nbytes)

    def ceiling(self, name, what, nbytes):
        return Ceiling(name, statistics.median(self.samples(what, nbytes)))

    def copy(self, nbytes):
        """Memory to memory."""
        return self.ceiling("memory copy", "copy", nbytes)

    def read(self, nbytes):
        """A file in the page cache, into memory."""
        return self.ceiling("page-cache read", "read", nbytes)

    def write(self, nbytes):
        """Memory into a new file; no disk waits."""
        return self.ceiling("page-cache write", "write", nbytes)

    def rewrite(self, nbytes):
        """Memory into a file that has these pages."""
        return self.ceiling("one pwrite", "rewrite", nbytes)

    def total(self, nbytes):
        """Memory, added up by NumPy."""
        return self.ceiling("sum in memory", "total", nbytes)

    def gather(self, n_rows, row_len):
        """So many rows of memory, by NumPy, out of 64 MiB."""
        seconds = statistics.median(self.time_gather(n_rows, row_len))
        return Ceiling("NumPy with rows in memory", seconds)

    def fuse_read(self, nbytes):
        """A file of a FUSE mount, which the kernel has cached nothing of, into memory."""
        return self.ceiling("FUSE null read", "fuse_read", nbytes)

    def time_copy(self, nbytes):
        source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
        return sampled(self.rounds, lambda: np.copyto(target, source))

    def time_total(self, nbytes):
        source = np.ones(nbytes // 4, np.float32)
        return sampled(self.rounds, source.sum)

    @functools.cache
    def time_gather(self, n_rows, row_len):
        source = np.ones((64 * MIB // row_len, row_len), np.uint8)
        rows = np.random.default_rng(12).integers(0, len(source), n_rows)
        return sampled(self.rounds, lambda: source[rows])

    @contextlib.contextmanager
    def file(self, nbytes):
        path = self.folder / "limit"
        content = np.ones(nbytes, np.uint8)
        content.tofile(path)
        os.sync()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield fd, content
        finally:
            os.close(fd)
            path.unlink()

    def time_read(self, nbytes):
        with self.file(nbytes) as (fd, content):
            return sampled(self.rounds, lambda: os.preadv(fd, [content], 0))

    def time_rewrite(self, nbytes):
        with self.file(nbytes) as (fd, content):
            return sampled(self.rounds, lambda: os.pwrite(fd, content, 0))

    def time_write(self, nbytes):
        """A file that is made and filled. That the one of before goes is not timed."""
        path, content, samples = self.folder / "limit", np.ones(nbytes, np.uint8), []

        def work():
            with open(path, "wb", buffering=0) as file:
                file.write(content)

        for _ in range(self.rounds + 1):
            os.sync()
            samples.append(timed(work)[0])
            path.unlink()
        return samples[1:]

    def time_fuse_read(self, nbytes):
        source, mountpoint, samples = self.folder / "limit.npy", self.folder / "mnt-limit", []
        np.save(source, np.zeros(nbytes, np.uint8))
        for _ in range(self.rounds):
            with NullMount(mountpoint, source) as mount:
                seconds, total = timed(lambda: read_through(mount.path / source.name))
                expect(total == source.stat().st_size, "the null mount's file has another length")
                samples.append(seconds)
        source.unlink()
        return samples


WHAT = {
    "copy": "memory copy",
    "total": "memory added up by `np.sum`",
    "read": "page-cache read, one file into memory",
    "write": "page-cache write, memory into a new file",
    "fuse_read": "FUSE null read: a mount that answers with zeros, first pass",
}


def speed(row, what, nbytes, samples):
    return Result(row.name, what, ours=[nbytes / seconds / 1e9 for seconds in samples], unit="GB/s")


def one(name):
    def measure(world, row):
        nbytes = world.mib * MIB
        return [speed(row, WHAT[name], nbytes, world.ceilings.samples(name, nbytes))]

    return measure


def decoding(world, row):
    """Of each kind of data, as numpack stores it by default: blocks of 64 KiB, level 1, and the filter it chose."""
    from numpack import NumPack

    results = []
    for kind in KINDS:
        store, array = world.root / f"limit-{kind.name}.npk", world.array(kind)
        with NumPack(store) as npk:
            npk.save({"a": array}, compress=True)
        for n_threads in (1, None):
            with Decoding(store, "a", n_threads) as decoding:
                decoding.time()
                samples = [decoding.time() for _ in range(world.rounds)]
            what = f"decode of {kind.title}, {'one core' if n_threads else 'all cores'}"
            results.append(speed(row, what, array.nbytes, samples))
    return results


ROWS = [*(Row(f"limits/{name}", one(name)) for name in WHAT), Row("limits/decode", decoding)]
