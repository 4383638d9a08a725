//! NumPy's dtype objects to the store's [`Dtype`] and back, through NumPy's own description of a dtype.
//!
//! Both directions are remembered: describing a structured dtype takes NumPy microseconds. Number types do not
//! even ask Python: their description follows from kind, size and byte order.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::error::Exception;
use crate::store::{Descr, Dtype, Field, Subarray};

/// NumPy's numbers of its built-in types end here; 23 is `float16`.
const N_BUILTIN: usize = 24;
/// Type numbers of dtypes that other packages register start here.
const FIRST_USER_TYPE: i32 = 256;
const STRING_DTYPE: i32 = 2056;
/// What can be done about dtypes that have no description.
const USER_TYPE: &str =
    "NumPy has no description of it; store a view as a dtype of NumPy's, such as .view('u2')";
const OVERLAPPING: &str = "its fields overlap or are out of order; see numpy.lib.recfunctions.repack_fields";
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
    if dtype.has_subarray() {
        return refuse("it is that of an array; take that of its items, and give the array the dimensions");
    }
    match descr_of(dtype)? {
        Ok(descr) => Dtype::from_descr(descr).or_else(|error| refuse(&error.to_string())),
        Err(remedy) => refuse(remedy),
    }
}

/// NumPy's description of a dtype, as `numpy.save` writes it, but for metadata, which that leaves out with a warning;
/// or what can be done about a dtype that has none.
fn descr_of(dtype: &Bound<'_, PyArrayDescr>) -> PyResult<Result<Descr, &'static str>> {
    const NO_TEXT: &str = "the names and titles of its fields are to be texts in UTF-8";
    let subdtype = dtype.getattr("subdtype")?;
    if !subdtype.is_none() {
        let (base, shape): (Bound<'_, PyArrayDescr>, Vec<u64>) = subdtype.extract()?;
        let descr = descr_of(&base)?;
        return Ok(descr.map(|descr| Descr::Subarray(Box::new(Subarray { descr, shape }))));
    }
    let names = dtype.getattr("names")?;
    if names.is_none() {
        return Ok(match dtype.num() {
            num if num >= FIRST_USER_TYPE => Err(USER_TYPE),
            _ => Ok(Descr::Scalar(dtype.getattr("str")?.extract()?)),
        });
    }
    let padding =
        |len: usize| Field::new(String::new(), String::new(), Descr::Scalar(format!("|V{len}")), Vec::new());
    let known = dtype.getattr("fields")?;
    let text = |text: &Bound<'_, PyAny>| text.extract::<String>().ok();
    let mut fields = Vec::new();
    let mut end = 0;
    for name in names.try_iter()? {
        let name = name?;
        let field = known.get_item(&name)?;
        let inner: Bound<'_, PyArrayDescr> = field.get_item(0)?.cast_into()?;
        let offset: usize = field.get_item(1)?.extract()?;
        let title = if field.len()? > 2 { text(&field.get_item(2)?) } else { Some(String::new()) };
        let (Some(name), Some(title)) = (text(&name), title) else { return Ok(Err(NO_TEXT)) };
        if offset < end {
            return Ok(Err(OVERLAPPING));
        }
        if offset > end {
            fields.push(padding(offset - end));
        }
        end = offset + inner.itemsize();
        match descr_of(&inner)? {
            Ok(descr) => fields.push(Field::new(title, name, descr, Vec::new())),
            Err(remedy) => return Ok(Err(remedy)),
        }
    }
    if dtype.itemsize() > end {
        fields.push(padding(dtype.itemsize() - end));
    }
    Ok(Ok(Descr::Fields(fields)))
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
    let descr_to_dtype = DESCR_TO_DTYPE.import(py, "numpy.lib.format", "descr_to_dtype")?;
    let found =
        descr_to_dtype.call1((descr,)).map_err(|error| match error.is_instance_of::<PyTypeError>(py) {
            true => Exception::Unsupported.err(format!(
                "dtype {} is not there on this machine: {}",
                dtype.to_python(),
                error.value(py)
            )),
            false => error,
        })?;
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
