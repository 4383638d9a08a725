"""What NumPack 0.1 to 0.7 got wrong, as tests to pass: each once lost rows, scrambled elements or ended the process."""

import gc
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from arrays import assert_same, example

A = example("f4", (6, 4))
ROWS = example("f4", (2, 4), seed=1)


@pytest.fixture
def stored(npk):
    """An open store with an array "a"."""
    npk.save({"a": A})
    return npk


@pytest.mark.parametrize("dtype", ["?", "i2", "f4", "f8", "c16"])
def test_replace_of_rows_that_are_not_consecutive(npk, dtype):
    array, rows = example(dtype, (1000, 40)), example(dtype, (100, 40), seed=1)
    indexes = np.random.default_rng(0).permutation(1000)[:100]
    npk.save({"a": array})
    npk.replace({"a": rows}, indexes)
    array[indexes] = rows
    assert_same(npk.load("a"), array)


def test_replace_with_fewer_rows_than_indexes(stored):
    for indexes in ([0, 1, 2], slice(0, 3), np.array([0, 2, 5])):
        with pytest.raises(ValueError, match="2 rows given for 3"):
            stored.replace({"a": ROWS}, indexes)
    assert_same(stored.load("a"), A)


@pytest.mark.parametrize("indexes", [slice(3, None), slice(0, -1), slice(None), slice(-2, None)], ids=str)
def test_replace_with_open_slices(stored, indexes):
    expected = A.copy()
    values = example("f4", expected[indexes].shape, seed=2)
    expected[indexes] = values
    stored.replace({"a": values}, indexes)
    assert_same(stored.load("a"), expected)


def test_masks_are_masks(stored):
    mask = np.array([False, True, False, False, True, False])
    assert_same(stored.getitem("a", mask), A[mask])
    stored.replace({"a": ROWS}, mask)
    expected = A.copy()
    expected[mask] = ROWS
    assert_same(stored.load("a"), expected)
    stored.drop("a", mask)
    assert_same(stored.load("a"), expected[~mask])
    assert_same(stored.getitem("a", np.zeros(4, bool)), A[:0])


