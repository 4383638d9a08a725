"""Arrays that are not compressed, through Python APIs: numpack, NumPy's own files, and what people use today.

All do the same with the same array, each from opening to closing, in the way that its documentation shows, and with
compression switched off. What one of them has no way to do (safetensors and .npz change nothing in place) is done as its
users do it: load, change, save. Files that are read are in the page cache.
"""

from __future__ import annotations

import os

import numpy as np

import peers
from harness import CannotMeasure, Contest, Goal, Row, expect, timed
from peers import Peer, remove, same

GATHERED = 1000
CHANGED = 100  # rows of one append or replace
STREAMED = 4096  # rows of one piece


class Whole(Peer):
    """Of which nothing can be changed in place."""

    def replace(self, path, start, rows):
        array = np.array(self.load(path))
        array[start : start + len(rows)] = rows
        self.save(path, array)

    def append(self, path, rows):
        self.save(path, np.concatenate([self.load(path), rows]))


def pieces(n_rows):
    return (slice(start, start + STREAMED) for start in range(0, n_rows, STREAMED))


class Numpack(peers.Numpack):
    compress = False

    def first(self, path):
        with self.api.NumPack(path) as npk:
            return np.array(npk.load("a", lazy=True)[0])

    def replace(self, path, start, rows):
        with self.api.NumPack(path) as npk:
            npk.replace({"a": rows}, slice(start, start + len(rows)))

    def append(self, path, rows):
        with self.api.NumPack(path) as npk:
            npk.append({"a": rows})

    def stream(self, path):
        with self.api.NumPack(path) as npk:
            yield from npk.stream_load("a", buffer_size=STREAMED)


class Npy(Whole):
    """`np.save`, and a mapping for what is not read whole."""

    name = "npy"
    module = "numpy"

    def save(self, path, array):
        with open(path, "wb") as file:
            np.save(file, array)

    def load(self, path):
        return np.load(path)

    def first(self, path):
        return np.array(np.load(path, mmap_mode="r")[0])

    def gather(self, path, rows):
        return np.load(path, mmap_mode="r")[rows]

    def replace(self, path, start, rows):
        np.load(path, mmap_mode="r+")[start : start + len(rows)] = rows

    def stream(self, path):
        mapped = np.load(path, mmap_mode="r")
        for piece in pieces(len(mapped)):
            yield np.array(mapped[piece])


class Npz(Whole):
    name = "npz"
    module = "numpy"

    def save(self, path, array):
        with open(path, "wb") as file:
            np.savez(file, a=array)

    def load(self, path):
        with np.load(path) as arrays:
            return arrays["a"]

    def first(self, path):
        return self.load(path)[0]

    def gather(self, path, rows):
        return self.load(path)[rows]

    def stream(self, path):
        array = self.load(path)
        for piece in pieces(array.shape[0]):
            yield array[piece]


class Zarr(peers.Zarr):
    def save(self, path, array):
        self.api.create_array(path, data=array, compressors=None)

    def first(self, path):
        return self.api.open_array(path, mode="r")[0]

    def replace(self, path, start, rows):
        self.api.open_array(path, mode="r+")[start : start + len(rows)] = rows

    def append(self, path, rows):
        self.api.open_array(path, mode="r+").append(rows)

    def stream(self, path):
        array = self.api.open_array(path, mode="r")
        for piece in pieces(array.shape[0]):
            yield array[piece]


class Blosc2(peers.Blosc2):
    def save(self, path, array):
        self.api.asarray(array, urlpath=os.fspath(path), mode="w", cparams={"clevel": 0})

    def first(self, path):
        return self.api.open(os.fspath(path), mode="r")[0]

    def replace(self, path, start, rows):
        self.api.open(os.fspath(path), mode="a")[start : start + len(rows)] = rows

    def append(self, path, rows):
        array = self.api.open(os.fspath(path), mode="a")
        n_rows = array.shape[0]
        array.resize((n_rows + len(rows), *array.shape[1:]))
        array[n_rows:] = rows

    def stream(self, path):
        array = self.api.open(os.fspath(path), mode="r")
        for piece in pieces(array.shape[0]):
            yield array[piece]


