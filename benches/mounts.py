"""Compressed arrays through a mount: npkfs, and the file systems that compress.

"Cold" is a fresh mount, of whose files the kernel has cached nothing; the file that holds the compressed bytes is in
the page cache, so that the disk plays no part. Each figure includes opening the array's file.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np

from datasets import KINDS
from harness import CannotMeasure, Contest, Goal, Result, Row, expect, in_turn, timed
from limits import NullMount
from mounting import KernelMount, Mount, ServedMount, read_through, run, tool
from world import disk_usage

TOUCHED = 10_000
NOISE, *COMPRESSIBLE = KINDS
FIELD = COMPRESSIBLE[0]


def load(path, rows):
    return np.load(path)


def mapped_sum(path, rows):
    return np.load(path, mmap_mode="r").sum()


def mapped_rows(path, rows):
    return np.load(path, mmap_mode="r")[rows]


OPERATIONS = {
    "load": ("`np.load`", load),
    "sum": ("mapped `np.sum`", mapped_sum),
    "rows": (f"{TOUCHED:,} random rows, mapped", mapped_rows),
}


class Work:
    """The operations on one array, each with what it must give. Comparing is outside the timed part."""

    def __init__(self, world, kind):
        array = world.array(kind)
        self.rows = np.random.default_rng(6).integers(0, len(array), TOUCHED)
        self.right = {"load": array, "sum": array.sum(), "rows": array[self.rows]}

    def run(self, name, path, zeros=False):
        """Does one operation on ``path``; returns the seconds. Of a file of ``zeros`` only the shape can be right."""
        seconds, value = timed(lambda: OPERATIONS[name][1](path, self.rows))
        right = np.zeros_like(self.right[name]) if zeros else self.right[name]
        expect(np.array_equal(value, right), f"{path}: {OPERATIONS[name][0]} gave other values than were saved")
        return seconds


class Image:
    """One array in a file system of some kind: made once, mounted as often as wanted."""

    name: str

    def __init__(self, world, kind):
        self.kind = kind
        self.mountpoint = world.root / f"mnt-{self.name}"
        self.image = world.root / f"{self.name}.image"
        try:
            self.make(world, world.array_file(kind))
        except CannotMeasure:
            self.close()
            raise
        os.sync()

    def make(self, world, source):
        """Makes the image from an .npy file."""
        raise NotImplementedError

    def mount(self):
        """A fresh mount. The bytes behind it are in the page cache."""
        raise NotImplementedError

    def close(self):
        self.image.unlink(missing_ok=True)

    def measure(self, work, operation):
        with self.mount() as mount:
            return work.run(operation, next(self.files(mount)))

    def files(self, mount):
        return mount.path.glob("*.npy")

    def warmed(self):
        read_through(self.image)
        return self.image


class Squashfs(Image):
    name = "squashfs"

    def make(self, world, source):
        run("mksquashfs", source, self.image, "-comp", "zstd", "-noappend", "-quiet", "-no-progress")

    def mount(self):
        return KernelMount("squashfs", self.warmed(), self.mountpoint)


class Squashfuse(Squashfs):
    name = "squashfuse"

    def mount(self):
        program = shutil.which("squashfuse_ll") or shutil.which("squashfuse") or "squashfuse"
        return ServedMount(self.mountpoint, program, "-f", self.warmed(), self.mountpoint)


class Erofs(Image):
    name = "erofs"

    def make(self, world, source):
        folder = world.root / "erofs-source"
        folder.mkdir()
        try:
            (folder / source.name).hardlink_to(source)
            run("mkfs.erofs", "--quiet", f"-z{self.codec()}", self.image, folder)
        finally:
            shutil.rmtree(folder)

    @staticmethod
    def codec():
        """zstd where mkfs.erofs has it, which it has since 1.8."""
        try:
            said = subprocess.run(["mkfs.erofs", "--help"], capture_output=True, text=True)
        except FileNotFoundError:
            return "zstd"  # for run() to complain of the program
        return "zstd" if "zstd" in said.stdout + said.stderr else "lz4hc"

    def mount(self):
        return KernelMount("erofs", self.warmed(), self.mountpoint)


class Btrfs(Image):
    name = "btrfs"

    def make(self, world, source):
        with open(self.image, "wb") as image:
            image.truncate(2 * source.stat().st_size + 2**28)
        run("mkfs.btrfs", "--quiet", self.image)
        self.mountpoint.mkdir(exist_ok=True)
        run("mount", "-t", "btrfs", "-o", "loop,compress=zstd", self.image, self.mountpoint)
        try:
            shutil.copy(source, self.mountpoint)
        finally:
            run("umount", self.mountpoint)

    def mount(self):
        return KernelMount("btrfs", self.warmed(), self.mountpoint)


class Null(Image):
    """Answers with zeros: what any FUSE server could reach at best."""

    name = "null"

    def make(self, world, source):
        tool("null_mount")
        self.source = source

    def mount(self):
        return NullMount(self.mountpoint, self.source)

    def measure(self, work, operation):
        with self.mount() as mount:
            return work.run(operation, mount.path / self.source.name, zeros=True)


class Npkfs(Image):
    name = "numpack"
    options = ("passthrough=off", "decoded=0")
    compress = True

    def make(self, world, source):
        from numpack import NumPack

        with NumPack(self.image) as npk:
            npk.save({"a": world.array(self.kind)}, compress=self.compress)

    def mount(self):
        for file in self.image.glob("*.npkd"):
            read_through(file)
        return Mount(self.image, self.mountpoint, *self.options)

    def close(self):
        shutil.rmtree(self.image, ignore_errors=True)


class NpkfsUncompressed(Npkfs):
    name = "uncompressed"
    options = ("passthrough=off",)
    compress = False


class NpkfsDecoding(Npkfs):
    """With its own defaults: as root, arrays that are worth it are decoded whole, and passed through."""

    name = "decoded"
    options = ()


class Images:
    """Images of one array, those of them that can be had here. The others are ``absent``, with the reason."""

    def __init__(self, world, kind, images):
        self.made, self.absent = {}, {}
        for image in images:
            try:
                self.made[image.name] = image(world, kind)
            except CannotMeasure as error:
                self.absent[image.name] = str(error)
        if "erofs" in self.made and Erofs.codec() != "zstd":
            self.absent["erofs with zstd"] = f"mkfs.erofs has no zstd here, the column erofs is {Erofs.codec()}"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for image in self.made.values():
            image.close()


COLD = [Npkfs, Null, Squashfs, Erofs, Btrfs, Squashfuse]


def cold(kind):
    """First use of one array in a fresh mount."""

    def measure(world, row):
        work = Work(world, kind)
        results = []
        with Images(world, kind, COLD) as images:
            size = Contest(f"{row.name}/size", f"{kind.title}: size", "numpack", unit="MiB")
            size.figures = {
                made.name: [disk_usage(made.image) / 2**20]
                for made in images.made.values()
                if not isinstance(made, Null | Squashfuse)
            }
            results.append(size)
            for name, (what, _) in OPERATIONS.items():
                goals = []
                if kind is not NOISE and name != "rows":
                    goals = [
                        (Goal(least_ratio=0.9), ("null",)),
                        (Goal(least_ratio=2.0), ("squashfuse",)),
                        (Goal(over_ratio=1.0), ("squashfs", "erofs")),
                    ]
                contest = Contest(f"{row.name}/{name}", f"{kind.title}: {what}", "numpack", goals, absent=images.absent)
                contest.bounded_by = Null.name
                once = {
                    made.name: (lambda made=made, name=name: made.measure(work, name)) for made in images.made.values()
                }
                results.append(contest.play(world.rounds, once))
        return results

    return measure


def later(world, row):
    """Passes after the first, of a compressed and of an uncompressed array, both out of the kernel's page cache."""
    work = Work(world, FIELD)
    results = []
    with Images(world, FIELD, [Npkfs, NpkfsUncompressed]) as images:
        ours, theirs = (required(images, name) for name in ("numpack", "uncompressed"))
        with ours.mount() as mounted, theirs.mount() as plain:
            paths = [next(image.files(mount)) for image, mount in ((ours, mounted), (theirs, plain))]
            for path in paths:
                work.run("load", path)
            for name, (what, _) in OPERATIONS.items():
                result = Result(
                    f"{row.name}/{name}",
                    f"{FIELD.title}: {what}, later passes",
                    reference_name="uncompressed, mounted",
                    goal=Goal(least_ratio=0.95),
                )
                results.append(in_pairs(world, work, name, result, *paths))
    return results


