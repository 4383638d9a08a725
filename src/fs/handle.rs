//! Open files and open folders.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::{FileKind, FsError, Ino, read, write};

/// A file handle: the number by which the kernel calls an open file or folder. Never reused within a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

impl fmt::Display for Fh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is open, by handle.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<Fh, Arc<T>>>,
}

impl<T> Handles<T> {
    pub(super) fn new() -> Self {
        Self { next: AtomicU64::new(1), open: RwLock::new(HashMap::new()) }
    }

    pub(super) fn insert(&self, value: T) -> Fh {
        let fh = Fh(self.next.fetch_add(1, Ordering::Relaxed));
        write(&self.open).insert(fh, Arc::new(value));
        fh
    }

    pub(super) fn get(&self, fh: Fh) -> Result<Arc<T>, FsError> {
        read(&self.open).get(&fh).cloned().ok_or(FsError::BadHandle { fh })
    }

    pub(super) fn remove(&self, fh: Fh) -> Option<Arc<T>> {
        write(&self.open).remove(&fh)
    }
}

/// A name in a folder, as it was when the folder was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Arc<str>,
    /// The inode that it led to.
    pub ino: Ino,
    /// What that is.
    pub kind: FileKind,
}

/// What is kept of an open folder: its names at that moment, so that a listing is complete and without doubles
/// whatever happens meanwhile.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    pub(super) entries: Vec<DirEntry>,
}
