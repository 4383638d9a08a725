"""Both backends on the same stores: each reads what the other wrote, they write the same bytes, and work at once."""

import importlib
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example
from both import BACKENDS, CLASSES, files, finish, start
from counting import covered
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from strategies import SEEDS, SHAPES, as_rows, indexes, layouts, npy

WHO = st.sampled_from(BACKENDS)
NAMES = st.sampled_from(["a", "b", "c/d", "größe"])
# Bytes between fields may be anything, also in what NumPy copies.
DTYPE = st.sampled_from([dtype for name, dtype in DTYPES.items() if name not in ("padding", "no fields")])
COMPRESS = st.sampled_from(
    [None, True, 9]
    + [{"block": 4096, "level": 1, "filter": f} for f in ("auto", "none", "shuffle", "delta", "delta2", "delta3", "delta4")]
)
ATTRS = st.dictionaries(
    st.sampled_from(["unit", "größe", "", "n"]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | st.text(max_size=40)
        | st.binary(max_size=40),
        lambda values: st.lists(values, max_size=20) | st.dictionaries(st.text(max_size=3), values, max_size=3),
        max_leaves=10,
    ),
    max_size=3,
)


class Operations(RuleBasedStateMachine):
    """Operations on arrays, and on a dict of arrays that must have the same ones after each of them."""

    @initialize()
    def create(self):
        self.folder = Path(tempfile.mkdtemp())
        self.model = {}
        self.attrs = {None: {}}
        self.handles = self.open_handles()

    def teardown(self):
        covered(1, "sequences of random calls of both backends on one store, or on two")
        for npk in self.handles.values():
            npk.close()
        shutil.rmtree(self.folder)

    def open_handles(self):
        """An open store for each backend."""
        raise NotImplementedError

    def do(self, who, change):
        """Make one change, given as a function of an open store."""
        raise NotImplementedError

    def an_array(self, data, min_ndim=1):
        """The name of some array with rows; None if there is none."""
        names = [name for name, array in self.model.items() if array.ndim >= min_ndim]
        return data.draw(st.sampled_from(names)) if names else None

    def put(self, name, array):
        """Note that an array was saved under that name: in the order of first saves, with the attributes it had."""
        self.model[name] = array
        self.attrs.setdefault(name, {})

    def remove(self, name):
        self.model.pop(name, None)
        self.attrs.pop(name, None)

    @rule(who=WHO, name=NAMES, other=NAMES, dtype=DTYPE, shape=SHAPES, n=st.integers(0, 900), seed=SEEDS, compress=COMPRESS, data=st.data())
    def save(self, who, name, other, dtype, shape, n, seed, compress, data):
        shape = (n, *shape[1:]) if shape and seed % 2 else shape
        arrays = {name: example(dtype, shape, seed), other: example("f8", 3, seed)}
        drawn = {name: data.draw(layouts(array)) for name, array in arrays.items()}
        self.do(who, lambda npk: npk.save(drawn, compress))
        for saved, array in arrays.items():
            self.put(saved, npy(array))

    @precondition(lambda self: self.model)
    @rule(who=WHO, n_rows=st.sampled_from([0, 1, 2, 7, 100, 700]), seed=SEEDS, data=st.data())
    def append(self, who, n_rows, seed, data):
        if (name := self.an_array(data)) is None:
            return
        array = self.model[name]
        rows = example(array.dtype, (n_rows, *array.shape[1:]), seed)
        drawn = data.draw(layouts(rows))
        self.do(who, lambda npk: npk.append({name: drawn}))
        self.model[name] = np.concatenate([array, rows]).astype(array.dtype)

    @precondition(lambda self: self.model)
    @rule(who=WHO, seed=SEEDS, data=st.data())
    def replace(self, who, seed, data):
        if (name := self.an_array(data)) is None:
            return
        array = self.model[name] = self.model[name].copy()
        index = data.draw(indexes(len(array)))
        rows = as_rows(index, len(array))
        values = example(array.dtype, (len(rows), *array.shape[1:]), seed)
        drawn = data.draw(layouts(values))
        self.do(who, lambda npk: npk.replace({name: drawn}, index))
        for row, value in zip(rows, values, strict=True):
            array[row] = value

    @precondition(lambda self: self.model)
    @rule(who=WHO, data=st.data())
    def drop_rows(self, who, data):
        if (name := self.an_array(data)) is None:
            return
        array = self.model[name]
        index = data.draw(indexes(len(array)))
        self.do(who, lambda npk: npk.drop(name, index))
        self.model[name] = np.delete(array, as_rows(index, len(array)), axis=0)

    @rule(who=WHO, name=NAMES)
    def drop(self, who, name):
        self.do(who, lambda npk: npk.drop(name))
        self.remove(name)

    @precondition(lambda self: self.model)
    @rule(who=WHO, data=st.data())
    def update(self, who, data):
        name = data.draw(st.sampled_from(list(self.model)))
        self.do(who, lambda npk: npk.update(name))

    @precondition(lambda self: self.model)
    @rule(who=WHO, codec=COMPRESS, data=st.data())
    def recompress(self, who, codec, data):
        name = data.draw(st.sampled_from(list(self.model)))
        self.do(who, lambda npk: npk.recompress(name, codec))

    @precondition(lambda self: self.model)
    @rule(who=WHO, copy=NAMES, data=st.data())
    def clone(self, who, copy, data):
        source = data.draw(st.sampled_from(list(self.model)))
        if copy in self.model:
            return
        self.do(who, lambda npk: npk.clone(source, copy))
        self.put(copy, self.model[source])
        self.attrs[copy] = dict(self.attrs[source])

    @rule(who=WHO, name=NAMES, dtype=DTYPE, shape=SHAPES, compress=COMPRESS)
    def create_zeros(self, who, name, dtype, shape, compress):
        if name in self.model:
            return
        self.do(who, lambda npk: npk.create(name, shape, dtype, compress=compress))
        self.put(name, npy(np.zeros(shape, dtype)))

    @precondition(lambda self: self.model)
    @rule(who=WHO, seed=SEEDS, data=st.data())
    def write_rows(self, who, seed, data):
        if (name := self.an_array(data)) is None:
            return
        array = self.model[name] = self.model[name].copy()
        start = data.draw(st.integers(0, len(array)))
        rows = example(array.dtype, (data.draw(st.integers(0, len(array) - start)), *array.shape[1:]), seed)
        self.do(who, lambda npk: npk.write_rows(name, start, rows))
        array[start : start + len(rows)] = rows

    @precondition(lambda self: self.model)
    @rule(who=WHO, attrs=ATTRS, data=st.data())
    def set_attrs(self, who, attrs, data):
        name = data.draw(st.sampled_from([None, *self.model]))
        remove = data.draw(st.lists(st.sampled_from(["unit", "n", "größe", ""]), max_size=2, unique=True))
        self.do(who, lambda npk: npk._set_attrs(name, attrs, remove))
        kept = {key: value for key, value in self.attrs[name].items() if key not in remove}
        self.attrs[name] = kept | attrs

    @rule(who=WHO, name=NAMES, gone=NAMES, dtype=DTYPE, seed=SEEDS)
    def commit(self, who, name, gone, dtype, seed):
        if name == gone:
            return
        array = example(dtype, (seed % 50, 2), seed)
        compress = {name: True} if seed % 3 == 0 else {}
        attrs = {name: ({"seed": seed}, ["unit"]), None: ({"n": [seed]}, [])} if seed % 2 else {}
        self.do(who, lambda npk: npk._commit({name: array}, [gone] if gone in self.model else [], compress, attrs))
        self.remove(gone)
        self.put(name, npy(array))
        for of, (added, removed) in attrs.items():
            self.attrs[of] = {key: value for key, value in self.attrs[of].items() if key not in removed} | added

    @precondition(lambda self: self.model)
    @rule(who=WHO, seed=SEEDS, data=st.data())
    def write_through_a_mapping(self, who, seed, data):
        if (name := self.an_array(data)) is None:
            return
        array = self.model[name]
        changed = npy(example(array.dtype, array.shape, seed))
        row = seed % max(len(array), 1)

        def change(npk):
            mapped = npk._map(name)
            if mapped is None:
                both = np.concatenate([array[:row], changed[row:]]).astype(array.dtype)
                npk._write_back(name, 0, both)
            else:
                assert mapped.shape == array.shape
                mapped[row:] = changed[row:]

        self.do(who, change)
        self.model[name] = np.concatenate([array[:row], changed[row:]]).astype(array.dtype)

    @rule(who=WHO)
    def reopen(self, who):
        self.handles[who].close()
        self.handles[who].open()

    @rule(who=WHO)
    def flush(self, who):
        self.do(who, lambda npk: npk.flush())

    @precondition(lambda self: len(self.model) > 2)
    @rule(who=WHO)
    def reset(self, who):
        self.do(who, lambda npk: npk.reset())
        self.model.clear()
        self.attrs = {None: self.attrs[None]}

    @precondition(lambda self: self.model)
    @rule(who=WHO, data=st.data())
    def read_rows(self, who, data):
        if (name := self.an_array(data)) is None:
            return
        npk, array = self.handles[who], self.model[name]
        index = data.draw(indexes(len(array)))
        rows = as_rows(index, len(array))
        assert_same(npk.getitem(name, index), np.ascontiguousarray(array[rows]))
        as_numpy = np.array(index, int) if isinstance(index, list | tuple) else index
        assert_same(npk.load(name, lazy=True)[as_numpy], array[as_numpy])
        if isinstance(index, slice) and index.step in (None, 1):
            out = np.zeros((len(rows), *array.shape[1:]), array.dtype)
            assert npk.load(name, rows=index, out=out) is out
            assert_same(out, np.ascontiguousarray(array[index]))
        if not isinstance(index, int):
            assert_same(npk.load(name, rows=index), np.ascontiguousarray(array[rows]))
        chunks = list(npk.stream_load(name, 100))
        assert sum(map(len, chunks)) == len(array)
        for n, chunk in enumerate(chunks):
            assert_same(chunk, np.ascontiguousarray(array[100 * n : 100 * n + 100]))

    def assert_agrees(self, npk):
        assert npk.get_member_list() == list(self.model)
        assert npk.get_shape() == {name: array.shape for name, array in self.model.items()}
        for name, array in self.model.items():
            assert_same(npk.load(name), array)
            assert_same(np.asarray(npk.load(name, lazy=True)).copy(), array)
        for name, attrs in self.attrs.items():
            found = npk._get_attrs(name)
            assert found == attrs and list(found) == sorted(attrs), name