class Hdf5(peers.Hdf5):
    """In chunks, without which a dataset cannot grow."""

    name = "h5py"
    module = "h5py"

    def save(self, path, array):
        with self.api.File(path, "w") as file:
            file.create_dataset("a", data=array, chunks=True, maxshape=(None, *array.shape[1:]))

    def first(self, path):
        with self.api.File(path, "r") as file:
            return file["a"][0]

    def replace(self, path, start, rows):
        with self.api.File(path, "r+") as file:
            file["a"][start : start + len(rows)] = rows

    def append(self, path, rows):
        with self.api.File(path, "r+") as file:
            dataset = file["a"]
            n_rows = len(dataset)
            dataset.resize(n_rows + len(rows), axis=0)
            dataset[n_rows:] = rows

    def stream(self, path):
        with self.api.File(path, "r") as file:
            dataset = file["a"]
            for piece in pieces(len(dataset)):
                yield dataset[piece]


class Safetensors(Whole):
    name = "safetensors"
    module = "safetensors.numpy"

    def save(self, path, array):
        self.api.save_file({"a": array}, path)

    def load(self, path):
        return self.api.load_file(path)["a"]

    def part(self, path):
        from safetensors import safe_open

        return safe_open(path, framework="numpy")

    def first(self, path):
        with self.part(path) as file:
            return file.get_slice("a")[0:1][0]

    def gather(self, path, rows):
        # A slice of it is a run of rows.
        with self.part(path) as file:
            part = file.get_slice("a")
            return np.concatenate([part[row : row + 1] for row in rows.tolist()])

    def stream(self, path):
        with self.part(path) as file:
            part = file.get_slice("a")
            for piece in pieces(part.get_shape()[0]):
                yield part[piece]


class Tensorstore(Peer):
    """With its driver for zarr v3, whose default is not to compress."""

    name = "tensorstore"
    module = "tensorstore"

    def opened(self, path, **more):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
        return self.api.open(spec, **more).result()

    def save(self, path, array):
        opened = self.opened(path, create=True, dtype=self.api.dtype(array.dtype), shape=array.shape)
        opened.write(array).result()

    def load(self, path):
        return self.opened(path).read().result()

    def first(self, path):
        return self.opened(path)[0].read().result()

    def gather(self, path, rows):
        return self.opened(path)[rows].read().result()

    def replace(self, path, start, rows):
        self.opened(path)[start : start + len(rows)].write(rows).result()

    def append(self, path, rows):
        opened = self.opened(path)
        n_rows = opened.shape[0]
        grown = opened.resize(exclusive_max=[n_rows + len(rows), *opened.shape[1:]]).result()
        grown[n_rows:].write(rows).result()

    def stream(self, path):
        opened = self.opened(path)
        for piece in pieces(opened.shape[0]):
            yield opened[piece.start : min(piece.stop, opened.shape[0])].read().result()


PEERS = [Numpack, Npy, Npz, Zarr, Blosc2, Hdf5, Safetensors, Tensorstore]
RIVALS = tuple(peer.name for peer in PEERS[1:])


