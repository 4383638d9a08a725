//! The Python extension module `numpack._native`: converts arguments, releases the GIL, calls the store.
//!
//! Uses `store` and nothing above or beside it. What is public in Python is listed in `python/numpack/__init__.py`
//! and typed in `python/numpack/_native.pyi`.

mod array;
mod attrs;
mod codec;
mod dtype;
mod error;
mod gather;
mod held;
mod index;
mod lazy;
mod metadata;
mod opening;
mod rows;
mod store;
mod stream;
mod upgrade;

/// The native backend of the Python package `numpack`.
#[pyo3::pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::lazy::LazyArray;
    #[pymodule_export]
    use super::store::NumPack;
    #[pymodule_export]
    use super::upgrade::_upgrade;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // Fails here and now where NumPy is missing; later uses of its C API could only panic.
        module.py().import("numpy")?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
