"""Appending, replacing, dropping and reading rows, compared with NumPy doing the same."""

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example

A = example("f4", (6, 4))

INDEXES = {
    "int": 2,
    "negative int": -1,
    "np.int64": np.int64(3),
    "np.uint8": np.uint8(3),
    "0-d array": np.array(4),
    "list": [0, 3, 4],
    "unordered list": [4, 0, 3],
    "negative list": [-1, 0, -3],
    "consecutive list": [2, 3, 4],
    "tuple": (1, 5),
    "list of np.int64": [np.int64(1), np.int64(5)],
    "array": np.array([5, 1]),
    "int8 array": np.array([-1, 1], "i1"),
    "uint64 array": np.array([5, 1], "u8"),
    "big-endian array": np.array([5, 1], ">i4"),
    "strided array": np.arange(6)[1::2],
    "range": range(1, 6, 2),
    "empty list": [],
    "empty array": np.array([], int),
    "slice": slice(1, 4),
    "open slice": slice(3, None),
    "slice to the end": slice(0, -1),
    "whole slice": slice(None),
    "step": slice(None, None, 2),
    "negative step": slice(None, None, -1),
    "negative step, bounds": slice(4, 1, -2),
    "clipped slice": slice(4, 100),
    "empty slice": slice(4, 2),
    "mask": np.array([True, False, True, True, False, False]),
    "mask list": [False, True, False, False, False, True],
    "empty mask": np.zeros(6, bool),
}


def as_numpy(index):
    """The index with the meaning that rows have: always along axis 0, an int gives one row."""
    if isinstance(index, slice):
        return index
    if isinstance(index, list | tuple | range):
        return np.array(index) if len(index) else np.array([], int)
    return np.atleast_1d(index)


@pytest.fixture(params=["whole", "with dropped rows", "Fortran"])
def stored(request, npk):
    """An open store in which array "a" is A, however it came to be."""
    if request.param == "with dropped rows":
        npk.save({"a": np.repeat(A, 2, axis=0)})
        npk.drop("a", slice(None, None, 2))
    else:
        npk.save({"a": np.asfortranarray(A) if request.param == "Fortran" else A})
    assert np.array_equal(npk.load("a"), A)
    return npk


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_getitem_gives_the_rows_as_a_copy(stored, index):
    rows = stored.getitem("a", index)
    assert_same(rows, np.ascontiguousarray(A[as_numpy(index)]))
    assert rows.flags.writeable and rows.flags.owndata


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_replace_writes_these_rows_and_no_other(stored, load_all, path, index):
    expected = A.copy()
    values = example("f4", expected[as_numpy(index)].shape, seed=1)
    expected[as_numpy(index)] = values
    stored.replace({"a": values}, index)
    assert np.array_equal(stored.load("a"), expected)
    assert np.array_equal(np.asarray(stored.load("a", lazy=True)), expected)
    assert np.array_equal(load_all(path)["a"], expected)


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_drop_removes_these_rows_and_no_other(stored, load_all, path, index):
    expected = np.delete(A, np.arange(6)[as_numpy(index)], axis=0)
    stored.drop("a", index)
    assert stored.get_shape("a") == expected.shape
    assert np.array_equal(stored.load("a"), expected)
    assert np.array_equal(np.asarray(stored.load("a", lazy=True)), expected)
    assert np.array_equal(load_all(path)["a"], expected)
    stored.update("a")
    assert np.array_equal(stored.load("a"), expected)
    stored.append({"a": A[:2]})
    assert np.array_equal(stored.load("a"), np.concatenate([expected, A[:2]]))


UNSUITABLE = [1.5, "a", None, True, {"a": 1}, [1.5], ["a"], np.array([1.5]), np.array([[0, 1]]), [[0, 1]], np.array(True)]


@pytest.mark.parametrize("index", UNSUITABLE, ids=repr)
def test_what_is_no_row_index_is_refused(npk, numpack, index):
    npk.save({"a": A})
    calls = [lambda: npk.getitem("a", index), lambda: npk.replace({"a": A[:1]}, index)]
    if index is not None:
        calls.append(lambda: npk.drop("a", index))
    for call in calls:
        with pytest.raises(numpack.RowIndexError, match="does not index rows") as raised:
            call()
        assert isinstance(raised.value, IndexError) and isinstance(raised.value, ValueError)
    assert_same(npk.load("a"), A)


