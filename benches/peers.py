"""Compressed arrays through Python APIs: numpack and what people use today, each with its own defaults.

All do the same four things with the same array, each from opening to closing: save it, load it, gather 1,000 random
rows of it, and take room on the disk. Loads and gathers read a file that is in the page cache.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil

import numpy as np

from datasets import KINDS
from harness import CannotMeasure, Contest, Goal, Result, Row, expect, in_turn, timed
from limits import Decoding
from world import disk_usage

GATHERED = 1000
LIMIT = "limit"  # decoding in memory, on all cores


class Peer:
    """One way to keep an array. ``path`` is a file or folder that does not exist before ``save``."""

    name: str
    module: str  # what it needs

    def __init__(self):
        try:
            self.api = importlib.import_module(self.module)
        except ImportError as error:
            raise CannotMeasure(f"{error}; install .ci/requirements-bench.txt, as make bench-compressed does") from error

    def save(self, path, array):
        raise NotImplementedError

    def load(self, path):
        raise NotImplementedError

    def gather(self, path, rows):
        raise NotImplementedError


class Numpack(Peer):
    name = "numpack"
    module = "numpack"
    compress = True

    def save(self, path, array):
        with self.api.NumPack(path) as npk:
            npk.save({"a": array}, compress=self.compress)

    def load(self, path):
        with self.api.NumPack(path) as npk:
            return npk.load("a")

    def gather(self, path, rows):
        with self.api.NumPack(path) as npk:
            return npk.getitem("a", rows)


class NumpackUncompressed(Numpack):
    name = "uncompressed"
    compress = False


class Zarr(Peer):
    name = "zarr"
    module = "zarr"

    def save(self, path, array):
        self.api.save_array(path, array)

    def load(self, path):
        return self.api.open_array(path, mode="r")[:]

    def gather(self, path, rows):
        return self.api.open_array(path, mode="r").oindex[rows]


class Blosc2(Peer):
    name = "blosc2"
    module = "blosc2"

    def save(self, path, array):
        self.api.asarray(array, urlpath=os.fspath(path), mode="w")

    def load(self, path):
        return self.api.open(os.fspath(path), mode="r")[:]

    def gather(self, path, rows):
        return self.api.open(os.fspath(path), mode="r")[rows]


class Hdf5(Peer):
    module = "h5py"

    def save(self, path, array):
        with self.api.File(path, "w") as file:
            file.create_dataset("a", data=array, compression=self.name.removeprefix("h5py-"))

    def load(self, path):
        with self.api.File(path, "r") as file:
            return file["a"][:]

    def gather(self, path, rows):
        # It takes rows in ascending order only.
        order = np.argsort(rows)
        with self.api.File(path, "r") as file:
            ascending = file["a"][rows[order]]
        gathered = np.empty_like(ascending)
        gathered[order] = ascending
        return gathered


class Hdf5Gzip(Hdf5):
    name = "h5py-gzip"


class Hdf5Lzf(Hdf5):
    name = "h5py-lzf"


class Npz(Peer):
    name = "npz"
    module = "numpy"

    def save(self, path, array):
        with open(path, "wb") as file:
            np.savez_compressed(file, a=array)

    def load(self, path):
        with np.load(path) as arrays:
            return arrays["a"]

    def gather(self, path, rows):
        return self.load(path)[rows]


PEERS = [Numpack, Zarr, Blosc2, Hdf5Gzip, Hdf5Lzf, Npz]
RIVALS = tuple(peer.name for peer in PEERS[1:])


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Shelf:
    """One of the arrays, saved by each peer that can be had here."""

    def __init__(self, world, kind, peers=PEERS):
        self.world = world
        self.array = world.array(kind)
        self.rows = np.random.default_rng(5).choice(len(self.array), GATHERED, replace=len(self.array) < GATHERED)
        self.gathered = self.array[self.rows]
        self.peers, self.absent = {}, {}
        for peer in peers:
            try:
                self.peers[peer.name] = peer()
            except CannotMeasure as error:
                self.absent[peer.name] = str(error)

    def saved(self, peer):
        path = self.world.root / f"shelf-{peer.name}"
        if not path.exists():
            peer.save(path, self.array)
        return path

    def close(self):
        for peer in self.peers.values():
            remove(self.world.root / f"shelf-{peer.name}")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def time_save(self, peer):
        """A file that was not there before, nothing dirty at the start."""
        path = self.world.root / f"saved-{peer.name}"
        os.sync()
        seconds, _ = timed(lambda: peer.save(path, self.array))
        # Equal values are for the loads to find.
        expect(path.exists(), f"{peer.name} saved nothing")
        remove(path)
        return seconds

    def time_load(self, peer):
        path = self.saved(peer)
        seconds, value = timed(lambda: peer.load(path))
        expect(same(value, self.array), f"{peer.name} loaded other values than were saved")
        return seconds

    def time_gather(self, peer):
        path = self.saved(peer)
        seconds, value = timed(lambda: peer.gather(path, self.rows))
        expect(same(value, self.gathered), f"{peer.name} gathered other rows than were asked for")
        return seconds


def same(value, array):
    return isinstance(value, np.ndarray) and value.dtype == array.dtype and np.array_equal(value, array)


def api(kind):
    """Size, save, load and gather of one array."""

    def measure(world, row):
        faster = Goal(over_ratio=1.0), RIVALS
        near_limit = Goal(least_ratio=0.8), (LIMIT,)
        with Shelf(world, kind) as shelf, contextlib.ExitStack() as stack:

            def contest(what, *goals, unit="s"):
                name = f"{row.name}/{what}"
                return Contest(name, f"{kind.title}: {what}", "numpack", list(goals), unit, absent=dict(shelf.absent))

            def contenders(time):
                return {name: (lambda peer=peer: time(peer)) for name, peer in shelf.peers.items()}

            size = contest("size", (Goal(least_ratio=1.0), ("zarr", "blosc2")), unit="MiB")
            # One figure, which no round changes.
            size.figures = {name: [disk_usage(shelf.saved(peer)) / 2**20] for name, peer in shelf.peers.items()}
            save = contest("save", faster).play(world.rounds, contenders(shelf.time_save))
            save.ceiling = world.ceilings.write(shelf.array.nbytes)
            load = contest("load", faster, near_limit)
            load.bounded_by = LIMIT
            loading = contenders(shelf.time_load)
            if "numpack" in shelf.peers:
                try:
                    limit = stack.enter_context(Decoding(shelf.saved(shelf.peers["numpack"]), "a"))
                    loading[LIMIT] = limit.time
                except CannotMeasure as error:
                    load.absent[LIMIT] = str(error)
            load.play(world.rounds, loading)
            gather = contest(f"gather {GATHERED:,} rows", faster).play(world.rounds, contenders(shelf.time_gather))
            gather.ceiling = world.ceilings.gather(GATHERED, shelf.array[0].nbytes)
        return [size, save, load, gather]

    return measure


def incompressible(world, row):
    """What compression costs where it gains nothing."""
    pair = (Numpack, NumpackUncompressed)
    results = []
    with Shelf(world, KINDS[0], pair) as shelf:
        ours, theirs = (shelf.peers[peer.name] for peer in pair)
        for what, time in ("save", shelf.time_save), ("load", shelf.time_load):
            result = Result(
                f"{row.name}/{what}",
                f"{KINDS[0].title}: compressed {what}",
                reference_name="uncompressed",
                goal=Goal(least_ratio=0.95),
            )
            time(ours), time(theirs)
            for i in range(world.rounds):
                in_turn(
                    i,
                    lambda: result.ours.append(time(ours)),
                    lambda: result.reference.append(time(theirs)),
                )
            results.append(result)
    return results


ROWS = [*(Row(f"api/{kind.name}", api(kind), is_variant=kind is not KINDS[1]) for kind in KINDS), Row("api/incompressible", incompressible)]
