"""The choice of a filter: by trying them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..format.codec import BLOCK_ALIGN, FILTERS, STEP_OF_FILTER, Codec, filter_for_itemsize
from .block import Encoder

MIN_GAIN_PART = 100
"""A filter that takes more time must save this part of what the one before it leaves."""

MAX_TRIAL_LEVEL = 3
"""Filters are compared at this level at most: higher ones take long and rank them alike."""

_BEYOND = (1 << 64) - 1


def choose_filter(dtype: np.dtype[Any], blocks: Sequence[Any], level: int) -> str:
    """The filter that makes `blocks` smallest: samples of an array of `dtype` that is to be encoded with `level`.

    Of two that are within a hundredth of each other, the faster one. Without samples, what is best for most arrays of
    numbers: ``shuffle``. Raises `CodecError` if zstd has no memory.
    """
    is_number, has_differences = _what_it_is(dtype)
    itemsize = dtype.itemsize
    if not any(len(block) for block in blocks):
        return filter_for_itemsize("shuffle", itemsize) if is_number else "none"
    best, best_len = "none", _BEYOND
    for filter in FILTERS:
        is_difference = filter in STEP_OF_FILTER
        if filter_for_itemsize(filter, itemsize) != filter or (is_difference and not has_differences):
            continue
        encoder = Encoder(Codec(min(level, MAX_TRIAL_LEVEL), BLOCK_ALIGN, filter), itemsize)
        found = sum(len(encoder.encode(block)[1]) for block in blocks)
        # All differences take the same time.
        min_gain = 0 if best in STEP_OF_FILTER else best_len // MIN_GAIN_PART
        if found < best_len - min_gain:
            best, best_len = filter, found
    return best


def _what_it_is(dtype: np.dtype[Any]) -> tuple[bool, bool]:
    """Whether items are numbers, and whether their bits order them as integers do: integers or floating-point numbers
    in little-endian byte order or of a single byte."""
    if dtype.names is not None or dtype.subdtype is not None:
        return False, False
    is_number = dtype.kind in "biufcMm"
    is_little = dtype.str[0] != ">" or dtype.itemsize == 1
    return is_number, is_number and dtype.kind != "c" and is_little
