"""`LazyArray` in expressions: what NumPy gives for the array, always as a new ndarray; and what older releases offered."""

import copy
import operator

import numpy as np
import pytest
from arrays import assert_same, example

FLOATS = np.arange(-6, 18).reshape(6, 4) / 4
INTS = np.arange(-6, 18).reshape(6, 4)
BOOLS = INTS % 3 == 0
COMPLEX = FLOATS * (1 + 2j)

BINARY = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "gt", "ge", "eq", "ne")
} | {"divmod": divmod}
BITWISE = {name: getattr(operator, name) for name in ("and_", "or_", "xor", "lshift", "rshift")}
INPLACE = {
    name: getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift")
}


@pytest.fixture(params=["mapped", "with dropped rows"])
def lazy(request, npk):
    """A function that gives a LazyArray of an array."""

    def make(array, name="a"):
        if request.param == "mapped":
            npk.save({name: array})
        else:
            npk.save({name: np.repeat(array, 2, axis=0)})
            npk.drop(name, slice(1, None, 2))
        return npk.load(name, lazy=True)

    return make


def outcome(function, *operands):
    """The result, or the type of the exception."""
    with np.errstate(all="ignore"):
        try:
            return function(*operands)
        except Exception as error:
            return type(error)


def assert_same_outcome(found, expected):
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, type):
        assert found is expected
    else:
        assert_same(found, expected)


OPERANDS = {
    "int": 3,
    "negative int": -2,
    "zero": 0,
    "float": 2.5,
    "bool": True,
    "complex": 1 + 1j,
    "np.float32": np.float32(0.5),
    "np.int8": np.int8(3),
    "row": np.array([1, 2, 3, 4]),
    "column": np.arange(1, 7, dtype="f4")[:, None],
    "array": np.arange(24.0)[::-1].reshape(6, 4),
    "list": [1, 2, 3, 4],
    "tuple": (4, 3, 2, 1),
    "0-d": np.array(2),
    "wrong shape": np.ones(5),
    "str": "a",
    "None": None,
}


@pytest.mark.parametrize("other", OPERANDS.values(), ids=OPERANDS)
def test_operators_give_what_numpy_gives(lazy, other):
    for number, array in enumerate((FLOATS, INTS, BOOLS, COMPLEX)):
        found = lazy(array, str(number))
        for function in BINARY.values():
            assert_same_outcome(outcome(function, found, other), outcome(function, array, other))
            assert_same_outcome(outcome(function, other, found), outcome(function, other, array))


@pytest.mark.parametrize("function", (BINARY | BITWISE).values(), ids=BINARY | BITWISE)
def test_operators_of_two_lazy_arrays(lazy, function):
    left, right = abs(INTS) + 1, np.arange(4) + 1
    one, other = lazy(left, "left"), lazy(right, "right")
    expected = function(left, right)
    assert_same_outcome(function(one, other), expected)
    assert_same_outcome(function(one, right), expected)
    assert_same_outcome(function(left, other), expected)
    assert_same_outcome(function(one, one), function(left, left))


@pytest.mark.parametrize("function", [operator.neg, operator.pos, operator.invert, abs], ids=lambda f: f.__name__)
def test_unary_operators(lazy, function):
    for number, array in enumerate((FLOATS, INTS, BOOLS, COMPLEX)):
        assert_same_outcome(outcome(function, lazy(array, str(number))), outcome(function, array))


@pytest.mark.parametrize("function", BITWISE.values(), ids=BITWISE)
def test_bitwise_operators_are_for_integers(lazy, function):
    ints, bools, floats = lazy(abs(INTS), "ints"), lazy(BOOLS, "bools"), lazy(FLOATS, "floats")
    assert_same_outcome(outcome(function, ints, 3), outcome(function, abs(INTS), 3))
    assert_same_outcome(outcome(function, 3, ints), outcome(function, 3, abs(INTS)))
    assert_same_outcome(outcome(function, bools, BOOLS[::-1]), outcome(function, BOOLS, BOOLS[::-1]))
    message = "Bitwise operations are only supported for integer arrays"
    for left, right in ((floats, 1), (1, floats), (floats, floats), (ints, 1.5), (2.5, ints)):
        with pytest.raises(TypeError, match=message):
            function(left, right)
    with pytest.raises(TypeError, match=message):
        ~floats


