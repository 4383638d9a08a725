"""The Python API against NumPy doing the same by hand, and against NumPack 0.3.0 with both of its backends; our
Python backend against that of 0.3.0; and the table that its users know, of an array of 38 MB, with .npy and .npz files.

Each contender is a process of its own (`api_worker.py`), asked in turn. NumPack 0.3.0 is installed for this alone, into
``target/bench/numpack-0.3.0``, and never beside ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import native_rows
from harness import CannotMeasure, Contest, Goal, Result, Row, in_turn, progress

HERE = Path(__file__).resolve().parent
OLD = HERE.parent / "target" / "bench" / "numpack-0.3.0"

OURS, NUMPY = "numpack", "NumPy"
NPY, NPZ = "npy", "npz"
OLD_RUST, OLD_PYTHON = "0.3.0, Rust", "0.3.0, Python"
LEVEL = (Goal(least_ratio=0.95), (NUMPY,))
AHEAD = (Goal(least_ratio=1.0), (OLD_RUST, OLD_PYTHON))
ROW_LEN = 10 * 4
SMALL_ROWS = 100_000


def million(n_rows):
    return f"{n_rows / 1e6:g}M x 10"


def size_of(world, which):
    """Rows of the small or of the large table, which is the same where there is one only."""
    return world.scale.table_rows[min(which, len(world.scale.table_rows) - 1)]


def install_old():
    """The old release and what it needs, where nothing else looks for it."""
    if (OLD / "numpack").is_dir():
        return
    progress("  installing numpack 0.3.0 for comparison")
    partial = OLD.with_name(f"{OLD.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--only-binary", ":all:"]
    done = subprocess.run([*pip, "--target", partial, "numpack==0.3.0"], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CannotMeasure(f"pip cannot install it: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    partial.rename(OLD)


class Process:
    """A contender: a process that does what it is asked, and answers with seconds."""

    def __init__(self, kind, folder, **environment):
        folder.mkdir()
        self.folder = folder
        self.gave_up = ""
        self.process = subprocess.Popen(
            [sys.executable, HERE / "api_worker.py", kind, folder],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, method, *arguments, patience=None):
        """What ``method`` gives. Who takes longer than ``patience`` seconds is ended, and asked no more."""
        if self.gave_up:
            raise CannotMeasure(self.gave_up)
        try:
            self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self.process.stdin.flush()
            # One line is one answer, so that none waits in our buffer.
            if patience and not select.select([self.process.stdout], [], [], patience)[0]:
                self.process.kill()
                self.gave_up = f"`{method}` takes more than {patience:g} s"
                raise CannotMeasure(self.gave_up)
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            self.gave_up = f"its process ended, with exit code {self.process.wait()}"
            raise CannotMeasure(self.gave_up) from None
        if "error" in answer:
            raise CannotMeasure(answer["error"])
        return answer["value"]

    def stop(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Field:
    """All contenders of one row: our Rust backend, and everybody."""

    backend = "rust"
    rivals = (NUMPY, OLD_RUST, OLD_PYTHON)
    has_limits = True

    def __init__(self, world):
        self.world = world
        self.processes = {}
        self.absent = {}

    def __enter__(self):
        root = self.world.root / "api"
        root.mkdir()
        self.processes[OURS] = Process("numpack", root / "ours", NUMPACK_BACKEND=self.backend)
        start = {
            NUMPY: lambda: Process("by-hand", root / "by-hand"),
            NPY: lambda: Process("npy", root / "npy"),
            NPZ: lambda: Process("npz", root / "npz"),
            OLD_RUST: lambda: Process("numpack", root / "old-rust", **old),
            OLD_PYTHON: lambda: Process("numpack", root / "old-python", NUMPACK_FORCE_PYTHON_BACKEND="1", **old),
        }
        old = {"PYTHONPATH": os.fspath(OLD)}
        try:
            install_old()
        except CannotMeasure as error:
            self.absent = dict.fromkeys({OLD_RUST, OLD_PYTHON}.intersection(self.rivals), str(error))
        for name in self.rivals:
            if name not in self.absent:
                self.processes[name] = start[name]()
        return self

    def __exit__(self, *exception):
        for process in self.processes.values():
            process.stop()
        shutil.rmtree(self.world.root / "api", ignore_errors=True)

    @contextlib.contextmanager
    def stores(self, n_rows, n_others=9, has_big=False):
        """Everybody has an array `a` of ``n_rows`` rows, and besides it ``n_others`` tiny ones, and one of 400 MB."""
        ready = []
        for name, process in self.processes.items():
            try:
                process.ask("prepare", "s.npk", n_rows, n_others, has_big, patience=self.patience(name))
                ready.append(process)
            except CannotMeasure as error:
                if name in (OURS, NUMPY):
                    raise
                self.absent[name] = f"{n_others + 1:,} arrays: {error}"
        yield
        for process in ready:
            if not process.gave_up:
                process.ask("remove", "s.npk")

    def patience(self, name):
        """Seconds that somebody may take for one call: some of the old release's take hours with many arrays."""
        return self.world.scale.patience if name in (OLD_RUST, OLD_PYTHON) else None

    def contest(self, row, what, goals, method, *arguments, only=None, limit=None, ceiling=None):
        """One thing done by all who can."""
        limit = limit if self.has_limits else None
        contest = Contest(row.name, what, OURS, list(goals), limit=limit, ceiling=ceiling, absent=dict(self.absent))
        contenders = {}
        for name, process in self.processes.items():
            if name in self.absent or (only is not None and name not in only):
                continue
            try:
                process.ask(method, *arguments, patience=self.patience(name))
                contenders[name] = lambda process=process: process.ask(method, *arguments)
            except CannotMeasure as error:
                if name in (OURS, NUMPY):
                    raise
                contest.absent[name] = f"{what}: {error}"
        return contest.play(self.world.rounds, contenders)


