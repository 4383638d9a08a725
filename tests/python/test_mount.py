"""NumPy and the standard library make arrays through a mount, and numpack finds them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

NPKFS = Path(sys.executable).parent / "npkfs"


@pytest.fixture(params=["auto,compress=off", "off,compress=off", "auto,compress=zstd", "off,compress=zstd"])
def mnt(request, can_mount, numpack, path, tmp_path):
    """A mounted store, with and without passthrough and compression."""
    numpack.NumPack(path).close()
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    with numpack.NumPack(path) as npk:
        npk.save({"old": np.arange(5)})
    subprocess.run([NPKFS, "mount", "-q", "-o", f"passthrough={request.param}", path, mnt], check=True)
    try:
        yield mnt
        subprocess.run([NPKFS, "umount", mnt], check=True)
    finally:
        if os.path.ismount(mnt):
            subprocess.run([NPKFS, "umount", "--lazy", mnt])


ARRAYS = {
    "float32": np.linspace(0, 1, 6000, dtype=np.float32).reshape(60, 100),
    "fortran": np.asfortranarray(np.arange(600).reshape(20, 30)),
    "big_endian": np.arange(1000, dtype=">i4"),
    "structured": np.array([(1, 2.5, "x"), (2, 3.5, "yy")], dtype=[("a", "<i2"), ("b", "<f8"), ("c", "<U3")]),
    "zero_d": np.array(7.5),
    "empty": np.zeros((0, 3)),
    "bools": np.arange(100) % 3 == 0,
    "dates": np.arange("2020-01", "2021-01", dtype="datetime64[D]"),
}


def test_save_makes_arrays(mnt, numpack, path):
    for name, array in ARRAYS.items():
        for _ in range(2):
            np.save(mnt / name, array)
            np.testing.assert_array_equal(np.load(mnt / f"{name}.npy"), array)
            with numpack.NumPack(path) as npk:
                np.testing.assert_array_equal(npk.load(name), array)
    assert sorted(os.listdir(mnt)) == sorted(f"{name}.npy" for name in [*ARRAYS, "old"])


def test_save_of_what_numpy_reserves_space_for(mnt, numpack, path):
    array = np.random.default_rng(0).standard_normal((2100, 1000))  # over 16 MiB
    np.save(mnt / "a.npy", array)
    mapped = np.load(mnt / "a.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped, array)
    np.save(mnt / "a.npy", -array)
    np.testing.assert_array_equal(mapped, array)
    with numpack.NumPack(path) as npk:
        np.testing.assert_array_equal(npk.load("a"), -array)


def test_open_memmap_makes_arrays(mnt, numpack, path):
    for name in ["new", "old"]:
        file = mnt / f"{name}.npy"
        array = np.lib.format.open_memmap(file, mode="w+", dtype=np.int64, shape=(300, 1000))
        for row in range(300):
            array[row] = row
            if row % 100 == 0:
                array.flush()
        del array
        expected = np.repeat(np.arange(300), 1000).reshape(300, 1000)
        np.testing.assert_array_equal(np.load(file), expected)
        again = np.load(file, mmap_mode="r+")
        again[5] = -1
        again.flush()
        expected[5] = -1
        np.testing.assert_array_equal(np.load(file), expected)


def test_what_pickle_would_read_is_refused(mnt, numpack, path):
    with pytest.raises(OSError, match="Invalid argument"):
        np.save(mnt / "old.npy", np.array([None, {}]), allow_pickle=True)
    with numpack.NumPack(path) as npk:
        np.testing.assert_array_equal(npk.load("old"), np.arange(5))
    os.remove(mnt / "old.npy")
    assert os.listdir(mnt) == []


def test_shutil_copies_and_moves(mnt, numpack, path, tmp_path):
    source = tmp_path / "source"
    (source / "g").mkdir(parents=True)
    for name, array in ARRAYS.items():
        np.save(source / "g" / name, array)
    shutil.copyfile(source / "g/float32.npy", mnt / "copied.npy")
    shutil.copy2(source / "g/float32.npy", mnt / "copied2.npy")
    assert os.stat(mnt / "copied2.npy").st_mtime == os.stat(source / "g/float32.npy").st_mtime
    shutil.copytree(source, mnt / "tree")
    shutil.move(mnt / "copied.npy", mnt / "tree" / "moved.npy")
    shutil.move(source / "g/bools.npy", mnt / "bools.npy")
    for name in os.listdir(source / "g"):
        assert (mnt / "tree/g" / name).read_bytes() == (source / "g" / name).read_bytes()
    with numpack.NumPack(path) as npk:
        assert {"old", "copied2", "bools", "tree/moved", "tree/g/dates"} <= set(npk)
    shutil.rmtree(mnt / "tree")
    with numpack.NumPack(path) as npk:
        assert set(npk) == {"old", "copied2", "bools"}


def test_what_is_written_in_place_shows_in_the_mount(mnt, numpack, path):
    array = np.arange(300_000.0).reshape(3000, 100)
    with numpack.NumPack(path) as npk:
        npk.save({"a": array})
        npk.save({"compressed": array}, compress=True)
        npk.create("new", array.shape)
        # What the kernel keeps of a file from now on is out of date with each write.
        mapped = {name: np.load(mnt / f"{name}.npy", mmap_mode="r") for name in ("a", "compressed", "new")}
        assert all(found.sum() == npk.load(name).sum() for name, found in mapped.items())

        for row, name in enumerate(mapped):
            npk.write_rows(name, row, array[100:200])
            assert_shown(mnt, npk, name)

        for name in ("a", "new"):
            view = npk._map(name)
            view[1000:1010] = -1
            npk._write_back(name, 0, view)
            assert_shown(mnt, npk, name)
            view[1500:1510] = -2
            npk.flush()
            assert_shown(mnt, npk, name)
        changed = npk.load("compressed")
        changed[2999] = -3
        npk._write_back("compressed", 0, changed)
        assert_shown(mnt, npk, "compressed")
        npk.clone("compressed", "copy")
        assert_shown(mnt, npk, "copy")


def assert_shown(mnt, npk, name):
    """Assert that a file of the mount has what the array has."""
    np.testing.assert_array_equal(np.load(mnt / f"{name}.npy"), npk.load(name))
