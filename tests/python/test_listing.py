"""What a store tells about its arrays."""

import time

import numpy as np
import pytest
from arrays import example

A = example("f4", (6, 4))


def test_members_are_listed_in_the_order_of_their_first_save(npk, numpack, path):
    names = [f"array {n * 7919 % 101}" for n in range(50)]
    for name in names[:25]:
        npk.save({name: A})
    npk.save({name: A for name in names[25:]})
    npk.save({names[30]: A[:1], names[3]: A})
    npk.append({names[10]: A})
    assert npk.get_member_list() == list(npk) == names
    npk.drop(names[5])
    npk.save({names[5]: A})
    names.append(names.pop(5))
    assert npk.get_member_list() == names
    with numpack.NumPack(path) as again:
        assert again.get_member_list() == names


def test_contains_len_and_has_array(npk):
    assert len(npk) == 0 and "a" not in npk and list(npk) == []
    assert npk
    npk.save({"a": A, "b": A})
    assert len(npk) == 2 and "a" in npk and "c" not in npk
    assert npk.has_array("b") is True and npk.has_array("c") is False
    for name in (None, 1, b"a", ("a",)):
        assert name not in npk
        assert npk.has_array(name) is False


def test_iteration_is_not_disturbed_by_changes(npk):
    npk.save({name: A for name in "abc"})
    for name in npk:
        npk.drop(name)
        npk.save({name + name: A})
    assert list(npk) == ["aa", "bb", "cc"]


def test_shapes(npk):
    npk.save({"a": A, "0-d": np.array(1), "empty": A[:0]})
    npk.drop("a", [0, 3])
    assert npk.get_shape("a") == (4, 4)
    assert npk.get_shape() == {"a": (4, 4), "0-d": (), "empty": (0, 4)}
    assert list(npk.get_shape()) == npk.get_member_list()
    assert all(type(shape) is tuple for shape in npk.get_shape().values())
    with pytest.raises(KeyError, match="does not exist"):
        npk.get_shape("b")


def test_metadata(npk, path):
    npk.save({"a": A, "flags": np.ones(3, "?")})
    npk.drop("a", 0)
    metadata = npk.get_metadata()
    assert metadata["base_dir"] == str(path)
    assert metadata["total_arrays"] == 2
    assert list(metadata["arrays"]) == ["a", "flags"]
    of_a = metadata["arrays"]["a"]
    assert of_a["shape"] == [5, 4] and of_a["dtype"] == "Float32" and of_a["size_bytes"] == 80
    assert (path / of_a["data_file"]).is_file()
    assert of_a["last_modified"] == npk.get_modify_time("a")


def test_dtype_names_in_metadata(npk):
    numbers = "Int8 Int16 Int32 Int64 Uint8 Uint16 Uint32 Uint64 Float16 Float32 Float64 Complex64 Complex128"
    expected = {name: name.lower() for name in numbers.split()} | {"Bool": "bool"}
    npk.save({name: np.zeros(2, dtype) for name, dtype in expected.items()})
    others = {">f4": ">f4", "U5": "<U5", "M8[ns]": "datetime64[ns]", "a": "[('x', '<i4')]"}
    dtypes = dict.fromkeys(others) | {name: name for name in others if name != "a"} | {"a": [("x", "i4")]}
    npk.save({name: np.zeros(2, dtype) for name, dtype in dtypes.items()})
    found = {name: array["dtype"] for name, array in npk.get_metadata()["arrays"].items()}
    assert found == {name: name for name in expected} | others


def test_modify_time_grows_with_every_change(npk):
    before = time.time() * 1e6 - 1e5
    npk.save({"a": A, "b": A})
    times = [npk.get_modify_time("a")]
    assert type(times[0]) is int and before < times[0] < time.time() * 1e6 + 1e5
    changes = [
        lambda: npk.append({"a": A}),
        lambda: npk.replace({"a": A[:1]}, 0),
        lambda: npk.drop("a", 0),
        lambda: npk.save({"a": A}),
    ]
    for change in changes:
        # The clock of the file system ticks in milliseconds.
        tick = time.monotonic() + 0.02
        while time.monotonic() < tick:
            pass
        change()
        times.append(npk.get_modify_time("a"))
    assert times == sorted(set(times))
    assert npk.get_modify_time("missing") is None
    assert npk.get_modify_time("b") <= times[1]


def test_reset_removes_the_stores_own_arrays_only(npk, path):
    npk.save({"a": A, "b": A})
    (path / "foreign.npkd").write_bytes(b"mine")
    (path / "notes.txt").write_text("mine")
    npk.reset()
    assert len(npk) == 0 and npk.get_metadata()["arrays"] == {}
    assert (path / "foreign.npkd").exists() and (path / "notes.txt").exists()
    assert not list(path.glob("data_*"))
    npk.save({"a": A})
    assert np.array_equal(npk.load("a"), A)


def test_data_files_are_npy_files(npk, path):
    arrays = {"a": A, "b": np.asfortranarray(A), "c": example([("x", ">f4"), ("y", "U3")], 5), "d": np.array(5)}
    npk.save(arrays)
    npk.append({"a": A})
    for name, metadata in npk.get_metadata()["arrays"].items():
        assert np.load(path / metadata["data_file"]).tolist() == npk.load(name).tolist()


def test_module(numpack):
    info = numpack.get_backend_info()
    assert info.keys() == {"backend_type", "platform", "is_windows", "version"}
    assert info["version"] == numpack.__version__
    assert numpack.force_cleanup_windows_handles() is True
    for name in numpack.__all__:
        assert hasattr(numpack, name)
