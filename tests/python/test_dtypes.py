"""Every dtype of a fixed size: what is stored of it is what `numpy.save` stores, and what cannot be is refused."""

import io
import warnings

import numpy as np
import pytest
from arrays import assert_same, example
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import SEEDS, npy

ORDERS = st.sampled_from("<>=")
UNITS = st.sampled_from(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"])
TIMES = st.builds(
    lambda order, kind, n, unit: f"{order}{kind}8[{n}{unit}]", ORDERS, st.sampled_from("mM"), st.integers(1, 2**31 - 1), UNITS
)
NUMBERS = st.builds(
    lambda order, kind: order + kind,
    ORDERS,
    st.sampled_from(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "?", "g", "G", "m8", "M8"]),
)
STRINGS = st.builds(lambda order, kind, n: f"{order}{kind}{n}", ORDERS, st.sampled_from("SUV"), st.integers(0, 9))
SCALARS = (NUMBERS | TIMES | STRINGS).map(np.dtype)
FIELD_SHAPES = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
TEXTS = st.text(min_size=1, max_size=6).filter(lambda text: text.isascii() or text.encode("utf-8", "ignore").decode() == text)


def with_shapes(inner):
    """Dtypes of arrays. NumPy has none of items without bytes."""
    return st.tuples(inner.filter(lambda dtype: dtype.itemsize), FIELD_SHAPES).map(np.dtype)