class Shelf:
    """An array, saved by each peer that can be had here, and what each does with it."""

    def __init__(self, world):
        random = np.random.default_rng(11)
        self.root = world.root / "plain"
        self.root.mkdir()
        self.array = world.data
        self.rows = random.choice(len(self.array), GATHERED, replace=False)
        self.changed = random.standard_normal((CHANGED, self.array.shape[1]), dtype=self.array.dtype)
        self.start = len(self.array) // 3
        self.peers, self.absent = {}, {}
        for peer in PEERS:
            try:
                self.peers[peer.name] = peer()
            except CannotMeasure as error:
                self.absent[peer.name] = str(error)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        remove(self.root)

    def saved(self, peer, which="kept"):
        path = self.root / f"{which}-{peer.name}"
        if not path.exists():
            peer.save(path, self.array)
        return path

    def time_save(self, peer):
        """A file that was not there before, nothing dirty at the start."""
        path = self.root / f"saved-{peer.name}"
        os.sync()
        seconds, _ = timed(lambda: peer.save(path, self.array))
        expect(path.exists(), f"{peer.name} saved nothing")
        remove(path)
        return seconds

    def time_load(self, peer):
        path = self.saved(peer)
        seconds, value = timed(lambda: peer.load(path))
        expect(same(value, self.array), f"{peer.name} loaded other values than were saved")
        return seconds

    def time_first(self, peer):
        path = self.saved(peer)
        seconds, value = timed(lambda: peer.first(path))
        expect(np.array_equal(value, self.array[0]), f"{peer.name} has another first row")
        return seconds

    def time_gather(self, peer):
        path = self.saved(peer)
        seconds, value = timed(lambda: peer.gather(path, self.rows))
        expect(same(value, self.array[self.rows]), f"{peer.name} gathered other rows than were asked for")
        return seconds

    def time_stream(self, peer):
        path = self.saved(peer)
        seconds, total = timed(lambda: sum(float(piece[-1, -1]) for piece in peer.stream(path)))
        ends = [min(piece.stop, len(self.array)) - 1 for piece in pieces(len(self.array))]
        expect(np.isclose(total, self.array[ends, -1].sum(dtype=np.float64)), f"{peer.name} streamed other rows")
        return seconds

    def time_replace(self, peer):
        path = self.saved(peer, "changed")
        os.sync()
        seconds, _ = timed(lambda: peer.replace(path, self.start, self.changed))
        found = peer.gather(path, np.arange(self.start, self.start + CHANGED))
        expect(np.array_equal(found, self.changed), f"{peer.name} did not replace the rows")
        return seconds

    def time_append(self, peer):
        """Each time to one that nothing was appended to before."""
        path = self.root / f"appended-{peer.name}"
        peer.save(path, self.array)
        os.sync()
        seconds, _ = timed(lambda: peer.append(path, self.changed))
        found = peer.gather(path, np.arange(len(self.array), len(self.array) + CHANGED))
        expect(np.array_equal(found, self.changed), f"{peer.name} did not append the rows")
        remove(path)
        return seconds


def operations(world, shelf):
    """Each with what it is called, and its limit."""
    nbytes, row_len = shelf.array.nbytes, shelf.array[0].nbytes
    ceilings = world.ceilings
    return {
        "save": ("save", ceilings.write(nbytes)),
        "load": ("load", ceilings.read(nbytes)),
        "first": ("open, one row", None),
        "gather": (f"open, {GATHERED:,} random rows", ceilings.gather(GATHERED, row_len)),
        "stream": (f"open, all of it {STREAMED:,} rows at a time", ceilings.read(nbytes)),
        # Most of these is opening, which nothing limits.
        "replace": (f"open, replace {CHANGED} rows", None),
        "append": (f"open, append {CHANGED} rows", None),
    }


def measure(world, row):
    faster = Goal(over_ratio=1.0), RIVALS
    twice = Goal(least_ratio=2.0), RIVALS
    with Shelf(world) as shelf:
        for name, (what, ceiling) in operations(world, shelf).items():
            goal = twice if name == "append" else faster
            contest = Contest(f"{row.name}/{name}", what, "numpack", [goal], ceiling=ceiling, absent=dict(shelf.absent))
            time = getattr(shelf, f"time_{name}")
            contenders = {name: (lambda peer=peer, time=time: time(peer)) for name, peer in shelf.peers.items()}
            yield contest.play(world.rounds, contenders)


ROWS = [Row("plain", lambda world, row: list(measure(world, row)))]
