//! Reading parts of an array with dropped rows: the rows that an index selects are read into a small array, the
//! index is rewritten to the numbers that the rows have there, and NumPy applies it.

use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyEllipsis, PyInt, PySlice, PyString, PyTuple};

use super::array::{Ndarray, as_array, copy_views, filled, is_borrowed};
use super::index::{Rows, int64s, integer, nonzero, slice_rows, wrapped};
use crate::store::Array;

/// The rows that an index selects, and what stands in the index for them once only they are there.
struct Selection<'py> {
    rows: Rows,
    renumbered: Vec<Bound<'py, PyAny>>,
}

/// All rows.
pub(super) fn all<'py>(array: &Array, dtype: &Bound<'py, PyArrayDescr>) -> PyResult<Ndarray<'py>> {
    filled(dtype.clone(), array.shape(), array.fortran_order(), |out| array.read_into(out))
}

/// The rows `rows`, in that order.
pub(super) fn rows<'py>(
    array: &Array,
    dtype: &Bound<'py, PyArrayDescr>,
    rows: &Rows,
) -> PyResult<Ndarray<'py>> {
    let mut shape = array.shape().to_vec();
    if let Some(n_rows) = shape.first_mut() {
        *n_rows = rows.len();
    }
    filled(dtype.clone(), &shape, false, |out| match rows {
        Rows::Range(rows) => array.read_rows_into(rows.clone(), out),
        Rows::List(rows) => array.gather_into(rows, out),
    })
}

/// `array[index]` with NumPy's result, as a new array or scalar.
pub(super) fn select<'py>(
    array: &Array,
    dtype: &Bound<'py, PyArrayDescr>,
    index: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = index.py();
    let items: Vec<_> = match index.cast::<PyTuple>() {
        Ok(tuple) => tuple.iter().collect(),
        Err(_) => vec![index.clone()],
    };
    // The first item that is not a new axis selects rows.
    let first = items.iter().position(|item| !item.is_none());
    let selection = match first {
        Some(first) => select_rows(array, &items[first])?,
        None => None,
    };
    let (Some(first), Some(selection)) = (first, selection) else {
        return copy_views(all(array, dtype)?.get_item(index)?, is_borrowed);
    };
    let read = rows(array, dtype, &selection.rows)?;
    let is_slice = items[first].is_instance_of::<PySlice>();
    if is_slice && items.len() == 1 {
        return Ok(read.into_any());
    }
    let renumbered = [&items[..first], &selection.renumbered, &items[first + 1..]].concat();
    // A view would keep all the rows in memory that were read for it.
    copy_views(read.get_item(PyTuple::new(py, renumbered)?)?, is_borrowed)
}

/// What `item` selects along axis 0; `None` if it selects otherwise (an ellipsis, a field name, a lone bool).
fn select_rows<'py>(array: &Array, item: &Bound<'py, PyAny>) -> PyResult<Option<Selection<'py>>> {
    let py = item.py();
    let n_rows = array.n_rows();
    if let Ok(slice) = item.cast::<PySlice>() {
        let rows = slice_rows(slice, n_rows)?;
        return Ok(Some(Selection { rows, renumbered: vec![PySlice::full(py).into_any()] }));
    }
    if item.is_instance_of::<PyEllipsis>()
        || item.is_instance_of::<PyBool>()
        || item.is_instance_of::<PyString>()
    {
        return Ok(None);
    }
    let row = |row: i64| {
        wrapped(row, n_rows).ok_or_else(|| {
            PyIndexError::new_err(format!("index {row} is out of bounds for axis 0 with size {n_rows}"))
        })
    };
    if !item.is_instance_of::<PyUntypedArray>()
        && let Some(index) = integer(item)?
    {
        let index = row(index)?;
        let renumbered = vec![PyInt::new(py, 0).into_any()];
        return Ok(Some(Selection { rows: Rows::Range(index..index + 1), renumbered }));
    }
    let found: Ndarray<'py> = as_array(py)?.call1((item,))?.cast_into()?;
    let is_empty_list = found.is_empty() && !item.is_instance_of::<PyUntypedArray>();
    match found.dtype().kind() {
        b'b' if found.ndim() > 0 => {
            check_mask(array, &found)?;
            let axes = found.call_method0("nonzero")?.cast_into::<PyTuple>()?;
            let rows = nonzero(&found)?.swap_remove(0).into_iter().map(|row| row as u64).collect::<Vec<_>>();
            let mut renumbered = vec![arange(py, rows.len())?];
            renumbered.extend(axes.iter().skip(1));
            Ok(Some(Selection { rows: Rows::List(rows), renumbered }))
        }
        b'i' | b'u' => {
            let rows = int64s(&found)?.into_iter().map(row).collect::<PyResult<Vec<_>>>()?;
            let shape = PyTuple::new(py, found.shape())?;
            let numbers = arange(py, rows.len())?.call_method1("reshape", (shape,))?;
            Ok(Some(Selection { rows: Rows::List(rows), renumbered: vec![numbers] }))
        }
        b'f' if is_empty_list => {
            let shape = PyTuple::new(py, found.shape())?;
            let numbers = arange(py, 0)?.call_method1("reshape", (shape,))?;
            Ok(Some(Selection { rows: Rows::Range(0..0), renumbered: vec![numbers] }))
        }
        _ => Ok(None),
    }
}

/// Checks that a boolean mask has the shape of the axes that it covers.
fn check_mask(array: &Array, mask: &Ndarray<'_>) -> PyResult<()> {
    let covered = array.shape().iter().take(mask.ndim());
    if mask.shape().iter().map(|&dim| dim as u64).eq(covered.copied()) {
        return Ok(());
    }
    // NumPy says what is wrong, asked about an array of that shape that takes no memory.
    let py = mask.py();
    static BROADCAST_TO: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let stand_in =
        BROADCAST_TO.import(py, "numpy", "broadcast_to")?.call1((0, PyTuple::new(py, array.shape())?))?;
    stand_in.get_item(mask).map(|_| ())
}

fn arange(py: Python<'_>, len: usize) -> PyResult<Bound<'_, PyAny>> {
    static ARANGE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    ARANGE.import(py, "numpy", "arange")?.call1((len,))
}
