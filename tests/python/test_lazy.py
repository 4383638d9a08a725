"""`LazyArray`: NumPy's result for every index, nothing read before it is needed, valid for as long as it lives."""

import gc
import pickle

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example

A = example("f4", (6, 4, 3))
A1 = example("i8", 6)


@pytest.fixture(params=["mapped", "with dropped rows"])
def lazy(request, npk):
    """A function that gives a LazyArray of an array."""

    def make(array):
        if request.param == "mapped":
            npk.save({"a": array})
        else:
            npk.save({"a": np.repeat(array, 2, axis=0)})
            npk.drop("a", slice(1, None, 2))
        return npk.load("a", lazy=True)

    return make


def test_attributes_are_those_of_the_array(lazy):
    for array in (A, A1, A[:0], example(">U3", (2, 2)), example(DTYPES["nested"], 5)):
        found = lazy(array)
        for name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes"):
            assert getattr(found, name) == getattr(array, name), name
        assert type(found.shape) is tuple
        assert len(found) == len(array)
        assert bool(found) is True


def test_repr_names_the_array(npk):
    npk.save({"it's": A, "0-d": np.array(5.0)})
    assert repr(npk.load("it's", lazy=True)) == """LazyArray("it's", shape=(6, 4, 3), dtype=float32)"""
    assert repr(npk.load("0-d", lazy=True)) == "LazyArray('0-d', shape=(), dtype=float64)"


