//! Saving and changing arrays and their rows: arguments are checked and converted here, all of them before the store
//! writes anything.

use std::sync::{Arc, Weak};

use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::array::{
    Contiguous, Mapped, Ndarray, filled, is_mapped_to_write, mapped as mapped_at, to_ndarray, to_rows,
};
use super::error::{Exception, OrRaise};
use super::index::{RowIndex, Rows, integer};
use super::{dtype, gather};
use crate::store::{Array, Changes, Compression, Dtype, MapMut, NewArray, Store, StoreError};

/// An array and the name it was given with.
struct Named<'py> {
    name: Bound<'py, PyString>,
    array: Contiguous<'py>,
}

fn as_new_arrays<'a>(named: &'a [Named<'_>]) -> PyResult<Vec<(&'a str, NewArray<'a>)>> {
    named.iter().map(|named| Ok((named.name.to_str()?, named.array.as_new_array()))).collect()
}

/// The items of the dict that a caller passed.
fn items<'py>(
    arrays: &Bound<'py, PyAny>,
) -> PyResult<impl Iterator<Item = PyResult<(Bound<'py, PyString>, Bound<'py, PyAny>)>>> {
    let Ok(dict) = arrays.cast::<PyDict>() else {
        return Err(PyValueError::new_err(format!(
            "expected a dict of names and arrays, not {}",
            arrays.get_type().name()?
        )));
    };
    Ok(dict.clone().into_iter().map(|(name, value)| Ok((cast_name(name)?, value))))
}

fn cast_name(name: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyString>> {
    name.cast_into::<PyString>().map_err(|error| {
        let name = error.into_inner();
        PyTypeError::new_err(format!("array names are str, not {}", name.get_type()))
    })
}

pub(super) fn save(
    py: Python<'_>,
    store: &Store,
    arrays: &Bound<'_, PyAny>,
    compression: Option<&Compression>,
) -> PyResult<()> {
    let named = to_save(arrays)?;
    if named.is_empty() {
        return Ok(());
    }
    let new = as_new_arrays(&named)?;
    py.detach(|| store.save_as(&new, compression)).or_raise(py)
}

/// Arrays that a caller wants to save as they are.
fn to_save<'py>(arrays: &Bound<'py, PyAny>) -> PyResult<Vec<Named<'py>>> {
    items(arrays)?
        .map(|item| {
            let (name, value) = item?;
            let array = Contiguous::any_order(name.to_str()?, to_ndarray(&value)?)?;
            Ok(Named { name, array })
        })
        .collect()
}

/// Saves arrays, and makes other changes, in one commit.
pub(super) fn change(
    py: Python<'_>,
    store: &Store,
    arrays: &Bound<'_, PyAny>,
    changes: Changes<'_>,
) -> PyResult<()> {
    let named = to_save(arrays)?;
    let save = as_new_arrays(&named)?;
    py.detach(|| store.change(Changes { save: &save, ..changes })).or_raise(py)
}

pub(super) fn create(
    py: Python<'_>,
    store: &Store,
    name: &str,
    shape: &Bound<'_, PyAny>,
    dtype: Option<&Bound<'_, PyAny>>,
    compression: Option<&Compression>,
) -> PyResult<()> {
    let descr = match dtype {
        Some(dtype) => PyArrayDescr::new(py, dtype)?,
        None => PyArrayDescr::of::<f64>(py),
    };
    let dtype = dtype::from_numpy(name, &descr)?;
    let refuse = || {
        let shown = shape.repr().map_or_else(|_| "shape".to_owned(), |text| text.to_string());
        PyValueError::new_err(format!(
            "array '{name}': {shown} is no shape: expected an int, or a tuple of int, none negative"
        ))
    };
    let dims = match integer(shape)? {
        Some(len) => vec![len],
        None => {
            let items = shape.try_iter().map_err(|_| refuse())?;
            items.map(|item| integer(&item?)?.ok_or_else(refuse)).collect::<PyResult<Vec<_>>>()?
        }
    };
    let dims = dims.into_iter().map(u64::try_from).collect::<Result<Vec<_>, _>>().map_err(|_| refuse())?;
    py.detach(|| store.create_zeros(name, &dtype, &dims, compression)).or_raise(py)
}

pub(super) fn write_rows(
    py: Python<'_>,
    store: &Store,
    name: &Bound<'_, PyString>,
    start: &Bound<'_, PyAny>,
    rows: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let Some(found) = integer(start)? else {
        let what = start.get_type().name()?;
        return Err(PyTypeError::new_err(format!("start is of type {what}, expected an int")));
    };
    let Ok(start) = u64::try_from(found) else {
        let message = format!("start is {found}, expected a row counted from the first one, which is 0");
        return Err(Exception::RowIndex.err(message));
    };
    let values = new_rows(py, store, name, rows)?;
    let name = name.to_str()?;
    let new = values.as_new_array();
    py.detach(|| store.write_rows(name, start, new)).or_raise(py)
}

