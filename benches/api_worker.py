"""Does what `api_rows.py` times, in a process of its own: with one numpack, with NumPy by hand, or with its files.

    python benches/api_worker.py numpack|by-hand|npy|npz FOLDER

All releases of numpack have the same package name and, for what is timed here, the same API, so that one class serves
them all; which one is imported is a matter of ``PYTHONPATH``. Reads requests, one JSON list ``[method, *arguments]`` a
line, and answers each with one line: ``{"value": ...}`` or ``{"error": ...}``. Methods that time something give seconds
of one call, and check what they timed outside the timed part.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from harness import expect, timed

WIDTH = 10  # elements of a row
AT_ONCE = 100  # rows of one append, replace or drop
STREAMED = 10_000  # rows of one piece of a stream
SMALL = 100_000  # rows of the array `small`


def data(n_rows, dtype="float32"):
    """The same elements for everybody."""
    random = np.random.default_rng(n_rows)
    if dtype == "int64":
        return random.integers(0, 2**40, (n_rows, WIDTH))
    return random.random((n_rows, WIDTH), dtype) if dtype != "float64" else random.random((n_rows, WIDTH))


def indexes_of(n_rows, count, kind):
    found = np.random.default_rng(count).integers(0, n_rows, count)
    return found.tolist() if kind == "list" else found


def touch(nbytes):
    """Lets the system have that much memory at hand, whoever had it before: a virtual machine gets it page by page."""
    np.empty(nbytes, np.uint8).fill(1)


SLOW = 0.02  # seconds


def repeated(n_calls, work):
    """Seconds of one call of ``work``, and what the last one returned. What is slow is called once."""
    # The first call may have to map and to read what no other does.
    for _ in range(2):
        seconds, value = timed(work)
        if seconds <= SLOW:
            break
    else:
        return seconds, value

    def calls():
        for _ in range(n_calls - 1):
            work()
        return work()

    seconds, value = timed(calls)
    return seconds / n_calls, value


class Worker:
    """What both ways of doing it have in common: who is asked for what."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.expected = {}

    def rows_of(self, name, n_rows):
        if (name, n_rows) not in self.expected:
            self.expected[name, n_rows] = data(n_rows)
        return self.expected[name, n_rows]


class ByHand(Worker):
    """NumPy and the system: one .npy file per array, a mapping that is kept, a file that is written to at an offset."""

    def prepare(self, store, n_rows, n_others, has_big=False):
        self.path = self.folder / "a.npy"
        np.save(self.path, data(n_rows))
        self.mapped = np.load(self.path, mmap_mode="r")
        self.n_rows = n_rows
        self.fd = os.open(self.path, os.O_RDWR)
        self.header_len = os.path.getsize(self.path) - n_rows * WIDTH * 4

    def remove(self, store):
        os.close(self.fd)
        self.path.unlink()

    def save(self, n_rows, dtype):
        array = data(n_rows, dtype)
        path = self.folder / "saved.npy"
        os.sync()
        touch(array.nbytes)
        seconds, _ = timed(lambda: np.save(path, array))
        path.unlink()
        return seconds

    def load(self, n_rows, dtype):
        array = data(n_rows, dtype)
        path = self.folder / "loaded.npy"
        np.save(path, array)
        touch(array.nbytes)
        seconds, found = timed(lambda: np.load(path))
        expect(np.array_equal(found, array), "np.load gave other values than were saved")
        path.unlink()
        return seconds

    def lazy(self, n_calls):
        path = os.fspath(self.path)
        return repeated(n_calls, lambda: np.load(path, mmap_mode="r"))[0]

    def row(self, n_calls):
        mapped = self.mapped
        return repeated(n_calls, lambda: np.array(mapped[5]))[0]

    def slice(self, n_calls, count):
        mapped, start = self.mapped, self.n_rows // 3
        return repeated(n_calls, lambda: np.array(mapped[start : start + count]))[0]

    def lazy_fancy(self, n_calls, count, kind):
        return self.getitem(n_calls, count, kind)

    def getitem(self, n_calls, count, kind):
        mapped, indexes = self.mapped, indexes_of(self.n_rows, count, kind)
        return repeated(n_calls, lambda: mapped[indexes])[0]

    def replace(self, n_calls):
        content, fd, start = data(AT_ONCE).tobytes(), self.fd, self.header_len + self.n_rows // 2 * WIDTH * 4
        os.sync()
        return repeated(n_calls, lambda: os.pwrite(fd, content, start))[0]

    def append(self, n_calls):
        content, fd, end = data(AT_ONCE).tobytes(), self.fd, [os.fstat(self.fd).st_size]

        def work():
            os.pwrite(fd, content, end[0])
            end[0] += len(content)

        os.sync()
        return repeated(n_calls, work)[0]

    def stream(self):
        mapped = self.mapped

        def work():
            total = 0
            for start in range(0, self.n_rows, STREAMED):
                total += len(np.array(mapped[start : start + STREAMED]))
            return total

        return timed(work)[0]

    def batch(self, mode, n_elements, n_changes):
        path = self.folder / "batch.npy"
        np.save(path, np.ones(n_elements))

        def normal():
            for _ in range(n_changes):
                array = np.load(path)
                array *= 1.0001
                np.save(path, array)

        def cached():
            array = np.load(path)
            for _ in range(n_changes):
                array *= 1.0001
            np.save(path, array)

        def mapped():
            array = np.load(path, mmap_mode="r+")
            for _ in range(n_changes):
                array *= 1.0001

        seconds, _ = timed({"normal": normal, "batch": cached, "writable": mapped}[mode])
        expect(np.allclose(np.load(path), 1.0001**n_changes), "changes are missing")
        path.unlink()
        return seconds


