//! `LazyArray`: an array of a store that is read when, and as far as, somebody looks at it.
//!
//! Where the data is contiguous in its file it is a read-only NumPy array over a mapping, and every index form has
//! NumPy's result because NumPy computes it. An array that is compressed or has dropped rows has no such mapping: what
//! an index asks for is read ([`gather`](super::gather)).

use std::sync::Arc;

use numpy::npyffi::NPY_ORDER;
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

use super::array::{self, Mapped, Ndarray};
use super::error::OrRaise;
use super::{dtype, gather};
use crate::store::Array;

/// An array of a store that is not read until it is used.
///
/// `NumPack.load(name, lazy=True)` makes it. Indexing gives what it gives on a NumPy array, always as a copy; NumPy's
/// functions take it like an array (``np.sum(lazy)``, ``np.inner(row, lazy)``, ``matrix @ lazy``).
///
/// It keeps the length it had when it was made: rows appended later are not in it. Rows replaced in place do show. It
/// stays valid after the store is closed and after the array is overwritten or dropped.
///
/// Of a compressed array, indexing decodes the blocks that have the rows asked for, and a few recent blocks are kept
/// for the next index. ``np.asarray(lazy)``, NumPy's functions, ``T`` and `reshape` decode the whole array.
///
/// Attributes
/// ----------
/// shape : tuple of int
/// dtype : numpy.dtype
/// ndim, size, itemsize, nbytes : int
///     As of an ndarray; dropped rows do not count.
#[pyclass(frozen, weakref, module = "numpack")]
pub(super) struct LazyArray {
    name: Arc<str>,
    data: Data,
}

enum Data {
    /// An array over the mapping of the file, or in memory.
    View(Py<PyUntypedArray>),
    /// The rows of the file that are not dropped, or compressed.
    Rows(Array, Py<PyArrayDescr>),
}

impl LazyArray {
    pub(super) fn open(py: Python<'_>, array: Array) -> PyResult<Self> {
        let name = array.name().clone();
        let dtype = dtype::to_numpy(py, array.dtype())?;
        let view = if array.nbytes() == 0 {
            array::filled(dtype, array.shape(), array.fortran_order(), |_| Ok(()))?
        } else {
            match py.detach(|| array.map()).or_raise(py)? {
                Some(map) => array::mapped(dtype, array.shape(), array.fortran_order(), Mapped::Read(map))?,
                None => return Ok(Self { name, data: Data::Rows(array, dtype.unbind()) }),
            }
        };
        Ok(Self { name, data: Data::View(view.unbind()) })
    }

    fn of_view(&self, view: Ndarray<'_>) -> Self {
        Self { name: self.name.clone(), data: Data::View(view.unbind()) }
    }

    /// The whole as an array: a read-only view of the mapping where there is one, else read.
    pub(super) fn to_ndarray<'py>(&self, py: Python<'py>) -> PyResult<Ndarray<'py>> {
        match &self.data {
            Data::View(view) => Ok(view.bind(py).clone()),
            Data::Rows(array, dtype) => gather::all(array, dtype.bind(py)),
        }
    }

    fn dims(&self, py: Python<'_>) -> Vec<usize> {
        match &self.data {
            Data::View(view) => view.bind(py).shape().to_vec(),
            // Not empty, so no dimension is larger than the array, which has at most 2^63 - 1 bytes.
            Data::Rows(array, _) => array.shape().iter().map(|&dim| dim as usize).collect(),
        }
    }

    fn descr<'py>(&self, py: Python<'py>) -> Bound<'py, PyArrayDescr> {
        match &self.data {
            Data::View(view) => view.bind(py).dtype(),
            Data::Rows(_, dtype) => dtype.bind(py).clone(),
        }
    }
}

