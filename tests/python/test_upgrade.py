"""`upgrade`: a store of NumPack 0.1-0.7 becomes one of this release, wholly or not at all."""

import os
import shutil

import numpy as np
import pytest
from arrays import assert_same
from conftest import BACKEND
from test_upstream import FIXTURES, IDS, contents, expected_arrays, fixture

pytestmark = pytest.mark.skipif(not FIXTURES, reason="no stores of old releases here")


def assert_upgraded(numpack, path, arrays, foreign=(), *, was_killed=False):
    """The store has these arrays, takes changes, and has no other files than it needs."""
    with numpack.NumPack(path) as npk:
        assert sorted(npk) == sorted(arrays)
        for name, array in arrays.items():
            assert_same(npk.load(name), array)
        needed = {found["data_file"] for found in npk.get_metadata()["arrays"].values()}
        files = {file.name for file in path.iterdir()}
        if was_killed:
            # A second name of the manifest is made when there is the next one; and what is a temporary of nobody's is
            # removed by the next writer who finds something that was begun.
            files = {name for name in files if not name.startswith("tmp_")} | {"metadata.npkm.bak"}
        assert files == needed | {"metadata.npkm", "metadata.npkm.bak", "metadata.npkm.lock", *foreign}
        npk.save({"new": np.arange(3)})
        assert_same(npk.load("new"), np.arange(3))


@pytest.mark.parametrize("expected", FIXTURES, ids=IDS)
def test_stores_are_upgraded_in_place(numpack, tmp_path, expected):
    path = fixture(str(expected).removesuffix(".expected.npz"), tmp_path)
    (path / "data_notes.txt").write_text("mine")
    with numpack.NumPack(path) as npk:
        before = {name: npk.get_modify_time(name) for name in npk}
        # Who has it open goes on with the new one.
        assert numpack.upgrade(path) is True
        assert {name: npk.get_modify_time(name) for name in npk} == before
        assert list(npk) == list(before)
        npk.attrs["unit"] = "m"
    assert_upgraded(numpack, path, expected_arrays(expected), ["data_notes.txt"])
    after = contents(path)
    assert numpack.upgrade(path) is False
    assert contents(path) == after


@pytest.mark.parametrize("expected", FIXTURES, ids=IDS)
def test_stores_are_upgraded_to_another_place(numpack, tmp_path, expected):
    path = fixture(str(expected).removesuffix(".expected.npz"), tmp_path)
    before = contents(path)
    assert numpack.upgrade(str(path), to=tmp_path / "new" / "store.npk", compress={"level": 3, "block": 4096}) is True
    assert contents(path).items() - {(path / "metadata.npkm.lock", b"")} == before.items()
    with numpack.NumPack(tmp_path / "new" / "store.npk") as npk:
        assert all(found["codec"]["level"] == 3 for found in npk.get_metadata()["arrays"].values())
    assert_upgraded(numpack, tmp_path / "new" / "store.npk", expected_arrays(expected))


def test_refusals_write_nothing(numpack, tmp_path):
    path = fixture("0.7.0-rust/dtypes", tmp_path)
    with numpack.NumPack(tmp_path / "full.npk") as npk:
        npk.save({"a": np.arange(3)})
    before = contents(tmp_path)
    for to in ("full.npk", "dtypes.npk"):
        with pytest.raises(FileExistsError, match="a store is already there"):
            numpack.upgrade(path, tmp_path / to)
    with pytest.raises(ValueError, match="full.npk: is of this release already; nothing was written"):
        numpack.upgrade(tmp_path / "full.npk", tmp_path / "other.npk")
    with pytest.raises(ValueError, match="level|compress"):
        numpack.upgrade(path, compress=99)
    with pytest.raises(TypeError, match="compress"):
        numpack.upgrade(path, compress="zstd")
    with pytest.raises(FileNotFoundError):
        numpack.upgrade(tmp_path / "missing.npk")
    (tmp_path / "empty").mkdir()
    with pytest.raises(numpack.NotAStoreError):
        numpack.upgrade(tmp_path / "empty")
    with pytest.raises(FileExistsError):
        numpack.upgrade(path, tmp_path / "full.npk" / "metadata.npkm")
    locks = {file for file in contents(tmp_path) if file.name.endswith(".lock")}
    assert {file: data for file, data in contents(tmp_path).items() if file not in locks} == {
        file: data for file, data in before.items() if file not in locks
    }


def test_array_that_cannot_be_read_leaves_the_old_store(numpack, tmp_path):
    path = fixture("0.7.0-rust/dropped_rows", tmp_path)
    (path / "data_vec.npkd").write_bytes(b"")
    before = contents(path)
    for to in (None, tmp_path / "new.npk"):
        with pytest.raises(numpack.CorruptStoreError, match='array "vec": data file data_vec.npkd has 0 bytes'):
            numpack.upgrade(path, to)
    assert {file for file in contents(path)} - {file for file in before} <= {next(iter(before)).with_name("metadata.npkm.lock")}
    assert not (tmp_path / "new.npk").exists()
    with numpack.NumPack(path) as npk:
        assert npk.load("untouched").shape == (3, 3)


class Killed(BaseException):
    """The end of a process, as far as a test can have it within one."""


WRITES = ("pwrite", "ftruncate", "link", "rename", "unlink", "rmdir", "fsync", "fdatasync", "utime", "fchmod")


@pytest.mark.skipif(BACKEND != "python", reason="the Rust backend is killed by tests/upstream/upgrade.rs")
@pytest.mark.parametrize("to", [False, True])
@pytest.mark.parametrize("store", ["0.7.0-rust/segmented_mutated", "0.2.0-python/dropped_array"])
def test_killed_anywhere_it_is_the_old_store_or_the_new_one(numpack, tmp_path, monkeypatch, store, to):
    arrays = expected_arrays(f"{store}.expected.npz")
    kept = fixture(store, tmp_path / "kept")
    target = tmp_path / "new.npk" if to else None
    for n in range(10_000):
        path = tmp_path / "store.npk"
        shutil.copytree(kept, path, symlinks=True)
        left = n

        def deadly(write):
            def call(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return write(*args, **kwargs)

            return call

        with monkeypatch.context() as context:
            for name in WRITES:
                context.setattr(os, name, deadly(getattr(os, name)))
            try:
                numpack.upgrade(path, target)
                is_done = True
            except Killed:
                is_done = False
        with numpack.NumPack(path) as npk:
            assert sorted(npk) == sorted(arrays), n
            for name, array in arrays.items():
                assert_same(npk.load(name), array)
        try:
            numpack.upgrade(path, target)
        except FileExistsError:
            # It was all there.
            assert to, n
        assert_upgraded(numpack, target or path, arrays, was_killed=True)
        shutil.rmtree(path)
        if to:
            shutil.rmtree(target)
        if is_done:
            break
    assert n > 20
