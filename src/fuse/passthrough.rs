//! FUSE passthrough: handing files to the kernel, which then serves reads, writes and mappings by itself: data files, and
//! those that hold a compressed array decoded.
//!
//! The kernel needs all open files of an inode to be alike: passed through to one and the same backing id, or cached.
//! So the first open decides for all that follow until the last one is closed, and they share the id. Decoded arrays are
//! passed through for reading only: what a mapping writes there would reach nobody. Those who want to write use the other
//! inode of that version, which is cached, and never is a version cached in both. Needs Linux 6.9 and CAP_SYS_ADMIN; at
//! the first refusal of either the mount goes on without, for good.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::BackingId;
use log::{info, warn};

use crate::fs::{Caller, DecodedFile, Fs, Ino};

/// How a file is to be opened.
#[derive(Debug, Clone)]
pub(super) enum OpenAs {
    /// Through the daemon and the page cache. `keep`: pages from before are still good. `unwatched`: nobody looks after
    /// files that are open so, and somebody is to begin.
    Cached { keep: bool, unwatched: bool },
    /// By the kernel alone, from this file. `decoded`: it is no data file.
    Backed { id: Arc<BackingId>, decoded: bool },
    /// Not at all: through the other inode of the version.
    Aside,
}

/// Who wants to open what.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pub(super) fs: &'a Fs,
    pub(super) ino: Ino,
    pub(super) caller: Caller,
    pub(super) write: bool,
    /// False for inodes whose pages are never old.
    pub(super) may_pass: bool,
    pub(super) source: Source<'a>,
}

/// What an inode can be read from.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// The daemon.
    Daemon,
    /// The data file, whose bytes are the inode's.
    DataFile(BorrowedFd<'a>),
    /// A file that the array is decoded in.
    Decoded(Arc<DecodedFile>),
}

/// How the open files of each inode are open.
#[derive(Debug)]
pub(super) struct Passthrough {
    on: AtomicBool,
    /// Whether a file was ever passed through: pages that were cached before may be old then.
    used: AtomicBool,
    /// Inodes that are open through the page cache.
    n_cached: AtomicUsize,
    /// Whether somebody looks after them. It goes on for a while after the last one was closed, because the next one may be
    /// opened in no time, and to wake somebody for each takes longer than to open it.
    watched: AtomicBool,
    /// Inodes that are open and passed through.
    n_backed: AtomicUsize,
    open: Mutex<HashMap<Ino, Open>>,
}

#[derive(Debug)]
struct Open {
    n_handles: usize,
    backing: Option<Arc<BackingId>>,
    /// What `backing` stands for, if it is not the data file. It is in use while it is here.
    decoded: Option<Arc<DecodedFile>>,
}

