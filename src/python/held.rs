//! An array that a Python object holds, which processes use as well that are forked from this one.

use std::sync::OnceLock;

use pyo3::prelude::*;

use super::error::OrRaise;
use crate::store::Array;

/// An array of the process that looked it up, and of the one that was forked from it.
pub(super) struct Held {
    array: Array,
    after_fork: OnceLock<Array>,
}

impl Held {
    pub(super) fn new(array: Array) -> Self {
        Self { array, after_fork: OnceLock::new() }
    }

    /// The array as it was looked up, to be asked what it is.
    pub(super) fn array(&self) -> &Array {
        &self.array
    }

    /// The array, to be read by this process.
    pub(super) fn readable(&self, py: Python<'_>) -> PyResult<Array> {
        let held = self.after_fork.get().unwrap_or(&self.array);
        match held.after_fork().or_raise(py)? {
            None => Ok(held.clone()),
            // Of a fork of a fork, it is made each time.
            Some(own) if self.after_fork.get().is_some() => Ok(own),
            Some(own) => Ok(self.after_fork.get_or_init(|| own).clone()),
        }
    }
}
