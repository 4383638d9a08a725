"""Arrays made empty and written region by region, by many processes at once; reading into given arrays; copies."""

import os
import subprocess
import sys

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example

A = example("f4", (7, 3))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_new_arrays_are_zeros_of_any_dtype(npk, dtype):
    npk.create("a", (3, 2), dtype)
    assert_same(npk.load("a"), np.zeros((3, 2), dtype))
    rows = example(dtype, (2, 2))
    npk.write_rows("a", 1, rows)
    assert_same(npk.load("a")[1:], rows)


@pytest.mark.parametrize("shape", [5, (), (0,), (4, 0, 2), [2, 3], np.int64(4), (np.int8(2), 3)], ids=repr)
def test_new_arrays_have_the_shape_asked_for(npk, shape):
    npk.create("a", shape)
    assert_same(npk.load("a"), np.zeros(shape))
    assert npk.get_shape("a") == np.zeros(shape).shape


def test_new_arrays_take_no_space(npk, path):
    for name, compress in (("plain", False), ("compressed", True)):
        npk.create(name, (1 << 20, 100), "f8", compress=compress)
        assert not npk.load(name, lazy=True)[-1].any()
    assert sum(file.stat().st_blocks * 512 for file in path.iterdir()) < 1 << 20


def test_new_arrays_are_compressed_as_asked_for(npk):
    npk.create("a", 10, np.int16, compress={"level": 3, "block": 8192, "filter": "delta"})
    npk.create("b", 10, np.int16, compress=True)
    npk.create("c", 10, np.int16, compress=False)
    codecs = {name: found["codec"] for name, found in npk.get_metadata()["arrays"].items()}
    assert codecs == {
        "a": {"level": 3, "block": 8192, "filter": "delta"},
        "b": {"level": 1, "block": 65536, "filter": "shuffle"},
        "c": None,
    }


def test_creating_refuses_what_cannot_be(numpack, npk):
    npk.create("a", 3)
    with pytest.raises(numpack.ArrayExistsError, match="already exists"):
        npk.create("a", 4)
    assert npk.get_shape("a") == (3,)
    for shape in (-1, (2, -1), "23", 2.5, None, (2, "3"), {"a": 1}):
        with pytest.raises(ValueError, match="is no shape"):
            npk.create("b", shape)
    with pytest.raises(TypeError):
        npk.create("b", 3, object)
    with pytest.raises(ValueError, match="compress is 99"):
        npk.create("b", 3, compress=99)
    assert npk.get_member_list() == ["a"]


@pytest.mark.parametrize("compress", [False, True, {"block": 4096}], ids=repr)
def test_rows_written_are_as_users_count_them(numpack, npk, compress):
    data = example("i4", (5000, 3))
    npk.save({"a": data, "f": np.asfortranarray(data)}, compress=compress)
    npk.drop("a", [0, 10, 11])
    for name, expected in (("a", np.delete(data, [0, 10, 11], axis=0)), ("f", data.copy())):
        for start, n in ((0, 1), (8, 5), (1000, 2500), (len(expected) - 1, 1), (3, 0), (len(expected), 0)):
            rows = example("i4", (n, 3), seed=n)
            expected[start : start + n] = rows
            npk.write_rows(name, start, rows)
        npk.write_rows(name, np.int64(5), [[1, 2, 3]])
        expected[5] = [1, 2, 3]
        npk.write_rows(name, 20, npk.load(name, lazy=True)[40:60:2])
        expected[20:30] = expected[40:60:2]
        assert_same(np.ascontiguousarray(npk.load(name)), expected)


def test_write_rows_refuses_what_does_not_fit_and_writes_nothing(numpack, npk):
    npk.save({"a": A, "0-d": np.array(1.0)})
    for start, rows, error in (
        (6, A[:2], numpack.RowIndexError),
        (7, A[:1], numpack.RowIndexError),
        (10**30, A[:1], numpack.RowIndexError),
        (-1, A[:1], numpack.RowIndexError),
        (0, A[:1, :2], ValueError),
        (0, A[0], ValueError),
        (0, A[:1].astype("f8"), TypeError),
        (0, [["x", "y", "z"]], TypeError),
        ("0", A[:1], TypeError),
        (slice(0, 1), A[:1], TypeError),
    ):
        with pytest.raises(error):
            npk.write_rows("a", start, rows)
    with pytest.raises(KeyError, match="does not exist"):
        npk.write_rows("b", 0, A)
    with pytest.raises(ValueError):
        npk.write_rows("0-d", 0, np.array([1.0]))
    assert_same(npk.load("a"), A)


