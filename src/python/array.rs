//! NumPy arrays as bytes: the bytes of an array that shall be stored, new arrays filled by the store, and arrays
//! over a mapping of a data file.

use std::ptr;
use std::slice;
use std::sync::Arc;

use numpy::npyffi::{
    _PyArray_GET_ITEM_DATA, NPY_ARRAY_ALIGNED, NPY_ARRAY_F_CONTIGUOUS, NPY_ARRAY_WRITEABLE, NPY_ORDER,
    NpyTypes, PY_ARRAY_API, get_type_object,
};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use super::dtype;
use super::error::OrRaise;
use super::lazy::LazyArray;
use crate::store::{ArrayMap, Dtype, MapMut, NewArray, StoreError};

pub(super) type Ndarray<'py> = Bound<'py, PyUntypedArray>;

/// An array of contiguous items, ready to be written.
pub(super) struct Contiguous<'py> {
    array: Ndarray<'py>,
    dtype: Dtype,
    fortran_order: bool,
}

impl<'py> Contiguous<'py> {
    /// As `numpy.save` does it: in the order that `array` has in memory, in C order if it has none.
    pub(super) fn any_order(name: &str, array: Ndarray<'py>) -> PyResult<Self> {
        if !array.is_c_contiguous() && array.is_fortran_contiguous() {
            let dtype = dtype::from_numpy(name, &array.dtype())?;
            return Ok(Self { array, dtype, fortran_order: true });
        }
        Self::c_order(name, array)
    }

    /// In C order, copied if `array` is in another.
    pub(super) fn c_order(name: &str, array: Ndarray<'py>) -> PyResult<Self> {
        let array = if array.is_c_contiguous() { array } else { copy(&array, NPY_ORDER::NPY_CORDER)? };
        let dtype = dtype::from_numpy(name, &array.dtype())?;
        Ok(Self { array, dtype, fortran_order: false })
    }

    /// A copy that shares no memory with a mapping of a store.
    pub(super) fn unshared(mut self) -> PyResult<Self> {
        if is_mapped(&self.array) {
            self.array = copy(&self.array, NPY_ORDER::NPY_KEEPORDER)?;
        }
        Ok(self)
    }

    pub(super) fn array(&self) -> &Ndarray<'py> {
        &self.array
    }

    pub(super) fn dtype(&self) -> &Dtype {
        &self.dtype
    }

    pub(super) fn as_new_array(&self) -> NewArray<'_> {
        NewArray {
            dtype: self.dtype.clone(),
            shape: self.array.shape().iter().map(|&dim| dim as u64).collect(),
            fortran_order: self.fortran_order,
            data: bytes(&self.array),
        }
    }
}

/// The bytes of a contiguous array.
#[expect(unsafe_code, reason = "NumPy's buffer")]
fn bytes<'a>(array: &'a Ndarray<'_>) -> &'a [u8] {
    debug_assert!(array.is_contiguous());
    let len = nbytes(array);
    if len == 0 {
        return &[];
    }
    // SAFETY: a contiguous array has `len` initialised bytes at `data`, and NumPy does not move or free them while
    // somebody holds a reference to the array, which `'a` outlives not. A thread that changes items meanwhile races
    // with this read as it would with any function of NumPy's; the bytes are only copied, so it can spoil no more
    // than their values.
    unsafe {
        let data = (*_PyArray_GET_ITEM_DATA(array.as_array_ptr())).data;
        slice::from_raw_parts(data.cast::<u8>(), len)
    }
}

fn nbytes(array: &Ndarray<'_>) -> usize {
    array.len() * array.dtype().itemsize()
}