class Npy(Worker):
    """An .npy file as its users have it: opened for each call, changed in a mapping, written anew to grow."""

    def path_of(self, name):
        return self.folder / f"{name}.npy"

    def write(self, path, array):
        np.save(path, array)

    def read(self, path):
        return np.load(path)

    def look(self, path):
        """What can be indexed without reading all of it, if that is possible."""
        return np.load(path, mmap_mode="r")

    def prepare(self, store, n_rows, n_others, has_big=False):
        self.path, self.n_rows = self.path_of("a"), n_rows
        self.write(self.path, self.rows_of("a", n_rows))

    def remove(self, store):
        self.path.unlink()

    def save(self, n_rows, dtype):
        array, path = data(n_rows, dtype), self.path_of("saved")
        os.sync()
        touch(array.nbytes)
        seconds, _ = timed(lambda: self.write(path, array))
        path.unlink()
        return seconds

    def load(self, n_rows, dtype):
        array, path = data(n_rows, dtype), self.path_of("loaded")
        self.write(path, array)
        touch(array.nbytes)
        seconds, found = timed(lambda: self.read(path))
        expect(np.array_equal(found, array), "other values were loaded than were saved")
        path.unlink()
        return seconds

    def lazy(self, n_calls):
        seconds, found = repeated(n_calls, lambda: self.look(self.path))
        expect(found.shape[1] == WIDTH, "an array of another shape was opened")
        return seconds

    def getitem(self, n_calls, count, kind):
        indexes = indexes_of(self.n_rows, count, kind)
        seconds, found = repeated(n_calls, lambda: self.look(self.path)[indexes])
        expect(np.array_equal(found, self.rows_of("a", self.n_rows)[indexes]), "other rows were read")
        return seconds

    def stream(self):
        def work():
            array = self.look(self.path)
            return sum(len(np.array(array[start : start + STREAMED])) for start in range(0, self.n_rows, STREAMED))

        seconds, total = timed(work)
        expect(total == self.n_rows, "the stream lost rows")
        return seconds

    def replace_rows(self, start, rows):
        np.load(self.path, mmap_mode="r+")[start : start + len(rows)] = rows

    def replace(self, n_calls):
        start, rows = self.n_rows // 2, data(AT_ONCE)
        old = self.rows_of("a", self.n_rows)[start : start + AT_ONCE]
        os.sync()
        seconds, _ = repeated(n_calls, lambda: self.replace_rows(start, rows))
        expect(np.array_equal(self.look(self.path)[start : start + AT_ONCE], rows), "the replaced rows differ")
        self.replace_rows(start, old)
        return seconds

    def append(self, n_calls):
        rows = data(AT_ONCE)
        os.sync()
        seconds, _ = repeated(n_calls, lambda: self.write(self.path, np.concatenate([self.read(self.path), rows])))
        expect(np.array_equal(self.look(self.path)[-AT_ONCE:], rows), "the appended rows differ")
        self.write(self.path, self.rows_of("a", self.n_rows))
        return seconds