INDEXES = {
    "int": 2,
    "negative int": -1,
    "np.int64": np.int64(3),
    "0-d int array": np.array(3),
    "slice": slice(1, 4),
    "whole slice": slice(None),
    "step": slice(None, None, 2),
    "reversed": slice(None, None, -1),
    "negative step": slice(4, 1, -2),
    "empty slice": slice(4, 2),
    "clipped slice": slice(3, 100),
    "list": [0, 3, 3, -1],
    "tuple of lists": ([0, 1], [2, 3]),
    "empty list": [],
    "empty array": np.array([], int),
    "array": np.array([5, -6, 2]),
    "uint8 array": np.array([5, 0], "u1"),
    "2-d array": np.array([[0, 1], [-1, 2]]),
    "mask": np.arange(6) % 2 == 0,
    "mask list": [True, False, True, True, False, False],
    "empty mask": np.zeros(6, bool),
    "2-d mask": A[..., 0] > 0,
    "3-d mask": A > 0,
    "point": (1, 2, 0),
    "int and slice": (1, slice(1, 3)),
    "slice and int": (slice(1, 3), 1),
    "slices": (slice(None, None, -1), slice(None, None, 2), slice(1, None)),
    "slice and list": (slice(1, 4), [0, 2]),
    "mask and int": (np.arange(6) % 2 == 0, 2),
    "mask and list": (np.arange(6) < 2, [0, 3]),
    "2-d mask and int": (A[..., 0] > 0, 1),
    "int, slice, list": (0, slice(None), [0, 2]),
    "list, slice, list": ([0, 1], slice(None), [0, 2]),
    "list, slice, int": ([0, 1], slice(None), 2),
    "array, array": (np.array([[0], [5]]), np.array([0, 3])),
    "np.ix_": np.ix_([0, 2], [1, 3], [0]),
    "ellipsis": ...,
    "ellipsis and int": (..., 1),
    "int and ellipsis": (1, ...),
    "slice, ellipsis, list": (slice(2), ..., [0, -1]),
    "ellipsis in the middle": (1, ..., 2),
    "new axis": None,
    "new axis first": (None, 1),
    "new axis and mask": (None, np.arange(6) % 2 == 0),
    "new axes between": (slice(2), None, 1, None),
    "empty tuple": (),
    "True": True,
    "False": False,
    "True and int": (True, 1),
    "0-d mask": np.array(True),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_indexing_gives_what_numpy_gives(lazy, index):
    array = lazy(A)
    expected = A[index]
    found = array[index]
    assert_same(found, expected)
    if isinstance(found, np.ndarray):
        assert found.flags.writeable
        found[...] = 0
        assert_same(np.asarray(array), A)


@pytest.mark.parametrize("index", [2, -1, slice(2, None), [1, 1], A1 > 0, ..., (..., 2), (), None, np.int8(-6)], ids=str)
def test_indexing_in_one_dimension(lazy, index):
    assert_same(lazy(A1)[index], A1[index])


ERRORS = {
    "int": 6,
    "negative int": -7,
    "list": [0, 6],
    "array": np.array([[-7]]),
    "second axis": (0, 4),
    "second axis after a mask": (np.arange(6) < 2, 4),
    "too many": (0, 0, 0, 0),
    "mask length": np.ones(5, bool),
    "mask shape": np.ones((6, 3), bool),
    "mask dimensions": np.ones((6, 4, 3, 1), bool),
    "float": 1.5,
    "floats": [1.5],
    "empty floats": np.array([]),
    "str": "a",
    "two ellipses": (..., ...),
    "broadcast": ([0, 1], [0, 1, 2]),
}


@pytest.mark.parametrize("index", ERRORS.values(), ids=ERRORS)
def test_wrong_indexes_raise_what_numpy_raises(lazy, index):
    array = lazy(A)
    with pytest.raises(IndexError) as expected:
        A[index]
    with pytest.raises(IndexError) as found:
        array[index]
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_items_of_every_dtype(lazy, dtype):
    array = example(dtype, (5, 2))
    for index in ((3, 1), 3, slice(1, 3), [4, 0]):
        assert_same(lazy(array)[index], array[index])


def test_fields_and_records(lazy):
    table = example(DTYPES["plain"], 6)
    array = lazy(table)
    assert_same(array["a"], table["a"].copy())
    assert array[["a", "b"]].tolist() == table.tolist()
    record = array[2]
    assert record == table[2]
    record["b"] = 0
    assert array[2] == table[2]
    with pytest.raises(ValueError, match="no field of name c"):
        array["c"]


def test_0d_arrays(npk):
    npk.save({"a": np.array(5.0)})
    array = npk.load("a", lazy=True)
    assert_same(array[()], np.float64(5))
    assert_same(array[...], np.array(5.0))
    assert_same(array[None], np.array([5.0]))
    with pytest.raises(TypeError, match="unsized"):
        len(array)
    with pytest.raises(TypeError, match="0-d"):
        iter(array)
    with pytest.raises(IndexError):
        array[0]


def test_iteration_gives_rows(lazy):
    for array in (A, A1, A[:0]):
        rows = list(lazy(array))
        assert len(rows) == len(array)
        for row, expected in zip(rows, array, strict=True):
            assert_same(row, expected)


def test_numpy_takes_it_for_an_array(lazy):
    array = A[..., 0].copy()
    found = lazy(array)
    matrix = example("f4", (3, 6), seed=1)
    assert_same(np.asarray(found), array)
    assert_same(np.array(found), array)
    assert_same(np.sum(found), np.sum(array))
    assert_same(np.mean(found, axis=0), np.mean(array, axis=0))
    assert_same(np.inner(array[0], found), np.inner(array[0], array))
    assert_same(np.dot(matrix, found), np.dot(matrix, array))
    assert_same(matrix @ found, matrix @ array)
    assert_same(found @ array[0], array @ array[0])
    assert_same(found @ found.T, array @ array.T)
    assert_same(found.T @ found, array.T @ array)
    assert_same(np.concatenate([found, array]), np.concatenate([array, array]))
    assert np.array_equal(found, array)
    assert np.allclose(array + found, 2 * array)
    assert np.max(np.stack([found, found])) == array.max()
    assert_same(matrix[:, found.shape[1]], matrix[:, 4])


def test_array_protocol(npk):
    npk.save({"dropped": np.repeat(A, 2, axis=0), "compressed": A})
    npk.save({"mapped": A}, compress=None)
    npk.recompress("compressed", 3)
    npk.recompress("dropped", None)
    npk.drop("dropped", slice(None, None, 2))
    mapped, gathered, decoded = (npk.load(name, lazy=True) for name in ("mapped", "dropped", "compressed"))
    view = mapped.__array__(copy=False)
    assert not view.flags.writeable and not view.flags.owndata
    assert np.shares_memory(view, mapped.__array__())
    with pytest.raises(ValueError, match="dropped rows"):
        gathered.__array__(copy=False)
    with pytest.raises(ValueError, match="it is compressed"):
        decoded.__array__(copy=False)
    for array in (mapped, gathered, decoded):
        assert_same(array.__array__(np.float64), A.astype("f8"))
        assert array.__array__("f4", copy=True).flags.writeable
        assert_same(array.__array__(dtype="f4", copy=None), A)
        with pytest.raises(ValueError, match="copy"):
            array.__array__("f8", copy=False)
        with pytest.raises(TypeError):
            array.__array__("nonsense")


def test_transposed_and_reshaped(lazy, numpack):
    array = lazy(A)
    assert isinstance(array.T, numpack.LazyArray) and isinstance(array.reshape(-1), numpack.LazyArray)
    assert_same(np.asarray(array.T).copy(), A.T.copy())
    assert_same(array.T[1, :, ::-1], A.T[1, :, ::-1].copy(order="K"))
    for shape in ((72,), (-1,), (4, 6, 3), (12, -1), (2, 3, 2, 3, 2)):
        assert_same(np.asarray(array.reshape(shape)), A.reshape(shape))
        assert_same(array.reshape(*shape)[-1], A.reshape(shape)[-1])
    assert array.reshape(72).shape == array.reshape([72]).shape == (72,)
    assert array.reshape(4, -1).T.reshape(-1)[5] == A.reshape(4, -1).T.reshape(-1)[5]
    for shape in ((5, 5), (-1, -1), (7, -1)):
        with pytest.raises(ValueError, match="reshape|dimension"):
            array.reshape(shape)


def test_is_not_written_and_not_pickled(npk, numpack, compress):
    npk.save({"a": A})
    array = npk.load("a", lazy=True)
    with pytest.raises(TypeError):
        array[0] = 1
    if compress is None:
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(array)[0] = 1
    else:
        np.asarray(array)[0] = 1
        assert_same(np.asarray(array), A)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(array)
    with pytest.raises(AttributeError):
        array.shape = (1,)
    with pytest.raises(TypeError):
        numpack.LazyArray()
    for name in ("sum", "astype", "tolist", "strides", "flags"):
        assert not hasattr(array, name)


CHANGES = {
    "close": lambda npk: npk.close(),
    "drop": lambda npk: npk.drop("a"),
    "overwrite": lambda npk: npk.save({"a": np.zeros(3)}),
    "overwrite alike": lambda npk: npk.save({"a": np.zeros_like(A)}),
    "append": lambda npk: npk.append({"a": A}),
    "drop rows": lambda npk: npk.drop("a", [0, 1]),
    "drop all rows": lambda npk: npk.drop("a", slice(None)),
    "drop rows and update": lambda npk: (npk.drop("a", [0, 1]), npk.update("a")),
    "reset": lambda npk: npk.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_stays_what_it_was_when_the_store_changes(npk, lazy, change):
    array = lazy(A)
    row, view, transposed, rows = array[1], np.asarray(array), array.T, iter(array)
    change(npk)
    gc.collect()
    assert array.shape == A.shape
    assert_same(array[2:4], A[2:4])
    assert_same(np.asarray(array), A)
    assert_same(row, A[1])
    assert_same(view, A)
    assert_same(next(rows), A[0])
    del array
    gc.collect()
    assert_same(view, A)
    assert_same(np.asarray(transposed).T.copy(), A)


def test_view_outlives_store_and_lazy_array(numpack, path):
    npk = numpack.NumPack(path)
    npk.open()
    npk.save({"a": A})
    view = np.asarray(npk.load("a", lazy=True))[1:, ::2]
    npk.close()
    del npk
    gc.collect()
    assert_same(view.copy(), A[1:, ::2].copy())


def test_replaced_rows_show(lazy, npk):
    array = lazy(A)
    npk.replace({"a": A[:1]}, 5)
    assert_same(array[5], A[0])


def test_reads_nothing_before_it_is_needed(npk):
    big = np.zeros((64, 1 << 20), "u1")
    npk.save({"a": big, "dropped": big})
    npk.drop("dropped", [0])

    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) << 12

    before = resident()
    arrays = [npk.load(name, lazy=True) for name in npk for _ in range(20)]
    assert sum(int(array[30, 5]) + int(array[-1][7]) for array in arrays) == 0
    # Pages come in clusters of at most 2 MiB, two for each of the two files, and the rows that are read.
    assert resident() - before < 16 << 20