/// The array that a caller passed as `out`, to be filled with an array of this dtype and shape in C order.
///
/// # Errors
/// `TypeError` if it is no ndarray or has another dtype; `ValueError` if it has another shape, is not contiguous, or
/// must not be written to.
pub(super) fn check_out<'py>(
    out: &Bound<'py, PyAny>,
    dtype: &Bound<'py, PyArrayDescr>,
    shape: &[u64],
) -> PyResult<Ndarray<'py>> {
    let py = out.py();
    let Ok(array) = out.cast::<PyUntypedArray>() else {
        let found = out.get_type().name()?;
        return Err(PyTypeError::new_err(format!("out is of type {found}, expected an ndarray")));
    };
    let found = array.dtype();
    if !found.is_equiv_to(dtype) {
        return Err(PyTypeError::new_err(format!("out has dtype {found}, expected {dtype}")));
    }
    if !array.shape().iter().map(|&dim| dim as u64).eq(shape.iter().copied()) {
        let (found, expected) = (array.getattr("shape")?, PyTuple::new(py, shape)?);
        return Err(PyValueError::new_err(format!("out has shape {found}, expected {expected}")));
    }
    if !array.is_c_contiguous() {
        return Err(PyValueError::new_err("out is not C-contiguous; pass one that numpy.empty makes"));
    }
    if !is_writeable(array) {
        return Err(PyValueError::new_err("out is read-only"));
    }
    Ok(array.clone())
}

#[expect(unsafe_code, reason = "NumPy's flags")]
fn is_writeable(array: &Ndarray<'_>) -> bool {
    // SAFETY: the reference keeps the array alive while its flags are read.
    unsafe { (*_PyArray_GET_ITEM_DATA(array.as_array_ptr())).flags & NPY_ARRAY_WRITEABLE != 0 }
}

/// Fills an array that [`check_out`] let pass: `fill` writes all its bytes, without the GIL.
#[expect(unsafe_code, reason = "NumPy's buffer")]
pub(super) fn fill_out<'py>(
    out: Ndarray<'py>,
    fill: impl FnOnce(&mut [u8]) -> Result<(), StoreError> + Send,
) -> PyResult<Ndarray<'py>> {
    let len = nbytes(&out);
    if len > 0 {
        // SAFETY: the array is contiguous and writable, and has `len` bytes at `data` for as long as it is referred to.
        // Threads that use its items meanwhile race with this as they would with any function of NumPy's that fills an
        // array: the bytes are only copied to.
        let bytes = unsafe {
            let data = (*_PyArray_GET_ITEM_DATA(out.as_array_ptr())).data;
            slice::from_raw_parts_mut(data.cast::<u8>(), len)
        };
        out.py().detach(|| fill(bytes)).or_raise(out.py())?;
    }
    Ok(out)
}

/// A new array, which owns its memory; `fill` writes all its bytes, without the GIL.
#[expect(unsafe_code, reason = "NumPy's buffer")]
pub(super) fn filled<'py>(
    dtype: Bound<'py, PyArrayDescr>,
    shape: &[u64],
    fortran_order: bool,
    fill: impl FnOnce(&mut [u8]) -> Result<(), StoreError> + Send,
) -> PyResult<Ndarray<'py>> {
    let py = dtype.py();
    if dtype.itemsize() == 0 {
        // Its C API gives strings of no width one byte each.
        let order = if fortran_order { "F" } else { "C" };
        let arguments = (PyTuple::new(py, shape)?, dtype, py.None(), 0, py.None(), order);
        return Ok(py.get_type::<PyUntypedArray>().call1(arguments)?.cast_into()?);
    }
    let array = new(dtype, shape, fortran_order, None)?;
    let len = nbytes(&array);
    if len > 0 {
        // SAFETY: NumPy has just allocated `len` bytes there, contiguous, and nobody else knows of the array yet.
        // Their values are arbitrary until `fill` has written them; `fill` gets no other way out than an error,
        // after which the array is dropped unseen.
        let out = unsafe {
            let data = (*_PyArray_GET_ITEM_DATA(array.as_array_ptr())).data;
            slice::from_raw_parts_mut(data.cast::<u8>(), len)
        };
        py.detach(|| fill(out)).or_raise(py)?;
    }
    Ok(array)
}

/// Holds a mapping for the arrays that lie in it: their `base`.
#[pyclass(frozen, module = "numpack._native")]
pub(super) struct Mapping(Mapped);

/// What is mapped.
pub(super) enum Mapped {
    /// To be read.
    Read(ArrayMap),
    /// To be written to as well.
    Write(Arc<MapMut>),
}

impl Mapped {
    fn len(&self) -> usize {
        match self {
            Mapped::Read(map) => map.len(),
            Mapped::Write(map) => map.len(),
        }
    }

