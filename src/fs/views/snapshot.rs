//! The arrays that a view shows, as they are at one moment.
//!
//! Nothing is copied. Rows that are appended or dropped later, and later versions, are other states of an array, which
//! a snapshot does not follow. What is written in place shows in it: whether that happened is found by comparing a
//! snapshot with a later one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use log::debug;

use super::checksum::append;
use crate::fs::lock;
use crate::store::{Array, StoreError};
use crate::sys::FileStat;
use crate::sys::process::{n_cores, share_out};

/// Files whose time of change is less ago may be changed again without another time: file systems count in ticks.
const TICK: Duration = Duration::from_millis(20);
/// About as many bytes are read at once for a checksum.
const CHUNK_LEN: u64 = 256 << 10;
/// Threads that read for one checksum.
const MAX_THREADS: usize = 8;

/// An array in a snapshot.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) array: Array,
    /// Where the mount shows it.
    pub(super) path: Box<str>,
    /// When its elements were written in place last, as far as its record does not tell; `None` if nobody knows.
    written: Option<SystemTime>,
    checksum: Arc<Mutex<Checksum>>,
}

/// The CRC-32 of the elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Checksum {
    /// Nobody wanted it yet.
    #[default]
    Unread,
    Known(u32),
    /// They could not be read.
    Unreadable,
}

impl Member {
    /// An array and what is known about its data file. `is_quiet`: no program has the array open for writing here.
    pub(super) fn new(array: Array, path: &str, stat: Option<&FileStat>, is_quiet: bool) -> Self {
        let written = match stat {
            // Each change is another record.
            _ if array.codec().is_some() => Some(array.committed()),
            None => Some(SystemTime::UNIX_EPOCH),
            // The file's time says when a page was first written through a mapping, not when it was last.
            Some(_) if !is_quiet => None,
            Some(stat) => {
                let age =
                    SystemTime::now().duration_since(stat.mtime).unwrap_or_else(|ahead| ahead.duration());
                (age > TICK).then_some(stat.mtime)
            }
        };
        Self { array, path: path.into(), written, checksum: Arc::default() }
    }

    /// Whether the other one is the same, and has the same elements.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.written.is_some()
            && self.written == other.written
            && self.path == other.path
            && self.array.is_same_state(&other.array)
    }

    /// Shares the checksum of one that has the same elements.
    pub(super) fn share_checksum(&mut self, other: &Self) {
        self.checksum = Arc::clone(&other.checksum);
    }

    /// Whether the elements have to be read for their checksum, or are being read.
    pub(super) fn is_unread(&self) -> bool {
        // Whoever reads them holds the lock.
        self.checksum.try_lock().map_or(true, |checksum| *checksum == Checksum::Unread)
    }

    /// Tries again what could not be read.
    pub(super) fn read_again(&self) {
        let mut checksum = lock(&self.checksum);
        if *checksum == Checksum::Unreadable {
            *checksum = Checksum::Unread;
        }
    }

    /// The CRC-32 of the elements; `None` if they cannot be read. Reads all of them the first time, on all cores;
    /// `array` is the member's, opened. Gives up if `is_ended`.
    pub(super) fn checksum(&self, array: &Array, is_ended: &AtomicBool) -> Option<u32> {
        let mut checksum = lock(&self.checksum);
        if *checksum == Checksum::Unread {
            *checksum = match compute(array, is_ended) {
                Ok(checksum) => Checksum::Known(checksum),
                Err(error) => {
                    debug!("array {:?} has no checksum: {error:?}", array.name());
                    Checksum::Unreadable
                }
            };
        }
        match *checksum {
            Checksum::Known(checksum) => Some(checksum),
            Checksum::Unread | Checksum::Unreadable => None,
        }
    }
}

