//! Compressed arrays decoded whole, into files whose bytes are those of the virtual `.npy` file: for a kernel that can
//! serve such a file by itself.
//!
//! A [`DecodedFile`] has no name, and is kept between uses as long as there is room. While it is used it follows what is
//! committed, and what is written through the mount: elements are decoded again where the array's index changed, and the
//! header comes last, so that no header promises rows that are not there. A file that cannot follow says so
//! ([`DecodedFile::is_behind`]), and is used by nobody new.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::Duration;

use log::{debug, info, warn};

use super::{Fs, FsError, Ino, lock, read, write};
use crate::store::{Array, BlocksState, StoreError};
use crate::sys::StorageFile;
use crate::sys::process::{n_cores, share_out};

/// Bytes that are decoded and written in one piece, beginning at a multiple of it in the file: the kernel caches what is
/// written in small pieces in small pieces, and such a file is read at half the speed.
const CHUNK_LEN: u64 = 4 << 20;
/// More threads gain nothing on the way to the page cache.
const MAX_THREADS: usize = 8;
/// The kernel closes a file a little later than it says so: who needs its place looks so often, after so long each time.
const MAX_ATTEMPTS: u32 = 10;
const CLOSING_PAUSE: Duration = Duration::from_millis(1);
/// Arrays of which is remembered how much was read of them, or that they could not be decoded.
const MAX_REMEMBERED: usize = 1 << 16;

/// How far a decoded array has come.
#[derive(Debug, Default)]
struct State {
    /// What is decoded; `None` at first.
    blocks: Option<BlocksState>,
    /// [`Fs::n_lost`] at that time.
    n_lost: u64,
}

/// A decoded array.
#[derive(Debug)]
pub struct DecodedFile {
    /// The array's first inode.
    ino: Ino,
    file: Arc<dyn StorageFile>,
    header_len: u64,
    /// Held while the file follows the array.
    state: Mutex<State>,
    /// Shared by those who decode, which is not to be mixed with what is written through the mount.
    gate: RwLock<()>,
    behind: AtomicBool,
    /// Whether something that was written is not in the file, whatever `state` says.
    lost: AtomicBool,
}

impl DecodedFile {
    /// The descriptor, where there is one.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.fd()
    }

    /// Whether the file shows less than the array has by now.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Whether the file is decoded and as new as `array`.
    fn is_current(&self, fs: &Fs, array: &Array) -> bool {
        // Held by who is at work on it: it is not current, as far as anybody knows.
        let Ok(state) = self.state.try_lock() else { return false };
        state.blocks.is_some()
            && !self.is_behind()
            && state.n_lost == fs.n_lost(self.ino)
            && array.blocks_state().is_ok_and(|now| now == state.blocks)
    }

    /// Lets the elements follow those of `array`, on all cores.
    fn follow(&self, fs: &Fs, array: &Array) -> Result<(), FsError> {
        let mut state = lock(&self.state);
        // Taken before anything is read: what changes meanwhile is decoded once more the next time.
        let Some(now) = array.blocks_state()? else { return Ok(()) };
        let n_lost = fs.n_lost(self.ino);
        if self.lost.swap(false, Ordering::Relaxed) || n_lost != state.n_lost {
            *state = State { blocks: None, n_lost };
        }
        let stored = match &state.blocks {
            Some(before) if *before == now => Vec::new(),
            Some(before) => array.changed_between(before, &now)?,
            None => Vec::from([Range { start: 0, end: array.nbytes() }]),
        };
        let result = self.decode(fs, array, &stored);
        self.behind.store(result.is_err(), Ordering::Relaxed);
        result?;
        state.blocks = Some(now);
        Ok(())
    }

    /// Decodes ranges of the elements.
    fn decode(&self, fs: &Fs, array: &Array, ranges: &[Range<u64>]) -> Result<(), FsError> {
        let chunks = ranges.iter().flat_map(|range| {
            let (mut start, end) = (self.header_len + range.start, self.header_len + range.end);
            std::iter::from_fn(move || {
                let chunk = start..end.min((start / CHUNK_LEN + 1) * CHUNK_LEN);
                start = chunk.end;
                (chunk.start < chunk.end).then_some(chunk)
            })
        });
        let chunks: Vec<_> = chunks.collect();
        let n_threads = n_cores().min(MAX_THREADS).min(chunks.len());
        share_out(n_threads, chunks.into_iter(), Vec::new, |bytes, chunk| {
            let _shared = read(&self.gate);
            bytes.resize((chunk.end - chunk.start) as usize, 0);
            fs.read_newest(self.ino, array, chunk.start, bytes)?;
            self.file.write_at(bytes, chunk.start).map_err(|source| failed(fs, "write", source))
        })
    }

    /// Lets the header follow the one that the array's inode shows.
    fn show_header(&self, fs: &Fs) -> Result<(), FsError> {
        let _alone = lock(&self.state);
        let inode = fs.inodes.get(self.ino).ok_or(FsError::Stale { ino: self.ino })?;
        let header = inode.header()?;
        self.file.write_at(&header, 0).map_err(|source| failed(fs, "write", source))
    }

    /// Waits until nobody decodes, and keeps it so: for who writes to the array.
    pub fn write(&self) -> DecodedWrite<'_> {
        DecodedWrite { file: self, _alone: write(&self.gate) }
    }
}

