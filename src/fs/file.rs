//! Open files: reading and writing arrays in place.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::{debug, warn};

use super::inode::{Effect, Inode};
use super::{Caller, Closed, Fh, Fs, FsError, Ino, Invalidation, Written, lock};
use crate::store::{Array, StoreError};

thread_local! {
    /// Where blocks are decoded for replies: fresh memory would have to be cleared each time.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `fill` with memory for a reply of `len` bytes, which has anything in it.
pub(super) fn with_reply<T>(len: usize, fill: impl FnOnce(&mut [u8]) -> T) -> T {
    REPLY.with_borrow_mut(|bytes| {
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        fill(bytes.get_mut(..len).unwrap_or_default())
    })
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// For writing, or for both.
    pub write: bool,
    /// To be emptied.
    pub truncate: bool,
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) inode: Arc<Inode>,
    pub(super) write: bool,
    /// Whether a refusal was logged: a program may try again for ever.
    logged: AtomicBool,
}

impl OpenFile {
    fn log(&self, action: &str, error: &StoreError) {
        if !self.logged.swap(true, Ordering::Relaxed) {
            warn!("cannot {action}: {error}");
        }
    }
}

/// What `open` gives.
#[derive(Debug)]
pub struct Opened {
    /// The handle.
    pub fh: Fh,
    /// The array as it is now: its `backing`, if any, may be handed to the kernel.
    pub array: Array,
    /// Whether the kernel's pages and attributes of this inode are of the present state. If not, an
    /// [`Invalidation::Content`] is on its way, and the program that opens the file
    /// should get its answer after that.
    pub settled: bool,
    /// Whether the data file should be mended: [`Fs::mend`].
    pub wants_mending: bool,
}

impl Fs {
    /// Opens a file.
    ///
    /// # Errors
    /// `Stale` if the name must be looked up again: because it leads elsewhere by now, or because the file is to be
    /// emptied, and another one is made for that; `IsADirectory`, `ReadOnly`; `Store` if the data file is not what the
    /// manifest says.
    pub fn open(&self, ino: Ino, flags: OpenFlags, caller: Caller) -> Result<Opened, FsError> {
        self.open_uncounted(ino, flags, caller).inspect_err(|error| self.counters.note_error(error))
    }

    fn open_uncounted(&self, ino: Ino, flags: OpenFlags, caller: Caller) -> Result<Opened, FsError> {
        if ino.is_directory() {
            return Err(FsError::IsADirectory);
        }
        if (flags.write || flags.truncate) && self.read_only {
            return Err(FsError::ReadOnly);
        }
        self.sync()?;
        let stale = || self.look_again(ino, caller);
        let is_second = self.again.came(caller);
        let inode = self.inodes.get(ino).ok_or_else(stale)?;
        if flags.truncate {
            // Whoever has this version open keeps it. The kernel comes again, and finds what is made then.
            self.expect_emptied(caller, inode.array().0.name());
            return Err(stale());
        }
        if !inode.is_named() && !is_second {
            return Err(stale());
        }
        let array = match inode.opened(flags.write) {
            Ok(array) => array,
            Err(error) => {
                // Overwritten since?
                self.sync()?;
                if !inode.is_named() {
                    return Err(stale());
                }
                warn!("cannot open: {error}");
                return Err(error.into());
            }
        };
        let is_compressed = array.codec().is_some();
        let wants_mending =
            flags.write && array.n_deleted() == 0 && !is_compressed && matches!(array.backing(), Ok(None));
        // Pages that are being stored must not come over those that this program is going to change.
        let is_quiet = !flags.write || !is_compressed || !self.blocks.is_leaving(ino);
        let settled = inode.is_settled() && is_quiet;
        let fh = self.files.insert(OpenFile { inode, write: flags.write, logged: AtomicBool::new(false) });
        Ok(Opened { fh, array, settled, wants_mending })
    }

    /// For open files of which the kernel caches pages: looks whether others wrote to the data file in place without
    /// telling, as mappings do. Returns whether the kernel's pages are of the present state; see [`Opened::settled`].
    pub fn revalidate(&self, ino: Ino) -> bool {
        let Some(inode) = self.inodes.get(ino) else { return true };
        let effect = inode.written_elsewhere();
        self.tell(ino, effect);
        inode.is_settled()
    }

