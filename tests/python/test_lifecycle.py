"""Opening and closing a store, and what may be where it shall be."""

import gc
import os
import resource
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest

A = np.arange(12.0).reshape(4, 3)
NOBODY = 65534


def test_nothing_is_touched_before_open(numpack, tmp_path):
    path = tmp_path / "x" / "y" / "data.npk"
    npk = numpack.NumPack(path)
    assert npk.is_closed and not npk.is_opened
    assert not (tmp_path / "x").exists()
    npk.open()
    assert npk.is_opened and not npk.is_closed
    assert path.is_dir()
    npk.close()


@pytest.mark.parametrize("make", [str, os.fspath, lambda path: path], ids=["str", "fspath", "Path"])
def test_path_may_be_str_or_path(numpack, path, make):
    with numpack.NumPack(make(path)) as npk:
        npk.save({"a": A})
    assert path.is_dir()


def test_open_and_close_may_be_called_twice_and_again(numpack, path):
    npk = numpack.NumPack(path)
    npk.close()
    for n in range(20):
        npk.open()
        npk.open()
        npk.save({f"a{n}": A + n})
        npk.append({"a0": A[:1]})
        npk.close()
        npk.close()
    npk.open()
    assert np.array_equal(npk.getitem("a0", slice(4, None)), np.repeat(A[:1], 20, axis=0))
    npk.drop("a0", slice(4, None))
    assert npk.get_member_list() == [f"a{n}" for n in range(20)]
    for n in range(20):
        assert np.array_equal(npk.load(f"a{n}"), A + n)


