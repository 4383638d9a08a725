//! FUSE passthrough: handing data files to the kernel, which then serves reads, writes and mappings by itself.
//!
//! The kernel needs all open files of an inode to be alike: passed through to one and the same backing id, or cached.
//! So the first open decides for all that follow until the last one is closed, and they share the id. Needs Linux
//! 6.9 and CAP_SYS_ADMIN; at the first refusal of either the mount goes on without, for good.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::BackingId;
use log::{info, warn};

use crate::fs::Ino;

/// How a file is to be opened.
#[derive(Debug, Clone)]
pub(super) enum OpenAs {
    /// Through the daemon and the page cache. `keep`: pages from before are still good. `first`: no other inode is
    /// open so.
    Cached { keep: bool, first: bool },
    /// By the kernel alone, from this file.
    Backed(Arc<BackingId>),
}

/// How the open files of each inode are open.
#[derive(Debug)]
pub(super) struct Passthrough {
    on: AtomicBool,
    /// Whether a file was ever passed through: pages that were cached before may be old then.
    used: AtomicBool,
    /// Inodes that are open through the page cache.
    n_cached: AtomicUsize,
    /// Inodes that are open and passed through.
    n_backed: AtomicUsize,
    open: Mutex<HashMap<Ino, Open>>,
}

#[derive(Debug)]
struct Open {
    n_handles: usize,
    backing: Option<Arc<BackingId>>,
}

impl Passthrough {
    pub(super) fn new(on: bool) -> Self {
        Self {
            on: AtomicBool::new(on),
            used: AtomicBool::new(false),
            n_cached: AtomicUsize::new(0),
            n_backed: AtomicUsize::new(0),
            open: Mutex::default(),
        }
    }

    /// Goes on without.
    pub(super) fn turn_off(&self, reason: &dyn std::fmt::Display) {
        if self.on.swap(false, Ordering::Relaxed) {
            info!("FUSE passthrough is not available, files are read through the daemon: {reason}");
        }
    }

    /// Decides for one more open file of an inode; [`Passthrough::close`] must follow. `backing` is the file whose
    /// bytes are the inode's, if there is one, and `register` hands it to the kernel. `may_pass` is false for inodes
    /// that never have such a file.
    pub(super) fn open(
        &self,
        ino: Ino,
        may_pass: bool,
        backing: Option<BorrowedFd<'_>>,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> OpenAs {
        let mut inodes = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = inodes.entry(ino).or_insert_with(|| Open {
            n_handles: 0,
            backing: self.register(backing, register).map(Arc::new),
        });
        open.n_handles += 1;
        match &open.backing {
            Some(id) => {
                self.n_backed.fetch_add(usize::from(open.n_handles == 1), Ordering::Relaxed);
                OpenAs::Backed(Arc::clone(id))
            }
            None => OpenAs::Cached {
                keep: !may_pass || !self.on.load(Ordering::Relaxed) && !self.used.load(Ordering::Relaxed),
                first: open.n_handles == 1 && self.n_cached.fetch_add(1, Ordering::Relaxed) == 0,
            },
        }
    }

    /// Whether an inode is open and passed through.
    pub(super) fn is_backed(&self, ino: Ino) -> bool {
        if self.n_backed.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let inodes = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        inodes.get(&ino).is_some_and(|open| open.backing.is_some())
    }

    /// Whether any inode is open through the page cache.
    pub(super) fn has_cached(&self) -> bool {
        self.n_cached.load(Ordering::Relaxed) > 0
    }

    /// The inodes that are open through the page cache.
    pub(super) fn cached(&self) -> Vec<Ino> {
        let inodes = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        inodes.iter().filter(|(_, open)| open.backing.is_none()).map(|(ino, _)| *ino).collect()
    }

    /// One open file less.
    pub(super) fn close(&self, ino: Ino) {
        let mut inodes = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = inodes.get_mut(&ino) {
            open.n_handles = open.n_handles.saturating_sub(1);
            if open.n_handles == 0 {
                let count = if open.backing.is_some() { &self.n_backed } else { &self.n_cached };
                count.fetch_sub(1, Ordering::Relaxed);
                inodes.remove(&ino);
            }
        }
    }

    fn register(
        &self,
        backing: Option<BorrowedFd<'_>>,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Option<BackingId> {
        let fd = backing?;
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        match register(fd) {
            Ok(id) => {
                self.used.store(true, Ordering::Relaxed);
                Some(id)
            }
            // Out of descriptors or memory: this file goes through the daemon, the next one may not have to.
            Err(error) if is_passing(&error) => {
                warn!("a file is not passed through: {error}");
                None
            }
            Err(error) => {
                self.turn_off(&error);
                None
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR | libc::EAGAIN)
    )
}