class OneStore(Operations):
    """Each operation is done by one of the backends, on the same store; both must read what is there then."""

    def open_handles(self):
        handles = {backend: CLASSES[backend](self.folder / "data.npk") for backend in BACKENDS}
        for npk in handles.values():
            npk.open()
        return handles

    def do(self, who, change):
        change(self.handles[who])

    @invariant()
    def both_agree(self):
        if hasattr(self, "handles"):
            for npk in self.handles.values():
                self.assert_agrees(npk)


class TwoStores(Operations):
    """Each operation is done by each backend in its own store; the files must be the same."""

    def open_handles(self):
        handles = {backend: CLASSES[backend](self.folder / f"{backend}.npk") for backend in BACKENDS}
        for npk in handles.values():
            npk.open()
        return handles

    def do(self, who, change):
        for npk in self.handles.values():
            change(npk)

    @rule()
    def reopen(self):
        # What a handle knows of the disk, it writes into its frames.
        for npk in self.handles.values():
            npk.close()
            npk.open()

    @invariant()
    def files_are_the_same(self):
        if not hasattr(self, "handles"):
            return
        rust, python = (files(self.folder / f"{backend}.npk") for backend in BACKENDS)
        assert rust.keys() == python.keys()
        for name in rust:
            assert rust[name] == python[name], name


