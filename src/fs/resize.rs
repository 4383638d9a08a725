//! Files that get longer or shorter: rows that are written behind the end, and `truncate`.
//!
//! Whole rows are in the store when the `write` that completes them returns. Bytes of a row that is not whole are kept
//! beside the inode, which shows them, until the row is; if it never is, the last `close` for writing drops them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::warn;

use super::file::OpenFile;
use super::inode::{Inode, ino_of};
use super::{Fh, Fs, FsError, Ino, Invalidation, Written, read};
use crate::store::{Array, StoreError};

/// What follows the last row of an inode.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Held while rows are appended.
    bytes: Mutex<Vec<u8>>,
    len: AtomicU64,
}

impl Tail {
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Calls `f` with the bytes, which it may change.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut bytes);
        self.len.store(bytes.len() as u64, Ordering::Relaxed);
        result
    }
}

impl Fs {
    /// Writes at the end of an open file that is an array, wherever that is by now.
    ///
    /// # Errors
    /// As [`Fs::write`].
    pub fn append(&self, fh: Fh, data: &[u8]) -> Result<Written, FsError> {
        let appended = self.writable(fh).and_then(|file| match file.inode.emptied.get() {
            Some(new) => {
                let end = self.pending_len(*new)?;
                self.write_pending(*new, end, data, false, || {})
            }
            None => self.write_behind(&file, None, data),
        });
        self.count_write(&appended, data.len());
        appended
    }

    /// Writes bytes of which some come behind the last row; without an offset, all.
    pub(super) fn write_behind(
        &self,
        file: &OpenFile,
        offset: Option<u64>,
        data: &[u8],
    ) -> Result<Written, FsError> {
        let inode = &file.inode;
        inode.tail.with(|tail| {
            let (array, shown_len) = inode.array();
            let end = shown_len.saturating_add(tail.len() as u64);
            let offset = offset.unwrap_or(end);
            let in_rows = shown_len.saturating_sub(offset).min(data.len() as u64);
            if in_rows > 0 {
                // What stands in rows is written before the others: if that fails, nothing is.
                let (within, behind) = data.split_at(in_rows as usize);
                let written = self.write_within(file, offset, within, false)?;
                return match self.add_rows(inode, &array, tail, 0, behind) {
                    Ok(()) => Ok(written),
                    Err(error) => Err(error),
                };
            }
            if offset > end {
                // A hole, which no rows are.
                return Err(out_of_bounds(&array, offset, data).into());
            }
            self.add_rows(inode, &array, tail, (offset - shown_len) as usize, data)?;
            Ok(Written::Done)
        })
    }

    /// Puts bytes behind the last row, `at` bytes after it, and appends the rows that are whole then.
    fn add_rows(
        &self,
        inode: &Inode,
        array: &Array,
        tail: &mut Vec<u8>,
        at: usize,
        data: &[u8],
    ) -> Result<(), FsError> {
        let row_len = usize::try_from(array.row_len()).unwrap_or(0);
        if row_len == 0 || array.shape().is_empty() {
            return Err(out_of_bounds(array, array.npy_len(), data).into());
        }
        if !self.is_present(inode) {
            // Rows would come behind those of another version.
            return Err(FsError::Stale { ino: inode.ino });
        }
        let rest = tail.get(at.saturating_add(data.len())..).unwrap_or_default();
        let bytes = [tail.get(..at).unwrap_or_default(), data, rest].concat();
        let (rows, rest) = bytes.split_at(bytes.len() / row_len * row_len);
        if !rows.is_empty() {
            let grown = self.store.append_bytes(array, rows, Duration::ZERO);
            let grown = grown.map_err(|error| stale_if_gone(inode, error))?;
            let grown =
                grown.ok_or(FsError::Unsupported { what: "appending rows that would move the others" })?;
            self.grew(inode, &grown, rows.len() as u64);
        }
        *tail = rest.to_vec();
        Ok(())
    }

    /// Takes over that rows were appended through an inode. The kernel has them in its pages, and knows the length, unless
    /// others had appended rows before.
    fn grew(&self, inode: &Inode, grown: &Array, len: u64) {
        let (_, shown_len) = inode.array();
        if grown.npy_len().checked_sub(len) == Some(shown_len) {
            inode.show_at_once(grown.npy_len());
        }
        // What fails is logged, and said to whoever looks next.
        let _ = self.sync();
    }

