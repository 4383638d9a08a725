"""`pack`, `unpack`, `get_package_info`: a store as one file, in the format of NumPack 0.5 to 0.7."""

import os
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_same

from numpack import _package

UPSTREAM = Path(__file__).resolve().parents[1] / "data" / "upstream" / "0.7.0-rust"
A = np.arange(12.0).reshape(4, 3)
RANDOM = np.frombuffer(np.random.default_rng(0).bytes(3_000_000), np.uint8)
ARRAYS = {"a": A, "run/größe": np.arange(300_000), "random": RANDOM, "empty": A[:0], "0-d": np.array(3)}


@pytest.fixture
def store(numpack, path):
    """A closed store with arrays of all kinds."""
    with numpack.NumPack(path) as npk:
        npk.save(ARRAYS)
        npk.save({"zipped": ARRAYS["run/größe"]}, compress=True)
        npk.save({"short": A})
        npk.drop("short", [0, 2])
        npk.append({"zipped": ARRAYS["run/größe"][:10]})
        npk.attrs["made"] = "here"
    return path


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def assert_is_the_store(numpack, path):
    with numpack.NumPack(path) as npk:
        for name, array in ARRAYS.items():
            assert_same(npk.load(name), array)
        assert_same(npk.load("zipped"), np.concatenate([ARRAYS["run/größe"], ARRAYS["run/größe"][:10]]))
        assert_same(npk.load("short"), A[[1, 3]])
        assert len(npk) == 7 and npk.attrs["made"] == "here"
        assert npk.get_metadata()["arrays"]["zipped"]["codec"] is not None
        npk.append({"a": A})
        assert len(npk.load("a")) == 8


@pytest.mark.parametrize("compression", [True, False])
def test_packed_store_comes_back(numpack, store, tmp_path, compression):
    before = files_of(store)
    package = numpack.pack(store, compression=compression)
    assert package == store.with_name("data.npk.npkg") and package.is_file()
    assert {name: data for name, data in files_of(store).items() if not name.endswith(".lock")} == {
        name: data for name, data in before.items() if not name.endswith(".lock")
    }
    target = tmp_path / "elsewhere" / "copy.npk"
    assert numpack.unpack(str(package), str(target)) == target
    assert_is_the_store(numpack, target)
    assert sorted(os.listdir(tmp_path)) == ["data.npk", "data.npk.npkg", "elsewhere"]
    assert os.listdir(target.parent) == ["copy.npk"]