fn failed(fs: &Fs, action: &'static str, source: io::Error) -> FsError {
    FsError::Store(StoreError::Io { action, path: fs.store.path().join("(a decoded array)"), source })
}

/// The right to write to a decoded file.
#[derive(Debug)]
pub struct DecodedWrite<'a> {
    file: &'a DecodedFile,
    _alone: RwLockWriteGuard<'a, ()>,
}

impl DecodedWrite<'_> {
    /// Writes what was written to the array, at an offset of the virtual file, as far as it is elements.
    pub fn write(&self, fs: &Fs, offset: u64, data: &[u8]) {
        // As far as both inodes show it: what a page holds behind the end is nobody's.
        let npy_len = fs.inodes.with_other(self.file.ino).map(|inode| inode.array().1).min().unwrap_or(0);
        let skip = self.file.header_len.saturating_sub(offset).min(data.len() as u64);
        let len = npy_len.saturating_sub(offset).min(data.len() as u64);
        let elements = data.get(skip as usize..len as usize).unwrap_or_default();
        if elements.is_empty() {
            return;
        }
        if let Err(error) = self.file.file.write_at(elements, offset + skip) {
            warn!("a decoded array does not show what was written to it: {error}");
            self.file.behind.store(true, Ordering::Relaxed);
        }
    }
}

/// What there is for somebody who opens an array.
#[derive(Debug, Clone)]
pub enum Found {
    /// It is not to be decoded.
    Nothing,
    /// A file that is as new as the array.
    Current(Arc<DecodedFile>),
    /// It is to be decoded, or decoded in part: [`DecodedFiles::bring`] does that, and takes its time.
    Wanted,
}

/// Which arrays are decoded, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodePolicy {
    /// Bytes that all decoded files have together at most; 0: there are none.
    pub limit: u64,
    /// How many there are at most: each takes a descriptor.
    pub max_files: usize,
    /// Arrays of fewer bytes of elements are not decoded.
    pub min_len: u64,
    /// Arrays of at most this many bytes of elements are decoded when they are opened for the first time; larger ones
    /// when they are opened after half of that was read which there is to read: it costs about as much as decoding all
    /// of it. That somebody opens them again says little: `np.load` opens a file three times to map it.
    pub first_open_len: u64,
}