@pytest.mark.parametrize("index", [6, -7, [0, 6], np.array([-7, 0]), np.uint64(2**64 - 1), 2**70, -(2**70)], ids=repr)
def test_rows_that_are_not_there(npk, numpack, index):
    npk.save({"a": A})
    with pytest.raises(IndexError, match="out of bounds for array 'a' with 6 rows"):
        npk.getitem("a", index)
    with pytest.raises(ValueError, match="out of bounds"):
        npk.replace({"a": A[:1]}, index)
    assert_same(npk.load("a"), A)
    # Dropping them is no error, and leaves the others.
    npk.drop("a", index)
    remaining = {0, 1, 2, 3, 4, 5} - set(np.ravel(index).tolist())
    assert np.array_equal(npk.load("a"), A[sorted(remaining)])


@pytest.mark.parametrize("length", [0, 5, 7])
def test_masks_have_the_length_of_the_array(npk, length):
    npk.save({"a": A})
    mask = np.ones(length, bool)
    for call in (lambda: npk.getitem("a", mask), lambda: npk.replace({"a": A}, mask), lambda: npk.drop("a", mask)):
        with pytest.raises(IndexError, match=f"mask has {length} items, array 'a' has 6 rows"):
            call()
    assert_same(npk.load("a"), A)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 2)], ids=str)
def test_rows_of_every_dtype(npk, dtype, row_shape):
    first, more, other = (example(dtype, (n, *row_shape), seed) for seed, n in enumerate((5, 2, 3)))
    npk.save({"a": first})
    npk.append({"a": more})
    expected = np.concatenate([first, more]).astype(npk.load("a").dtype)
    assert_same(npk.load("a"), expected)
    npk.replace({"a": other}, [6, 0, 2])
    expected[[6, 0, 2]] = other
    npk.drop("a", [1, 3])
    expected = np.delete(expected, [1, 3], axis=0)
    npk.append({"a": other})
    expected = np.concatenate([expected, other]).astype(expected.dtype)
    npk.replace({"a": more}, slice(3, 5))
    expected[3:5] = more
    assert_same(npk.load("a"), expected)
    assert_same(npk.getitem("a", [-1, 0]), expected[[-1, 0]])


@pytest.mark.parametrize("buffer_size", [None, 1, 2, 6, 7, np.int64(4), 2**70], ids=str)
def test_stream_load_gives_all_rows_in_order(stored, buffer_size):
    chunks = list(stored.stream_load("a", buffer_size))
    n_at_once = 1 if buffer_size is None else buffer_size
    assert [len(chunk) for chunk in chunks] == [min(n_at_once, 6 - row) for row in range(0, 6, min(n_at_once, 6))]
    for chunk in chunks:
        assert chunk.flags.writeable and chunk.flags.owndata and chunk.dtype == A.dtype
    assert_same(np.concatenate(chunks), A)


def test_stream_load_reads_as_it_goes(npk):
    npk.save({"a": A, "empty": A[:0], "one": A[:, 0]})
    assert list(npk.stream_load("empty", 5)) == list(npk.stream_load("empty")) == []
    assert [row.tolist() for row in npk.stream_load(array_name="one")] == A[:, :1].tolist()
    stream = npk.stream_load("a", buffer_size=4)
    assert iter(stream) is stream
    npk.append({"a": A})
    npk.replace({"a": A[:1]}, 4)
    assert_same(next(stream), A[:4])
    npk.drop("a")
    npk.close()
    assert_same(next(stream), A[[0, 5]])
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("buffer_size", [0, -1, 1.5, "2", -(2**70)], ids=repr)
def test_stream_load_refuses_at_the_call(npk, numpack, buffer_size):
    npk.save({"a": A, "0-d": np.array(1.0)})
    with pytest.raises(ValueError, match=f"buffer_size is {buffer_size!r}, expected a positive number of rows"):
        npk.stream_load("a", buffer_size)
    with pytest.raises(numpack.ArrayNotFoundError, match='"b" does not exist'):
        npk.stream_load("b")
    with pytest.raises(ValueError, match='"0-d" is 0-d'):
        npk.stream_load("0-d")


def test_append_grows_arrays_of_any_history(npk, load_all, path):
    expected = {"c": A, "fortran": A, "one": A[:, 0], "empty": A[:0], "zero-width": A[:, :0]}
    npk.save({name: np.asfortranarray(array) if name == "fortran" else array for name, array in expected.items()})
    for n in range(1, 5):
        rows = {name: array[:n] for name, array in expected.items()}
        rows["empty"] = A[:n]
        npk.append(rows)
        expected = {name: np.concatenate([expected[name], rows[name]]) for name in expected}
        for name, array in expected.items():
            assert np.array_equal(npk.load(name), array)
            assert npk.get_shape(name) == array.shape
    npk.close()
    for name, array in load_all(path).items():
        assert np.array_equal(array, expected[name])


