"""The first use after the machine was started, as far as that can be had: the kernel is told to drop its caches.

Then the disk is what everybody waits for, and a smaller file is read sooner. And many tiny arrays, cold and warm.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpack import NumPack

from datasets import KINDS
from harness import CannotMeasure, Contest, Goal, Row, expect, timed
from peers import remove
from world import save_many

DROP = Path("/proc/sys/vm/drop_caches")
FIELD = KINDS[1]


def drop_caches():
    """All that the kernel has cached of any disk, names and sizes included."""
    os.sync()
    try:
        DROP.write_text("3")
    except OSError as error:
        raise CannotMeasure(f"dropping the kernel's caches needs root: {error}") from error


def load_cold(world, row):
    """One large array, in a file, in a store, and compressed in one."""
    array = world.array(FIELD)
    plain, packed, path = world.root / "cold.npk", world.root / "cold-packed.npk", world.root / "cold.npy"
    np.save(path, array)
    for store, compress in (plain, False), (packed, True):
        with NumPack(store) as npk:
            npk.save({"a": array}, compress=compress)

    def from_store(store):
        with NumPack(store) as npk:
            return npk.load("a")

    def mounted(store):
        with world.mount(store=store) as mount:
            return cold(lambda: np.load(mount.path / "a.npy"))

    def cold(work):
        drop_caches()
        seconds, found = timed(work)
        expect(np.array_equal(found, array), "other values were loaded than were saved")
        return seconds

    contest = Contest(row.name, f"cold: load of {world.mib} MiB, {FIELD.title}", "compressed", [(Goal(over_ratio=1.0), ("npy",))])
    contenders = {
        "numpack": lambda: cold(lambda: from_store(plain)),
        "compressed": lambda: cold(lambda: from_store(packed)),
        "mounted": lambda: mounted(plain),
        "mounted, compressed": lambda: mounted(packed),
        "npy": lambda: cold(lambda: np.load(path)),
    }
    return [contest.play(world.rounds, contenders)]


def many_tiny(world, row):
    """Arrays of 1 KiB: saved some hundred in a call, and loaded one by one."""
    folder, names = world.small_folder, [name.removesuffix(".npy") for name in world.small_names]
    arrays = {name: np.full(256, i, np.float32) for i, name in enumerate(names)}
    npz, store = world.root / "small.npz", world.small_store
    np.savez(npz, **arrays)
    made = world.root / "made"

    def from_store():
        with NumPack(store) as npk:
            return [npk.load(name) for name in names]

    def from_files():
        return [np.load(f"{folder}/{name}.npy") for name in names]

    def from_npz():
        with np.load(npz) as file:
            return [file[name] for name in names]

    def to_store():
        with NumPack(made) as npk:
            save_many(npk, arrays)

    def to_files():
        made.mkdir()
        for name, array in arrays.items():
            np.save(f"{made}/{name}.npy", array)

    def to_npz():
        with open(made, "wb") as file:
            np.savez(file, **arrays)

    def saving(work):
        os.sync()
        seconds, _ = timed(work)
        remove(made)
        return seconds

    def loading(work, is_cold):
        if is_cold:
            drop_caches()
        seconds, found = timed(work)
        expect(all(array[0] == i for i, array in enumerate(found)), "other arrays were loaded")
        return seconds

    faster = Goal(over_ratio=1.0), ("npy files",)
    title = f"{len(names):,} arrays of 1 KiB"
    save = {"numpack": to_store, "npy files": to_files, "npz": to_npz}
    load = {"numpack": from_store, "npy files": from_files, "npz": from_npz}
    calls = {name: (lambda work=work: saving(work)) for name, work in save.items()}
    yield Contest(f"{row.name}/save", f"{title}: save", "numpack", [faster]).play(world.rounds, calls)
    for is_cold in (False, True):
        what = "cold" if is_cold else "warm"
        calls = {name: (lambda work=work: loading(work, is_cold)) for name, work in load.items()}
        yield Contest(f"{row.name}/{what}", f"{title}: load, {what}", "numpack", [faster]).play(world.rounds, calls)


ROWS = [
    Row("cold/load", load_cold),
    Row("cold/tiny", lambda world, row: list(many_tiny(world, row))),
]