/// The CRC-32 of all elements. No error at all is that it `is_ended`.
fn compute(array: &Array, is_ended: &AtomicBool) -> Result<u32, Option<StoreError>> {
    let block_len = array.codec().map_or(1, |codec| u64::from(codec.block_len));
    let chunk_len = CHUNK_LEN.next_multiple_of(block_len);
    let nbytes = array.nbytes();
    let mut checksums = vec![0; usize::try_from(nbytes.div_ceil(chunk_len)).unwrap_or(usize::MAX)];
    let chunks = (0..nbytes).step_by(usize::try_from(chunk_len).unwrap_or(usize::MAX));
    let n_threads = n_cores().min(MAX_THREADS).min(checksums.len());
    share_out(n_threads, chunks.zip(&mut checksums), Vec::new, |bytes: &mut Vec<u8>, (start, checksum)| {
        if is_ended.load(Ordering::Relaxed) {
            return Err(None);
        }
        bytes.resize(chunk_len.min(nbytes - start) as usize, 0);
        array.read_elements_at(start, bytes).map_err(Some)?;
        *checksum = crc32fast::hash(bytes);
        Ok(())
    })?;
    let lens = (0..nbytes).step_by(usize::try_from(chunk_len).unwrap_or(usize::MAX));
    let lens = lens.map(|start| chunk_len.min(nbytes - start));
    Ok(checksums.iter().zip(lens).fold(0, |all, (checksum, len)| append(all, *checksum, len)))
}

/// Arrays at one moment, and who may read all of them.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// In the order of their first save.
    pub(super) members: Vec<Member>,
    /// When the last of them changed.
    pub(super) mtime: SystemTime,
    pub(super) rights: Rights,
}

impl Snapshot {
    /// Whether the other one shows the same, to the same users.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        if (self.mtime, self.rights) != (other.mtime, other.rights) {
            return false;
        }
        let pairs = self.members.iter().zip(&other.members);
        self.members.len() == other.members.len() && pairs.into_iter().all(|(own, other)| own.is_same(other))
    }
}

/// Whose a view is, and its permissions: nobody reads through a view what he could not read in a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) perm: u16,
}

impl Rights {
    /// Those of a view of nothing, in the folder that `stat` is of.
    pub(super) fn new(stat: &FileStat) -> Self {
        Self { uid: stat.uid, gid: stat.gid, perm: 0o444 }
    }

    /// Takes away what a data file does not let its users do.
    pub(super) fn narrow(&mut self, file: &FileStat) {
        self.narrow_by(file.mode, file.uid, file.gid, 0o4);
    }

    /// Takes away what the permissions of a folder do not let its users do: reach what is in it.
    pub(super) fn narrow_folder(&mut self, mode: u32, uid: u32, gid: u32) {
        self.narrow_by(mode, uid, gid, 0o1);
    }

    /// Lets those read who have the permission `bit`.
    fn narrow_by(&mut self, mode: u32, uid: u32, gid: u32, bit: u32) {
        let read = |class: u32| if mode >> (3 * class) & bit != 0 { 0o4 } else { 0 };
        let owner = if uid == self.uid { read(2) } else { read(0) };
        let group = if gid == self.gid { read(1) } else { read(0) };
        self.perm &= owner << 6 | group << 3 | read(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_read_by_those_who_may_read_all_data_files() {
        let stat = |mode, uid, gid| FileStat {
            ino: 1,
            dev: 1,
            len: 0,
            allocated: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            mode,
            uid,
            gid,
            nlink: 1,
        };
        let perm = |files: &[(u32, u32, u32)]| {
            let mut rights = Rights::new(&stat(0o755, 1, 1));
            files.iter().for_each(|(mode, uid, gid)| rights.narrow(&stat(*mode, *uid, *gid)));
            rights.perm
        };
        assert_eq!(perm(&[]), 0o444);
        assert_eq!(perm(&[(0o644, 1, 1), (0o666, 1, 1)]), 0o444);
        assert_eq!(perm(&[(0o644, 1, 1), (0o640, 1, 1)]), 0o440);
        assert_eq!(perm(&[(0o600, 1, 1)]), 0o400);
        assert_eq!(perm(&[(0o640, 1, 2)]), 0o400);
        assert_eq!(perm(&[(0o600, 2, 1)]), 0);
        assert_eq!(perm(&[(0o604, 2, 2)]), 0o444);
        let mut rights = Rights::new(&stat(0o755, 1, 1));
        rights.narrow_folder(0o751, 1, 1);
        assert_eq!(rights.perm, 0o444);
        rights.narrow_folder(0o750, 1, 1);
        assert_eq!(rights.perm, 0o440);
        rights.narrow_folder(0o700, 2, 1);
        assert_eq!(rights.perm, 0);
    }
}
