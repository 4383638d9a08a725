"""Stores that are damaged or not stores at all: an error that says what and where, and nothing written."""

import numpy as np
import pytest
from arrays import assert_same, example

A = example("f4", (1000, 4))


@pytest.fixture
def stored(numpack, path):
    """The path of a store with some arrays and a history."""
    with numpack.NumPack(path) as npk:
        npk.save({"a": A, "b": A})
        npk.append({"a": A})
        npk.drop("b", [1, 2])
    return path


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("manifest", [b"", b"x" * 100, b"\x93NUMPY\x01\x00", b"\x00" * 64])
def test_manifest_that_is_none(numpack, stored, manifest):
    (stored / "metadata.npkm").write_bytes(manifest)
    before = contents(stored)
    with pytest.raises(numpack.NpkError, match="data.npk") as raised:
        numpack.NumPack(stored).open()
    assert isinstance(raised.value, ValueError | NotImplementedError)
    assert contents(stored) == before


def test_manifest_with_any_byte_flipped_gives_an_error_or_the_arrays(numpack, stored):
    manifest = (stored / "metadata.npkm").read_bytes()
    expected = {"a": np.concatenate([A, A]), "b": np.delete(A, [1, 2], axis=0)}
    for offset in range(0, len(manifest), 3):
        damaged = bytearray(manifest)
        damaged[offset] ^= 0x41
        (stored / "metadata.npkm").write_bytes(damaged)
        try:
            with numpack.NumPack(stored) as npk:
                loaded = {name: npk.load(name) for name in npk}
        except (numpack.NpkError, KeyError):
            continue
        for name, array in loaded.items():
            # A damaged last frame is one that was never committed.
            assert np.array_equal(array, expected[name]) or len(array) == len(A), offset


def test_truncated_data_file(numpack, stored):
    with numpack.NumPack(stored) as npk:
        file = stored / npk.get_metadata()["arrays"]["a"]["data_file"]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with numpack.NumPack(stored) as npk:
        calls = [
            lambda: npk.load("a"),
            lambda: npk.load("a", lazy=True)[5],
            lambda: npk.getitem("a", -1),
            lambda: npk.append({"a": A}),
            lambda: npk.replace({"a": A[:1]}, -1),
        ]
        for call in calls:
            with pytest.raises(numpack.CorruptStoreError, match=f'"a": data file {file.name} has .* bytes, expected'):
                call()
        assert_same(npk.load("b"), np.delete(A, [1, 2], axis=0))
    assert file.read_bytes() == data[: len(data) // 2]


def test_missing_data_file(numpack, stored):
    with numpack.NumPack(stored) as npk:
        (stored / npk.get_metadata()["arrays"]["a"]["data_file"]).unlink()
        with pytest.raises(numpack.CorruptStoreError, match='"a": data file .* is missing'):
            npk.load("a")
        assert npk.get_shape("a") == (2000, 4)
        npk.save({"a": A})
        assert_same(npk.load("a"), A)


def test_data_file_that_is_a_link_out_of_the_store(numpack, stored, tmp_path):
    with numpack.NumPack(stored) as npk:
        file = stored / npk.get_metadata()["arrays"]["a"]["data_file"]
    file.rename(tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    with numpack.NumPack(stored) as npk, pytest.raises(numpack.CorruptStoreError, match="not a regular file"):
        npk.load("a")


def test_folder_of_another_kind_keeps_its_files(numpack, path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with numpack.NumPack(path) as npk:
        npk.save({"a": A})
        npk.reset()
    assert (path / "notes.txt").read_text() == "mine"


def test_errors_are_also_the_builtin_ones(numpack):
    bases = {
        "ArrayNotFoundError": KeyError,
        "AppendTargetError": ValueError,
        "ArrayExistsError": ValueError,
        "RowIndexError": IndexError,
        "StoreClosedError": RuntimeError,
        "ReadOnlyError": OSError,
        "StoreLockedError": TimeoutError,
        "NotAStoreError": ValueError,
        "CorruptStoreError": ValueError,
        "UnsupportedError": NotImplementedError,
    }
    for name, base in bases.items():
        error = getattr(numpack, name)
        assert issubclass(error, numpack.NpkError) and issubclass(error, base)
        assert error.__module__ == "numpack._errors" and error.__doc__
    assert str(numpack.ArrayNotFoundError("no such 'a'")) == "no such 'a'"
