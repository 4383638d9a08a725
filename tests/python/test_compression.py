"""Compressed arrays: how they are asked for and described, and what is read and kept of arrays of many blocks."""

import numpy as np
import pytest
from arrays import DTYPES, assert_same, example

SMALL = {"block": 4096}
# 4800 bytes a row: more than a block of 4 KiB.
A = np.arange(60 * 40 * 30, dtype="i4").reshape(60, 40, 30) // 7


def codec(npk, name="a"):
    return npk.get_metadata()["arrays"][name]["codec"]


def level_and_block(npk, name="a"):
    """The codec without the filter that was chosen by looking at the array."""
    found = codec(npk, name)
    assert found["filter"] in ("none", "shuffle", "delta", "delta2", "delta3", "delta4")
    return found["level"], found["block"]


NOT_COMPRESSED = {"None": None, "False": False, "NumPy's False": np.False_}
COMPRESSED = {
    "True": (True, (1, 65536)),
    "NumPy's True": (np.True_, (1, 65536)),
    "level": (7, (7, 65536)),
    "level 0": (0, (0, 65536)),
    "np.int64": (np.int64(-3), (-3, 65536)),
    "empty dict": ({}, (1, 65536)),
    "dict": ({"level": 2, "block": 8192, "filter": "shuffle"}, (2, 8192)),
    "filter": ({"filter": "none"}, (1, 65536)),
    "auto": ({"filter": "auto", "level": 2}, (2, 65536)),
    "largest block": ({"block": 1 << 24, "filter": "delta3"}, (1, 1 << 24)),
}


@pytest.mark.parametrize(("value", "expected"), COMPRESSED.values(), ids=COMPRESSED)
def test_compress_says_how(npk, value, expected):
    npk.save({"a": A, "b": A[:30], "recompressed": A}, compress=value)
    assert level_and_block(npk) == level_and_block(npk, "b") == expected
    if isinstance(value, dict) and value.get("filter", "auto") != "auto":
        assert codec(npk)["filter"] == value["filter"]
    assert_same(npk.load("a"), A)
    # What describes a codec asks for it.
    npk.save({"again": A}, codec(npk))
    assert codec(npk, "again") == codec(npk)
    npk.save({"recompressed": A})
    assert npk.recompress("recompressed", value) is True
    assert codec(npk, "recompressed") == codec(npk)
    assert_same(npk.load("recompressed"), A)


@pytest.mark.parametrize("value", NOT_COMPRESSED.values(), ids=NOT_COMPRESSED)
def test_compress_may_say_not_at_all(npk, value):
    npk.save({"a": A}, compress=value)
    assert codec(npk) is None
    npk.save({"a": A}, compress=3)
    assert npk.recompress("a", value) is True
    assert codec(npk) is None
    assert_same(npk.load("a"), A)


REFUSED = {
    "level": (23, ValueError, r"{} is 23, expected -7 \(fastest\) to 22"),
    "low level": (-8, ValueError, r"{} is -8, expected -7"),
    "huge level": (2**40, ValueError, "{} is 1099511627776, expected -7"),
    "level in a dict": ({"level": 99}, ValueError, r"{}\['level'\] is 99, expected -7"),
    "type of level": ({"level": "3"}, TypeError, r"{}\['level'\] is of type str, expected an int"),
    "bool as level": ({"level": True}, TypeError, r"{}\['level'\] is of type bool"),
    "block": ({"block": 1000}, ValueError, r"{}\['block'\] is 1000, expected a multiple of 4096"),
    "negative block": ({"block": -4096}, ValueError, r"{}\['block'\] is -4096, expected a multiple of 4096"),
    "huge block": ({"block": 2**32 + 4096}, ValueError, r"{}\['block'\] is 4294971392, expected"),
    "type of block": ({"block": 4096.0}, TypeError, r"{}\['block'\] is of type float, expected an int"),
    "filter": ({"filter": "bitshuffle"}, ValueError, r"{}\['filter'\] is 'bitshuffle', expected 'auto', 'none'"),
    "no filter": ({"filter": None}, TypeError, r"{}\['filter'\] is of type NoneType, expected 'auto', 'none'"),
    "key": ({"levl": 3}, ValueError, "{} has the unknown key 'levl', expected 'level', 'block' or 'filter'"),
    "key of another type": ({1: 3}, ValueError, "{} has the unknown key 1, expected"),
    "str": ("zstd", TypeError, "{} is of type str, expected None, a bool, a level"),
    "float": (1.0, TypeError, "{} is of type float, expected None"),
    "list": ([1], TypeError, "{} is of type list, expected None"),
}


