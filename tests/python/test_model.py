"""Random operations on a store and on a dict of arrays, which must agree after each of them."""

import shutil
import tempfile

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example
from counting import covered
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from strategies import SEEDS, SHAPES, as_rows, indexes, layouts

NAMES = st.sampled_from(["a", "b", "c/d", "größe"])
DTYPE = st.sampled_from([DTYPES[name] for name in ("f4", "i8", "?", ">f8", "U5", "M8[ns]", "plain", "nested", "nested subarray")])


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
        covered(1, "sequences of random calls of the Python API compared with a dict")
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
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