class PythonField(Field):
    """Our Python backend, and that of 0.3.0. What it is measured against is that alone: NumPy is the limit of Rust's."""

    backend = "python"
    rivals = (OLD_PYTHON,)
    has_limits = False


class TableField(Field):
    """What the users of NumPack choose among: its last release that they know, and the files of NumPy."""

    rivals = (NPY, NPZ, OLD_RUST, OLD_PYTHON)


def known_table(world, row):
    """An array of 1,000,000 rows of 10 float32, 38.1 MB as they say."""
    n_rows = min(1_000_000, *world.scale.table_rows)
    nbytes, ceilings = n_rows * ROW_LEN, world.ceilings
    faster, twice = ((Goal(least_ratio=ratio), TableField.rivals) for ratio in (1.0, 2.0))
    with TableField(world) as field:
        yield field.contest(row, "save", (faster,), "save", n_rows, "float32", ceiling=ceilings.write(nbytes))
        yield field.contest(row, "load", (faster,), "load", n_rows, "float32", ceiling=ceilings.read(nbytes))
        with field.stores(n_rows, 0):
            one, rows = ceilings.rewrite(100 * ROW_LEN), ceilings.gather(100, ROW_LEN)
            yield field.contest(row, "lazy load", (faster,), "lazy", 200)
            yield field.contest(row, "100 random rows", (faster,), "getitem", 200, 100, "list", ceiling=rows)
            yield field.contest(row, "all of it, 10,000 rows at a time", (faster,), "stream", ceiling=ceilings.copy(nbytes))
            # Last: who appended has more rows than the others.
            yield field.contest(row, "replace 100 rows", (faster,), "replace", 100, ceiling=one)
            yield field.contest(row, "append 100 rows", (twice,), "append", 100, ceiling=one)


def whole(field_of, which):
    def measure(world, row):
        n_rows = size_of(world, which)
        size = million(n_rows)
        with field_of(world) as field:
            nbytes = n_rows * ROW_LEN
            save, load = world.ceilings.write(nbytes), world.ceilings.read(nbytes)
            yield field.contest(row, f"`save`, {size}", (LEVEL, AHEAD), "save", n_rows, "float32", ceiling=save)
            goals = ((Goal(least_ratio=1.0), (NUMPY,)), AHEAD)
            yield field.contest(row, f"`load`, {size}", goals, "load", n_rows, "float32", ceiling=load)

    return listed(measure)


def per_byte(world, row):
    """What integers cost: both dtypes have elements of the same size."""
    size = size_of(world, 0)
    results = []
    with Field(world) as field:
        for method in ("save", "load"):
            what = f"`{method}` of int64, {million(size)}"
            result = Result(row.name, what, reference_name="float64", goal=Goal(least_ratio=0.95))
            ask = field.processes[OURS].ask
            for i in range(-1, world.rounds):
                ours, reference = (result.ours, result.reference) if i >= 0 else ([], [])
                in_turn(
                    i,
                    lambda: ours.append(ask(method, size, "int64")),
                    lambda: reference.append(ask(method, size, "float64")),
                )
            results.append(result)
    return results


def reads(field_of, which):
    def measure(world, row):
        n_rows = size_of(world, which)
        size = million(n_rows)
        under = Goal(most=1e-6)
        with field_of(world) as field, field.stores(n_rows):
            yield field.contest(row, f"`load(lazy=True)`, {size}", (AHEAD,), "lazy", 200, limit=under)
            yield field.contest(row, f"one row of it, {size}", (LEVEL, AHEAD), "row", 1000, limit=under)
            yield field.contest(row, f"lazy slice of 1,000 rows, {size}", (LEVEL, AHEAD), "slice", 200, 1000)
            for count in (100, 10_000):
                calls = 20_000 // count
                for kind in ("list", "array"):
                    what = f"{count:,} random rows from {'a list' if kind == 'list' else 'an array'}, {size}"
                    rows = world.ceilings.gather(count, ROW_LEN)
                    for title, method in (f"lazy[...], {what}", "lazy_fancy"), (f"`getitem`, {what}", "getitem"):
                        yield field.contest(row, title, (LEVEL, AHEAD), method, calls, count, kind, ceiling=rows)
            what, stream = f"`stream_load`, 10,000 rows at a time, {size}", world.ceilings.copy(n_rows * ROW_LEN)
            yield field.contest(row, what, (LEVEL, AHEAD), "stream", ceiling=stream)

    return listed(measure)


