"""NumPy's functions on arrays that are read, not mapped: the same results, a few rows at a time."""

import subprocess
import sys

import numpy as np
import pytest
from arrays import assert_same
from conftest import BACKEND

from numpack import _by_rows

KINDS = ("compressed", "dropped rows", "both", "Fortran")
# Integers, so that the order of additions does not show.
INTS = np.random.default_rng(0).integers(-9, 9, (1000, 6))
WEIGHTS = np.arange(6) - 2
FLOATS = INTS * np.float32(0.25)


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch):
    monkeypatch.setattr(_by_rows, "CHUNK_LEN", 1000)


@pytest.fixture(params=KINDS)
def lazy(request, npk):
    """A function that stores an array so that it must be read, and gives it as a LazyArray."""

    def make(array, name="a"):
        how = {"block": 4096, "level": 1} if request.param in ("compressed", "both", "Fortran") else None
        array = np.asfortranarray(array) if request.param == "Fortran" else array
        if request.param in ("dropped rows", "both"):
            npk.save({name: np.repeat(array, 2, axis=0)}, compress=how)
            npk.drop(name, slice(1, None, 2))
        else:
            npk.save({name: array}, compress=how)
        return npk.load(name, lazy=True)

    return make


ALIKE = {
    "sum": np.sum,
    "sum, axis 0": lambda a: np.sum(a, axis=0),
    "sum, axis 1": lambda a: np.sum(a, 1),
    "sum, both axes": lambda a: np.sum(a, axis=(0, -1), keepdims=True),
    "sum, dtype": lambda a: np.sum(a, axis=0, dtype="f4"),
    "sum, where": lambda a: np.sum(a, where=np.asarray(a) > 0),
    "sum, initial": lambda a: np.sum(a, initial=5),
    "prod": lambda a: np.prod(a, axis=1, keepdims=True),
    "max": np.max,
    "min": lambda a: np.min(a, axis=0),
    "any": lambda a: np.any(a, axis=1),
    "all": np.all,
    "mean": np.mean,
    "mean, axis 0": lambda a: np.mean(a, axis=0, keepdims=True),
    "mean, axis 1": lambda a: np.mean(a, axis=1),
    "std": lambda a: np.round(np.std(a, axis=0, ddof=1), 5),
    "var, axis 1": lambda a: np.var(a, axis=1),
    "argmax": np.argmax,
    "argmax, axis 1": lambda a: np.argmax(a, axis=1),
    "median": lambda a: np.median(a, axis=1),
    "norm": lambda a: np.linalg.norm(a, axis=1),
    "count_nonzero": np.count_nonzero,
    "count_nonzero, axis 0": lambda a: np.count_nonzero(a, axis=0),
    "add.reduce": np.add.reduce,
    "maximum.reduce": lambda a: np.maximum.reduce(a, 1),
    "subtract.reduce": np.subtract.reduce,
    "add.accumulate": np.add.accumulate,
    "inner, vector": lambda a: np.inner(WEIGHTS, a),
    "inner, matrix": lambda a: np.inner(INTS[:3], a),
    "inner, the other way": lambda a: np.inner(a, WEIGHTS),
    "inner with itself": lambda a: np.inner(a[0], a),
    "dot": lambda a: np.dot(a, WEIGHTS),
    "dot, matrix": lambda a: np.dot(a, np.ones((6, 2), int)),
    "dot, over the rows": lambda a: np.dot(np.arange(1000), a),
    "matmul": lambda a: a @ WEIGHTS,
    "matmul, over the rows": lambda a: np.ones((2, 1000), int) @ a,
    "matmul with itself": lambda a: np.asarray(a).T @ a,
    "multiply": lambda a: np.multiply(a, 2),
    "multiply, weak scalar": lambda a: np.multiply(a, 2.5),
    "divide, column": lambda a: np.divide(a, np.arange(1, 1001)[:, None]),
    "greater, list": lambda a: np.greater(a, [1, 2, 3, 4, 5, 6]),
    "add, whole list": lambda a: np.add(a, INTS.tolist()),
    "add, two of them": lambda a: np.add(a, a),
    "divmod": lambda a: np.divmod(a, 4),
    "more dimensions": lambda a: np.add(a, np.ones((2, 1, 1), int)),
    "to an array": lambda a: np.add(np.ones((1000, 6), int), a),
    "shape": lambda a: (np.shape(a), np.ndim(a), np.size(a, 0)),
    "concatenate": lambda a: np.concatenate([a, a], axis=1),
    "in place": lambda a: np.add(np.zeros((1000, 6), int), a, out=np.full((1000, 6), 7), where=INTS > 3),
}


