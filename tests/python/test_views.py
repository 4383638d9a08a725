"""NumPy, zipfile and safetensors read all arrays of a store from one file of a mount."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

NPKFS = Path(sys.executable).parent / "npkfs"

ARRAYS = {
    "float32": np.linspace(0, 1, 60_000, dtype=np.float32).reshape(600, 100),
    "g/h/int64": np.arange(100_000),
    "half": np.linspace(0, 1, 777).astype(np.float16),
    "big_endian": np.arange(10_001, dtype=">i4").reshape(73, 137),
    "bools": np.arange(100) % 3 == 0,
    "zero_d": np.array(7.5),
    "empty": np.zeros((0, 3)),
    "small": np.arange(3, dtype=np.uint8),
}
NOT_IN_SAFETENSORS = {
    "fortran": np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
    "structured": np.array([(1, 2.5, "x"), (2, 3.5, "yy")], dtype=[("a", "<i2"), ("b", "<f8"), ("c", "<U3")]),
    "dates": np.arange("2020-01", "2021-01", dtype="datetime64[D]"),
    "names": np.array(["a", "bcd"]),
    "complex": np.arange(5) * 1j,
}


@pytest.fixture(params=["auto", "off"])
def views(request, can_mount, numpack, path, tmp_path):
    """The folder of views of a mounted store of all arrays, plain and compressed ones, with and without passthrough."""
    with numpack.NumPack(path) as npk:
        for number, (name, array) in enumerate((ARRAYS | NOT_IN_SAFETENSORS).items()):
            npk.save({name: array}, compress=number % 2 == 1)
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    subprocess.run([NPKFS, "mount", "-q", "-o", f"passthrough={request.param}", path, mnt], check=True)
    try:
        yield mnt / ".views"
        subprocess.run([NPKFS, "umount", mnt], check=True)
    finally:
        if os.path.ismount(mnt):
            subprocess.run([NPKFS, "umount", "--lazy", mnt])


@pytest.fixture
def safetensors():
    """The package, with its loader for NumPy."""
    pytest.importorskip("safetensors.numpy")
    return sys.modules["safetensors"]


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_load_of_all_npz(views):
    with np.load(views / "all.npz") as loaded:
        assert loaded.files == [*ARRAYS, *NOT_IN_SAFETENSORS]
        for name, array in (ARRAYS | NOT_IN_SAFETENSORS).items():
            assert_same(loaded[name], array)
        assert loaded["fortran"].flags.f_contiguous
    # Backwards, each from a file that is opened for it.
    for name, array in reversed((ARRAYS | NOT_IN_SAFETENSORS).items()):
        with np.load(views / "all.npz") as loaded:
            assert_same(loaded[name], array)


def test_zipfile_finds_nothing_wrong(views, tmp_path):
    with zipfile.ZipFile(views / "all.npz") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{name}.npy" for name in [*ARRAYS, *NOT_IN_SAFETENSORS]]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        archive.extractall(tmp_path / "out")
    assert_same(np.load(tmp_path / "out/g/h/int64.npy", mmap_mode="r"), ARRAYS["g/h/int64"])


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_finds_nothing_wrong(views):
    subprocess.run(["unzip", "-tq", views / "all.npz"], check=True, stdout=subprocess.DEVNULL)


def test_elements_begin_with_pages(views):
    with zipfile.ZipFile(views / "all.npz") as archive, open(views / "all.npz", "rb") as file:
        info = archive.getinfo("g/h/int64.npy")
        file.seek(info.header_offset + 26)
        name_len, extra_len = np.frombuffer(file.read(4), "<u2")
        file.seek(int(name_len) + int(extra_len), os.SEEK_CUR)
        start = file.tell() + info.file_size - ARRAYS["g/h/int64"].nbytes
    assert start % 4096 == 0
    mapped = np.memmap(views / "all.npz", np.int64, "r", offset=start, shape=ARRAYS["g/h/int64"].shape)
    assert_same(np.asarray(mapped), ARRAYS["g/h/int64"])


def test_safetensors_loads_what_it_knows(views, safetensors):
    loaded = safetensors.numpy.load_file(views / "all.safetensors")
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert_same(loaded[name], array.astype(array.dtype.newbyteorder("=")))
    assert_same(safetensors.numpy.load((views / "all.safetensors").read_bytes())["half"], ARRAYS["half"])


def test_safetensors_maps_and_slices(views, safetensors):
    with safetensors.safe_open(views / "all.safetensors", "np") as file:
        assert set(file.keys()) == ARRAYS.keys()
        assert_same(file.get_tensor("g/h/int64"), ARRAYS["g/h/int64"])
        assert_same(file.get_slice("float32")[100:102, 5:9], ARRAYS["float32"][100:102, 5:9])
        left_out = file.metadata()["npk.left_out"]
    assert all(f'"{name}"' in left_out for name in NOT_IN_SAFETENSORS)


def test_raw_has_the_elements(views):
    for name, array in (ARRAYS | NOT_IN_SAFETENSORS).items():
        file = views / f"{name}.raw"
        assert file.stat().st_size == array.nbytes
        order = "F" if array.flags.f_contiguous else "C"
        assert file.read_bytes() == array.tobytes(order)
        if array.size > 1:
            assert_same(np.memmap(file, array.dtype, "r", 0, array.shape, order), array)


def test_views_follow_what_is_saved(views, numpack, path):
    opened = np.load(views / "all.npz")
    with numpack.NumPack(path) as npk:
        npk.save({"new": np.arange(5), "half": np.zeros(3)})
        npk.append({"g/h/int64": np.arange(7)})
        npk.drop("bools")
        for name in npk:
            assert_same(np.load(views / "all.npz")[name], npk.load(name))
            assert (views / f"{name}.raw").read_bytes() == npk.load(name).tobytes("A")
        assert set(np.load(views / "all.npz").files) == set(npk)
    for name, array in (ARRAYS | NOT_IN_SAFETENSORS).items():
        assert_same(opened[name], array)
    opened.close()


def test_copies_of_a_mount_have_no_views(views, tmp_path):
    mnt = views.parent
    assert ".views" not in os.listdir(mnt)
    shutil.copytree(mnt, tmp_path / "copy")
    found = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert found == {f"{name}.npy" for name in ARRAYS | NOT_IN_SAFETENSORS}