VIEWS = {
    "Fortran order": np.asfortranarray(A),
    "transposed": np.ascontiguousarray(A.T).T,
    "negative stride": A[::-1].copy()[::-1],
    "negative strides": np.ascontiguousarray(A[::-1, ::-1])[::-1, ::-1],
    "every other": np.repeat(A, 2, axis=0)[::2],
    "broadcast": np.broadcast_to(A[0], (6, 4)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_are_saved_appended_and_replaced_right(npk, load_all, path, view):
    npk.save({"a": view})
    npk.append({"a": view})
    assert np.array_equal(npk.load("a"), np.concatenate([view, view]))
    npk.replace({"a": view[:3]}, [9, 0, 4])
    expected = np.concatenate([view, view])
    expected[[9, 0, 4]] = view[:3]
    assert np.array_equal(load_all(path)["a"], expected)


def test_drop_of_rows_leaves_no_scratch_files(stored, path):
    before = sorted(os.listdir(path))
    stored.drop("a", [1, 2])
    assert sorted(os.listdir(path)) == before
    assert_same(stored.load("a"), np.delete(A, [1, 2], axis=0))


@pytest.mark.parametrize("n_rows", [6, 63, 64, 65, 128])
def test_dropped_rows_do_not_return_with_an_append(npk, load_all, path, n_rows):
    array = np.arange(n_rows)
    npk.save({"a": array})
    npk.drop("a", [0, 2, -1])
    npk.append({"a": np.arange(3)})
    expected = np.append(np.delete(array, [0, 2, -1]), np.arange(3))
    assert npk.get_shape("a") == expected.shape
    assert_same(npk.load("a"), expected)
    assert_same(load_all(path)["a"], expected)


def test_second_drop_counts_in_the_rows_that_are_left(stored):
    stored.drop("a", [-1])
    stored.drop("a", [-1, -2])
    assert_same(stored.load("a"), A[:3])


def test_drop_of_a_row_before_the_first(stored):
    stored.drop("a", [-7])
    assert_same(stored.load("a"), A)


def test_drop_with_a_step(stored):
    stored.drop("a", slice(None, None, 2))
    assert_same(stored.load("a"), np.ascontiguousarray(A[1::2]))


def test_drop_then_save_of_the_same_shape(stored):
    stored.drop("a", [0, 1])
    stored.save({"a": A})
    assert_same(stored.load("a"), A)
    assert_same(stored.getitem("a", [5]), A[[5]])


def test_lazy_arrays_and_mappings_have_no_dropped_rows(stored):
    stored.drop("a", [1, 4])
    expected = np.delete(A, [1, 4], axis=0)
    lazy = stored.load("a", lazy=True)
    assert_same(lazy[1:3], expected[1:3].copy())
    assert_same(np.asarray(lazy), expected)
    assert_same(np.inner(A[0], lazy), np.inner(A[0], expected))
    with stored.writable_batch_mode() as wb:
        mapped = wb.load("a")
        assert_same(np.array(mapped), expected)
        mapped[1] = 7
    expected[1] = 7
    assert_same(stored.load("a"), expected)


def test_batch_mode_of_the_memo_keeps_both_changes(stored):
    with stored.batch_mode():
        array = stored.load("a")
        array *= 2
        stored.save({"a": array})
        stored.append({"a": ROWS})
    assert_same(stored.load("a"), np.concatenate([A * 2, ROWS]))


BATCHED = {
    "replace": (lambda npk: npk.replace({"a": ROWS}, [1, 3]), {"a": np.stack([A[0], ROWS[0], A[2], ROWS[1], A[4], A[5]])}),
    "drop rows": (lambda npk: npk.drop("a", [0]), {"a": A[1:].copy()}),
    "drop": (lambda npk: npk.drop("a"), {}),
    "append": (lambda npk: npk.append({"a": ROWS}), {"a": np.concatenate([A, ROWS])}),
    "reset": (lambda npk: npk.reset(), {}),
}


@pytest.mark.parametrize(("change", "expected"), BATCHED.values(), ids=BATCHED)
def test_changes_after_a_load_in_batch_mode_count(stored, load_all, path, change, expected):
    with stored.batch_mode():
        stored.load("a")
        change(stored)
    found = load_all(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_same(found[name], array)


CHANGES = {
    "close": lambda npk: npk.close(),
    "drop": lambda npk: npk.drop("a"),
    "save": lambda npk: npk.save({"a": np.zeros(3)}),
    "drop rows and update": lambda npk: (npk.drop("a", [0, 1]), npk.update("a")),
    "reset": lambda npk: npk.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_arrays_of_lazy_arrays_outlive_them(stored, change):
    array = np.asarray(stored.load("a", lazy=True))
    change(stored)
    gc.collect()
    assert_same(array, A)


def test_transposed_lazy_arrays_are_transposed(stored):
    assert np.array_equal(np.asarray(stored.load("a", lazy=True).T), A.T)


def test_reversed_and_empty_slices_and_0d_arrays(stored):
    lazy = stored.load("a", lazy=True)
    assert_same(lazy[::-1], A[::-1].copy())
    assert_same(lazy[4:2], A[4:2])
    assert_same(lazy[5:1:-1], A[5:1:-1].copy())
    stored.save({"0-d": np.array(5.0)})
    assert_same(stored.load("0-d"), np.array(5.0))
    assert_same(stored.load("0-d", lazy=True)[()], np.float64(5))


def test_mappings_outlive_writable_batch_mode(stored):
    with stored.writable_batch_mode() as wb:
        mapped = wb.load("a")
    assert_same(np.array(mapped), A)
    stored.drop("a")
    stored.close()
    del wb
    gc.collect()
    assert_same(np.array(mapped), A)


KILLED = {
    "save": ("npk.save({'b': ROWS})", {"a": A, "b": ROWS}),
    "append": ("npk.append({'a': ROWS})", {"a": np.concatenate([A, ROWS])}),
    "save smaller": ("npk.save({'a': ROWS})", {"a": ROWS}),
    "drop and append": ("npk.drop('a', [0]); npk.append({'a': ROWS})", {"a": np.concatenate([A[1:], ROWS])}),
    "update": ("npk.drop('a', [0]); npk.update('a')", {"a": A[1:].copy()}),
    "reset": ("npk.reset()", {}),
}


@pytest.mark.parametrize(("change", "expected"), KILLED.values(), ids=KILLED)
def test_what_was_done_before_a_kill_is_there(stored, load_all, path, tmp_path, change, expected):
    np.save(tmp_path / "rows.npy", ROWS)
    code = (
        "import os, signal, sys, numpy as np, numpack\n"
        "ROWS = np.load(sys.argv[2])\n"
        f"npk = numpack.NumPack(sys.argv[1]); npk.open(); {change}\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path / "rows.npy"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for found in (load_all(path), {name: stored.load(name) for name in stored}):
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert_same(found[name], array)


def test_two_handles_keep_what_the_other_saved(numpack, path):
    first, second, reader = (numpack.NumPack(path) for _ in range(3))
    for npk in (first, second, reader):
        npk.open()
    first.save({"x": A})
    second.save({"y": ROWS})
    first.append({"x": ROWS})
    for npk in (first, second, reader):
        npk.close()
    with numpack.NumPack(path) as npk:
        assert npk.get_shape() == {"x": (8, 4), "y": (2, 4)}


@pytest.mark.parametrize("table", [b"NPKB\x01", b"\x83\xa7version", b"", b"nonsense" * 20], ids=repr)
def test_damaged_metadata_is_not_replaced_by_an_empty_table(numpack, stored, path, table):
    stored.close()
    (path / "metadata.npkm").write_bytes(table)
    with pytest.raises(numpack.NpkError):
        numpack.NumPack(path).open()
    assert (path / "metadata.npkm").read_bytes() == table
    assert list(path.glob("data_*"))


def test_append_after_each_reopening(numpack, path):
    expected = A
    with numpack.NumPack(path) as npk:
        npk.save({"a": A})
    for _ in range(4):
        with numpack.NumPack(path) as npk:
            npk.append({"a": ROWS})
            expected = np.concatenate([expected, ROWS])
    with numpack.NumPack(path) as npk:
        assert_same(npk.load("a"), expected)


def test_stream_load_after_append_and_save(stored):
    stored.append({"a": ROWS})
    assert_same(np.concatenate(list(stored.stream_load("a", 3))), np.concatenate([A, ROWS]))
    stored.save({"a": ROWS})
    assert_same(np.concatenate(list(stored.stream_load("a", 3))), ROWS)


def test_strings_dates_and_big_endian_are_stored_as_what_they_are(npk):
    arrays = [np.array(["a", "bcd"]), np.array(["2020-01-01"], "M8[D]"), A.astype(">f4")]
    for array in arrays:
        npk.save({"a": array})
        assert_same(npk.load("a"), array)
    with pytest.raises(TypeError):
        npk.save({"a": np.array([object()])})


def test_change_of_one_array_leaves_the_files_of_the_others(stored, path):
    stored.save({"other": A})

    def state():
        stat = (path / stored.get_metadata()["arrays"]["other"]["data_file"]).stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    before = state()
    stored.append({"a": ROWS})
    stored.replace({"a": ROWS}, [0, 3])
    stored.drop("a", 0)
    stored.drop("a")
    assert state() == before


def test_two_threads_change_one_store(npk):
    npk.save({"a": np.zeros((0, 2), "i8"), "b0": np.arange(200), "b1": np.arange(200)})
    errors = []

    def change(thread):
        try:
            for n in range(50):
                npk.append({"a": np.array([[thread, n]])})
                npk.replace({f"b{thread}": np.array([-1])}, n)
                npk.drop(f"b{thread}", [-1])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows = npk.load("a")
    for thread in range(2):
        assert rows[rows[:, 0] == thread, 1].tolist() == list(range(50))
        assert npk.load(f"b{thread}").tolist() == [-1] * 50 + list(range(50, 150))
