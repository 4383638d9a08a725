"""Files with right checksums that say strange things: both backends read the same of them, or both refuse them."""

import random
import shutil
import struct
import zlib

import msgpack
import numpy as np
import pytest
from arrays import DTYPES, example
from both import BACKENDS, CLASSES, HEADER_LEN

from numpack import NpkError

FRAME_HEADER = struct.Struct("<4sIIIQ")
# What an array's data file, or the manifest, may make of a call. Anything else would be a bug, not an answer.
ANSWERS = (NpkError, OSError)
SEEDS = range(30)
PER_SEED = 50


class Map(list):
    """A map as the list of its entries, so that it can have a key twice."""


def payloads(data):
    """What the frames of a manifest hold, and the synced length of each."""
    found, offset = [], HEADER_LEN
    while offset < len(data):
        _, _, length, _, synced = FRAME_HEADER.unpack_from(data, offset)
        start = offset + FRAME_HEADER.size
        found.append((data[start : start + length], synced))
        offset = start + length + -length % 8
    return found


def manifest_of(header, frames):
    """The manifest with these payloads."""
    data = bytearray(header)
    for payload, synced in frames:
        covered = struct.pack("<IIQ", len(payload), 0, synced) + payload
        data += b"npkF" + struct.pack("<I", zlib.crc32(covered)) + covered + bytes(-len(payload) % 8)
    data[40:48] = struct.pack("<Q", len(data))
    return bytes(data)


def decode(data):
    """A payload, with the records in it decoded as well."""
    value = msgpack.unpackb(data, strict_map_key=False, object_pairs_hook=Map)
    return with_records(value)


class Record:
    """A map in a byte string."""

    def __init__(self, value):
        self.value = value


def with_records(value):
    if isinstance(value, Map):
        return Map((with_records(key), with_records(inner)) for key, inner in value)
    if isinstance(value, list):
        return [with_records(inner) for inner in value]
    if isinstance(value, bytes) and value[1:4] == b"\xa2id":
        return Record(decode(value))
    return value


def encode(value, rng):
    """MessagePack, now and then in a form that nobody writes."""
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, Record):
        return msgpack.packb(encode(value.value, rng))
    if isinstance(value, Map):
        mark = b"\xdf" + struct.pack(">I", len(value)) if len(value) > 15 or rng.random() < 0.01 else bytes([0x80 | len(value)])
        return mark + b"".join(encode(key, rng) + encode(inner, rng) for key, inner in value)
    if isinstance(value, list):
        mark = b"\xdd" + struct.pack(">I", len(value)) if len(value) > 15 or rng.random() < 0.01 else bytes([0x90 | len(value)])
        return mark + b"".join(encode(inner, rng) for inner in value)
    if type(value) is int and rng.random() < 0.02:
        return b"\xd3" + struct.pack(">q", value) if value < 2**63 else b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, float) and rng.random() < 0.5 and abs(value) < 1e30:
        return b"\xca" + struct.pack(">f", value)
    if isinstance(value, str) and rng.random() < 0.02:
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    return msgpack.packb(value)


class Raw:
    """Bytes that stand for a value."""

    def __init__(self, data):
        self.data = data


def strange(rng):
    """What a value may be replaced by."""
    nested = 7
    for _ in range(rng.choice([1, 31, 32, 33, 62, 63, 64, 65, 66, 130])):
        nested = [nested]
    return rng.choice(
        [
            None, True, False, 0, 1, 7, -1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, 1.5, float("nan"),
            "", "a", "b", "größe", "x" * 40, "|O", "<f4", "|V4", "f4", "<M8[1s]", "zstd", "lz4", "delta", "../x", "data_x\0.npkd",
            b"", b"a", b"\0" * 48, b"\xff" * 8, [], [1, 2], ["a", 3], Map(), Map([("name", "zstd")]), Map([(1, 2)]), nested,
            Map([("descr", "<f4"), ("shape", [2])]),
            [Map([("title", ""), ("name", "q"), ("descr", "<f4"), ("shape", [])])] * rng.randrange(1, 3),
            Raw(b"\xa1\xff"), Raw(b"\xd4\x05x"), Raw(b"\xd6\xff\0\0\0\0"), Raw(b"\xd4\xff\0"), Raw(b"\xc1"),
            Raw(b"\xca\x3f\xc0\0\0"), Raw(b"\xdd\xff\xff\xff\xff"), Raw(b"\xc6\x7f\xff\xff\xff"),
            Map([(1, 2), (True, 3)]), Map([(1, 2), (1.0, 3)]), Map([("a", 2), (b"a", 3)]), Map([([1], 2), (None, 3)]),
            Map([(Map(), 2)]), Map([("k", Raw(b"\xc7\x00\x05"))]),
        ]
    )  # fmt: skip