    /// Gives an open or named array another length: rows at its end are dropped, or rows of zeros appended. May wait for
    /// nobody. `fh` is the handle by which that is asked for, if it is by one: if nobody else has the inode open, it shows
    /// the rows that are left.
    ///
    /// # Errors
    /// `Invalid` for a length that is not that of header and whole rows; `Stale`; `Unsupported` if the rows would have to
    /// move; `Uncommitted` if [`Fs::commit`] comes first; `Store`.
    pub(super) fn set_array_len(&self, inode: &Inode, len: u64, fh: Option<Fh>) -> Result<(), FsError> {
        inode.tail.with(|tail| {
            let (array, shown_len) = inode.array();
            if let Some(kept) = len.checked_sub(shown_len)
                && kept <= tail.len() as u64
            {
                tail.truncate(kept as usize);
                return Ok(());
            }
            let whole = || {
                let row_len = Some(array.row_len()).filter(|len| *len > 0 && !array.shape().is_empty())?;
                let nbytes = len.checked_sub(array.header_len())?;
                nbytes.is_multiple_of(row_len).then(|| nbytes / row_len)
            };
            let n_rows = whole().ok_or(FsError::Invalid { what: "arrays of parts of rows" })?;
            if !self.is_present(inode) {
                return Err(FsError::Stale { ino: inode.ino });
            }
            if !inode.uncommitted.is_empty() {
                // It may be behind the new end.
                return Err(FsError::Uncommitted { ino: inode.ino });
            }
            let before = array.npy_len();
            let sized = self.store.set_n_rows(&array, n_rows, Duration::ZERO);
            let sized = sized.map_err(|error| stale_if_gone(inode, error))?;
            let sized =
                sized.ok_or(FsError::Unsupported { what: "changing the length if rows would move" })?;
            tail.clear();
            if let Some(added) = sized.npy_len().checked_sub(before) {
                self.grew(inode, &sized, added);
            } else {
                let _ = self.sync();
                if self.is_alone(inode, fh) {
                    self.shorten(inode, sized);
                }
            }
            Ok(())
        })
    }

    /// Lets an inode show fewer rows of its version, which its name leads to by another one.
    fn shorten(&self, inode: &Inode, sized: Array) {
        let (name, view) = (Arc::clone(sized.name()), ino_of(&sized));
        inode.shorten(sized);
        self.inodes.note_shortened(inode.ino);
        // Rows may have been appended since, when nobody knew that this inode follows.
        if let Ok(now) = self.store.record(&name)
            && ino_of(&now) == view
        {
            let effect = inode.follow(now, false);
            self.tell(inode.ino, Some(effect));
        }
    }

    /// Whether nobody has an inode open but by the handle `fh`.
    pub(super) fn is_alone(&self, inode: &Inode, fh: Option<Fh>) -> bool {
        let own = fh.and_then(|fh| self.files.get(fh).ok()).filter(|file| file.inode.ino == inode.ino);
        inode.n_open() <= u32::from(own.is_some())
    }

    /// Whether an inode shows what its name leads to: by its own number, or by that of the rows that are left since it was
    /// shortened.
    pub(super) fn is_present(&self, inode: &Inode) -> bool {
        inode.is_named() || {
            let (array, _) = inode.array();
            let view = ino_of(&array);
            view != inode.ino.own() && read(&self.tree).ino_of_array(array.name()) == Some(view)
        }
    }

    /// Whether the name of an inode leads to it, and not to another one.
    pub fn is_led_to(&self, ino: Ino) -> bool {
        self.inodes.get(ino).is_none_or(|inode| inode.is_named() && inode.emptied.get().is_none())
    }

    /// The folder and the name under which the array of an inode is shown, be it this version of it or another; of a
    /// pending file, its own.
    pub fn place_of(&self, ino: Ino) -> Option<(Ino, Arc<str>)> {
        if ino.is_pending() {
            return self.pending.place_of(ino);
        }
        let (array, _) = self.inodes.get(ino)?.array();
        read(&self.tree).place_for(array.name())
    }

    /// Whether a file that is closed ends with a part of a row.
    pub(super) fn check_whole(&self, file: &OpenFile) -> Result<(), FsError> {
        if file.write && file.inode.tail.len() > 0 {
            return Err(FsError::Invalid { what: "arrays that end within a row" });
        }
        Ok(())
    }

    /// Drops what follows the last row, when nobody is left who could complete it.
    pub(super) fn drop_tail(&self, inode: &Inode) {
        if inode.tail.len() == 0 || inode.is_written() {
            return;
        }
        let n_dropped = inode.tail.with(|tail| std::mem::take(tail).len());
        let (array, _) = inode.array();
        warn!(
            "array {:?}: {n_dropped} bytes were appended that are no whole row of {}, and are dropped",
            array.name(),
            array.row_len()
        );
        (self.invalidate)(Invalidation::Attr { ino: inode.ino });
    }

    /// The bytes behind the last row, from `offset` on.
    pub(super) fn read_tail(&self, inode: &Inode, offset: u64, len: u64) -> Vec<u8> {
        inode.tail.with(|tail| {
            let (_, shown_len) = inode.array();
            let start = usize::try_from(offset.saturating_sub(shown_len)).unwrap_or(usize::MAX);
            let rest = tail.get(start..).unwrap_or_default();
            rest.iter().take(len as usize).copied().collect()
        })
    }
}

/// A version may have gone since the mount last looked: that is said as if it had known.
fn stale_if_gone(inode: &Inode, error: StoreError) -> FsError {
    match error {
        StoreError::NotFound { .. } => FsError::Stale { ino: inode.ino },
        error => error.into(),
    }
}

fn out_of_bounds(array: &Array, offset: u64, data: &[u8]) -> StoreError {
    StoreError::OutOfBounds {
        array: array.name().to_string(),
        range: offset..offset.saturating_add(data.len() as u64),
        len: array.npy_len(),
    }
}
