//! The one table from [`StoreError`] to Python exceptions. The classes live in `numpack/_errors.py`, so that every
//! backend raises the same ones; each is also the builtin exception that a caller would expect.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use pyo3::exceptions::{
    PyFileExistsError, PyFileNotFoundError, PyKeyboardInterrupt, PyMemoryError, PyOSError, PyTypeError,
    PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::format::FormatError;
use crate::store::{NotAStore, StoreError};
use crate::sys::remedy;

/// The classes of `numpack/_errors.py`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Exception {
    AppendTarget,
    ArrayExists,
    ArrayNotFound,
    CorruptStore,
    NotAStore,
    ReadOnly,
    RowIndex,
    StoreClosed,
    StoreLocked,
    Unsupported,
}

impl Exception {
    fn class(self, py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
        macro_rules! class {
            ($name:literal) => {{
                static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
                CLASS.import(py, "numpack._errors", $name)
            }};
        }
        match self {
            Exception::AppendTarget => class!("AppendTargetError"),
            Exception::ArrayExists => class!("ArrayExistsError"),
            Exception::ArrayNotFound => class!("ArrayNotFoundError"),
            Exception::CorruptStore => class!("CorruptStoreError"),
            Exception::NotAStore => class!("NotAStoreError"),
            Exception::ReadOnly => class!("ReadOnlyError"),
            Exception::RowIndex => class!("RowIndexError"),
            Exception::StoreClosed => class!("StoreClosedError"),
            Exception::StoreLocked => class!("StoreLockedError"),
            Exception::Unsupported => class!("UnsupportedError"),
        }
    }

    pub(super) fn err(self, message: String) -> PyErr {
        Python::attach(|py| match self.class(py) {
            Ok(class) => PyErr::from_type(class.clone(), (message,)),
            Err(error) => error,
        })
    }

    /// For classes that are also `OSError`.
    fn os_err(self, errno: i32, message: String, path: &Path) -> PyErr {
        let filename = filename(path);
        Python::attach(|py| match self.class(py) {
            Ok(class) => PyErr::from_type(class.clone(), (errno, message, filename)),
            Err(error) => error,
        })
    }
}

/// A path as Python's own functions give it to OSError: as str, not as Path.
fn filename(path: &Path) -> OsString {
    path.as_os_str().to_owned()
}

/// The error of an operation on the file system.
pub(super) fn os_error(action: &str, path: &Path, error: &io::Error) -> PyErr {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" (os error {errno})")).unwrap_or(&text);
    if errno == libc::ENOMEM {
        let message = format!("{}: cannot {action}: {text}{}", path.display(), remedy(error));
        return PyMemoryError::new_err(message);
    }
    // OSError picks the subclass that belongs to the number: FileNotFoundError and so on.
    PyOSError::new_err((errno, format!("cannot {action}: {text}{}", remedy(error)), filename(path)))
}

/// Whether a signal handler raised an exception, which is left to be raised by whoever waits. Answers only in the main
/// thread, where Python runs them.
pub(super) fn interrupted() -> bool {
    Python::attach(|py| match py.check_signals() {
        Ok(()) => false,
        Err(error) => {
            error.restore(py);
            true
        }
    })
}

pub(super) trait OrRaise<T> {
    /// Turns the error of a store into the exception that it is in Python.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, StoreError> {
    fn or_raise(self, _py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(&error, error.to_string()))
    }
}

