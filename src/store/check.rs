//! Looks a whole store over without changing it: every frame, every record, every data file.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::error::StoreError;
use super::{Access, Generation, Store};
use crate::format::names;
use crate::sys::Storage;

/// What [`verify`] found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Number of arrays.
    pub n_arrays: u64,
    /// Number of commits so far.
    pub generation: Option<Generation>,
    /// Bytes of the data files that are committed.
    pub nbytes: u64,
    /// What is damaged.
    pub problems: Vec<Problem>,
    /// Data files that no record refers to: left by a writer that died, or put there by somebody. No damage.
    pub leftovers: Vec<String>,
}

/// One thing that is damaged.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The array, where it is one array's.
    pub array: Option<Arc<str>>,
    /// The file.
    pub file: String,
    /// What is wrong.
    pub what: String,
}

/// Checks the store at `path`.
///
/// Damage is reported, not an error.
///
/// # Errors
/// `NotAStore`, or `Io` if the store cannot be looked at.
pub fn verify(path: &Path) -> Result<Report, StoreError> {
    report_on(Store::open(path, Access::Read))
}

/// Checks the store in `storage`; see [`verify`].
///
/// # Errors
/// As [`verify`].
pub fn verify_storage(storage: Box<dyn Storage>) -> Result<Report, StoreError> {
    report_on(Store::with_storage(storage, Access::Read))
}

fn report_on(opened: Result<Store, StoreError>) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let store = match opened {
        Ok(store) => store,
        Err(error @ StoreError::Format { .. }) => {
            report.problems.push(Problem {
                array: None,
                file: names::MANIFEST.to_owned(),
                what: error.to_string(),
            });
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.generation = Some(store.generation());
    let mut files = HashSet::new();
    for array in store.arrays()? {
        report.n_arrays += 1;
        report.nbytes = report.nbytes.saturating_add(array.record().data_end());
        let mut problem = |what: String| {
            report.problems.push(Problem {
                array: Some(Arc::clone(array.name())),
                file: array.file_name().to_owned(),
                what,
            });
        };
        if !files.insert(array.file_name().to_owned()) {
            problem("is the data file of another array as well".to_owned());
        }
        match array.backing() {
            Err(error) => problem(error.to_string()),
            Ok(Some(_)) => {}
            // A header that lags behind is mended by the next writer; one that is no header was damaged.
            Ok(None) => {
                if let Err(error) = array.check_stored_header() {
                    problem(error.to_string());
                }
            }
        }
    }
    let is_leftover = |file: &String| names::is_data_file(file) && !files.contains(file);
    let listed = store.shared.storage.list();
    let mut leftovers: Vec<String> = listed
        .map_err(|e| StoreError::io("list", store.path(), "", e))?
        .into_iter()
        .filter(is_leftover)
        .collect();
    leftovers.sort();
    report.leftovers = leftovers;
    Ok(report)
}