/// Rows for the array `name`, in C order, apart from any mapping of it.
fn new_rows<'py>(
    py: Python<'py>,
    store: &Store,
    name: &Bound<'py, PyString>,
    rows: &Bound<'py, PyAny>,
) -> PyResult<Contiguous<'py>> {
    let array = record(py, store, name.to_str()?).or_raise(py)?;
    let rows = to_rows(rows, &dtype::to_numpy(py, array.dtype())?)?;
    Contiguous::c_order(array.name(), rows)?.unshared()
}

/// An array that is mapped, its state in the store, and its mapping; an array without elements has none.
type MappedArray<'py> = (Ndarray<'py>, Array, Option<Weak<MapMut>>);

/// The array `name` over a mapping that can be written to, and its state in the store; `None` if it is compressed.
pub(super) fn map<'py>(py: Python<'py>, store: &Store, name: &str) -> PyResult<Option<MappedArray<'py>>> {
    let mapped = py.detach(|| {
        loop {
            let array = store.array(name)?;
            if array.codec().is_some() {
                return Ok(None);
            }
            match array.map_mut()? {
                Some(map) => return Ok(Some((array, map))),
                // Somebody may drop rows once more.
                None => {
                    store.compact(name)?;
                }
            }
        }
    });
    let Some((array, map)) = mapped.or_raise(py)? else { return Ok(None) };
    let dtype = dtype::to_numpy(py, array.dtype())?;
    if map.is_empty() {
        let empty = filled(dtype, array.shape(), array.fortran_order(), |_| Ok(()))?;
        return Ok(Some((empty, array, None)));
    }
    let map = Arc::new(map);
    let held = Arc::downgrade(&map);
    let mapped = mapped_at(dtype, array.shape(), array.fortran_order(), Mapped::Write(map))?;
    Ok(Some((mapped, array, Some(held))))
}

pub(super) fn write_back(
    py: Python<'_>,
    store: &Store,
    name: &Bound<'_, PyString>,
    start: u64,
    rows: &Bound<'_, PyAny>,
) -> PyResult<()> {
    if rows.cast::<PyUntypedArray>().is_ok_and(is_mapped_to_write) {
        let array = record(py, store, name.to_str()?).or_raise(py)?;
        return py.detach(|| array.tell_mapped()).or_raise(py);
    }
    let values = new_rows(py, store, name, rows)?;
    let name = name.to_str()?;
    let new = values.as_new_array();
    py.detach(|| store.replace_changed(name, start, new)).or_raise(py)
}

pub(super) fn append(py: Python<'_>, store: &Store, arrays: &Bound<'_, PyAny>) -> PyResult<()> {
    // Arrays go as they are, and the store compares dtypes. Only where they differ, and for lists, which have none,
    // is it worth knowing the array beforehand.
    match try_append(py, store, arrays, false)? {
        Err(StoreError::DtypeMismatch { .. }) => try_append(py, store, arrays, true)?.or_raise(py),
        Err(error @ StoreError::NotFound { .. }) => Err(Exception::AppendTarget.err(error.to_string())),
        result => result.or_raise(py),
    }
}

fn try_append(
    py: Python<'_>,
    store: &Store,
    arrays: &Bound<'_, PyAny>,
    convert: bool,
) -> PyResult<Result<(), StoreError>> {
    let mut named = Vec::new();
    for item in items(arrays)? {
        let (name, value) = item?;
        let rows = if !convert && value.is_instance_of::<PyUntypedArray>() {
            to_ndarray(&value)?
        } else {
            let name = name.to_str()?;
            match record(py, store, name) {
                Ok(array) => to_rows(&value, &dtype::to_numpy(py, array.dtype())?)?,
                Err(error) => return Ok(Err(error)),
            }
        };
        let array = Contiguous::c_order(name.to_str()?, rows)?;
        named.push(Named { name, array });
    }
    if named.is_empty() {
        return Ok(Ok(()));
    }
    let new = as_new_arrays(&named)?;
    Ok(py.detach(|| store.append(&new)))
}

/// Rows that will replace others.
struct Replacement<'py> {
    values: Named<'py>,
    rows: Rows,
    shape: Vec<u64>,
}

pub(super) fn replace(
    py: Python<'_>,
    store: &Store,
    arrays: &Bound<'_, PyAny>,
    index: &RowIndex<'_>,
) -> PyResult<()> {
    let replacements = items(arrays)?
        .map(|item| {
            let (name, value) = item?;
            prepare(py, store, name, &value, index)
        })
        .collect::<PyResult<Vec<_>>>()?;
    let new = replacements
        .iter()
        .filter(|replacement| replacement.rows.len() > 0)
        .map(|Replacement { values, rows, shape }| {
            let data = NewArray { shape: shape.clone(), ..values.array.as_new_array() };
            Ok((values.name.to_str()?, rows, data))
        })
        .collect::<PyResult<Vec<_>>>()?;
    py.detach(|| {
        new.into_iter().try_for_each(|(name, rows, data)| match rows {
            Rows::Range(rows) => store.replace_range(name, rows.clone(), data),
            Rows::List(rows) => store.replace(name, rows, data),
        })
    })
    .or_raise(py)
}

