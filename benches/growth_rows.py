"""What a store costs that has many arrays, and an array that is long: the same at three sizes, in turns.

Nothing but listing is to grow with the number of arrays. Stores are made once, by one `save`, and serve all rows. Long arrays
are sparse: `create` gives them rows that take no room, and rows at random places are written.
"""

from __future__ import annotations

import contextlib
import os
import time

import numpy as np
from numpack import NumPack

from harness import CannotMeasure, Contest, Goal, Row, expect, progress, timed
from world import ROW

AT_ONCE = 100  # rows of one append
CALLS = 50  # of what changes the store, in one sample
GATHERED = 1000
FLAT = 0.8  # of the speed that the smallest has


def contest(row, what, sizes, goal=Goal(least_ratio=FLAT)):
    """The largest against the smallest."""
    return Contest(row.name, what, sizes[-1], [(goal, (sizes[0],))] if goal else [])


def stores(world):
    return {f"{count:,} arrays": world.store_with(count) for count in world.scale.growth}


def save(npk, turn):
    rows = np.full((1, 16), turn, np.float32)
    names = [f"new{i}" for i in range(CALLS)]
    seconds, _ = timed(lambda: [npk.save({name: rows}) for name in names])
    expect(npk.load(names[-1])[0, 0] == turn, "the saved array is another one")
    npk.drop(names)
    return seconds / CALLS


def append(npk, turn):
    rows = np.full((AT_ONCE, ROW), turn, np.float32)
    before = npk.get_shape("rows")[0]
    seconds, _ = timed(lambda: [npk.append({"rows": rows}) for _ in range(CALLS)])
    found = npk.load("rows", lazy=True)[before:]
    expect(found.shape == (AT_ONCE * CALLS, ROW) and (found == turn).all(), "the appended rows differ")
    return seconds / CALLS


def replace(npk, turn):
    rows = np.full((AT_ONCE, ROW), turn, np.float32)
    seconds, _ = timed(lambda: [npk.replace({"rows": rows}, slice(0, AT_ONCE)) for _ in range(CALLS)])
    expect(np.array_equal(npk.getitem("rows", slice(0, AT_ONCE)), rows), "the replaced rows differ")
    return seconds / CALLS


def lookup(npk, turn):
    """The name of an array that is there, and one row of it."""
    seconds, found = timed(lambda: [npk.load("rows", lazy=True)[turn] for _ in range(CALLS)][-1])
    expect(np.shape(found) == (ROW,), "a row has another shape")
    return seconds / CALLS


def opening(path):
    def work():
        with NumPack(path) as npk:
            return npk.get_shape("rows")

    seconds, shape = timed(work)
    expect(shape[1:] == (ROW,), "found another array")
    return seconds


def listing(npk, count):
    seconds, names = timed(npk.get_member_list)
    expect(len(names) == count, "names are missing")
    return seconds / count


CALLED = {
    "save": ("`save` of a tiny array", save),
    "append": (f"`append` of {AT_ONCE} rows", append),
    "replace": (f"`replace` of {AT_ONCE} rows", replace),
    "lookup": ("`load(lazy=True)` and one row", lookup),
}


def api(world, row):
    named = stores(world)
    results = []
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(NumPack(path)) for name, path in named.items()}
        turn = iter(range(1, 10**6))
        for what, work in CALLED.values():
            calls = {name: (lambda npk=npk, work=work: work(npk, next(turn))) for name, npk in opened.items()}
            # What the one before left to be written is not for the next to wait for.
            os.sync()
            results.append(contest(row, what, list(named)).play(world.rounds, calls))
        counts = dict(zip(named, world.scale.growth, strict=True))
        calls = {name: (lambda npk=npk, name=name: listing(npk, counts[name])) for name, npk in opened.items()}
        results.append(contest(row, "`get_member_list`, each name", list(named), None).play(world.rounds, calls))
    calls = {name: (lambda path=path: opening(path)) for name, path in named.items()}
    results.append(contest(row, "open, find one array, close", list(named)).play(world.rounds, calls))
    return results


