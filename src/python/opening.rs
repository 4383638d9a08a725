//! What `NumPack.open` does with a path.

use std::io::ErrorKind;
use std::path::Path;

use crate::store::{Access, Store, StoreError};

/// Opens the store at `path` for writing, creates it if there is none, or opens it for reading where that is all we
/// may do.
pub(super) fn open_or_create(path: &Path) -> Result<Store, StoreError> {
    let error = match Store::open_or_create(path) {
        Ok(store) => return Ok(store),
        Err(error) => error,
    };
    let may_not_write = match &error {
        StoreError::ReadOnly { .. } => true,
        StoreError::Io { source, .. } => {
            matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
        }
        _ => false,
    };
    if may_not_write && let Ok(store) = Store::open(path, Access::Read) {
        return Ok(store);
    }
    Err(error)
}
