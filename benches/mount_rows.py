"""The mount against the disk file system. Rows that find no way to mount raise `CannotMount`, and count as not measured.

The reference is the array's own file in the store: it is an ordinary .npy file, so NumPy opens it directly and
through the mount, and both see the very same pages of the page cache. Every figure includes opening the file, and
every mapping is a new one.
"""

import os

import numpy as np

from harness import CannotMeasure, Goal, Result, Row, expect, in_turn, page_faults, progress, timed
from mounting import MemoryWatch, read_through
from world import PAGE

PER_PAGE = PAGE // 4  # float32 elements
TOUCHED_SHARE = 4  # one page in so many is touched
UPDATED_SHARE = 100  # and updated
PASSES = 3  # of which the median counts, where a pass can be repeated


def load(path):
    return np.load(path)


def mapped_sum(path):
    return np.load(path, mmap_mode="r").sum()


def touch(path, pages):
    """One element of each of these pages, in this order."""
    return np.load(path, mmap_mode="r").reshape(-1)[pages * PER_PAGE].sum(dtype=np.float64)


def update(path, pages, value):
    """Changes one element on each of these pages and waits until the disk has them."""
    mapped = np.load(path, mmap_mode="r+")
    mapped.reshape(-1)[pages * PER_PAGE] = value
    mapped.flush()


