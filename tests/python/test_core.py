"""What attributes and the batch modes are built from: values as MessagePack has them, one commit, mappings."""

import gc

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example

A = example("f4", (700, 3))

VALUES = {
    "none": None,
    "bools": [True, False],
    "ints": [0, 1, -1, 127, 128, -129, 2**31, -(2**63), 2**64 - 1],
    "floats": [0.0, -2.5, 1e300, float("inf")],
    "text": "größe\n\0 \U0001d11e",
    "empty": ["", b"", [], {}],
    "bytes": bytes(range(256)),
    "nested": {"a": [1, {"b": None}], "": {"c": [[[]]]}},
    "keys": {3: "int", None: "none", True: "bool", 2.5: "float", b"b": "bytes"},
    "größe/it's": 1,
    "": "no name",
}


@pytest.fixture(params=["of an array", "of the store"])
def owner(request, npk):
    """Whose attributes: a name, or None."""
    npk.save({"a": A})
    return "a" if request.param == "of an array" else None


def test_values_come_back_as_they_are(numpack, npk, path, owner):
    npk._set_attrs(owner, VALUES, [])
    npk.close()
    npk.open()
    found = npk._get_attrs(owner)
    assert found == VALUES
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in VALUES.items()}
    assert [type(value) for value in found["keys"]] == [int, type(None), bool, float, bytes]
    npk._set_attrs(owner, {"none": 1}, ["ints", "not there"])
    expected = VALUES | {"none": 1}
    del expected["ints"]
    assert npk._get_attrs(owner) == expected
    found["none"] = "changed by who was given it"
    assert npk._get_attrs(owner) == expected
    other = None if owner else "a"
    assert npk._get_attrs(other) == {}


def test_values_like_those_of_messagepack_become_them(npk, owner):
    values = {"a": (1, (2,)), "b": bytearray(b"xy"), "c": np.float32(0.5), "d": np.int8(-3), "e": np.True_}
    npk._set_attrs(owner, values, [])
    found = npk._get_attrs(owner)
    assert found == {"a": [1, [2]], "b": b"xy", "c": 0.5, "d": -3, "e": True}
    assert [type(value) for value in found.values()] == [list, bytes, float, int, bool]


def test_what_messagepack_has_not_is_refused(npk, owner):
    npk._set_attrs(owner, {"a": 1}, [])
    endless = []
    endless.append(endless)
    deep = 1
    for _ in range(65):
        deep = [deep]
    for value, error in (
        (object(), TypeError),
        ({1, 2}, TypeError),
        ([1, [A]], TypeError),
        (np.datetime64("2020-01-01"), TypeError),
        (1j, TypeError),
        (2**64, ValueError),
        ([-(2**63) - 1], ValueError),
        (endless, ValueError),
        (deep, ValueError),
        ("\ud800", ValueError),
    ):
        with pytest.raises(error):
            npk._set_attrs(owner, {"b": 1, "c": value}, ["a"])
    with pytest.raises(TypeError):
        npk._set_attrs(owner, {1: 2}, [])
    assert npk._get_attrs(owner) == {"a": 1}
    with pytest.raises(KeyError):
        npk._get_attrs("missing")
    with pytest.raises(KeyError):
        npk._set_attrs("missing", {}, [])


def test_attributes_stay_with_the_name_and_with_what_is_done_to_it(npk):
    npk.save({"a": A})
    npk._set_attrs("a", {"unit": "m"}, [])
    npk.save({"a": A[:5]})
    npk.append({"a": A})
    npk.drop("a", 3)
    npk.update("a")
    npk.recompress("a")
    npk.clone("a", "b")
    assert npk._get_attrs("a") == npk._get_attrs("b") == {"unit": "m"}
    npk._set_attrs("a", {}, ["unit"])
    assert npk._get_attrs("b") == {"unit": "m"}
    npk.drop("b")
    npk.save({"b": A})
    assert npk._get_attrs("b") == {}


