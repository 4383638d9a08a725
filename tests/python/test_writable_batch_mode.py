"""`writable_batch_mode`: arrays of a store, mapped for writing, and `numpack.writable_array`."""

import gc
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example

from numpack.writable_array import WritableArray, WritableBatchMode

A = np.arange(12.0).reshape(4, 3)
KINDS = {"uncompressed": None, "compressed": {"block": 4096}}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def compress(request):
    """Overrides that of conftest: every test of this file runs with either kind of array."""
    return request.param


@pytest.fixture
def stored(npk):
    npk.save({"a": A, "b": A[:2]})
    return npk


def test_what_is_written_to_the_array_is_stored(stored, load_all, path):
    with stored.writable_batch_mode() as wb:
        assert isinstance(wb, WritableBatchMode)
        a = wb.load("a")
        assert_same(a, A)
        assert a.flags.writeable and not a.flags.owndata
        assert wb.load("a") is a
        a *= 2
        a[0, 0] = -1
    expected = 2 * A
    expected[0, 0] = -1
    assert_same(stored.load("a"), expected)
    assert_same(load_all(path)["a"], expected)
    assert_same(load_all(path)["b"], A[:2])


def test_block_within_a_block_ends_with_the_outer_one(stored):
    wb = stored.writable_batch_mode()
    with wb:
        a = wb.load("a")
        with wb:
            a[0] = 1
        assert wb.load("a") is a
        a[1] = 2
    assert stored.load("a")[:2].tolist() == [[1] * 3, [2] * 3]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (0, 2), (2, 0), (2, 1, 3)], ids=str)
def test_every_dtype_and_shape(npk, dtype, shape):
    before, after = np.asarray(example(dtype, shape, 1)), np.asarray(example(dtype, shape, 2))
    npk.save({"a": before})
    with npk.writable_batch_mode() as wb:
        a = wb.load("a")
        assert_same(np.asarray(a), before)
        a[...] = after
    assert_same(npk.load("a"), after)


def test_fortran_order(npk):
    before = np.asfortranarray(np.arange(3000.0).reshape(50, 60))
    npk.save({"a": before})
    with npk.writable_batch_mode() as wb:
        a = wb.load("a")
        assert_same(np.array(a), np.array(before))
        a[7, :] = -1
    before[7, :] = -1
    assert np.array_equal(npk.load("a"), before)


def test_dropped_rows_are_not_mapped(stored):
    stored.drop("a", [0, 2])
    with stored.writable_batch_mode() as wb:
        a = wb.load("a")
        assert_same(np.array(a), A[[1, 3]])
        a[1] = 0
    assert stored.load("a").tolist() == [A[1].tolist(), [0] * 3]


def test_large_array_is_written_back_block_by_block(npk, compress):
    large = np.random.default_rng(0).integers(0, 50, (10_000, 300), np.int32)
    npk.save({"a": large})
    before = npk.get_metadata()["arrays"]["a"]
    with npk.writable_batch_mode() as wb:
        a = wb.load("a")
        for row in (0, 4321, 9999):
            a[row] = row
            large[row] = row
    assert np.array_equal(npk.load("a"), large)
    after = npk.get_metadata()["arrays"]["a"]
    assert after["data_file"] == before["data_file"]
    if compress is not None:
        with npk.writable_batch_mode() as wb:
            wb.load("a")
        # Nothing changed, so nothing was committed.
        assert npk.get_metadata()["arrays"]["a"]["last_modified"] == after["last_modified"]


def test_pieces_end_where_blocks_do(npk, monkeypatch):
    from numpack import _writable

    monkeypatch.setattr(_writable, "_PIECE_LEN", 10_000)
    values = np.arange(30_000, dtype=np.int16).reshape(-1, 6)
    npk.save({"a": values, "one wide row": values.reshape(1, -1), "odd": values.reshape(-1)[:-1]})
    with npk.writable_batch_mode() as wb:
        for name in npk:
            array = wb.load(name)
            array += 1
    assert np.array_equal(npk.load("a"), values + 1)
    assert np.array_equal(npk.load("one wide row")[0], values.reshape(-1) + 1)
    assert np.array_equal(npk.load("odd"), values.reshape(-1)[:-1] + 1)