class Npz(Npy):
    """An .npz file, of which nothing can be mapped, and nothing changed."""

    def path_of(self, name):
        return self.folder / f"{name}.npz"

    def write(self, path, array):
        np.savez(path, a=array)

    def read(self, path):
        with np.load(path) as arrays:
            return arrays["a"]

    look = read

    def replace_rows(self, start, rows):
        array = self.read(self.path)
        array[start : start + len(rows)] = rows
        self.write(self.path, array)


class Numpack(Worker):
    """Some release of numpack."""

    def __init__(self, folder):
        super().__init__(folder)
        import numpack

        self.NumPack = numpack.NumPack
        # Until 0.3.0, a store was open when it was made, and some have nothing to close.
        self.opens = hasattr(numpack.NumPack, "open")
        self.closes = hasattr(numpack.NumPack, "close")

    def opened(self, store):
        return self.opened_at(self.folder / store)

    def opened_at(self, path):
        npk = self.NumPack(path)
        if self.opens:
            npk.open()
        return npk

    def close(self, npk):
        if self.closes:
            npk.close()

    def prepare(self, store, n_rows, n_others, has_big=False):
        self.npk = self.opened(store)
        tiny = np.arange(16, dtype=np.float32)
        others = {f"tiny{i:06}": tiny for i in range(n_others)}
        if has_big:
            others["big"] = data(10_000_000)
        self.npk.save(others | {"a": data(n_rows)})
        self.lazy_array = self.npk.load("a", lazy=True)
        self.n_rows = n_rows

    def remove(self, store):
        del self.lazy_array
        self.close(self.npk)
        del self.npk
        shutil.rmtree(self.folder / store, ignore_errors=True)

    def save(self, n_rows, dtype):
        array = data(n_rows, dtype)
        with self.NumPack(self.folder / "save.npk") as npk:
            os.sync()
            touch(array.nbytes)
            seconds, _ = timed(lambda: npk.save({"a": array}))
            expect(np.array_equal(npk.load("a"), array), "save and load differ")
        shutil.rmtree(self.folder / "save.npk")
        return seconds

    def load(self, n_rows, dtype):
        array = data(n_rows, dtype)
        with self.NumPack(self.folder / "load.npk") as npk:
            npk.save({"a": array})
            touch(array.nbytes)
            seconds, found = timed(lambda: npk.load("a"))
            expect(np.array_equal(found, array), "load gave other values than were saved")
        shutil.rmtree(self.folder / "load.npk")
        return seconds

    def lazy(self, n_calls):
        npk = self.npk
        return repeated(n_calls, lambda: npk.load("a", lazy=True))[0]

    def row(self, n_calls):
        lazy = self.lazy_array
        seconds, found = repeated(n_calls, lambda: lazy[5])
        expect(np.shape(found) == (WIDTH,), "a row has another shape")
        return seconds

    def slice(self, n_calls, count):
        lazy, start = self.lazy_array, self.n_rows // 3
        seconds, found = repeated(n_calls, lambda: np.asarray(lazy[start : start + count]))
        expect(found.shape == (count, WIDTH), "a slice has another shape")
        return seconds

    def lazy_fancy(self, n_calls, count, kind):
        lazy, indexes = self.lazy_array, indexes_of(self.n_rows, count, kind)
        seconds, found = repeated(n_calls, lambda: lazy[indexes])
        expect(found.shape == (count, WIDTH), "fancy indexing gave another shape")
        return seconds

    def getitem(self, n_calls, count, kind):
        npk, indexes = self.npk, indexes_of(self.n_rows, count, kind)
        seconds, found = repeated(n_calls, lambda: npk.getitem("a", indexes))
        expect(np.array_equal(found, self.rows_of("a", self.n_rows)[indexes]), "getitem gave other rows")
        return seconds

    def replace(self, n_calls):
        npk, start, rows = self.npk, self.n_rows // 2, data(AT_ONCE)
        old = self.rows_of("a", self.n_rows)[start : start + AT_ONCE]
        os.sync()
        seconds, _ = repeated(n_calls, lambda: npk.replace({"a": rows}, slice(start, start + AT_ONCE)))
        expect(np.array_equal(npk.getitem("a", list(range(start, start + AT_ONCE))), rows), "the replaced rows differ")
        npk.replace({"a": old}, slice(start, start + AT_ONCE))
        return seconds

    def append(self, n_calls):
        npk, rows, n_rows = self.npk, data(AT_ONCE), [self.npk.get_shape("a")[0]]

        def work():
            npk.append({"a": rows})
            n_rows[0] += AT_ONCE

        os.sync()
        seconds, _ = repeated(n_calls, work)
        expect(npk.get_shape("a")[0] == n_rows[0], "rows are missing after append")
        return seconds

    def drop_rows(self):
        """Seconds of the drop; rows are dropped anew in each round, others each time."""
        n_rows = self.npk.get_shape("a")[0]
        indexes = np.random.default_rng(n_rows).choice(n_rows, AT_ONCE, replace=False).tolist()
        os.sync()
        seconds, _ = timed(lambda: self.npk.drop("a", indexes))
        expect(self.npk.get_shape("a")[0] == n_rows - AT_ONCE, "rows are left after drop")
        return seconds

    def read_rows(self, n_calls, count):
        """Random rows, whatever was dropped of the array."""
        npk, n_rows = self.npk, self.npk.get_shape("a")[0]
        indexes = indexes_of(n_rows, count, "array")
        return repeated(n_calls, lambda: npk.getitem("a", indexes))[0]

    def stream(self):
        npk = self.npk
        seconds, total = timed(lambda: sum(len(piece) for piece in npk.stream_load("a", buffer_size=STREAMED)))
        expect(total == self.n_rows, "the stream lost rows")
        return seconds

    def open_close(self, n_calls, lookup=False):
        self.close(self.npk)
        path = os.fspath(self.folder / "s.npk")

        def work():
            npk = self.opened_at(path)
            shape = npk.get_shape("a") if lookup else None
            self.close(npk)
            return shape

        seconds, shape = repeated(n_calls, work)
        self.npk = self.opened("s.npk")
        expect(not lookup or tuple(shape) == (self.n_rows, WIDTH), "found another array")
        return seconds

    def batch(self, mode, n_elements, n_changes):
        with self.NumPack(self.folder / "batch.npk") as npk:
            npk.save({"a": np.ones(n_elements)})

            def normal():
                for _ in range(n_changes):
                    array = npk.load("a")
                    array *= 1.0001
                    npk.save({"a": array})

            def cached():
                with npk.batch_mode():
                    for _ in range(n_changes):
                        array = npk.load("a")
                        array *= 1.0001
                        npk.save({"a": array})

            def mapped():
                with npk.writable_batch_mode() as writable:
                    for _ in range(n_changes):
                        array = writable.load("a")
                        array *= 1.0001
                        writable.save({"a": array})

            seconds, _ = timed({"normal": normal, "batch": cached, "writable": mapped}[mode])
            expect(np.allclose(npk.load("a"), 1.0001**n_changes), "changes are missing")
        shutil.rmtree(self.folder / "batch.npk")
        return seconds


def main():
    kind, folder = sys.argv[1:]
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = {"by-hand": ByHand, "npy": Npy, "npz": Npz, "numpack": Numpack}[kind](folder)
    for request in sys.stdin:
        method, *arguments = json.loads(request)
        try:
            answer = {"value": getattr(worker, method)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