SETTINGS = settings(stateful_step_count=30, suppress_health_check=list(HealthCheck))


@pytest.mark.timeout(600)
def test_each_backend_reads_what_the_other_wrote():
    run_state_machine_as_test(OneStore, settings=SETTINGS)


@pytest.mark.timeout(600)
def test_both_backends_write_the_same_bytes():
    run_state_machine_as_test(TwoStores, settings=SETTINGS)


# --- The same answers ---


A = example("f4", (6, 4))

REFUSED = {
    "missing": lambda npk: npk.load("x"),
    "missing, lazily": lambda npk: npk.load("x", lazy=True),
    "missing [name]": lambda npk: npk["it's \"x\"\n"],
    "missing getitem": lambda npk: npk.getitem("x", 0),
    "missing shape": lambda npk: npk.get_shape("x"),
    "missing update": lambda npk: npk.update("x"),
    "missing recompress": lambda npk: npk.recompress("x"),
    "missing clone": lambda npk: npk.clone("x", "y"),
    "missing stream": lambda npk: npk.stream_load("x"),
    "missing replace": lambda npk: npk.replace({"x": A}, 0),
    "missing append": lambda npk: npk.append({"x": A}),
    "missing write_rows": lambda npk: npk.write_rows("x", 0, A),
    "missing attrs": lambda npk: npk._get_attrs("x"),
    "missing attrs to set": lambda npk: npk._set_attrs("x", {"a": 1}, []),
    "missing to map": lambda npk: npk._map("x"),
    "no name": lambda npk: npk.load(1),
    "save no dict": lambda npk: npk.save([A]),
    "save no name": lambda npk: npk.save({1: A}),
    "save NUL": lambda npk: npk.save({"a\0b": A}),
    "save long name": lambda npk: npk.save({"x" * 5000: A}),
    "save surrogate": lambda npk: npk.save({"\ud800": A}),
    "save objects": lambda npk: npk.save({"b": np.array([None])}),
    "save overlapping": lambda npk: npk.save(
        {"b": np.zeros(2, {"names": ["x", "y"], "formats": ["i4", "i4"], "offsets": [0, 2]})}
    ),
    "save level": lambda npk: npk.save({"b": A}, compress=100),
    "save codec": lambda npk: npk.save({"b": A}, compress="zstd"),
    "save block": lambda npk: npk.save({"b": A}, compress={"block": 1000}),
    "save filter": lambda npk: npk.save({"b": A}, compress={"filter": "x"}),
    "save key": lambda npk: npk.save({"b": A}, compress={"x": 1}),
    "append shape": lambda npk: npk.append({"a": A[:, :3]}),
    "append dimensions": lambda npk: npk.append({"a": A[0]}),
    "append dtype": lambda npk: npk.append({"a": A.astype("f8")}),
    "append list": lambda npk: npk.append({"i": [1.5]}),
    "append to 0-d": lambda npk: npk.append({"0-d": A}),
    "append no dict": lambda npk: npk.append(A),
    "replace index": lambda npk: npk.replace({"a": A[:1]}, "x"),
    "replace range": lambda npk: npk.replace({"a": A[:1]}, 6),
    "replace negative": lambda npk: npk.replace({"a": A[:1]}, [-7]),
    "replace count": lambda npk: npk.replace({"a": A[:2]}, [0, 1, 2]),
    "replace mask": lambda npk: npk.replace({"a": A[:2]}, np.ones(5, bool)),
    "replace dtype": lambda npk: npk.replace({"a": A[:1].astype("i4")}, 0),
    "replace shape": lambda npk: npk.replace({"a": A[:1, :3]}, 0),
    "drop index": lambda npk: npk.drop("a", 1.5),
    "drop names": lambda npk: npk.drop(1),
    "drop mask": lambda npk: npk.drop("a", np.ones(7, bool)),
    "getitem index": lambda npk: npk.getitem("a", [[0]]),
    "getitem range": lambda npk: npk.getitem("a", [0, 2**70]),
    "getitem 0-d": lambda npk: npk.getitem("0-d", 0),
    "stream size": lambda npk: npk.stream_load("a", 0),
    "stream 0-d": lambda npk: npk.stream_load("0-d"),
    "clone over": lambda npk: npk.clone("a", "i"),
    "clone itself": lambda npk: npk.clone("a", "a"),
    "create over": lambda npk: npk.create("a", (3,)),
    "create shape": lambda npk: npk.create("n", (-1,)),
    "create dtype": lambda npk: npk.create("n", (1,), object),
    "write_rows beyond": lambda npk: npk.write_rows("a", 5, A[:2]),
    "write_rows before": lambda npk: npk.write_rows("a", -1, A[:1]),
    "write_rows shape": lambda npk: npk.write_rows("a", 0, A[:1, :3]),
    "write_rows dtype": lambda npk: npk.write_rows("a", 0, A[:1].astype("f8")),
    "out shape": lambda npk: npk.load("a", out=np.zeros((5, 4), "f4")),
    "out dtype": lambda npk: npk.load("a", out=np.zeros((6, 4), "f8")),
    "out order": lambda npk: npk.load("a", out=np.zeros((4, 6), "f4").T),
    "out read-only": lambda npk: npk.load("a", out=np.broadcast_to(np.float32(0), (6, 4))),
    "out is no array": lambda npk: npk.load("a", out=[0]),
    "rows range": lambda npk: npk.load("a", rows=[6]),
    "attrs value": lambda npk: npk._set_attrs("a", {"x": object()}, []),
    "attrs deep": lambda npk: npk._set_attrs("a", {"x": _nested(80)}, []),
    "lazy range": lambda npk: npk.load("a", lazy=True)[6],
    "lazy mask": lambda npk: npk.load("a", lazy=True)[np.ones(5, bool)],
    "lazy float": lambda npk: npk.load("a", lazy=True)[1.5],
    "lazy too many": lambda npk: npk.load("a", lazy=True)[0, 0, 0],
    "lazy reshape": lambda npk: npk.load("a", lazy=True).reshape(5, 5),
    "lazy bitwise": lambda npk: npk.load("a", lazy=True) & 1,
    "lazy item": lambda npk: npk.load("a", lazy=True).__setitem__(0, 1),
    "lazy len": lambda npk: len(npk.load("0-d", lazy=True)),
    "lazy iter": lambda npk: iter(npk.load("0-d", lazy=True)),
    "lazy copy=False": lambda npk: npk.load("z", lazy=True).__array__(copy=False),
    "lazy gather": lambda npk: npk.load("a", lazy=True).vectorized_gather([6]),
    "lazy boolean": lambda npk: npk.load("a", lazy=True).boolean_index_smart(np.ones(5, bool)),
    "damaged": lambda npk: npk.load("damaged"),
    "damaged block": lambda npk: npk.load("damaged block"),
    "gone": lambda npk: npk.load("gone"),
    "replace of another shape and dtype": lambda npk: npk.replace({"i": np.ones((2, 4), "f4")}, [0, 1]),
    "replace of another shape and dtype, in batch_mode": lambda npk: _in_batch(npk, lambda: npk.replace({"i": A}, [0])),
    "append of another shape and dtype": lambda npk: npk.append({"i": A}),
    "append of another shape and dtype, in batch_mode": lambda npk: _in_batch(npk, lambda: npk.append({"i": A})),
    "row of many bits": lambda npk: npk.getitem("a", np.array([9], "u8")),
    "no text to load": lambda npk: npk.load("\ud800"),
    "no text to ask for": lambda npk: npk.get_shape("\ud800"),
    "no text to drop": lambda npk: npk.drop(["a", "\ud800"]),
    "None as a name": lambda npk: npk.load(None),
    "start of no kind": lambda npk: npk.write_rows("a", "0", A),
    "shape of no kind": lambda npk: npk.create("n", "3"),
    "negative shape, in batch_mode": lambda npk: _in_batch(npk, lambda: npk.create("n", (2, -1))),
}