fn prepare<'py>(
    py: Python<'py>,
    store: &Store,
    name: Bound<'py, PyString>,
    value: &Bound<'py, PyAny>,
    index: &RowIndex<'py>,
) -> PyResult<Replacement<'py>> {
    let array = record(py, store, name.to_str()?).or_raise(py)?;
    let rows = rows_of(py, &array, index)?;
    let values = to_rows(value, &dtype::to_numpy(py, array.dtype())?)?;
    // Values that lie in a mapping of this very array would change while they are written.
    let values = Contiguous::c_order(array.name(), values)?.unshared()?;
    let mut shape: Vec<u64> = values.array().shape().iter().map(|&dim| dim as u64).collect();
    if matches!(index, RowIndex::One(_)) && shape.len() + 1 == array.shape().len() {
        // The row itself, as in array[index] = row.
        shape.insert(0, 1);
    }
    fit(&array, &shape, values.dtype(), rows.len()).or_raise(py)?;
    Ok(Replacement { values: Named { name, array: values }, rows, shape })
}

/// Checks that rows of this shape and dtype can replace `n_rows` rows of `array`.
fn fit(array: &Array, shape: &[u64], dtype: &Dtype, n_rows: u64) -> Result<(), StoreError> {
    let name = || array.name().to_string();
    let Some(&found) = shape.first().filter(|_| shape[1..] == array.shape()[1..]) else {
        return Err(StoreError::ShapeMismatch {
            array: name(),
            found: shape.to_vec(),
            expected: array.shape().to_vec(),
        });
    };
    if dtype != array.dtype() {
        let (found, expected) = (dtype.clone(), array.dtype().clone());
        return Err(StoreError::DtypeMismatch { array: name(), found, expected });
    }
    if found == n_rows {
        Ok(())
    } else {
        Err(StoreError::RowCount { array: name(), found, expected: n_rows })
    }
}

/// The newest state of an array; its data file is not opened.
fn record(py: Python<'_>, store: &Store, name: &str) -> Result<Array, StoreError> {
    py.detach(|| store.refresh_quietly())?;
    store.record(name)
}

fn rows_of(py: Python<'_>, array: &Array, index: &RowIndex<'_>) -> PyResult<Rows> {
    if array.shape().is_empty() {
        return Err(StoreError::NoRows { array: array.name().to_string() }).or_raise(py);
    }
    index.resolve(array.name(), array.n_rows())
}

pub(super) fn getitem<'py>(
    py: Python<'py>,
    array: &Array,
    index: &RowIndex<'py>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let rows = rows_of(py, array, index)?;
    let dtype = dtype::to_numpy(py, array.dtype())?;
    let found = match out {
        Some(out) => gather::rows_into(array, &dtype, &rows, out)?,
        None => gather::rows(array, &dtype, &rows)?,
    };
    Ok(found.into_any())
}

pub(super) fn drop(
    py: Python<'_>,
    store: &Store,
    names: &Bound<'_, PyAny>,
    index: Option<&RowIndex<'_>>,
) -> PyResult<()> {
    let names = if let Ok(name) = names.cast::<PyString>() {
        vec![name.clone()]
    } else if names.is_instance_of::<PyList>() || names.is_instance_of::<PyTuple>() {
        names.try_iter()?.map(|name| cast_name(name?)).collect::<PyResult<Vec<_>>>()?
    } else {
        return Err(PyTypeError::new_err(format!(
            "expected a name or a list of names, not {}",
            names.get_type()
        )));
    };
    let names = names.iter().map(|name| name.to_str()).collect::<PyResult<Vec<_>>>()?;
    let Some(index) = index else {
        py.detach(|| store.remove(&names)).or_raise(py)?;
        return Ok(());
    };
    // One commit for all arrays in which the index means the same rows.
    let mut commits: Vec<(Vec<u64>, Vec<&str>)> = Vec::new();
    for name in names {
        let array = match record(py, store, name) {
            Err(StoreError::NotFound { .. }) => continue,
            array => array.or_raise(py)?,
        };
        if array.shape().is_empty() {
            return Err(StoreError::NoRows { array: name.to_owned() }).or_raise(py);
        }
        let rows = index.resolve_existing(name, array.n_rows())?;
        match commits.iter_mut().find(|(same, _)| *same == rows) {
            _ if rows.is_empty() => {}
            Some((_, names)) if names.contains(&name) => {}
            Some((_, names)) => names.push(name),
            None => commits.push((rows, vec![name])),
        }
    }
    py.detach(|| commits.iter().try_for_each(|(rows, names)| store.drop_rows(names, rows))).or_raise(py)
}
