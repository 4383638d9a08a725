"""The disk fails to read, or becomes read-only, under a store and a mount that are in use."""

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_same
from conftest import why_no_mount
from small_disk import small_disk

NPKFS = Path(sys.executable).parent / "npkfs"
A = np.arange(100.0)
NOISE = np.random.default_rng(0).random(5 << 17)


def assert_fails(number, call):
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno == number, raised.value
    return raised.value


@pytest.fixture(params=[None, "passthrough=auto", "passthrough=off"], ids=["API", "passed through", "cached"])
def mount(request, tmp_path):
    """A function that mounts a store, if the test is about mounts, and returns where."""
    mnt = tmp_path / "mnt"
    if request.param is not None and (why := why_no_mount()):
        pytest.skip(why)

    def mount(path):
        if request.param is None:
            return None
        mnt.mkdir()
        subprocess.run([NPKFS, "mount", "-q", "-o", request.param, path, mnt], check=True)
        return mnt

    yield mount
    if mnt.is_dir():
        assert subprocess.run([NPKFS, "umount", mnt]).returncode == 0


def test_a_disk_that_becomes_read_only(numpack, tmp_path, mount):
    """Arrays that were not open yet could not be read any more: data files were opened to be written, or not at all."""
    with small_disk(tmp_path, options="loop,errors=remount-ro") as disk:
        path = disk.path / "data.npk"
        npk = numpack.NumPack(path)
        npk.open()
        npk.save({"a": A, "b": A + 1})
        npk.save({"z": A}, compress=True)
        npk.flush()
        npk.append({"a": A})
        mnt = mount(path)
        if mnt is not None:
            written, mapped = open(mnt / "a.npy", "r+b", 0), np.load(mnt / "z.npy", mmap_mode="r+")
            made = open(mnt / "new.npy", "wb", 0)
            mapped[3] = -1
        disk.fail()
        for name, expected in {"a": np.append(A, A), "b": A + 1, "z": A}.items():
            assert_same(npk.load(name), expected)
            assert_same(np.asarray(npk.load(name, lazy=True)), expected)
        for call in (
            lambda: npk.append({"b": A}),
            lambda: npk.save({"c": A}),
            lambda: npk.replace({"b": A[:1]}, 2),
            lambda: npk.replace({"z": A[:1]}, 2),
            lambda: npk.drop("b", 3),
            lambda: npk.drop("b"),
            lambda: npk.write_rows("b", 0, A[:1]),
            lambda: npk.attrs.update({"x": 1}),
        ):
            error = assert_fails(errno.EROFS, call)
            assert str(path) in error.filename and "read-only after an error" in str(error), error
        # Nothing is claimed to be on the disk.
        assert_fails(errno.EROFS, npk.flush)
        with numpack.NumPack(path) as other:
            assert_same(other.load("b"), A + 1)
            with pytest.raises(numpack.ReadOnlyError):
                other.save({"c": A})
        if mnt is not None:
            assert_same(np.load(mnt / "b.npy"), A + 1)
            assert_same(np.load(mnt / "a.npy"), np.append(A, A))
            assert np.load(mnt / "z.npy")[3] == -1, "what was written stays, as long as it is open"
            for call in (
                mapped.flush,
                lambda: os.pwrite(written.fileno(), b"12345678", 4096),
                lambda: os.pwrite(written.fileno(), b"12345678", 4096 + 1600),
                lambda: made.write(b"abc"),
                lambda: np.save(mnt / "c.npy", A),
                lambda: os.unlink(mnt / "b.npy"),
                lambda: os.rename(mnt / "b.npy", mnt / "c.npy"),
            ):
                assert_fails(errno.EROFS, call)
            written.close()
            made.close()
            del mapped
            # What was raised refers to itself, and to what it was raised in.
            gc.collect()
        npk.close()
        if mnt is not None:
            assert subprocess.run([NPKFS, "umount", mnt]).returncode == 0
            mnt.rmdir()
        if NPKFS.exists():
            assert subprocess.run([NPKFS, "verify", "--deep", path]).returncode == 0


def test_a_disk_that_does_not_read(numpack, tmp_path, mount):
    with small_disk(tmp_path, mib=24) as disk:
        path = disk.path / "data.npk"
        with numpack.NumPack(path) as npk:
            npk.save({"small": A, "a": NOISE})
            npk.save({"z": NOISE}, compress=True)
            npk.flush()
        mnt = mount(path)
        disk.forget(path)
        with numpack.NumPack(path) as npk:
            assert_same(npk.load("small"), A)
            with disk.cut(3 << 20):
                calls = [
                    lambda: npk.load("a"),
                    lambda: npk.load("z"),
                    lambda: npk.load("z", rows=slice(5, None)),
                    lambda: npk.getitem("z", [7, -7]),
                    lambda: [*npk.stream_load("a")],
                    lambda: npk.recompress("a", True),
                    lambda: npk.recompress("z", False),
                ]
                for call in calls:
                    error = assert_fails(errno.EIO, call)
                    assert str(path) in error.filename and "the disk may be failing" in str(error), error
                assert_same(npk.load("small"), A)
                npk.append({"small": A})
                if mnt is not None:
                    for name in ("a", "z"):
                        assert_fails(errno.EIO, (mnt / f"{name}.npy").read_bytes)
                if NPKFS.exists():
                    done = subprocess.run([NPKFS, "verify", "--deep", path], capture_output=True, text=True)
                    assert done.returncode == 3 and 'damaged: array "z"' in done.stdout, done
            # Nothing that could not be read was taken for something else.
            assert_same(npk.load("a"), NOISE)
            assert_same(npk.load("z"), NOISE)
            assert_same(npk.load("small"), np.append(A, A))
            if mnt is not None:
                for name in ("a", "z"):
                    assert_same(np.load(mnt / f"{name}.npy"), NOISE)
                assert subprocess.run([NPKFS, "umount", mnt]).returncode == 0
                mnt.rmdir()
