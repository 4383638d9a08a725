//! `NumPack`: a store as Python sees it. Converts arguments, releases the GIL, calls the store, converts back.
//!
//! The object outlives its openings: it holds a path, and between `open` and `close` a [`Store`]. Every operation
//! works on its own reference to that, so `close` in one thread does not disturb a running operation in another.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use pyo3::exceptions::{PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBool, PyDict, PyIterator, PyList, PyString, PyTuple};

use super::error::{Exception, OrRaise, interrupted};
use super::index::RowIndex;
use super::lazy::LazyArray;
use super::stream::RowStream;
use super::{attrs, codec, dtype, gather, metadata, opening, rows};
use crate::store::{Access, Array, Changes, Compression, MapMut, Store, StoreError};

/// Attributes to set, and names of those to remove before.
type AttrChange<'py> = (Bound<'py, PyDict>, Vec<String>);

/// A store of named arrays: a directory, here as something like a dict of arrays.
///
/// Nothing is touched before `open`, which creates the directory if there is none. A store can be opened and closed
/// any number of times; ``with`` does both. Where the directory cannot be written, it opens for reading. Several
/// processes may have the store open; each sees what the others commit. A forked process goes on with the stores, lazy
/// arrays and iterators that it inherits.
///
/// Parameters
/// ----------
/// filename : str or os.PathLike
///     The directory.
/// drop_if_exists : bool, default False
///     Delete what is there at the first ``open``.
/// strict_context_mode : bool, default False
///     Refuse every call outside of ``with``.
/// warn_no_context : bool, optional
///     Warn at construction that ``with`` should be used.
/// force_gc_on_close : bool, default False
///     Collect garbage in ``close``.
/// durable : bool, default False
///     Let every change return when it is on the disk: then it is still there after a loss of power. Without it, the
///     newest changes may be lost then, whole changes, the last ones first; never by the end of a process.
/// codec : bool, int or dict, optional
///     The `compress` of `save` and `create` where none is given; by default arrays are not compressed.
///
/// Examples
/// --------
/// >>> with NumPack("data.npk") as npk:
/// ...     npk.save({"a": np.arange(6).reshape(3, 2)})
/// ...     npk.append({"a": np.array([[6, 7]])})
/// ...     npk.load("a").shape
/// (4, 2)
#[pyclass(frozen, subclass, weakref, module = "numpack")]
pub(super) struct NumPack {
    path: PathBuf,
    strict: bool,
    gc_on_close: bool,
    durable: bool,
    /// How arrays are compressed where a call does not say.
    compression: Option<Compression>,
    state: Mutex<State>,
}

struct State {
    store: Option<Store>,
    /// What is at the path goes when the store is next opened.
    drop_first: bool,
    /// How many `with` blocks are running.
    n_contexts: usize,
    /// Arrays that were mapped to be written to, of which others may not have been told yet, and the mappings.
    mapped: Vec<(Array, Weak<MapMut>)>,
}

impl State {
    /// In a process that was forked since the store was opened: goes on with one of its own. What was written through
    /// mappings until then is the parent's to tell.
    fn follow_fork(&mut self) -> Result<(), StoreError> {
        if let Some(own) = self.store.as_ref().map_or(Ok(None), Store::after_fork)? {
            self.store = Some(own);
            self.mapped.clear();
        }
        Ok(())
    }
}