def decoded(world, row):
    """What was opened before, with the options that a mount has by itself, against the file system of the disk."""
    work = Work(world, FIELD)
    results = []
    with Images(world, FIELD, [NpkfsDecoding]) as images, required(images, "decoded").mount() as mount:
        path = next(mount.path.glob("*.npy"))
        # The same bytes: np.load is a third slower when the elements begin on a page, because a copy from there into
        # memory that malloc gives, which begins 16 bytes behind a page, is in its own way (4K aliasing).
        disk = world.root / "decoded.npy"
        disk.write_bytes(path.read_bytes())
        for file in (path, path, disk):
            work.run("load", file)
        for name, (what, _) in OPERATIONS.items():
            result = Result(
                f"{row.name}/{name}",
                f"{FIELD.title}: {what}, decoded before",
                reference_name="disk",
                goal=Goal(least_ratio=0.9),
            )
            results.append(in_pairs(world, work, name, result, path, disk))
        disk.unlink()
    return results


def incompressible(world, row):
    """First passes over noise that was to be compressed, and over noise that was not."""
    work = Work(world, NOISE)
    results = []
    with Images(world, NOISE, [Npkfs, NpkfsUncompressed]) as images:
        ours, theirs = (required(images, name) for name in ("numpack", "uncompressed"))
        for name, (what, _) in OPERATIONS.items():
            result = Result(
                f"{row.name}/{name}",
                f"{NOISE.title}: {what}, first pass",
                reference_name="uncompressed, mounted",
                goal=Goal(least_ratio=0.95),
            )
            for i in range(world.rounds):
                in_turn(
                    i,
                    lambda: result.ours.append(ours.measure(work, name)),
                    lambda: result.reference.append(theirs.measure(work, name)),
                )
            results.append(result)
    return results


def required(images, name):
    if name in images.absent:
        raise CannotMeasure(images.absent[name])
    return images.made[name]


def in_pairs(world, work, name, result, path, reference):
    """Fills ``result`` with passes over two files in turn."""
    for file in (path, reference):
        work.run(name, file)
    for i in range(world.rounds):
        in_turn(
            i,
            lambda: result.ours.append(work.run(name, path)),
            lambda: result.reference.append(work.run(name, reference)),
        )
    return result


ROWS = [
    *(Row(f"cold/{kind.name}", cold(kind), is_variant=kind is not FIELD) for kind in KINDS),
    Row("later", later),
    Row("decoded", decoded),
    Row("incompressible", incompressible),
]
