//! Where the elements of an array lie: shape, order and item size turned into rows and byte ranges.

use super::{Dtype, FormatError};

/// Most dimensions that a NumPy array can have.
pub const MAX_NDIM: usize = 64;

/// The largest size of an array in bytes: NumPy's `intp`.
const MAX_NBYTES: u64 = i64::MAX as u64;

/// The layout of one array's elements in memory and on disk, checked once: no product of it overflows.
///
/// A row is an index along axis 0. A 0-d array has one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    shape: Vec<u64>,
    fortran_order: bool,
    itemsize: u64,
    row_len: u64,
    nbytes: u64,
}

impl Layout {
    /// Checks that NumPy could have such an array.
    ///
    /// # Errors
    /// `Shape` with more than [`MAX_NDIM`] dimensions, or more bytes than an `intp` counts.
    pub fn new(dtype: &Dtype, shape: &[u64], fortran_order: bool) -> Result<Self, FormatError> {
        let refused = |what| FormatError::Shape { shape: shape.to_vec(), what };
        if shape.len() > MAX_NDIM {
            return Err(refused("has more than 64 dimensions"));
        }
        // As in NumPy, the dimensions other than 0 must fit even where the array is empty.
        let extent = shape
            .iter()
            .filter(|dim| **dim != 0)
            .try_fold(dtype.itemsize().max(1), |len, dim| len.checked_mul(*dim))
            .filter(|len| *len <= MAX_NBYTES);
        if extent.is_none() {
            return Err(refused("is larger than 2**63 bytes"));
        }
        // Each product below divides `extent` or is 0.
        let tail = shape.get(1..).unwrap_or(&[]);
        let row_len = tail.iter().fold(dtype.itemsize(), |len, dim| len.saturating_mul(*dim));
        let nbytes = row_len.saturating_mul(shape.first().copied().unwrap_or(1));
        Ok(Self {
            shape: shape.to_vec(),
            // One row or one column is both orders at once; C is its name.
            fortran_order: fortran_order && shape.iter().filter(|dim| **dim != 1).count() > 1,
            itemsize: dtype.itemsize(),
            row_len,
            nbytes,
        })
    }

    /// Sets the length of axis 0, which there must be, of a layout in C-order.
    ///
    /// # Errors
    /// As [`Layout::new`]; nothing is changed then.
    pub(super) fn set_n_rows(&mut self, dtype: &Dtype, n_rows: u64) -> Result<(), FormatError> {
        let nbytes = self.row_len.checked_mul(n_rows).filter(|len| *len <= MAX_NBYTES);
        match (nbytes, self.shape.first_mut()) {
            // Where a row has bytes, these are all that `new` counts.
            (Some(nbytes), Some(rows)) if self.row_len > 0 => {
                *rows = n_rows;
                self.nbytes = nbytes;
            }
            _ => {
                let mut shape = self.shape.clone();
                shape.iter_mut().take(1).for_each(|rows| *rows = n_rows);
                *self = Self::new(dtype, &shape, false)?;
            }
        }
        Ok(())
    }

    /// The shape.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Whether the first axis varies fastest, so that a row is not contiguous.
    pub fn fortran_order(&self) -> bool {
        self.fortran_order
    }

    /// Bytes of one element.
    pub fn itemsize(&self) -> u64 {
        self.itemsize
    }

    /// Length of axis 0; 1 for a 0-d array.
    pub fn n_rows(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Bytes of one row.
    pub fn row_len(&self) -> u64 {
        self.row_len
    }

    /// Bytes of all elements.
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// The offset, from the first element, of each element of row `row` in C-order. For Fortran order:
    /// consecutive elements of a row are not neighbours.
    pub fn fortran_row_offsets(&self, row: u64) -> impl Iterator<Item = u64> + use<> {
        let dims: Vec<u64> = self.shape.get(1..).unwrap_or(&[]).to_vec();
        let n_items = dims.iter().fold(1_u64, |n, dim| n.saturating_mul(*dim));
        // Strides of the axes after the first, in bytes: each the product of all axes before it.
        let mut strides = Vec::with_capacity(dims.len());
        let mut stride = self.itemsize.saturating_mul(self.n_rows());
        for dim in &dims {
            strides.push(stride);
            stride = stride.saturating_mul(*dim);
        }
        let start = row.saturating_mul(self.itemsize);
        (0..n_items).map(move |mut item| {
            let mut offset = start;
            for (dim, stride) in dims.iter().zip(&strides).rev() {
                let index = item.checked_rem(*dim).unwrap_or(0);
                item = item.checked_div(*dim).unwrap_or(0);
                offset = offset.saturating_add(index.saturating_mul(*stride));
            }
            offset
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shape: &[u64], fortran_order: bool) -> Result<Layout, FormatError> {
        Layout::new(&Dtype::parse_python("'<f4'").unwrap(), shape, fortran_order)
    }

    #[test]
    fn other_number_of_rows_is_a_layout_made_with_it() {
        let dtype = Dtype::parse_python("'<f4'").unwrap();
        for shape in [&[3, 2][..], &[0, 2], &[3], &[2, 0, 5], &[0, 0], &[1, 1 << 60]] {
            for n_rows in [0, 1, 7, 1 << 40, 1 << 61, u64::MAX] {
                let mut changed = layout(shape, false).unwrap();
                let before = changed.clone();
                let result = changed.set_n_rows(&dtype, n_rows);
                let shape = [&[n_rows], &shape[1..]].concat();
                match layout(&shape, false) {
                    Ok(expected) => assert_eq!((result.is_ok(), changed), (true, expected), "{shape:?}"),
                    Err(_) => assert_eq!((result.is_err(), changed), (true, before), "{shape:?}"),
                }
            }
        }
    }

    #[test]
    fn rows_and_bytes() {
        let l = layout(&[3, 2, 5], false).unwrap();
        assert_eq!((l.n_rows(), l.row_len(), l.nbytes()), (3, 40, 120));
        let scalar = layout(&[], false).unwrap();
        assert_eq!((scalar.n_rows(), scalar.row_len(), scalar.nbytes()), (1, 4, 4));
        let empty = layout(&[0, 7], false).unwrap();
        assert_eq!((empty.n_rows(), empty.row_len(), empty.nbytes()), (0, 28, 0));
    }

    #[test]
    fn absurd_shapes_are_refused() {
        assert!(layout(&[1; 64], false).is_ok());
        assert!(layout(&[1; 65], false).is_err());
        assert!(layout(&[1 << 40, 1 << 40], false).is_err());
        assert!(layout(&[0, 1 << 40, 1 << 40], false).is_err());
        assert!(layout(&[u64::MAX], false).is_err());
    }

    #[test]
    fn fortran_order_is_dropped_where_it_says_nothing() {
        assert!(!layout(&[7], true).unwrap().fortran_order());
        assert!(!layout(&[1, 7, 1], true).unwrap().fortran_order());
        assert!(layout(&[2, 7], true).unwrap().fortran_order());
    }

    #[test]
    fn fortran_offsets_follow_the_strides() {
        // shape (2, 3): element [i, j] lies at (i + 2 j) items.
        let l = layout(&[2, 3], true).unwrap();
        assert_eq!(l.fortran_row_offsets(1).collect::<Vec<_>>(), [4, 12, 20]);
        // shape (2, 2, 2): element [i, j, k] lies at (i + 2 j + 4 k) items.
        let l = layout(&[2, 2, 2], true).unwrap();
        assert_eq!(l.fortran_row_offsets(0).collect::<Vec<_>>(), [0, 16, 8, 24]);
    }
}