/// The exception for `error`, saying `message`.
fn exception(error: &StoreError, message: String) -> PyErr {
    // An OSError shows its file name itself.
    let without = |path: &PathBuf| match message.strip_prefix(&format!("{}: ", path.display())) {
        Some(rest) => rest.to_owned(),
        None => message.clone(),
    };
    match error {
        StoreError::NotFound { .. } => Exception::ArrayNotFound.err(message),
        StoreError::Exists { .. } => Exception::ArrayExists.err(message),
        StoreError::NotAStore { path, found } => match found {
            NotAStore::Missing => PyFileNotFoundError::new_err((libc::ENOENT, without(path), filename(path))),
            NotAStore::NotADirectory => {
                PyFileExistsError::new_err((libc::EEXIST, without(path), filename(path)))
            }
            NotAStore::NoManifest | NotAStore::ManifestLost => Exception::NotAStore.err(message),
            NotAStore::TableLost | NotAStore::Overwritten | NotAStore::NothingLeft => {
                Exception::CorruptStore.err(message)
            }
        },
        StoreError::StoreExists { path } => {
            PyFileExistsError::new_err((libc::EEXIST, without(path), filename(path)))
        }
        StoreError::ReadOnly { store } | StoreError::OldLayout { store, .. } => {
            Exception::ReadOnly.os_err(libc::EROFS, without(store), store)
        }
        StoreError::Locked { store, .. } => {
            Exception::StoreLocked.os_err(libc::ETIMEDOUT, without(store), store)
        }
        // The exception that a signal handler raised, KeyboardInterrupt in most programs: `interrupted` left it.
        StoreError::Interrupted { .. } => {
            Python::attach(PyErr::take).unwrap_or_else(|| PyKeyboardInterrupt::new_err(message))
        }
        StoreError::ChangedMeanwhile { path } => {
            Exception::StoreLocked.os_err(libc::EBUSY, without(path), path)
        }
        StoreError::Format { source, .. } => match source {
            FormatError::Version { .. } | FormatError::Features { .. } | FormatError::UnknownCodec { .. } => {
                Exception::Unsupported.err(message)
            }
            FormatError::Magic { .. }
            | FormatError::Truncated { .. }
            | FormatError::Checksum { .. }
            | FormatError::TooLong { .. }
            | FormatError::Payload { .. }
            | FormatError::Edit { .. }
            | FormatError::NpyHeader { .. }
            | FormatError::Dtype { .. }
            | FormatError::Shape { .. }
            | FormatError::Codec { .. }
            | FormatError::Index { .. }
            | FormatError::Attr { .. }
            | FormatError::Upstream { .. }
            | FormatError::Name { .. } => Exception::CorruptStore.err(message),
        },
        StoreError::DataFile { .. } | StoreError::Block { .. } => Exception::CorruptStore.err(message),
        StoreError::DtypeMismatch { .. } => PyTypeError::new_err(message),
        StoreError::IndexOutOfRange { .. } | StoreError::NoRows { .. } => Exception::RowIndex.err(message),
        StoreError::ShapeMismatch { .. }
        | StoreError::RowCount { .. }
        | StoreError::BufferLen { .. }
        | StoreError::HeaderWrite { .. }
        | StoreError::OutOfBounds { .. } => PyValueError::new_err(message),
        // What the caller asked for, not what a file says.
        StoreError::Refused { source } => match source {
            FormatError::Dtype { .. } => PyTypeError::new_err(message),
            FormatError::Name { .. }
            | FormatError::Shape { .. }
            | FormatError::Codec { .. }
            | FormatError::UnknownCodec { .. }
            | FormatError::Index { .. }
            | FormatError::Attr { .. }
            | FormatError::TooLong { .. }
            | FormatError::Magic { .. }
            | FormatError::Version { .. }
            | FormatError::Features { .. }
            | FormatError::Truncated { .. }
            | FormatError::Checksum { .. }
            | FormatError::Payload { .. }
            | FormatError::Edit { .. }
            | FormatError::Upstream { .. }
            | FormatError::NpyHeader { .. } => PyValueError::new_err(message),
        },
        StoreError::Io { action, path, source } => os_error(action, path, source),
        // The class of the failure that caused it.
        StoreError::Poisoned { first, .. } => match &**first {
            StoreError::Io { path, source, .. } => {
                let errno = source.raw_os_error().unwrap_or(libc::EIO);
                PyOSError::new_err((errno, message, filename(path)))
            }
            first => exception(first, message),
        },
    }
}