def _in_batch(npk, call):
    with npk.batch_mode():
        call()


def _nested(depth):
    return [] if depth == 0 else [_nested(depth - 1)]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A store of arrays, some of which cannot be read."""
    path = tmp_path_factory.mktemp("damaged") / "data.npk"
    with CLASSES["rust"](path) as npk:
        npk.save({"a": A, "none": A[:0], "i": np.arange(3), "0-d": np.array(5.0), "damaged": A, "gone": A})
        npk.save({"z": A, "damaged block": example("f4", (100, 100))}, compress=True)
        files = {name: path / entry["data_file"] for name, entry in npk.get_metadata()["arrays"].items()}
    files["gone"].unlink()
    files["damaged"].write_bytes(files["damaged"].read_bytes()[:-1])
    data = bytearray(files["damaged block"].read_bytes())
    data[9000] ^= 1
    files["damaged block"].write_bytes(data)
    return path


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_both_backends_refuse_in_the_same_words(damaged, call):
    raised = []
    for backend in BACKENDS:
        with CLASSES[backend](damaged) as npk:
            before = npk.get_metadata()
            with pytest.raises(Exception) as error:  # noqa: PT011
                call(npk)
            assert npk.get_metadata() == before
            # Python calls types of an extension module by their whole names.
            raised.append((type(error.value), str(error.value).replace("'numpack.LazyArray'", "'LazyArray'")))
    assert raised[0] == raised[1]


TOLD = {
    "repr": repr,
    "metadata": lambda npk: npk.get_metadata(),
    "times": lambda npk: [npk.get_modify_time(name) for name in npk],
    "shapes": lambda npk: npk.get_shape(),
    "lazy reprs": lambda npk: [repr(npk.load(name, lazy=True)) for name in ("a", "0-d", "z")],
    "html": lambda npk: npk._repr_html_(),
    "arrays as numbers": lambda npk: npk.write_rows("a", np.array(1), A[1:2]),
    "empty, lazily": lambda npk: np.asarray(npk.load("none", lazy=True)).flags,
}


@pytest.mark.parametrize("ask", TOLD.values(), ids=TOLD)
def test_both_backends_tell_the_same(damaged, ask):
    told = []
    for backend in BACKENDS:
        with CLASSES[backend](damaged) as npk:
            told.append(str(ask(npk)).replace(backend, "BACKEND"))
    assert told[0] == told[1]


def test_both_backends_have_the_same_members():
    rust, python = (
        {name for name in dir(CLASSES[backend]) if not name.startswith("_")} for backend in BACKENDS
    )
    assert rust == python
    lazy = (importlib.import_module(f"numpack.{core}").LazyArray for core in ("_native", "_pure"))
    rust, python = ({name for name in dir(array) if not name.startswith("_")} for array in lazy)
    assert rust == python


# --- Both at once ---


APPENDER = """
import sys, numpy as np, numpack
path, name, tag, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with numpack.NumPack(path) as npk:
    for i in range(n):
        npk.append({name: np.array([[tag, i]] * (i % 3 + 1))})
        print(i)
