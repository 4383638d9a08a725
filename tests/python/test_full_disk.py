"""The disk is full, at each block that an operation takes: it says so, everything is as it was, and room makes it succeed."""

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_same
from counting import covered
from small_disk import small_disk

NPKFS = Path(sys.executable).parent / "npkfs"
SMALL_BLOCKS = {"block": 4096, "level": 1}
RNG = np.random.default_rng(0)
A = RNG.integers(0, 255, (40, 64), np.uint8)
# Nothing compresses it.
NOISE = RNG.integers(0, 2**60, (6, 512))
MORE = RNG.integers(0, 255, (150, 64), np.uint8)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    with small_disk(tmp_path_factory.mktemp("disk")) as disk:
        yield disk


@pytest.fixture
def store(disk):
    disk.make_room()
    disk.clear()
    return disk.path / "data.npk"


def make(numpack, path):
    with numpack.NumPack(path) as npk:
        npk.save({"a": A, "dropped": A})
        npk.save({"z": NOISE}, compress=SMALL_BLOCKS)
        npk.drop("dropped", [1, 3])
        npk.attrs_of("a")["unit"] = "s"


def batch(npk):
    with npk.batch_mode():
        npk.load("a")[:] = 7
        npk.save({"new": MORE})
        npk.append({"z": NOISE[:1]})


def batch_in_files(npk):
    with npk.batch_mode(memory_limit=0):
        npk.load("a")[:] = 7
        npk.append({"z": NOISE[:1]})


def writable_batch(npk):
    with npk.writable_batch_mode() as wb:
        wb.load("z")[:] = -NOISE


OPERATIONS = {
    "save": lambda npk: npk.save({"new": MORE}),
    "save over": lambda npk: npk.save({"a": MORE}),
    "save two": lambda npk: npk.save({"a": MORE, "z": NOISE[::-1]}),
    "save compressed": lambda npk: npk.save({"z": NOISE[::-1]}, compress=True),
    "append": lambda npk: npk.append({"a": MORE}),
    "append compressed": lambda npk: npk.append({"z": NOISE[::-1]}),
    "append to two": lambda npk: npk.append({"z": NOISE[:2], "a": MORE}),
    "replace compressed": lambda npk: npk.replace({"z": NOISE[:3] + 1}, [1, 3, 5]),
    "update": lambda npk: npk.update("dropped"),
    "recompress": lambda npk: npk.recompress("a", 9),
    "recompress to none": lambda npk: npk.recompress("z", False),
    "create": lambda npk: npk.create("new", (4, 2048), np.uint8),
    "clone": lambda npk: npk.clone("z", "new"),
    "attributes": lambda npk: npk.attrs_of("a").update({"note": "x" * 3000}),
    "batch_mode": batch,
    "batch_mode in files": batch_in_files,
    "writable_batch_mode": writable_batch,
}
# What needs no room, and must succeed when there is none.
ALWAYS = {
    "replace": lambda npk: npk.replace({"a": A[:3]}, [4, 7, 9]),
    "drop rows": lambda npk: npk.drop("a", [1, 2, 30]),
    "drop": lambda npk: npk.drop("a"),
    "flush": lambda npk: npk.flush(),
}


def contents(numpack, path):
    with numpack.NumPack(path) as npk:
        return {name: npk.load(name).copy() for name in npk}, dict(npk.attrs_of("a")) if "a" in npk else None


def assert_contents(numpack, path, expected):
    arrays, attrs = contents(numpack, path)
    assert arrays.keys() == expected[0].keys()
    for name, array in arrays.items():
        assert_same(array, expected[0][name])
    assert attrs == expected[1]


def rooms():
    """Numbers of free blocks to try, close together where the disk is nearly full."""
    return itertools.chain(range(8), itertools.count(8, 3))


def is_about_room(error):
    return error.errno == errno.ENOSPC and "make room on that disk" in str(error) and error.filename is not None


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_full_disk_at_each_block(numpack, disk, store, tmp_path, operation):
    make(numpack, tmp_path / "expected.npk")
    before = contents(numpack, tmp_path / "expected.npk")
    with numpack.NumPack(tmp_path / "expected.npk") as npk:
        operation(npk)
    after = contents(numpack, tmp_path / "expected.npk")
    for n_free in rooms():
        make(numpack, store)
        with numpack.NumPack(store) as npk:
            disk.fill(n_free)
            try:
                operation(npk)
            except OSError as raised:
                # Who keeps it must keep neither a lock nor room on the disk.
                error = raised
            else:
                error = None
            if error is None:
                assert_contents(numpack, store, after)
                break
            assert is_about_room(error), repr(error)
            covered(1, "calls of the Python API on a disk that is full")
            assert_contents(numpack, store, before)
            disk.make_room()
            operation(npk)
            del error
        assert_contents(numpack, store, after)
        left = [name for name in os.listdir(store) if name.startswith("tmp_")]
        assert left == []
        disk.clear()
    assert n_free > 0, "it took no room"


@pytest.mark.parametrize("operation", ALWAYS.values(), ids=ALWAYS)
def test_what_takes_no_room_succeeds_on_a_full_disk(numpack, disk, store, operation):
    make(numpack, store)
    with numpack.NumPack(store) as npk:
        disk.fill(0)
        operation(npk)