PRODUCER = """
import sys
import numpy as np
from numpack import NumPack
path, number, n_rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with NumPack(path) as npk:
    sys.stdin.read(1)
    for row in range(number * n_rows, (number + 1) * n_rows, 10):
        rows = np.arange(row, row + 10, dtype="i8")[:, None] * [1, 10]
        for name in ("plain", "compressed"):
            npk.write_rows(name, row, rows)
"""


def test_many_processes_fill_one_array(numpack, npk, path):
    n_processes, n_rows = 4, 200
    npk.create("plain", (n_processes * n_rows, 2), "i8", compress=False)
    npk.create("compressed", (n_processes * n_rows, 2), "i8", compress={"block": 4096})
    producers = [
        subprocess.Popen(
            [sys.executable, "-c", PRODUCER, str(path), str(number), str(n_rows)],
            stdin=subprocess.PIPE,
            env=os.environ | {"NUMPACK_BACKEND": npk.backend_type},
        )
        for number in range(n_processes)
    ]
    for producer in producers:
        producer.stdin.write(b"!")
        producer.stdin.flush()
    for producer in producers:
        producer.stdin.close()
        assert producer.wait() == 0
    expected = np.arange(n_processes * n_rows)[:, None] * [1, 10]
    for name in ("plain", "compressed"):
        assert_same(npk.load(name), expected)


