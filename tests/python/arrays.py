"""Example arrays of every dtype, and their comparison."""

import numpy as np

# Every kind of dtype that has a fixed size, and either byte order.
SIMPLE = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "g"),
    *(">i2", ">i8", ">u4", ">f2", ">f8", ">c16"),
    *("M8[ns]", "M8[D]", "m8[25s]", ">M8[us]", "M8", "S7", "U5", ">U3", "V3"),
]
STRUCTURED = {
    "plain": [("a", "<f4"), ("b", "<i8")],
    "subarray": [("a", "<f4"), ("b", "<i8", (2, 3))],
    "nested": [("x", [("y", ">f4", (2,)), ("z", "S3")], (2,)), ("w", "U2")],
    "nested subarray": [("a", "<i4"), ("c", ("<f8", (5,)), (2,)), ("d", ([("x", "<u2", (3,)), ("y", "S1")], (2, 2)), (2,))],
    "empty": [("a", "<i4", (0,)), ("b", "S0"), ("c", "U0"), ("d", "<f8")],
    "no fields": {"names": [], "formats": [], "offsets": [], "itemsize": 8},
    "title": [(("A title", "a"), "<f8"), ("b", "|u1")],
    "unicode": [("größe", "<f8"), ("it's", "|u1")],
    "padding": {"names": ["a", "b"], "formats": ["<i1", "<f8"], "offsets": [0, 8], "itemsize": 24},
}
DTYPES = {name: np.dtype(name) for name in SIMPLE} | {name: np.dtype(fields) for name, fields in STRUCTURED.items()}


def example(dtype, shape, seed=0):
    """An array of any dtype with arbitrary, reproducible items."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    random = np.random.default_rng([seed, *shape])
    n_items = int(np.prod(shape))
    if dtype.subdtype is not None:
        return example(dtype.base, shape + dtype.shape, seed)
    if not dtype.itemsize:
        return np.ndarray(shape, dtype)
    if dtype.names is not None:
        array = np.zeros(shape, dtype)
        for number, name in enumerate(dtype.names):
            field = dtype.fields[name][0]
            array[name] = example(field.base, shape + field.shape, seed + number + 1)
        return array
    if dtype.kind == "U":
        chars = random.choice(list("aöz€ \U0001d11e"), (n_items, dtype.itemsize // 4))
        return np.array(["".join(word) for word in chars], dtype).reshape(shape)
    if dtype.kind == "b":
        return np.asarray(random.integers(0, 2, shape)).astype(dtype)
    if dtype.kind in "fc":
        return np.asarray(random.standard_normal(shape) * 100).astype(dtype)
    return np.frombuffer(random.bytes(n_items * dtype.itemsize), dtype).reshape(shape).copy()


def assert_same(found, expected):
    """Assert that two arrays or scalars have the same type, dtype, shape and items, NaN and NaT included."""
    assert type(found) is type(expected)
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype.names is not None:
        # Bytes between the fields may be anything.
        for name in found.dtype.names:
            assert_same(found[name], expected[name])
    elif found.dtype.kind in "fc" and found.real.dtype.itemsize > 8:
        # An extended double has fewer bytes than the room that it takes. NumPy does not copy those behind it every time.
        for parts in ((found.real, expected.real), (found.imag, expected.imag)):
            assert np.array_equal(*parts, equal_nan=True)
            assert np.array_equal(*map(np.signbit, parts))
    else:
        assert found.tobytes() == expected.tobytes()