def test_a_new_store_on_a_full_disk(numpack, disk, store):
    for n_free in range(12):
        disk.fill(n_free)
        try:
            with numpack.NumPack(store) as npk:
                npk.save({"a": A[:1]})
            break
        except OSError as error:
            assert is_about_room(error), repr(error)
        disk.make_room()
        with numpack.NumPack(store) as npk:
            npk.save({"a": A[:1]})
            assert_same(npk.load("a"), A[:1])
        disk.clear()
    assert 0 < n_free < 11


def test_regions_of_an_array_that_takes_no_room_yet(numpack, disk, store):
    """Rows are written in place: those that there was room for are written, and no others are changed."""
    with numpack.NumPack(store) as npk:
        npk.create("a", (16, 1024), np.uint8)
        npk.write_rows("a", 0, np.full((2, 1024), 1, np.uint8))
        disk.fill(6)
        with pytest.raises(OSError) as raised:
            npk.write_rows("a", 1, np.full((12, 1024), 2, np.uint8))
        assert is_about_room(raised.value)
        rows = npk.load("a")
        assert set(np.unique(rows[0])) == {1} and set(np.unique(rows[13:])) == {0}
        assert all(len(np.unique(row)) == 1 for row in rows)
        disk.make_room()
        npk.write_rows("a", 1, np.full((12, 1024), 2, np.uint8))
        assert_same(npk.load("a")[:, 0], np.array([1] + [2] * 12 + [0] * 3, np.uint8))


def test_a_full_disk_is_no_reason_to_lose_locks_or_room(numpack, disk, store):
    """An exception that was kept, as an interactive Python keeps the last one, kept the file of the new version, and
    the lock on that of the old one: update said that another process had the lock, itself."""
    make(numpack, store)
    with numpack.NumPack(store) as npk:
        disk.fill(40)
        free = os.statvfs(disk.path).f_bavail
        kept = []
        for call in (
            lambda: npk.save({"a": MORE, "new": np.tile(MORE, (40, 1))}),
            lambda: npk.recompress("z", {"block": 4096, "level": 19}) and npk.save({"new": np.tile(MORE, (40, 1))}),
        ):
            with pytest.raises(OSError) as raised:
                call()
            kept.append(raised)
        assert os.statvfs(disk.path).f_bavail >= free - 30
        disk.fill(1)
        with pytest.raises(OSError) as raised:
            npk.update("dropped")
        kept.append(raised)
        disk.make_room()
        npk.update("dropped")
        npk.write_rows("dropped", 0, A[:1])
        npk.append({"a": MORE})
        assert len(kept) == 3


def test_pack_and_unpack(numpack, disk, store):
    make(numpack, store)
    package = disk.path / "data.npkg"
    before = sorted(os.listdir(disk.path))
    for step in (lambda: numpack.pack(store, package), lambda: numpack.unpack(package, disk.path / "copy.npk")):
        for n_free in (0, 2, 9, 20):
            disk.fill(n_free)
            with pytest.raises(OSError) as raised:
                step()
            assert is_about_room(raised.value), repr(raised.value)
            disk.make_room()
            assert sorted(os.listdir(disk.path)) == before
        step()
        before = sorted(os.listdir(disk.path))
    assert_contents(numpack, disk.path / "copy.npk", contents(numpack, store))


def test_upgrade(numpack, disk, store):
    old = Path(__file__).parents[1] / "data/upstream/0.7.0-rust/dtypes.npk"
    n_failed = 0
    for n_free in itertools.chain(range(12), itertools.count(20, 20)):
        subprocess.run(["cp", "-r", old, store], check=True)
        before = contents(numpack, store)
        disk.fill(n_free)
        try:
            numpack.upgrade(store)
        except OSError as error:
            assert is_about_room(error), repr(error)
            n_failed += 1
            assert_contents(numpack, store, before)
            disk.make_room()
            numpack.upgrade(store)
            assert_contents(numpack, store, before)
            disk.clear()
        else:
            assert_contents(numpack, store, before)
            break
    assert n_failed > 3


COMMANDS = {
    "import": ["import", "--overwrite", "{disk}/in.npy", "{store}", "--name", "a"],
    "compact": ["compact", "{store}"],
    "recompress": ["recompress", "{store}", "a"],
    "export": ["export", "{store}", "{disk}/out"],
    "repair": ["repair", "{store}"],
    "repair to": ["repair", "{store}", "--to", "{disk}/new.npk"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_say_that_the_disk_is_full(numpack, needs_native, disk, store, command):
    if not NPKFS.exists():
        pytest.skip("no npkfs next to this Python")
    make(numpack, store)
    np.save(disk.path / "in.npy", MORE)
    if command[0] == "repair":
        data = bytearray((store / "data_z.npkd").read_bytes())
        data[len(data) // 2] ^= 1
        (store / "data_z.npkd").write_bytes(data)
        before = None
    else:
        before = contents(numpack, store)
    command = [NPKFS, *(word.format(store=store, disk=disk.path) for word in command)]
    disk.fill(1)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done
    assert "No space left on device" in done.stderr and "make room on that disk" in done.stderr, done.stderr
    assert done.stderr.startswith("npkfs: ")
    if before is not None:
        assert_contents(numpack, store, before)
    disk.make_room()
    done = subprocess.run(command, capture_output=True, text=True)
    # A repair that lost rows says so.
    assert done.returncode in (0, 3), done
    assert subprocess.run([NPKFS, "verify", "--deep", store], capture_output=True).returncode == (
        3 if "--to" in command else 0
    )