impl NumPack {
    fn state(&self, py: Python<'_>) -> MutexGuard<'_, State> {
        self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, py: Python<'_>) -> PyResult<Store> {
        let mut state = self.state(py);
        state.follow_fork().or_raise(py)?;
        match &state.store {
            Some(_) if self.strict && state.n_contexts == 0 => Err(Exception::StoreClosed.err(format!(
                "{}: strict_context_mode allows calls only within \"with NumPack(...) as npk:\"",
                self.path.display()
            ))),
            Some(store) => Ok(store.clone()),
            None => Err(Exception::StoreClosed.err(format!(
                "{}: the store is not opened or has been closed; call open() or use \"with\"",
                self.path.display()
            ))),
        }
    }

    /// The store with what other processes have committed by now.
    fn current(&self, py: Python<'_>) -> PyResult<Store> {
        let store = self.store(py)?;
        py.detach(|| store.refresh_quietly()).or_raise(py)?;
        Ok(store)
    }

    fn array(&self, py: Python<'_>, name: &str) -> PyResult<Array> {
        let store = self.store(py)?;
        py.detach(|| store.array(name)).or_raise(py)
    }

    /// How to compress what a call was given `compress` for.
    fn compression(
        &self,
        argument: &str,
        compress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Compression>> {
        match compress {
            Some(compress) => codec::compression(argument, compress),
            None => Ok(self.compression),
        }
    }

    /// Tells others of what was written through mappings so far; keeps those of which more may come.
    fn tell_mapped(&self, py: Python<'_>) -> Result<(), StoreError> {
        self.state(py).follow_fork()?;
        let mapped = std::mem::take(&mut self.state(py).mapped);
        let told = py.detach(|| mapped.iter().try_for_each(|(array, _)| array.tell_mapped()));
        let alive = mapped.into_iter().filter(|(_, map)| map.strong_count() > 0);
        self.state(py).mapped.extend(alive);
        told
    }
}

/// A default that is no None.
fn python_true() -> Py<PyAny> {
    Python::attach(|py| PyBool::new(py, true).to_owned().into_any().unbind())
}

#[pymethods]
impl NumPack {
    #[new]
    #[pyo3(signature = (
        filename,
        drop_if_exists = false,
        strict_context_mode = false,
        warn_no_context = None,
        force_gc_on_close = false,
        *,
        durable = false,
        codec = None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are those of the class in Python")]
    fn new(
        py: Python<'_>,
        filename: PathBuf,
        drop_if_exists: bool,
        strict_context_mode: bool,
        warn_no_context: Option<bool>,
        force_gc_on_close: bool,
        durable: bool,
        codec: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let compression = codec.map(|value| codec::compression("codec", value)).transpose()?.flatten();
        if warn_no_context.unwrap_or(cfg!(windows)) && !strict_context_mode {
            let message = c"use \"with NumPack(...) as npk:\", which closes the store in any case";
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), message, 1)?;
        }
        Ok(Self {
            path: filename,
            strict: strict_context_mode,
            gc_on_close: force_gc_on_close,
            durable,
            compression,
            state: Mutex::new(State {
                store: None,
                drop_first: drop_if_exists,
                n_contexts: 0,
                mapped: Vec::new(),
            }),
        })
    }

