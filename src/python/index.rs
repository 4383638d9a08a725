//! Which rows a caller means: integers, sequences and arrays of them, slices, boolean masks.
//!
//! Parsing comes first and needs no array; resolving against the number of rows comes second, so that one index can
//! serve several arrays. A boolean array or list is always a mask, never the rows 0 and 1.

use std::ops::Range;

use numpy::{
    PyArray1, PyArrayDescr, PyArrayDescrMethods, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods, dtype,
};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyList, PySlice, PyTuple};

use super::array::{Ndarray, as_array};
use super::error::Exception;

/// An index along axis 0 as it was written.
pub(super) enum RowIndex<'py> {
    One(i64),
    Slice(Bound<'py, PySlice>),
    Many(Vec<i64>),
    /// The rows where the mask is true, and the length of the mask.
    Mask(Vec<u64>, u64),
}

/// The rows of one array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rows {
    Range(Range<u64>),
    List(Vec<u64>),
}

impl Rows {
    pub(super) fn len(&self) -> u64 {
        match self {
            Rows::Range(rows) => rows.end.saturating_sub(rows.start),
            Rows::List(rows) => rows.len() as u64,
        }
    }

    /// The rows at the places `part`.
    pub(super) fn part(&self, part: Range<u64>) -> Self {
        match self {
            Rows::Range(rows) => Rows::Range(rows.start + part.start..rows.start + part.end),
            Rows::List(rows) => Rows::List(rows[part.start as usize..part.end as usize].to_vec()),
        }
    }

    pub(super) fn into_list(self) -> Vec<u64> {
        match self {
            Rows::Range(rows) => rows.collect(),
            Rows::List(rows) => rows,
        }
    }

    /// Consecutive rows as a range: one read or write instead of many.
    fn from_list(rows: Vec<u64>) -> Self {
        match (rows.first(), rows.last()) {
            (Some(&first), Some(&last))
                if last.checked_sub(first) == Some(rows.len() as u64 - 1)
                    && rows.windows(2).all(|pair| pair[0] + 1 == pair[1]) =>
            {
                Rows::Range(first..last + 1)
            }
            _ => Rows::List(rows),
        }
    }
}

impl<'py> RowIndex<'py> {
    /// # Errors
    /// `RowIndexError` for anything that is not a row index.
    pub(super) fn parse(index: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(slice) = index.cast::<PySlice>() {
            return Ok(RowIndex::Slice(slice.clone()));
        }
        if let Ok(array) = index.cast::<PyUntypedArray>() {
            return Self::from_array(array, index);
        }
        if let Ok(list) = index.cast::<PyList>() {
            if let Some(rows) = plain_ints(list.iter()) {
                return Ok(RowIndex::Many(rows));
            }
        } else if let Ok(tuple) = index.cast::<PyTuple>() {
            if let Some(rows) = plain_ints(tuple.iter()) {
                return Ok(RowIndex::Many(rows));
            }
        } else if index.is_instance_of::<PyBool>() {
            return Err(unsuitable(index));
        } else if let Some(row) = integer(index)? {
            return Ok(RowIndex::One(row));
        }
        // Lists of NumPy's integers, nested lists, ranges, array-likes: NumPy knows what they are.
        let array = as_array(index.py())?.call1((index,)).map_err(|_| unsuitable(index))?;
        Self::from_array(array.cast()?, index)
    }

    fn from_array(array: &Ndarray<'py>, index: &Bound<'py, PyAny>) -> PyResult<Self> {
        let kind = array.dtype().kind();
        if array.ndim() == 0 && matches!(kind, b'i' | b'u') {
            return integer(array.as_any())?.map(RowIndex::One).ok_or_else(|| unsuitable(index));
        }
        if array.ndim() != 1 {
            return Err(unsuitable(index));
        }
        match kind {
            b'b' => {
                let rows = nonzero(array)?.swap_remove(0);
                let rows = rows.iter().map(|&row| row as u64).collect();
                Ok(RowIndex::Mask(rows, array.len() as u64))
            }
            b'i' | b'u' => Ok(RowIndex::Many(int64s(array)?)),
            _ if array.is_empty() && !index.is_instance_of::<PyUntypedArray>() => {
                Ok(RowIndex::Many(Vec::new()))
            }
            _ => Err(unsuitable(index)),
        }
    }

    /// The rows of an array of `n_rows` rows. Negative numbers count from the end, slices are clipped.
    ///
    /// # Errors
    /// `RowIndexError` for a row that is not there, or a mask of another length.
    pub(super) fn resolve(&self, name: &str, n_rows: u64) -> PyResult<Rows> {
        self.check_mask(name, n_rows)?;
        let row = |row: i64| {
            wrapped(row, n_rows).ok_or_else(|| {
                Exception::RowIndex
                    .err(format!("row {row} is out of bounds for array '{name}' with {n_rows} rows"))
            })
        };
        Ok(match self {
            RowIndex::One(index) => {
                let index = row(*index)?;
                Rows::Range(index..index + 1)
            }
            RowIndex::Many(indexes) => {
                Rows::from_list(indexes.iter().map(|&index| row(index)).collect::<Result<_, _>>()?)
            }
            RowIndex::Mask(rows, _) => Rows::from_list(rows.clone()),
            RowIndex::Slice(slice) => slice_rows(slice, n_rows)?,
        })
    }

