"""Where the elements of an array lie: shape, order and item size turned into rows and byte ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpack._pure.format.error import FormatError

MAX_NDIM = 64
MAX_NBYTES = 2**63 - 1


@dataclass(frozen=True)
class Layout:
    """Shape and order of stored elements. Made by `layout_of`, which checks that NumPy could have them."""

    shape: tuple[int, ...]
    fortran_order: bool
    itemsize: int

    @property
    def n_rows(self) -> int:
        """Length of axis 0; 1 for a 0-d array."""
        return self.shape[0] if self.shape else 1

    @property
    def row_len(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.itemsize

    def with_rows(self, n_rows: int, *, fortran_order: bool = False) -> Layout:
        """The same with another number of rows."""
        return layout_of((n_rows, *self.shape[1:]), fortran_order, self.itemsize)


def layout_of(shape: tuple[int, ...], fortran_order: bool, itemsize: int) -> Layout:
    """Check that NumPy could have such an array.

    Raises
    ------
    FormatError
    """
    shown = list(shape)
    if len(shape) > MAX_NDIM:
        raise FormatError(f"shape {shown}: has more than 64 dimensions")
    # As in NumPy, the dimensions other than 0 must fit even where the array is empty.
    if math.prod(dim for dim in shape if dim) * max(itemsize, 1) > MAX_NBYTES:
        raise FormatError(f"shape {shown}: is larger than 2**63 bytes")
    # One row or one column is both orders at once; C is its name.
    fortran_order = fortran_order and sum(dim != 1 for dim in shape) > 1
    return Layout(tuple(shape), fortran_order, itemsize)