def test_save_of_the_loaded_array_does_nothing(stored):
    with stored.writable_batch_mode() as wb:
        a = wb.load("a")
        a += 1
        wb.save({"a": a})
        wb.save({"a": a[:], "b": wb.load("b")})
        assert wb.load("a") is a
    assert_same(stored.load("a"), A + 1)


def test_save_of_another_array_is_copied_in(stored):
    with stored.writable_batch_mode() as wb:
        a = wb.load("a")
        wb.save({"a": -A, "b": [[1, 2, 3], [4, 5, 6]]})
        assert a[1, 1] == -4
        wb.save({"a": a[::-1]})
    assert_same(stored.load("a"), -A[::-1].copy())
    assert stored.load("b").tolist() == [[1, 2, 3], [4, 5, 6]]


def test_save_refuses_what_batch_mode_is_for(stored, numpack):
    with stored.writable_batch_mode() as wb:
        with pytest.raises(ValueError, match=r"\(4, 3\), not \(2, 3\); .* batch_mode"):
            wb.save({"b": A[:2] + 1, "a": A[:2]})
        with pytest.raises(TypeError, match="float64, not float32; .* batch_mode"):
            wb.save({"a": A.astype("f4")})
        with pytest.raises(KeyError, match="does not exist; .* batch_mode") as raised:
            wb.save({"b": A[:2] + 1, "new": A})
        assert isinstance(raised.value, numpack.ArrayNotFoundError)
        with pytest.raises(ValueError, match="dict"):
            wb.save([A])
    assert_same(stored.load("b"), A[:2])
    assert list(stored) == ["a", "b"]


def test_missing_names_and_wrong_ones(stored, numpack):
    with stored.writable_batch_mode() as wb:
        with pytest.raises(numpack.ArrayNotFoundError, match="does not exist"):
            wb.load("c")
        with pytest.raises(TypeError):
            wb.load(3)


def test_arrays_stay_valid_after_the_block(stored):
    with stored.writable_batch_mode() as wb:
        a = wb.load("a")
        part = a[1:]
        a[0] = 5
    stored.drop("a")
    stored.close()
    del a
    gc.collect()
    assert_same(part.copy(), A[1:])
    part[:] = 3
    assert part.sum() == 27


def test_load_and_save_need_the_block(stored):
    wb = stored.writable_batch_mode()
    with pytest.raises(RuntimeError, match="with"):
        wb.load("a")
    with wb:
        wb.load("a")
    with pytest.raises(RuntimeError, match="over"):
        wb.save({"a": A})
    stored.close()
    with pytest.raises(RuntimeError, match="not opened or has been closed"):
        wb.__enter__()


def test_block_that_raises_keeps_what_was_written(stored, load_all, path):
    with pytest.raises(ZeroDivisionError), stored.writable_batch_mode() as wb:
        wb.load("a")[0] = 9
        1 / 0  # noqa: B018
    assert load_all(path)["a"][0].tolist() == [9] * 3


def test_flush_commits_meanwhile(stored, load_all, path):
    with stored.writable_batch_mode() as wb:
        wb.load("a")[0] = 9
        wb.flush()
        assert load_all(path)["a"][0].tolist() == [9] * 3
        wb.load("a")[1] = 8
    assert load_all(path)["a"][:2].tolist() == [[9] * 3, [8] * 3]


def test_changes_of_others_to_other_blocks_stay(npk, numpack, path, compress):
    values = np.zeros((4096, 2))
    npk.save({"a": values})
    with numpack.NumPack(path) as other, npk.writable_batch_mode() as wb:
        wb.load("a")[0] = 1
        other.save({"b": values})
        wb.load("a")[-1] = 2
    assert npk.load("a")[[0, -1]].tolist() == [[1, 1], [2, 2]] and "b" in npk


def test_saving_over_a_mapped_array_leaves_it_with_the_old_version(stored):
    with stored.writable_batch_mode() as wb:
        a, b = wb.load("a"), wb.load("b")
        stored.save({"a": -A})
        stored.drop("b")
        a[0], b[0] = 7, 7
    assert_same(stored.load("a"), -A)
    assert list(stored) == ["a"]
    with stored.writable_batch_mode() as wb:
        wb.load("a")[0] = 7
        stored.save({"a": A[:2].astype("i2")})
    assert_same(stored.load("a"), A[:2].astype("i2"))