    /// For open files that the kernel reads from the data file by itself: it has no pages of the inode.
    pub fn bypass(&self, ino: Ino) {
        if let Some(inode) = self.inodes.get(ino) {
            inode.bypassed();
        }
    }

    /// Somebody wrote a header that says what the array's does, in other words: the kernel is not to show those.
    pub(super) fn tell_other_words(&self, inode: &Inode) {
        self.tell(inode.ino, Some(inode.unsettle()));
    }

    /// The answer to an `open` of an inode whose name is to be looked up again.
    pub fn look_again(&self, ino: Ino, caller: Caller) -> FsError {
        self.again.expect(caller);
        FsError::Stale { ino }
    }

    pub(super) fn tell(&self, ino: Ino, effect: Option<Effect>) {
        if let Some(Effect::Content { header_len, from }) = effect {
            (self.invalidate)(Invalidation::Content { ino, header_len, from });
        }
    }

    /// Hands the bytes at `offset` of an open file to `reply`: up to `size` of them, fewer only at the end.
    ///
    /// # Errors
    /// `BadHandle`; `Store` if the data file cannot be read; `Unread` if [`Fs::prepare_view`] comes first.
    pub fn read<T>(
        &self,
        fh: Fh,
        offset: u64,
        size: u32,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FsError> {
        // Before it is answered: who has read something finds it counted.
        let counted = |bytes: &[u8]| {
            self.counters.note_read(bytes.len() as u64);
            reply(bytes)
        };
        self.read_uncounted(fh, offset, size, counted).inspect_err(|error| self.counters.note_error(error))
    }

    fn read_uncounted<T>(
        &self,
        fh: Fh,
        offset: u64,
        size: u32,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FsError> {
        if fh.is_pending() {
            return self.read_pending(fh, offset, size, reply);
        }
        if fh.is_view() {
            return self.read_view(fh, offset, size, reply);
        }
        let file = self.files.get(fh)?;
        if let Some(new) = file.inode.emptied.get() {
            return self.read_pending(*new, offset, size, reply);
        }
        let shown_len = file.inode.tail_start();
        if let Some(shown_len) = shown_len.filter(|len| offset.saturating_add(u64::from(size)) > *len) {
            // Somebody has written a part of a row.
            let mut bytes = Vec::new();
            if offset < shown_len {
                let size = u32::try_from(shown_len - offset).unwrap_or(size);
                self.read_rows(&file, offset, size, |rows| bytes.extend_from_slice(rows))?;
            }
            let rest = u64::from(size).saturating_sub(bytes.len() as u64);
            bytes.extend(self.read_tail(&file.inode, offset.max(shown_len), rest));
            return Ok(reply(&bytes));
        }
        self.read_rows(&file, offset, size, reply)
    }

    fn read_rows<T>(
        &self,
        file: &OpenFile,
        offset: u64,
        size: u32,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FsError> {
        let (array, map) = file.inode.mapped().inspect_err(|error| file.log("read", error))?;
        let end = offset.saturating_add(u64::from(size)).min(array.npy_len());
        if offset >= end {
            return Ok(reply(&[]));
        }
        let header_len = array.header_len();
        let (Ok(len), start) = (usize::try_from(end - offset), offset.checked_sub(header_len)) else {
            return Ok(reply(&[]));
        };
        // Straight from the mapping to the kernel.
        if let (Some(map), Some(start)) = (&map, start)
            && let Ok(start) = usize::try_from(start)
            && let Some(bytes) = map.get(start..).and_then(|rest| rest.get(..len))
        {
            return Ok(reply(bytes));
        }
        if array.codec().is_some() {
            return self.read_decoded(file, offset, len, reply);
        }
        let mut bytes = Vec::with_capacity(len);
        if start.is_none() {
            let header = file.inode.header().inspect_err(|error| file.log("read", error))?;
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            bytes.extend(header.iter().skip(from).take(len));
        }
        let n_header = bytes.len();
        bytes.resize(len, 0);
        let elements = bytes.get_mut(n_header..).unwrap_or_default();
        array.read_npy_at(offset.max(header_len), elements).inspect_err(|error| file.log("read", error))?;
        Ok(reply(&bytes))
    }

    /// As [`Fs::read`], from a compressed array.
    fn read_decoded<T>(
        &self,
        file: &OpenFile,
        offset: u64,
        len: usize,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FsError> {
        let overlay = file.inode.uncommitted.overlay(offset, len);
        let (array, epoch) = file.inode.readable();
        with_reply(len, |out| {
            let in_header = array.header_len().saturating_sub(offset).min(len as u64);
            let (header_part, elements) = out.split_at_mut(in_header as usize);
            let mut read = || {
                if in_header > 0 {
                    let header = file.inode.header()?;
                    let header = header.get(offset as usize..).unwrap_or_default();
                    header_part.iter_mut().zip(header).for_each(|(out, byte)| *out = *byte);
                }
                let spare = |of, block| (self.invalidate)(Invalidation::Pages { ino: of, block });
                self.blocks.read(&file.inode, &array, epoch, offset + in_header, elements, spare)
            };
            read().inspect_err(|error| file.log("read", error))?;
            overlay.put_over(out);
            Ok(reply(out))
        })
    }

    /// Writes within the data of an open file. What is written to a compressed array is collected, until
    /// [`Fs::commit`] or one of its kin.
    ///
    /// `from_cache`: the kernel writes back pages, which may hold bytes that nobody meant to change.
    ///
    /// # Errors
    /// `BadHandle`; `Store` with `HeaderWrite`, `OutOfBounds`, or `Locked` if another writer is at work, which is not
    /// waited for, and nothing was written; or if writing fails; `Uncommitted` if [`Fs::commit_all`] comes first.
    pub fn write(&self, fh: Fh, offset: u64, data: &[u8], from_cache: bool) -> Result<Written, FsError> {
        self.write_answering(fh, offset, data, from_cache, || {})
    }

    /// As [`Fs::write`]. If the file is pending, and the disk is sure to have room, `answer` is called before the bytes
    /// are written, so that the program gets the next ones ready meanwhile: the file is locked by then, and whoever asks
    /// for it waits. What fails after that fails every later write, and closing.
    ///
    /// # Errors
    /// As [`Fs::write`]; `WriteLost`.
    pub fn write_answering(
        &self,
        fh: Fh,
        offset: u64,
        data: &[u8],
        from_cache: bool,
        answer: impl FnOnce(),
    ) -> Result<Written, FsError> {
        let result = self.write_uncounted(fh, offset, data, from_cache, answer);
        self.count_write(&result, data.len());
        result
    }

    pub(super) fn count_write<T>(&self, result: &Result<T, FsError>, len: usize) {
        match result {
            Ok(_) => self.counters.note_write(len as u64),
            Err(error) => self.counters.note_error(error),
        }
    }

    fn write_uncounted(
        &self,
        fh: Fh,
        offset: u64,
        data: &[u8],
        from_cache: bool,
        answer: impl FnOnce(),
    ) -> Result<Written, FsError> {
        if fh.is_pending() {
            return self.write_pending(fh, offset, data, from_cache, answer);
        }
        // Writeback may come through any handle of the inode that was open for writing.
        let file = if from_cache { self.files.get(fh)? } else { self.writable(fh)? };
        if let Some(new) = file.inode.emptied.get() {
            return self.write_pending(*new, offset, data, from_cache, answer);
        }
        let (_, shown_len) = file.inode.array();
        if !from_cache && offset.saturating_add(data.len() as u64) > shown_len {
            return self.write_behind(&file, Some(offset), data);
        }
        self.write_within(&file, offset, data, from_cache)
    }

    /// A file that is open for writing.
    pub(super) fn writable(&self, fh: Fh) -> Result<Arc<OpenFile>, FsError> {
        let file = self.files.get(fh)?;
        if !file.write {
            return Err(FsError::BadHandle { fh });
        }
        if self.read_only { Err(FsError::ReadOnly) } else { Ok(file) }
    }

    /// Writes within the rows that there are.
    pub(super) fn write_within(
        &self,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        from_cache: bool,
    ) -> Result<Written, FsError> {
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let (array, shown_len) = file.inode.array();
        let mut data = data;
        if from_cache {
            // Beyond the length that the kernel was told there can only be the zeros that fill up a page.
            let len = usize::try_from(shown_len.saturating_sub(offset)).unwrap_or(usize::MAX);
            data = data.get(..len).unwrap_or(data);
        }
        if array.codec().is_some() {
            return self.collect(&file.inode, &array, offset, data, from_cache);
        }
        let write = || match array.write_npy_within(Duration::ZERO, offset, data) {
            Err(StoreError::HeaderWrite { .. }) if from_cache => {
                write_back_beside_header(&file.inode, &array, offset, data)
            }
            Err(StoreError::HeaderWrite { .. }) if offset == 0 && array.has_header_like(data) => {
                let elements = data.get(array.header_len() as usize..).unwrap_or_default();
                let written = array.write_npy_within(Duration::ZERO, array.header_len(), elements);
                self.tell_other_words(&file.inode);
                written
            }
            result => result,
        };
        let (result, effect) = file.inode.write_with(&array, write);
        self.tell(file.inode.ino, effect);
        match result {
            Ok(()) => {
                let is_first = file.inode.wrote();
                if is_first {
                    lock(&self.untold).push(Arc::clone(&file.inode));
                }
                Ok(if is_first { Written::First } else { Written::Done })
            }
            Err(error) => {
                if !matches!(error, StoreError::Locked { .. }) {
                    file.log("write", &error);
                }
                Err(error.into())
            }
        }
    }

    /// Whether anything was written in place that others are not told of.
    pub fn has_untold(&self) -> bool {
        !lock(&self.untold).is_empty()
    }

    /// Tells other mounts what was written in place through this one. May wait for other writers.
    pub fn tell_written(&self) {
        let inodes = std::mem::take(&mut *lock(&self.untold));
        for inode in inodes {
            inode.take_untold();
            let (array, _) = inode.array();
            if let Err(error) = array.tell_written() {
                debug!("array {:?}: others see what was written a second late: {error}", array.name());
            }
        }
    }

    /// Finishes what a writer that died may have left of an append, so that the file can be passed through when it
    /// is opened next. May wait for other writers.
    pub fn mend(&self, array: &Array) {
        match array.mend() {
            Ok(true) => debug!("array {:?}: its file follows the manifest again", array.name()),
            Ok(false) => {}
            // Files that are read through the daemon show a header that is made from the manifest.
            Err(error) => debug!("array {:?}: its file stays as it is: {error}", array.name()),
        }
    }

    /// Brings an open file's data, and the manifest that leads to it, to the disk. May wait for other writers.
    ///
    /// # Errors
    /// `BadHandle`, `Store`.
    pub fn fsync(&self, fh: Fh) -> Result<(), FsError> {
        self.fsync_uncounted(fh).inspect_err(|error| self.counters.note_error(error))
    }

    fn fsync_uncounted(&self, fh: Fh) -> Result<(), FsError> {
        if fh.is_pending() {
            return self.fsync_pending(fh);
        }
        if fh.is_view() {
            return Ok(());
        }
        let file = self.files.get(fh)?;
        if self.read_only {
            return Ok(());
        }
        if let Some(new) = file.inode.emptied.get() {
            return self.fsync_pending(*new);
        }
        self.commit_inode(&file.inode)?;
        let (array, _) = file.inode.array();
        array.sync().inspect_err(|error| file.log("sync", error))?;
        Ok(self.store.sync().inspect_err(|error| file.log("sync", error))?)
    }

    /// Closes a file. What it returns is to be handed to [`Fs::finish_closed`].
    pub fn release(&self, fh: Fh) -> Option<Closed> {
        if fh.is_pending() {
            return self.release_pending(fh);
        }
        if fh.is_view() {
            self.viewing.remove(fh);
            return None;
        }
        if let Some(file) = self.files.remove(fh) {
            file.inode.closed(file.write, |array| self.store.record(array.name()).ok());
            self.drop_tail(&file.inode);
            if let Some(new) = file.inode.emptied.get().filter(|_| !file.inode.is_open()) {
                return self.release_pending(*new);
            }
        }
        None
    }
}

/// Writes back pages that begin within a header: their elements in any case. The header bytes may be those of a
/// header that was replaced since the page was read.
fn write_back_beside_header(
    inode: &Inode,
    array: &Array,
    offset: u64,
    data: &[u8],
) -> Result<(), StoreError> {
    let in_header =
        usize::try_from(array.header_len().saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
    let (header, rest) = data.split_at(in_header);
    if !rest.is_empty() {
        array.write_npy_within(Duration::ZERO, array.header_len(), rest)?;
    }
    if inode.was_header(offset, header) {
        return Ok(());
    }
    Err(StoreError::HeaderWrite { array: array.name().to_string(), header_len: array.header_len() })
}