def test_default_names(numpack, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert numpack.pack("data.npk") == Path("data.npk.npkg")
    with pytest.raises(FileExistsError):
        numpack.unpack("data.npk.npkg")
    Path("data.npk").rename("old")
    assert numpack.unpack("data.npk.npkg") == Path("data.npk")
    assert_is_the_store(numpack, "data.npk")
    monkeypatch.chdir("old")
    assert numpack.pack(".").name == "old.npkg"
    Path("package").write_bytes(b"")
    with pytest.raises(ValueError, match="target="):
        numpack.unpack("package")


def test_zlib_is_used_where_there_is_no_zstd(numpack, store, tmp_path, monkeypatch):
    monkeypatch.setattr(_package, "zstd", None)
    package = numpack.pack(store)
    info = numpack.get_package_info(package)
    assert info["compression_name"] == "zlib"
    assert_is_the_store(numpack, numpack.unpack(package, tmp_path / "copy.npk"))
    with pytest.raises(NotImplementedError, match="pip install backports.zstd"):
        numpack.unpack(UPSTREAM / "package_zstd.npkg", tmp_path / "zstd.npk")
    assert not (tmp_path / "zstd.npk").exists()


def test_info(numpack, store):
    package = numpack.pack(store)
    info = numpack.get_package_info(package)
    assert info["version"] == 2 and info["compression"] is True and info["compression_name"] in ("zstd", "zlib")
    assert info["package_size"] == package.stat().st_size
    files = {file["name"]: file for file in info["files"]}
    assert info["file_count"] == len(files) == 8 and "metadata.npkm" in files
    assert files["data_random.npkd"]["original_size"] == (store / "data_random.npkd").stat().st_size
    assert info["total_original_size"] == sum(file["original_size"] for file in files.values())
    assert info["total_compressed_size"] == sum(file["compressed_size"] for file in files.values())
    assert info["compression_ratio"] == info["total_original_size"] / info["total_compressed_size"] > 1
    assert all(file["compressed_size"] <= file["original_size"] for file in files.values())
    info = numpack.get_package_info(numpack.pack(store, store.with_name("plain"), compression=False))
    assert info["compression"] is False and info["compression_name"] == "none" and info["compression_ratio"] == 1


def independent_reading(package):
    """What a package holds, read without numpack."""
    data, at = package.read_bytes(), 13
    magic, version, _, n_files = struct.unpack_from("<4sIBI", data)
    assert (magic, version) == (b"NPKG", 2)
    found, checksum = {}, 0
    for _ in range(n_files):
        (name_len,) = struct.unpack_from("<I", data, at)
        name = data[at + 4 : at + 4 + name_len].decode()
        file_len, packed_len = struct.unpack_from("<QQ", data, at + 4 + name_len)
        at += 20 + name_len
        stored = data[at : at + (packed_len or file_len)]
        at += len(stored)
        if packed_len and stored[:4] == b"\x28\xb5\x2f\xfd":
            stored = _package.zstd.decompress(stored)
        elif packed_len:
            stored = zlib.decompress(stored)
        assert len(stored) == file_len
        found[name] = stored
        checksum = zlib.crc32(struct.pack("<I", zlib.crc32(stored)), checksum)
    assert data[at:] == struct.pack("<I", checksum)
    return found


def test_format_is_that_of_upstream(numpack, store):
    found = independent_reading(numpack.pack(store))
    here = files_of(store)
    assert found == {name: here[name] for name in found}


@pytest.mark.parametrize("kind", ["none", "zlib", "zstd"])
def test_packages_of_upstream_unpack(numpack, tmp_path, kind):
    if kind == "zstd" and _package.zstd is None:
        pytest.skip("no zstd in this Python")
    package = UPSTREAM / f"package_{kind}.npkg"
    info = numpack.get_package_info(package)
    assert info["compression_name"] == kind and info["file_count"] == 4
    target = numpack.unpack(package, tmp_path / "data.npk")
    assert files_of(target) == independent_reading(package)
    # Packed again, they are the same; without compression byte for byte, whose files come in the order of their names.
    again = numpack.pack(target, compression=False)
    assert again.read_bytes() == (UPSTREAM / "package_none.npkg").read_bytes()


def package_of(files, version=2, magic=b"NPKG", checksum=None, n_files=None):
    """A package with these names and contents; a content may be a tuple of its two lengths and the bytes."""
    data, folded = struct.pack("<4sIBI", magic, version, 1, len(files) if n_files is None else n_files), 0
    for name, content in files:
        file_len, packed_len, stored = content if isinstance(content, tuple) else (len(content), 0, content)
        data += struct.pack("<I", len(name)) + name + struct.pack("<QQ", file_len, packed_len) + stored
        folded = zlib.crc32(struct.pack("<I", zlib.crc32(stored)), folded)
    return data + struct.pack("<I", folded if checksum is None else checksum)


M = (b"metadata.npkm", b"x")
BAD = {
    "empty": (b"", "does not begin with NPKG"),
    "other magic": (package_of([M], magic=b"PK\3\4"), "does not begin with NPKG"),
    "other version": (package_of([M], version=3), "version 3"),
    "other checksum": (package_of([M], checksum=5), "damaged"),
    "no manifest": (package_of([(b"data_a.npkd", b"x")]), "no metadata.npkm"),
    "no files": (package_of([]), "no metadata.npkm"),
    "parent": (package_of([M, (b"../evil", b"x")]), "would not be in the store's directory"),
    "absolute": (package_of([M, (b"/tmp/evil", b"x")]), "would not be in the store's directory"),
    "folder": (package_of([M, (b"a/b", b"x")]), "would not be in the store's directory"),
    "dots": (package_of([M, (b"..", b"x")]), "would not be in the store's directory"),
    "dot": (package_of([M, (b".", b"x")]), "would not be in the store's directory"),
    "NUL": (package_of([M, (b"a\0b", b"x")]), "would not be in the store's directory"),
    "no name": (package_of([M, (b"", b"x")]), "name of 0 bytes"),
    "long name": (package_of([M, (b"x" * 256, b"x")]), "name of 256 bytes"),
    "same name": (package_of([M, M]), "two files"),
    "too many files": (package_of([M], n_files=2**32 - 1), "cut off|name of"),
    "endless file": (package_of([(M[0], (2**63, 0, b"x"))]), "cut off"),
    "endless packed file": (package_of([(M[0], (9, 2**63, b"x"))]), "cut off"),
    "too long": (package_of([(M[0], (9, 11, zlib.compress(b"xxx")))]), "3 bytes, expected 9"),
    "bomb": (package_of([(M[0], (9, len(z := zlib.compress(bytes(10**8))), z))]), "more bytes, expected 9"),
    "no zlib": (package_of([(M[0], (9, 5, b"abcde"))]), "cannot be decompressed"),
    "bytes after the end": (package_of([M]) + b"x", "1 bytes after its end"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_bad_packages_are_refused_and_leave_nothing(numpack, tmp_path, data, message):
    package = tmp_path / "bad.npkg"
    package.write_bytes(data)
    with pytest.raises(numpack.PackageError, match=message) as raised:
        numpack.unpack(package, tmp_path / "in" / "bad")
    assert isinstance(raised.value, ValueError) and isinstance(raised.value, RuntimeError)
    assert str(package) in str(raised.value)
    assert sorted(os.listdir(tmp_path)) in (["bad.npkg"], ["bad.npkg", "in"])
    assert not (tmp_path / "in").exists() or os.listdir(tmp_path / "in") == []


def test_every_cut_is_noticed(numpack, tmp_path):
    data = package_of([M, (b"data_a.npkd", b"0123456789")])
    package = tmp_path / "cut.npkg"
    for length in range(len(data)):
        package.write_bytes(data[:length])
        for call in (lambda: numpack.unpack(package, tmp_path / "x"), lambda: numpack.get_package_info(package)):
            with pytest.raises(numpack.PackageError):
                call()
    package.write_bytes(data)
    assert numpack.get_package_info(package)["file_count"] == 2


def test_every_flipped_byte_of_the_contents_is_noticed(numpack, tmp_path):
    with numpack.NumPack(tmp_path / "s") as npk:
        npk.save({"a": A})
    for compression in (True, False):
        package = numpack.pack(tmp_path / "s", tmp_path / "p", compression, overwrite=True)
        data = package.read_bytes()
        for at in range(13, len(data), 1 if compression else 7):
            package.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
            try:
                target = numpack.unpack(package, tmp_path / "x")
            except ValueError:
                assert not (tmp_path / "x").exists()
            else:
                # The name of a file has no checksum: it is another file, or the same with a part that says nothing.
                packed = files_of(tmp_path / "s")
                expected = [packed["data_a.npkd"], packed["metadata.npkm"]]
                assert sorted(files_of(target).values()) == sorted(expected)
                for file in target.iterdir():
                    file.unlink()
                target.rmdir()


def test_damage_is_passed_over_when_asked_for(numpack, tmp_path):
    package = tmp_path / "p.npkg"
    package.write_bytes(package_of([M], checksum=1))
    target = numpack.unpack(package, verify=False)
    assert files_of(target) == {"metadata.npkm": b"x"}


def test_missing_and_wrong_sources(numpack, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for source in ("missing", "folder", "file"):
        with pytest.raises(ValueError, match=source):
            numpack.pack(tmp_path / source)
    for call in (numpack.unpack, numpack.get_package_info):
        for source in ("missing.npkg", "folder"):
            with pytest.raises(ValueError, match=source):
                call(tmp_path / source)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_targets_that_are_there(numpack, store, tmp_path):
    package = numpack.pack(store)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        numpack.pack(store)
    package.write_text("old")
    assert numpack.pack(store, overwrite=True) == package
    other = tmp_path / "other.npk"
    with numpack.NumPack(other) as npk:
        npk.save({"old": A, "a": A})
        (other / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            numpack.unpack(package, other)
        lazy = npk.load("old", lazy=True)
        numpack.unpack(package, other, overwrite=True)
        # Who had it open keeps it.
        assert_same(lazy[:], A)
    assert (other / "notes.txt").read_text() == "mine"
    assert_is_the_store(numpack, other)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    for target in (folder, package):
        with pytest.raises(FileExistsError, match="no store"):
            numpack.unpack(package, target, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_damaged_package_leaves_the_store_that_it_should_replace(numpack, store, tmp_path):
    package = tmp_path / "bad.npkg"
    package.write_bytes(package_of([M], checksum=1))
    with pytest.raises(RuntimeError):
        numpack.unpack(package, store, overwrite=True)
    assert_is_the_store(numpack, store)


def test_package_is_consistent_while_others_write(numpack, path, tmp_path):
    """Two arrays grow by the same rows in each commit, and another is replaced; every package has them equally long."""
    code = f"""
        import numpy as np, sys
        from numpack import NumPack
        with NumPack({str(path)!r}) as npk:
            npk.save({{"a": np.zeros(0), "b": np.zeros(0)}})
            npk.save({{"c": np.zeros((100, 100)), "d": np.zeros(1)}}, compress={{"block": 4096}})
            n = 0
            while True:
                n += 1
                npk.append({{"a": np.full(1, n), "b": np.full(1, n)}})
                npk.replace({{"c": np.full((1, 100), float(n))}}, n % 100)
                npk.save({{"d": np.full(1, n), "e": np.full(1, n)}})
                if n == 10:
                    print("begun", flush=True)
    """
    code = textwrap.dedent(code).replace("np.full(1, n)", "np.full(1, float(n))")
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "begun\n"
        lengths = []
        for n in range(12):
            package = numpack.pack(path, tmp_path / f"{n}.npkg")
            with numpack.NumPack(numpack.unpack(package, tmp_path / f"{n}.npk")) as npk:
                a = npk.load("a")
                assert_same(a, np.arange(1.0, len(a) + 1))
                assert_same(npk.load("b"), a)
                assert npk.load("c").max() in (len(a), len(a) - 1)
                assert npk.load("d") == npk.load("e")
                assert npk.load("d")[0] in (len(a), len(a) - 1)
                lengths.append(len(a))
        assert lengths == sorted(lengths) and len(set(lengths)) > 1
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_writer_goes_on_after_packing(numpack, store, tmp_path):
    """In the same process too: packing gives the lock back."""
    with numpack.NumPack(store) as npk:
        done = threading.Event()
        thread = threading.Thread(target=lambda: (numpack.pack(store), done.set()))
        thread.start()
        while not done.is_set():
            npk.append({"short": A})
        thread.join()
        npk.save({"after": A})
        assert "after" in npk


def test_what_a_dead_writer_left_is_left_out(numpack, store):
    (store / "data_orphan.npkd").write_bytes(b"left behind")
    (store / "notes.txt").write_text("mine")
    names = {file["name"] for file in numpack.get_package_info(numpack.pack(store))["files"]}
    assert "metadata.npkm" in names and not names & {"data_orphan.npkd", "notes.txt", "metadata.npkm.lock"}


def test_holes_stay_holes(numpack, path, tmp_path):
    """An array of zeros that was never written takes no room in the copy from which the package is made."""
    with numpack.NumPack(path) as npk:
        npk.create("zeros", (1 << 26,), np.uint8)
        npk.write_rows("zeros", 1 << 25, np.ones(1, np.uint8))
    copy = tmp_path / "copy"
    copy.mkdir()
    _package._copy_store(path, copy)
    (data,) = copy.glob("data_*")
    assert data.stat().st_blocks * 512 < 1 << 20
    target = numpack.unpack(numpack.pack(path), tmp_path / "again.npk")
    with numpack.NumPack(target) as npk:
        assert np.flatnonzero(npk.load("zeros")).tolist() == [1 << 25]


def test_memory_is_bounded(tmp_path):
    """Packing and unpacking 128 MiB takes 40 MiB at most beyond what the interpreter has."""
    code = f"""
        import numpy as np, numpack, pathlib
        def anonymous():
            return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
        path = pathlib.Path({str(tmp_path / "x.npk")!r})
        with numpack.NumPack(path) as npk:
            npk.create("a", (1 << 27,), np.uint8)
            for at in range(0, 1 << 27, 1 << 24):
                npk.write_rows("a", at, np.random.default_rng(at).integers(0, 99, 1 << 22, np.uint8))
        before = anonymous()
        package = numpack.pack(path)
        assert anonymous() - before < 40 << 10
        numpack.unpack(package, path.with_name("y.npk"))
        assert anonymous() - before < 40 << 10
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_arrays_in_several_files_are_refused(numpack, tmp_path):
    old = tmp_path / "old.npk"
    (old / "data_a_segments").mkdir(parents=True)
    (old / "metadata.npkm").write_bytes(b"NPKB")
    with pytest.raises(NotImplementedError, match="npkfs upgrade"):
        numpack.pack(old)
    assert os.listdir(tmp_path) == ["old.npk"]