/// The decoded files of a mount: as many as there is room for.
#[derive(Debug)]
pub struct DecodedFiles {
    policy: DecodePolicy,
    state: Mutex<Files>,
    /// As in `state`, to be asked without a lock.
    n_files: AtomicUsize,
    /// Whether versions that are gone were in use.
    leftover: AtomicBool,
}

#[derive(Debug, Default)]
struct Files {
    files: HashMap<Ino, Kept>,
    /// Bytes of all of them.
    len: u64,
    /// Counts uses.
    clock: u64,
    /// Bytes that were read of arrays without a decoded file.
    read: HashMap<Ino, u64>,
    /// Arrays that could not be decoded in this state.
    failed: HashMap<Ino, Option<BlocksState>>,
}

#[derive(Debug)]
struct Kept {
    file: Arc<DecodedFile>,
    len: u64,
    used_at: u64,
}

impl Kept {
    /// Whether somebody else has the file, or has it mapped.
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.file) > 1 || self.file.file.has_others()
    }

    /// Whether the kernel is the only one who has it: for a program that has it mapped, or for a moment after a program
    /// closed it.
    fn is_closing(&self) -> bool {
        Arc::strong_count(&self.file) == 1 && self.file.file.has_others()
    }
}

impl DecodedFiles {
    /// None yet.
    pub fn new(policy: DecodePolicy) -> Self {
        Self {
            policy,
            state: Mutex::default(),
            n_files: AtomicUsize::new(0),
            leftover: AtomicBool::new(false),
        }
    }

    /// Bytes that decoded files may have together.
    pub fn limit(&self) -> u64 {
        self.policy.limit
    }

    /// Bytes that they have.
    pub fn len(&self) -> u64 {
        lock(&self.state).len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n_files.load(Ordering::Relaxed) == 0
    }

    /// Remembers that `len` bytes of an array were read in another way.
    pub fn note_read(&self, ino: Ino, len: u64) {
        if self.policy.limit == 0 {
            return;
        }
        let mut state = lock(&self.state);
        if state.read.len() >= MAX_REMEMBERED {
            state.read.clear();
        }
        let read = state.read.entry(ino.own()).or_default();
        *read = read.saturating_add(len);
    }

    /// What there is for somebody who opens an array for reading.
    pub fn find(&self, fs: &Fs, ino: Ino, array: &Array) -> Found {
        let is_decodable = array.codec().is_some() && array.n_deleted() == 0 && !ino.is_aside();
        if !is_decodable || array.nbytes() < self.policy.min_len || array.npy_len() > self.policy.limit {
            return Found::Nothing;
        }
        let mut state = lock(&self.state);
        state.clock += 1;
        let now = state.clock;
        if let Some(kept) = state.files.get_mut(&ino) {
            kept.used_at = now;
            // From here on it is in use, and follows what is committed.
            let file = Arc::clone(&kept.file);
            drop(state);
            return if file.is_current(fs, array) { Found::Current(file) } else { Found::Wanted };
        }
        let n_read = state.read.get(&ino).copied().unwrap_or(0);
        if array.nbytes() > self.policy.first_open_len && n_read < array.nbytes() / 2 {
            return Found::Nothing;
        }
        match state.failed.get(&ino) {
            Some(of) if array.blocks_state().is_ok_and(|now| now == *of) => Found::Nothing,
            _ => Found::Wanted,
        }
    }

    /// Decodes an array, or what changed of it since it was decoded. `None`, and a line in the log, if that cannot be.
    pub fn bring(&self, fs: &Fs, ino: Ino, array: &Array) -> Option<Arc<DecodedFile>> {
        let file = match self.take_place(fs, ino, array) {
            Ok(file) => file?,
            Err(error) => return self.give_up(fs, ino, array, &error),
        };
        match file.follow(fs, array).and_then(|()| file.show_header(fs)) {
            Ok(()) => Some(file),
            Err(error) => {
                drop(file);
                self.give_up(fs, ino, array, &error)
            }
        }
    }