#[pymethods]
impl LazyArray {
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.dims(py))
    }

    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> Bound<'py, PyArrayDescr> {
        self.descr(py)
    }

    #[getter]
    fn ndim(&self, py: Python<'_>) -> usize {
        self.dims(py).len()
    }

    #[getter]
    fn size(&self, py: Python<'_>) -> usize {
        self.dims(py).iter().product()
    }

    #[getter]
    fn itemsize(&self, py: Python<'_>) -> usize {
        self.descr(py).itemsize()
    }

    #[getter]
    fn nbytes(&self, py: Python<'_>) -> usize {
        self.size(py) * self.itemsize(py)
    }

    /// The transposed array, over the same data; over a copy if the array is compressed or has dropped rows.
    #[getter(T)]
    fn transposed(&self, py: Python<'_>) -> PyResult<Self> {
        let view = self.to_ndarray(py)?.getattr("T")?.cast_into()?;
        Ok(self.of_view(view))
    }

    /// The same data in another shape.
    ///
    /// Parameters
    /// ----------
    /// *shape : int or tuple of int
    ///     One dimension may be -1: it follows from the others.
    ///
    /// Returns
    /// -------
    /// LazyArray
    ///     Copied only if no view has this shape: when the array is transposed, compressed or has dropped rows.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If the shape has another number of items.
    #[pyo3(signature = (*shape))]
    fn reshape(&self, py: Python<'_>, shape: &Bound<'_, PyTuple>) -> PyResult<Self> {
        let view = self.to_ndarray(py)?.call_method1("reshape", shape)?.cast_into()?;
        Ok(self.of_view(view))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        match self.dims(py).first() {
            Some(&len) => Ok(len),
            None => Err(PyTypeError::new_err("len() of unsized object")),
        }
    }

    /// True, also without rows, as it always was.
    fn __bool__(&self) -> bool {
        true
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        match &self.data {
            Data::View(view) => array::copy_views(view.bind(index.py()).get_item(index)?, array::is_mapped),
            Data::Rows(array, dtype) => gather::select(array, dtype.bind(index.py()), index),
        }
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let Some(&len) = slf.get().dims(py).first() else {
            return Err(PyTypeError::new_err("iteration over a 0-d array"));
        };
        static RANGE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        static MAP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let rows = RANGE.import(py, "builtins", "range")?.call1((len,))?;
        MAP.import(py, "builtins", "map")?.call1((slf.getattr("__getitem__")?, rows))
    }

    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<&Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let wanted = match dtype {
            Some(dtype) => Some(PyArrayDescr::new(py, dtype)?),
            None => None,
        };
        let same_dtype = wanted.as_ref().is_none_or(|wanted| wanted.is_equiv_to(&self.descr(py)));
        let is_view = matches!(self.data, Data::View(_));
        if copy == Some(false) && !(is_view && same_dtype) {
            let why = match &self.data {
                _ if !same_dtype => "has another dtype",
                Data::Rows(array, _) if array.codec().is_some() => "is compressed",
                _ => "has dropped rows",
            };
            return Err(PyValueError::new_err(format!(
                "array '{}' cannot be had without a copy: it {why}",
                self.name
            )));
        }
        let array = self.to_ndarray(py)?;
        match wanted {
            Some(wanted) if !same_dtype => array.call_method1("astype", (wanted,)),
            _ if copy == Some(true) && is_view => {
                Ok(array::copy(&array, NPY_ORDER::NPY_KEEPORDER)?.into_any())
            }
            _ => Ok(array.into_any()),
        }
    }

    fn __matmul__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        matmul(other.py())?.call1((self.to_ndarray(other.py())?, other))
    }

    fn __rmatmul__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        matmul(other.py())?.call1((other, self.to_ndarray(other.py())?))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = PyString::new(py, &self.name).repr()?;
        Ok(format!("LazyArray({name}, shape={}, dtype={})", self.shape(py)?.repr()?, self.descr(py)))
    }
}

fn matmul(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static MATMUL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    MATMUL.import(py, "numpy", "matmul")
}