@pytest.mark.parametrize(("value", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_say_how_is_refused(npk, value, error, message):
    npk.save({"a": A})
    with pytest.raises(error, match="^" + message.format("compress")):
        npk.save({"b": A}, compress=value)
    with pytest.raises(error, match="^" + message.format("codec")):
        npk.recompress("a", value)
    assert npk.get_member_list() == ["a"] and codec(npk) is None


def test_save_compresses_what_it_is_told_to_and_nothing_else(npk):
    npk.save({"a": A}, compress=True)
    npk.append({"a": A})
    npk.replace({"a": A[:3]}, [5, 100, 7])
    npk.drop("a", [3, 4])
    npk.update("a")
    assert codec(npk)["level"] == 1
    npk.save({"a": A})
    assert codec(npk) is None


def test_metadata_tells_what_is_stored(npk, path):
    noise = example("u8", 40_000)
    npk.save({"plain": A})
    npk.save({"a": A, "noise": noise, "empty": A[:0]}, compress=True)
    stored = {name: found["stored_bytes"] for name, found in npk.get_metadata()["arrays"].items()}
    assert stored["plain"] == A.nbytes and stored["empty"] == 0
    assert 0 < stored["a"] < A.nbytes / 10
    assert noise.nbytes <= stored["noise"] < noise.nbytes * 1.01
    found = npk.get_metadata()["arrays"]["a"]
    assert found["size_bytes"] == A.nbytes and found["shape"] == [60, 40, 30] and found["dtype"] == "Int32"
    assert stored["a"] < (path / found["data_file"]).stat().st_size < stored["a"] + (16 << 10)


def test_recompress_keeps_the_array(npk, numpack):
    npk.save({"a": A})
    npk.drop("a", [0, 7])
    expected = np.delete(A, [0, 7], axis=0)
    mapped = npk.load("a", lazy=True)
    assert npk.recompress("a") is True
    decoded = npk.load("a", lazy=True)
    assert level_and_block(npk) == (1, 65536)
    assert_same(npk.load("a"), expected)
    # What would come out is there already, also where the filter is to be chosen.
    assert npk.recompress("a", codec(npk)) is False
    assert npk.recompress("a") is npk.recompress("a", {"block": 65536}) is False
    assert npk.recompress("a", 2) is True
    assert npk.recompress("a", None) is True
    assert npk.recompress("a", False) is False
    assert codec(npk) is None
    for lazy in (npk.load("a", lazy=True), mapped, decoded):
        assert_same(np.asarray(lazy), expected)
        assert_same(lazy[5], expected[5])
    with pytest.raises(numpack.ArrayNotFoundError):
        npk.recompress("b")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_in_many_blocks(npk, dtype):
    array = example(dtype, 9_000)
    for filter in ("auto", "none", "shuffle", "delta", "delta2", "delta3", "delta4"):
        npk.save({"a": array}, SMALL | {"filter": filter})
        assert_same(npk.load("a"), array)
        assert_same(npk.getitem("a", [8_999, 3, 4_567]), array[[8_999, 3, 4_567]])
        npk.replace({"a": array[:2000]}, slice(7000, 9000))
        npk.append({"a": array[:5]})
        assert_same(npk.load("a"), np.concatenate([array[:7000], array[:2000], array[:5]]).astype(array.dtype))


@pytest.fixture(params=["C", "Fortran", "with dropped rows"])
def lazy(request, npk):
    """A LazyArray of A, in small blocks."""
    if request.param == "with dropped rows":
        npk.save({"a": np.repeat(A, 2, axis=0)}, SMALL)
        npk.drop("a", slice(1, None, 2))
    else:
        npk.save({"a": np.asfortranarray(A) if request.param == "Fortran" else A}, SMALL)
    return npk.load("a", lazy=True)


def random_item(random, dim):
    """An item of an index that selects along an axis of this length."""
    bounds = sorted(random.integers(-dim - 3, dim + 3, 2).tolist())
    return [
        int(random.integers(-dim, dim)),
        np.int32(random.integers(-dim, dim)),
        slice(*bounds),
        slice(*bounds[::-1], -1),
        slice(bounds[0], None, 2),
        slice(None),
        random.integers(-dim, dim, 3),
        random.integers(0, 2, dim).astype(bool),
        [int(random.integers(dim))],
    ][random.integers(9)]


def test_indexing_gives_what_numpy_gives(lazy):
    random = np.random.default_rng(5)
    for _ in range(400):
        index = [random_item(random, dim) for dim in A.shape[: random.integers(1, 4)]]
        for extra in ([None, Ellipsis] * 2)[: random.integers(0, 3)]:
            index.insert(random.integers(len(index) + 1), extra)
        index = tuple(index)
        try:
            expected = A[index]
        except IndexError as error:
            with pytest.raises(IndexError) as raised:
                lazy[index]
            assert str(raised.value) == str(error), index
            continue
        assert_same(lazy[index], expected if np.isscalar(expected) else expected.copy())


def test_wrong_indexes_name_the_axis_that_numpy_names(lazy):
    for index in ((60,), (0, 40), (0, -41), (0, 1, 30), (1, slice(2), 30), (0, 1, 2, 3), (0, slice(None), 0, ...), (1, ..., ...)):
        try:
            A[index]
        except IndexError as error:
            with pytest.raises(IndexError) as raised:
                lazy[index]
            assert str(raised.value) == str(error)
        else:
            assert_same(lazy[index], A[index].copy())


def test_parts_of_many_rows_are_read_in_pieces(npk):
    # 24 MiB: more than is read at once.
    big = (np.arange(24 << 20, dtype="u4") % 251).astype("u1").reshape(1536, 128, 128)
    big[:, 5, 7] = np.arange(1536) % 256
    npk.save({"a": big}, {"level": -5})
    lazy = npk.load("a", lazy=True)
    mask = np.arange(1536) % 9 != 0
    rows = np.random.default_rng(1).permutation(1536)
    columns = [
        (slice(None), 5, 7),
        (..., 7),
        (..., slice(3, 5), 7),
        (slice(None, None, -1), slice(5, 6)),
        (slice(2, -2), ..., None, 7),
        (slice(None), [5, 9, 5]),
        (slice(None), slice(None), np.array([[7, 0], [1, 2]])),
        (mask, 5, 7),
        (mask, slice(4, 6), 7),
        (rows, 5),
        (rows.tolist(), ..., 7),
        (rows, None, 5, None, 7),
        (rows[:1500], slice(1), [7] * 1500),
        (None, slice(None), 5, 7),
        (slice(None), 5, [7, 8]),
        (slice(None), [5, 6], [7, 8]),
    ]
    for index in columns:
        assert_same(lazy[index], big[index].copy())
    with pytest.raises(IndexError, match="index 128 is out of bounds for axis 2 with size 128"):
        lazy[:, 5, 128]
    table = np.zeros(400_000, [("x", "f8"), ("y", "u1", 100)])
    table["x"] = np.arange(400_000)
    npk.save({"table": table}, True)
    assert_same(npk.load("table", lazy=True)["x"], table["x"].copy())


def damage(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def damaged(numpack, path):
    """A store with an array of 100 rows in 100 blocks of 4 KiB, of which block 40 is damaged."""
    rows = example("u1", (100, 4096))
    with numpack.NumPack(path) as npk:
        # Of bytes that do not compress, so that each block takes 4096 bytes, behind two headers.
        npk.save({"a": rows}, SMALL)
        npk.save({"b": rows})
        file = path / npk.get_metadata()["arrays"]["a"]["data_file"]
    header_len = file.stat().st_size - 100 * 4096 - 100 * 16
    damage(file, header_len + 40 * 4096 + 17)
    with numpack.NumPack(path) as npk:
        yield npk, rows


def test_only_the_blocks_that_are_asked_for_are_read(damaged):
    npk, rows = damaged
    lazy = npk.load("a", lazy=True)
    healthy = np.arange(100) != 40
    for index in (39, slice(41, None), healthy, [0, 99], (3, 5), (slice(None, 40), 2), (slice(None, None, 3), 1), -1):
        assert_same(lazy[index], rows[index].copy())
    assert_same(npk.getitem("a", healthy), rows[healthy])
    stream = npk.stream_load("a", 10)
    for start in range(0, 40, 10):
        assert_same(next(stream), rows[start : start + 10])
    npk.replace({"a": rows[:2]}, [7, 8])
    npk.append({"a": rows[:1]})
    assert_same(lazy[7:9], rows[:2])


def test_a_damaged_block_is_an_error_that_names_it(damaged, numpack):
    npk, rows = damaged
    lazy = npk.load("a", lazy=True)
    iterator = iter(lazy)
    for row in range(40):
        assert_same(next(iterator), rows[row])
    calls = [
        lambda: npk.load("a"),
        lambda: npk.getitem("a", [3, 40]),
        lambda: lazy[40],
        lambda: lazy[40, 7],
        lambda: lazy[30:50],
        lambda: lazy[:, 0],
        lambda: np.asarray(lazy),
        lambda: next(iterator),
        lambda: list(npk.stream_load("a", 7)),
        lambda: npk.recompress("a", None),
    ]
    for call in calls:
        with pytest.raises(numpack.CorruptStoreError, match=r'array "a": block 40 at byte \d+ of data_a.npkd has crc32'):
            call()
    assert_same(npk.load("b"), rows)
    # Writing the whole block mends it.
    npk.replace({"a": rows[40:41]}, 40)
    assert_same(npk.load("a"), rows)


def test_data_file_with_any_byte_flipped_gives_an_error_or_the_array(numpack, path):
    array = np.arange(5000, dtype="u4") // 3
    with numpack.NumPack(path) as npk:
        npk.save({"a": array[:4000]}, SMALL)
        npk.append({"a": array[4000:]})
        file = path / npk.get_metadata()["arrays"]["a"]["data_file"]
    whole = file.read_bytes()
    n_errors = 0
    for offset in [*range(4096, len(whole), 41), *range(0, 4096, 67)]:
        damage(file, offset)
        try:
            with numpack.NumPack(path) as npk:
                assert_same(npk.load("a"), array)
                assert_same(npk.load("a", lazy=True)[::7], array[::7].copy())
        except numpack.CorruptStoreError:
            n_errors += 1
        file.write_bytes(whole)
    assert n_errors > 20


def test_rows_of_one_block_are_decoded_once(npk, path):
    """A block that is read row by row is kept: what becomes of its bytes meanwhile does not show."""
    rows = example("u1", (64, 1024))
    npk.save({"a": rows}, {"block": 65536})
    file = path / npk.get_metadata()["arrays"]["a"]["data_file"]
    lazy = npk.load("a", lazy=True)
    iterator = iter(lazy)
    assert_same(next(iterator), rows[0])
    damage(file, file.stat().st_size - 20_000)
    for expected in rows[1:]:
        assert_same(next(iterator), expected)
    assert_same(lazy[17], rows[17])
    assert_same(npk.getitem("a", 5), rows[5:6])