    /// Where the bytes are, and whether they may be written.
    fn bytes(&self) -> (*mut u8, bool) {
        match self {
            Mapped::Read(map) => (map.as_ptr().cast_mut(), false),
            Mapped::Write(map) => (map.as_mut_ptr(), true),
        }
    }
}

#[pymethods]
impl Mapping {
    fn __repr__(&self) -> String {
        format!("<mapping of {} bytes of a store>", self.0.len())
    }
}

/// An array over `map`, read-only if that is. The mapping stays valid as long as the array lives.
#[expect(unsafe_code, reason = "NumPy's buffer")]
pub(super) fn mapped<'py>(
    dtype: Bound<'py, PyArrayDescr>,
    shape: &[u64],
    fortran_order: bool,
    map: Mapped,
) -> PyResult<Ndarray<'py>> {
    let py = dtype.py();
    let itemsize = dtype.itemsize() as u64;
    let needed = shape.iter().try_fold(itemsize, |len, &dim| len.checked_mul(dim));
    if needed != Some(map.len() as u64) {
        return Err(PyValueError::new_err(format!(
            "mapping has {} bytes, shape {shape:?} of {itemsize}-byte items needs {needed:?}",
            map.len()
        )));
    }
    let array = new(dtype, shape, fortran_order, Some(map.bytes()))?;
    let mapping = Bound::new(py, Mapping(map))?;
    // SAFETY: `array` is new and has no base; the call takes over the reference to `mapping`, which keeps the mapped
    // bytes in place until NumPy drops the array and every view of it.
    let status = unsafe {
        // Imported files have headers of any length, and elements that need not be aligned.
        PY_ARRAY_API.PyArray_UpdateFlags(py, array.as_array_ptr(), NPY_ARRAY_ALIGNED);
        PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_array_ptr(), mapping.into_ptr())
    };
    if status < 0 { Err(PyErr::fetch(py)) } else { Ok(array) }
}

/// A new contiguous array; over `data`, if there is any, which may be written if it says so.
#[expect(unsafe_code, reason = "NumPy's C API")]
fn new<'py>(
    dtype: Bound<'py, PyArrayDescr>,
    shape: &[u64],
    fortran_order: bool,
    data: Option<(*mut u8, bool)>,
) -> PyResult<Ndarray<'py>> {
    let py = dtype.py();
    let mut dims = shape.iter().map(|&dim| isize::try_from(dim)).collect::<Result<Vec<_>, _>>()?;
    let (data, is_writeable) = data.unwrap_or((ptr::null_mut(), false));
    let flags = if fortran_order { NPY_ARRAY_F_CONTIGUOUS } else { 0 }
        | if is_writeable { NPY_ARRAY_WRITEABLE } else { 0 };
    // SAFETY: `dims` has the length that is passed (NumPy refuses more than it can have), the reference to `dtype` is
    // handed over, and the caller vouches for `data`. Without `NPY_ARRAY_WRITEABLE` nobody writes there; over no data
    // it is ignored.
    unsafe {
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            get_type_object(py, NpyTypes::PyArray_Type),
            dtype.into_dtype_ptr(),
            dims.len() as i32,
            dims.as_mut_ptr(),
            ptr::null_mut(),
            data.cast(),
            flags,
            ptr::null_mut(),
        );
        Ok(Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked())
    }
}

/// A copy with memory of its own.
#[expect(unsafe_code, reason = "NumPy's C API")]
pub(super) fn copy<'py>(array: &Ndarray<'py>, order: NPY_ORDER) -> PyResult<Ndarray<'py>> {
    // SAFETY: `array` is an array; the result is a new reference or null with an exception set.
    unsafe {
        let copied = PY_ARRAY_API.PyArray_NewCopy(array.py(), array.as_array_ptr(), order);
        Ok(Bound::from_owned_ptr_or_err(array.py(), copied)?.cast_into_unchecked())
    }
}