    /// The file of an array, made if there is none; `None` if there is no room for it.
    fn take_place(&self, fs: &Fs, ino: Ino, array: &Array) -> Result<Option<Arc<DecodedFile>>, FsError> {
        let len = array.npy_len();
        let mut attempts = 0;
        let (mut state, grows_by, has_room) = loop {
            let mut state = lock(&self.state);
            let grows_by = len.saturating_sub(state.files.get(&ino).map_or(0, |kept| kept.len));
            let has_room = self.make_room(fs, &mut state, grows_by, ino);
            attempts += 1;
            if has_room || attempts > MAX_ATTEMPTS || !state.files.values().any(|kept| kept.is_closing()) {
                break (state, grows_by, has_room);
            }
            drop(state);
            thread::sleep(CLOSING_PAUSE);
        };
        state.clock += 1;
        let used_at = state.clock;
        if let Some(kept) = state.files.get_mut(&ino) {
            if !has_room && !kept.is_used() {
                self.remove(fs, &mut state, ino);
                return Ok(None);
            }
            kept.len += grows_by;
            kept.used_at = used_at;
            let file = Arc::clone(&kept.file);
            state.len += grows_by;
            return Ok(Some(file));
        }
        if !has_room {
            debug!("array {:?} is not decoded: others that are in use leave no room", array.name());
            return Ok(None);
        }
        // The disk is there for others in the first place.
        let stat = fs.store.stat_fs()?;
        if len > stat.blocks_available.saturating_mul(stat.block_len) / 4 {
            debug!("array {:?} is not decoded: the disk has too little room", array.name());
            return Ok(None);
        }
        let scratch = fs.store.scratch_file()?;
        scratch.set_len(len).map_err(|source| failed(fs, "make room in", source))?;
        let file = Arc::new(DecodedFile {
            ino,
            file: scratch,
            header_len: array.header_len(),
            state: Mutex::default(),
            gate: RwLock::new(()),
            behind: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        });
        // The inode stays known, and so its changes, as long as the file is there.
        fs.inodes.look_up(ino, array.clone());
        state.files.insert(ino, Kept { file: Arc::clone(&file), len, used_at });
        state.len += len;
        self.n_files.store(state.files.len(), Ordering::Relaxed);
        Ok(Some(file))
    }

    /// Says why an array is not decoded, and does not try again before it changes.
    fn give_up(&self, fs: &Fs, ino: Ino, array: &Array, error: &FsError) -> Option<Arc<DecodedFile>> {
        let mut state = lock(&self.state);
        warn!("array {:?} is read as it is, not decoded: {error}", array.name());
        if state.failed.len() >= MAX_REMEMBERED {
            state.failed.clear();
        }
        state.failed.insert(ino, array.blocks_state().ok().flatten());
        if state.files.get(&ino).is_some_and(|kept| !kept.is_used()) {
            self.remove(fs, &mut state, ino);
        }
        None
    }

    /// Drops files that nobody uses, those first that were not used for longest, until there is room for `len` more
    /// bytes, and for one of `ino`. Returns whether there is.
    fn make_room(&self, fs: &Fs, state: &mut Files, len: u64, ino: Ino) -> bool {
        let is_new = !state.files.contains_key(&ino);
        let has_room = |state: &Files| {
            state.len + len <= self.policy.limit
                && state.files.len() + usize::from(is_new) <= self.policy.max_files
        };
        if has_room(state) {
            return true;
        }
        let unused = state.files.iter().filter(|(of, kept)| **of != ino && !kept.is_used());
        let mut unused: Vec<_> = unused.map(|(of, kept)| (kept.used_at, *of)).collect();
        unused.sort_unstable();
        for (_, unused) in unused {
            if has_room(state) {
                break;
            }
            self.remove(fs, state, unused);
        }
        has_room(state)
    }