@pytest.mark.parametrize("name", INPLACE)
def test_in_place_operators_make_the_name_one_of_an_ndarray(lazy, npk, name):
    array = lazy(abs(INTS))
    before = array
    array = INPLACE[name](array, 2)
    assert_same(array, getattr(operator, name[1:] + "_" * (name in ("iand", "ior")))(abs(INTS), 2))
    assert_same(np.asarray(before), abs(INTS))
    assert_same(npk.load("a"), abs(INTS))


def test_in_place_operators_of_ndarrays_take_it(lazy):
    array = FLOATS.copy()
    array += lazy(FLOATS)
    assert_same(array, FLOATS * 2)
    with pytest.raises(TypeError):
        np.add(FLOATS, 1, out=lazy(FLOATS))


def test_three_operands_and_other_refusals(lazy):
    array = lazy(INTS)
    for call in (
        lambda: pow(array, 2, 3),
        lambda: array + object(),
        lambda: array < object(),
        lambda: float(array),
        lambda: int(array),
        lambda: operator.index(array),
        lambda: round(array),
        lambda: hash(array),
        lambda: {array: 1},
    ):
        with pytest.raises(TypeError):
            call()
    assert bool(array) is True


def test_results_are_new_writable_arrays(lazy):
    array = lazy(FLOATS)
    for result in (+array, array + 0, array**1, array * 1, abs(array), array == array, array @ np.eye(4)):
        assert type(result) is np.ndarray
        assert result.flags.writeable and result.flags.owndata
        result[...] = 7
    assert_same(np.asarray(array), FLOATS)


def test_other_types_may_have_their_own_say(lazy):
    class Other:
        __array_ufunc__ = None

        def __radd__(self, other):
            return "mine", type(other)

    assert (lazy(FLOATS) + Other())[0] == "mine"
    masked = np.ma.masked_greater(FLOATS, 2)
    result = lazy(FLOATS) + masked
    assert isinstance(result, np.ma.MaskedArray) and result.mask.sum() == masked.mask.sum()


def test_contains_looks_at_the_items(lazy):
    array = lazy(INTS)
    assert 5 in array and -6 in array
    assert 99 not in array
    assert INTS[2] in array


@pytest.mark.parametrize("order", ["C", "F"])
def test_copies_are_ndarrays_apart_from_the_store(lazy, order):
    stored = np.asarray(FLOATS, order=order)
    array = lazy(stored)
    for found in (array.copy(), copy.copy(array), copy.deepcopy(array), copy.deepcopy([array])[0], array.to_numpy()):
        assert type(found) is np.ndarray
        assert found.flags.writeable and found.flags.owndata
        assert_same(np.ascontiguousarray(found), FLOATS)
        found[:] = 0
    assert_same(np.ascontiguousarray(array), FLOATS)


def test_with_and_close_release_nothing(lazy):
    array = lazy(FLOATS)
    with array as entered:
        assert entered is array
    assert array.close() is None
    assert_same(array[1], FLOATS[1])
    with pytest.raises(ZeroDivisionError), array:
        1 // 0


def test_attributes_are_those_when_it_was_made(lazy, npk):
    lazy(FLOATS)
    npk._set_attrs("a", {"unit": "m", "more": [1, 2]}, [])
    array = npk.load("a", lazy=True)
    array.attrs["unit"] = "changed in the dict only"
    for found in (array, array.T, array.reshape(-1)):
        assert found.attrs == {"unit": "m", "more": [1, 2]}
    npk._set_attrs("a", {"unit": "km"}, [])
    assert array.attrs["unit"] == "m"
    npk.close()
    assert array.attrs["unit"] == "m"
    with pytest.raises(AttributeError):
        array.attrs = {}