LOCKED = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))  # F_OFD_SETLK
print("locked", flush=True)
sys.stdin.read(1)
"""


def test_regions_do_not_wait_for_a_writer_at_work(npk, path):
    npk.create("a", 10)
    with subprocess.Popen(
        [sys.executable, "-c", LOCKED, path / "metadata.npkm.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"locked\n"
        npk.write_rows("a", 3, [1.0, 2.0])
        assert npk.load("a")[3] == 1
        assert writer.poll() is None


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_loading_into_an_array(npk, compress, order):
    data = np.asarray(example("i8", (30, 4)), order=order)
    npk.save({"a": data}, compress=compress)
    out = np.empty((30, 4), "i8")
    assert npk.load("a", out=out) is out
    assert_same(out, np.ascontiguousarray(data))
    for rows in (slice(3, 9), slice(None, None, -3), [5, -1, 5], 7, np.arange(30) % 7 == 0, (1, 2), []):
        index = {int: lambda row: [row], tuple: list}.get(type(rows), lambda rows: rows)(rows)
        expected = np.ascontiguousarray(data[index])
        assert_same(npk.load("a", rows=rows), expected)
        out = np.empty(expected.shape, "i8")
        assert npk.load("a", rows=rows, out=out) is out
        assert_same(out, expected)
        out = np.empty(expected.shape, "i8")
        assert npk.getitem("a", rows, out=out) is out
        assert_same(out, expected)
    part = np.zeros((40, 4), "i8")
    npk.load("a", out=part[5:35])
    assert_same(part[5:35], np.ascontiguousarray(data))
    assert not part[:5].any() and not part[35:].any()


def test_loading_into_arrays_of_odd_shapes(npk):
    npk.save({"0-d": np.array(5.0), "none": np.zeros((0, 3)), "view": A})
    out = np.empty(())
    assert npk.load("0-d", out=out) is out and out == 5
    assert npk.load("none", out=np.empty((0, 3))).shape == (0, 3)
    memory = np.memmap  # A subclass of ndarray is as good.
    assert isinstance(npk.load("view", out=A.copy().view(memory)), memory)


def test_what_cannot_be_loaded_into_is_left_alone(numpack, npk):
    npk.save({"a": A})
    read_only = np.zeros((7, 3), "f4")
    read_only.flags.writeable = False
    for out, error, message in (
        (np.zeros((7, 3)), TypeError, "out has dtype float64, expected float32"),
        (np.zeros((7, 3), ">f4"), TypeError, "out has dtype >f4"),
        (np.zeros((3, 7), "f4"), ValueError, r"out has shape \(3, 7\), expected \(7, 3\)"),
        (np.zeros((3, 7), "f4").T, ValueError, "not C-contiguous"),
        (np.zeros((14, 3), "f4")[::2], ValueError, "not C-contiguous"),
        (read_only, ValueError, "read-only"),
        ([[0.0] * 3] * 7, TypeError, "out is of type list"),
        (bytearray(84), TypeError, "out is of type bytearray"),
    ):
        with pytest.raises(error, match=message):
            npk.load("a", out=out)
        assert not np.any(out)
    with pytest.raises(numpack.RowIndexError):
        npk.load("a", rows=7)
    for kwargs in ({"rows": 0}, {"out": np.empty((7, 3), "f4")}):
        with pytest.raises(ValueError, match="lazy=True"):
            npk.load("a", lazy=True, **kwargs)


def test_clone_is_an_independent_copy_of_the_rows_that_are_left(numpack, npk):
    npk.save({"a": A}, compress=True)
    npk.drop("a", [1, 2])
    assert npk.clone("a", "b") is None
    kept = np.delete(A, [1, 2], axis=0)
    npk.replace({"a": A[:1]}, 0)
    npk.append({"b": A[:1]})
    assert_same(npk.load("b"), np.concatenate([kept, A[:1]]))
    npk.drop("a")
    npk.clone("b", "a")
    assert npk.get_member_list() == ["b", "a"]
    assert npk.get_metadata()["arrays"]["a"]["codec"] == npk.get_metadata()["arrays"]["b"]["codec"] is not None
    with pytest.raises(KeyError):
        npk.clone("x", "y")
    for target in ("a", "b"):
        with pytest.raises(ValueError, match="already exists"):
            npk.clone("b", target)
    with pytest.raises(numpack.ArrayNotFoundError):
        npk.clone("x", "a")


def test_clone_keeps_the_order_and_the_dtype(npk):
    for name, array in (("f", np.asfortranarray(A)), ("0-d", np.array(3)), ("none", A[:0]), ("s", example("U3", 4))):
        npk.save({name: array})
        npk.clone(name, "copy of " + name)
        found = npk.load("copy of " + name)
        assert_same(found, array)
        assert found.flags.f_contiguous == array.flags.f_contiguous


def test_codec_of_the_store_is_that_of_arrays_nobody_says_more_of(numpack, path):
    codec = {"level": 3, "block": 8192, "filter": "shuffle"}
    with numpack.NumPack(path, codec=codec) as npk:
        npk.save({"a": A})
        npk.save({"none": A}, compress=False)
        npk.save({"other": A}, compress=7)
        npk.create("new", 5)
        npk.create("new, none", 5, compress=False)
        codecs = {name: found["codec"] for name, found in npk.get_metadata()["arrays"].items()}
    assert codecs["a"] == codecs["new"] == codec
    assert codecs["none"] is codecs["new, none"] is None
    assert codecs["other"]["level"] == 7
    for wrong, error in ((99, ValueError), ({"size": 3}, ValueError), ("zstd", TypeError)):
        with pytest.raises(error, match="codec"):
            numpack.NumPack(path, codec=wrong)
    with numpack.NumPack(path, codec=None) as npk:
        npk.save({"a": A})
        assert npk.get_metadata()["arrays"]["a"]["codec"] is None


@pytest.mark.parametrize("durable", [False, True])
def test_durable_stores_and_flush_change_nothing_else(numpack, path, load_all, durable):
    with numpack.NumPack(path, durable=durable) as npk:
        npk.save({"a": A})
        npk.append({"a": A})
        npk.create("b", (7, 3), "f4", compress=True)
        npk.write_rows("b", 0, A)
        npk.write_rows("a", 0, A[::-1])
        npk.drop("a", 13)
        npk.replace({"a": A[:1]}, 5)
        assert npk.flush() is None
    expected = np.concatenate([A[::-1], A])[:13]
    expected[5] = A[0]
    assert_same(load_all(path)["a"], expected)
    assert_same(load_all(path)["b"], A)
    with pytest.raises(RuntimeError, match="not opened"):
        npk.flush()
