"""`batch_mode`: copies in memory, and one commit at the end."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import weakref

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_lifecycle import read_only  # noqa: F401

A = np.arange(12.0).reshape(4, 3)


@pytest.fixture
def stored(npk):
    """A store with the arrays a and b."""
    npk.save({"a": A, "b": A[:2]})
    return npk


def test_memo_example_gives_both_changes(stored, load_all, path):
    with stored.batch_mode():
        a = stored.load("a")
        a *= 2
        stored.save({"a": a})
        stored.append({"a": A[:1]})
    expected = np.concatenate([2 * A, A[:1]])
    assert_same(stored.load("a"), expected)
    assert_same(load_all(path)["a"], expected)


def test_loading_gives_the_same_object_each_time(stored):
    with stored.batch_mode() as context:
        assert context.npk is stored
        a = stored.load("a")
        assert stored.load("a") is a and stored["a"] is a and stored.load("a", lazy=True) is a
        stored.save({"a": a})
        assert stored.load("a") is a
        new = np.ones(3)
        stored.save({"new": new})
        assert stored.load("new") is new
    assert stored.load("a") is not a
    assert stored.load("a").flags.writeable


def test_changes_in_place_are_saved_without_save(stored, load_all, path):
    with stored.batch_mode():
        stored.load("a")[1] = 7
        stored.load("b")
        stored.save({"new": A})
    expected = A.copy()
    expected[1] = 7
    assert_same(load_all(path)["a"], expected)


def test_arrays_that_did_not_change_are_not_written(stored):
    files = {name: array["data_file"] for name, array in stored.get_metadata()["arrays"].items()}
    with stored.batch_mode():
        a = stored.load("a")
        a += 1
        a -= 1
        stored.load("b")[0] = 5
    after = {name: array["data_file"] for name, array in stored.get_metadata()["arrays"].items()}
    assert after["a"] == files["a"] and after["b"] != files["b"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (0, 2), (2, 1, 3)], ids=str)
def test_any_change_in_place_is_noticed(npk, dtype, shape, order):
    before, after = example(dtype, shape, 1), example(dtype, shape, 2)
    npk.save({"a": np.asarray(before, order=order)})
    with npk.batch_mode():
        npk.load("a")
    assert_same(npk.load("a"), np.asarray(before))
    with npk.batch_mode():
        npk.load("a")[...] = after
    assert_same(npk.load("a"), np.asarray(after))


@pytest.mark.parametrize("compress", [None, True])
def test_one_byte_of_many_is_noticed(npk, compress):
    large = np.zeros((1000, 1001), np.int32)
    npk.save({"a": large}, compress)
    with npk.batch_mode():
        npk.load("a")[-1, -1] = 1
    assert npk.load("a").sum() == 1
    assert (npk.get_metadata()["arrays"]["a"]["codec"] is None) == (compress is None)


def test_nan_and_negative_zero_are_compared_by_their_bytes(npk):
    npk.save({"a": np.array([np.nan, 0.0])})
    file = npk.get_metadata()["arrays"]["a"]["data_file"]
    with npk.batch_mode():
        npk.load("a")
    assert npk.get_metadata()["arrays"]["a"]["data_file"] == file
    with npk.batch_mode():
        npk.load("a")[1] = -0.0
    assert np.signbit(npk.load("a")[1])


def test_what_is_changed_after_save_is_saved(stored):
    with stored.batch_mode():
        mine = np.zeros(3)
        stored.save({"mine": mine})
        mine[1] = 4
    assert stored.load("mine").tolist() == [0, 4, 0]


def test_appended_and_replaced_rows_are_copied_at_once(stored):
    rows = np.ones((1, 3))
    with stored.batch_mode():
        stored.append({"a": rows})
        stored.replace({"a": rows}, 0)
        rows[:] = 9
    assert stored.load("a")[[0, -1]].tolist() == [[1] * 3] * 2


def test_every_change_is_seen_within_the_block(stored):
    with stored.batch_mode():
        stored.save({"new": np.arange(3)})
        stored.append({"b": A[3:]})
        stored.drop("a", 1)
        assert stored.get_member_list() == list(stored) == ["a", "b", "new"]
        assert len(stored) == 3 and "new" in stored and stored.has_array("new") and "no" not in stored
        assert stored.get_shape() == {"a": (3, 3), "b": (3, 3), "new": (3,)}
        assert stored.get_shape("b") == (3, 3)
        assert_same(stored.getitem("b", [-1, 0]), A[[3, 0]])
        assert_same(stored.getitem("a", 1), A[2:3])
        assert [piece.shape for piece in stored.stream_load("b", 2)] == [(2, 3), (1, 3)]
        assert_same(stored["a"], A[[0, 2, 3]])
        metadata = stored.get_metadata()
        assert metadata["total_arrays"] == 3
        assert {name: array["shape"] for name, array in metadata["arrays"].items()} == {
            "a": [3, 3],
            "b": [3, 3],
            "new": [3],
        }
        assert metadata["arrays"]["new"]["dtype"] == "Int64"
        assert stored.get_modify_time("new") is not None
        assert "arrays=3" in repr(stored)
        stored.drop("a")
        assert "a" not in stored and stored.get_modify_time("a") is None
        for call in (stored.load, stored.get_shape, stored.stream_load, lambda name: stored.getitem(name, 0)):
            with pytest.raises(KeyError, match="does not exist"):
                call("a")
        stored.reset()
        assert len(stored) == 0 and stored.get_shape() == {}
        stored.save({"last": A})
    assert list(stored) == ["last"]


def test_nothing_is_written_before_the_end(stored, numpack, path):
    with numpack.NumPack(path) as other:
        with stored.batch_mode():
            stored.save({"new": A})
            stored.append({"a": A})
            stored.drop("b")
            stored.attrs["x"] = 1
            assert other.get_shape() == {"a": (4, 3), "b": (2, 3)} and dict(other.attrs) == {}
        assert other.get_shape() == {"a": (8, 3), "new": (4, 3)} and dict(other.attrs) == {"x": 1}


def test_block_that_raises_writes_nothing(stored, load_all, path):
    with pytest.raises(ZeroDivisionError), stored.batch_mode():
        stored.save({"new": A, "a": -A})
        stored.append({"b": A})
        stored.drop("b")
        stored.attrs_of("a")["unit"] = "m"
        stored.load("a")[:] = 9
        1 / 0  # noqa: B018
    for arrays in (load_all(path), {name: stored.load(name) for name in stored}):
        assert list(arrays) == ["a", "b"]
        assert_same(arrays["a"], A)
        assert_same(arrays["b"], A[:2])
    assert dict(stored.attrs_of("a")) == {}
    with stored.batch_mode():
        stored.save({"a": -A})
    assert_same(stored.load("a"), -A)


def test_commit_that_cannot_be_made_leaves_the_store_usable(stored):
    stored.save({"keep": A})
    with pytest.raises(RuntimeError, match="not opened or has been closed"), stored.batch_mode():
        stored.save({"a": -A})
        stored.close()
    stored.open()
    assert_same(stored.load("a"), A)
    stored.save({"a": A + 1})
    assert_same(stored.load("a"), A + 1)


def test_all_of_it_is_one_commit(stored, numpack, path):
    """Whoever reads meanwhile sees all of a block or nothing of it."""
    stored.save({f"x{n}": np.zeros(1) for n in range(20)})
    seen, done = [], threading.Event()

    def read():
        with numpack.NumPack(path) as other:
            while not done.is_set():
                names = set(other.get_member_list())
                seen.append(("y0" in names, "y19" in names, "x0" in names, "x19" in names))

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(20):
        for old, new in ("xy", "yx"):
            with stored.batch_mode():
                stored.drop([f"{old}{n}" for n in range(20)])
                stored.save({f"{new}{n}": np.zeros(1) for n in range(20)})
    done.set()
    thread.join()
    assert set(seen) <= {(True, True, False, False), (False, False, True, True)}


def n_frames(path):
    """How many frames the manifest of a store has: one snapshot, and one for each commit since."""
    data, offset, n = (path / "metadata.npkm").read_bytes(), 64, 0
    while offset < len(data):
        length = int.from_bytes(data[offset + 8 : offset + 12], "little")
        offset, n = offset + 24 + length + -length % 8, n + 1
    return n


def test_codecs_and_attributes_are_in_the_same_commit(stored, path, load_all):
    stored.attrs_of("b").update({"old": 1, "kept": 2})
    stored.save({"dropped": A, "again": A}, compress=7)
    stored.attrs_of("again")["old"] = 1
    before = n_frames(path)
    with stored.batch_mode():
        stored.save({"a": A + 1}, compress={"level": 3, "block": 4096})
        stored.recompress("b", 5)
        stored.save({"new": A})
        stored.attrs_of("new")["unit"] = "m"
        stored.attrs_of("b").update({"old": 3, "added": [1]})
        del stored.attrs_of("b")["kept"]
        stored.drop(["dropped", "again"])
        stored.save({"again": A})
        stored.attrs["version"] = 2
    assert n_frames(path) == before + 1
    arrays = stored.get_metadata()["arrays"]
    levels = {name: found["codec"] and found["codec"]["level"] for name, found in arrays.items()}
    assert (levels["a"], levels["b"], levels["new"], levels["again"]) == (3, 5, None, None)
    assert arrays["a"]["codec"]["block"] == 4096
    assert dict(stored.attrs_of("b")) == {"old": 3, "added": [1]}
    assert dict(stored.attrs_of("new")) == {"unit": "m"}
    assert dict(stored.attrs_of("again")) == {}
    assert dict(stored.attrs) == {"version": 2}
    assert_same(load_all(path)["a"], A + 1)
    with stored.batch_mode():
        stored.attrs_of("b")["added"] = None
    assert n_frames(path) == before + 2
    with stored.batch_mode():
        stored.attrs_of("b")["added"] = None
    assert n_frames(path) == before + 2


def test_attributes_of_an_array_that_is_gone_meanwhile_leave_nothing_written(stored, numpack, path, load_all):
    before = load_all(path)
    with pytest.raises(numpack.ArrayNotFoundError), stored.batch_mode():
        stored.save({"new": A})
        stored.attrs_of("b")["unit"] = "m"
        with numpack.NumPack(path) as other:
            other.drop("b")
    after = load_all(path)
    assert after.keys() == before.keys() - {"b"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals")
def test_killed_block_leaves_nothing(stored, path, load_all):
    code = f"""
        import numpy as np, os, signal
        from numpack import NumPack
        with NumPack({str(path)!r}) as npk, npk.batch_mode(memory_limit=10):
            npk.load("a")[:] = 0
            npk.save({{"new": np.zeros(3)}})
            npk.drop("b")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    arrays = load_all(path)
    assert list(arrays) == ["a", "b"]
    assert_same(arrays["a"], A)


