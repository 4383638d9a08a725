//! Open files and open folders.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::{FileKind, FsError, Ino, lock, read, write};

/// A file handle: the number by which the kernel calls an open file or folder. Never reused within a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

/// Handles with this bit are those of pending files.
const PENDING_BIT: u64 = 1 << 63;
/// With this one they are those of views.
const VIEW_BIT: u64 = 1 << 62;

impl Fh {
    /// Whether it is a view's.
    pub(super) fn is_view(self) -> bool {
        self.0 & (PENDING_BIT | VIEW_BIT) == VIEW_BIT
    }

    /// Whether it is a pending file's.
    pub(super) fn is_pending(self) -> bool {
        self.0 & PENDING_BIT != 0
    }
}

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

    /// Those of pending files, which are no other's.
    pub(super) fn of_pending() -> Self {
        Self { next: AtomicU64::new(PENDING_BIT), open: RwLock::new(HashMap::new()) }
    }

    /// Those of views.
    pub(super) fn of_views() -> Self {
        Self { next: AtomicU64::new(VIEW_BIT), open: RwLock::new(HashMap::new()) }
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

/// The thread that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller(pub u32);

/// Threads whose `open` was answered with `ESTALE`. The kernel looks the name up and opens what it finds then, once:
/// were that overwritten in between as well, the program would get `ESTALE`. So that second `open` gets the version
/// that the second `lookup` found.
#[derive(Debug, Default)]
pub(super) struct Again {
    expected: Mutex<HashMap<Caller, Instant>>,
}

/// Far longer than the kernel takes to come again.
pub(super) const AGAIN_WITHIN: Duration = Duration::from_secs(1);
const MAX_EXPECTED: usize = 64;

impl Again {
    pub(super) fn expect(&self, caller: Caller) {
        let mut expected = lock(&self.expected);
        if expected.len() >= MAX_EXPECTED {
            expected.retain(|_, since| since.elapsed() < AGAIN_WITHIN);
        }
        expected.insert(caller, Instant::now());
    }

    pub(super) fn is_expected(&self, caller: Caller) -> bool {
        lock(&self.expected).get(&caller).is_some_and(|since| since.elapsed() < AGAIN_WITHIN)
    }

    /// Whether this is the second `open`.
    pub(super) fn came(&self, caller: Caller) -> bool {
        lock(&self.expected).remove(&caller).is_some_and(|since| since.elapsed() < AGAIN_WITHIN)
    }
}