def changes(field_of, which=None, what="", n_others=9, has_big=False):
    """Rows that are written, against one `os.pwrite` of the same bytes. The arrays are small, or of size ``which``."""

    def measure(world, row):
        n_rows = SMALL_ROWS if which is None else size_of(world, which)
        named = what if which is None else million(n_rows)
        goals = ((Goal(least_ratio=0.67), (NUMPY,)), AHEAD)
        with field_of(world) as field, field.stores(n_rows, others(world, n_others), has_big):
            one = world.ceilings.rewrite(100 * ROW_LEN)
            yield field.contest(row, f"`replace` of 100 rows, {named}", goals, "replace", 100, ceiling=one)
            yield field.contest(row, f"`append` of 100 rows, {named}", goals, "append", 100, ceiling=one)

    return listed(measure)


def others(world, n_others):
    return min(n_others, world.many_arrays)


def drop(field_of):
    """Rows of an array before any were dropped and after, and what a drop takes."""

    def measure(world, row):
        n_rows = size_of(world, 1)
        reading = Result(
            row.name,
            f"`getitem` of 100 random rows after `drop` of 100, {million(n_rows)}",
            reference_name="before",
            goal=Goal(least_ratio=0.67),
        )
        with field_of(world) as field:
            ours = field.processes[OURS].ask
            dropping = None
            with field.stores(n_rows):
                reading.reference = [ours("read_rows", 200, 100) for _ in range(world.rounds)]
                dropping = field.contest(
                    row,
                    f"`drop` of 100 of {n_rows / 1e6:g}M rows",
                    (AHEAD,),
                    "drop_rows",
                    only=(OURS, OLD_RUST, OLD_PYTHON),
                    limit=Goal(most=1e-3),
                )
                reading.ours = [ours("read_rows", 200, 100) for _ in range(world.rounds)]
        return [dropping, reading]

    return measure


def opening(field_of):
    def measure(world, row):
        with field_of(world) as field:
            rivals = (OURS, OLD_RUST, OLD_PYTHON)
            with field.stores(1000, 4):
                under = Goal(most=12e-6)
                what = "`open` and `close`, 5 arrays"
                yield field.contest(row, what, (AHEAD,), "open_close", 200, only=rivals, limit=under)
            with field.stores(1000, others(world, 9_999)):
                under = Goal(most=2e-3)
                what = f"`open`, find one array, `close`, {world.many_arrays:,} arrays"
                yield field.contest(row, what, (AHEAD,), "open_close", 5, True, only=rivals, limit=under)

    return listed(measure)


def batch(field_of, n_elements, n_changes, most):
    """The loop ``load``, ``*=``, ``save`` in each mode. NumPy does the same by hand: a cache, or a mapping."""

    def measure(world, row):
        size = f"{n_changes} changes of {'80 KB' if n_elements == 10_000 else '8 MB'}"
        titles = {"normal": "no mode", "batch": "`batch_mode`", "writable": "`writable_batch_mode`"}
        with field_of(world) as field:
            for mode, title in titles.items():
                # 1.1 times as long is 0.91 of the speed.
                goal = Goal(least_ratio=1.0 if mode == "normal" else 0.91)
                limit = Goal(most=most[mode]) if mode in most else None
                arguments = ("batch", mode, n_elements, n_changes)
                yield field.contest(row, f"{size}, {title}", ((goal, (NUMPY,)), AHEAD), *arguments, limit=limit)

    return listed(measure)


def listed(measure):
    return lambda world, row: list(measure(world, row))


def rows(prefix, field_of):
    return [
        Row(f"{prefix}/whole/small", whole(field_of, 0)),
        Row(f"{prefix}/whole/large", whole(field_of, 1), is_variant=True),
        Row(f"{prefix}/read/small", reads(field_of, 0)),
        Row(f"{prefix}/read/large", reads(field_of, 1), is_variant=True),
        Row(f"{prefix}/change/small", changes(field_of, 0)),
        Row(f"{prefix}/change/large", changes(field_of, 1), is_variant=True),
        Row(f"{prefix}/change/many", changes(field_of, what="many arrays", n_others=9_999)),
        Row(f"{prefix}/change/beside", changes(field_of, what="beside an array of 400 MB", has_big=True), is_variant=True),
        Row(f"{prefix}/drop", drop(field_of)),
        Row(f"{prefix}/open", opening(field_of)),
        Row(f"{prefix}/batch/80KB", batch(field_of, 10_000, 100, {"batch": 3.8e-3, "writable": 5.1e-3})),
        Row(f"{prefix}/batch/8MB", batch(field_of, 1_000_000, 50, {"batch": 48e-3, "writable": 27e-3}), is_variant=True),
    ]


ROWS = [
    *rows("api", Field),
    Row("api/int64", per_byte),
    Row("api/open/appended", native_rows.cycles(1000)),
]
PYTHON_ROWS = rows("python", PythonField)
TABLE_ROWS = [Row("table", listed(known_table))]