def test_block_within_a_block_joins_it(stored, numpack, path):
    with numpack.NumPack(path) as other:
        with stored.batch_mode():
            a = stored.load("a")
            with stored.batch_mode():
                assert stored.load("a") is a
                stored.save({"inner": A})
            assert stored.load("a") is a
            assert "inner" not in other
            stored.save({"outer": A})
        assert list(other) == ["a", "b", "inner", "outer"]


def test_blocks_follow_each_other_and_other_modes(stored):
    for n in range(3):
        with stored.batch_mode():
            stored.load("a")[0, 0] = n
        with stored.writable_batch_mode() as wb:
            wb.load("a")[0, 1] = n
        stored.replace({"a": np.full((1, 3), float(n))}, 1)
        assert stored.load("a")[0].tolist() == [n, n, 2]


def test_only_this_store_is_in_the_block(stored, numpack, path):
    kind = type(stored)
    with numpack.NumPack(path) as other, stored.batch_mode():
        stored.load("a")[:] = 0
        assert_same(other.load("a"), A)
        other.save({"by the other": A})
        assert "by the other" in stored
        made = type(stored)(path)
        assert type(made) is kind and isinstance(stored, kind)
    assert type(stored) is kind


def test_overridden_methods_go_on_working(numpack, path):
    class Counting(numpack.NumPack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.n_loads = 0

        def load(self, name, *args, **kwargs):
            self.n_loads += 1
            return super().load(name.lower(), *args, **kwargs)

    with Counting(path) as npk:
        npk.save({"a": A})
        with npk.batch_mode():
            a = npk.load("A")
            assert npk.load("A") is a
            assert npk["A"] is a
        assert npk.n_loads == 3 and type(npk) is Counting
        assert_same(npk.load("A"), A)


def test_store_is_collected_after_a_block(numpack, path):
    npk = numpack.NumPack(path)
    npk.open()
    with npk.batch_mode():
        npk.save({"a": A})
    reference = weakref.ref(npk)
    npk.close()
    del npk
    gc.collect()
    assert reference() is None


def test_entering_needs_an_open_store(numpack, path):
    npk = numpack.NumPack(path)
    context = npk.batch_mode()
    with pytest.raises(RuntimeError, match="not opened or has been closed"):
        context.__enter__()
    npk.open()
    with context:
        npk.save({"a": A})
    with context:
        npk.append({"a": A})
    assert npk.get_shape("a") == (8, 3)
    npk.close()


def test_codecs_stay_unless_save_says_otherwise(npk):
    npk.save({"a": A, "b": A, "c": A}, compress=5)
    npk.save({"plain": A})
    with npk.batch_mode():
        npk.load("a")[0] = 1
        npk.save({"b": -A})
        npk.save({"c": -A}, compress=False)
        npk.save({"plain": -A, "new": A}, compress=7)
        npk.clone("a", "copy")
    levels = {name: (array["codec"] or {}).get("level") for name, array in npk.get_metadata()["arrays"].items()}
    assert levels == {"a": 5, "b": 5, "c": None, "plain": 7, "new": 7, "copy": 5}
    assert_same(npk.load("plain"), -A)


def test_attributes_count_in_order(stored):
    stored.attrs_of("a")["old"] = 1
    stored.attrs_of("b")["old"] = 2
    with stored.batch_mode():
        stored.attrs_of("a")["unit"] = "m"
        assert dict(stored.attrs_of("a")) == {"old": 1, "unit": "m"}
        stored.save({"a": -A})
        stored.clone("a", "copy")
        stored.attrs_of("copy").pop("old")
        stored.drop("b")
        with pytest.raises(KeyError):
            stored.attrs_of("b")
        stored.save({"b": A})
        assert dict(stored.attrs_of("b")) == {}
    found = {name: dict(stored.attrs_of(name)) for name in stored}
    assert found == {"a": {"old": 1, "unit": "m"}, "b": {}, "copy": {"unit": "m"}}


def test_create_and_write_rows(stored):
    with stored.batch_mode():
        stored.create("grid", (4, 2), np.int16)
        stored.write_rows("grid", 1, np.ones((2, 2), np.int16))
        with pytest.raises(ValueError, match="already exists"):
            stored.create("a", 3)
        with pytest.raises(IndexError):
            stored.write_rows("grid", 3, np.ones((2, 2), np.int16))
    assert stored.load("grid").tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


def test_load_into_a_buffer_and_of_some_rows(stored):
    out = np.empty_like(A)
    with stored.batch_mode():
        assert stored.load("a", out=out) is out
        assert_same(stored.load("a", rows=[1, -1]), A[[1, -1]])
        stored.replace({"a": -A[:1]}, 0)
        assert stored.load("a", out=out) is out
        assert_same(out, np.concatenate([-A[:1], A[1:]]))
        assert_same(stored.load("a", rows=slice(0, 1)), -A[:1])
        for wrong, error in ((np.empty(3), ValueError), (np.empty(A.shape, "f4"), TypeError), ([], TypeError)):
            with pytest.raises(error):
                stored.load("a", out=wrong)


WRONG = {
    "no dict": (lambda npk: npk.save([A]), ValueError),
    "no name": (lambda npk: npk.save({1: A}), TypeError),
    "NUL": (lambda npk: npk.save({"\0": A}), ValueError),
    "long name": (lambda npk: npk.save({"x" * 4097: A}), ValueError),
    "objects": (lambda npk: npk.save({"new": A, "a": np.array([None])}), TypeError),
    "level": (lambda npk: npk.save({"a": A}, compress=99), ValueError),
    "compress": (lambda npk: npk.save({"a": A}, compress="zstd"), TypeError),
    "append to nothing": (lambda npk: npk.append({"b": A, "new": A}), KeyError),
    "append, old error": (lambda npk: npk.append({"new": A}), ValueError),
    "append of another shape": (lambda npk: npk.append({"b": A, "a": A[:, :1]}), ValueError),
    "append of another dtype": (lambda npk: npk.append({"b": A, "a": A.astype("i4")}), TypeError),
    "replace of what is not there": (lambda npk: npk.replace({"b": A[:1], "new": A[:1]}, 0), KeyError),
    "replace out of range": (lambda npk: npk.replace({"a": A[:1], "b": A[:1]}, 3), IndexError),
    "replace of too few": (lambda npk: npk.replace({"a": A[:2]}, [0, 1, 2]), ValueError),
    "replace by no index": (lambda npk: npk.replace({"a": A[:2]}, "x"), IndexError),
    "drop by a short mask": (lambda npk: npk.drop("a", [True]), IndexError),
    "drop of no name": (lambda npk: npk.drop(3), TypeError),
    "getitem out of range": (lambda npk: npk.getitem("a", 4), IndexError),
    "clone of nothing": (lambda npk: npk.clone("new", "newer"), KeyError),
    "clone onto itself": (lambda npk: npk.clone("a", "a"), ValueError),
    "buffer size": (lambda npk: (npk.load("a"), npk.stream_load("a", 0)), ValueError),
    "rows of 0-d": (lambda npk: npk.append({"0-d": A}), ValueError),
    "attribute": (lambda npk: npk.attrs.update(x=1, y=object()), TypeError),
}


@pytest.mark.parametrize(("call", "error"), WRONG.values(), ids=WRONG)
def test_wrong_calls_raise_at_once_and_change_nothing(stored, call, error):
    stored.save({"0-d": np.array(1.0)})
    shapes = stored.get_shape()
    with stored.batch_mode():
        with pytest.raises(error):
            call(stored)
        assert stored.get_shape() == shapes
    assert stored.get_shape() == shapes
    assert dict(stored.attrs) == {}
    assert_same(stored.load("b"), A[:2])


@pytest.mark.parametrize("limit", [-1, "10 MB", object()])
def test_memory_limit_is_a_number_of_bytes(stored, limit):
    with pytest.raises((TypeError, ValueError), match="bytes"):
        stored.batch_mode(memory_limit=limit)


def mapped_files():
    """How many bytes this process has mapped of files that have no name."""
    with open("/proc/self/maps") as maps:
        areas = [line.split(maxsplit=5) for line in maps if "(deleted)" in line]
    spans = (area[0].split("-") for area in areas)
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans)


