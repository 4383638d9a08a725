"""A process that works on a store, through the API or a mount, and tells each thing that it does, and what it saw.

``python clients.py api|mount PLACE NUMBER SEED COUNT``: PLACE is the store or the mount. Each line is a JSON array: what is
begun, ``[client, what, name, given, start]``, and how it ended, ``[client, seen, end]``.
"""

import errno
import json
import mmap
import os
import random
import sys
import threading
import time

import numpy as np

LISTS = ("x", "y")
REGISTERS = ("plain", "compressed")
# Rows of the arrays of registers that are one client's alone: a page, so that nobody else writes in it.
OWN = 512
HEADER_LEN = 4096
COMPRESSIONS = (None, True, {"block": 4096, "level": 1})
writing = threading.Lock()


def rows_of(numbers):
    """Rows that show whether they are whole."""
    return np.array([[number, ~number] for number in numbers], np.int64).reshape(-1, 2)


def numbers_of(rows):
    """The numbers of whole rows."""
    assert (rows[:, 0] == ~rows[:, 1]).all(), f"torn rows: {rows[rows[:, 0] != ~rows[:, 1]][:5]}"
    return rows[:, 0].tolist()


def map_array(file):
    """What a file has, mapped."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.array(np.memmap(file, dtype, "r", file.tell(), shape))


class Client:
    """Does random things, one after the other."""

    def __init__(self, number, seed):
        self.number = number
        self.random = random.Random(f"{seed} {number}")
        self.count = 0

    def new(self, n):
        """Numbers that nobody else has."""
        self.count += n
        return [self.number * 1_000_000 + self.count - i for i in range(n)]

    def say(self, *words):
        with writing:
            print(json.dumps([self.number, *words]), flush=True)

    def do(self, what, name, given, call):
        self.say(what, name, given, time.monotonic_ns())
        seen = call()
        self.say(seen, time.monotonic_ns())

    def run(self, n):
        ways = [getattr(self, way) for way in dir(self) if way.startswith("may_")]
        for _ in range(n):
            self.random.choice(ways)()


class Api(Client):
    """Through NumPack, with an object that other threads use as well."""

    def __init__(self, number, seed, numpack, npk, own):
        super().__init__(number, seed)
        # A batch belongs to all threads that use the same object: one is this thread's own.
        self.numpack, self.npk, self.own = numpack, npk, own

    def may_save(self):
        name, numbers = self.random.choice(LISTS), self.new(self.random.randrange(1, 4))
        compress = self.random.choice(COMPRESSIONS)
        self.do("save", name, numbers, lambda: self.npk.save({name: rows_of(numbers)}, compress=compress))

    def append(self):
        name, numbers = self.random.choice(LISTS), self.new(self.random.randrange(1, 4))

        def call():
            try:
                self.npk.append({name: rows_of(numbers)})
            except self.numpack.ArrayNotFoundError:
                return None
            return True

        self.do("append", name, numbers, call)

    may_append = may_append_as_often = append

    def may_drop_first(self):
        name = self.random.choice(LISTS)

        def call():
            try:
                self.npk.drop(name, [0])
            except (KeyError, IndexError):
                pass  # None, or none with rows.

        self.do("drop first", name, None, call)

    def may_remove(self):
        if self.random.randrange(3) == 0:
            name = self.random.choice(LISTS)
            self.do("remove", name, None, lambda: self.remove(name))

    def remove(self, name):
        try:
            self.npk.drop(name)
        except KeyError:
            pass

    def may_compact(self):
        name = self.random.choice(LISTS)

        def call():
            try:
                self.npk.update(name)
            except KeyError:
                pass

        self.do("compact", name, None, call)

    def read(self):
        name, lazy = self.random.choice(LISTS), self.random.choice([True, False])

        def call():
            try:
                array = self.npk.load(name, lazy=lazy)
            except KeyError:
                return None
            return numbers_of(np.array(array))

        self.do("read", name, None, call)

    may_read = may_read_as_often = read

    def may_write_registers(self):
        name, row = self.random.choice(REGISTERS), OWN * self.number + self.random.randrange(3)
        value = self.new(1)
        if self.random.choice([True, False]):
            self.do("write", [name, row], value[0], lambda: self.npk.write_rows(name, row, np.array(value)))
        else:
            self.do("write", [name, row], value[0], lambda: self.npk.replace({name: np.array(value)}, [row]))

    def may_read_registers(self):
        name = self.random.choice(REGISTERS)
        self.do("read registers", name, None, lambda: self.npk.load(name).reshape(-1, OWN)[:, :3].tolist())

    def may_save_a_pair(self):
        # As long as nobody else makes them.
        length = self.number * 1000 + self.new(1)[0] % 1000
        one, two = np.zeros(length, np.uint8), np.ones(length, np.uint8)

        def call():
            if self.random.choice([True, False]):
                self.own.save({"one": one, "two": two})
            else:
                with self.own.batch_mode():
                    self.own.save({"one": one})
                    self.own.save({"two": two})

        self.do("write", "pair", [length, length], call)

    def may_read_a_pair(self):
        def call():
            shapes = self.npk.get_shape()
            return [shapes[name][0] for name in ("one", "two")]

        self.do("read", "pair", None, call)


class Mount(Client):
    """Through the files of a mount."""

    def __init__(self, number, seed, folder):
        super().__init__(number, seed)
        self.folder = folder

    def path(self, name):
        return f"{self.folder}/{name}.npy"

    def may_save(self):
        name, numbers = self.random.choice(LISTS), self.new(self.random.randrange(1, 4))
        # Under another name, which then takes the place of this one: who reads this one finds whole files only.
        np.save(self.path(f"new{self.number}"), rows_of(numbers))
        self.do(
            "save", name, numbers, lambda: os.replace(self.path(f"new{self.number}"), self.path(name))
        )

    def append(self):
        name, numbers = self.random.choice(LISTS), self.new(self.random.randrange(1, 4))
        data = rows_of(numbers).tobytes()

        def call():
            try:
                file = os.open(self.path(name), os.O_WRONLY | os.O_APPEND)
            except FileNotFoundError:
                return None
            try:
                assert os.write(file, data) == len(data)
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT):
                    raise
                return None
            finally:
                os.close(file)
            return True

        self.do("append", name, numbers, call)

    may_append = may_append_as_often = append

    def may_remove(self):
        if self.random.randrange(3) == 0:
            name = self.random.choice(LISTS)

            def call():
                try:
                    os.remove(self.path(name))
                except FileNotFoundError:
                    return False
                return True

            self.do("remove", name, None, call)

    def read(self):
        name = self.random.choice(LISTS)
        mapped = self.random.choice([True, False])

        def call():
            try:
                # Opened once: `mmap_mode` opens the name three times, each time what it is then.
                with open(self.path(name), "rb") as file:
                    return numbers_of(map_array(file) if mapped else np.load(file))
            except FileNotFoundError:
                return None

        self.do("read", name, None, call)

    may_read = may_read_as_often = read

    def may_write_registers(self):
        name, row = self.random.choice(REGISTERS), OWN * self.number + self.random.randrange(3)
        value = self.new(1)[0].to_bytes(8, "little")
        offset = HEADER_LEN + 8 * row

        def call():
            with open(self.path(name), "r+b", buffering=0) as file:
                if self.random.choice([True, False]):
                    os.pwrite(file.fileno(), value, offset)
                    os.fsync(file.fileno())
                else:
                    with mmap.mmap(file.fileno(), 0) as mapped:
                        mapped[offset : offset + 8] = value
                        mapped.flush()

        self.do("write", [name, row], int.from_bytes(value, "little"), call)

    def may_read_a_pair(self):
        def call():
            with np.load(f"{self.folder}/.views/all.npz") as views:
                return [len(views[name]) for name in ("one", "two")]

        self.do("read", "pair", None, call)

    def may_read_registers(self):
        name = self.random.choice(REGISTERS)
        self.do("read registers", name, None, lambda: np.load(self.path(name)).reshape(-1, OWN)[:, :3].tolist())


def main(kind, place, number, seed, count):
    if kind == "mount":
        Mount(number, seed, place).run(count)
        return
    import numpack

    errors = []

    def run(client):
        try:
            client.run(count)
        except BaseException as error:
            errors.append(error)
            raise

    with numpack.NumPack(place) as npk, numpack.NumPack(place) as own, numpack.NumPack(place) as other:
        clients = [Api(number + i, seed, numpack, npk, one) for i, one in enumerate((own, other))]
        threads = [threading.Thread(target=run, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sys.exit(bool(errors))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
