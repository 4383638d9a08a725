"""The files, stores and mounts that the rows work on, made when first asked for and removed at the end."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness import progress
from limits import Ceilings
from mounting import CannotMount, Mount, npkfs, read_through

ROW = 64  # float32 elements of one row: 256 bytes
PAGE = 4096
AT_ONCE = 500  # arrays that are saved in one call


def disk_usage(path):
    """Bytes that the disk holds of a file, or of all files in a folder."""
    os.sync()
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_blocks for file in files if not file.is_dir()) * 512


def save_many(npk, arrays):
    """In several calls: one has the files of all its arrays open at once."""
    names = list(arrays)
    for start in range(0, len(names), AT_ONCE):
        npk.save({name: arrays[name] for name in names[start : start + AT_ONCE]})


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    mib: int  # of one large array
    rounds: int
    many_arrays: int = 10_000
    growth: tuple[int, ...] = (10, 1000, 100_000)  # arrays in a store
    logical_gb: tuple[float, ...] = (1, 10, 100)  # of sparse arrays
    table_rows: tuple[int, ...] = (1_000_000, 10_000_000)  # of tables with 10 columns
    patience: float = 30  # seconds for one call of the old release

    def quick(self, mib, rounds):
        """Little of everything, to see that all of it works."""
        return replace(
            self,
            mib=mib,
            rounds=rounds,
            many_arrays=1000,
            growth=(10, 100, 1000),
            logical_gb=(0.1, 1, 10),
            table_rows=(100_000,),
            patience=5,
        )


class World:
    """Lives in one folder on a disk file system."""

    def __init__(self, parent, scale):
        self.parent = Path(parent)
        self.mib = scale.mib
        self.rounds = scale.rounds
        self.rows = scale.mib * 2**20 // (4 * ROW)
        self.many_arrays = scale.many_arrays
        self.scale = scale
        self.resources = contextlib.ExitStack()

    def __enter__(self):
        self.parent.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(prefix="bench-", dir=self.parent))
        self.resources.callback(shutil.rmtree, self.root, ignore_errors=True)
        return self

    def __exit__(self, *exception):
        self.resources.close()

    @functools.cached_property
    def data(self):
        """The array that all rows about one large array use."""
        return np.random.default_rng(7).standard_normal((self.rows, ROW), dtype=np.float32)

    @functools.lru_cache(maxsize=1)
    def array(self, kind):
        """One of the arrays of `datasets`, in memory. They stay in the folder of all runs."""
        return np.load(self.array_file(kind))

    def array_file(self, kind):
        return kind.file(self.parent / "datasets", self.mib)

    @functools.cached_property
    def ceilings(self):
        """What this machine can do at best."""
        return Ceilings(self.root, self.rounds)

    @functools.cached_property
    def pages(self):
        """Random page numbers of the large array's data, each once: the same sequence for everybody."""
        return np.random.default_rng(8).permutation(self.data.nbytes // PAGE)

    @functools.cached_property
    def store(self):
        """A store with the large array, imported from an ordinary .npy file as `big`."""
        progress("  making the data")
        source = self.root / "big.npy"
        np.save(source, self.data)
        npkfs("--quiet", "import", source, self.root / "data.npk")
        source.unlink()
        return self.root / "data.npk"

    @functools.cached_property
    def backing(self):
        """The large array's file on the disk file system: an ordinary .npy file, and what a mount passes through."""
        (path,) = self.store.glob("data_big*.npkd")
        os.sync()
        read_through(path)
        return path

    def mount(self, *options, store=None):
        """A fresh mount: the kernel has cached nothing of it."""
        return Mount(store or self.store, self.root / "mnt", *options)

    @functools.cached_property
    def passthrough(self):
        """One mount with passthrough for all rows that want it. Raises CannotMount where there is none."""
        if os.geteuid() != 0:
            raise CannotMount("passthrough needs root")
        mount = Mount(self.store, self.root / "passthrough", "passthrough=auto")
        self.resources.callback(mount.stop)
        if not mount.passes_through(mount.path / "big.npy"):
            mount.stop()
            raise CannotMount("files are not passed through here (Linux before 6.9, or the store is on a stacked file system)")
        return mount

    @functools.cached_property
    def gibibyte(self):
        """A store with one array of 1 GiB, `long`."""
        from numpack import NumPack

        path = self.root / "gibibyte.npk"
        with NumPack(path) as npk:
            npk.save({"long": self.data})
            while npk.get_shape("long")[0] * 4 * ROW < 2**30:
                npk.append({"long": self.data})
        os.sync()
        self.resources.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    @functools.cached_property
    def empty_store(self):
        from numpack import NumPack

        path = self.root / "empty.npk"
        with NumPack(path):
            return path

    @functools.cached_property
    def small_names(self):
        """The names of the files of 1 KiB arrays."""
        return [f"small{i:06}.npy" for i in range(self.many_arrays)]

    @functools.cached_property
    def small_folder(self):
        """An ordinary folder of arrays of 1 KiB, each filled with its number."""
        path = self.root / "small"
        path.mkdir()
        for i, name in enumerate(self.small_names):
            np.save(path / name, np.full(256, i, np.float32))
        return path

    @functools.cached_property
    def small_store(self):
        """A store of the same arrays."""
        from numpack import NumPack

        path = self.root / "small.npk"
        with NumPack(path) as npk:
            names = enumerate(self.small_names)
            save_many(npk, {name.removesuffix(".npy"): np.full(256, i, np.float32) for i, name in names})
        os.sync()
        return path

    @functools.cache
    def store_with(self, n_arrays):
        """A store of ``n_arrays`` arrays: `rows` with 100,000 rows, the others tiny."""
        from numpack import NumPack

        path = self.root / f"store-{n_arrays}.npk"
        tiny = np.arange(16, dtype=np.float32)
        with NumPack(path) as npk:
            save_many(npk, {f"tiny{i:06}": tiny for i in range(n_arrays - 1)} | {"rows": self.data[:100_000]})
        os.sync()
        return path
