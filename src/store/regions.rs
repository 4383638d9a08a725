//! Writing regions of an array from many processes at once.
//!
//! Who writes rows in place needs no more than that the rows are not moved to another file meanwhile. So writers of
//! regions share a lock on the data file, and do not wait for each other; who moves the rows of an array has that lock
//! alone, from before the first row is read until the commit. Blocks of compressed arrays cannot be written in place:
//! those who write them take turns; and so do all where that lock does not keep out other hosts.

use std::io;
use std::sync::Arc;

use super::data::fault;
use super::error::{DataFileFault, StoreError};
use super::update::{check_range, check_rows, row_parts};
use super::{Array, NewArray, Shared, Store};
use crate::format::names;
use crate::sys::{FileLock, StorageFile};

impl Store {
    /// Writes rows over those from `start` on. Any number of processes may do so at once, if no row is written by two;
    /// those who write rows of an uncompressed array do not wait for each other. Visible to every reader at once, and
    /// not atomic, but for compressed arrays, of which all rows are written in one commit or none.
    ///
    /// # Errors
    /// `NotFound`; `ShapeMismatch`; `DtypeMismatch`; `NoRows`; `IndexOutOfRange` if the array ends before the last of
    /// the rows; `BufferLen`; `ReadOnly`; `Locked` if somebody moves the rows for long; `DataFile`; `Io`.
    pub fn write_rows(&self, name: &str, start: u64, rows: NewArray<'_>) -> Result<(), StoreError> {
        let shared = &self.shared;
        shared.check_writable()?;
        let mut locked: Option<(Arc<str>, Arc<dyn StorageFile>)> = None;
        let mut missing = None;
        let array = loop {
            self.refresh_quietly()?;
            let array = self.record(name)?;
            check_rows(&array, &rows)?;
            let n_rows = rows.shape.first().copied().unwrap_or(0);
            let end = start.saturating_add(n_rows);
            check_range(&array, &(start..end))?;
            if n_rows == 0 {
                return Ok(());
            }
            let has_far_locks = shared.storage.has_far_locks();
            if array.codec().is_some()
                || !has_far_locks.map_err(|e| StoreError::io("stat", self.path(), "", e))?
            {
                return self.replace_range(name, start..end, rows);
            }
            let file = &array.record().file;
            match &locked {
                // Nobody moves the rows any more, and nobody has since the lock was asked for.
                Some((of, _)) if of == file => break array,
                _ => {}
            }
            match shared.lock_data(&array, FileLock::Shared) {
                // Overwritten since the refresh, or really missing.
                Err(StoreError::DataFile { what: DataFileFault::Missing, .. })
                    if missing != Some(array.id()) =>
                {
                    missing = Some(array.id());
                    shared.catch_up(&mut shared.manifest_mut(), true)?;
                }
                result => locked = Some((Arc::clone(file), result?)),
            }
        };
        let Some((_, file)) = locked else { unreachable!("the loop ends with the lock") };
        let failed = |action, source| StoreError::io(action, self.path(), array.file_name(), source);
        let parts = row_parts(&array, std::iter::once(start..start + rows.shape[0]), rows.data)?;
        for (position, bytes) in parts {
            file.write_at(&bytes, array.record().elements_offset() + position)
                .map_err(|e| failed("write", e))?;
        }
        if shared.is_durable() {
            shared.or_poison(file.sync_data().map_err(|e| failed("sync", e)))?;
            drop(file);
            // And what was done before: of the writers, only the threads of this process are waited for.
            let _turn = shared.take_turn()?;
            shared.or_poison(shared.sync_all())?;
        } else {
            shared.note_dirty(array.record());
            drop(file);
        }
        // Who begins to watch from now on sees what was written.
        let is_watched = shared.storage.is_watched(names::LOCK);
        if is_watched.map_err(|e| StoreError::io("ask for the lock on", self.path(), names::LOCK, e))? {
            array.tell_written()?;
        }
        Ok(())
    }
}

impl Shared {
    /// Locks the data file of an array: shared by those who write regions, alone for those who move the rows. Ends when
    /// what is returned is dropped. Lock order: after the writers' lock, which who shares this one does not wait for.
    ///
    /// # Errors
    /// `DataFile` if it is missing; `Locked`; `Io`.
    pub(super) fn lock_data(
        &self,
        array: &Array,
        lock: FileLock,
    ) -> Result<Arc<dyn StorageFile>, StoreError> {
        let file = array.file_name();
        let locked = self
            .wait_for_lock(file, self.lock_timeout, |timeout| self.storage.open_locked(file, lock, timeout));
        locked.map_err(|error| match error {
            StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                fault(&*self.storage, array.record(), DataFileFault::Missing)
            }
            error => error,
        })
    }
}