@st.composite
def structured(draw, inner):
    """A dtype with fields, some of them arrays or with titles, and maybe gaps between them."""
    names = draw(st.lists(TEXTS, unique=True, max_size=8))
    titles = names[len(names) // 2 :] if draw(st.booleans()) else []
    names = names[: len(names) // 2] if titles else names
    # As few titles as names or fewer; None for a field without one.
    titles = (titles + [None] * len(names))[: len(names)] if titles else [None] * len(names)
    formats = [draw(inner | with_shapes(inner)) for _ in names]
    if draw(st.booleans()):
        return np.dtype({"names": names, "formats": formats, "titles": titles}, align=draw(st.booleans()))
    offsets, end = [], 0
    for each in formats:
        end += draw(st.integers(0, 3))
        offsets.append(end)
        end += each.itemsize
    itemsize = end + draw(st.integers(0, 5))
    return np.dtype({"names": names, "formats": formats, "titles": titles, "offsets": offsets, "itemsize": itemsize})


DTYPES = st.recursive(SCALARS, lambda inner: structured(inner) | with_shapes(inner), max_leaves=6)


@given(dtype=DTYPES, n_rows=st.integers(0, 3), seed=SEEDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_dtype_is_stored_as_numpy_stores_it(numpack, tmp_path_factory, dtype, n_rows, seed):
    # An array of a subarray dtype has the axes of that instead.
    array = example(dtype, n_rows, seed)
    if not array.dtype.itemsize and array.dtype.names is None:
        return
    path = tmp_path_factory.mktemp("store") / "data.npk"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of names that are not in Latin-1
        expected = npy(array)
    with numpack.NumPack(path) as npk:
        npk.save({"a": array})
        npk.save({"c": array}, compress=True)
        npk.append({"a": array, "c": array})
        # Not np.concatenate, which closes the gaps between fields.
        twice = expected[np.arange(2 * n_rows) % max(1, n_rows)]
        for name in ("a", "c"):
            assert_same(npk.load(name)[:n_rows], expected)
            assert_same(npk.load(name), twice)
            assert_same(np.asarray(npk.load(name, lazy=True)), twice)
            if n_rows:
                npk.replace({name: array[:1]}, [n_rows])
        with npk.batch_mode():
            npk.append({"a": array})
        data_file = npk.get_metadata()["arrays"]["a"]["data_file"]
    thrice = np.load(path / data_file, max_header_size=1 << 20)
    assert thrice.dtype == expected.dtype
    assert_same(thrice[2 * n_rows :], expected)


def header_text(dtype):
    """What numpy.save says of a dtype."""
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (2,)}
    )
    return file.getvalue()[12:].rstrip()


@pytest.mark.parametrize(
    "dtype",
    [
        [("a", "<i4"), ("c", ("<f8", (5,)), (2,))],
        [("a", ([("x", "<f4"), ("y", ("i2", (2,)), (3,))], (2,)), (1,))],
        {"names": ["a", "b"], "formats": ["i1", "f8"], "titles": ["A", None], "offsets": [1, 16], "itemsize": 32},
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
        "M8[25s]",
        "g",
        "e",
    ],
)
def test_header_is_numpys(npk, path, dtype):
    npk.save({"a": np.zeros(2, dtype)})
    (file,) = path.glob("data_*")
    assert file.read_bytes()[10:4096].rstrip() == header_text(dtype)


def test_metadata_of_dtypes_is_left_out_without_a_warning(npk):
    plain, noted = np.dtype([("a", "f4")]), np.dtype([("a", np.dtype("f4", metadata={"unit": "m"}))])
    npk.save({"a": np.zeros(3, noted), "b": np.zeros(3, np.dtype("f8", metadata={"unit": "m"}))})
    npk.append({"a": np.ones(1, plain), "b": np.ones(1)})
    npk.append({"a": np.ones(1, noted)})
    assert npk.load("a").dtype == plain and npk.load("a").dtype["a"].metadata is None
    assert npk.load("b").dtype.metadata is None


@pytest.mark.parametrize(
    ("dtype", "why"),
    [
        ("O", "Python objects"),
        ([("a", "f4"), ("b", "O")], "Python objects"),
        ({"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [4, 0]}, "overlap or are out of order"),
        ({"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [0, 2]}, "overlap or are out of order"),
        ({"names": ["a"], "formats": ["f4"], "titles": [1]}, "names and titles of its fields"),
        ([("\ud800", "f4")], "names and titles of its fields"),
    ],
)
def test_dtypes_that_cannot_be_stored_are_refused_with_the_way_out(npk, dtype, why):
    array = np.zeros(2, dtype)
    for save in (npk.save, lambda arrays: npk.create("a", 2, dtype)):
        with pytest.raises(TypeError, match=f"array 'a' has dtype .*, which cannot be stored: .*{why}"):
            save({"a": array})
    with npk.batch_mode(), pytest.raises(TypeError, match=why):
        npk.save({"a": array})
    assert npk.get_member_list() == []


def test_strings_of_any_width_are_refused_with_the_way_out(npk):
    array = np.array(["a", "bcd"], np.dtypes.StringDType())
    with pytest.raises(TypeError, match="no fixed width; convert it, for example with .astype"):
        npk.save({"a": array})
    npk.save({"a": array.astype("U3")})
    assert npk.load("a").tolist() == ["a", "bcd"]


def test_array_whose_header_another_program_wrote_takes_rows(npk, numpack, path):
    # As some programs write it; to NumPy it is '|u1'.
    npk.save({"a": np.arange(3, dtype="u1")})
    (file,) = path.glob("data_*")
    data = bytearray(file.read_bytes())
    data[data.index(b"|u1")] = ord("<")
    file.write_bytes(data)
    npk.append({"a": np.arange(2, dtype="u1")})
    assert npk.load("a").tolist() == [0, 1, 2, 0, 1]
    assert np.load(file).tolist() == [0, 1, 2, 0, 1]


def test_dtype_of_an_array_is_not_that_of_an_array_s_items(npk):
    why = "it is that of an array; take that of its items"
    with pytest.raises(TypeError, match=why):
        npk.create("a", 3, ("f4", (2,)))
    with npk.batch_mode(), pytest.raises(TypeError, match=why):
        npk.create("a", 3, ("f4", (2,)))


@pytest.mark.parametrize("dtype", ["S0", "U0", "V0", ">m8", ">M8"])
def test_dtypes_that_numpy_changes_where_it_makes_arrays_are_kept(npk, dtype):
    npk.create("a", 3, dtype)
    with npk.batch_mode():
        npk.create("b", 3, dtype)
        npk.append({"b": np.ndarray(2, dtype, bytes(16))})
    with npk.writable_batch_mode() as wb:
        assert wb.load("a").dtype == dtype
    npk.drop("b", 0)
    for name in ("a", "b"):
        assert npk.load(name).dtype == dtype and npk.load(name, lazy=True).dtype == dtype