    /// Open the store; create it, with its parent directories, if it is not there. Nothing happens if it is open.
    ///
    /// Raises
    /// ------
    /// FileExistsError
    ///     If a file is at the path.
    /// NotAStoreError
    ///     If the directory has something in it that is not an npk store.
    /// CorruptStoreError
    ///     If the store is damaged.
    /// OSError
    ///     If the directory can neither be written nor read.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.store.is_some() {
                return Ok(());
            }
            if state.drop_first {
                Store::remove_all(&self.path)?;
                state.drop_first = false;
            }
            let store = opening::open_or_create(&self.path)?;
            store.set_interrupt(interrupted);
            store.set_durable(self.durable);
            state.store = Some(store);
            Ok(())
        })
        .or_raise(py)
    }

    /// Close the store. Never raises; nothing happens if it is closed. Arrays that were loaded stay valid.
    ///
    /// Parameters
    /// ----------
    /// force_gc : bool, optional
    ///     Collect garbage afterwards; by default as `force_gc_on_close` says.
    #[pyo3(signature = (force_gc = None))]
    fn close(&self, py: Python<'_>, force_gc: Option<bool>) -> PyResult<()> {
        if let Err(error) = self.tell_mapped(py) {
            log::warn!("{error}");
        }
        let (store, mapped) = {
            let mut state = self.state(py);
            (state.store.take(), std::mem::take(&mut state.mapped))
        };
        py.detach(|| drop((store, mapped)));
        if force_gc.unwrap_or(self.gc_on_close) {
            py.import("gc")?.call_method0("collect")?;
        }
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let this = slf.get();
        this.open(slf.py())?;
        this.state(slf.py()).n_contexts += 1;
        Ok(slf)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<bool> {
        {
            let mut state = self.state(py);
            state.n_contexts = state.n_contexts.saturating_sub(1);
        }
        self.close(py, None)?;
        Ok(false)
    }

    /// Whether the store is open.
    #[getter]
    fn is_opened(&self, py: Python<'_>) -> bool {
        self.state(py).store.is_some()
    }

    /// Whether the store is not open: not yet, or not any more.
    #[getter]
    fn is_closed(&self, py: Python<'_>) -> bool {
        !self.is_opened(py)
    }

    /// The store's directory, as a pathlib.Path.
    #[getter]
    fn path(&self) -> &Path {
        &self.path
    }

    /// What runs: 'rust' or 'python'.
    #[getter]
    fn backend_type(&self) -> &'static str {
        "rust"
    }

    /// Save arrays, replacing those that have these names. All of them are saved, or none.
    ///
    /// Parameters
    /// ----------
    /// arrays : dict of str to array_like
    ///     Any shape, order and strides, any dtype of fixed size. Subclasses of ndarray are saved as plain arrays.
    /// compress : bool, int or dict, optional
    ///     How these arrays are compressed, whatever was there under their names: by default as `codec` of the store
    ///     says, or else not at all.
    ///
    ///     - False: not at all.
    ///     - True: with zstd at level 1, in blocks of 64 KiB.
    ///     - int: at this level, -7 (fastest) to 22 (smallest).
    ///     - dict: ``"level"``; ``"block"``, bytes of elements that are encoded as one, a multiple of 4096 up to 16 MiB;
    ///       ``"filter"``, what is done to a block before: 'none', 'shuffle' (bytes of the same place together), 'delta'
    ///       (differences of neighbouring integers, shuffled), 'delta2', 'delta3', 'delta4' (of integers so many places
    ///       apart: pairs, colours, vectors), or 'auto', the one that makes a sample of the array smallest. What is left
    ///       out is as with True.
    ///
    /// Raises
    /// ------
    /// TypeError
    ///     For dtypes without a fixed size, such as object; for names that are not str; for values of `compress` of
    ///     another type.
    /// ValueError
    ///     If `arrays` is not a dict, or a name cannot be stored; for levels, blocks and filters that there are not.
    /// ReadOnlyError, OSError
    ///
    /// Notes
    /// -----
    /// A compressed array is read and changed like any other. `append` writes the rows, `replace` the blocks that they
    /// are in. Loading decodes on all cores; reading one row decodes its block.
    #[pyo3(signature = (arrays, compress = None))]
    fn save(
        &self,
        py: Python<'_>,
        arrays: &Bound<'_, PyAny>,
        compress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let compression = self.compression("compress", compress)?;
        rows::save(py, &self.store(py)?, arrays, compression.as_ref())
    }

    /// Load an array.
    ///
    /// Parameters
    /// ----------
    /// name : str
    /// lazy : bool, default False
    ///     Read nothing yet: return a `LazyArray`, over a mapping of the file if the array is not compressed.
    /// rows : int, list, tuple or array of int, slice, boolean mask; optional
    ///     Read these rows only, as `getitem` does.
    /// out : ndarray, optional
    ///     What is read goes there: a C-contiguous array of the right shape and dtype. If reading fails, it may be
    ///     filled in part.
    ///
    /// Returns
    /// -------
    /// ndarray or LazyArray
    ///     The ndarray is `out`, or new, writable, and in the order (C or Fortran) that was saved.
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError, RowIndexError
    /// TypeError
    ///     If `out` is no ndarray, or has another dtype.
    /// ValueError
    ///     If `out` has another shape, is not contiguous or read-only; for `lazy` with `rows` or `out`.
    /// CorruptStoreError, OSError
    #[pyo3(signature = (name, lazy = false, *, rows = None, out = None))]
    fn load<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        lazy: bool,
        rows: Option<&Bound<'py, PyAny>>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if lazy {
            if rows.is_some() || out.is_some() {
                let message =
                    "lazy=True reads nothing yet, so it takes no rows and no out; index what it returns";
                return Err(PyValueError::new_err(message));
            }
            return Ok(Bound::new(py, LazyArray::open(py, self.array(py, name)?)?)?.into_any());
        }
        if let Some(rows) = rows {
            return self.getitem(py, name, rows, out);
        }
        let array = self.array(py, name)?;
        let dtype = dtype::to_numpy(py, array.dtype())?;
        match out {
            Some(out) => Ok(gather::all_into(&array, &dtype, out)?.into_any()),
            None => Ok(gather::all(&array, &dtype)?.into_any()),
        }
    }

    fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.load(py, name, false, None, None)
    }

    /// Append rows to arrays. All names and shapes are checked before anything is written.
    ///
    /// Parameters
    /// ----------
    /// arrays : dict of str to array_like
    ///     Rows of shape (n, \*row_shape) and of the array's dtype.
    ///
    /// Raises
    /// ------
    /// AppendTargetError
    ///     If an array does not exist (a KeyError and a ValueError).
    /// ValueError
    ///     If the rows have another shape.
    /// TypeError
    ///     If they have another dtype.
    /// ReadOnlyError, OSError
    fn append(&self, py: Python<'_>, arrays: &Bound<'_, PyAny>) -> PyResult<()> {
        rows::append(py, &self.store(py)?, arrays)
    }

    /// Overwrite rows in place. Other readers see this at once; it is not atomic. Of a compressed array, a crash leaves
    /// all of the rows changed or none.
    ///
    /// Parameters
    /// ----------
    /// arrays : dict of str to array_like
    ///     As many rows as `indexes` selects, of the array's dtype.
    /// indexes : int, list, tuple or array of int, slice, boolean mask
    ///     Which rows of each array. Negative numbers count from the end; of duplicates the last counts.
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError
    /// RowIndexError
    ///     If a row is out of bounds (an IndexError and a ValueError); nothing is written then.
    /// ValueError
    ///     If the shape or the number of rows differs.
    /// TypeError
    ///     If the dtype differs.
    /// ReadOnlyError, OSError
    fn replace(&self, py: Python<'_>, arrays: &Bound<'_, PyAny>, indexes: &Bound<'_, PyAny>) -> PyResult<()> {
        rows::replace(py, &self.store(py)?, arrays, &RowIndex::parse(indexes)?)
    }

    /// Make an array of zeros, which takes no space before something is written to it.
    ///
    /// Parameters
    /// ----------
    /// name : str
    /// shape : int or tuple of int
    /// dtype : dtype_like, optional
    ///     By default float64.
    /// compress : bool, int or dict, optional
    ///     As of `save`.
    ///
    /// Raises
    /// ------
    /// ArrayExistsError
    ///     If there is an array of this name.
    /// TypeError, ValueError
    ///     For a dtype, shape or name that no array can have.
    /// ReadOnlyError, OSError
    ///
    /// Examples
    /// --------
    /// >>> npk.create("a", (1_000_000, 10), np.float32)
    /// >>> npk.write_rows("a", 500, np.ones((100, 10), np.float32))
    #[pyo3(signature = (name, shape, dtype = None, *, compress = None))]
    fn create(
        &self,
        py: Python<'_>,
        name: &str,
        shape: &Bound<'_, PyAny>,
        dtype: Option<&Bound<'_, PyAny>>,
        compress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let compression = self.compression("compress", compress)?;
        rows::create(py, &self.store(py)?, name, shape, dtype, compression.as_ref())
    }

    /// Write rows over those that an array has, from row `start` on. Any number of processes and threads may do so at
    /// once, if no row is written by two: those who write to an array that is not compressed do not wait for each
    /// other, the others take turns.
    ///
    /// Other readers see this at once; it is not atomic. Of a compressed array, a crash leaves all of the rows changed
    /// or none. Each block of it is written anew: regions that begin and end with blocks cost the least.
    ///
    /// Parameters
    /// ----------
    /// name : str
    /// start : int
    ///     The first row.
    /// rows : array_like, shape (n, \*row_shape)
    ///     Of the array's dtype.
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError
    /// RowIndexError
    ///     If the array does not have these rows; nothing is written then.
    /// ValueError, TypeError
    ///     If the rows have another shape or dtype.
    /// ReadOnlyError, OSError
    fn write_rows(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        start: &Bound<'_, PyAny>,
        rows: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        rows::write_rows(py, &self.store(py)?, name, start, rows)
    }

    /// Copy an array: its rows without those that were dropped, its codec and its attributes. The copy is independent.
    ///
    /// Parameters
    /// ----------
    /// source, target : str
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError
    ///     If there is no array `source`.
    /// ArrayExistsError
    ///     If there is an array `target`.
    /// CorruptStoreError, ReadOnlyError, OSError
    fn clone(&self, py: Python<'_>, source: &str, target: &str) -> PyResult<()> {
        let store = self.store(py)?;
        py.detach(|| store.copy_array(source, target)).or_raise(py)
    }

    /// Return when everything that was written through this object since it was opened is on the disk. Nothing happens
    /// if it is opened for reading.
    ///
    /// Raises
    /// ------
    /// OSError
    ///     After which the store takes no more changes until it is opened again.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.store(py)?;
        if store.access() == Access::Read {
            return Ok(());
        }
        self.tell_mapped(py).or_raise(py)?;
        py.detach(|| store.sync()).or_raise(py)
    }

    /// The attributes of an array; of the store, if `name` is None.
    #[pyo3(signature = (name))]
    fn _get_attrs<'py>(&self, py: Python<'py>, name: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.current(py)?;
        match name {
            None => attrs::to_dict(py, &store.attrs()),
            Some(name) => attrs::to_dict(py, store.record(name).or_raise(py)?.attrs()),
        }
    }

    /// Set and remove attributes of an array, or of the store, in one commit. Names to remove that are not there are
    /// ignored.
    #[pyo3(signature = (name, set, remove))]
    fn _set_attrs(
        &self,
        py: Python<'_>,
        name: Option<&str>,
        set: &Bound<'_, PyDict>,
        remove: Vec<String>,
    ) -> PyResult<()> {
        let set = attrs::from_dict(set)?;
        let store = self.store(py)?;
        let remove: Vec<&str> = remove.iter().map(String::as_str).collect();
        py.detach(|| store.set_attrs(name, set, &remove)).or_raise(py)
    }

    /// Save arrays, remove others, and change attributes, in one commit. Arrays keep the codec and the attributes that
    /// are there under their names, but for those in `compress`, which is as that of `save`, and in `attrs`: for each
    /// name, or None for the store, a dict of attributes to set, and a list of those to remove before.
    #[pyo3(signature = (save, remove, compress = None, attrs = None))]
    fn _commit(
        &self,
        py: Python<'_>,
        save: &Bound<'_, PyAny>,
        remove: Vec<String>,
        compress: Option<HashMap<String, Bound<'_, PyAny>>>,
        attrs: Option<HashMap<Option<String>, AttrChange<'_>>>,
    ) -> PyResult<()> {
        let mut compressions = HashMap::new();
        for (name, how) in compress.iter().flatten() {
            let how = Some(how).filter(|how| !how.is_none());
            compressions.insert(name.as_str(), self.compression("compress", how)?);
        }
        let attrs = attrs
            .iter()
            .flatten()
            .map(|(name, (set, remove))| Ok((name.as_deref(), attrs::from_dict(set)?, remove.clone())));
        let mut attrs = attrs.collect::<PyResult<Vec<_>>>()?;
        attrs.sort_by_key(|(name, ..)| *name);
        let remove: Vec<&str> = remove.iter().map(String::as_str).collect();
        let changes =
            Changes { remove: &remove, compression: self.compression, compressions, attrs, save: &[] };
        rows::change(py, &self.store(py)?, save, changes)
    }

    /// An array over a mapping of an array's elements, which is changed by writing to it; None if it is compressed.
    /// It stays valid as long as it lives. Rows that were dropped are given back first.
    ///
    /// Others are told of what was written by `_write_back`, `flush` and `close`.
    fn _map<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some((mapped, array, map)) = rows::map(py, &self.store(py)?, name)? else { return Ok(None) };
        if let Some(map) = map {
            // Who maps many arrays, one after the other, has no more files open than mappings.
            self.state(py).mapped.push((array.unpinned(), map));
        }
        Ok(Some(mapped.into_any()))
    }

    /// Store what was done to rows, from row `start` on, in memory: of a compressed array, in the blocks in which an
    /// element differs from what is stored, in one commit. If `rows` is an array that `_map` gave, its elements are
    /// stored already, and others are told.
    fn _write_back(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        start: u64,
        rows: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        rows::write_back(py, &self.store(py)?, name, start, rows)
    }

    /// Drop arrays, or rows of arrays.
    ///
    /// Parameters
    /// ----------
    /// name : str or list of str
    ///     Names that are not there are ignored.
    /// indexes : int, list, tuple or array of int, slice, boolean mask; optional
    ///     The rows to drop, of each of the arrays; those that are not there are ignored. Without it, the arrays
    ///     themselves are dropped.
    ///
    /// Raises
    /// ------
    /// RowIndexError
    ///     If `indexes` is no row index, or a mask of the wrong length.
    /// ReadOnlyError, OSError
    #[pyo3(signature = (name, indexes = None))]
    fn drop(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        indexes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let indexes = indexes.map(RowIndex::parse).transpose()?;
        rows::drop(py, &self.store(py)?, name, indexes.as_ref())
    }

    /// Read rows of an array.
    ///
    /// Parameters
    /// ----------
    /// name : str
    /// indexes : int, list, tuple or array of int, slice, boolean mask
    /// out : ndarray, optional
    ///     As of `load`.
    ///
    /// Returns
    /// -------
    /// ndarray, shape (n, \*row_shape)
    ///     `out`, or a new array, with the rows in the order of `indexes`; an int gives one row.
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError, RowIndexError, OSError
    /// TypeError, ValueError
    ///     If `out` does not fit, as `load` says.
    #[pyo3(signature = (name, indexes, *, out = None))]
    fn getitem<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        indexes: &Bound<'py, PyAny>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let index = RowIndex::parse(indexes)?;
        rows::getitem(py, &self.array(py, name)?, &index, out)
    }

    /// Read an array from its first row to its last, some rows at a time.
    ///
    /// Parameters
    /// ----------
    /// array_name : str
    /// buffer_size : int, optional
    ///     How many rows at a time; by default one.
    ///
    /// Returns
    /// -------
    /// iterator of ndarray, shape (n, \*row_shape)
    ///     Rows are read when they are asked for. It keeps the length that the array had at the call, and stays valid
    ///     when the store changes or is closed.
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError
    /// ValueError
    ///     If `buffer_size` is not positive, or the array is 0-d.
    /// CorruptStoreError, OSError
    #[pyo3(signature = (array_name, buffer_size = None))]
    fn stream_load(
        &self,
        py: Python<'_>,
        array_name: &str,
        buffer_size: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<RowStream> {
        RowStream::new(py, self.array(py, array_name)?, buffer_size)
    }

    /// The shape of an array, or of all.
    ///
    /// Parameters
    /// ----------
    /// name : str, optional
    ///
    /// Returns
    /// -------
    /// tuple of int, or dict of str to tuple of int
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError
    #[pyo3(signature = (name = None))]
    fn get_shape<'py>(&self, py: Python<'py>, name: Option<&str>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(name) = name {
            let array = self.current(py)?.record(name).or_raise(py)?;
            return Ok(PyTuple::new(py, array.shape())?.into_any());
        }
        let shapes = PyDict::new(py);
        let store = self.store(py)?;
        for array in py.detach(|| store.arrays()).or_raise(py)? {
            shapes.set_item(&**array.name(), PyTuple::new(py, array.shape())?)?;
        }
        Ok(shapes.into_any())
    }

    /// The names of all arrays, in the order of their first save.
    fn get_member_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let names = self.current(py)?.names();
        PyList::new(py, names.iter().map(|name| &**name))
    }

    /// What is in the store.
    ///
    /// Returns
    /// -------
    /// dict
    ///     ``base_dir``, ``total_arrays``, and ``arrays``: for each name its ``shape`` (list), ``dtype`` ('Float32'),
    ///     ``size_bytes``, ``data_file``, ``last_modified`` (microseconds since 1970), ``codec`` (a dict with ``level``,
    ///     ``block`` and ``filter``, as `save` takes it; None if it is not compressed), and ``stored_bytes``, what the
    ///     elements take in the file, dropped rows included.
    fn get_metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        metadata::of_store(py, &self.store(py)?)
    }

    /// Whether there is an array of this name.
    fn has_array(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let store = self.current(py)?;
        Ok(name.cast::<PyString>().is_ok_and(|name| name.to_str().is_ok_and(|name| store.contains(name))))
    }

    fn __contains__(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.has_array(py, name)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.current(py)?.len())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        self.get_member_list(py)?.try_iter()
    }

    /// A store is true even if it is empty.
    fn __bool__(&self) -> bool {
        true
    }

    /// When an array was last changed.
    ///
    /// Returns
    /// -------
    /// int or None
    ///     Microseconds since 1970; None if there is no such array.
    fn get_modify_time(&self, py: Python<'_>, name: &str) -> PyResult<Option<i64>> {
        match self.current(py)?.record(name) {
            Ok(array) => metadata::modified_micros(py, &array).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error).or_raise(py),
        }
    }

    /// Remove all arrays. Files that are not the store's stay.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.store(py)?;
        py.detach(|| store.clear()).or_raise(py)
    }

    /// Give back the space of dropped rows, and of what a compressed array does not need any more. Nothing happens if
    /// there is none.
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError, ReadOnlyError, OSError
    fn update(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let store = self.store(py)?;
        py.detach(|| store.compact(name)).or_raise(py)?;
        Ok(())
    }

    /// Compress an array that is stored, differently or not at all. Its elements stay what they are, and who has it
    /// loaded lazily keeps what he has.
    ///
    /// Parameters
    /// ----------
    /// name : str
    /// codec : bool, int or dict, default True
    ///     As `compress` of `save`; None or False: not compressed.
    ///
    /// Returns
    /// -------
    /// bool
    ///     Whether anything had to be done. If so, the new version is on the disk.
    ///
    /// Raises
    /// ------
    /// ArrayNotFoundError
    /// TypeError, ValueError
    ///     As `save` does for `compress`.
    /// CorruptStoreError, ReadOnlyError, OSError
    #[pyo3(signature = (name, codec = python_true()), text_signature = "($self, name, codec=True)")]
    fn recompress(&self, py: Python<'_>, name: &str, codec: Py<PyAny>) -> PyResult<bool> {
        let to = codec::compression("codec", codec.bind(py))?;
        let store = self.store(py)?;
        py.detach(|| store.recompress(name, to.as_ref(), &mut |_| ())).or_raise(py)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let path = self.path.display();
        let store = self.state(py).store.clone();
        Ok(match store {
            None => format!("NumPack({path}, status=closed)"),
            Some(store) => {
                format!("NumPack({path}, arrays={}, backend={})", store.len(), self.backend_type())
            }
        })
    }
}
