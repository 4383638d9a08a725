"""Groups: arrays whose names begin alike, as a store of their own; and attributes."""

import numpy as np
import pytest
from arrays import assert_same

A = np.arange(12.0).reshape(4, 3)


@pytest.fixture
def stored(npk):
    npk.save({"run/a": A, "run/deep/b": A[:2], "other": A[:1], "running": A[:3]})
    return npk


def test_array_comes_before_the_group_of_its_name(stored, numpack):
    assert_same(stored["run/a"], A)
    assert isinstance(stored["run"], numpack.Group) and stored["run"].name == "run"
    assert stored["run"] == stored["run/"] == stored.group("run")
    assert_same(stored["run"]["a"], A)
    assert_same(stored["run"]["deep"]["b"], A[:2])
    assert stored["run"]["deep"].name == "run/deep"
    stored.save({"run": A[:1]})
    assert_same(stored["run"], A[:1])
    assert list(stored.group("run")) == ["a", "deep/b"]
    for name in ("ru", "run/d", "run/a/", "", "/"):
        with pytest.raises(KeyError, match="does not exist"):
            stored[name]
    with pytest.raises(TypeError):
        stored[3]


def test_groups_are_listed(stored):
    assert stored.groups() == ["run"]
    assert stored["run"].groups() == ["deep"]
    assert stored["run"]["deep"].groups() == []
    assert stored.group("nothing").groups() == [] and list(stored.group("nothing")) == []


def test_group_is_a_store_under_short_names(stored):
    run = stored["run"]
    assert list(run) == run.keys() == run.get_member_list() == ["a", "deep/b"]
    assert len(run) == 2 and run and "a" in run and "run/a" not in run and 3 not in run
    assert run.has_array("deep/b") and not run.has_array("other")
    assert run.get_shape() == {"a": (4, 3), "deep/b": (2, 3)} and run.get_shape("a") == (4, 3)
    metadata = run.get_metadata()
    assert metadata["total_arrays"] == 2 and list(metadata["arrays"]) == ["a", "deep/b"]
    assert run.get_modify_time("a") == stored.get_modify_time("run/a") and run.get_modify_time("x") is None
    assert_same(run.load("a"), A)
    assert_same(run.load("a", lazy=True)[1], A[1])
    assert_same(run.load("a", rows=[1]), A[1:2])
    assert_same(run.getitem("a", -1), A[3:])
    assert [len(piece) for piece in run.stream_load("a", 3)] == [3, 1]


def test_changes_through_a_group(stored):
    run = stored.group("run")
    run.save({"new": A[:1]}, compress=True)
    run.append({"new": A[1:2], "a": A[:1]})
    run.replace({"a": -A[:1]}, 1)
    run.drop("a", [0])
    run.update("a")
    run.clone("a", "copy")
    run.create("zeros", (2, 2), np.int8)
    run.write_rows("zeros", 1, np.ones((1, 2), np.int8))
    assert run.recompress("new", None)
    assert_same(stored["run/new"], A[:2])
    assert_same(stored["run/a"], np.concatenate([-A[:1], A[2:], A[:1]]))
    assert_same(stored["run/copy"], stored["run/a"])
    assert stored["run/zeros"].tolist() == [[0, 0], [1, 1]]
    run.attrs_of("a")["unit"] = "m"
    assert stored.attrs_of("run/a")["unit"] == "m"
    run.drop(["a", "copy", "missing"])
    assert list(run) == ["deep/b", "new", "zeros"]
    run.flush()
    run.reset()
    assert list(stored) == ["other", "running"]


def test_groups_in_batch_modes(stored):
    with stored.batch_mode():
        run = stored["run"]
        run.load("a")[0] = 5
        stored.save({"fresh/x": A})
        assert list(stored["fresh"]) == ["x"]
        with run.batch_mode():
            run.append({"a": A[:1]})
    assert stored["run/a"][[0, 4]].tolist() == [[5] * 3, A[0].tolist()]
    with stored["run"].writable_batch_mode() as wb:
        wb.load("deep/b")[0] = 6
        with pytest.raises(KeyError):
            wb.load("other")
    assert stored["run/deep/b"][0].tolist() == [6] * 3


