"""Stores of NumPack 0.1-0.7: read as what was saved, refused where their bytes disagree, never written to."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_same

ROOT = Path(__file__).parents[1] / "data" / "upstream"
FIXTURES = sorted(file.relative_to(ROOT) for file in ROOT.glob("[0-9]*/*.expected.npz"))
IDS = [str(fixture).removesuffix(".expected.npz") for fixture in FIXTURES]
QUIRKS = ROOT / "quirks"
LAYOUTS = {
    "0.1.1-rust": "0.1-0.2.0",
    "0.2.0-rust": "0.1-0.2.0",
    "0.2.0-python": r"0.2.0 \(Python\)",
    "0.2.1-rust": "0.2.1",
    "0.2.1-python": "0.2.1",
}

pytestmark = pytest.mark.skipif(not FIXTURES, reason="no stores of old releases here")


def copied(store, tmp_path):
    """A copy of a store that a test may change."""
    path = tmp_path / store.name
    if store.is_dir():
        shutil.copytree(store, path)
    else:
        with tarfile.open(f"{store}.tar") as archive:
            archive.extractall(tmp_path, filter="data")
    return path


def fixture(name, tmp_path):
    return copied(ROOT / f"{name}.npk", tmp_path)


def quirk(name, tmp_path):
    return copied(QUIRKS / f"{name}.npk", tmp_path)


def expected_arrays(expected):
    with np.load(ROOT / expected) as npz:
        return {str(name): npz[f"a{i}"] for i, name in enumerate(npz["names"])}


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("expected", FIXTURES, ids=IDS)
def test_stores_read_as_what_was_saved(numpack, tmp_path, expected):
    path = fixture(str(expected).removesuffix(".expected.npz"), tmp_path)
    arrays = expected_arrays(expected)
    before = contents(path)
    with numpack.NumPack(path) as npk:
        assert sorted(npk) == sorted(npk.get_member_list()) == sorted(arrays)
        listed = npk.get_metadata()["arrays"]
        assert listed.keys() == arrays.keys()
        for name, array in arrays.items():
            assert npk.has_array(name)
            assert_same(npk.load(name), array)
            assert npk.load(name).flags.writeable
            lazy = npk.load(name, lazy=True)
            assert (lazy.shape, lazy.dtype) == (array.shape, array.dtype)
            assert_same(np.array(lazy), array)
            assert npk.get_shape(name) == array.shape == tuple(listed[name]["shape"])
            assert npk.get_modify_time(name) > 0
            if array.ndim > 0:
                assert_rows(npk, name, lazy, array)
    assert contents(path) == before


def assert_rows(npk, name, lazy, array):
    picked = [*range(len(array) - 1, -1, -3), *range(0, len(array), 2)]
    assert_same(npk.getitem(name, picked), array[picked])
    assert_same(npk.getitem(name, slice(1, None)), array[1:])
    assert_same(np.asarray(lazy[picked]), array[picked])
    assert_same(np.asarray(lazy[::-1]), array[::-1])
    parts = list(npk.stream_load(name, 3))
    assert_same(np.concatenate([array[:0], *parts]), array)
    if len(array):
        assert_same(np.asarray(lazy[-1]), np.asarray(array[-1]))


@pytest.mark.parametrize("release", sorted({str(expected.parent) for expected in FIXTURES}))
def test_every_write_names_the_way_out(numpack, tmp_path, release):
    path = fixture(f"{release}/dtypes", tmp_path)
    before = contents(path)
    rows = np.zeros((2, 4), np.float32)
    layout = LAYOUTS.get(release, "0.3-0.7")
    message = f'the store has the layout of NumPack {layout}, which is only read; run "npkfs upgrade .*dtypes.npk"'
    with numpack.NumPack(path) as npk:
        writes = [
            lambda: npk.save({"new": rows}),
            lambda: npk.save({"float32_2d": rows}),
            lambda: npk.append({"float32_2d": rows}),
            lambda: npk.replace({"float32_2d": rows}, [0, 1]),
            lambda: npk.drop("float32_2d"),
            lambda: npk.drop("float32_2d", [0]),
            lambda: npk.update("float32_2d"),
            lambda: npk.reset(),
            lambda: npk.create("new", 3),
            lambda: npk.write_rows("float32_2d", 0, npk.load("float32_2d")),
            lambda: npk.clone("float32_2d", "new"),
            lambda: npk._commit({"new": np.zeros(3)}, []),
            lambda: npk._map("float32_2d"),
            lambda: npk._write_back("float32_2d", 0, npk.load("float32_2d")),
            lambda: npk._set_attrs("float32_2d", {"a": 1}, []),
        ]
        for number, write in enumerate(writes):
            with pytest.raises(numpack.ReadOnlyError, match=message):
                write()
                pytest.fail(f"write {number} was not refused")
        assert npk.load("float32_2d").shape == (3, 4)
    assert contents(path) == before


def test_drop_if_exists_removes_the_files_of_an_old_store(numpack, tmp_path):
    path = fixture("0.7.0-rust/segmented_mutated", tmp_path)
    (path / "notes.txt").write_text("mine")
    with numpack.NumPack(path, drop_if_exists=True) as npk:
        assert npk.get_member_list() == []
        npk.save({"a": np.arange(3)})
    names = {str(name) for name in contents(path)}
    assert names == {"data_a.npkd", "metadata.npkm", "metadata.npkm.bak", "metadata.npkm.lock", "notes.txt"}


def test_stale_write_ahead_log_is_not_replayed(numpack, tmp_path):
    with numpack.NumPack(quirk("0.2.0-rust-stale_wal", tmp_path)) as npk:
        assert npk.get_shape("a") == npk.load("a").shape == (7,)


def test_what_no_byte_shows_is_returned_as_it_is(numpack, tmp_path):
    with numpack.NumPack(quirk("0.3.0-rust-fortran_order", tmp_path)) as npk:
        assert_same(npk.load("a"), np.array([[0, 3, 1], [4, 2, 5]], np.float32))
    path = quirk("0.3.0-python-big_endian", tmp_path)
    with numpack.NumPack(path) as npk:
        assert_same(npk.load("be"), np.fromfile(path / "data_be.npkd", "<f4"))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("0.3.0-wiped_0.2.1", "CorruptStoreError", "metadata.npkm lists no array, but there are data files"),
        ("0.7.0-killed_before_close", "NotAStoreError", "has data files but no metadata.npkm"),
    ],
)
def test_stores_whose_table_is_lost_are_not_opened(numpack, tmp_path, name, error, message):
    path = quirk(name, tmp_path)
    before = contents(path)
    with pytest.raises(getattr(numpack, error), match=message):
        numpack.NumPack(path).open()
    assert contents(path) == before


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("0.3.0-python-string_array", "s", "data_s.npkd has 16 bytes, expected 8"),
        (
            "0.7.0-append_resurrects_rows",
            "a",
            "deleted_a.npkb says that 2 rows are deleted, and its bits that 0 are",
        ),
        ("0.7.0-killed_after_append", "a", "data_a.npkd has 40 bytes, expected 24"),
        ("0.7.0-killed_after_drop_and_append", "a", "deleted_a.npkb counts 8 rows, metadata.npkm 6"),
        ("0.7.0-killed_after_reset", "a", "data_a.npkd is missing"),
        ("0.7.0-killed_after_shrinking_save", "a", "data_a.npkd has 16 bytes, expected 48"),
        ("0.7.0-killed_after_update", "a", "data_a.npkd has 16 bytes, expected 24"),
        ("0.7.0-reader_closed_last", "x", "data_x.npkd has 12 bytes, expected 8"),
    ],
)
def test_arrays_whose_bytes_disagree_are_refused(numpack, tmp_path, name, array, message):
    with numpack.NumPack(quirk(name, tmp_path)) as npk:
        assert array in npk
        assert npk.get_shape(array)
        reads = [
            lambda: npk.load(array),
            lambda: npk.load(array, lazy=True)[0],
            lambda: npk.getitem(array, [0]),
            lambda: next(iter(npk.stream_load(array, 2))),
        ]
        for read in reads:
            expected = f'array "{array}": data file {message}; run "npkfs verify'
            with pytest.raises(numpack.CorruptStoreError, match=expected):
                read()
        for other in set(npk) - {array}:
            npk.load(other)


def test_file_that_no_table_names_is_no_array(numpack, tmp_path):
    with numpack.NumPack(quirk("0.7.0-two_writers", tmp_path)) as npk:
        assert npk.get_member_list() == ["y"]
        assert npk.load("y").shape == (3,)


def test_segments_that_are_missing_long_or_elsewhere_are_refused(numpack, tmp_path):
    path = fixture("0.7.0-rust/segmented", tmp_path)
    segment = path / "data_rows6_segments" / "seg_000001.npkd"
    listed = path / "data_rows6.npkseg"
    good, text = segment.read_bytes(), listed.read_text()

    def refused(message):
        with numpack.NumPack(path) as npk:
            with pytest.raises(numpack.CorruptStoreError, match=message):
                npk.load("rows6")
            assert len(npk.load("bytes")) == 200

    segment.unlink()
    refused("data file data_rows6_segments/seg_000001.npkd is missing")
    segment.write_bytes(good + b"x")
    refused("data file data_rows6_segments/seg_000001.npkd has 65 bytes, expected 64")
    segment.write_bytes(good)
    listed.write_text(text.replace("data_rows6_segments/seg_000000.npkd", "../secret"))
    refused("data file data_rows6.npkseg names the segment ../secret, which is outside of the store")
    listed.write_text(text.replace('"bytes": 64', '"bytes": 60', 1))
    refused("data file data_rows6.npkseg lists 316 bytes, expected 320")
    listed.write_text("{")
    refused("data file data_rows6.npkseg is no list of segments: ")


def test_table_with_any_byte_flipped_gives_an_error_or_arrays_that_fit_their_files(numpack, tmp_path):
    for number, release in enumerate(["0.1.1-rust", "0.2.0-python", "0.2.1-python", "0.7.0-rust"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = fixture(f"{release}/dtypes", folder)
        table = (path / "metadata.npkm").read_bytes()
        longest = max(array.nbytes for array in expected_arrays(f"{release}/dtypes.expected.npz").values())
        for offset in range(0, len(table), 5):
            damaged = bytearray(table)
            damaged[offset] ^= 1 << offset % 8
            (path / "metadata.npkm").write_bytes(damaged)
            try:
                with numpack.NumPack(path) as npk:
                    loaded = [load_or_none(numpack, npk, name) for name in npk]
            except numpack.NpkError:
                continue
            assert all(array is None or array.nbytes <= longest for array in loaded), (release, offset)
        for length in range(0, len(table), 7):
            (path / "metadata.npkm").write_bytes(table[:length])
            with pytest.raises(numpack.NpkError, match="metadata.npkm"):
                numpack.NumPack(path).open()


def load_or_none(numpack, npk, name):
    try:
        return npk.load(name)
    except numpack.CorruptStoreError:
        return None


def test_what_old_releases_change_meanwhile_is_seen(numpack, tmp_path):
    path = fixture("0.7.0-rust/dropped_rows", tmp_path)
    other = fixture("0.7.0-rust/appended", tmp_path)
    with numpack.NumPack(path) as npk:
        held = npk.load("untouched", lazy=True)
        for file in other.iterdir():
            shutil.copy(file, path)
        arrays = expected_arrays("0.7.0-rust/appended.expected.npz")
        assert sorted(npk) == sorted(arrays)
        for name, array in arrays.items():
            assert_same(npk.load(name), array)
        assert held.shape == (3, 3)


@pytest.fixture
def npkfs():
    """Runs npkfs."""
    program = shutil.which("npkfs", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("no npkfs next to this Python")
    return lambda *args: subprocess.run([program, *args], check=True, capture_output=True)


def test_upgraded_stores_are_like_others(numpack, tmp_path, npkfs):
    path = fixture("0.7.0-rust/segmented_mutated", tmp_path)
    arrays = expected_arrays("0.7.0-rust/segmented_mutated.expected.npz")
    with numpack.NumPack(path) as npk:
        held = {name: npk.load(name, lazy=True) for name in npk}
        times = {name: npk.get_modify_time(name) for name in npk}
        npkfs("upgrade", path)
        for name, array in arrays.items():
            assert_same(npk.load(name), array)
            assert npk.get_modify_time(name) == times[name]
            assert_same(np.array(held[name]), array)
        npk.append({"a": arrays["a"][:2]})
        npk.drop("d", [0])
        assert_same(npk.load("a"), np.concatenate([arrays["a"], arrays["a"][:2]]))
        assert_same(npk.load("d"), arrays["d"][1:])


NEWER_WRITES = {
    "recompress": lambda npk: npk.recompress("float32_2d"),
    "clone": lambda npk: npk.clone("float32_2d", "new"),
    "create": lambda npk: npk.create("new", (3,)),
    "write_rows": lambda npk: npk.write_rows("float32_2d", 0, np.zeros((1, 4), np.float32)),
    "attributes": lambda npk: npk.attrs.update(unit="m"),
    "attributes of an array": lambda npk: npk.attrs_of("float32_2d").update(unit="m"),
    "batch_mode": lambda npk: save_in_batch_mode(npk),
    "writable_batch_mode": lambda npk: load_writable(npk),
}


def save_in_batch_mode(npk):
    with npk.batch_mode():
        npk.save({"new": np.zeros(3)})


def load_writable(npk):
    with npk.writable_batch_mode() as wb:
        wb.load("float32_2d")


@pytest.mark.parametrize("write", NEWER_WRITES.values(), ids=NEWER_WRITES)
def test_writes_that_old_releases_had_not_name_the_way_out_too(numpack, tmp_path, write):
    path = fixture("0.7.0-rust/dtypes", tmp_path)
    before = contents(path)
    with numpack.NumPack(path) as npk:
        with pytest.raises(numpack.ReadOnlyError, match="which is only read; run \"npkfs upgrade .*dtypes.npk\"") as raised:
            write(npk)
        assert raised.value.filename == str(path)
    assert contents(path) == before


def test_bad_files_of_deleted_rows_keep_their_array_from_being_read(numpack, tmp_path):
    path = fixture("0.7.0-rust/dropped_rows", tmp_path)
    file = path / "deleted_one.npkb"
    good = file.read_bytes()

    def refused(name, message):
        with numpack.NumPack(path) as npk:
            with pytest.raises(numpack.CorruptStoreError, match=f'array "{name}": data file {message}'):
                npk.load(name)
            assert npk.load("untouched").shape == (3, 3)

    for data, message in (
        (b"", "deleted_one.npkb has 0 bytes, expected 24"),
        (good[:20], "deleted_one.npkb has 20 bytes, expected 24"),
        (good + b"x", "deleted_one.npkb has 25 bytes, expected 24"),
        (good[:23] + b"\x80", "deleted_one.npkb has bits behind its last row"),
    ):
        file.write_bytes(data)
        refused("one", message)
    file.unlink()
    file.symlink_to("/etc/passwd")
    refused("one", "deleted_one.npkb is not a regular file, and links are not followed")
    (path / "data_vec.npkd").rename(path / "elsewhere")
    (path / "data_vec.npkd").symlink_to("elsewhere")
    refused("vec", "data_vec.npkd is not a regular file, and links are not followed")


def test_segments_behind_a_link_are_refused(numpack, tmp_path):
    path = fixture("0.7.0-rust/segmented", tmp_path)
    (path / "data_rows6_segments").rename(path / "elsewhere")
    (path / "data_rows6_segments").symlink_to("elsewhere")
    message = "data file data_rows6_segments/seg_000000.npkd is not a regular file, and links are not followed"
    with numpack.NumPack(path) as npk, pytest.raises(numpack.CorruptStoreError, match=message):
        npk.load("rows6")
