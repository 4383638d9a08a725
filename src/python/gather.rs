//! Reading parts of an array that is not mapped, because it is compressed or has dropped rows: what an index selects
//! along the first axes is read into a small array, the index is rewritten to the numbers that this has there, and NumPy
//! applies it.

use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyEllipsis, PyInt, PySlice, PyString, PyTuple};

use super::array::{Ndarray, as_array, check_out, copy_views, fill_out, filled, is_borrowed};
use super::index::{Rows, int64s, integer, nonzero, slice_rows, wrapped};
use crate::store::{Array, StoreError};

/// Selected rows that have more bytes than this are read in pieces, if an index takes only a part of each row.
const CHUNK_LEN: u64 = 16 << 20;

/// The rows that an index selects, and what stands in the index for them once only they are there.
struct Selection<'py> {
    rows: Rows,
    renumbered: Vec<Bound<'py, PyAny>>,
    /// Whether the result has one axis for the rows, with each row at the place that it has in `rows`.
    is_listed: bool,
}

/// All rows.
pub(super) fn all<'py>(array: &Array, dtype: &Bound<'py, PyArrayDescr>) -> PyResult<Ndarray<'py>> {
    filled(dtype.clone(), array.shape(), array.fortran_order(), |out| array.read_into(out))
}

/// All rows, in `out`.
pub(super) fn all_into<'py>(
    array: &Array,
    dtype: &Bound<'py, PyArrayDescr>,
    out: &Bound<'py, PyAny>,
) -> PyResult<Ndarray<'py>> {
    let out = check_out(out, dtype, array.shape())?;
    fill_out(out, |out| match array.fortran_order() {
        true => array.read_rows_into(0..array.n_rows(), out),
        false => array.read_into(out),
    })
}

/// The rows `rows`, in that order.
pub(super) fn rows<'py>(
    array: &Array,
    dtype: &Bound<'py, PyArrayDescr>,
    rows: &Rows,
) -> PyResult<Ndarray<'py>> {
    filled(dtype.clone(), &shape_of(array, rows), false, |out| read_rows(array, rows, out))
}

/// The rows `rows`, in that order, in `out`.
pub(super) fn rows_into<'py>(
    array: &Array,
    dtype: &Bound<'py, PyArrayDescr>,
    rows: &Rows,
    out: &Bound<'py, PyAny>,
) -> PyResult<Ndarray<'py>> {
    let out = check_out(out, dtype, &shape_of(array, rows))?;
    fill_out(out, |out| read_rows(array, rows, out))
}

/// The shape of these rows of `array`.
fn shape_of(array: &Array, rows: &Rows) -> Vec<u64> {
    let mut shape = array.shape().to_vec();
    if let Some(n_rows) = shape.first_mut() {
        *n_rows = rows.len();
    }
    shape
}

fn read_rows(array: &Array, rows: &Rows, out: &mut [u8]) -> Result<(), StoreError> {
    match rows {
        Rows::Range(rows) => array.read_rows_into(rows.clone(), out),
        Rows::List(rows) => array.gather_into(rows, out),
    }
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
    let items = without_leading_ellipsis(array, items)?;
    if let Some(found) = select_part(array, dtype, &items)? {
        return Ok(found);
    }
    // The first item that is not a new axis selects rows.
    let first = items.iter().position(|item| !item.is_none());
    let selection = match first {
        Some(first) => select_rows(array, &items[first])?,
        None => None,
    };
    let (Some(first), Some(selection)) = (first, selection) else {
        return copy_views(all(array, dtype)?.get_item(index)?, is_borrowed);
    };
    let is_slice = items[first].is_instance_of::<PySlice>();
    let is_much = selection.rows.len().saturating_mul(array.row_len()) > CHUNK_LEN;
    if is_much && first == 0 && selection.is_listed && keeps_rows_first(is_slice, &items[1..])? {
        return in_chunks(array, dtype, &selection.rows, &items[1..]);
    }
    let read = rows(array, dtype, &selection.rows)?;
    if is_slice && items.len() == 1 {
        return Ok(read.into_any());
    }
    let renumbered = [&items[..first], &selection.renumbered, &items[first + 1..]].concat();
    // A view would keep all the rows in memory that were read for it.
    copy_views(read.get_item(PyTuple::new(py, renumbered)?)?, is_borrowed)
}

