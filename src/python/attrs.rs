//! Attributes as Python has them: a dict of MessagePack values, which are None, bool, int, float, str, bytes, lists and
//! dicts of them. Tuples become lists, and NumPy's scalars the numbers that they are.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use rmpv::Value;

use crate::store::Attrs;

/// Values that are nested deeper are refused by the store; what is deeper still is no tree, but leads to itself.
const MAX_DEPTH: usize = 128;

/// The attributes that a caller gave.
///
/// # Errors
/// `TypeError` for a name that is no str, and for a value that MessagePack has not; `ValueError` for integers of more
/// than 64 bits, and for values that contain themselves.
pub(super) fn from_dict(attrs: &Bound<'_, PyDict>) -> PyResult<Attrs> {
    attrs
        .iter()
        .map(|(name, value)| {
            let Ok(name) = name.cast_into::<PyString>() else {
                return Err(PyTypeError::new_err("names of attributes are str"));
            };
            let name = name.to_str()?.to_owned();
            let value = to_value(&name, &value, 0)?;
            Ok((name, value))
        })
        .collect()
}

fn to_value(name: &str, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Value> {
    if depth > MAX_DEPTH {
        return Err(PyValueError::new_err(format!("attribute '{name}' is nested deeper than 64 levels")));
    }
    let inner = |value: Bound<'_, PyAny>| to_value(name, &value, depth + 1);
    if value.is_none() {
        return Ok(Value::Nil);
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return Ok(Value::Boolean(value.is_true()));
    }
    if value.is_instance_of::<PyInt>() {
        return integer(name, value);
    }
    if let Ok(value) = value.cast::<PyFloat>() {
        return Ok(Value::F64(value.value()));
    }
    if let Ok(value) = value.cast::<PyString>() {
        return Ok(value.to_str()?.into());
    }
    if let Ok(value) = value.cast::<PyBytes>() {
        return Ok(Value::Binary(value.as_bytes().to_vec()));
    }
    if let Ok(value) = value.cast::<PyByteArray>() {
        return Ok(Value::Binary(value.to_vec()));
    }
    if let Ok(items) = value.cast::<PyList>() {
        return Ok(Value::Array(items.iter().map(inner).collect::<PyResult<_>>()?));
    }
    if let Ok(items) = value.cast::<PyTuple>() {
        return Ok(Value::Array(items.iter().map(inner).collect::<PyResult<_>>()?));
    }
    if let Ok(items) = value.cast::<PyDict>() {
        let items = items.iter().map(|(key, value)| Ok((inner(key)?, inner(value)?)));
        return Ok(Value::Map(items.collect::<PyResult<_>>()?));
    }
    // NumPy's bool, integers and floats, which are none of Python's.
    static GENERIC: pyo3::sync::PyOnceLock<Py<pyo3::types::PyType>> = pyo3::sync::PyOnceLock::new();
    if value.is_instance(GENERIC.import(value.py(), "numpy", "generic")?)? {
        let item = value.call_method0("item")?;
        if [item.is_instance_of::<PyBool>(), item.is_instance_of::<PyInt>(), item.is_instance_of::<PyFloat>()]
            .contains(&true)
        {
            return to_value(name, &item, depth);
        }
    }
    Err(PyTypeError::new_err(format!(
        "attribute '{name}' is of type {}, expected None, bool, int, float, str, bytes, or lists and dicts of them",
        value.get_type().name()?
    )))
}

fn integer(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(value) = value.extract::<i64>() {
        return Ok(value.into());
    }
    match value.extract::<u64>() {
        Ok(value) => Ok(value.into()),
        Err(_) => Err(PyValueError::new_err(format!(
            "attribute '{name}' is {value}, integers are from -2**63 to 2**64 - 1"
        ))),
    }
}

/// The dict of some attributes.
pub(super) fn to_dict<'py>(py: Python<'py>, attrs: &Attrs) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in attrs {
        dict.set_item(name, from_value(py, value)?)?;
    }
    Ok(dict)
}

fn from_value<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Nil => py.None().into_bound(py),
        Value::Boolean(value) => PyBool::new(py, *value).to_owned().into_any(),
        Value::Integer(value) => match (value.as_i64(), value.as_u64()) {
            (Some(value), _) => value.into_pyobject(py)?.into_any(),
            (None, value) => value.unwrap_or_default().into_pyobject(py)?.into_any(),
        },
        Value::F32(value) => PyFloat::new(py, (*value).into()).into_any(),
        Value::F64(value) => PyFloat::new(py, *value).into_any(),
        Value::String(value) => match value.as_str() {
            Some(text) => PyString::new(py, text).into_any(),
            None => PyBytes::new(py, value.as_bytes()).into_any(),
        },
        Value::Binary(value) => PyBytes::new(py, value).into_any(),
        Value::Array(items) => {
            let items = items.iter().map(|item| from_value(py, item)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, items)?.into_any()
        }
        Value::Map(items) => {
            let dict = PyDict::new(py);
            for (key, value) in items {
                dict.set_item(hashable(from_value(py, key)?)?, from_value(py, value)?)?;
            }
            dict.into_any()
        }
        // No value of Python's is stored so, but another program may have.
        Value::Ext(code, bytes) => (*code, PyBytes::new(py, bytes)).into_pyobject(py)?.into_any(),
    })
}

/// A key that a dict takes: lists, which it does not, as tuples.
fn hashable(key: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let Ok(items) = key.cast::<PyList>() else { return Ok(key) };
    let items = items.iter().map(hashable).collect::<PyResult<Vec<_>>>()?;
    Ok(PyTuple::new(key.py(), items)?.into_any())
}