CALLS = {
    "save": lambda npk: npk.save({"a": A}),
    "load": lambda npk: npk.load("a"),
    "load lazily": lambda npk: npk.load("a", lazy=True),
    "append": lambda npk: npk.append({"a": A}),
    "replace": lambda npk: npk.replace({"a": A[:1]}, 0),
    "drop": lambda npk: npk.drop("a"),
    "drop rows": lambda npk: npk.drop("a", 0),
    "getitem": lambda npk: npk.getitem("a", 0),
    "get_shape": lambda npk: npk.get_shape("a"),
    "get_shape of all": lambda npk: npk.get_shape(),
    "get_member_list": lambda npk: npk.get_member_list(),
    "get_metadata": lambda npk: npk.get_metadata(),
    "get_modify_time": lambda npk: npk.get_modify_time("a"),
    "has_array": lambda npk: npk.has_array("a"),
    "reset": lambda npk: npk.reset(),
    "update": lambda npk: npk.update("a"),
    "recompress": lambda npk: npk.recompress("a"),
    "stream_load": lambda npk: npk.stream_load("a"),
    "create": lambda npk: npk.create("b", 3),
    "write_rows": lambda npk: npk.write_rows("a", 0, A[:1]),
    "clone": lambda npk: npk.clone("a", "b"),
    "flush": lambda npk: npk.flush(),
    "[name]": lambda npk: npk["a"],
    "in": lambda npk: "a" in npk,
    "iter": lambda npk: iter(npk),
    "len": lambda npk: len(npk),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_need_an_open_store(numpack, path, call):
    npk = numpack.NumPack(path)
    with pytest.raises(RuntimeError, match="not opened or has been closed"):
        call(npk)
    npk.open()
    npk.save({"a": A})
    npk.close()
    with pytest.raises(numpack.StoreClosedError, match="not opened or has been closed"):
        call(npk)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_strict_mode_needs_with(numpack, path, call):
    npk = numpack.NumPack(path, strict_context_mode=True)
    npk.open()
    with pytest.raises(RuntimeError, match="strict_context_mode"):
        call(npk)
    with npk:
        npk.save({"a": A})
        call(npk)
    with pytest.raises(RuntimeError):
        call(npk)


def test_with_opens_and_closes_and_lets_exceptions_pass(numpack, path):
    npk = numpack.NumPack(path)
    with npk as entered:
        assert entered is npk and npk.is_opened
    assert npk.is_closed
    npk.open()
    with pytest.raises(ZeroDivisionError), npk:
        npk.save({"a": A})
        1 / 0  # noqa: B018
    assert npk.is_closed
    with npk:
        assert np.array_equal(npk.load("a"), A)


def test_drop_if_exists_deletes_at_the_first_open_only(numpack, path):
    with numpack.NumPack(path) as npk:
        npk.save({"old": A})
    npk = numpack.NumPack(path, drop_if_exists=True)
    assert (path / "metadata.npkm").exists()
    with npk:
        assert len(npk) == 0
        npk.save({"new": A})
    with npk:
        assert list(npk) == ["new"]


def test_drop_if_exists_spares_foreign_files(numpack, path):
    with numpack.NumPack(path) as npk:
        npk.save({"old": A})
    (path / "notes.txt").write_text("mine")
    with numpack.NumPack(path, drop_if_exists=True) as npk:
        assert len(npk) == 0
    assert (path / "notes.txt").read_text() == "mine"


def test_drop_if_exists_deletes_a_file(numpack, path):
    path.write_text("no store")
    with numpack.NumPack(path, drop_if_exists=True) as npk:
        assert len(npk) == 0
    assert path.is_dir()


def test_a_file_in_the_way_is_refused(numpack, path):
    path.write_text("no store")
    with pytest.raises(FileExistsError) as raised:
        numpack.NumPack(path).open()
    assert raised.value.filename == str(path)
    assert path.read_text() == "no store"


def test_a_parent_that_is_a_file_is_refused(numpack, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        numpack.NumPack(tmp_path / "file" / "data.npk").open()


def test_lost_manifest_is_not_taken_for_an_empty_store(numpack, path):
    with numpack.NumPack(path) as npk:
        npk.save({"a": A})
    for file in path.glob("metadata.npkm*"):
        file.unlink()
    before = sorted(file.name for file in path.iterdir())
    with pytest.raises(numpack.NotAStoreError, match="data files but no metadata"):
        numpack.NumPack(path).open()
    assert sorted(file.name for file in path.iterdir()) == before


def test_closed_stores_leave_no_descriptors_and_no_mappings(numpack, path):
    def held():
        descriptors = len(os.listdir("/proc/self/fd"))
        with open("/proc/self/maps") as maps:
            return descriptors, sum(str(path) in line for line in maps)

    with numpack.NumPack(path) as npk:
        npk.save({"a": A})
    before = held()
    for _ in range(5):
        with numpack.NumPack(path) as npk:
            npk.append({"a": A})
            npk.load("a", lazy=True)[0]
    with pytest.raises(ZeroDivisionError), numpack.NumPack(path) as npk:
        npk.load("a", lazy=True)[1 // 0]
    assert held() == before


def test_store_that_nobody_holds_closes(numpack, path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    npk = numpack.NumPack(path)
    npk.open()
    reference = weakref.ref(npk)
    del npk
    gc.collect()
    assert reference() is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_force_gc_on_close_collects(numpack, path):
    class Cycle:
        pass

    for npk, arguments in [
        (numpack.NumPack(path, force_gc_on_close=True), ()),
        (numpack.NumPack(path), (True,)),
    ]:
        cycle = Cycle()
        cycle.itself = cycle
        reference = weakref.ref(cycle)
        del cycle
        npk.open()
        npk.close(*arguments)
        assert reference() is None


def test_warns_without_context_when_asked_to(numpack, path):
    with pytest.warns(UserWarning, match="with NumPack"):
        numpack.NumPack(path, warn_no_context=True)
    numpack.NumPack(path, warn_no_context=True, strict_context_mode=True)
    numpack.NumPack(path)


def test_repr(numpack, path):
    npk = numpack.NumPack(path)
    assert repr(npk) == f"NumPack({path}, status=closed)"
    with npk:
        npk.save({"a": A, "b": A})
        assert repr(npk) == f"NumPack({path}, arrays=2, backend={npk.backend_type})"


def test_may_be_subclassed(numpack, path):
    class Mine(numpack.NumPack):
        def double(self, name):
            return 2 * self.load(name)

    with Mine(path) as npk:
        npk.save({"a": A})
        assert np.array_equal(npk.double("a"), 2 * A)


def test_wrong_constructor_arguments(numpack):
    with pytest.raises(TypeError):
        numpack.NumPack()
    with pytest.raises(TypeError):
        numpack.NumPack(3)


@pytest.fixture
def read_only(numpack):
    """A store that the user running the test may only read. Root is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npk"
        with numpack.NumPack(path) as npk:
            npk.save({"a": A})
        for file in (folder, path, *path.iterdir()):
            os.chmod(file, 0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield path
        finally:
            if is_root:
                os.seteuid(0)
            for file in (folder, path):
                os.chmod(file, 0o755)


def test_read_only_directory_opens_for_reading(numpack, read_only):
    with numpack.NumPack(read_only) as npk:
        assert np.array_equal(npk.load("a"), A)
        assert np.array_equal(npk.load("a", lazy=True)[1], A[1])
        assert npk.get_shape() == {"a": A.shape}
        assert npk.flush() is None
        writes = "save", "append", "replace", "drop", "drop rows", "reset", "create", "write_rows", "clone"
        for call in (*map(CALLS.get, writes), lambda npk: npk._map("a"), lambda npk: npk._set_attrs("a", {}, [])):
            with pytest.raises(numpack.ReadOnlyError) as raised:
                call(npk)
            assert isinstance(raised.value, OSError)
            assert raised.value.filename == str(read_only)
    with pytest.raises(PermissionError), numpack.NumPack(read_only.parent / "new.npk"):
        pass
    with pytest.raises(OSError, match="data.npk"), numpack.NumPack(read_only, drop_if_exists=True):
        pass
    with numpack.NumPack(read_only) as npk:
        assert np.array_equal(npk.load("a"), A)


def test_rows_that_are_moved_are_shown_to_nobody_else(npk, path):
    """Compacting, and dropping rows of a Fortran-ordered array, made a private array readable by everybody."""
    npk.save({"a": np.arange(20_000.0).reshape(-1, 2), "f": np.asfortranarray(np.arange(200.0).reshape(-1, 2))})
    files = {name: next(path.glob(f"data_{name}*.npkd")) for name in "af"}
    for file in files.values():
        file.chmod(0o600)
    npk.drop("a", [0, 5])
    npk.drop("f", [0, 5])
    npk.update("a")
    for name, old in files.items():
        [new] = path.glob(f"data_{name}*.npkd")
        assert new != old
        assert new.stat().st_mode & 0o777 == 0o600


def test_a_new_manifest_is_as_private_as_the_one_before(numpack, path):
    manifest = path / "metadata.npkm"
    with numpack.NumPack(path) as npk:
        npk.save({"a": A})
        manifest.chmod(0o600)
        before = manifest.stat().st_ino
        text = "x" * 100_000
        n = 0
        while manifest.stat().st_ino == before:
            npk.attrs["n"] = f"{n}{text}"
            n += 1
        assert manifest.stat().st_mode & 0o777 == 0o600


def test_an_append_that_fails_leaves_nothing_behind_the_rows(npk, path):
    """Who reads the file itself, as the kernel does for a mount, took what was left for rows."""
    npk.save({"a": np.zeros(1000)}, compress=False)
    [file] = path.glob("data_a*.npkd")
    length = file.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length + 4000, before[1]))
    try:
        with pytest.raises(OSError):
            npk.append({"a": np.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.stat().st_size == length
    npk.append({"a": np.ones(10)})
    assert npk.load("a").sum() == 10