def mutate(value, rng):
    """The value with something changed somewhere in it."""
    if rng.random() < 0.1:
        return strange(rng)
    if isinstance(value, Record):
        return Record(mutate(value.value, rng)) if rng.random() < 0.9 else mutate(encode(value, rng), rng)
    if isinstance(value, Map) and value:
        at, value = rng.randrange(len(value)), Map(value)
        key, inner = value[at]
        what = rng.randrange(10)
        if what == 0:
            del value[at]
        elif what == 1:
            value.insert(rng.randrange(len(value)), value[at])
        elif what == 2:
            value.append((strange(rng), strange(rng)))
        elif what == 3:
            value[at] = (strange(rng), inner)
        elif what == 4:
            rng.shuffle(value)
        else:
            value[at] = (key, mutate(inner, rng))
        return value
    if isinstance(value, list) and value and not isinstance(value, Map):
        at, value = rng.randrange(len(value)), list(value)
        what = rng.randrange(8)
        if what == 0:
            del value[at]
        elif what == 1:
            value.append(value[at])
        elif what == 2:
            value.append(strange(rng))
        else:
            value[at] = mutate(value[at], rng)
        return value
    if isinstance(value, bytes) and value:
        return spoil(value, rng)
    if type(value) is int and rng.random() < 0.7:
        return max(-(2**63), min(2**64 - 1, rng.choice([value + 1, value - 1, value * 2, value // 2])))
    return strange(rng)


def spoil(data, rng):
    """Bytes with some of them changed, missing, or there twice."""
    data = bytearray(data)
    at = rng.randrange(len(data))
    what = rng.randrange(6)
    if what == 0:
        del data[at:]
    elif what == 1:
        data += data[at:]
    elif what == 2:
        del data[at : at + rng.randrange(1, 9)]
    elif what == 3:
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xC0, 0xFF])
    else:
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The path of a store with something of everything."""
    path = tmp_path_factory.mktemp("sample") / "data.npk"
    with CLASSES["rust"](path) as npk:
        npk.save({"plain": example("<f4", (3, 2)), "größe/0-d": example("<i8", ()), "F": np.asfortranarray(example("<u2", (2, 3)))})
        npk.save({"blocks": example("<u4", 3000)}, compress={"block": 4096, "filter": "delta"})
        npk.save({name: example(DTYPES[name], 2) for name in ("nested", "title", "nested subarray")})
        npk.append({"blocks": example("<u4", 5), "plain": example("<f4", (2, 2))})
        npk.drop("plain", [1, 3])
        npk.save({"rows": np.arange(70_000, dtype="u1")})
        npk.drop("rows", np.arange(0, 70_000, 3))
        npk.attrs.update({"unit": "m/s", "n": 3, "x": 1.5, "list": [None, True, {"k": b"\0"}], "map": {"a": {}, "b": [2.5]}})
        npk.attrs_of("plain").update({"a": -5, "b": 2.25})
        npk.recompress("rows", True)
        npk.drop("rows", [0])
        npk.save({"gone": np.zeros(2)})
        npk.drop("gone")
    return path


def snapshot_of(path):
    """The payload of a snapshot of what is in a store."""
    from numpack._pure.store.store import Store

    return Store.open(str(path), writable=False).manifest.table.encode()


def look(backend, path):
    """What a store says: of each call its result, or the class of its error."""

    def of(call, *arguments):
        try:
            return call(*arguments)
        except ANSWERS as error:
            assert str(path) in str(error) or getattr(error, "filename", None), error
            return type(error).__name__

    npk = CLASSES[backend](path)
    if (failure := of(npk.open)) is not None:
        return failure
    with npk:
        names = of(npk.get_member_list)
        if isinstance(names, str):
            return names
        return repr((names, of(lambda: dict(npk.attrs)))), [
            (name, of(array_of, npk, name), of(npk.get_shape, name), repr(of(lambda: dict(npk.attrs_of(name)))))  # noqa: B023
            for name in names
        ]


def array_of(npk, name):
    array = npk.load(name)
    return str(array.dtype), array.shape, array.tobytes()


def compare(path, story):
    """Assert that both backends say the same of a store, and whether they read it."""
    rust, python = (look(backend, path) for backend in BACKENDS)
    assert rust == python, story
    return not isinstance(rust, str)


@pytest.mark.parametrize("seed", SEEDS)
def test_strange_payloads_are_the_same_to_both(sample, tmp_path, seed):
    rng = random.Random(seed)
    data = (sample / "metadata.npkm").read_bytes()
    frames = payloads(data)
    if seed % 2:
        frames = [(snapshot_of(sample), HEADER_LEN)]
    path = tmp_path / "data.npk"
    shutil.copytree(sample, path)
    n_read = 0
    for n in range(PER_SEED):
        changed = list(frames)
        at = rng.randrange(len(frames))
        payload, synced = frames[at]
        if rng.random() < 0.8:
            value = decode(payload)
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                value = mutate(value, rng)
            payload = encode(value, rng)
        else:
            payload = spoil(payload, rng) if rng.random() < 0.8 else payload + rng.choice([b"\0", b"\xc0", payload])
        changed[at] = (payload, synced)
        (path / "metadata.npkm").write_bytes(manifest_of(data[:HEADER_LEN], changed))
        n_read += compare(path, f"seed {seed}, payload {n}, frame {at}: {payload.hex()}")
    # The test is of no use if nothing is ever read, or nothing refused.
    assert 0 < n_read < PER_SEED


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_the_same_to_both(sample, tmp_path, seed):
    rng = random.Random(seed)
    path = tmp_path / "data.npk"
    shutil.copytree(sample, path)
    files = sorted(file.name for file in path.iterdir() if file.suffix in (".npkm", ".npkd"))
    for n in range(PER_SEED):
        name = rng.choice([*files, "metadata.npkm"])
        good = (path / name).read_bytes()
        bad = spoil(good, rng)
        (path / name).write_bytes(bad)
        compare(path, f"seed {seed}, file {n}: {name}")
        (path / name).write_bytes(good)


@pytest.mark.parametrize("seed", range(3))
def test_strange_headers_are_the_same_to_both(tmp_path, seed):
    """A header that describes the array is copied with it as it is, and another one is not."""
    rng = random.Random(seed)
    path = tmp_path / "data.npk"
    array = example([(("T", "it's"), "<f4", (2,)), ("größe", ("<M8[25s]", (1,)), (3,)), ("", "V2")], 3)
    with CLASSES["rust"](path) as npk:
        npk.save({"a": array})
        header = npk.get_metadata()["arrays"]["a"]["data_file"]
    good = (path / header).read_bytes()
    text = good[10:4095].rstrip().decode("latin-1")
    n_copied = 0
    for n in range(PER_SEED):
        parts = [
            text.replace(" ", rng.choice([" ", "", "  ", "\t"])),
            text.replace("(3,)", rng.choice(["(3)", "(3L,)", "(03,)", "3", "(0x3,)", "(3,0)", "(3,,)", "(-3,)"])),
            text.replace("'", rng.choice(["u'", '"', "b'"])),
            text.replace("False", rng.choice(["True", "0", "None", "false"])),
            text.replace("'T'", rng.choice(["'\\x54'", "'\\u0054'", "'\\x5'", "'\\t'", "''", "1", "'T' 'T'"])),
            text.replace("<f4", rng.choice(["=f4", "f4", "f04", ">f4", "<f5"])),
            text.replace("[25s]", rng.choice(["[025s]", "[s]", "[25S]", "[25s", ""])),
            text[:-1] + rng.choice(["", ",}", "'x': 1}", "}}", "} #", "'shape': (3,)}", "'descr': '<f4'}"]),
            spoil(text.encode("latin-1"), rng).decode("latin-1"),
        ]
        bad = rng.choice(parts).encode("latin-1")[:4000].ljust(4085) + b"\n"
        (path / header).write_bytes(good[:10] + bad + good[4096:])
        copies = {}
        for backend in BACKENDS:
            with CLASSES[backend](path) as npk:
                npk.clone("a", backend)
                copies[backend] = (path / npk.get_metadata()["arrays"][backend]["data_file"]).read_bytes()
                npk.drop(backend)
        assert copies["rust"] == copies["python"], f"seed {seed}, header {n}: {bad!r}"
        n_copied += bad in copies["rust"] and bad != good[10:4096]
    assert 0 < n_copied < PER_SEED