def test_wrong_calls(stored, numpack):
    for name in ("", "/"):
        with pytest.raises(ValueError, match="name"):
            stored.group(name)
    run = stored["run"]
    with pytest.raises(TypeError):
        run.group(3)
    with pytest.raises(numpack.ArrayNotFoundError):
        run.load("other")
    with pytest.raises(ValueError, match="dict"):
        run.save([A])
    with pytest.raises(TypeError):
        run.save({3: A})
    with pytest.raises(ValueError, match="does not exist"):
        run.append({"x": A})


def test_repr_of_groups(stored, path):
    run = stored["run"]
    assert repr(run) == f"Group('run', arrays=2, store={path})"
    assert "deep/b" in run._repr_html_() and "running" not in run._repr_html_()
    stored.close()
    assert repr(run) == "Group('run', status=closed)"
    assert "closed" in run._repr_html_()


VALUES = {
    "none": None,
    "bool": True,
    "int": -(2**63),
    "large int": 2**64 - 1,
    "float": 0.1,
    "infinity": float("-inf"),
    "str": "größe \U0001d11e",
    "bytes": b"\0\xff",
    "list": [1, [2.5, None], {"a": ["b"]}],
    "dict": {"x": {"y": [True, b"z"]}, "": 1},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_attributes_are_stored(stored, numpack, path, value):
    stored.attrs["v"] = value
    stored.attrs_of("other")["v"] = value
    with numpack.NumPack(path) as again:
        for attrs in (again.attrs, again.attrs_of("other")):
            assert attrs["v"] == value and type(attrs["v"]) is type(value)
            assert dict(attrs) == {"v": value}
        assert dict(again.attrs_of("running")) == {}


def test_attributes_are_a_mapping(stored):
    attrs = stored.attrs_of("other")
    attrs.update({"a": 1}, b=2)
    attrs.update([("c", 3)])
    assert attrs == {"a": 1, "b": 2, "c": 3} and len(attrs) == 3 and list(attrs) == ["a", "b", "c"]
    assert attrs.pop("b") == 2 and attrs.setdefault("d", 4) == 4 and "b" not in attrs and attrs.get("b") is None
    del attrs["c"]
    for missing in (lambda: attrs["c"], lambda: attrs.__delitem__("c"), lambda: attrs.pop("c")):
        with pytest.raises(KeyError):
            missing()
    assert repr(attrs) == "<attributes of 'other': {'a': 1, 'd': 4}>"
    attrs.clear()
    assert not attrs and repr(stored.attrs) == "<attributes of the store: {}>"


def test_values_of_numpy_become_what_they_are(stored):
    stored.attrs.update(a=np.int8(3), b=np.float32(0.5), c=np.arange(3), d=(1, np.bool_(True)), e=np.str_("x"))
    assert dict(stored.attrs) == {"a": 3, "b": 0.5, "c": [0, 1, 2], "d": [1, True], "e": "x"}
    assert [type(value) for value in stored.attrs.values()] == [int, float, list, list, str]


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("attrs", "error"),
    [
        ({3: 1}, TypeError),
        ({"a": object()}, TypeError),
        ({"a": {1, 2}}, TypeError),
        ({"a": {1: 2}}, TypeError),
        ({"a": 1j}, TypeError),
        ({"a": 2**64}, ValueError),
        ({"a": -(2**63) - 1}, ValueError),
        ({"a": nested(70)}, ValueError),
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused(stored, attrs, error):
    for target in (stored.attrs, stored.attrs_of("other")):
        with pytest.raises(error):
            target.update({"good": 1} | attrs)
        assert dict(target) == {}
    with pytest.raises(KeyError, match="does not exist"):
        stored.attrs_of("missing")


def test_deep_attributes_come_back(stored):
    stored.attrs["deep"] = nested(60)
    assert stored.attrs["deep"] == nested(60)


def test_attributes_belong_to_the_name(stored):
    attrs = stored.attrs_of("other")
    attrs["unit"] = "m"
    stored.save({"other": -A})
    stored.append({"other": A})
    assert stored.attrs_of("other")["unit"] == "m"
    stored.clone("other", "copy")
    assert stored.attrs_of("copy")["unit"] == "m"
    stored.drop("other")
    with pytest.raises(KeyError):
        attrs["unit"]
    assert "does not exist" in repr(attrs)
    stored.save({"other": A})
    assert dict(attrs) == {}


def test_attributes_of_a_closed_store(stored):
    attrs = stored.attrs
    stored.close()
    with pytest.raises(RuntimeError, match="not opened or has been closed"):
        attrs["x"] = 1
    assert repr(attrs) == "<attributes of the store, which is closed>"