    fn remove(&self, fs: &Fs, state: &mut Files, ino: Ino) {
        if let Some(kept) = state.files.remove(&ino) {
            debug!("the decoded file of inode {ino} is dropped");
            state.len -= kept.len;
            self.n_files.store(state.files.len(), Ordering::Relaxed);
            fs.inodes.forget(ino, 1);
        }
    }

    /// The file of an array, of whichever of its inodes.
    pub fn get(&self, ino: Ino) -> Option<Arc<DecodedFile>> {
        if self.is_empty() {
            return None;
        }
        lock(&self.state).files.get(&ino.own()).map(|kept| Arc::clone(&kept.file))
    }

    /// Lets the file of an array follow what was committed, if somebody uses it. Its header follows by
    /// [`DecodedFiles::show_header`].
    pub fn follow(&self, fs: &Fs, ino: Ino) {
        let Some((file, array)) = self.used(fs, ino) else { return };
        {
            let mut state = lock(&self.state);
            if let Some(kept) = state.files.get_mut(&ino.own()) {
                let grows_by = array.npy_len().saturating_sub(kept.len);
                kept.len += grows_by;
                state.len += grows_by;
                if !self.make_room(fs, &mut state, 0, ino.own()) {
                    info!("decoded arrays grew beyond the room for them while they are open");
                }
            }
        }
        let was_behind = file.is_behind();
        if let Err(error) = file.follow(fs, &array)
            && !was_behind
        {
            warn!(
                "array {:?}: programs that have it open do not see the newest state: {error}",
                array.name()
            );
        }
    }

    /// Lets the header follow, once it is shown.
    pub fn show_header(&self, fs: &Fs, ino: Ino) {
        let Some((file, _)) = self.used(fs, ino) else { return };
        if !file.is_behind()
            && let Err(error) = file.show_header(fs)
        {
            debug!("the header of inode {ino} stays as it was: {error}");
        }
    }

    fn used(&self, fs: &Fs, ino: Ino) -> Option<(Arc<DecodedFile>, Array)> {
        if self.is_empty() {
            return None;
        }
        let file = {
            let state = lock(&self.state);
            let kept = state.files.get(&ino.own())?;
            if !kept.is_used() {
                return None;
            }
            Arc::clone(&kept.file)
        };
        let (array, _) = fs.inodes.get(ino.own())?.array();
        Some((file, array))
    }

    /// Drops files of versions that no name leads to any more, unless somebody uses them.
    pub fn tidy(&self, fs: &Fs) {
        if self.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        let is_gone = |ino: &Ino| fs.inodes.get(*ino).is_none_or(|inode| !inode.is_named());
        let gone: Vec<_> = state.files.keys().copied().filter(is_gone).collect();
        let mut leftover = false;
        for ino in gone {
            if state.files.get(&ino).is_some_and(|kept| kept.is_used()) {
                leftover = true;
            } else {
                self.remove(fs, &mut state, ino);
            }
        }
        self.leftover.store(leftover, Ordering::Relaxed);
    }

    /// Whether [`DecodedFiles::tidy`] left something behind, that it should look at again by and by.
    pub fn has_leftover(&self) -> bool {
        self.leftover.load(Ordering::Relaxed)
    }
}

impl Fs {
    /// Reads elements of an array in their newest state, what was written through the mount included.
    fn read_newest(&self, ino: Ino, array: &Array, offset: u64, out: &mut [u8]) -> Result<(), FsError> {
        let overlays = self.inodes.with_other(ino).map(|inode| inode.uncommitted.overlay(offset, out.len()));
        let overlays: Vec<_> = overlays.collect();
        array.read_npy_at(offset, out)?;
        overlays.iter().for_each(|overlay| overlay.put_over(out));
        Ok(())
    }

    /// Changes whenever something is lost that was written to a version.
    fn n_lost(&self, ino: Ino) -> u64 {
        self.inodes.with_other(ino).map(|inode| inode.n_lost.load(Ordering::Relaxed)).sum()
    }
}
