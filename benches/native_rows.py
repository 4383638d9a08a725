"""The Python API against NumPy, and against the bare system calls that put the same bytes into a file."""

import os

import numpy as np
from numpack import NumPack

from harness import Goal, Result, Row, expect, in_turn, timed
from world import ROW

BATCH = 100  # rows of one append or replace, and calls of it in one sample
LAZY_CALLS = 200
CYCLES = 1000


def save(world, row):
    """New names on both sides, removed again outside the timed part, nothing dirty at the start."""
    result = Result(row.name, "`save`", reference_name="`np.save`", goal=Goal(least_ratio=0.95))
    result.ceiling = world.ceilings.write(world.data.nbytes)
    path = world.root / "saved.npy"
    with NumPack(world.root / "save.npk") as npk:

        def ours(samples):
            os.sync()
            seconds, _ = timed(lambda: npk.save({"a": world.data}))
            samples.append(seconds)
            expect(np.array_equal(npk.load("a"), world.data), "save and load differ")
            npk.drop("a")

        def numpys(samples):
            os.sync()
            seconds, _ = timed(lambda: np.save(path, world.data))
            samples.append(seconds)
            path.unlink()

        ours([]), numpys([])
        for i in range(world.rounds):
            in_turn(i, lambda: ours(result.ours), lambda: numpys(result.reference))
    return [result]


def load(world, row):
    """Both from the same file."""
    result = Result(row.name, "`load`", reference_name="`np.load`", goal=Goal(least_ratio=1.0))
    result.ceiling = world.ceilings.read(world.data.nbytes)
    with NumPack(world.store) as npk:

        def one(samples, work):
            seconds, value = timed(work)
            samples.append(seconds)
            expect(np.array_equal(value, world.data), "load gave other values than were saved")

        one([], lambda: npk.load("big")), one([], lambda: np.load(world.backing))
        for i in range(world.rounds):
            in_turn(
                i,
                lambda: one(result.ours, lambda: npk.load("big")),
                lambda: one(result.reference, lambda: np.load(world.backing)),
            )
    return [result]


def lazy(world, row):
    result = Result(
        row.name,
        "`load(lazy=True)` and its first element",
        reference_name='`np.load(mmap_mode="r")`',
        goal=Goal(least_ratio=10),
    )
    path = os.fspath(world.backing)
    with NumPack(world.store) as npk:

        def ours():
            for _ in range(LAZY_CALLS):
                first = npk.load("big", lazy=True)[0, 0]
            return first

        def numpys():
            for _ in range(LAZY_CALLS):
                first = np.load(path, mmap_mode="r")[0, 0]
            return first

        def one(samples, work):
            seconds, value = timed(work)
            samples.append(seconds / LAZY_CALLS)
            expect(value == world.data[0, 0], "the first element differs")

        one([], ours), one([], numpys)
        for i in range(world.rounds):
            in_turn(i, lambda: one(result.ours, ours), lambda: one(result.reference, numpys))
    return [result]


class RawFile:
    """A file that starts with the same rows as the store's array, written to with `os.pwrite`."""

    def __init__(self, world):
        self.path = world.root / "raw"
        world.data[:100_000].tofile(self.path)
        os.sync()
        self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.close(self.fd)
        self.path.unlink()


def append(n_arrays):
    def measure(world, row):
        count = n_arrays(world)
        result = Result(
            row.name,
            f"`append` of 100 rows, {count:,} arrays in the store",
            reference_name="`os.pwrite`",
            goal=Goal(least_ratio=0.5),
            ceiling=world.ceilings.rewrite(BATCH * ROW * 4),
        )
        rows = np.random.default_rng(9).standard_normal((BATCH, ROW), dtype=np.float32)
        content = rows.tobytes()
        with NumPack(world.store_with(count)) as npk, RawFile(world) as raw:

            def ours():
                for _ in range(BATCH):
                    npk.append({"rows": rows})

            def bare():
                offset = os.fstat(raw.fd).st_size
                for _ in range(BATCH):
                    os.pwrite(raw.fd, content, offset)
                    offset += len(content)

            def one_of_ours(samples):
                before = npk.get_shape("rows")[0]
                os.sync()
                seconds, _ = timed(ours)
                samples.append(seconds / BATCH)
                expect(npk.get_shape("rows")[0] == before + BATCH * BATCH, "rows are missing after append")
                added = npk.load("rows", lazy=True)[before:]
                expect(np.array_equal(added, np.tile(rows, (BATCH, 1))), "the appended rows differ")

            def one_bare(samples):
                os.sync()
                seconds, _ = timed(bare)
                samples.append(seconds / BATCH)

            one_of_ours([]), one_bare([])
            for i in range(world.rounds):
                in_turn(i, lambda: one_of_ours(result.ours), lambda: one_bare(result.reference))
        return [result]

    return measure


