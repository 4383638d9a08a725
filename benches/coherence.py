"""How soon what a writer does is seen through mounts of the same store: prints a table of milliseconds.

    python benches/coherence.py [ROUNDS]

A writer of each backend, in a process of its own, changes a store that is mounted twice: with passthrough where that can
be had, and without it. Measured is the time from the return of the writer's call to the first look at which the mount shows
it, whose kernel had the old name, length or page in its caches; a look that comes first counts as 0. `np.save` is of a
program that makes an array through the first mount, and seen through the second.
"""

import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NPKFS = Path(sys.executable).parent / "npkfs"
WRITER = """
import sys, time
import numpy as np
import numpack
npk = numpack.NumPack(sys.argv[1])
npk.open()
print(flush=True)
for line in sys.stdin:
    exec(line)
    print(time.monotonic_ns(), flush=True)
"""
WAYS = {"passthrough": "passthrough=auto", "cached": "passthrough=off"}
HEADER_LEN = 4096
LIMIT_SECS = 10


class Writer:
    """A process that does what it is told, and says when it was done."""

    def __init__(self, store, backend):
        env = dict(os.environ, NUMPACK_BACKEND=backend)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WRITER, store], env=env, **pipes)
        self.process.stdout.readline()

    def start(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def done_at(self):
        return int(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def first_seen(look):
    """When ``look()`` was true first."""
    limit = time.monotonic() + LIMIT_SECS
    while not look():
        if time.monotonic() > limit:
            raise SystemExit("not seen at all")
    return time.monotonic_ns()


def measure(writer, file, n_rounds):
    """Milliseconds by what is done, for one mount."""
    found = {"a new name": [], "appended rows: the length": [], "replaced rows: read": [], "replaced rows: mapped": []}

    def take(what, line, look):
        assert not look(), "the old state is in the kernel's caches"
        writer.start(line)
        seen_at = first_seen(look)
        found[what].append(max(0, seen_at - writer.done_at()) / 1e6)

    for n in range(n_rounds):
        take("a new name", "npk.save({'a': np.zeros((50_000, 4))})", file.exists)
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            rows = np.frombuffer(mapped, float, offset=HEADER_LEN)
            assert rows.sum() == 0
            length = os.fstat(opened.fileno()).st_size
            take(
                "appended rows: the length",
                "npk.append({'a': np.ones((10, 4))})",
                lambda opened=opened, length=length: os.fstat(opened.fileno()).st_size > length,
            )
            zeros = bytes(8)
            take(
                "replaced rows: read",
                f"npk.replace({{'a': np.full((1, 4), {n + 1}.0)}}, [100])",
                lambda opened=opened: os.pread(opened.fileno(), 8, HEADER_LEN + 8 * 400) != zeros,
            )
            take(
                "replaced rows: mapped",
                f"npk.replace({{'a': np.full((1, 4), {n + 1}.0)}}, [40_000])",
                lambda rows=rows: rows[160_000] != 0,
            )
            del rows
        writer.start("npk.drop('a')")
        writer.done_at()
        first_seen(lambda: not file.exists())
    return found


def measure_saves(mounts, n_rounds):
    """Milliseconds until what is saved through one mount is seen through another."""
    times = []
    for n in range(n_rounds):
        assert not (mounts[1] / f"new{n}.npy").exists()
        np.save(mounts[0] / f"new{n}.npy", np.arange(1000))
        done_at = time.monotonic_ns()
        times.append(max(0, first_seen((mounts[1] / f"new{n}.npy").exists) - done_at) / 1e6)
    return times


def main():
    n_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "data.npk"
        writers = {backend: Writer(store, backend) for backend in ("rust", "python")}
        mounts = [Path(folder) / way for way in WAYS]
        rows = []
        try:
            for mnt, options in zip(mounts, WAYS.values(), strict=True):
                mnt.mkdir()
                subprocess.run([NPKFS, "mount", "-q", "-o", options, store, mnt], check=True, stdout=subprocess.DEVNULL)
            for backend, writer in writers.items():
                for way, mnt in zip(WAYS, mounts, strict=True):
                    for what, times in measure(writer, mnt / "a.npy", n_rounds).items():
                        rows.append((f"{what}, {backend} backend, {way}", times))
            rows.append(("np.save through another mount", measure_saves(mounts, n_rounds)))
        finally:
            for mnt in filter(os.path.ismount, mounts):
                subprocess.run([NPKFS, "umount", "--lazy", mnt], check=True)
            for writer in writers.values():
                writer.end()
    print(f"{'milliseconds until seen':64} {'median':>8} {'95 %':>8} {'max':>8}")
    for what, times in rows:
        times.sort()
        print(f"{what:64} {statistics.median(times):8.2f} {times[len(times) * 95 // 100]:8.2f} {times[-1]:8.2f}")


if __name__ == "__main__":
    main()
