//! How arrays are compressed, as Python says it: a bool, a level, or a dict, and the dict that describes an array's
//! codec. One is the other: what `get_metadata` gives can be passed to `save`.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};

use super::index::integer;
use crate::format::FormatError;
use crate::store::{Compression, Filter};

const KEYS: &str = "'level', 'block' or 'filter'";
const FILTERS: &str = "'auto', 'none', 'shuffle', 'delta', 'delta2', 'delta3' or 'delta4'";

/// What a caller passed as `argument`; `None`: not compressed.
///
/// # Errors
/// `TypeError` and `ValueError`, which name what was found and what is expected.
pub(super) fn compression(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<Compression>> {
    let default = Compression::default();
    if value.is_none() {
        return Ok(None);
    }
    // NumPy's bools as well.
    if let Ok(is_compressed) = value.extract::<bool>() {
        return Ok(is_compressed.then_some(default));
    }
    let (mut level, mut block_len) = (i64::from(default.level), i64::from(default.block_len));
    let mut of_level = argument.to_owned();
    let of_block = format!("{argument}['block']");
    let mut filter = default.filter;
    if let Ok(dict) = value.cast::<PyDict>() {
        of_level = format!("{argument}['level']");
        for (key, value) in dict {
            let name = key.cast::<PyString>().ok().map(|key| key.to_cow()).transpose()?;
            match name.as_deref() {
                Some("level") => level = number(&of_level, &value)?,
                Some("block") => block_len = number(&of_block, &value)?,
                Some("filter") => filter = parse_filter(argument, &value)?,
                _ => {
                    let found = key.repr()?;
                    let message = format!("{argument} has the unknown key {found}, expected {KEYS}");
                    return Err(PyValueError::new_err(message));
                }
            }
        }
    } else if let Some(found) = integer(value)? {
        level = found;
    } else {
        return Err(PyTypeError::new_err(format!(
            "{argument} is of type {}, expected None, a bool, a level (int), or a dict with {KEYS}",
            value.get_type().name()?
        )));
    }
    // What does not fit these types is beyond the limits as well.
    let compression = Compression {
        level: level.clamp(i32::MIN.into(), i32::MAX.into()) as i32,
        block_len: block_len.clamp(0, u32::MAX.into()) as u32,
        filter,
    };
    match compression.codec(Filter::None) {
        Ok(_) => Ok(Some(compression)),
        Err(FormatError::Codec { part: "level", expected, .. }) => {
            Err(PyValueError::new_err(format!("{of_level} is {level}, expected {expected}")))
        }
        Err(FormatError::Codec { expected, .. }) => {
            Err(PyValueError::new_err(format!("{of_block} is {block_len}, expected {expected}")))
        }
        Err(error) => Err(PyValueError::new_err(format!("{argument}: {error}"))),
    }
}

/// An integer that is no bool.
fn number(what: &str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    match integer(value)? {
        Some(number) if !value.is_instance_of::<PyBool>() => Ok(number),
        _ => {
            let found = value.get_type().name()?;
            Err(PyTypeError::new_err(format!("{what} is of type {found}, expected an int")))
        }
    }
}

fn parse_filter(argument: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<Filter>> {
    let Ok(name) = value.cast::<PyString>() else {
        // None could mean no filter, or any.
        let found = value.get_type().name()?;
        let message = format!("{argument}['filter'] is of type {found}, expected {FILTERS}");
        return Err(PyTypeError::new_err(message));
    };
    match &*name.to_cow()? {
        "auto" => Ok(None),
        name => name.parse().map(Some).map_err(|_| {
            PyValueError::new_err(format!("{argument}['filter'] is '{name}', expected {FILTERS}"))
        }),
    }
}

/// The dict that describes a codec; None for an array that is not compressed.
pub(super) fn described<'py>(
    py: Python<'py>,
    compression: Option<Compression>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let Some(Compression { level, block_len, filter }) = compression else { return Ok(None) };
    let dict = PyDict::new(py);
    dict.set_item(intern!(py, "level"), level)?;
    dict.set_item(intern!(py, "block"), block_len)?;
    dict.set_item(intern!(py, "filter"), filter.map_or("auto", Filter::name))?;
    Ok(Some(dict))
}
