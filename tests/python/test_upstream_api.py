"""The API of NumPack 0.1 to 0.7, call by call, as programs that were written for it use it.

One test for each call, and for each way in which a call answers. Where the old releases disagree with each other or
with NumPy, the answer here is the one that harms no program; what they got wrong is in `test_upstream_defects`.
"""

import copy
import gc
import operator
import os
import pickle
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
from arrays import assert_same, example

A = example("f4", (6, 4))
ROWS = example("f4", (2, 4), seed=1)
DTYPES_14 = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64 complex128".split()


@pytest.fixture
def stored(npk):
    """An open store with an array "a"."""
    npk.save({"a": A})
    return npk


def run(code, *arguments, **environ):
    """What a fresh interpreter prints that runs the code."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- The module ---


def test_names_of_the_module(numpack):
    for name in ("NumPack", "LazyArray", "BatchModeContext", "pack", "unpack", "get_package_info", "__version__"):
        assert hasattr(numpack, name), name
    assert isinstance(numpack.__version__, str)


def test_force_cleanup_windows_handles_collects_garbage(numpack):
    class Cycle:
        pass

    cycle = Cycle()
    cycle.itself = cycle
    reference = weakref.ref(cycle)
    del cycle
    assert numpack.force_cleanup_windows_handles() is True
    assert reference() is None


def test_get_backend_info(numpack):
    info = numpack.get_backend_info()
    assert info["backend_type"] in ("rust", "python")
    assert isinstance(info["platform"], str) and isinstance(info["is_windows"], bool)
    assert info["version"] == numpack.__version__


def test_lazy_array_is_the_type_of_what_is_loaded_lazily(numpack, stored):
    assert type(stored.load("a", lazy=True)) is numpack.LazyArray


def test_batch_mode_context_is_the_type_of_batch_mode(numpack, stored):
    with stored.batch_mode() as entered:
        pass
    assert isinstance(stored.batch_mode(), numpack.BatchModeContext)
    assert entered is stored or isinstance(entered, numpack.BatchModeContext)


def test_import_prints_warns_and_patches_nothing(numpack):
    code = (
        "import numpy, os, warnings\n"
        "before = numpy.issubdtype, list(warnings.filters), dict(os.environ)\n"
        "import numpack\n"
        "assert (numpy.issubdtype, list(warnings.filters), dict(os.environ)) == before"
    )
    assert run(code) == ""


BACKENDS = [
    ({"NUMPACK_DISABLE_RUST": "1"}, "python"),
    ({"NUMPACK_FORCE_PYTHON_BACKEND": "1"}, "python"),
    ({"NUMPACK_FORCE_PYTHON_BACKEND": "true"}, "python"),
    ({"NUMPACK_FORCE_PYTHON_BACKEND": "yes"}, "python"),
    ({"NUMPACK_BACKEND": "python"}, "python"),
    ({"NUMPACK_BACKEND": "rust"}, "rust"),
    ({"NUMPACK_FORCE_PYTHON_BACKEND": "0"}, "rust"),
    ({}, "rust"),
]


@pytest.mark.parametrize(("environ", "backend"), BACKENDS, ids=str)
def test_environment_chooses_the_backend(environ, backend, tmp_path, monkeypatch, needs_native):
    for name in ("NUMPACK_BACKEND", "NUMPACK_FORCE_PYTHON_BACKEND", "NUMPACK_DISABLE_RUST"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import sys, numpack\n"
        "with numpack.NumPack(sys.argv[1]) as npk: print(npk.backend_type, numpack.get_backend_info()['backend_type'])"
    )
    assert run(code, tmp_path / "data.npk", **environ).split() == [backend, backend]


def test_writable_array_maps_a_file_of_bare_elements(numpack, tmp_path):
    from numpack.writable_array import WritableArray, WritableBatchMode

    A.tofile(tmp_path / "bare")
    with WritableArray(tmp_path / "bare", (6, 4), np.float32) as array:
        assert_same(np.array(array), A)
        array[2] = 7
    expected = A.copy()
    expected[2] = 7
    assert_same(np.fromfile(tmp_path / "bare", np.float32), expected.reshape(-1))
    with numpack.NumPack(tmp_path / "data.npk") as npk:
        assert isinstance(npk.writable_batch_mode(), WritableBatchMode)


# --- Opening and closing ---


@pytest.mark.parametrize("make", [str, lambda path: path], ids=["str", "Path"])
def test_store_is_made_with_its_parents(numpack, tmp_path, make):
    path = tmp_path / "x" / "y" / "data.npk"
    with numpack.NumPack(make(path)) as npk:
        npk.save({"a": A})
    assert path.is_dir()


def test_file_in_the_way(numpack, path):
    path.write_text("a file")
    with pytest.raises(FileExistsError):
        numpack.NumPack(path).open()
    with numpack.NumPack(path, drop_if_exists=True) as npk:
        assert len(npk) == 0


def test_nothing_is_touched_before_open(numpack, path):
    npk = numpack.NumPack(path)
    assert not path.exists()
    npk.open()
    assert path.is_dir()
    npk.close()


def test_drop_if_exists_deletes_at_the_first_open_only(numpack, path):
    with numpack.NumPack(path) as npk:
        npk.save({"old": A})
    npk = numpack.NumPack(path, drop_if_exists=True)
    for expected in ([], ["new"]):
        npk.open()
        assert npk.get_member_list() == expected
        npk.save({"new": A})
        npk.close()


def test_strict_context_mode(numpack, path):
    npk = numpack.NumPack(path, strict_context_mode=True)
    npk.open()
    with pytest.raises(RuntimeError):
        npk.save({"a": A})
    with npk:
        npk.save({"a": A})
    with pytest.raises(RuntimeError):
        npk.load("a")


def test_warn_no_context(numpack, path):
    with pytest.warns(UserWarning):
        numpack.NumPack(path, warn_no_context=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numpack.NumPack(path, strict_context_mode=True, warn_no_context=True)
        numpack.NumPack(path, warn_no_context=False)


@pytest.mark.parametrize("how", ["force_gc_on_close", "force_gc", "keyword"])
def test_close_collects_garbage_when_asked(numpack, path, how):
    class Cycle:
        pass

    npk = numpack.NumPack(path, force_gc_on_close=how == "force_gc_on_close")
    npk.open()
    cycle = Cycle()
    cycle.itself = cycle
    reference = weakref.ref(cycle)
    del cycle
    {"force_gc_on_close": npk.close, "force_gc": lambda: npk.close(True), "keyword": lambda: npk.close(force_gc=True)}[how]()
    assert reference() is None


def test_open_and_close_again_and_again(numpack, path):
    npk = numpack.NumPack(path)
    npk.close()
    for n in range(3):
        assert npk.open() is None and npk.open() is None
        assert npk.is_opened is True and npk.is_closed is False
        npk.save({f"a{n}": A})
        assert npk.close() is None and npk.close() is None and npk.close(force_gc=None) is None
        assert npk.is_opened is False and npk.is_closed is True
    with npk:
        assert len(npk.get_member_list()) == 3


def test_with_opens_if_needed_and_closes(numpack, path):
    npk = numpack.NumPack(path)
    npk.open()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), npk as entered:
            assert entered is npk and npk.is_opened
            raise ZeroDivisionError
        assert npk.is_closed


def test_calls_need_an_open_store(numpack, path):
    calls = [
        *(lambda npk: npk.save({"a": A}), lambda npk: npk.load("a"), lambda npk: npk["a"]),
        *(lambda npk: npk.append({"a": A}), lambda npk: npk.replace({"a": A[:1]}, 0), lambda npk: npk.drop("a")),
        *(lambda npk: npk.drop("a", 0), lambda npk: npk.getitem("a", 0), lambda npk: npk.stream_load("a")),
        *(lambda npk: npk.get_shape("a"), lambda npk: npk.get_shape(), lambda npk: npk.get_member_list()),
        *(lambda npk: npk.get_metadata(), lambda npk: npk.get_modify_time("a"), lambda npk: npk.has_array("a")),
        *(lambda npk: npk.reset(), lambda npk: npk.update("a"), lambda npk: npk.clone("a", "b"), iter),
        *(lambda npk: "a" in npk, lambda npk: npk.batch_mode().__enter__()),
        lambda npk: npk.writable_batch_mode().__enter__(),
    ]
    npk = numpack.NumPack(path)
    for _ in range(2):
        for call in calls:
            with pytest.raises(RuntimeError, match="not opened or has been closed"):
                call(npk)
        npk.open()
        npk.close()


def test_store_that_nobody_holds_is_closed(numpack, path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    npk = numpack.NumPack(path)
    npk.open()
    npk.save({"a": A})
    del npk
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_backend_type(numpack, npk):
    assert npk.backend_type == numpack.get_backend_info()["backend_type"]


def test_repr(numpack, path):
    npk = numpack.NumPack(path)
    assert repr(npk).startswith(f"NumPack({path}, status=closed")
    with npk:
        npk.save({"a": A})
        assert repr(npk).startswith(f"NumPack({path}, arrays=1, backend={npk.backend_type}")


# --- Whole arrays ---


def test_save_adds_and_replaces_and_leaves_the_others(stored):
    assert stored.save({"b": ROWS}) is None
    assert stored.save({"a": ROWS, "c": A}) is None
    assert stored.save({}) is None
    for name, expected in {"a": ROWS, "b": ROWS, "c": A}.items():
        assert_same(stored.load(name), expected)


def test_save_refuses_what_is_no_dict_of_arrays_by_name(npk):
    for arrays in (None, [A], A, "a"):
        with pytest.raises(ValueError, match="dict"):
            npk.save(arrays)
    with pytest.raises(TypeError):
        npk.save({1: A})
    with pytest.raises(TypeError):
        npk.save({"a": np.array([object()])})
    assert npk.get_member_list() == []


@pytest.mark.parametrize("dtype", DTYPES_14)
def test_save_of_the_fourteen_dtypes(npk, dtype):
    array = example(dtype, (5, 3))
    npk.save({"a": array, "empty": array[:0]})
    for found in (npk.load("a"), np.asarray(npk.load("a", lazy=True)), npk.getitem("a", slice(None))):
        assert_same(found, array)
    assert_same(npk.load("empty"), array[:0])


def test_save_of_what_becomes_an_array(stored, numpack):
    values = {
        "list": [[1, 2], [3, 4]],
        "scalar": np.float32(1.5),
        "big-endian": A.astype(">f4"),
        "masked": np.ma.masked_greater(A, 0),
        "lazy": stored.load("a", lazy=True),
    }
    stored.save(values)
    for name, value in values.items():
        assert_same(stored.load(name), np.array(A if name in ("lazy", "masked") else value))


def test_save_compressed(npk):
    array = np.zeros((1000, 100))
    npk.save({"a": array}, compress=True)
    npk.save({"b": array})
    assert_same(npk.load("a"), array)
    assert_same(npk.load("a"), npk.load("b"))


def test_load_gives_an_array_of_its_own(stored):
    loaded = stored.load("a")
    assert loaded.flags.c_contiguous and loaded.flags.writeable and loaded.flags.owndata
    loaded[:] = 0
    assert_same(stored.load("a", lazy=False), A)
    assert_same(stored["a"], A)


def test_missing_names(stored):
    calls = [
        *(lambda: stored.load("x"), lambda: stored.load("x", lazy=True), lambda: stored["x"]),
        *(lambda: stored.get_shape("x"), lambda: stored.getitem("x", 0), lambda: stored.stream_load("x")),
        *(lambda: stored.replace({"x": A}, slice(None)), lambda: stored.update("x"), lambda: stored.clone("x", "y")),
    ]
    for call in calls:
        with pytest.raises(KeyError):
            call()
    assert stored.get_modify_time("x") is None


def test_has_array(stored):
    assert stored.has_array("a") is True
    assert stored.has_array("b") is False
    assert stored.has_array(1) is False


def test_member_list_has_the_order_of_the_first_save(npk, numpack, path):
    names = ["z", "a", "m", "b"]
    for name in names:
        npk.save({name: A})
    npk.save({"a": ROWS})
    for found in (npk.get_member_list(), list(npk)):
        assert found == names
    with numpack.NumPack(path) as again:
        assert again.get_member_list() == names
    assert "m" in npk and "x" not in npk and len(npk) == 4


def test_get_shape_counts_the_rows_that_are_there(stored):
    stored.drop("a", [0, 1])
    stored.save({"b": ROWS[0]})
    assert stored.get_shape("a") == (4, 4) and type(stored.get_shape("a")) is tuple
    assert stored.get_shape() == {"a": (4, 4), "b": (4,)}


def test_get_metadata(stored, path):
    stored.drop("a", 0)
    metadata = stored.get_metadata()
    assert metadata["base_dir"] == str(path) and metadata["total_arrays"] == 1
    entry = metadata["arrays"]["a"]
    assert entry["shape"] == [5, 4] and entry["dtype"] == "Float32" and entry["size_bytes"] == 5 * 4 * 4
    assert isinstance(entry["last_modified"], int) and (path / entry["data_file"]).is_file()


def test_dtype_names_in_the_metadata(npk):
    npk.save({dtype: np.zeros(2, dtype) for dtype in DTYPES_14})
    found = {name: entry["dtype"] for name, entry in npk.get_metadata()["arrays"].items()}
    assert found == {dtype: dtype.capitalize() for dtype in DTYPES_14}


CHANGES = {
    "save": lambda npk: npk.save({"a": A}),
    "append": lambda npk: npk.append({"a": ROWS}),
    "replace": lambda npk: npk.replace({"a": ROWS}, [0, 3]),
    "drop rows": lambda npk: npk.drop("a", 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_modify_time_in_microseconds_changes_on_every_change(stored, tmp_path, change):
    before = stored.get_modify_time("a")
    assert type(before) is int
    # Until the clock of the file system, which ticks in milliseconds, is past that time.
    file = tmp_path / "clock"
    while file.touch() or file.stat().st_mtime_ns // 1000 <= before:
        pass
    change(stored)
    after = stored.get_modify_time("a")
    assert before < after < before + 3600 * 10**6


def test_reset_removes_the_stores_own_files_only(stored, path):
    (path / "foreign.npkd").write_bytes(b"mine")
    assert stored.reset() is None
    assert stored.get_member_list() == []
    assert (path / "foreign.npkd").exists() and not list(path.glob("data_*"))
    stored.save({"a": A})
    assert_same(stored.load("a"), A)


def test_clone_is_an_independent_copy(stored):
    stored.drop("a", [1, 2])
    assert stored.clone("a", "b") is None
    stored.replace({"a": ROWS[:1]}, 0)
    assert_same(stored.load("b"), np.delete(A, [1, 2], axis=0))
    for target in ("a", "b"):
        with pytest.raises(ValueError, match="exists"):
            stored.clone("a", target)


def test_update_gives_back_the_space_of_dropped_rows(npk, path):
    npk.save({"a": np.zeros((1000, 1000))})
    npk.update("a")
    npk.drop("a", slice(10, None))
    assert npk.update("a") is None
    assert npk.get_shape("a") == (10, 1000)
    assert sum(file.stat().st_size for file in path.glob("*.npkd")) < 200_000


@pytest.mark.parametrize("names", ["a", ["a"], ["a", "missing", "b"], "missing", ["missing"]], ids=str)
def test_drop_of_arrays(stored, path, names):
    stored.save({"b": A, "c": A})
    assert stored.drop(names) is None
    gone = {names} if isinstance(names, str) else set(names)
    left = [name for name in "abc" if name not in gone]
    assert stored.get_member_list() == left
    assert len(list(path.glob("data_*"))) == len(left)


def test_get_io_stats(stored):
    stats = stored.get_io_stats()
    assert stats["backend_type"] == stored.backend_type
    assert isinstance(stats["stats_available"], bool)


# --- Rows ---


def test_append(stored):
    stored.save({"one": A[:, 0]})
    assert stored.append({"a": ROWS, "one": ROWS[:, 0]}) is None
    assert_same(stored.load("a"), np.concatenate([A, ROWS]))
    assert_same(stored.load("one"), np.concatenate([A[:, 0], ROWS[:, 0]]))
    stored.append({"a": A[:0]})
    stored.append({})
    assert stored.get_shape("a") == (8, 4)


def test_append_checks_all_names_before_it_writes(stored):
    wrong = [
        (ValueError, "b", ROWS, "does not exist"),
        (ValueError, "a", ROWS[:, :3], "shape"),
        (ValueError, "a", ROWS[0], "shape"),
        (TypeError, "a", ROWS.astype("f8"), "dtype"),
    ]
    stored.save({"good": A})
    for error, name, rows, message in wrong:
        with pytest.raises(error, match=message):
            stored.append({"good": A, name: rows})
    assert_same(stored.load("good"), A)
    assert_same(stored.load("a"), A)


REPLACED = {
    "int": (4, [4]),
    "list": ([0, 5, 2], [0, 5, 2]),
    "array": (np.array([5, 1]), [5, 1]),
    "duplicates": ([3, 3], [3, 3]),
    "negative": ([-1, -6], [5, 0]),
    "slice": (slice(1, 4), [1, 2, 3]),
    "open slice": (slice(3, None), [3, 4, 5]),
    "slice to the end": (slice(0, -1), [0, 1, 2, 3, 4]),
    "slice with step": (slice(None, None, 2), [0, 2, 4]),
    "slice backwards": (slice(None, None, -1), [5, 4, 3, 2, 1, 0]),
}


@pytest.mark.parametrize(("indexes", "rows"), REPLACED.values(), ids=REPLACED)
def test_replace(stored, indexes, rows):
    stored.save({"b": A})
    values = example("f4", (len(rows), 4), seed=2)
    assert stored.replace({"a": values, "b": values}, indexes) is None
    expected = A.copy()
    for row, value in zip(rows, values, strict=True):
        expected[row] = value
    assert_same(stored.load("a"), expected)
    assert_same(stored.load("b"), expected)


def test_replace_refuses(stored):
    wrong = [
        (ValueError, {"a": ROWS[:1]}, "0"),
        (ValueError, {"a": ROWS[:1]}, 1.5),
        (ValueError, {"a": ROWS[:1]}, 6),
        (ValueError, {"a": ROWS}, [0, -7]),
        (ValueError, {"a": ROWS[:, :3]}, [0, 1]),
        (ValueError, {"a": ROWS}, [0, 1, 2]),
        (TypeError, {"a": ROWS.astype("f8")}, [0, 1]),
        (KeyError, {"a": ROWS, "b": ROWS}, [0, 1]),
    ]
    for error, arrays, indexes in wrong:
        with pytest.raises(error):
            stored.replace(arrays, indexes)
    assert_same(stored.load("a"), A)


DROPPED = {
    "int": (2, [2]),
    "list": ([0, 4], [0, 4]),
    "array": (np.array([5, 1]), [1, 5]),
    "tuple": ((1, 2), [1, 2]),
    "slice": (slice(1, 3), [1, 2]),
    "duplicates": ([3, 3], [3]),
    "negative": ([-1], [5]),
    "out of range": ([0, 100], [0]),
    "only out of range": (100, []),
    "none": ([], []),
    "all": (slice(None), [0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize(("indexes", "rows"), DROPPED.values(), ids=DROPPED)
def test_drop_of_rows(stored, indexes, rows):
    stored.save({"b": A})
    expected = np.delete(A, rows, axis=0)
    assert stored.drop("a", indexes) is None
    assert_same(stored.load("a"), expected)
    assert stored.get_shape("a") == expected.shape
    stored.drop(["a", "missing"], 0)
    assert_same(stored.load("a"), expected[1:])
    stored.drop(["b", "missing"], indexes)
    assert_same(stored.load("b"), expected)


def test_drop_refuses_what_is_no_row(stored):
    for indexes in ("0", 1.5, {0: 1}):
        with pytest.raises(ValueError):  # noqa: PT011
            stored.drop("a", indexes)
    assert_same(stored.load("a"), A)


GOT = {
    "int": (2, [2]),
    "np.int64": (np.int64(2), [2]),
    "list": ([4, 0, 4], [4, 0, 4]),
    "tuple": ((1, 3), [1, 3]),
    "array": (np.array([5, 1]), [5, 1]),
    "negative": ([-1, 0], [5, 0]),
    "slice": (slice(1, 3), [1, 2]),
    "slice with step": (slice(None, None, 2), [0, 2, 4]),
    "none": ([], []),
    "empty slice": (slice(3, 3), []),
}


@pytest.mark.parametrize(("indexes", "rows"), GOT.values(), ids=GOT)
def test_getitem_gives_rows_with_axis_0(stored, indexes, rows):
    found = stored.getitem("a", indexes)
    assert_same(found, A[np.array(rows, int)])
    assert found.flags.owndata and found.flags.writeable


@pytest.mark.parametrize("indexes", [6, -7, [0, 6], np.array([-7])], ids=str)
def test_getitem_out_of_range(stored, indexes):
    with pytest.raises(IndexError):
        stored.getitem("a", indexes)


def test_stream_load(stored):
    assert [chunk.shape for chunk in stored.stream_load("a", buffer_size=4)] == [(4, 4), (2, 4)]
    assert [chunk.shape for chunk in stored.stream_load("a")] == [(1, 4)] * 6
    assert_same(np.concatenate(list(stored.stream_load("a", 5))), A)
    for buffer_size in (0, -1):
        with pytest.raises(ValueError, match="buffer_size"):
            stored.stream_load("a", buffer_size)


# --- LazyArray ---


@pytest.fixture
def lazy(stored):
    """A LazyArray of A."""
    return stored.load("a", lazy=True)


def test_attributes(lazy):
    for name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes"):
        assert getattr(lazy, name) == getattr(A, name), name
    assert len(lazy) == 6 and bool(lazy) is True


def test_len_of_a_0d_array(npk):
    npk.save({"a": np.array(5.0)})
    with pytest.raises(TypeError):
        len(npk.load("a", lazy=True))


def test_repr_of_a_lazy_array(lazy):
    assert repr(lazy).startswith("LazyArray(") and "float32" in repr(lazy) and "(6, 4)" in repr(lazy)


def test_iteration_gives_rows_and_scalars(npk, lazy):
    for row, expected in zip(lazy, A, strict=True):
        assert_same(row, expected)
    npk.save({"one": A[:, 0]})
    for item, expected in zip(npk.load("one", lazy=True), A[:, 0], strict=True):
        assert_same(item, expected)


def test_transposed(npk, lazy):
    assert lazy.T.shape == (4, 6)
    assert np.array_equal(lazy.T, A.T)
    cube = example("i8", (2, 3, 4))
    npk.save({"cube": cube})
    assert np.array_equal(npk.load("cube", lazy=True).T, cube.T)


@pytest.mark.parametrize("shape", [((4, 6),), ([8, 3],), (24,), (-1,), ((2, -1),), (4, 6), (2, 3, -1)], ids=str)
def test_reshape(numpack, lazy, shape):
    reshaped = lazy.reshape(*shape)
    assert isinstance(reshaped, numpack.LazyArray)
    assert np.array_equal(reshaped, A.reshape(*shape))
    assert np.array_equal(reshaped[-1], A.reshape(*shape)[-1])


@pytest.mark.parametrize("shape", [(5, 5), (-1, -1), (7, -1)], ids=str)
def test_reshape_refuses(lazy, shape):
    with pytest.raises(ValueError):  # noqa: PT011
        lazy.reshape(shape)


def test_numpy_functions(lazy):
    assert_same(np.asarray(lazy), A)
    assert_same(np.array(lazy), A)
    assert_same(np.asarray(lazy, "f8"), A.astype("f8"))
    assert_same(np.sum(lazy), np.sum(A))
    assert_same(np.inner(ROWS, lazy), np.inner(ROWS, A))
    assert_same(np.inner(lazy[0], lazy), np.inner(A[0], A))
    assert_same(np.dot(lazy, ROWS[0]), np.dot(A, ROWS[0]))
    assert_same(lazy @ ROWS[0], A @ ROWS[0])
    assert_same(ROWS @ lazy.T, ROWS @ A.T)


def test_copies_are_arrays(lazy):
    for found in (lazy.copy(), copy.copy(lazy), copy.deepcopy(lazy), lazy.to_numpy()):
        assert_same(found, A)
    found = lazy.copy()
    found[:] = 0
    assert_same(lazy.copy(), A)


ARITHMETIC = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
BITWISE = ["and_", "or_", "xor", "lshift", "rshift"]
N = np.arange(1, 25, dtype="i4").reshape(6, 4)


def operands(npk, array):
    npk.save({"left": array, "right": array[::-1]})
    lazy = npk.load("left", lazy=True)
    others = [2, np.int64(3), array[0], array[0].tolist(), array[::-1], array[:, :1]]
    yield from ((lazy, other, array, np.asarray(other) if isinstance(other, list) else other) for other in others)
    yield lazy, npk.load("right", lazy=True), array, array[::-1]


@pytest.mark.parametrize("name", ARITHMETIC + COMPARISONS + BITWISE)
def test_operators_give_arrays(npk, name):
    operation = getattr(operator, name)
    for lazy, other, array, value in operands(npk, N):
        assert_same(operation(lazy, other), operation(array, value))
        if name not in COMPARISONS:
            assert_same(operation(other, lazy), operation(value, array))
        else:
            assert np.array_equal(operation(value, lazy), operation(value, array))


@pytest.mark.parametrize("name", ["neg", "pos", "invert"])
def test_unary_operators_give_arrays(npk, name):
    npk.save({"a": N})
    operation = getattr(operator, name)
    assert_same(operation(npk.load("a", lazy=True)), operation(N))


def test_bitwise_operators_need_integers(lazy):
    calls = [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift]
    for call in (*(lambda call=call: call(lazy, 1) for call in calls), lambda: ~lazy):
        with pytest.raises(TypeError, match="Bitwise operations are only supported for integer arrays"):
            call()


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv", "ipow"])
def test_operators_in_place_leave_the_store(stored, lazy, name):
    changed = getattr(operator, name)(lazy, 2)
    assert_same(changed, getattr(operator, name)(A.copy(), 2))
    assert_same(stored.load("a"), A)
    with pytest.raises(TypeError):
        lazy[0] = 1


def test_with_and_close_release_nothing(lazy):
    with lazy as entered:
        assert entered is lazy
    assert lazy.close() is None
    assert_same(lazy[1], A[1])


def test_lazy_arrays_are_not_pickled(lazy):
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(lazy)


def test_vectorized_gather(lazy):
    for rows in ([4, 0, 0, -1], np.array([5, 1]), []):
        assert_same(lazy.vectorized_gather(rows), A[np.array(rows, int)])
    with pytest.raises(IndexError):
        lazy.vectorized_gather([6])


MASKED = [
    *("parallel_boolean_index", "boolean_index_production", "boolean_index_adaptive_algorithm"),
    *("boolean_index_smart", "boolean_index_adaptive"),
]


@pytest.mark.parametrize("name", MASKED)
def test_methods_that_take_a_mask(lazy, name):
    method = getattr(lazy, name)
    for mask in (np.arange(6) % 2 == 0, np.zeros(6, bool), [True, False, False, False, True, True]):
        assert_same(method(mask), A[mask])
    with pytest.raises((ValueError, IndexError)):
        method(np.ones(5, bool))


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_mega_batch_get_rows(lazy, batch_size):
    found = lazy.mega_batch_get_rows([4, 0, -1], batch_size)
    assert isinstance(found, list) and len(found) == 3
    for row, expected in zip(found, A[[4, 0, -1]], strict=True):
        assert_same(row, expected)


def test_advice_of_the_old_releases(lazy):
    assert isinstance(lazy.choose_optimal_algorithm(np.ones(6, bool)), str)
    for hint in ("sequential", "random", "boolean", "heavy"):
        assert lazy.intelligent_warmup(hint) is None
    for name, number in lazy.get_performance_stats():
        assert isinstance(name, str) and isinstance(number, int | float)


def test_what_a_lazy_array_has_not(lazy):
    for name in ("sum", "mean", "astype", "flatten", "tolist", "strides", "flags", "get_row_data", "get_element"):
        with pytest.raises(AttributeError):
            getattr(lazy, name)


INDEXES = {
    "int": 2,
    "np.int64": np.int64(2),
    "0-d array": np.array(2),
    "negative int": -1,
    "slice": slice(1, 5, 2),
    "reversed": slice(None, None, -1),
    "empty slice": slice(4, 2),
    "list": [3, -1, 3, 0],
    "array": np.array([3, -1, 3, 0]),
    "empty list": [],
    "empty array": np.array([], int),
    "mask": np.arange(6) % 3 == 0,
    "mask list": [True, False, False, True, False, True],
    "2-d mask": A > 0,
    "2-d array": np.array([[0, 1], [5, -2]]),
    "point": (1, 2),
    "slice and int": (slice(1, 3), 1),
    "ellipsis": (..., 0),
    "new axis": (None, 2),
    "slice and list": (slice(None, 3), [0, 2]),
    "mask and int": (np.arange(6) < 3, 1),
    "points": ([0, 1], [2, 3]),
    "column and row": (np.array([[0], [5]]), np.array([1, 3])),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_indexing_follows_numpy(lazy, index):
    found = lazy[index]
    assert_same(found, A[index])
    if isinstance(found, np.ndarray):
        found[...] = 0
        assert_same(np.asarray(lazy), A)


@pytest.mark.parametrize("index", [6, -7, [6], (0, 4), (0, 0, 0), 1.5, "a", np.ones(5, bool)], ids=repr)
def test_indexing_refuses_as_numpy(lazy, index):
    with pytest.raises(IndexError):
        lazy[index]


def test_lazy_array_keeps_its_shape_when_the_store_changes(stored, lazy):
    stored.append({"a": ROWS})
    assert lazy.shape == (6, 4)
    assert_same(np.asarray(lazy), A)
    stored.replace({"a": ROWS[:1]}, 0)
    assert_same(lazy[0], ROWS[0])
    stored.close()
    assert_same(lazy[1:], A[1:])


def test_lazy_loading_of_a_large_array_reads_nothing(npk):
    npk.save({"a": np.zeros((272, 1 << 20), "u1")})

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) << 12

    before = resident()
    assert npk.load("a", lazy=True)[271, 5] == 0
    with npk.writable_batch_mode() as wb:
        wb.load("a")[3, 7] = 1
        assert resident() - before < 16 << 20
    assert npk.getitem("a", 3)[0, 7] == 1


# --- Batch modes ---


def test_batch_mode_loads_one_object(stored):
    with stored.batch_mode():
        loaded = stored.load("a")
        assert stored.load("a") is loaded and stored["a"] is loaded
        assert_same(loaded, A)
        loaded[0] = 7
        assert stored.load("a")[0, 0] == 7
    assert np.all(stored.load("a")[0] == 7)


def test_batch_mode_writes_at_the_end(stored, numpack, path):
    with numpack.NumPack(path) as other:
        with stored.batch_mode():
            array = stored.load("a")
            array *= 2
            stored.save({"a": array, "new": ROWS})
            array += 1  # also counts, until the block ends
            assert_same(other.load("a"), A)
            assert not other.has_array("new")
        assert_same(other.load("a"), A * 2 + 1)
        assert_same(other.load("new"), ROWS)


def test_batch_mode_takes_other_shapes_and_dtypes(stored):
    with stored.batch_mode():
        stored.save({"a": np.arange(3)})
        assert_same(stored.load("a"), np.arange(3))
    assert_same(stored.load("a"), np.arange(3))


def test_batch_mode_with_append_and_drop(stored):
    with stored.batch_mode():
        stored.append({"a": ROWS})
        stored.drop("a", [0])
        assert_same(stored.load("a"), np.concatenate([A[1:], ROWS]))
    assert_same(stored.load("a"), np.concatenate([A[1:], ROWS]))


def test_batch_mode_that_raises_writes_nothing(stored):
    with pytest.raises(ZeroDivisionError), stored.batch_mode():
        stored.save({"a": ROWS, "new": A})
        raise ZeroDivisionError
    assert_same(stored.load("a"), A)
    assert stored.get_member_list() == ["a"]
    # The store goes on.
    with stored.batch_mode():
        stored.save({"new": A})
    assert stored.get_member_list() == ["a", "new"]


@pytest.mark.parametrize("memory_limit", [None, 1, 1 << 40])
def test_batch_mode_takes_a_memory_limit(stored, memory_limit):
    with stored.batch_mode(memory_limit=memory_limit):
        stored.save({"a": ROWS})
    assert_same(stored.load("a"), ROWS)


def test_batch_mode_refuses_what_is_no_array(stored):
    with pytest.raises((TypeError, ValueError)), stored.batch_mode():
        stored.save({"b": np.array([object()])})
    assert stored.get_member_list() == ["a"]


def test_one_mode_after_the_other(stored):
    for n in range(1, 3):
        with stored.batch_mode():
            array = stored.load("a")
            array += 1
            stored.save({"a": array})
        with stored.writable_batch_mode() as wb:
            array = wb.load("a")
            array += 1
        assert np.allclose(stored.load("a"), A + 2 * n)


@pytest.mark.parametrize("dtype", DTYPES_14)
def test_writable_batch_mode_maps_every_dtype(npk, load_all, path, dtype):
    array, other = example(dtype, (5, 3)), example(dtype, (5, 3), seed=1)
    npk.save({"a": array})
    with npk.writable_batch_mode() as wb:
        mapped = wb.load("a")
        assert isinstance(mapped, np.ndarray) and mapped.flags.writeable and not mapped.flags.owndata
        assert wb.load("a") is mapped
        assert_same(np.array(mapped), array)
        mapped[...] = other
        # Others see the changes meanwhile.
        assert_same(npk.load("a"), other)
        wb.save({"a": mapped})
    assert_same(load_all(path)["a"], other)


def test_writable_batch_mode_refuses_missing_names(stored):
    with stored.writable_batch_mode() as wb, pytest.raises(KeyError):
        wb.load("x")


def test_writable_batch_mode_refuses_other_shapes(stored):
    with stored.writable_batch_mode() as wb:
        wb.load("a")[0] = 7
        for arrays in ({"a": ROWS}, {"a": A.astype("f8")}, {"new": A}):
            with pytest.raises((ValueError, TypeError, KeyError), match="batch_mode"):
                wb.save(arrays)
    assert np.all(stored.load("a")[0] == 7) and stored.get_member_list() == ["a"]


def test_writable_batch_mode_keeps_what_was_written_before_an_exception(stored):
    with pytest.raises(ZeroDivisionError), stored.writable_batch_mode() as wb:
        wb.load("a")[0] = 7
        raise ZeroDivisionError
    assert np.all(stored.load("a")[0] == 7)


def test_writable_batch_mode_of_arrays_without_elements(stored):
    stored.save({"empty": A[:0]})
    with stored.writable_batch_mode() as wb:
        assert wb.load("empty").shape == (0, 4)
    assert_same(stored.load("empty"), A[:0])