def test_copies_beyond_the_limit_are_in_unnamed_files(npk, path):
    large = np.arange(1 << 18, dtype=np.float64)
    npk.save({name: large for name in "abc"})
    npk.save({"c": large}, compress=True)
    before, names = mapped_files(), sorted(os.listdir(path))
    with npk.batch_mode(memory_limit=3 << 20):
        loaded = {name: npk.load(name) for name in "abc"}
        assert mapped_files() - before >= 2 * large.nbytes
        assert sorted(os.listdir(path)) == names
        for name in "abc":
            assert npk.load(name) is loaded[name]
            loaded[name] += 1
        npk.append({"a": large})
        npk.drop("b", slice(0, 10))
        npk.clone("c", "d")
        npk.create("zeros", 1 << 18)
        assert npk.load("b").shape == ((1 << 18) - 10,)
    assert_same(npk.load("a"), np.concatenate([large + 1, large]))
    assert_same(npk.load("b"), large[10:] + 1)
    assert_same(npk.load("c"), large + 1)
    assert_same(npk.load("d"), large + 1)
    assert not npk.load("zeros").any()
    # What somebody holds stays.
    assert loaded["b"][-1] == (1 << 18)
    del loaded
    gc.collect()
    assert mapped_files() == before


def test_store_that_can_only_be_read(numpack, read_only):
    with numpack.NumPack(read_only) as npk:
        with npk.batch_mode(memory_limit=0):
            a = npk.load("a")
            assert_same(a.copy(), A)
        for change in (lambda: npk.load("a").fill(0), lambda: npk.save({"b": A}), lambda: npk.drop("a")):
            with pytest.raises(numpack.ReadOnlyError), npk.batch_mode():
                change()
        with pytest.raises(numpack.ReadOnlyError), npk.writable_batch_mode() as wb:
            wb.load("a")
        with pytest.raises(numpack.ReadOnlyError):
            npk.attrs["x"] = 1
        assert_same(npk.load("a"), A)
    # Its directory has no room for a package, and no lock can be taken.
    with tempfile.TemporaryDirectory() as folder:
        package = numpack.pack(read_only, os.path.join(folder, "p.npkg"))
        with numpack.NumPack(numpack.unpack(package)) as npk:
            assert_same(npk.load("a"), A)