/// The object that owns the memory of `array`, unless that is `array` itself.
#[expect(unsafe_code, reason = "NumPy's C API")]
fn base<'py>(array: &Ndarray<'py>) -> Option<Bound<'py, PyAny>> {
    // SAFETY: `base` is null or an object that `array` holds a reference to.
    unsafe {
        let base = (*_PyArray_GET_ITEM_DATA(array.as_array_ptr())).base;
        Bound::from_borrowed_ptr_or_opt(array.py(), base)
    }
}

/// Whether `array` looks at memory of another object.
pub(super) fn is_borrowed(array: &Ndarray<'_>) -> bool {
    base(array).is_some()
}

/// Whether `array` looks at a mapping of a store.
pub(super) fn is_mapped(array: &Ndarray<'_>) -> bool {
    owner(array).is_some_and(|owner| owner.is_instance_of::<Mapping>())
}

/// What is no array and owns the memory that `array` looks at.
fn owner<'py>(array: &Ndarray<'py>) -> Option<Bound<'py, PyAny>> {
    let mut owner = base(array);
    while let Some(object) = owner {
        match object.cast_into::<PyUntypedArray>() {
            Ok(array) => owner = base(&array),
            Err(error) => return Some(error.into_inner()),
        }
    }
    None
}

/// Whether `array` looks at a mapping of a store that can be written to.
pub(super) fn is_mapped_to_write(array: &Ndarray<'_>) -> bool {
    owner(array).is_some_and(|owner| match owner.cast::<Mapping>() {
        Ok(mapping) => matches!(mapping.get().0, Mapped::Write(..)),
        Err(_) => false,
    })
}

/// The result of indexing an array: a copy if it is an array and `is_view` says so.
pub(super) fn copy_views<'py>(
    result: Bound<'py, PyAny>,
    is_view: impl FnOnce(&Ndarray<'py>) -> bool,
) -> PyResult<Bound<'py, PyAny>> {
    match result.cast_into::<PyUntypedArray>() {
        Ok(array) if is_view(&array) => Ok(copy(&array, NPY_ORDER::NPY_KEEPORDER)?.into_any()),
        Ok(array) => Ok(array.into_any()),
        Err(error) => {
            let scalar = error.into_inner();
            static VOID: PyOnceLock<Py<pyo3::types::PyType>> = PyOnceLock::new();
            // Items of structured arrays, alone among scalars, are views.
            if scalar.is_instance(VOID.import(scalar.py(), "numpy", "void")?)? {
                return scalar.call_method0("copy");
            }
            Ok(scalar)
        }
    }
}

/// A value that a caller wants to store, as an array of NumPy's.
pub(super) fn to_ndarray<'py>(value: &Bound<'py, PyAny>) -> PyResult<Ndarray<'py>> {
    if let Ok(array) = value.cast::<PyUntypedArray>() {
        return Ok(array.clone());
    }
    if let Ok(lazy) = value.cast::<LazyArray>() {
        return lazy.get().to_ndarray(value.py());
    }
    Ok(as_array(value.py())?.call1((value,))?.cast_into()?)
}

/// Rows for an array of dtype `dtype`: as they are if they are an array, else converted, if that is not a conversion
/// to another kind of numbers. Arrays of the other byte order are converted as well.
pub(super) fn to_rows<'py>(
    value: &Bound<'py, PyAny>,
    dtype: &Bound<'py, PyArrayDescr>,
) -> PyResult<Ndarray<'py>> {
    let rows = to_ndarray(value)?;
    let found = rows.dtype();
    if found.is_equiv_to(dtype) {
        return Ok(rows);
    }
    let is_array = value.is_instance_of::<PyUntypedArray>() || value.is_instance_of::<LazyArray>();
    let casting = match is_array {
        true => "equiv",
        // NumPy takes an empty list for floats.
        false if rows.is_empty() => "unsafe",
        false => "same_kind",
    };
    static CAN_CAST: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if CAN_CAST.import(value.py(), "numpy", "can_cast")?.call1((&found, dtype, casting))?.is_truthy()? {
        let from = if is_array { rows.as_any() } else { value };
        return Ok(as_array(value.py())?.call1((from, dtype))?.cast_into()?);
    }
    Ok(rows)
}

pub(super) fn as_array(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    ASARRAY.import(py, "numpy", "asarray")
}
