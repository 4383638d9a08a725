//! The dicts that describe a store.

use std::time::UNIX_EPOCH;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::error::OrRaise;
use super::{codec, dtype};
use crate::store::{Array, Store};

/// What `NumPack.get_metadata` returns.
pub(super) fn of_store<'py>(py: Python<'py>, store: &Store) -> PyResult<Bound<'py, PyDict>> {
    let found = py.detach(|| store.arrays()).or_raise(py)?;
    let arrays = PyDict::new(py);
    for array in &found {
        let metadata = PyDict::new(py);
        metadata.set_item(intern!(py, "shape"), PyList::new(py, array.shape())?)?;
        metadata.set_item(intern!(py, "data_file"), array.file_name())?;
        metadata.set_item(intern!(py, "last_modified"), modified_micros(py, array)?)?;
        metadata.set_item(intern!(py, "size_bytes"), array.nbytes())?;
        metadata.set_item(intern!(py, "stored_bytes"), array.stored_len())?;
        metadata.set_item(intern!(py, "codec"), codec::described(py, array.compression())?)?;
        let dtype = match dtype::to_numpy(py, array.dtype()) {
            Ok(dtype) => dtype::metadata_name(&dtype)?,
            // One of another machine's.
            Err(_) => array.dtype().to_string(),
        };
        metadata.set_item(intern!(py, "dtype"), dtype)?;
        arrays.set_item(&**array.name(), metadata)?;
    }
    let metadata = PyDict::new(py);
    metadata.set_item(intern!(py, "total_arrays"), found.len())?;
    metadata.set_item(intern!(py, "arrays"), arrays)?;
    metadata.set_item(intern!(py, "base_dir"), store.path().display().to_string())?;
    Ok(metadata)
}

/// When `array` was last changed, in microseconds since 1970. Without its data file, when that was last committed.
pub(super) fn modified_micros(py: Python<'_>, array: &Array) -> PyResult<i64> {
    let modified = py.detach(|| array.modified()).unwrap_or_else(|_| array.committed());
    let micros = match modified.duration_since(UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_micros())?,
        Err(before) => -i128::try_from(before.duration().as_micros())?,
    };
    Ok(i64::try_from(micros)?)
}