def test_threads_may_share_the_block(stored):
    stored.save({"n": np.zeros(0)})
    with stored.batch_mode():

        def work(n):
            for i in range(50):
                stored.append({"n": np.array([float(n)])})
                stored.save({f"{n}.{i}": np.zeros(1)})

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert np.bincount(stored.load("n").astype(int)).tolist() == [50] * 4
    assert len(stored) == 203


def test_no_call_of_another_thread_is_lost_when_a_block_ends(stored, load_all, path):
    names, done = [], threading.Event()
    failures = []

    def work():
        try:
            while not done.is_set():
                names.append(f"n{len(names)}")
                stored.save({names[-1]: np.full(1, len(names))})
                assert stored.load(names[-1])[0] == len(names)
                stored.append({"b": A[:1]})
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while len(names) < 60 and not failures:
        with stored.batch_mode():
            stored.load("a")[0] += 1
    done.set()
    thread.join()
    assert not failures
    arrays = load_all(path)
    assert [name for name in arrays if name.startswith("n")] == names
    assert len(arrays["b"]) == 2 + len(names)


NAMES = st.sampled_from("abcd")
INDEXES = st.one_of(
    st.integers(-4, 4),
    st.lists(st.integers(-3, 3), max_size=4),
    st.builds(slice, *[st.one_of(st.none(), st.integers(-5, 5))] * 2, st.sampled_from([None, 1, 2, -1])),
)
OPERATIONS = st.one_of(
    st.tuples(st.just("save"), NAMES, st.integers(0, 4), st.sampled_from(["i4", "f8"])),
    st.tuples(st.just("append"), NAMES, st.integers(0, 3)),
    st.tuples(st.just("replace"), NAMES, INDEXES),
    st.tuples(st.just("drop"), NAMES, st.one_of(st.none(), INDEXES)),
    st.tuples(st.just("in place"), NAMES, st.integers(1, 5)),
    st.tuples(st.just("clone"), NAMES, NAMES),
    st.tuples(st.just("attrs"), NAMES, st.sampled_from("xy"), st.integers(0, 3)),
    st.tuples(st.just("reset")),
    st.tuples(st.just("getitem"), NAMES, INDEXES),
    st.tuples(st.just("stream"), NAMES, st.integers(1, 3)),
)