"""


@pytest.fixture(params=[None, {"block": 4096, "level": 1}], ids=["uncompressed", "compressed"])
def shared(request, path):
    """The path of a store with an array of pairs, and one with numbers."""
    with CLASSES["rust"](path) as npk:
        npk.save({"pairs": np.zeros((0, 2), "i8"), "numbers": np.arange(5000)}, compress=request.param)
    return path


def pairs_of(rows, tag):
    return rows[rows[:, 0] == tag, 1].tolist()


def appended(n):
    return [i for i in range(n) for _ in range(i % 3 + 1)]


def test_both_append_to_one_array(shared):
    n = 150
    running = [start(backend, APPENDER, shared, "pairs", tag, n) for tag, backend in enumerate(BACKENDS * 2)]
    for process in running:
        finish(process)
    for backend in BACKENDS:
        with CLASSES[backend](shared) as npk:
            rows = npk.load("pairs")
            for tag in range(len(running)):
                assert pairs_of(rows, tag) == appended(n)


CHANGER = """
import sys, numpy as np, numpack
path, tag = sys.argv[1], int(sys.argv[2])
with numpack.NumPack(path) as npk:
    for i in range(60):
        rows = np.arange(tag, 5000, 2)[i * 20 : i * 20 + 20]
        npk.replace({"numbers": -rows}, rows)
        npk.save({f"own {tag}": np.full((i % 7 + 1, 3), i)}, compress=i % 2 == 0)
        if i % 5 == 4:
            npk.drop(f"own {tag}")
        if i % 10 == 9:
            npk.recompress("pairs", i % 20 == 9)