def test_append_of_nothing(npk):
    npk.save({"a": A})
    generation = npk.get_modify_time("a")
    npk.append({})
    npk.append({"a": A[:0]})
    assert_same(npk.load("a"), A)
    assert npk.get_modify_time("a") == generation


@pytest.mark.parametrize("rows", [A[0], A[:, :3], A[..., None], np.float32(1), A[:0, :3]], ids=np.shape)
def test_append_and_replace_check_shapes_before_they_write(npk, rows):
    npk.save({"good": A, "a": A})
    with pytest.raises(ValueError, match="shape"):
        npk.append({"good": A, "a": rows})
    with pytest.raises(ValueError, match="shape|rows given"):
        npk.replace({"good": A, "a": rows}, slice(None))
    assert_same(npk.load("good"), A)
    assert_same(npk.load("a"), A)


@pytest.mark.parametrize("dtype", ["f8", "i4", "?", "S4", "M8[s]", "c8"])
def test_append_and_replace_check_dtypes_before_they_write(npk, dtype):
    npk.save({"good": A, "a": A})
    rows = np.zeros((6, 4), dtype)
    for call in (lambda arrays: npk.append(arrays), lambda arrays: npk.replace(arrays, slice(None))):
        with pytest.raises(TypeError, match='array "a": dtype .* is not the array\'s dtype <f4'):
            call({"good": A, "a": rows})
    assert_same(npk.load("good"), A)
    assert_same(npk.load("a"), A)


def test_rows_of_the_other_byte_order_are_converted(npk):
    npk.save({"little": A, "big": A.astype(">f4")})
    npk.append({"little": A.astype(">f4"), "big": A})
    npk.replace({"little": A[:1].astype(">f4"), "big": A[:1]}, 3)
    expected = np.concatenate([A, A])
    expected[3] = A[0]
    assert_same(npk.load("little"), expected)
    assert_same(npk.load("big"), expected.astype(">f4"))


def test_lists_take_the_dtype_of_the_array(npk):
    npk.save({"f": A, "i": np.arange(3, dtype="i2")})
    npk.append({"f": [[1, 2, 3, 4.5]], "i": [7]})
    npk.replace({"i": [8, 9]}, [0, -1])
    assert npk.load("f")[-1].tolist() == [1, 2, 3, 4.5]
    assert_same(npk.load("i"), np.array([8, 1, 2, 9], "i2"))
    npk.append({"i": []})
    with pytest.raises(TypeError, match="dtype"):
        npk.append({"i": [1.5]})
    # NumPy 1 only warns.
    with pytest.raises((OverflowError, DeprecationWarning)):
        npk.append({"i": [100_000]})
    assert npk.get_shape("i") == (4,)


def test_append_to_an_array_that_does_not_exist(npk, numpack):
    npk.save({"a": A})
    for rows in (A, A.tolist()):
        with pytest.raises(ValueError, match='array "b" does not exist') as raised:
            npk.append({"a": A, "b": rows})
        assert isinstance(raised.value, KeyError) and isinstance(raised.value, numpack.ArrayNotFoundError)
    assert npk.get_shape() == {"a": (6, 4)}


def test_replace_and_getitem_of_an_array_that_does_not_exist(npk):
    npk.save({"a": A})
    with pytest.raises(KeyError, match='array "b" does not exist'):
        npk.replace({"a": np.zeros_like(A), "b": A}, slice(None))
    with pytest.raises(KeyError, match='array "b" does not exist'):
        npk.getitem("b", 0)
    assert_same(npk.load("a"), A)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 4])
def test_replace_needs_as_many_rows_as_indexes(npk, n_rows):
    npk.save({"a": A})
    for index in ([0, 2, 4], slice(0, 3), np.array([1, 0, 0, 1, 0, 1], bool)):
        with pytest.raises(ValueError, match=f"{n_rows} rows given for 3 indexes"):
            npk.replace({"a": A[:n_rows]}, index)
    assert_same(npk.load("a"), A)


def test_replace_takes_a_row_for_an_int(npk):
    npk.save({"a": A, "one": A[:, 0]})
    npk.replace({"a": A[0]}, 5)
    npk.replace({"one": np.float32(7)}, -1)
    npk.replace({"one": A[1:2, 1]}, 0)
    assert np.array_equal(npk.load("a")[5], A[0])
    assert npk.load("one")[5] == 7 and npk.load("one")[0] == A[1, 1]