def apply(npk, operation, serial):
    """Does one operation and returns what it gave: something that can be compared."""
    kind, *arguments = operation
    name = arguments[0] if arguments else None
    if kind == "save":
        npk.save({name: np.arange(serial, serial + 2 * arguments[1]).reshape(-1, 2).astype(arguments[2])})
    elif kind == "append":
        npk.append({name: [[serial, -serial]] * arguments[1]} if arguments[1] else {name: np.zeros((0, 2), "i4")})
    elif kind == "replace":
        rows = np.empty(npk.get_shape(name)[0])[arguments[1]]
        npk.replace({name: [[serial, serial]] * np.size(rows)}, arguments[1])
    elif kind == "drop":
        npk.drop(name, arguments[1])
    elif kind == "in place":
        array = npk.load(name)
        array += arguments[1]
        if type(npk).__mro__[1].__name__ != "BatchMethods":
            npk.save({name: array})
    elif kind == "clone":
        npk.clone(*arguments)
    elif kind == "attrs":
        npk.attrs_of(name)[arguments[1]] = arguments[2]
    elif kind == "reset":
        npk.reset()
    elif kind == "getitem":
        return npk.getitem(name, arguments[1]).tolist()
    elif kind == "stream":
        return [piece.tolist() for piece in npk.stream_load(*arguments)]
    return None


def outcome(npk, operation, serial):
    try:
        return apply(npk, operation, serial)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return type(error)


def contents(npk):
    arrays = {name: npk.load(name) for name in npk.get_member_list()}
    return {
        name: (array.dtype.str, npk.get_shape(name), array.tolist(), dict(npk.attrs_of(name)))
        for name, array in arrays.items()
    }


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(OPERATIONS, max_size=8), st.lists(OPERATIONS, max_size=12), st.sampled_from([None, 0, 40]))
def test_block_does_what_the_calls_do_without_one(numpack, tmp_path_factory, before, within, limit):
    folder = tmp_path_factory.mktemp("batch")
    with numpack.NumPack(folder / "one") as one, numpack.NumPack(folder / "other") as other:
        for serial, operation in enumerate(before):
            assert outcome(one, operation, serial) == outcome(other, operation, serial)
        with one.batch_mode(memory_limit=limit):
            for serial, operation in enumerate(within, 100):
                assert outcome(one, operation, serial) == outcome(other, operation, serial), operation
                assert {name: one.get_shape(name) for name in one} == other.get_shape()
            assert contents(one) == contents(other)
            names = list(one)
        assert contents(one) == contents(other)
        assert list(one) == names
