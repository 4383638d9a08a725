//! `numpack.upgrade` of this backend.

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::codec;
use super::error::OrRaise;
use crate::store::{Upgrade, Upgraded};

/// What `numpack.upgrade` does.
#[pyfunction]
#[pyo3(signature = (store, to, compress))]
pub(super) fn _upgrade(
    py: Python<'_>,
    store: PathBuf,
    to: Option<PathBuf>,
    compress: Option<&Bound<'_, PyAny>>,
) -> PyResult<bool> {
    let compression = compress.map(|how| codec::compression("compress", how)).transpose()?.flatten();
    let upgraded = py.detach(|| {
        let upgrade = Upgrade { compression, progress: &mut |_, _, _| () };
        match &to {
            None => upgrade.in_place(&store),
            Some(to) => upgrade.to(&store, to, None),
        }
    });
    match (upgraded.or_raise(py)?, to) {
        (Upgraded::From { .. }, _) => Ok(true),
        (_, None) => Ok(false),
        (_, Some(_)) => Err(PyValueError::new_err(format!(
            "{}: is of this release already; nothing was written; copy it with cp -r",
            store.display()
        ))),
    }
}