/// An item of an index that NumPy does by itself, without gathering elements.
enum Basic<'a, 'py> {
    Int(i64),
    Slice(&'a Bound<'py, PySlice>),
    NewAxis,
    Ellipsis,
}

/// The items, if they are all basic.
fn basic<'a, 'py>(items: &'a [Bound<'py, PyAny>]) -> PyResult<Option<Vec<Basic<'a, 'py>>>> {
    let mut basic = Vec::with_capacity(items.len());
    for item in items {
        basic.push(if let Ok(slice) = item.cast::<PySlice>() {
            Basic::Slice(slice)
        } else if item.is_none() {
            Basic::NewAxis
        } else if item.is_instance_of::<PyEllipsis>() {
            Basic::Ellipsis
        } else if item.is_instance_of::<PyBool>() || item.is_instance_of::<PyUntypedArray>() {
            return Ok(None);
        } else if let Some(index) = integer(item)? {
            Basic::Int(index)
        } else {
            return Ok(None);
        });
    }
    Ok(Some(basic))
}

/// An index that begins with an ellipsis which covers the first axis, with a slice for that instead.
fn without_leading_ellipsis<'py>(
    array: &Array,
    mut items: Vec<Bound<'py, PyAny>>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let ndim = array.shape().len();
    let Some(first) = items.first().filter(|first| first.is_instance_of::<PyEllipsis>()) else {
        return Ok(items);
    };
    let Some(others) = basic(&items[1..])? else { return Ok(items) };
    let n_axes = others.iter().filter(|item| matches!(item, Basic::Int(_) | Basic::Slice(_))).count();
    if n_axes < ndim && !others.iter().any(|item| matches!(item, Basic::Ellipsis)) {
        items.insert(0, PySlice::full(first.py()).into_any());
    }
    Ok(items)
}

/// `array[items]` where the first items are integers, so that it is within a contiguous part of the array, maybe
/// narrowed by a slice: only that is read. `None` where it is not, or NumPy shall say what is wrong.
fn select_part<'py>(
    array: &Array,
    dtype: &Bound<'py, PyArrayDescr>,
    items: &[Bound<'py, PyAny>],
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let shape = array.shape();
    if array.fortran_order() {
        return Ok(None);
    }
    let Some(basic) = basic(items)? else { return Ok(None) };
    let n_ints = basic.iter().take_while(|item| matches!(item, Basic::Int(_))).count();
    let n_axes = basic.iter().filter(|item| matches!(item, Basic::Int(_) | Basic::Slice(_))).count();
    if n_ints == 0 || n_axes > shape.len() {
        return Ok(None);
    }
    let mut first_item = 0;
    for (item, &dim) in basic.iter().zip(&shape[..n_ints]) {
        let Basic::Int(index) = item else { unreachable!("these were counted") };
        let Some(index) = wrapped(*index, dim) else { return Ok(None) };
        first_item = first_item * dim + index;
    }
    let mut part = shape[n_ints..].to_vec();
    first_item *= part.iter().product::<u64>();
    let mut rest = items[n_ints..].to_vec();
    if let (Some(Basic::Slice(slice)), Some(dim)) = (basic.get(n_ints), part.first_mut())
        && let Rows::Range(range) = slice_rows(slice, *dim)?
    {
        *dim = range.end - range.start;
        first_item += range.start * part[1..].iter().product::<u64>();
        rest[0] = PySlice::full(slice.py()).into_any();
    }
    let offset = first_item * dtype.itemsize() as u64;
    let read = filled(dtype.clone(), &part, false, |out| array.read_elements_at(offset, out))?;
    let is_whole = match basic.get(n_ints) {
        None => !part.is_empty(),
        Some(_) => {
            basic.len() == n_ints + 1 && rest[0].is_instance_of::<PySlice>() && {
                // One that was not narrowed to what it selects is still to be applied.
                rest[0].eq(PySlice::full(dtype.py()))?
            }
        }
    };
    if is_whole {
        return Ok(Some(read.into_any()));
    }
    // What fails here fails again on the whole, where the axes have their own numbers.
    let Ok(found) = read.get_item(PyTuple::new(dtype.py(), rest)?) else { return Ok(None) };
    copy_views(found, is_borrowed).map(Some)
}