def look_up(mount, count, turn):
    """Names that this mount was not asked for before: `stat`, and then `open`, a read and `close`."""
    others = np.random.default_rng(turn).choice(count - 1, min(count - 1, 9), replace=False)
    paths = [os.fspath(mount.path / f"tiny{i:06}.npy") for i in others]
    stat, found = timed(lambda: [os.stat(path) for path in paths])
    expect(all(entry.st_size > 0 for entry in found), "a file is empty")

    def read(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.pread(fd, 8, 0)
        finally:
            os.close(fd)

    opened, heads = timed(lambda: [read(path) for path in paths])
    expect(all(head[1:6] == b"NUMPY" for head in heads), "a file is no array")
    return stat / len(paths), opened / len(paths)


def mounted(world, row):
    """A round is a fresh mount, so that the kernel knows none of the names."""
    named = stores(world)
    sizes = list(named)
    titles = {
        "mount": "mount, until it answers",
        "stat": "mounted: `stat` of a name, first",
        "open": "mounted: `open`, read, `close`",
        "list": "mounted: listing, each name",
    }
    results = {key: contest(row, what, sizes, None if key in ("mount", "list") else Goal(least_ratio=FLAT)) for key, what in titles.items()}
    for result in results.values():
        result.figures = {name: [] for name in sizes}
    for turn in range(world.rounds):
        for (name, path), count in zip(named.items(), world.scale.growth, strict=True):
            begin = time.perf_counter()
            with world.mount("passthrough=off", store=path) as mount:
                os.stat(mount.path / "rows.npy")
                figures = {"mount": time.perf_counter() - begin}
                figures["stat"], figures["open"] = look_up(mount, count, turn)
                seconds, found = timed(lambda mount=mount: os.listdir(mount.path))
                expect(len(found) == count, "names are missing from the listing")
                figures["list"] = seconds / count
            for key, figure in figures.items():
                results[key].figures[name].append(figure)
    return list(results.values())


class Long:
    """Sparse arrays, and rows at random places of each, the only ones that take room."""

    def __init__(self, world):
        self.path = world.root / "long.npk"
        self.rows, self.values = {}, np.random.default_rng(14).standard_normal((GATHERED, ROW), dtype=np.float32)
        with NumPack(self.path, drop_if_exists=True) as npk:
            for gb in world.scale.logical_gb:
                name, n_rows = f"{gb:g}GB", int(gb * 1e9) // (4 * ROW)
                npk.create(name, (n_rows, ROW), np.float32)
                rows = np.random.default_rng(15).choice(n_rows, GATHERED, replace=False)
                npk.replace({name: self.values}, rows)
                self.rows[name] = rows

    def check(self, found):
        expect(np.array_equal(found, self.values), "rows at random places have other values than were written")


def long_api(world, row):
    arrays = Long(world)
    with NumPack(arrays.path) as npk:

        def gather(name):
            rows = arrays.rows[name]
            seconds, found = timed(lambda: npk.getitem(name, rows))
            arrays.check(found)
            return seconds

        def lazily(name):
            rows = arrays.rows[name]
            seconds, found = timed(lambda: npk.load(name, lazy=True)[rows])
            arrays.check(found)
            return seconds

        for what, work in (f"`getitem` of {GATHERED:,} random rows", gather), ("the same of `load(lazy=True)`", lazily):
            calls = {name: (lambda name=name, work=work: work(name)) for name in arrays.rows}
            found = contest(row, what, list(arrays.rows))
            found.ceiling = world.ceilings.gather(GATHERED, 4 * ROW)
            yield found.play(world.rounds, calls)


def long_mounted(world, row):
    """Through fresh mounts, and from the arrays' own files on the disk, which the kernel may have cached."""
    arrays = Long(world)

    def rows_of(path, name):
        rows = arrays.rows[name]
        seconds, found = timed(lambda: np.load(path, mmap_mode="r")[rows])
        arrays.check(found)
        return seconds

    def on_disk(name):
        return rows_of(next(arrays.path.glob(f"data_{name}*.npkd")), name)

    def through(options):
        def first(name):
            with world.mount(options, store=arrays.path) as mount:
                return rows_of(mount.path / f"{name}.npy", name)

        return first

    ways = {"disk": on_disk, "cached": through("passthrough=off")}
    try:
        _ = world.passthrough
        ways["passthrough"] = through("passthrough=auto")
    except CannotMeasure as error:
        progress(f"  passthrough is not measured: {error}")
    for title, work in ways.items():
        calls = {name: (lambda name=name, work=work: work(name)) for name in arrays.rows}
        found = contest(row, f"{title}: {GATHERED:,} random rows, mapped, first pass", list(arrays.rows))
        yield found.play(world.rounds, calls)


ROWS = [
    Row("growth/api", api),
    Row("growth/mounted", mounted),
    Row("long/api", lambda world, row: list(long_api(world, row))),
    Row("long/mounted", lambda world, row: list(long_mounted(world, row))),
]