"""


def test_both_change_one_array_and_save_others(shared):
    for process in [start(backend, CHANGER, shared, tag) for tag, backend in enumerate(BACKENDS)]:
        finish(process)
    expected = np.arange(5000)
    expected[:2400] *= -1
    for backend in BACKENDS:
        with CLASSES[backend](shared) as npk:
            assert_same(npk.load("numbers"), expected)
            assert npk.get_member_list() == ["pairs", "numbers"]


WRITER_OF_ROWS = """
import sys, numpy as np, numpack
path, start, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with numpack.NumPack(path) as npk:
    for row in range(start, stop, 50):
        npk.write_rows("grid", row, np.arange(row, row + 50, dtype=float)[:, None] * [1, 10, 100])
"""


@pytest.mark.parametrize("compress", [None, {"block": 4096, "level": 1}], ids=["uncompressed", "compressed"])
def test_both_write_regions_of_one_array(path, compress):
    with CLASSES["python"](path) as npk:
        npk.create("grid", (4000, 3), float, compress=compress)
    running = [start(BACKENDS[n % 2], WRITER_OF_ROWS, path, n * 1000, n * 1000 + 1000) for n in range(4)]
    for process in running:
        finish(process)
    for backend in BACKENDS:
        with CLASSES[backend](path) as npk:
            assert_same(npk.load("grid"), np.arange(4000, dtype=float)[:, None] * [1, 10, 100])


@pytest.mark.parametrize("reader", BACKENDS)
def test_one_reads_while_the_other_appends(shared, reader):
    writer = BACKENDS[1 - BACKENDS.index(reader)]
    n = 120
    process = start(writer, APPENDER, shared, "pairs", 7, n)
    with CLASSES[reader](shared) as npk:
        for line in process.stdout:
            rows = npk.load("pairs")
            # At least what was reported, and in order.
            numbers = rows[:, 1].tolist()
            assert numbers == appended(n)[: len(numbers)] and numbers[-1] >= int(line)
            assert_same(npk.getitem("pairs", -1)[0, 0], np.int64(7))
            lazy = npk.load("pairs", lazy=True)
            assert_same(lazy[: len(rows)], rows)
            assert npk.get_shape("numbers") == (5000,)
        finish(process)
        assert npk.load("pairs")[:, 1].tolist() == appended(n)


@pytest.mark.parametrize("killed", BACKENDS)
@pytest.mark.parametrize("after", [0, 3, 40, 90])
def test_one_is_killed_and_the_other_goes_on(shared, killed, after):
    other = BACKENDS[1 - BACKENDS.index(killed)]
    process = start(killed, APPENDER, shared, "pairs", 0, 100_000)
    beside = start(other, APPENDER, shared, "pairs", 1, 60)
    done = 0
    for line in process.stdout:
        done = int(line) + 1
        if done > after:
            process.send_signal(signal.SIGKILL)
            break
    done += len(process.stdout.read().splitlines())
    process.wait()
    process.stdout.close()
    process.stderr.close()
    finish(beside)
    for backend in BACKENDS:
        with CLASSES[backend](shared) as npk:
            found = pairs_of(npk.load("pairs"), 0)
            # What was reported, and perhaps one more.
            assert found in (appended(done), appended(done + 1))
            assert pairs_of(npk.load("pairs"), 1) == appended(60)
            npk.append({"pairs": np.array([[2, 0]])})
    with CLASSES[killed](shared) as npk:
        assert pairs_of(npk.load("pairs"), 2) == [0, 0]


HOLDER = """
import fcntl, os, struct, sys
descriptor = os.open(sys.argv[1] + "/metadata.npkm.lock", os.O_RDWR)
fcntl.fcntl(descriptor, 38, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
print("locked")
sys.stdin.read()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_wait_for_the_same_lock(shared, backend):
    holder = subprocess.Popen(
        [sys.executable, "-u", "-c", HOLDER, shared], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    process = start(backend, "print('ready')\n" + APPENDER, shared, "pairs", 0, 1)
    assert process.stdout.readline() == "ready\n"
    with CLASSES[backend](shared) as npk:
        for _ in range(300):
            # Readers do not wait.
            assert npk.load("pairs").shape == (0, 2)
    assert process.poll() is None
    holder.communicate("")
    finish(process)
    with CLASSES[backend](shared) as npk:
        assert npk.load("pairs").tolist() == [[0, 0]]


def test_unclosed_handles_of_both_see_each_other(path):
    rust, python = (CLASSES[backend](path) for backend in BACKENDS)
    with rust, python:
        rust.save({"a": A})
        lazy = python.load("a", lazy=True)
        python.append({"a": A[:2]})
        assert rust.get_shape("a") == (8, 4) and lazy.shape == (6, 4)
        rust.drop("a", [0])
        assert_same(python.getitem("a", 0), A[[1]])
        python.save({"a": A[:1]}, compress=True)
        assert_same(rust.load("a"), A[:1])
        assert_same(np.asarray(lazy), A)
        rust._set_attrs("a", {"unit": "m"}, [])
        assert python._get_attrs("a") == {"unit": "m"}