def test_replace_with_duplicates_keeps_the_last(npk):
    npk.save({"a": A})
    npk.replace({"a": A[:4]}, [3, 1, 3, 1])
    assert np.array_equal(npk.load("a")[[1, 3]], A[[3, 2]])


@pytest.mark.parametrize("index", [slice(None, None, -1), slice(1, 6), list(range(6)), [5, 4, 3, 2, 1, 0]], ids=str)
def test_replace_by_the_arrays_own_mapping(npk, index):
    big = example("i8", (6, 5000))
    npk.save({"a": big})
    lazy = npk.load("a", lazy=True)
    expected = big.copy()
    expected[index] = big[: len(big[index])]
    npk.replace({"a": np.asarray(lazy)[: len(big[index])]}, index)
    assert_same(npk.load("a"), expected)


def test_replace_through_dropped_rows(npk):
    npk.save({"a": np.arange(200)})
    npk.drop("a", np.arange(200) % 3 == 0)
    expected = np.arange(200)[np.arange(200) % 3 != 0]
    npk.replace({"a": -np.arange(50)}, slice(10, 60))
    expected[10:60] = -np.arange(50)
    npk.replace({"a": np.array([7, 8, 9])}, [0, 100, 50])
    expected[[0, 100, 50]] = 7, 8, 9
    assert_same(npk.load("a"), expected)


def test_drop_of_arrays(npk, path):
    npk.save({name: A for name in "abcde"})
    npk.drop("a")
    npk.drop(["b", "missing", "c"])
    npk.drop(("d",))
    npk.drop("missing")
    npk.drop([])
    assert npk.get_member_list() == ["e"]
    assert len(list(path.glob("*.npkd"))) == 1
    with pytest.raises(KeyError):
        npk.load("a")
    npk.save({"a": A[:2]})
    assert_same(npk.load("a"), A[:2])


def test_drop_of_the_same_rows_of_several_arrays(npk):
    npk.save({"long": np.arange(10), "short": np.arange(4), "same": np.arange(10) * 2})
    npk.drop(["long", "missing", "short", "same"], [0, -1, 7])
    assert npk.load("long").tolist() == [1, 2, 3, 4, 5, 6, 8]
    assert npk.load("short").tolist() == [1, 2]
    assert npk.load("same").tolist() == [2, 4, 6, 8, 10, 12, 16]
    npk.drop("missing", [0])
    npk.drop(["short", "short"], 0)
    assert npk.load("short").tolist() == [2]


@pytest.mark.parametrize("names", [1, None, {"a": 1}, b"a", ["a", 1]], ids=repr)
def test_drop_needs_names(npk, names):
    npk.save({"a": A})
    with pytest.raises(TypeError, match="name"):
        npk.drop(names)
    assert "a" in npk


def test_drop_again_and_again(npk):
    expected = np.arange(1000)
    npk.save({"a": expected})
    for index in ([-1], [-1, -2], slice(0, 3), [5, 5, 5], slice(None, None, 7), -1, [-1, 0]):
        npk.drop("a", index)
        expected = np.delete(expected, index)
        assert npk.get_shape("a") == expected.shape
        assert_same(npk.load("a"), expected)
        npk.append({"a": np.arange(3)})
        expected = np.append(expected, np.arange(3))
        assert_same(npk.load("a"), expected)


def test_drop_of_all_rows_leaves_the_array(npk):
    npk.save({"a": A})
    npk.drop("a", slice(None))
    assert npk.get_shape("a") == (0, 4)
    assert_same(npk.load("a"), A[:0])
    assert_same(np.asarray(npk.load("a", lazy=True)), A[:0])
    npk.append({"a": A[:2]})
    assert_same(npk.load("a"), A[:2])


def test_update_gives_the_space_back(npk, path):
    npk.save({"a": np.zeros((1000, 1000))})
    npk.drop("a", slice(10, None))
    npk.update("a")
    assert npk.get_shape("a") == (10, 1000)
    assert sum(file.stat().st_size for file in path.glob("*.npkd")) < 200_000
    npk.update("a")


def test_a_0d_array_has_no_rows(npk):
    npk.save({"a": np.array(5.0)})
    calls = [
        lambda: npk.getitem("a", 0),
        lambda: npk.replace({"a": np.ones(1)}, 0),
        lambda: npk.drop("a", 0),
        lambda: npk.append({"a": np.ones(1)}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match='"a"'):
            call()
    assert_same(npk.load("a"), np.array(5.0))
