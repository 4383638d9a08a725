//! NumPy's dtype objects to the store's [`Dtype`] and back, through NumPy's own description of a dtype.
//!
//! Both directions are remembered: describing a structured dtype takes NumPy microseconds. Number types do not
//! even ask Python: their description follows from kind, size and byte order.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::store::Dtype;

/// NumPy's numbers of its built-in types end here; 23 is `float16`.
const N_BUILTIN: usize = 24;
/// Type numbers of dtypes that other packages register start here.
const FIRST_USER_TYPE: i32 = 256;
const STRING_DTYPE: i32 = 2056;
/// A program that makes ever new dtypes must not make these caches grow without end.
const MAX_REMEMBERED: usize = 4096;

#[pyclass(frozen, module = "numpack._native")]
struct KnownDtype(Dtype);

/// The store's dtype for one of NumPy's. `name` is the array that has it, for the message.
///
/// # Errors
/// `TypeError` for dtypes whose items have no fixed size, or which have no description.
pub(super) fn from_numpy(name: &str, dtype: &Bound<'_, PyArrayDescr>) -> PyResult<Dtype> {
    if let Some(known) = number(dtype) {
        return Ok(known.clone());
    }
    static KNOWN: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let py = dtype.py();
    let known = KNOWN.get_or_init(py, || PyDict::new(py).unbind()).bind(py);
    if let Some(found) = known.get_item(dtype)? {
        return Ok(found.cast::<KnownDtype>()?.get().0.clone());
    }
    let described = describe(name, dtype)?;
    if known.len() >= MAX_REMEMBERED {
        known.clear();
    }
    known.set_item(dtype, Py::new(py, KnownDtype(described.clone()))?)?;
    Ok(described)
}

/// The dtype of a bool, integer, float or complex number, which needs no description by NumPy.
fn number(dtype: &Bound<'_, PyArrayDescr>) -> Option<&'static Dtype> {
    static NUMBERS: [[OnceLock<Dtype>; 2]; N_BUILTIN] = [const { [const { OnceLock::new() }; 2] }; N_BUILTIN];
    let of_type = NUMBERS.get(usize::try_from(dtype.num()).ok()?)?;
    let swapped = dtype.is_native_byteorder() == Some(false);
    let known = &of_type[usize::from(swapped)];
    if known.get().is_none() {
        let kind = dtype.kind();
        if !matches!(kind, b'b' | b'i' | b'u' | b'f' | b'c') {
            return None;
        }
        let itemsize = dtype.itemsize();
        let order = match (itemsize, cfg!(target_endian = "big") != swapped) {
            (1, _) => '|',
            (_, true) => '>',
            (_, false) => '<',
        };
        let text = format!("'{order}{}{itemsize}'", char::from(kind));
        let _ = known.set(Dtype::parse_python(&text).ok()?);
    }
    known.get()
}

fn describe(name: &str, dtype: &Bound<'_, PyArrayDescr>) -> PyResult<Dtype> {
    let refuse = |remedy: &str| {
        Err(PyTypeError::new_err(format!(
            "array '{name}' has dtype {dtype}, which cannot be stored: {remedy}"
        )))
    };
    if dtype.num() == STRING_DTYPE {
        return refuse("its strings have no fixed width; convert it, for example with .astype('U16')");
    }
    if dtype.has_object() {
        return refuse(
            "its items are Python objects; convert it to a dtype of fixed size, such as float64 or 'U16'",
        );
    }
    if dtype.num() >= FIRST_USER_TYPE {
        return refuse(
            "NumPy has no description of it; store a view as a dtype of NumPy's, such as .view('u2')",
        );
    }
    static DTYPE_TO_DESCR: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let dtype_to_descr = DTYPE_TO_DESCR.import(dtype.py(), "numpy.lib.format", "dtype_to_descr")?;
    let descr = match dtype_to_descr.call1((dtype,)) {
        Ok(descr) => descr,
        Err(error) if error.is_instance_of::<PyValueError>(dtype.py()) => {
            return refuse(
                "its fields overlap or are out of order; see numpy.lib.recfunctions.repack_fields",
            );
        }
        Err(error) => return Err(error),
    };
    match Dtype::parse_python(descr.repr()?.to_str()?) {
        Ok(described) => Ok(described),
        Err(error) => refuse(&error.to_string()),
    }
}

/// NumPy's dtype for one of the store's.
pub(super) fn to_numpy<'py>(py: Python<'py>, dtype: &Dtype) -> PyResult<Bound<'py, PyArrayDescr>> {
    static KNOWN: Mutex<Option<HashMap<Dtype, Py<PyArrayDescr>>>> = Mutex::new(None);
    // No Python code runs while the lock is held, so the interpreter cannot switch threads and wait for it.
    let recall = || {
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().and_then(|known| known.get(dtype)).map(|found| found.bind(py).clone())
    };
    if let Some(found) = recall() {
        return Ok(found);
    }
    static DESCR_TO_DTYPE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static LITERAL_EVAL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let descr = LITERAL_EVAL.import(py, "ast", "literal_eval")?.call1((dtype.to_python(),))?;
    let found = DESCR_TO_DTYPE.import(py, "numpy.lib.format", "descr_to_dtype")?.call1((descr,))?;
    let found = found.cast_into::<PyArrayDescr>()?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    let forgotten = if known.len() >= MAX_REMEMBERED { std::mem::take(known) } else { HashMap::new() };
    known.insert(dtype.clone(), found.clone().unbind());
    drop(forgotten);
    Ok(found)
}

/// The name of a dtype in `get_metadata`: `Float32` and the like, as NumPack has always called them, and NumPy's
/// text for the dtypes that it did not have.
pub(super) fn metadata_name(dtype: &Bound<'_, PyArrayDescr>) -> PyResult<String> {
    let kind = match dtype.kind() {
        b'b' => return Ok("Bool".into()),
        b'i' => "Int",
        b'u' => "Uint",
        b'f' => "Float",
        b'c' => "Complex",
        _ => return Ok(dtype.str()?.to_str()?.to_owned()),
    };
    if dtype.is_native_byteorder() == Some(false) {
        return Ok(dtype.str()?.to_str()?.to_owned());
    }
    Ok(format!("{kind}{}", dtype.itemsize() * 8))
}
