//! What was done for those who use a mount, counted since it began.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Fs, FsError};
use crate::store::StoreError;

/// Numbers that only grow. What the kernel serves by itself, from its page cache or from the data file, is in none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that were answered.
    pub reads: u64,
    /// Their bytes.
    pub bytes_read: u64,
    /// Writes that were taken.
    pub writes: u64,
    /// Their bytes.
    pub bytes_written: u64,
    /// Bytes of compressed arrays that were decoded to be read.
    pub bytes_decoded: u64,
    /// Parts of reads that a block answered which was decoded already.
    pub cache_hits: u64,
    /// Operations on files that failed in the store or on its disk.
    pub errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    pub(super) fn note_read(&self, len: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(len, Ordering::Relaxed);
    }

    pub(super) fn note_write(&self, len: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(len, Ordering::Relaxed);
    }

    /// Counts errors of the store, but not that another writer is at work: that is tried again.
    pub(super) fn note_error(&self, error: &FsError) {
        let is_failure = match error {
            FsError::Store(StoreError::Locked { .. } | StoreError::NotFound { .. }) => false,
            FsError::Store(_) => true,
            _ => false,
        };
        if is_failure {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Fs {
    /// What was done up to now.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reads: of(&self.counters.reads),
            bytes_read: of(&self.counters.bytes_read),
            writes: of(&self.counters.writes),
            bytes_written: of(&self.counters.bytes_written),
            bytes_decoded: self.blocks.bytes_decoded(),
            cache_hits: self.blocks.hits(),
            errors: of(&self.counters.errors),
        }
    }
}