def test_one_commit_saves_and_removes(npk):
    npk.save({"plain": A, "gone": A})
    npk.save({"compressed": A}, compress=5)
    npk._set_attrs("plain", {"x": 1}, [])
    npk._commit({"plain": A[:2], "compressed": A[:3], "new": A[:4]}, ["gone", "missing"])
    assert npk.get_member_list() == ["plain", "compressed", "new"]
    for n, name in enumerate(npk, start=2):
        assert_same(npk.load(name), A[:n])
    codecs = {name: found["codec"] and found["codec"]["level"] for name, found in npk.get_metadata()["arrays"].items()}
    assert codecs == {"plain": None, "compressed": 5, "new": None}
    assert npk._get_attrs("plain") == {"x": 1}
    for save, error in (({"x": A, "y": np.array([object()])}, TypeError), ({"x": A, 1: A}, TypeError), ([], ValueError)):
        with pytest.raises(error):
            npk._commit(save, ["new"])
    npk._commit({}, [])
    npk._commit({"plain": A}, [], {"plain": 3}, {"plain": ({"y": 2}, ["x"]), None: ({"s": 1}, []), "new": ({"z": 1}, [])})
    assert npk.get_metadata()["arrays"]["plain"]["codec"]["level"] == 3
    assert [npk._get_attrs(name) for name in ("plain", None, "new")] == [{"y": 2}, {"s": 1}, {"z": 1}]
    for attrs in ({"missing": ({"x": 1}, [])}, {"new": ({"x": object()}, [])}):
        with pytest.raises((KeyError, TypeError)):
            npk._commit({"more": A}, ["new"], {}, attrs)
    assert npk.get_member_list() == ["plain", "compressed", "new"]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mapped_arrays_are_the_arrays(npk, dtype):
    array, other = example(dtype, (20, 2)), example(dtype, (20, 2), seed=1)
    npk.save({"a": array})
    mapped = npk._map("a")
    assert_same(mapped, array)
    assert mapped.flags.writeable and not mapped.flags.owndata
    mapped[3:7] = other[3:7]
    array[3:7] = other[3:7]
    assert_same(npk.load("a"), array)
    npk._write_back("a", 0, mapped)
    npk.close()
    mapped[8] = other[8]
    array[8] = other[8]
    npk.open()
    assert_same(npk.load("a"), array)


def test_mapped_arrays_have_no_dropped_rows_and_any_order(npk):
    npk.save({"a": A, "f": np.asfortranarray(A), "none": A[:0], "0-d": np.array(2.0), "c": A})
    npk.recompress("c")
    npk.drop("a", [0, 5])
    for name in npk:
        mapped = npk._map(name)
        if name == "c":
            assert mapped is None
            continue
        assert mapped.flags.writeable
        assert_same(mapped, npk.load(name))
        mapped[...] = 7
        assert (npk.load(name) == 7).all()
    with pytest.raises(KeyError):
        npk._map("missing")


def test_mapped_arrays_outlive_what_is_done_to_the_array(npk):
    npk.save({"a": A})
    mapped = npk._map("a")
    view = mapped[5:, 1]
    del mapped
    npk.save({"a": A + 1})
    npk.drop("a")
    npk.close()
    gc.collect()
    view[:] = 3
    assert (view == 3).all()


def test_time_of_change_is_that_of_writing_back(npk):
    npk.save({"a": A})
    mapped = npk._map("a")
    before = npk.get_modify_time("a")
    mapped[0] = 1
    npk._write_back("a", 0, mapped)
    assert npk.get_modify_time("a") > before
    before = npk.get_modify_time("a")
    mapped[0] = 2
    npk.flush()
    assert npk.get_modify_time("a") > before


@pytest.mark.parametrize("compress", [False, {"block": 4096}], ids=["plain", "compressed"])
def test_rows_written_back_are_those_that_differ(numpack, npk, compress):
    npk.save({"a": A}, compress=compress)
    npk.drop("a", [1, 600])
    expected = np.delete(A, [1, 600], axis=0)
    before = npk.get_modify_time("a")
    if compress:
        npk._write_back("a", 0, expected)
        assert npk.get_modify_time("a") == before, "nothing was changed"
    expected[400] = 5
    npk._write_back("a", 0, expected)
    assert_same(npk.load("a"), expected)
    assert npk.get_modify_time("a") > before or not compress
    expected[500:510] = 6
    npk._write_back("a", 490, expected[490:])
    assert_same(npk.load("a"), expected)
    for start, rows in ((690, expected[:9]), (0, expected[:, :2])):
        with pytest.raises(ValueError):
            npk._write_back("a", start, rows)
    with pytest.raises(TypeError):
        npk._write_back("a", 0, expected.astype("f8"))
    assert_same(npk.load("a"), expected)