@pytest.mark.parametrize("function", ALIKE.values(), ids=ALIKE)
@pytest.mark.parametrize("array", [INTS, FLOATS, INTS > 2], ids=["int", "float", "bool"])
def test_results_are_numpys(lazy, array, function):
    with np.errstate(all="ignore"):
        try:
            expected = function(array)
        except TypeError as error:
            with pytest.raises(type(error)):
                function(lazy(array))
            return
        found = function(lazy(array))
    if isinstance(expected, tuple) and isinstance(expected[0], np.ndarray):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (tuple, int)):
        assert found == expected
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", ["f2", "f4", "c8", "u1", ">f8", "?", "M8[s]", "m8[s]"])
@pytest.mark.parametrize("function", [np.sum, np.max, np.mean, np.var, np.std])
def test_dtypes_of_results_are_numpys(lazy, dtype, function):
    # Few rows, so that halves do not overflow.
    array = INTS[:400].astype(dtype)
    for axis in (None, 0, 1):
        try:
            expected = function(array, axis=axis)
        except TypeError:
            with pytest.raises(TypeError):
                function(lazy(array), axis=axis)
            continue
        found = function(lazy(array), axis=axis)
        assert type(found) is type(expected) and found.dtype == expected.dtype
        if dtype != "f2":
            np.testing.assert_allclose(np.asarray(found).view(expected.dtype).astype("c16"), np.asarray(expected).astype("c16"), rtol=1e-5)


def test_vectors(lazy):
    vector = INTS[:, 0]
    for function in (lambda a: np.inner(a, vector), lambda a: np.inner(vector, a), lambda a: np.dot(a, a), lambda a: a @ vector, np.sum, np.sqrt):
        with np.errstate(all="ignore"):
            assert_same(function(lazy(vector)), function(vector))


def test_refusals_are_numpys(lazy):
    array = lazy(INTS)
    for call in (
        lambda a: np.sum(a, axis=2),
        lambda a: np.sum(a, axis=(0, 0)),
        lambda a: np.inner(np.ones(5), a),
        lambda a: np.dot(a, np.ones(5)),
        lambda a: a @ np.ones((5, 2)),
        lambda a: np.add(a, np.ones(5)),
        lambda a: np.add(a, 1, out=np.zeros((999, 6))),
        lambda a: np.add(a, "x"),
        lambda a: np.sum(a, axis="x"),
    ):
        with pytest.raises(Exception) as expected:  # noqa: PT011
            call(INTS)
        with pytest.raises(type(expected.value)):
            call(array)
    with pytest.raises(TypeError):
        np.add(INTS, 1, out=array)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("kind", ["compressed", "dropped"])
def test_memory_is_bounded(path, kind):
    """240 MB are worked on by a process that may not have so much more than it has."""
    # The Python backend keeps the numbers of the rows that are not dropped.
    room = 100 if BACKEND == "rust" else 180
    code = f"""
        import resource
        import numpy as np
        from numpack import NumPack
        with NumPack({str(path)!r}) as npk:
            npk.create("a", (5_000_000, 12), "f4", compress={kind == "compressed"})
            npk.replace({{"a": np.ones((2, 12), "f4")}}, [5, 4_000_000])
            npk.drop("a", [0, 100])
            lazy = npk.load("a", lazy=True)
            vector = np.arange(12, dtype="f4")
            out = np.zeros((5_000_000 - 2, 12), "?")
            used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (used + ({room} << 20),) * 2)
            assert np.inner(lazy[0], lazy).shape == (4_999_998,)
            products = np.inner(vector, lazy)
            assert np.flatnonzero(products).tolist() == [4, 3_999_998] and products[4] == 66
            del products
            assert (lazy @ vector).sum() == 132 and np.dot(np.ones(len(lazy), "f4"), lazy).tolist() == [2.0] * 12
            assert np.sum(lazy) == 24 and np.sum(lazy, axis=0).tolist() == [2.0] * 12 and np.mean(lazy) > 0
            assert np.max(lazy, axis=1).sum() == 2 and np.std(lazy, axis=0).shape == (12,)
            assert np.greater(lazy, 0, out=out) is out and np.count_nonzero(out) == 24
            try:
                np.sort(lazy)
            except MemoryError:
                print("done")
    """
    program = "\n".join(line[8:] for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is read")
@pytest.mark.parametrize("dropped", [False, True])
def test_what_is_read_is_what_is_needed(npk, monkeypatch, dropped):
    """Of one row its block, and of all rows each byte once; counted by the kernel."""
    monkeypatch.setattr(_by_rows, "CHUNK_LEN", 1 << 20)
    array = np.frombuffer(np.random.default_rng(0).bytes(16 << 20), "u4").reshape(-1, 16)
    npk.save({"a": array}, compress=True)
    if dropped:
        npk.drop("a", [5])
    lazy = npk.load("a", lazy=True)

    def n_read(call):
        def count():
            with open("/proc/self/io") as file:
                return int(file.readline().split()[1])

        before = count()
        call()
        return count() - before

    vector = []
    assert 0 < n_read(lambda: vector.append(lazy[0])) < 200_000
    needed = npk.get_metadata()["arrays"]["a"]["stored_bytes"]
    # Some blocks were read just before, and kept.
    assert 0.9 * needed < n_read(lambda: np.inner(vector[0], lazy)) < 1.2 * needed
    assert 0.9 * needed < n_read(lambda: np.sum(lazy, axis=0)) < 1.2 * needed