class Work:
    """The four operations, each with what it must have done. The checks run outside the timed part."""

    def __init__(self, world):
        self.world = world
        self.touched = world.pages[: max(1, world.pages.size // TOUCHED_SHARE)]
        self.updated = np.sort(world.pages[: max(1, world.pages.size // UPDATED_SHARE)])
        self.turn = 0

    def check_load(self, value, data):
        expect(np.array_equal(value, data), "np.load gave other values than were saved")

    def check_sum(self, value, data):
        expect(value == data.sum(), "the mapped sum differs")

    def check_touch(self, value, data):
        expect(value == data.reshape(-1)[self.touched * PER_PAGE].sum(dtype=np.float64), "the touched values differ")

    def run(self, name, path):
        """Does one operation on ``path``; returns the seconds."""
        data = self.world.data
        if name == "update":
            self.turn += 1
            value = np.float32(self.turn)
            os.sync()
            seconds, _ = timed(lambda: update(path, self.updated, value))
            data.reshape(-1)[self.updated * PER_PAGE] = value
            expect(np.array_equal(np.load(self.world.backing, mmap_mode="r"), data), "the update is not in the file")
            return seconds
        if name == "load":
            seconds, value = timed(lambda: load(path))
        elif name == "sum":
            seconds, value = timed(lambda: mapped_sum(path))
        else:
            seconds, value = timed(lambda: touch(path, self.touched))
        getattr(self, "check_" + name)(value, data)
        return seconds


WHAT = {
    "load": "sequential `np.load`",
    "sum": "mapped `np.sum`",
    "touch": "mapped, random 4 KiB touches",
    "update": "in-place update of 1 % of the pages, flush",
}


def ceiling(world, name, first=False):
    """The limit of an operation: of what is read or added up, and of the first pass when npkfs answers."""
    nbytes = world.data.nbytes
    if name not in ("load", "sum"):
        return None
    if first:
        try:
            return world.ceilings.fuse_read(nbytes)
        except CannotMeasure as error:
            progress(f"  the limit is not measured: {error}")
            return None
    return world.ceilings.read(nbytes) if name == "load" else world.ceilings.total(nbytes)


def median_pass(work, name, path):
    return sorted(work.run(name, path) for _ in range(PASSES))[PASSES // 2]


def disk_itself(world, row):
    """The reference against itself: how far from 1 a ratio comes by noise alone."""
    work = Work(world)
    result = Result(row.name, "the disk file system against itself: `np.load`", reference_name="disk")
    for i in range(world.rounds):
        in_turn(
            i,
            lambda: result.ours.append(median_pass(work, "load", world.backing)),
            lambda: result.reference.append(median_pass(work, "load", world.backing)),
        )
    return [result]


def with_passthrough(name):
    def measure(world, row):
        mount = world.passthrough
        work = Work(world)
        result = Result(row.name, "passthrough: " + WHAT[name], reference_name="disk", goal=Goal(least_ratio=0.95))
        result.ceiling = ceiling(world, name)
        path = mount.path / "big.npy"
        work.run(name, world.backing)
        work.run(name, path)
        for i in range(world.rounds):
            in_turn(
                i,
                lambda: result.ours.append(median_pass(work, name, path)),
                lambda: result.reference.append(median_pass(work, name, world.backing)),
            )
        return [result]

    return measure


def without_passthrough(name):
    """First pass on a fresh mount, then the later ones: a round is one mount, and one pass over the file on disk."""

    def measure(world, row):
        work = Work(world)
        work.run(name, world.backing)
        later_goal = Goal(least_ratio=0.9) if name == "sum" else None
        first = Result(row.name + "/first", f"cached: {WHAT[name]}, first pass", reference_name="disk")
        later = Result(row.name + "/later", f"cached: {WHAT[name]}, later passes", reference_name="disk", goal=later_goal)
        first.ceiling, later.ceiling = ceiling(world, name, first=True), ceiling(world, name)
        for i in range(world.rounds):

            def through_mount():
                with world.mount("passthrough=off") as mount:
                    path = mount.path / "big.npy"
                    first.ours.append(work.run(name, path))
                    later.ours.append(median_pass(work, name, path))
                    if name == "sum":
                        here, there = (page_faults(lambda: mapped_sum(file)) for file in (path, world.backing))
                        later.note = (
                            "the kernel caches a file of FUSE in single pages, a file of the disk in large folios; "
                            f"a pass takes {here} page faults here and {there} there"
                        )

            def on_disk():
                first.reference.append(median_pass(work, name, world.backing))

            in_turn(i, through_mount, on_disk)
        later.reference = list(first.reference)
        return [first, later]

    return measure


def update_without_passthrough(world, row):
    work = Work(world)
    result = Result(row.name, "cached: " + WHAT["update"], reference_name="disk")
    with world.mount("passthrough=off") as mount:
        path = mount.path / "big.npy"
        for i in range(world.rounds):
            in_turn(
                i,
                lambda: result.ours.append(work.run("update", path)),
                lambda: result.reference.append(work.run("update", world.backing)),
            )
    return [result]


def member_of_all(world, row):
    """The array out of all.npz, whose checksum the daemon computes first and Python then, against its file on the disk."""
    work = Work(world)
    first = Result(row.name + "/first", "cached: `np.load` of it from `.views/all.npz`, first pass", reference_name="disk")
    later = Result(row.name + "/later", "cached: `np.load` of it from `.views/all.npz`, later passes", reference_name="disk")

    def load_member(mount):
        seconds, value = timed(lambda: np.load(mount.path / ".views" / "all.npz")["big"])
        work.check_load(value, world.data)
        return seconds

    for i in range(world.rounds):

        def through_mount():
            with world.mount("passthrough=off") as mount:
                first.ours.append(load_member(mount))
                later.ours.append(sorted(load_member(mount) for _ in range(PASSES))[PASSES // 2])

        in_turn(i, through_mount, lambda: first.reference.append(median_pass(work, "load", world.backing)))
    later.reference = list(first.reference)
    return [first, later]


def memory(world, row):
    """The process's own memory while 1 GiB goes through it twice, read and mapped."""
    result = Result(row.name, "cached: memory of the process while a client streams 1 GiB", unit="MiB", goal=Goal(most=64))
    for _ in range(min(world.rounds, 3)):
        with world.mount("passthrough=off", store=world.gibibyte) as mount, MemoryWatch(mount) as read:
            expect(read_through(mount.path / "long.npy") >= 2**30, "the file is shorter than 1 GiB")
        with world.mount("passthrough=off", store=world.gibibyte) as mount, MemoryWatch(mount) as mapped:
            np.load(mount.path / "long.npy", mmap_mode="r").sum()
        result.ours.append(max(read.highest, mapped.highest) / 2**20)
    return [result]


ROWS = [
    Row("disk/itself", disk_itself),
    *(Row(f"passthrough/{name}", with_passthrough(name)) for name in WHAT),
    *(Row(f"cached/{name}", without_passthrough(name)) for name in ("load", "sum", "touch")),
    Row("cached/update", update_without_passthrough),
    Row("cached/npz", member_of_all),
    Row("cached/memory", memory),
]