def test_store_that_is_closed_within_the_block(stored, compress):
    context = stored.writable_batch_mode()
    context.__enter__().load("a")[0] = 7
    stored.close()
    if compress is None:
        context.__exit__(None, None, None)
    else:
        with pytest.raises(RuntimeError, match="closed"):
            context.__exit__(None, None, None)
    stored.open()
    assert stored.load("a")[0, 0] == (7 if compress is None else 0)


def test_not_within_batch_mode(stored):
    with stored.batch_mode():
        with pytest.raises(RuntimeError, match="batch_mode"), stored.writable_batch_mode():
            pass
        stored.load("a")[0] = 2
    assert stored.load("a")[0].tolist() == [2] * 3


def test_modify_time_changes(stored):
    before = stored.get_modify_time("a")
    with stored.writable_batch_mode() as wb:
        wb.load("a")[0] = 2
    assert stored.get_modify_time("a") > before


def test_nothing_is_left_open(stored, path):
    def held():
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum(str(path) in line for line in maps)

    with stored.writable_batch_mode() as wb:
        wb.load("b")
    before = held()
    for _ in range(5):
        with stored.writable_batch_mode() as wb:
            wb.load("a")[0] = 1
        with pytest.raises(ZeroDivisionError), stored.writable_batch_mode() as wb:
            wb.load("b")[1 // 0] = 1
    del wb
    gc.collect()
    assert held() == before


def test_mapped_arrays_take_next_to_no_memory(tmp_path, compress):
    """128 MiB are changed by a process that may have 40 MiB more of its own than it had before."""
    code = f"""
        import numpy as np, resource
        from numpack import NumPack
        with NumPack({str(tmp_path / "x")!r}) as npk:
            npk.create("a", (1 << 14, 1 << 10), np.float64, compress={compress!r})
            anonymous = [line for line in open("/proc/self/status") if line.startswith("RssAnon")][0]
            with npk.writable_batch_mode() as wb:
                a = wb.load("a")
                for start in range(0, len(a), 1024):
                    a[start : start + 1024] += 1
                after = [line for line in open("/proc/self/status") if line.startswith("RssAnon")][0]
            grown = int(after.split()[1]) - int(anonymous.split()[1])
            assert grown < 40 << 10, grown
            assert npk.getitem("a", [0, -1]).min() == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_full_disk_is_an_error_and_no_crash(tmp_path):
    """Room for a decoded copy is reserved before it is used. A limit for files stands for the disk."""
    code = f"""
        import numpy as np, resource, signal
        from numpack import NumPack
        with NumPack({str(tmp_path / "x")!r}) as npk:
            npk.save({{"a": np.zeros(1 << 20)}}, compress=True)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
            for mode in (npk.writable_batch_mode(), npk.batch_mode(memory_limit=0)):
                try:
                    with mode:
                        getattr(mode, "load", npk.load)("a")
                except OSError as error:
                    print(type(error).__name__)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["OSError"] * 2


def test_writable_array_maps_a_file_of_bare_elements(tmp_path):
    file = tmp_path / "bare"
    np.arange(6, dtype="i4").tofile(file)
    with WritableArray(file, (2, 3), "i4") as array:
        assert type(array) is np.ndarray
        array[1] = 7
    assert np.fromfile(file, "i4").tolist() == [0, 1, 2, 7, 7, 7]
    array[0] = 8
    with WritableArray(str(file), 6, np.int32, mode="r") as array:
        assert not array.flags.writeable and array.tolist() == [8, 8, 8, 7, 7, 7]
    with WritableArray(file, (0, 3), "i4") as array:
        assert array.shape == (0, 3)
    with pytest.raises(ValueError, match="file"), WritableArray(file, 7, "i4", mode="r"):
        pass
    with pytest.raises(FileNotFoundError), WritableArray(tmp_path / "missing", 7, "i4"):
        pass


def test_an_array_is_dropped_that_was_written_through_a_mapping(stored):
    """`flush` found the file of the array missing: it had looked after what may still be written to it."""
    with stored.writable_batch_mode() as wb:
        a = wb.load("a")
        a[0] = 7
    a[1] = 8
    stored.drop("a")
    stored.flush()
    assert stored.get_member_list() == ["b"]
    assert a[1].tolist() == [8, 8, 8]
