"""What is saved is loaded: every dtype, shape, order and stride, in one process and in the next."""

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example
from strategies import npy

# NumPy 1 has 32. The fields of structured arrays are examined one by one, with their own dimensions added.
MAX_NDIM = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
SHAPES = [(), (0,), (1,), (7,), (0, 3), (3, 0, 2), (5, 4), (2, 3, 4), (1,) * MAX_NDIM]


def shapes_of(dtype):
    return SHAPES if dtype.names is None else [shape[: MAX_NDIM - 4] for shape in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_and_shape_survives(npk, load_all, path, dtype):
    arrays = {f"a{n}": example(dtype, shape) for n, shape in enumerate(shapes_of(dtype))}
    npk.save(arrays)
    npk.close()
    loaded = load_all(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same(loaded[name], npy(array))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_and_shape_is_mapped(npk, dtype):
    for shape in shapes_of(dtype):
        array = example(dtype, shape)
        npk.save({"a": array})
        assert_same(np.asarray(npk.load("a", lazy=True)), npy(array))


def test_loaded_arrays_are_fresh_writable_and_own_their_memory(npk):
    array = example("f4", (5, 4))
    npk.save({"a": array})
    loaded = npk.load("a")
    assert loaded.flags.writeable and loaded.flags.owndata and loaded.flags.aligned
    loaded[:] = 0
    assert_same(npk.load("a"), array)
    assert_same(npk["a"], array)


def test_fortran_order_is_kept_as_np_save_keeps_it(npk):
    c = example("f8", (3, 4, 5))
    arrays = {
        "c": c,
        "fortran": np.asfortranarray(c),
        "transposed": c.T,
        "both": np.ones((1, 5)),
        "neither": c[:, ::2],
        "swapped": c.swapaxes(0, 1),
    }
    npk.save(arrays)
    for name, array in arrays.items():
        loaded, expected = npk.load(name), npy(array)
        assert_same(loaded, expected)
        assert loaded.flags.f_contiguous == expected.flags.f_contiguous, name
        assert loaded.flags.c_contiguous == expected.flags.c_contiguous, name
        assert_same(np.asarray(npk.load(name, lazy=True)), array.copy())


VIEWS = {
    "negative stride": lambda a: a[::-1],
    "negative strides": lambda a: a[::-1, ::-2, ::-1],
    "step": lambda a: a[::2, 1::2],
    "transposed": lambda a: a.T,
    "transposed and reversed": lambda a: a.T[::-1],
    "swapped axes": lambda a: a.swapaxes(0, 1),
    "broadcast": lambda a: np.broadcast_to(a[0, 0], (4, 3, 5)),
    "sliced": lambda a: a[1:, :, 2],
    "empty": lambda a: a[3:2],
    "diagonal": lambda a: a[0].diagonal(),
    "real part": lambda a: (a + 1j * a).real,
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), "u1")[1:].view(a.dtype).reshape(a.shape),
    "read-only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
    "0-d of a larger one": lambda a: a[1, 1, 1, ...],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_view_is_saved_appended_and_replaced_right(npk, view):
    array = view(example("f8", (3, 4, 5)))
    npk.save({"a": array})
    assert_same(npk.load("a"), np.array(array))
    if array.ndim == 0:
        return
    npk.append({"a": array})
    assert np.array_equal(npk.load("a"), np.concatenate([array, array]))
    npk.save({"a": np.zeros(array.shape)})
    npk.replace({"a": array}, slice(None))
    assert np.array_equal(npk.load("a"), array)
    npk.replace({"a": array}, list(range(len(array)))[::-1])
    assert np.array_equal(npk.load("a"), array[::-1])


def test_structured_field_view_is_saved_right(npk):
    table = example(DTYPES["plain"], 10)
    npk.save({"a": table["a"], "both": table[["b"]]})
    assert_same(npk.load("a"), table["a"].copy())
    assert npk.load("both")["b"].tolist() == table["b"].tolist()


def test_strings_of_no_width(npk):
    for other in ([], [("y", "i4")]):
        npk.save({"a": np.zeros(3, [("x", "S0"), *other])["x"]})
        assert npk.load("a").tolist() == np.asarray(npk.load("a", lazy=True)).tolist() == [b""] * 3


class Subclass(np.ndarray):
    pass


def test_subclasses_are_saved_as_plain_arrays(npk, tmp_path):
    array = example("f4", (5, 4))
    mapped = np.memmap(tmp_path / "memmap", "f4", "w+", shape=array.shape)
    mapped[:] = array
    npk.save({"masked": np.ma.masked_greater(array, 0), "subclass": array.view(Subclass), "memmap": mapped})
    for name in npk:
        assert_same(npk.load(name), array)


def test_values_need_not_be_arrays(npk):
    values = {"list": [[1, 2], [3, 4]], "tuple": (1.5, 2), "scalar": np.float32(3), "int": 7, "bool": True, "str": "x"}
    npk.save(values)
    for name, value in values.items():
        assert_same(npk.load(name), np.asarray(value))


def test_lazy_arrays_are_values(npk, numpack, tmp_path):
    array = example("f4", (50, 4))
    npk.save({"a": array, "dropped": array})
    npk.drop("dropped", slice(None, None, 3))
    lazy = {name: npk.load(name, lazy=True) for name in npk}
    expected = {name: npk.load(name) for name in npk}
    npk.save({"b": lazy["a"], "a": lazy["dropped"]})
    assert_same(npk.load("b"), array)
    assert_same(npk.load("a"), expected["dropped"])
    with numpack.NumPack(tmp_path / "other.npk") as other:
        other.save(lazy)
        other.append({"a": lazy["dropped"]})
        assert_same(other.load("a"), np.concatenate([array, expected["dropped"]]))


def test_big_arrays_survive(npk):
    array = np.arange(40 << 20, dtype="u1").reshape(-1, 1024)
    npk.save({"a": array})
    assert_same(npk.load("a"), array)


def test_saving_replaces_and_leaves_the_others(npk):
    npk.save({"a": example("f4", 3), "b": example("f4", 4)})
    npk.save({"a": example("i8", (2, 2)), "c": example("?", 5)})
    npk.save({})
    assert npk.get_member_list() == ["a", "b", "c"]
    assert_same(npk.load("a"), example("i8", (2, 2)))
    assert_same(npk.load("b"), example("f4", 4))


def test_drop_then_save_of_the_same_shape(npk):
    array = example("f8", (6, 4))
    npk.save({"a": array})
    npk.drop("a", [0, 2])
    npk.save({"a": array})
    assert npk.get_shape("a") == (6, 4)
    assert_same(npk.load("a"), array)
    assert_same(npk.getitem("a", [5, 0]), array[[5, 0]])


REFUSED = {
    "object": (np.array([None, 1]), "fixed size"),
    "object field": (np.zeros(3, [("a", "O")]), "fixed size"),
    "dict": ({"a": 1}, "fixed size"),
    "overlapping fields": (
        np.zeros(3, {"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [0, 2]}),
        "repack_fields",
    ),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_fixed_size_is_refused_by_name(npk, value, message):
    with pytest.raises(TypeError, match=f"'bad'.*{message}"):
        npk.save({"good": np.ones(3), "bad": value})
    assert npk.get_member_list() == []


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 2 has it")
def test_variable_width_strings_are_refused_with_a_remedy(npk):
    strings = np.array(["a", "bcd"], np.dtypes.StringDType())
    with pytest.raises(TypeError, match=r"'s' has dtype StringDType.*astype\('U16'\)"):
        npk.save({"s": strings})
    npk.save({"s": strings.astype("U16")})
    assert npk.load("s").tolist() == ["a", "bcd"]


def test_dtype_metadata_is_no_obstacle(npk):
    npk.save({"a": np.ones(3, np.dtype("f8", metadata={"unit": "m"}))})
    assert_same(npk.load("a"), np.ones(3))


@pytest.mark.parametrize("arrays", [None, [np.ones(3)], np.ones(3), {"a"}, "a"], ids=str)
def test_only_dicts_are_saved(npk, arrays):
    with pytest.raises(ValueError, match="dict"):
        npk.save(arrays)


@pytest.mark.parametrize("name", [1, b"a", None, ("a",)], ids=repr)
def test_names_are_str(npk, name):
    with pytest.raises(TypeError, match="names are str"):
        npk.save({"good": np.ones(3), name: np.ones(3)})
    assert len(npk) == 0


NAMES = ["a b", "größe", "a/b/c", "..", "/etc/passwd", "../x", "C:\\x", "%41", "a.npy", "metadata.npkm", "\U0001d11e\n", "a~2"]


def test_any_name_is_just_a_name(npk, load_all, path):
    arrays = {name: example("f4", n) for n, name in enumerate(NAMES)}
    npk.save(arrays)
    npk.close()
    assert {file.name for file in path.parent.iterdir()} == {"data.npk"}
    loaded = load_all(path)
    assert list(loaded) == NAMES
    for name in NAMES:
        assert_same(loaded[name], arrays[name])


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"], ids=["NUL", "long", "surrogate"])
def test_names_that_cannot_be_stored_are_refused(npk, name):
    with pytest.raises(ValueError):  # noqa: PT011
        npk.save({"good": np.ones(3), name: np.ones(3)})
    assert len(npk) == 0
    assert not npk.has_array(name)


def test_names_may_be_subclasses_of_str(npk):
    npk.save({np.str_("a"): np.ones(3)})
    assert np.str_("a") in npk
    assert_same(npk.load(np.str_("a")), np.ones(3))


def test_missing_names(npk, numpack, path):
    for call in (lambda: npk.load("x"), lambda: npk.load("x", lazy=True), lambda: npk["x"], lambda: npk.update("x")):
        with pytest.raises(numpack.ArrayNotFoundError) as raised:
            call()
        assert isinstance(raised.value, KeyError)
        assert str(raised.value) == f'{path}: array "x" does not exist'