    /// As [`resolve`](Self::resolve), but rows that are not there are left out.
    pub(super) fn resolve_existing(&self, name: &str, n_rows: u64) -> PyResult<Vec<u64>> {
        Ok(match self {
            RowIndex::One(index) => wrapped(*index, n_rows).into_iter().collect(),
            RowIndex::Many(indexes) => indexes.iter().filter_map(|&index| wrapped(index, n_rows)).collect(),
            RowIndex::Mask(..) | RowIndex::Slice(_) => self.resolve(name, n_rows)?.into_list(),
        })
    }

    fn check_mask(&self, name: &str, n_rows: u64) -> PyResult<()> {
        match self {
            RowIndex::Mask(_, len) if *len != n_rows => Err(Exception::RowIndex.err(format!(
                "boolean mask has {len} items, array '{name}' has {n_rows} rows; they must be equally many"
            ))),
            _ => Ok(()),
        }
    }
}

/// The rows that `slice` selects out of `n_rows`, in its order.
pub(super) fn slice_rows(slice: &Bound<'_, PySlice>, n_rows: u64) -> PyResult<Rows> {
    let slice = slice.indices(isize::try_from(n_rows)?)?;
    let (start, len) = (slice.start as u64, slice.slicelength as u64);
    if slice.step == 1 || len == 0 {
        // An empty slice may start anywhere.
        return Ok(if len == 0 { Rows::Range(0..0) } else { Rows::Range(start..start + len) });
    }
    Ok(Rows::List(
        (0..slice.slicelength as isize).map(|nth| (slice.start + nth * slice.step) as u64).collect(),
    ))
}

/// The row that `row` means, counted from the start.
pub(super) fn wrapped(row: i64, n_rows: u64) -> Option<u64> {
    let row = if row < 0 { n_rows.checked_sub(row.unsigned_abs())? } else { row.unsigned_abs() };
    (row < n_rows).then_some(row)
}

/// The integer that an object is, if it is one. Numbers beyond 64 bits become the largest: no array has such a row.
pub(super) fn integer(object: &Bound<'_, PyAny>) -> PyResult<Option<i64>> {
    match object.extract::<i64>() {
        Ok(row) => Ok(Some(row)),
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
            Ok(Some(if object.lt(0)? { i64::MIN } else { i64::MAX }))
        }
        Err(_) => Ok(None),
    }
}

/// The items, if they are all Python ints (and none of them a bool).
fn plain_ints<'py>(items: impl ExactSizeIterator<Item = Bound<'py, PyAny>>) -> Option<Vec<i64>> {
    let mut rows = Vec::with_capacity(items.len());
    for item in items {
        if !item.is_exact_instance_of::<PyInt>() {
            return None;
        }
        rows.push(integer(&item).ok()??);
    }
    Some(rows)
}

/// The items of an integer array in C order, as they are meant: an unsigned one that is too large stays too large.
pub(super) fn int64s(array: &Ndarray<'_>) -> PyResult<Vec<i64>> {
    let py = array.py();
    let of_int64 = |array: &Bound<'_, PyAny>| -> PyResult<Vec<i64>> {
        Ok(array.cast::<PyArray1<i64>>()?.try_readonly()?.as_array().iter().copied().collect())
    };
    let from = array.dtype();
    let flat = if array.ndim() == 1 { array.as_any().clone() } else { array.call_method0("ravel")? };
    if from.is_equiv_to(&dtype::<i64>(py)) {
        return of_int64(&flat);
    }
    let mut items = of_int64(&flat.call_method1("astype", (PyArrayDescr::of::<i64>(py),))?)?;
    if from.kind() == b'u' {
        items.iter_mut().filter(|item| **item < 0).for_each(|item| *item = i64::MAX);
    }
    Ok(items)
}

/// Where a boolean array is true: one index array per axis.
pub(super) fn nonzero(mask: &Ndarray<'_>) -> PyResult<Vec<Vec<i64>>> {
    let axes = mask.call_method0("nonzero")?.cast_into::<PyTuple>()?;
    axes.iter().map(|axis| int64s(axis.cast()?)).collect()
}

fn unsuitable(index: &Bound<'_, PyAny>) -> PyErr {
    let what = index.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string());
    let shown = index.repr().map_or_else(|_| what.clone(), |text| text.to_string());
    let shown = if shown.chars().count() > 60 { what } else { shown };
    Exception::RowIndex.err(format!(
        "{shown} does not index rows; use an integer, a list or 1-D array of integers, a slice, or a boolean mask"
    ))
}
