"""Random operations on a store and on a dict of arrays, which must agree after each of them."""

import shutil
import tempfile

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

NAMES = st.sampled_from(["a", "b", "c/d", "größe"])
SEEDS = st.integers(0, 1000)
SHAPES = st.lists(st.integers(0, 6), min_size=0, max_size=3).map(tuple)
DTYPE = st.sampled_from([DTYPES[name] for name in ("f4", "i8", "?", ">f8", "U5", "M8[ns]", "plain", "nested")])


@st.composite
def layouts(draw, array):
    """The same array in some memory layout."""
    kind = draw(st.sampled_from(["C", "F", "reversed", "strided"]))
    if kind == "reversed" and array.ndim:
        return array[::-1].copy()[::-1]
    if kind == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return np.array(array, order="F" if kind == "F" else "C")


@st.composite
def indexes(draw, n_rows):
    """Rows of an array in any form, all of them there."""
    row = st.integers(-n_rows, n_rows - 1) if n_rows else st.nothing()
    bound = st.none() | st.integers(-n_rows - 2, n_rows + 2)
    slices = st.builds(slice, bound, bound, st.none() | st.sampled_from([1, 2, -1, -3]))
    lists = st.lists(row, max_size=8 if n_rows else 0)
    masks = st.lists(st.booleans(), min_size=n_rows, max_size=n_rows).map(lambda mask: np.array(mask, bool))
    return draw(slices | lists | lists.map(tuple) | lists.map(lambda rows: np.array(rows, int)) | masks | row)


def as_rows(index, n_rows):
    """The numbers of the rows that an index selects."""
    return np.atleast_1d(np.arange(n_rows)[list(index) if isinstance(index, tuple) else index]).astype(int)


class Store(RuleBasedStateMachine):
    numpack = None

    @initialize()
    def create(self):
        self.folder = tempfile.mkdtemp()
        self.npk = self.numpack.NumPack(self.folder + "/data.npk")
        self.npk.open()
        self.model = {}
        self.seen = []

    def teardown(self):
        self.npk.close()
        for lazy, expected in self.seen:
            assert lazy.shape == expected.shape
        shutil.rmtree(self.folder)

    def some_array(self, data, min_ndim=1):
        names = [name for name, array in self.model.items() if array.ndim >= min_ndim]
        return data.draw(st.sampled_from(names)) if names else None

    @rule(name=NAMES, other=NAMES, dtype=DTYPE, shape=SHAPES, seed=SEEDS, data=st.data())
    def save(self, name, other, dtype, shape, seed, data):
        arrays = {name: example(dtype, shape, seed), other: example("f8", 3, seed)}
        self.npk.save({name: data.draw(layouts(array)) for name, array in arrays.items()})
        self.model |= arrays

    @precondition(lambda self: self.model)
    @rule(n_rows=st.integers(0, 70), seed=SEEDS, data=st.data())
    def append(self, n_rows, seed, data):
        if (name := self.some_array(data)) is None:
            return
        array = self.model[name]
        rows = example(array.dtype, (n_rows, *array.shape[1:]), seed)
        self.npk.append({name: data.draw(layouts(rows))})
        self.model[name] = np.concatenate([array, rows]).astype(array.dtype)

    @precondition(lambda self: self.model)
    @rule(seed=SEEDS, data=st.data())
    def replace(self, seed, data):
        if (name := self.some_array(data)) is None:
            return
        array = self.model[name] = self.model[name].copy()
        index = data.draw(indexes(len(array)))
        rows = as_rows(index, len(array))
        values = example(array.dtype, (len(rows), *array.shape[1:]), seed)
        self.npk.replace({name: data.draw(layouts(values))}, index)
        for row, value in zip(rows, values, strict=True):
            array[row] = value
        # What is mapped changes with it.
        self.seen = [(lazy, expected) for lazy, expected in self.seen if lazy_name(lazy) != name]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop_rows(self, data):
        if (name := self.some_array(data)) is None:
            return
        array = self.model[name]
        index = data.draw(indexes(len(array)))
        self.npk.drop(name, index)
        self.model[name] = np.delete(array, as_rows(index, len(array)), axis=0)

    @rule(name=NAMES)
    def drop(self, name):
        self.npk.drop(name)
        self.model.pop(name, None)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def update(self, data):
        self.npk.update(data.draw(st.sampled_from(list(self.model))))

    @rule()
    def reopen(self):
        self.npk.close()
        self.npk.open()

    @rule()
    def reset(self):
        self.npk.reset()
        self.model.clear()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def getitem(self, data):
        if (name := self.some_array(data)) is None:
            return
        array = self.model[name]
        index = data.draw(indexes(len(array)))
        rows = array[as_rows(index, len(array))]
        assert_same(self.npk.getitem(name, index), rows)
        lazy = self.npk.load(name, lazy=True)
        assert_same(lazy[list(index) if isinstance(index, tuple) else index], array[as_numpy(index)])
        self.seen.append((lazy, array))

    @invariant()
    def agrees(self):
        if not hasattr(self, "model"):
            return
        assert self.npk.get_member_list() == list(self.model)
        for name, array in self.model.items():
            assert self.npk.get_shape(name) == array.shape
            assert_same(self.npk.load(name), array)
            assert_same(np.asarray(self.npk.load(name, lazy=True)), array)
        for lazy, expected in self.seen:
            assert_same(np.asarray(lazy), expected)


def as_numpy(index):
    if isinstance(index, list | tuple):
        return np.array(index, int)
    return index


def lazy_name(lazy):
    return repr(lazy).split("'")[1]


@pytest.mark.timeout(600)
def test_store_agrees_with_a_dict_of_arrays(numpack):
    class Machine(Store):
        pass

    Machine.numpack = numpack
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
