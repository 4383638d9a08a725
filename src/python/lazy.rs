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
use pyo3::pyclass::CompareOp;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PySlice, PyString, PyTuple};

use super::array::{self, Mapped, Ndarray};
use super::error::{Exception, OrRaise};
use super::held::Held;
use super::{attrs, dtype, gather};
use crate::store::{Array, Attrs, StoreError};

/// An array of a store that is not read until it is used.
///
/// `NumPack.load(name, lazy=True)` makes it. Indexing gives what it gives on a NumPy array, always as a copy; NumPy's
/// functions and operators take it like an array (``np.sum(lazy)``, ``np.inner(row, lazy)``, ``matrix @ lazy``,
/// ``lazy * 2 > other``) and give what they give for one. ``lazy += x`` makes the name one of an ndarray: what is
/// stored stays as it is.
///
/// It keeps the length it had when it was made: rows appended later are not in it. Rows replaced in place do show. It
/// stays valid after the store is closed and after the array is overwritten or dropped.
///
/// Of a compressed array, indexing decodes the blocks that have the rows asked for, and a few recent blocks are kept
/// for the next index. NumPy's element-wise functions, products (`numpy.inner`, `numpy.dot`, ``@``) and reductions
/// (`numpy.sum`, `numpy.mean`, `numpy.max` and the like) read some rows at a time, 16 MiB of them, as they do of an array
/// with dropped rows. ``np.asarray(lazy)``, other functions, other operators, ``T`` and `reshape` read the whole array.
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
    attrs: Arc<Attrs>,
    data: Data,
}

enum Data {
    /// An array over the mapping of the file, or in memory.
    View(Py<PyUntypedArray>),
    /// The rows of the file that are not dropped, or compressed.
    Rows(Held, Py<PyArrayDescr>),
}

impl LazyArray {
    pub(super) fn open(py: Python<'_>, array: Array) -> PyResult<Self> {
        let (name, attrs) = (Arc::clone(array.name()), Arc::clone(array.shared_attrs()));
        let dtype = dtype::to_numpy(py, array.dtype())?;
        let view = if array.nbytes() == 0 {
            let empty = array::filled(dtype, array.shape(), array.fortran_order(), |_| Ok(()))?;
            // As one that is mapped.
            empty.call_method1("setflags", (false,))?;
            empty
        } else {
            match py.detach(|| array.map()).or_raise(py)? {
                Some(map) => array::mapped(dtype, array.shape(), array.fortran_order(), Mapped::Read(map))?,
                None => return Ok(Self { name, attrs, data: Data::Rows(Held::new(array), dtype.unbind()) }),
            }
        };
        Ok(Self { name, attrs, data: Data::View(view.unbind()) })
    }

    fn of_view(&self, view: Ndarray<'_>) -> Self {
        let (name, attrs) = (Arc::clone(&self.name), Arc::clone(&self.attrs));
        Self { name, attrs, data: Data::View(view.unbind()) }
    }

