"""Fixtures for every test: the package, once per backend, and an open store in a temporary directory."""

import importlib

import numpy as np
import pytest

BACKENDS = ["rust"]

# Every kind of dtype that has a fixed size.
DTYPES = [
    "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16",
    ">i2", ">i8", ">u4", ">f2", ">f8", ">c16", "g",
    "M8[ns]", "M8[D]", "m8[25s]", ">M8[us]", "M8", "S7", "U5", ">U3", "V3",
]  # fmt: skip
STRUCTURED = {
    "plain": [("a", "<f4"), ("b", "<i8")],
    "subarray": [("a", "<f4"), ("b", "<i8", (2, 3))],
    "nested": [("x", [("y", ">f4", (2,)), ("z", "S3")], (2,)), ("w", "U2")],
    "titles": [(("A title", "a"), "<f8"), ("b", "|u1")],
    "padded": {"names": ["a", "b"], "formats": ["<i1", "<f8"], "offsets": [0, 8], "itemsize": 24},
}


@pytest.fixture(params=BACKENDS)
def numpack(request):
    """The package numpack with one of its backends."""
    package = importlib.import_module("numpack")
    assert package.get_backend_info()["backend_type"] == request.param
    return package


@pytest.fixture
def path(tmp_path):
    """Where a store can be made."""
    return tmp_path / "data.npk"


@pytest.fixture
def npk(numpack, path):
    """An open, empty store."""
    with numpack.NumPack(path) as npk:
        yield npk


@pytest.fixture
def reopen(numpack):
    """Function that opens a store afresh, as another process would see it, and returns all its arrays."""

    def load_all(path):
        with numpack.NumPack(path) as npk:
            return {name: npk.load(name) for name in npk}

    return load_all


def example(dtype, shape, seed=0):
    """An array of any dtype with arbitrary, reproducible items."""
    dtype = np.dtype(dtype)
    random = np.random.default_rng([seed, *shape])
    n_items = int(np.prod(shape))
    if dtype.kind == "U":
        text = random.choice(list("aöz€ 𝄞"), (n_items, dtype.itemsize // 4))
        return np.array(["".join(chars) for chars in text], dtype).reshape(shape)
    if dtype.names:
        array = np.zeros(shape, dtype)
        for number, name in enumerate(dtype.names):
            field = dtype.fields[name][0]
            array[name] = example(field.base, shape + field.shape, seed + number + 1)
        return array
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "fc":
        return (random.standard_normal(shape) * 100).astype(dtype)
    if dtype.kind in "SV":
        return np.frombuffer(random.bytes(n_items * dtype.itemsize).replace(b"\0", b"x"), dtype).reshape(shape).copy()
    return np.frombuffer(random.bytes(n_items * dtype.itemsize), dtype).reshape(shape).copy()


def assert_same(found, expected):
    """Same type, dtype, shape and items, NaN and NaT included."""
    assert type(found) is type(expected)
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()
