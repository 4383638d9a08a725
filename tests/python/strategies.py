"""Random arrays, layouts and indexes for hypothesis."""

import io

import numpy as np
from hypothesis import strategies as st

SEEDS = st.integers(0, 1000)
SHAPES = st.lists(st.integers(0, 6), min_size=0, max_size=3).map(tuple)


@st.composite
def layouts(draw, array):
    """The same array in some memory layout."""
    kind = draw(st.sampled_from(["C", "F", "reversed", "strided"]))
    if kind == "reversed" and array.ndim:
        return array[::-1].copy()[::-1]
    if kind == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return np.array(array, order="F" if kind == "F" else "C")


@st.composite
def indexes(draw, n_rows):
    """Rows of an array in any form, all of them there."""
    row = st.integers(-n_rows, n_rows - 1) if n_rows else st.nothing()
    bound = st.none() | st.integers(-n_rows - 2, n_rows + 2)
    slices = st.builds(slice, bound, bound, st.none() | st.sampled_from([1, 2, -1, -3]))
    lists = st.lists(row, max_size=8 if n_rows else 0)
    masks = st.lists(st.booleans(), min_size=n_rows, max_size=n_rows).map(lambda mask: np.array(mask, bool))
    if n_rows > 100:
        masks = SEEDS.map(lambda seed: np.random.default_rng(seed).random(n_rows) < 0.3)
    return draw(slices | lists | lists.map(tuple) | lists.map(lambda rows: np.array(rows, int)) | masks | row)


def as_rows(index, n_rows):
    """The numbers of the rows that an index selects."""
    return np.atleast_1d(np.arange(n_rows)[list(index) if isinstance(index, tuple) else index]).astype(int)


def npy(array):
    """The array as np.save and np.load hand it on."""
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return np.load(file)