    /// A mask with one bool for each row.
    fn row_mask<'py>(&self, mask: &Bound<'py, PyAny>) -> PyResult<Ndarray<'py>> {
        let py = mask.py();
        let found: Ndarray<'py> = array::as_array(py)?.call1((mask,))?.cast_into()?;
        // An empty list has no bool to tell its dtype by.
        let is_bool = found.dtype().kind() == b'b' || found.is_empty();
        if !is_bool {
            let message = format!("mask has dtype {}, expected bool", found.dtype());
            return Err(PyTypeError::new_err(message));
        }
        let Some(&n_rows) = self.dims(py).first() else {
            return Err(StoreError::NoRows { array: self.name.to_string() }).or_raise(py);
        };
        if found.shape() != [n_rows] {
            return Err(Exception::RowIndex.err(format!(
                "boolean mask has shape {}, array '{}' has {n_rows} rows; there must be one bool for each",
                found.getattr("shape")?,
                self.name
            )));
        }
        Ok(found.call_method1("astype", ("?",))?.cast_into()?)
    }

    fn way(&self) -> &'static str {
        match &self.data {
            Data::View(_) => "mapped",
            Data::Rows(array, _) if array.array().codec().is_some() => "decoded",
            Data::Rows(..) => "gathered",
        }
    }

    /// The whole as an array: a read-only view of the mapping where there is one, else read.
    pub(super) fn to_ndarray<'py>(&self, py: Python<'py>) -> PyResult<Ndarray<'py>> {
        match &self.data {
            Data::View(view) => Ok(view.bind(py).clone()),
            Data::Rows(array, dtype) => gather::all(&array.readable(py)?, dtype.bind(py)),
        }
    }

    fn dims(&self, py: Python<'_>) -> Vec<usize> {
        match &self.data {
            Data::View(view) => view.bind(py).shape().to_vec(),
            // Not empty, so no dimension is larger than the array, which has at most 2^63 - 1 bytes.
            Data::Rows(array, _) => array.array().shape().iter().map(|&dim| dim as usize).collect(),
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
    /// The shape, a tuple of int; dropped rows do not count.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.dims(py))
    }

    /// The numpy.dtype of the items.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> Bound<'py, PyArrayDescr> {
        self.descr(py)
    }

    /// The number of dimensions.
    #[getter]
    fn ndim(&self, py: Python<'_>) -> usize {
        self.dims(py).len()
    }

    /// The number of items.
    #[getter]
    fn size(&self, py: Python<'_>) -> usize {
        self.dims(py).iter().product()
    }

    /// Bytes of one item.
    #[getter]
    fn itemsize(&self, py: Python<'_>) -> usize {
        self.descr(py).itemsize()
    }

    /// Bytes of all items.
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
            Data::Rows(array, dtype) => {
                gather::select(&array.readable(index.py())?, dtype.bind(index.py()), index)
            }
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
                Data::Rows(array, _) if array.array().codec().is_some() => "is compressed",
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

    fn __add__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.add(operand(other)?)
    }

    fn __radd__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.add(self.to_ndarray(other.py())?)
    }

    fn __sub__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.sub(operand(other)?)
    }

    fn __rsub__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.sub(self.to_ndarray(other.py())?)
    }

    fn __mul__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.mul(operand(other)?)
    }

    fn __rmul__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.mul(self.to_ndarray(other.py())?)
    }

    fn __truediv__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.div(operand(other)?)
    }

    fn __rtruediv__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.div(self.to_ndarray(other.py())?)
    }

    fn __floordiv__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.floor_div(operand(other)?)
    }

    fn __rfloordiv__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.floor_div(self.to_ndarray(other.py())?)
    }

    fn __mod__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.rem(operand(other)?)
    }

    fn __rmod__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.rem(self.to_ndarray(other.py())?)
    }

    fn __divmod__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.divmod(operand(other)?)
    }

    fn __rdivmod__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.divmod(self.to_ndarray(other.py())?)
    }

    fn __matmul__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        matmul(slf.as_any(), other)
    }

    fn __rmatmul__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        matmul(other, slf.as_any())
    }

    #[pyo3(signature = (ufunc, method, *inputs, **kwargs))]
    fn __array_ufunc__<'py>(
        slf: &Bound<'py, Self>,
        ufunc: &Bound<'py, PyAny>,
        method: &Bound<'py, PyAny>,
        inputs: &Bound<'py, PyTuple>,
        kwargs: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static CALL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        let kwargs = kwargs.unwrap_or_else(|| PyDict::new(py));
        CALL.import(py, "numpack._by_rows", "call_ufunc")?.call1((slf, ufunc, method, inputs, kwargs))
    }

    fn __array_function__<'py>(
        slf: &Bound<'py, Self>,
        func: &Bound<'py, PyAny>,
        types: &Bound<'py, PyAny>,
        args: &Bound<'py, PyAny>,
        kwargs: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static CALL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let _ = types;
        CALL.import(slf.py(), "numpack._by_rows", "call_function")?.call1((slf, func, args, kwargs))
    }

    /// Whether it is read, not mapped, and some rows can be read without the others.
    #[getter]
    fn _is_read_by_rows(&self) -> bool {
        match &self.data {
            Data::View(_) => false,
            Data::Rows(array, _) => !array.array().shape().is_empty() && !array.array().fortran_order(),
        }
    }

    fn __pow__<'py>(
        &self,
        other: &Bound<'py, PyAny>,
        modulo: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.pow(operand(other)?, modulo)
    }

    fn __rpow__<'py>(
        &self,
        other: &Bound<'py, PyAny>,
        modulo: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        operand(other)?.pow(self.to_ndarray(other.py())?, modulo)
    }

    fn __neg__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(py)?.neg()
    }

    fn __pos__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(py)?.pos()
    }

    fn __abs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(py)?.abs()
    }

    fn __invert__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        bitwise(py, self.to_ndarray(py)?.bitnot())
    }

    fn __and__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, self.to_ndarray(py)?.bitand(operand(other)?))
    }

    fn __rand__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, operand(other)?.bitand(self.to_ndarray(py)?))
    }

    fn __or__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, self.to_ndarray(py)?.bitor(operand(other)?))
    }

    fn __ror__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, operand(other)?.bitor(self.to_ndarray(py)?))
    }

    fn __xor__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, self.to_ndarray(py)?.bitxor(operand(other)?))
    }

    fn __rxor__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, operand(other)?.bitxor(self.to_ndarray(py)?))
    }

    fn __lshift__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, self.to_ndarray(py)?.lshift(operand(other)?))
    }

    fn __rlshift__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, operand(other)?.lshift(self.to_ndarray(py)?))
    }

    fn __rshift__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, self.to_ndarray(py)?.rshift(operand(other)?))
    }

    fn __rrshift__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        bitwise(py, operand(other)?.rshift(self.to_ndarray(py)?))
    }

    fn __richcmp__<'py>(&self, other: &Bound<'py, PyAny>, op: CompareOp) -> PyResult<Bound<'py, PyAny>> {
        self.to_ndarray(other.py())?.rich_compare(operand(other)?, op)
    }

    /// Whether any item is equal to `value`, as for an ndarray.
    fn __contains__(&self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.to_ndarray(value.py())?.contains(operand(value)?)
    }

    /// A new ndarray with these items.
    fn to_numpy<'py>(&self, py: Python<'py>) -> PyResult<Ndarray<'py>> {
        match &self.data {
            Data::View(view) => array::copy(view.bind(py), NPY_ORDER::NPY_KEEPORDER),
            Data::Rows(array, dtype) => gather::all(&array.readable(py)?, dtype.bind(py)),
        }
    }

    /// As `to_numpy`.
    fn copy<'py>(&self, py: Python<'py>) -> PyResult<Ndarray<'py>> {
        self.to_numpy(py)
    }

    fn __copy__<'py>(&self, py: Python<'py>) -> PyResult<Ndarray<'py>> {
        self.to_numpy(py)
    }

    fn __deepcopy__<'py>(&self, py: Python<'py>, _memo: &Bound<'py, PyAny>) -> PyResult<Ndarray<'py>> {
        self.to_numpy(py)
    }

    /// The user's attributes of the array, as they were when this was made: a new dict.
    #[getter]
    fn attrs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        attrs::to_dict(py, &self.attrs)
    }

    /// Nothing has to be closed: the file is released with the last array over it.
    fn close(&self) {}

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) -> bool {
        false
    }

    /// The rows of these numbers, in this order: as indexing gives them.
    ///
    /// Raises
    /// ------
    /// IndexError
    ///     If a row is out of bounds.
    fn vectorized_gather<'py>(&self, indices: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.__getitem__(&listed(indices)?)
    }

    /// The rows of these numbers, each as an array of its own; they are read `batch_size` at a time.
    ///
    /// Raises
    /// ------
    /// IndexError
    ///     If a row is out of bounds.
    /// ValueError
    ///     If `batch_size` is not positive.
    fn mega_batch_get_rows<'py>(
        &self,
        indices: &Bound<'py, PyAny>,
        batch_size: isize,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = indices.py();
        if batch_size < 1 {
            let message = format!("batch_size is {batch_size}, expected a positive number of rows");
            return Err(PyValueError::new_err(message));
        }
        let indices = array::as_array(py)?.call1((listed(indices)?,))?;
        let n_rows = isize::try_from(indices.len()?)?;
        let rows = PyList::empty(py);
        let mut done = 0;
        while done < n_rows {
            let end = n_rows.min(done.saturating_add(batch_size));
            let batch = self.__getitem__(&indices.get_item(PySlice::new(py, done, end, 1))?)?;
            for row in batch.try_iter()? {
                rows.append(row?)?;
            }
            done = end;
        }
        Ok(rows)
    }

    /// The rows where `mask` is true, as indexing gives them. This and the four that do the same are from older
    /// releases.
    ///
    /// Raises
    /// ------
    /// RowIndexError
    ///     If the mask has not one item for each row.
    /// TypeError
    ///     If its items are no bools.
    fn parallel_boolean_index<'py>(&self, mask: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.__getitem__(self.row_mask(mask)?.as_any())
    }

    /// As `parallel_boolean_index`.
    fn boolean_index_production<'py>(&self, mask: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.parallel_boolean_index(mask)
    }

    /// As `parallel_boolean_index`.
    fn boolean_index_adaptive_algorithm<'py>(&self, mask: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.parallel_boolean_index(mask)
    }

    /// As `parallel_boolean_index`.
    fn boolean_index_smart<'py>(&self, mask: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.parallel_boolean_index(mask)
    }

    /// As `parallel_boolean_index`.
    fn boolean_index_adaptive<'py>(&self, mask: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.parallel_boolean_index(mask)
    }

    /// How the rows where `mask` is true are read: 'mapped', 'gathered' (around dropped rows) or 'decoded'.
    fn choose_optimal_algorithm(&self, mask: &Bound<'_, PyAny>) -> PyResult<&'static str> {
        self.row_mask(mask)?;
        Ok(self.way())
    }

    /// Does nothing but check `hint`, for programs written for older releases: the kernel reads ahead by itself.
    ///
    /// Parameters
    /// ----------
    /// hint : {'sequential', 'random', 'boolean', 'heavy'}
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     For another hint.
    fn intelligent_warmup(&self, hint: &str) -> PyResult<()> {
        match hint {
            "sequential" | "random" | "boolean" | "heavy" => Ok(()),
            _ => Err(PyValueError::new_err(format!(
                "hint is '{hint}', expected 'sequential', 'random', 'boolean' or 'heavy'"
            ))),
        }
    }

    /// Some numbers about the array: its rows, its bytes, and those of an item.
    ///
    /// Returns
    /// -------
    /// list of (str, int)
    fn get_performance_stats(&self, py: Python<'_>) -> Vec<(&'static str, usize)> {
        let n_rows = self.dims(py).first().copied().unwrap_or(1);
        vec![("rows", n_rows), ("nbytes", self.nbytes(py)), ("itemsize", self.itemsize(py))]
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = PyString::new(py, &self.name).repr()?;
        Ok(format!("LazyArray({name}, shape={}, dtype={})", self.shape(py)?.repr()?, self.descr(py)))
    }
}

/// The other operand of an operator, as NumPy takes it.
fn operand<'py>(other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    match other.cast::<LazyArray>() {
        Ok(lazy) => Ok(lazy.get().to_ndarray(other.py())?.into_any()),
        Err(_) => Ok(other.clone()),
    }
}

/// NumPy's product of matrices, which asks a lazy array how to make it.
fn matmul<'py>(left: &Bound<'py, PyAny>, right: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static MATMUL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    MATMUL.import(left.py(), "numpy", "matmul")?.call1((left, right))
}

/// The result of a bitwise operator. NumPy's message about numbers that have no bits names none of the two arrays.
fn bitwise<'py>(py: Python<'py>, result: PyResult<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
    result.map_err(|error| {
        if !error.is_instance_of::<PyTypeError>(py) {
            return error;
        }
        let named = PyTypeError::new_err("Bitwise operations are only supported for integer arrays");
        named.set_cause(py, Some(error));
        named
    })
}

/// Row numbers as one index: a tuple would be one index for each axis.
fn listed<'py>(indices: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    match indices.cast::<PyTuple>() {
        Ok(tuple) => Ok(tuple.to_list().into_any()),
        Err(_) => Ok(indices.clone()),
    }
}