/// Whether `array[rows, *rest]` has its rows along its first axis, each made of that row alone.
fn keeps_rows_first(is_slice: bool, rest: &[Bound<'_, PyAny>]) -> PyResult<bool> {
    if rest.is_empty() {
        return Ok(false);
    }
    if basic(rest)?.is_some() {
        return Ok(true);
    }
    // One array among slices stays where it is; several, or one with integers, may go to the front.
    let mut n_others = 0;
    for item in rest {
        match basic(std::slice::from_ref(item))?.as_deref() {
            Some([Basic::Int(_)]) => return Ok(false),
            Some(_) => {}
            None => n_others += 1,
        }
    }
    Ok(is_slice && n_others == 1)
}

/// `array[rows, *rest]`, put together from pieces, so that no more rows are in memory than that.
fn in_chunks<'py>(
    array: &Array,
    dtype: &Bound<'py, PyArrayDescr>,
    selected: &Rows,
    rest: &[Bound<'py, PyAny>],
) -> PyResult<Bound<'py, PyAny>> {
    let py = dtype.py();
    let n_rows = selected.len();
    let n_at_once = (CHUNK_LEN / array.row_len()).max(1);
    let index = PyTuple::new(py, [&[PySlice::full(py).into_any()], rest].concat())?;
    let mut whole: Option<Ndarray<'py>> = None;
    let mut done = 0;
    while done < n_rows {
        let end = n_rows.min(done + n_at_once);
        let read = rows(array, dtype, &selected.part(done..end))?;
        let found: Ndarray<'py> = read.get_item(&index)?.cast_into()?;
        let whole = match &whole {
            Some(whole) => whole,
            None => {
                let mut shape: Vec<u64> = found.shape().iter().map(|&dim| dim as u64).collect();
                shape[0] = n_rows;
                whole.insert(filled(found.dtype(), &shape, false, |_| Ok(()))?)
            }
        };
        whole.set_item(PySlice::new(py, isize::try_from(done)?, isize::try_from(end)?, 1), found)?;
        done = end;
    }
    Ok(whole.expect("there is more than one piece").into_any())
}

/// What `item` selects along axis 0; `None` if it selects otherwise (an ellipsis, a field name, a lone bool).
fn select_rows<'py>(array: &Array, item: &Bound<'py, PyAny>) -> PyResult<Option<Selection<'py>>> {
    let py = item.py();
    let n_rows = array.n_rows();
    if let Ok(slice) = item.cast::<PySlice>() {
        let rows = slice_rows(slice, n_rows)?;
        return Ok(Some(Selection { rows, renumbered: vec![PySlice::full(py).into_any()], is_listed: true }));
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
        return Ok(Some(Selection { rows: Rows::Range(index..index + 1), renumbered, is_listed: false }));
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
            let is_listed = found.ndim() == 1;
            Ok(Some(Selection { rows: Rows::List(rows), renumbered, is_listed }))
        }
        b'i' | b'u' => {
            let rows = int64s(&found)?.into_iter().map(row).collect::<PyResult<Vec<_>>>()?;
            let shape = PyTuple::new(py, found.shape())?;
            let numbers = arange(py, rows.len())?.call_method1("reshape", (shape,))?;
            let is_listed = found.ndim() == 1;
            Ok(Some(Selection { rows: Rows::List(rows), renumbered: vec![numbers], is_listed }))
        }
        b'f' if is_empty_list => {
            let shape = PyTuple::new(py, found.shape())?;
            let numbers = arange(py, 0)?.call_method1("reshape", (shape,))?;
            Ok(Some(Selection { rows: Rows::Range(0..0), renumbered: vec![numbers], is_listed: false }))
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
