//! More and fewer rows at the end of an array, as bytes: for programs that know files, and no arrays.

use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringTreemap;

use super::error::StoreError;
use super::stage::NewArray;
use super::update::has_room_for;
use super::writer::Commit;
use super::{Array, Shared, Store};
use crate::format::manifest::DeletedRows;
use crate::format::{Layout, Op};

/// Bytes of zeros that are appended at once to a compressed array, and written at once to another one.
const ZEROS_LEN: u64 = 4 << 20;

impl Store {
    /// Appends whole rows, in C-order, to a version of an array, and returns it as it is then. Waits no longer than `wait`
    /// for other writers. `None`, and nothing is done, if the rows that are there would have to move: the array is in
    /// Fortran order, or its header has no room for the new shape.
    ///
    /// # Errors
    /// `NotFound` if the version is gone; `NoRows`; `BufferLen`; as [`Store::append`].
    pub fn append_bytes(
        &self,
        array: &Array,
        rows: &[u8],
        wait: Duration,
    ) -> Result<Option<Array>, StoreError> {
        let _guard = self.shared.lock_writers_within(wait)?;
        let array = self.present(array)?;
        let row_len = array.row_len();
        if array.shape().is_empty() || row_len == 0 {
            return Err(StoreError::NoRows { array: array.name().to_string() });
        }
        let (n_rows, found) = (rows.len() as u64 / row_len, rows.len() as u64);
        if n_rows * row_len != found {
            let expected = n_rows * row_len;
            return Err(StoreError::BufferLen { array: array.name().to_string(), found, expected });
        }
        if n_rows == 0 {
            return Ok(Some(array));
        }
        if !has_room_for_more(&array, n_rows)? {
            return Ok(None);
        }
        let mut shape = array.shape().to_vec();
        shape[0] = n_rows;
        let new = NewArray { dtype: array.dtype().clone(), shape, fortran_order: false, data: rows };
        let mut commit = Commit::default();
        self.shared.append_rows(&array, &new, &mut commit)?;
        self.shared.commit(commit)?;
        self.record(array.name()).map(Some)
    }

    /// Gives a version of an array `n_rows` rows: drops those at its end, or appends rows of zeros, which take no space if
    /// it is not compressed. Returns it as it is then. `wait` and `None` are as for [`Store::append_bytes`].
    ///
    /// # Errors
    /// `NotFound` if the version is gone; `NoRows`; `Refused` for more bytes than an array can have; `ReadOnly`; `Locked`;
    /// `DataFile`; `Io`, after which a compressed array may have a part of the rows.
    pub fn set_n_rows(
        &self,
        array: &Array,
        n_rows: u64,
        wait: Duration,
    ) -> Result<Option<Array>, StoreError> {
        let _guard = self.shared.lock_writers_within(wait)?;
        let mut array = self.present(array)?;
        if array.shape().is_empty() || array.row_len() == 0 {
            return Err(StoreError::NoRows { array: array.name().to_string() });
        }
        if n_rows < array.n_rows() {
            if array.fortran_order() || !has_room_for(&array, n_rows)? {
                return Ok(None);
            }
            let mut dropped = RoaringTreemap::new();
            match array.live_rows()? {
                None => drop(dropped.insert_range(n_rows..array.n_rows())),
                Some(live) => live.stored_runs(n_rows..array.n_rows()).for_each(|run| {
                    dropped.insert_range(run);
                }),
            }
            let ops = vec![Op::DropRows(Arc::clone(array.name()), DeletedRows(Arc::new(dropped)))];
            self.shared.commit(Commit { ops, ..Commit::default() })?;
            return self.record(array.name()).map(Some);
        }
        if !has_room_for_more(&array, n_rows - array.n_rows())? {
            return Ok(None);
        }
        while array.n_rows() < n_rows {
            let mut commit = Commit::default();
            self.shared.append_zeros(&array, n_rows - array.n_rows(), &mut commit)?;
            self.shared.commit(commit)?;
            array = self.record(array.name())?;
        }
        Ok(Some(array))
    }

    /// A version as it is now, under whatever name.
    pub(super) fn present(&self, array: &Array) -> Result<Array, StoreError> {
        let gone = || StoreError::NotFound { store: self.path().to_owned(), array: array.name().to_string() };
        let current = array.current().ok_or_else(gone)?;
        let present = self.record(&current.name)?;
        if present.id() == array.id() { Ok(present) } else { Err(gone()) }
    }
}

impl Shared {
    /// Adds rows of zeros, or as many as are appended at once.
    fn append_zeros(&self, array: &Array, n_rows: u64, commit: &mut Commit) -> Result<(), StoreError> {
        let record = array.record();
        if record.blocks.is_some() {
            let n_rows = n_rows.min((ZEROS_LEN / array.row_len()).max(1));
            let mut shape = array.shape().to_vec();
            shape[0] = n_rows;
            let zeros = vec![0; (n_rows * array.row_len()) as usize];
            let new = NewArray { dtype: array.dtype().clone(), shape, fortran_order: false, data: &zeros };
            return self.append_rows(array, &new, commit);
        }
        let mut shape = record.layout.shape().to_vec();
        shape[0] = shape[0].saturating_add(n_rows);
        let layout = Layout::new(&record.dtype, &shape, false)?;
        let data = array.data()?;
        self.note_dirty(record);
        let failed = |action, e| StoreError::io(action, self.storage.path(), &record.file, e);
        let (mut at, end) = (record.data_end(), record.elements_offset().saturating_add(layout.nbytes()));
        // A writer that died may have left something behind the last row.
        let len = data.file.stat().map_err(|e| failed("stat", e))?.len;
        let zeros = vec![0; ZEROS_LEN.min(end.min(len).saturating_sub(at)) as usize];
        while at < end.min(len) {
            let piece = &zeros[..zeros.len().min((end.min(len) - at) as usize)];
            data.file.write_at(piece, at).map_err(|e| failed("write", e))?;
            at += piece.len() as u64;
        }
        if len < end {
            // Of a full disk this takes nothing.
            data.file.set_len(end).map_err(|e| failed("change the length of", e))?;
        }
        commit.ops.push(Op::Rows(Arc::clone(array.name()), shape[0]));
        commit.headers.push(Arc::clone(array.name()));
        Ok(())
    }
}

/// Whether rows can be appended to an array without moving those that it has.
fn has_room_for_more(array: &Array, n_rows: u64) -> Result<bool, StoreError> {
    let stored = array.record().layout.shape().first().copied().unwrap_or(0);
    Ok(!array.record().layout.fortran_order() && has_room_for(array, stored.saturating_add(n_rows))?)
}
