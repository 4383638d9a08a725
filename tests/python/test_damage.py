"""Stores that are damaged or not stores at all: an error that says what and where, and nothing written."""

import struct
import zlib

import msgpack
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


def spoil_record(path, name, fields):
    """Make the manifest of a store one snapshot, in which a record has other fields."""
    data = (path / "metadata.npkm").read_bytes()
    offset, arrays = 64, {}
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset + 8)
        frame = msgpack.unpackb(data[offset + 24 : offset + 24 + length])
        arrays.update(op["put"] for op in frame.get("ops", []))
        offset += 24 + length + -length % 8
    arrays[name] = msgpack.packb(msgpack.unpackb(arrays[name]) | fields)
    state = {"generation": frame["generation"], "next_id": len(arrays) + 1, "attrs": {}, "arrays": list(arrays.items())}
    payload = msgpack.packb(state)
    covered = struct.pack("<IIQ", len(payload), 0, 0) + payload
    frame = b"npkF" + struct.pack("<I", zlib.crc32(covered)) + covered + bytes(-len(payload) % 8)
    (path / "metadata.npkm").write_bytes(data[:40] + struct.pack("<Q", 64 + len(frame)) + bytes(16) + frame)


def test_wrong_record_is_told_to_who_asks_for_it(numpack, path):
    with numpack.NumPack(path) as npk:
        npk.save({"bad": A, "good": A})
    spoil_record(path, "bad", {"file": "/etc/passwd"})
    with numpack.NumPack(path) as npk:
        assert npk.get_member_list() == ["bad", "good"]
        assert "bad" in npk
        assert_same(npk.load("good"), A)
        npk.append({"good": A})
        assert npk.get_shape("good") == (2000, 4)
        npk.attrs["next"] = 1
        before = contents(path)
        for call in (
            lambda: npk.load("bad"),
            lambda: npk.load("bad", lazy=True),
            lambda: npk.get_shape(),
            lambda: npk.get_metadata(),
            lambda: npk.save({"bad": A}),
            lambda: npk.append({"bad": A}),
            lambda: npk.replace({"bad": A[:1]}, 0),
            lambda: npk.drop("bad"),
            lambda: npk.drop("bad", 0),
            lambda: npk.clone("bad", "copy"),
            lambda: npk.reset(),
        ):
            with pytest.raises(numpack.CorruptStoreError, match="metadata.npkm: .*/etc/passwd"):
                call()
        assert contents(path) == before


CODEC = {"name": "zstd", "level": 1, "block": 4096, "filter": "none"}
WRONG_FIELDS = {
    "codec": ({"codec": CODEC | {"name": "lz4"}}, 'codec "lz4" is not known to this release; install a newer one'),
    "filter": ({"codec": CODEC | {"filter": "sieve"}}, 'filter "sieve" is not known to this release'),
    "block": ({"codec": CODEC | {"block": 5000}}, "codec: block length is 5000, expected a multiple of 4096 bytes"),
    "dtype": ({"descr": [{"title": "", "name": "x", "descr": "<f4"}]}, ""),
    "time": ({"mtime": 2**63}, ""),
}


@pytest.mark.parametrize(("fields", "what"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_record_that_does_not_decode_is_told_with_its_place(numpack, path, fields, what):
    with numpack.NumPack(path) as npk:
        npk.save({"bad": A}, compress=True)
    spoil_record(path, "bad", fields)
    with numpack.NumPack(path) as npk:
        with pytest.raises(numpack.CorruptStoreError, match=f"metadata.npkm: frame at byte 64 does not decode: {what}"):
            npk.load("bad")


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
