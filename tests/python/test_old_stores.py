"""Stores that NumPack 0.1 to 0.7 wrote: read as they are, in the view of their users, and never written to."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_same

DATA = Path(__file__).resolve().parents[1] / "data" / "upstream"
STORES = sorted(file.relative_to(DATA).as_posix().removesuffix(".expected.npz") for file in DATA.glob("*/*.expected.npz"))
QUIRKS = DATA / "quirks"


def copied(source, target):
    """A copy of a store, which is packed if its names are no good for some file systems."""
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    with tarfile.open(f"{source}.tar") as tar:
        tar.extractall(target.parent, filter="data")
    return (target.parent / source.name).rename(target)


def expected_of(store):
    with np.load(DATA / f"{store}.expected.npz") as arrays:
        return {str(name): arrays[f"a{n}"] for n, name in enumerate(arrays["names"])}


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_there_are_stores_to_read():
    assert len(STORES) > 70


@pytest.mark.parametrize("store", STORES)
def test_every_array_is_read_in_every_way(numpack, path, store):
    expected = expected_of(store)
    before = contents(copied(DATA / f"{store}.npk", path))
    with numpack.NumPack(path) as npk:
        assert set(npk) == expected.keys() and len(npk) == len(expected)
        assert npk.get_shape() == {name: expected[name].shape for name in npk}
        metadata = npk.get_metadata()
        for name, array in expected.items():
            assert_same(npk.load(name), array)
            lazy = npk.load(name, lazy=True)
            assert_same(np.array(lazy), array)
            entry = metadata["arrays"][name]
            assert entry["shape"] == list(array.shape) and entry["size_bytes"] == array.nbytes
            assert entry["data_file"] in {file.name for file in before}
            assert npk.get_modify_time(name) == entry["last_modified"] > 1.6e15
            if array.ndim == 0:
                continue
            assert_same(lazy[::-2], array[::-2].copy())
            for rows in ([-1, 0, -1], slice(1, None, 2), np.arange(len(array)) % 3 == 0):
                if len(array) or not isinstance(rows, list):
                    assert_same(npk.getitem(name, rows), array[rows].copy())
                    assert_same(lazy[rows], array[rows])
            chunks = [chunk for chunk in npk.stream_load(name, 2)]
            assert_same(np.concatenate([array[:0], *chunks]), array)
    assert contents(path) == before


WRITES = {
    "save": lambda npk, name: npk.save({"new": np.ones(3)}),
    "overwrite": lambda npk, name: npk.save({name: np.ones(3)}),
    "append": lambda npk, name: npk.append({name: npk.getitem(name, [0])}),
    "replace": lambda npk, name: npk.replace({name: npk.getitem(name, [0])}, [0]),
    "drop": lambda npk, name: npk.drop(name),
    "drop rows": lambda npk, name: npk.drop(name, [0]),
    "update": lambda npk, name: npk.update(name),
    "recompress": lambda npk, name: npk.recompress(name),
    "reset": lambda npk, name: npk.reset(),
    "clone": lambda npk, name: npk.clone(name, "new"),
    "create": lambda npk, name: npk.create("new", (3,)),
    "write_rows": lambda npk, name: npk.write_rows(name, 0, npk.getitem(name, [0])),
    "attributes": lambda npk, name: npk._set_attrs(name, {"unit": "m"}, []),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize(
    ("store", "name", "layout"),
    [
        ("0.1.1-rust/dtypes", "float32_2d", "0.1-0.2.0"),
        ("0.2.0-python/appended", "m", "0.2.0 (Python)"),
        ("0.2.1-rust/appended", "m", "0.2.1"),
        ("0.7.0-rust/dropped_rows", "many", "0.3-0.7"),
    ],
)
def test_every_write_says_how_to_upgrade(numpack, path, write, store, name, layout):
    before = contents(copied(DATA / f"{store}.npk", path))
    with numpack.NumPack(path) as npk:
        message = f'the store has the layout of NumPack {layout}, which is only read; run "npkfs upgrade {path}"'
        with pytest.raises(numpack.ReadOnlyError) as raised:
            write(npk, name)
        assert raised.value.strerror == message and raised.value.filename == str(path)
        assert npk.has_array(name)
    assert contents(path) == before


def test_stores_that_may_not_be_written_are_read(numpack, path):
    copied(DATA / "0.7.0-rust/segmented.npk", path)
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
            os.chdir("/")
        if not os.access(path, os.R_OK, effective_ids=True):
            pytest.skip("the folder of temporary files is closed to other users")
        with numpack.NumPack(path) as npk:
            for name, array in expected_of("0.7.0-rust/segmented").items():
                assert_same(npk.load(name), array)
    finally:
        os.seteuid(user)
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o755)


def test_what_an_old_release_writes_meanwhile_is_seen(numpack, path):
    copied(DATA / "0.3.0-rust/appended.npk", path)
    with numpack.NumPack(path) as npk:
        assert set(npk) == expected_of("0.3.0-rust/appended").keys()
        shutil.rmtree(path)
        copied(DATA / "0.3.0-rust/overwritten.npk", path)
        expected = expected_of("0.3.0-rust/overwritten")
        assert set(npk) == expected.keys()
        for name, array in expected.items():
            assert_same(npk.load(name), array)


REFUSED = {
    "0.3.0-python-string_array": ("s", "data_s.npkd has 16 bytes, expected 8"),
    "0.7.0-append_resurrects_rows": ("a", "deleted_a.npkb says that 2 rows are deleted, and its bits that 0 are"),
    "0.7.0-killed_after_append": ("a", "data_a.npkd has 40 bytes, expected 24"),
    "0.7.0-killed_after_drop_and_append": ("a", "deleted_a.npkb counts 8 rows, metadata.npkm 6"),
    "0.7.0-killed_after_reset": ("a", "data_a.npkd is missing"),
    "0.7.0-killed_after_shrinking_save": ("a", "data_a.npkd has 16 bytes, expected 48"),
    "0.7.0-killed_after_update": ("a", "data_a.npkd has 16 bytes, expected 24"),
    "0.7.0-reader_closed_last": ("x", "data_x.npkd has 12 bytes, expected 8"),
}


def assert_refused(numpack, path, name, what):
    message = f'{path}: array "{name}": data file {what}'
    with numpack.NumPack(path) as npk:
        assert name in npk and npk.get_shape(name) == tuple(npk.get_metadata()["arrays"][name]["shape"])
        for read in (
            lambda: npk.load(name),
            lambda: npk.load(name, lazy=True)[()],
            lambda: npk.getitem(name, []),
            lambda: list(npk.stream_load(name, 2)),
        ):
            with pytest.raises(numpack.CorruptStoreError) as raised:
                read()
            assert str(raised.value).startswith(message)


@pytest.mark.parametrize("quirk", REFUSED)
def test_arrays_whose_files_contradict_the_table_are_refused(numpack, path, quirk):
    name, what = REFUSED[quirk]
    copied(QUIRKS / f"{quirk}.npk", path)
    assert_refused(numpack, path, name, f'{what}; run "npkfs verify {path}"')


READ = {
    "0.2.0-rust-stale_wal": {"a": [0, 1, 2, 20, 21, 30, 31]},
    "0.3.0-rust-fortran_order": {"a": [[0, 3, 1], [4, 2, 5]]},
    "0.7.0-two_writers": {"y": [0, 1, 2]},
    "0.3.0-python-big_endian": {"be": np.arange(3).astype(">f4").view("<f4").tolist()},
}


@pytest.mark.parametrize("quirk", READ)
def test_what_no_byte_contradicts_is_read_as_it_is_there(numpack, load_all, path, quirk):
    copied(QUIRKS / f"{quirk}.npk", path)
    assert {name: array.tolist() for name, array in load_all(path).items()} == READ[quirk]


def test_arrays_beside_one_that_is_refused(numpack, path):
    copied(QUIRKS / "0.3.0-python-string_array.npk", path)
    with numpack.NumPack(path) as npk:
        assert npk.load("ok").shape == (2,)


LOST = {
    "0.3.0-wiped_0.2.1": ("CorruptStoreError", "lists no array, but there are data files"),
    "0.7.0-killed_before_close": ("NotAStoreError", "has data files but no metadata.npkm"),
}


@pytest.mark.parametrize("quirk", LOST)
def test_lost_tables_are_no_empty_stores(numpack, path, quirk):
    error, message = LOST[quirk]
    before = contents(copied(QUIRKS / f"{quirk}.npk", path))
    with pytest.raises(getattr(numpack, error), match=message):
        numpack.NumPack(path).open()
    assert contents(path) == before


def test_every_quirk_has_a_test():
    assert {folder.name.removesuffix(".npk") for folder in QUIRKS.iterdir()} == REFUSED.keys() | READ.keys() | LOST.keys()


def test_bad_files_of_deleted_rows(numpack, path):
    copied(DATA / "0.7.0-rust/dropped_rows.npk", path)
    file = path / "deleted_one.npkb"
    good = file.read_bytes()
    for data, what in (
        (b"", "has 0 bytes, expected 24"),
        (good[:20], "has 20 bytes, expected 24"),
        (good + b"x", "has 25 bytes, expected 24"),
        (good[:23] + b"\x80", "has bits behind its last row"),
    ):
        file.write_bytes(data)
        assert_refused(numpack, path, "one", f"deleted_one.npkb {what}")
    file.unlink()
    file.symlink_to("/etc/passwd")
    assert_refused(numpack, path, "one", "deleted_one.npkb is not a regular file, and links are not followed")
    (path / "data_vec.npkd").rename(path / "elsewhere")
    (path / "data_vec.npkd").symlink_to("elsewhere")
    assert_refused(numpack, path, "vec", "data_vec.npkd is not a regular file, and links are not followed")
    with numpack.NumPack(path) as npk:
        assert npk.load("untouched").shape == (3, 3)


def test_bad_segments(numpack, path, tmp_path):
    def fresh():
        shutil.rmtree(path, ignore_errors=True)
        copied(DATA / "0.7.0-rust/segmented.npk", path)
        return path / segment, path / "data_rows6.npkseg"

    segment = "data_rows6_segments/seg_000001.npkd"
    file, _ = fresh()
    file.unlink()
    assert_refused(numpack, path, "rows6", f"{segment} is missing")
    file, _ = fresh()
    file.write_bytes(bytes(65))
    assert_refused(numpack, path, "rows6", f"{segment} has 65 bytes, expected 64")
    file, _ = fresh()
    file.parent.rename(path / "elsewhere")
    file.parent.symlink_to("elsewhere")
    not_a_file = "is not a regular file, and links are not followed"
    assert_refused(numpack, path, "rows6", f"data_rows6_segments/seg_000000.npkd {not_a_file}")
    _, listing = fresh()
    text = listing.read_text()
    for old, new, what in (
        ("data_rows6_segments/seg_000000.npkd", "../secret", "names the segment ../secret, which is outside of the store"),
        ('"bytes": 64', '"bytes": 60', "lists 316 bytes, expected 320"),
        (text, "{", "is no list of segments: "),
    ):
        listing.write_text(text.replace(old, new, 1))
        assert_refused(numpack, path, "rows6", f"data_rows6.npkseg {what}")


@pytest.mark.parametrize("store", ["0.2.0-rust/appended", "0.2.0-python/appended", "0.2.1-rust/appended", "0.3.0-rust/appended"])
def test_tables_that_are_cut_or_changed_are_refused_or_name_other_arrays(numpack, path, store):
    copied(DATA / f"{store}.npk", path)
    table = (path / "metadata.npkm").read_bytes()
    for damaged in (
        *(table[:length] for length in range(len(table))),
        *(table[:offset] + bytes([table[offset] ^ 0x55]) + table[offset + 1 :] for offset in range(0, len(table), 3)),
        table + b"\0",
    ):
        (path / "metadata.npkm").write_bytes(damaged)
        try:
            with numpack.NumPack(path) as npk:
                for name in npk:
                    npk.load(name)
        except numpack.NpkError as error:
            assert str(path) in str(error)