def replace(n_arrays, scattered):
    """A run of rows is one `os.pwrite`; scattered rows are one each, and one `replace` with a list."""

    def measure(world, row):
        count = n_arrays(world)
        which = "100 scattered rows" if scattered else "100 rows"
        result = Result(
            row.name,
            f"`replace` of {which}, {count:,} arrays in the store",
            reference_name="`os.pwrite`, 100 calls" if scattered else "`os.pwrite`",
            goal=Goal(least_ratio=0.5),
            ceiling=None if scattered else world.ceilings.rewrite(BATCH * ROW * 4),
        )
        random = np.random.default_rng(10)
        with NumPack(world.store_with(count)) as npk, RawFile(world) as raw:

            def plan():
                rows = random.standard_normal((BATCH, ROW), dtype=np.float32)
                if scattered:
                    places = [random.choice(100_000, BATCH, replace=False) for _ in range(BATCH)]
                else:
                    starts = random.integers(0, 100_000 - BATCH, BATCH).tolist()
                    places = [slice(start, start + BATCH) for start in starts]
                return rows, places

            def ours(rows, places):
                for place in places:
                    npk.replace({"rows": rows}, place)

            def bare(pieces):
                for content, offset in pieces:
                    os.pwrite(raw.fd, content, offset)

            def pieces_of(rows, places):
                if scattered:
                    single = [line.tobytes() for line in rows]
                    offsets = [(place * ROW * 4).tolist() for place in places]
                    return [piece for run in offsets for piece in zip(single, run)]
                content = rows.tobytes()
                return [(content, place.start * ROW * 4) for place in places]

            def round_of(i, ours_samples, bare_samples):
                rows, places = plan()
                pieces = pieces_of(rows, places)

                def one_of_ours():
                    os.sync()
                    seconds, _ = timed(lambda: ours(rows, places))
                    ours_samples.append(seconds / BATCH)
                    stored = npk.getitem("rows", places[-1])
                    expect(np.array_equal(stored, rows), "the replaced rows differ")

                def one_bare():
                    os.sync()
                    seconds, _ = timed(lambda: bare(pieces))
                    bare_samples.append(seconds / BATCH)

                in_turn(i, one_of_ours, one_bare)

            round_of(0, [], [])
            for i in range(world.rounds):
                round_of(i, result.ours, result.reference)
        return [result]

    return measure


def cycles(appends):
    """In a store whose manifest is as one `save` wrote it, and in one with a log of appends behind it."""

    def measure(world, row):
        path = world.root / "cycles.npk"
        after = f", after {appends:,} appends" if appends else ""
        result = Result(row.name, f"{CYCLES:,} times open and close, 10 arrays in the store{after}", goal=Goal(most=0.1))
        rows = np.zeros((BATCH, ROW), np.float32)
        with NumPack(path, drop_if_exists=True) as npk:
            npk.save({f"rows{i}": rows for i in range(10)})
            for _ in range(appends):
                npk.append({"rows0": rows})

        def work():
            for _ in range(CYCLES):
                npk = NumPack(path)
                npk.open()
                npk.close()

        timed(work)
        for _ in range(world.rounds):
            seconds, _ = timed(work)
            result.ours.append(seconds)
        with NumPack(path) as npk:
            expect(npk.get_shape("rows9") == rows.shape, "the store changed")
        return [result]

    return measure


def lookup(world, row):
    count = world.many_arrays
    path = world.store_with(count)
    result = Result(row.name, f"open, find one array, close, {count:,} arrays in the store", goal=Goal(most=0.002))

    def work():
        npk = NumPack(path)
        npk.open()
        shape = npk.get_shape("rows")
        npk.close()
        return shape

    timed(work)
    for _ in range(world.rounds):
        seconds, shape = timed(work)
        result.ours.append(seconds)
        expect(shape[1:] == (ROW,), "found another array")
    return [result]


def few(world):
    return 10


def many(world):
    return world.many_arrays


ROWS = [
    Row("native/save", save),
    Row("native/load", load),
    Row("native/lazy", lazy),
    Row("native/append/few", append(few)),
    Row("native/append/many", append(many)),
    Row("native/replace/few", replace(few, scattered=False)),
    Row("native/replace/many", replace(many, scattered=False)),
    Row("native/replace-scattered/few", replace(few, scattered=True)),
    Row("native/replace-scattered/many", replace(many, scattered=True)),
    Row("native/open-close", cycles(0)),
    Row("native/open-close/appended", cycles(1000)),
    Row("native/lookup", lookup),
]