REDUCTIONS = {
    "sum": np.sum,
    "sum of an axis": lambda a: np.sum(a, axis=0),
    "mean": np.mean,
    "std": np.std,
    "max": np.max,
    "argmax": lambda a: np.argmax(a, axis=1),
    "all": np.all,
    "cumsum": np.cumsum,
    "sort": np.sort,
    "unique": np.unique,
    "where": lambda a: np.where(a > 1),
    "add.reduce": lambda a: np.add.reduce(a, axis=1),
    "sqrt": lambda a: np.sqrt(np.abs(a)),
    "inner": lambda a: np.inner(a[0], a),
    "dot": lambda a: np.dot(a, a[0]),
    "outer": lambda a: np.outer(a[0], a[:, 0]),
    "einsum": lambda a: np.einsum("ij,ij->i", a, a),
    "norm": lambda a: np.linalg.norm(a, axis=1),
    "transpose": lambda a: np.transpose(a).copy(),
    "reshape": lambda a: np.reshape(a, (4, 6)).copy(),
    "concatenate": lambda a: np.concatenate([a, a]),
    "vstack": lambda a: np.vstack([a, a]),
    "take": lambda a: np.take(a, [0, 5, 2], axis=0),
    "round": lambda a: np.round(a, 1),
    "shape": lambda a: (np.shape(a), np.ndim(a), np.size(a)),
    "copy": np.copy,
    "array_equal": lambda a: np.array_equal(a, a),
}


@pytest.mark.parametrize("function", REDUCTIONS.values(), ids=REDUCTIONS)
def test_functions_of_numpy(lazy, function):
    expected = function(FLOATS)
    found = function(lazy(FLOATS))
    if isinstance(expected, (bool, tuple)):
        assert str(found) == str(expected)
    else:
        assert_same(found, expected)


def test_vectorized_gather(lazy):
    array = lazy(INTS)
    for rows in ([0, 5, 5, -1], (1, 2), np.array([3]), range(2), [np.int64(4)], []):
        assert_same(array.vectorized_gather(rows), INTS[list(rows)])
    for rows in ([6], [-7], [0, 100]):
        with pytest.raises(IndexError):
            array.vectorized_gather(rows)


MASK_METHODS = (
    "parallel_boolean_index",
    "boolean_index_production",
    "boolean_index_adaptive_algorithm",
    "boolean_index_smart",
    "boolean_index_adaptive",
)


@pytest.mark.parametrize("method", MASK_METHODS)
def test_masks(lazy, numpack, method):
    select = getattr(lazy(INTS), method)
    for mask in (INTS[:, 0] > 2, np.zeros(6, bool), np.ones(6, bool), [True, False, False, True, True, False]):
        assert_same(select(mask), INTS[mask])
    for mask in (np.ones(5, bool), np.ones(7, bool), BOOLS, [], np.True_):
        for error in (ValueError, IndexError, numpack.RowIndexError):
            with pytest.raises(error, match="boolean mask has"):
                select(mask)
    for mask in ([0, 1, 0, 1, 0, 1], INTS[:, 0], "abc"):
        with pytest.raises(TypeError, match="expected bool"):
            select(mask)


def test_mask_of_no_rows(lazy):
    assert_same(lazy(INTS[:0]).parallel_boolean_index([]), INTS[:0])


def test_mega_batch_get_rows(lazy):
    array = lazy(INTS)
    for batch_size in (1, 2, 3, 100):
        for rows in ([0, 5, 5, -1, 2], (1, 2), np.arange(6), []):
            found = array.mega_batch_get_rows(rows, batch_size)
            assert type(found) is list and len(found) == len(rows)
            for row, number in zip(found, rows, strict=True):
                assert_same(np.asarray(row), INTS[number])
    with pytest.raises(IndexError):
        array.mega_batch_get_rows([0, 6], 1)
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size"):
            array.mega_batch_get_rows([0], batch_size)


def test_what_older_releases_told(lazy, numpack):
    array = lazy(INTS)
    assert type(array.choose_optimal_algorithm(INTS[:, 0] > 2)) is str
    with pytest.raises(numpack.RowIndexError):
        array.choose_optimal_algorithm([True])
    for hint in ("sequential", "random", "boolean", "heavy"):
        assert array.intelligent_warmup(hint) is None
    with pytest.raises(ValueError, match="hint is 'lukewarm'"):
        array.intelligent_warmup("lukewarm")
    stats = array.get_performance_stats()
    assert type(stats) is list and all(type(name) is str and type(number) is int for name, number in stats)
    assert dict(stats)["rows"] == 6
    with pytest.raises(TypeError):
        array[0] = 1


def test_names_that_leaked_are_gone(lazy):
    for name in ("get_row_data", "get_element", "bytes_to_numpy", "get_preview_data", "__setitem__"):
        assert not hasattr(lazy(example("f4", (2, 2))), name)
