//! The iterator of `NumPack.stream_load`: rows of one version of an array, some at a time.

use std::sync::atomic::{AtomicU64, Ordering};

use numpy::PyArrayDescr;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::array::Ndarray;
use super::error::OrRaise;
use super::held::Held;
use super::index::{Rows, integer};
use super::{dtype, gather};
use crate::store::{Array, StoreError};

/// Reads an array as it goes.
#[pyclass(frozen, module = "numpack._native")]
pub(super) struct RowStream {
    array: Held,
    dtype: Py<PyArrayDescr>,
    n_at_once: u64,
    /// The first row that was not given yet.
    next: AtomicU64,
}

impl RowStream {
    /// # Errors
    /// `ValueError` for a `buffer_size` that is no positive number, and for arrays without rows.
    pub(super) fn new(
        py: Python<'_>,
        array: Array,
        buffer_size: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let n_at_once = match buffer_size {
            None => 1,
            Some(size) => match integer(size)? {
                Some(n @ 1..) => n.unsigned_abs(),
                _ => {
                    return Err(PyValueError::new_err(format!(
                        "buffer_size is {}, expected a positive number of rows, or None for one row at a time",
                        size.repr()?
                    )));
                }
            },
        };
        if array.shape().is_empty() {
            return Err(StoreError::NoRows { array: array.name().to_string() }).or_raise(py);
        }
        let dtype = dtype::to_numpy(py, array.dtype())?.unbind();
        Ok(Self { array: Held::new(array), dtype, n_at_once, next: AtomicU64::new(0) })
    }
}

#[pymethods]
impl RowStream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Ndarray<'py>>> {
        let n_rows = self.array.array().n_rows();
        // Threads that share an iterator get different rows.
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            (next < n_rows).then(|| next.saturating_add(self.n_at_once).min(n_rows))
        });
        let Ok(start) = taken else { return Ok(None) };
        let rows = Rows::Range(start..start.saturating_add(self.n_at_once).min(n_rows));
        gather::rows(&self.array.readable(py)?, self.dtype.bind(py), &rows).map(Some)
    }

    fn __length_hint__(&self) -> u64 {
        let left = self.array.array().n_rows().saturating_sub(self.next.load(Ordering::Relaxed));
        left.div_ceil(self.n_at_once)
    }
}