impl Passthrough {
    pub(super) fn new(on: bool) -> Self {
        Self {
            on: AtomicBool::new(on),
            used: AtomicBool::new(false),
            n_cached: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
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

    /// Whether files may be passed through, as far as anybody knows. `register` is tried if nobody knows.
    pub(super) fn is_available(&self, register: impl FnOnce() -> io::Result<BackingId>) -> bool {
        if self.on.load(Ordering::Relaxed) && !self.used.load(Ordering::Relaxed) {
            self.keep_or_turn_off(register());
        }
        self.on.load(Ordering::Relaxed) && self.used.load(Ordering::Relaxed)
    }

    /// Decides for one more open file of an inode; [`Passthrough::close`] must follow, unless it is opened
    /// [aside](OpenAs::Aside). `register` hands a file to the kernel.
    pub(super) fn open(
        &self,
        wish: Wish<'_>,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> OpenAs {
        let Wish { fs, ino, caller, write, may_pass, source } = wish;
        // Nobody opens a file between the decision and its consequence, or two who want different things would go back
        // and forth.
        let aside = || {
            fs.lead_to_other(ino, caller);
            OpenAs::Aside
        };
        let mut inodes = self.inodes();
        if let Some(open) = inodes.get(&ino) {
            if open.decoded.as_ref().is_some_and(|decoded| write || decoded.is_behind()) {
                return aside();
            }
        } else {
            let (backing, decoded) = match source {
                Source::Daemon => (None, None),
                Source::DataFile(fd) => (self.register(fd, register), None),
                Source::Decoded(_) if write => (None, None),
                Source::Decoded(file) => {
                    let backing = file.fd().and_then(|fd| self.register(fd, register));
                    (backing, Some(file))
                }
            };
            let other = ino.other().and_then(|other| inodes.get(&other));
            let is_other_cached = other.is_some_and(|other| other.backing.is_none());
            if backing.is_none() && (is_other_cached || fs.leads_to_other(ino, caller)) {
                return aside();
            }
            let decoded = decoded.filter(|_| backing.is_some());
            inodes.insert(ino, Open { n_handles: 0, backing: backing.map(Arc::new), decoded });
        }
        let Some(open) = inodes.get_mut(&ino) else { return aside() };
        open.n_handles += 1;
        let is_first = open.n_handles == 1;
        fs.arrived(ino, caller);
        match &open.backing {
            Some(id) => {
                self.n_backed.fetch_add(usize::from(is_first), Ordering::Relaxed);
                OpenAs::Backed { id: Arc::clone(id), decoded: open.decoded.is_some() }
            }
            None => {
                let never_passed = !self.on.load(Ordering::Relaxed) && !self.used.load(Ordering::Relaxed);
                let unwatched = is_first && {
                    self.n_cached.fetch_add(1, Ordering::SeqCst);
                    !self.watched.swap(true, Ordering::SeqCst)
                };
                OpenAs::Cached { keep: !may_pass || never_passed, unwatched }
            }
        }
    }

    /// Whether an inode is open and passed through.
    pub(super) fn is_backed(&self, ino: Ino) -> bool {
        if self.n_backed.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.inodes().get(&ino).is_some_and(|open| open.backing.is_some())
    }

    /// Whether an inode is open, and served from a file that its array was decoded in.
    pub(super) fn is_decoded(&self, ino: Ino) -> bool {
        self.inodes().get(&ino).is_some_and(|open| open.decoded.is_some())
    }

    /// Whether inodes that are open through the page cache are to be looked after.
    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// Ends that if there is none: who opens the next one says so.
    pub(super) fn end_watch(&self) {
        let has_cached = || self.n_cached.load(Ordering::SeqCst) > 0;
        if !has_cached() {
            self.watched.store(false, Ordering::SeqCst);
            // Opened in between, it may have been taken for watched.
            if has_cached() {
                self.watched.store(true, Ordering::SeqCst);
            }
        }
    }

    /// The inodes that are open through the page cache.
    pub(super) fn cached(&self) -> Vec<Ino> {
        self.inodes().iter().filter(|(_, open)| open.backing.is_none()).map(|(ino, _)| *ino).collect()
    }

    /// One open file less. Returns whether it was the last one of a decoded array.
    pub(super) fn close(&self, ino: Ino) -> bool {
        let mut inodes = self.inodes();
        let Some(open) = inodes.get_mut(&ino) else { return false };
        open.n_handles = open.n_handles.saturating_sub(1);
        if open.n_handles > 0 {
            return false;
        }
        let count = if open.backing.is_some() { &self.n_backed } else { &self.n_cached };
        count.fetch_sub(1, Ordering::SeqCst);
        inodes.remove(&ino).is_some_and(|open| open.decoded.is_some())
    }

    fn inodes(&self) -> MutexGuard<'_, HashMap<Ino, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(
        &self,
        fd: BorrowedFd<'_>,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Option<BackingId> {
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        self.keep_or_turn_off(register(fd))
    }

    fn keep_or_turn_off(&self, registered: io::Result<BackingId>) -> Option<BackingId> {
        match registered {
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
