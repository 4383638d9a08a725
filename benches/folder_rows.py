"""A mounted folder as programs use one: arrays saved into it, many small ones, and names.

What can be had from the disk file system itself is the reference for arrays. Operations on names have to go through
/dev/fuse, so they are measured against libfuse's own example of a file system that passes everything on to a folder
(passthrough_ll), which does next to nothing itself.
"""

from __future__ import annotations

import os
import shlex
import subprocess

import numpy as np

from harness import CannotMeasure, Goal, Result, Row, expect, in_turn, timed
from mounting import ServedMount

MADE = 1000  # files that are made and removed again
EXAMPLE = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c"


def save(options, what, goal):
    """Under a new name, removed again outside the timed part, nothing dirty at the start."""

    def measure(world, row):
        result = Result(row.name, f"{what}: `np.save`", reference_name="disk", goal=goal)
        result.ceiling = world.ceilings.write(world.data.nbytes)
        disk = world.root / "saved"
        disk.mkdir(exist_ok=True)
        with mounted(world, options, world.empty_store) as mount:

            def once(samples, folder):
                path = folder / "saved.npy"
                os.sync()
                seconds, _ = timed(lambda: np.save(path, world.data))
                expect(np.array_equal(np.load(path, mmap_mode="r"), world.data), "what was saved differs")
                path.unlink()
                samples.append(seconds)

            once([], mount.path), once([], disk)
            for i in range(world.rounds):
                in_turn(i, lambda: once(result.ours, mount.path), lambda: once(result.reference, disk))
        return [result]

    return measure


def mounted(world, options, store):
    if options == "passthrough=auto":
        # Raises where nothing is passed through.
        _ = world.passthrough
    return world.mount(options, store=store)


def load_all(folder, names):
    for name in names:
        np.load(f"{folder}/{name}")


def small_arrays(options, what):
    """A round is a fresh mount; the passes after the first find in the kernel's cache what it keeps."""

    def measure(world, row):
        folder, names = world.small_folder, world.small_names
        title = f"{what}: `np.load` of {len(names):,} arrays of 1 KiB"
        goal = Goal(least_ratio=0.5)
        first = Result(row.name + "/first", f"{title}, first pass", reference_name="disk", goal=goal)
        later = Result(row.name + "/later", f"{title}, later passes", reference_name="disk", goal=goal)
        load_all(folder, names)
        for i in range(world.rounds):

            def through_mount():
                with mounted(world, options, world.small_store) as mount:
                    first.ours.append(timed(lambda: load_all(mount.path, names))[0])
                    later.ours.append(timed(lambda: load_all(mount.path, names))[0])
                    expect(np.load(mount.path / names[-1])[0] == len(names) - 1, "the last array is another one")

            in_turn(i, through_mount, lambda: first.reference.append(timed(lambda: load_all(folder, names))[0]))
        later.reference = list(first.reference)
        return [first, later]

    return measure


def listing(options, what):
    """`ls -l`, which asks for the attributes of each, for the second time within the time that they are kept."""

    def measure(world, row):
        n = len(world.small_names)
        title = f"{what}: `ls -l` of {n:,} arrays, warm"
        result = Result(row.name, title, reference_name="disk", goal=Goal(most=0.1))

        def once(samples, folder):
            for warm in (False, True):
                seconds, said = timed(lambda: subprocess.run(["ls", "-l", folder], capture_output=True, check=True))
                expect(said.stdout.count(b".npy\n") == n, "names are missing")
                if warm:
                    samples.append(seconds)

        with mounted(world, options, world.small_store) as mount:
            for i in range(world.rounds):
                in_turn(i, lambda: once(result.ours, mount.path), lambda: once(result.reference, world.small_folder))
        return [result]

    return measure


class Example(ServedMount):
    """libfuse's example, built from the source that Debian ships with its header files."""

    def __init__(self, world, folder):
        program = world.root / "passthrough_ll"
        if not program.exists():
            build(program)
        mountpoint = world.root / "mnt-example"
        options = f"source={folder},timeout=1,cache=auto"
        super().__init__(mountpoint, program, "-f", "-o", options, mountpoint)


def build(program):
    try:
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
        command = ["cc", "-O2", "-D_FILE_OFFSET_BITS=64", EXAMPLE, "-o", program, *shlex.split(flags.stdout)]
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise CannotMeasure(f"libfuse's example cannot be built; sh .ci/setup.sh bench installs it: {said[-1]}") from error


def stat_all(folder, names):
    for name in names:
        os.stat(f"{folder}/{name}")


def open_all(folder, names):
    for name in names:
        os.close(os.open(f"{folder}/{name}", os.O_RDONLY))


def list_names(folder, names):
    expect(len(os.listdir(folder)) == len(names), "names are missing")


def make_and_remove(folder, names):
    for i in range(MADE):
        path = f"{folder}/made{i}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
        os.unlink(path)


# In this order on each fresh mount, with what one of them is.
NAMES = {
    "stat": ("`stat`, first", stat_all, len),
    "open": ("`open` and `close`", open_all, len),
    "load": ("`np.load` of 1 KiB", load_all, len),
    "readdir": ("one name of a listing", list_names, len),
    "create": ("`open` of a new file, `close`, `unlink`", make_and_remove, lambda _: MADE),
}


def names(world, row):
    results = {
        name: Result(f"{row.name}/{name}", f"cached: {what}", reference_name="libfuse's example")
        for name, (what, _, _) in NAMES.items()
    }

    def once(samples, mount):
        with mount:
            for name, (_, work, count) in NAMES.items():
                seconds, _ = timed(lambda work=work: work(mount.path, world.small_names))
                samples(results[name]).append(seconds / count(world.small_names))

    for i in range(world.rounds):
        in_turn(
            i,
            lambda: once(lambda result: result.ours, world.mount("passthrough=off", store=world.small_store)),
            lambda: once(lambda result: result.reference, Example(world, world.small_folder)),
        )
    return list(results.values())


PASSED, CACHED = ("passthrough=auto", "passthrough"), ("passthrough=off", "cached")

ROWS = [
    Row("passthrough/save", save(*PASSED, Goal(least_ratio=0.95))),
    Row("cached/save", save(*CACHED, Goal(least_ratio=0.7))),
    Row("passthrough/small", small_arrays(*PASSED)),
    Row("cached/small", small_arrays(*CACHED)),
    Row("passthrough/listing", listing(*PASSED)),
    Row("cached/listing", listing(*CACHED)),
    Row("names", names),
]
