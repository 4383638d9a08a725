//! Changes to the rows of arrays: append, replace, drop, compact. Each costs what it changes.
//!
//! Only a Fortran-ordered array is rewritten, in C-order, when rows are appended or dropped: its rows are not
//! contiguous. So is one whose header has no room for the new shape.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use roaring::RoaringTreemap;

use super::error::StoreError;
use super::writer::{Commit, NewArray, Staged, WriteGuard, nanos_of};
use super::{Array, Shared, Store};
use crate::format::manifest::DeletedRows;
use crate::format::{Layout, Op, Record, npy};

/// Bytes that are copied at once when an array is rewritten.
const COPY_LEN: u64 = 8 << 20;

impl Store {
    /// Appends rows to arrays, to all or none. Never moves the rows that are there: mappings of them stay valid.
    ///
    /// # Errors
    /// `NotFound`; `ShapeMismatch`; `DtypeMismatch`; `NoRows`; `BufferLen`; `ReadOnly`; `Locked`; `DataFile`; `Io`.
    pub fn append(&self, rows: &[(&str, NewArray<'_>)]) -> Result<(), StoreError> {
        let _guard = self.shared.lock_writers()?;
        let mut arrays = Vec::with_capacity(rows.len());
        for (name, new) in rows {
            let array = self.record(name)?;
            check_rows(&array, new)?;
            arrays.push((array, new));
        }
        let mut commit = Commit::default();
        for (at, (array, new)) in arrays.iter().enumerate() {
            if arrays[..at].iter().any(|(other, _)| other.id() == array.id()) {
                // The rows of the second would overwrite those of the first: each array once.
                return Err(StoreError::Exists {
                    store: self.path().to_owned(),
                    array: array.name().to_string(),
                });
            }
            if new.shape.first() != Some(&0) {
                self.shared.append_rows(array, new, &mut commit)?;
            }
        }
        self.shared.commit(commit)
    }

    /// Replaces rows in place; of rows named twice, the last counts. Visible to every reader at once, and not
    /// atomic.
    ///
    /// # Errors
    /// `NotFound`; `IndexOutOfRange`; `RowCount`; as [`Store::append`].
    pub fn replace(&self, name: &str, rows: &[u64], data: NewArray<'_>) -> Result<(), StoreError> {
        let runs = consecutive_runs(rows);
        self.replace_runs(name, rows.len() as u64, runs, data)
    }

    /// Replaces consecutive rows; see [`Store::replace`].
    ///
    /// # Errors
    /// As [`Store::replace`].
    pub fn replace_range(&self, name: &str, rows: Range<u64>, data: NewArray<'_>) -> Result<(), StoreError> {
        self.replace_runs(name, rows.end.saturating_sub(rows.start), std::iter::once(rows), data)
    }

    /// Sets the time of the last commit that changed an array, and returns the array as it is then. Waits no longer
    /// than `wait` for other writers.
    ///
    /// # Errors
    /// `NotFound` if the name leads to another version by now; `ReadOnly`; `Locked`; `Io`.
    pub fn set_committed(
        &self,
        array: &Array,
        time: SystemTime,
        wait: Duration,
    ) -> Result<Array, StoreError> {
        let _guard = self.shared.lock_writers_within(wait)?;
        let current = self.record(array.name())?;
        if current.id() != array.id() {
            return Err(StoreError::NotFound {
                store: self.path().to_owned(),
                array: array.name().to_string(),
            });
        }
        let ops = vec![Op::Written(Arc::clone(array.name()))];
        self.shared.commit(Commit { ops, time: Some(nanos_of(time)), ..Commit::default() })?;
        self.record(array.name())
    }

    fn replace_runs(
        &self,
        name: &str,
        n_rows: u64,
        runs: impl Iterator<Item = Range<u64>> + Clone,
        data: NewArray<'_>,
    ) -> Result<(), StoreError> {
        let runs = runs.filter(|run| !run.is_empty());
        let guard = self.shared.lock_writers()?;
        let array = self.record(name)?;
        check_rows(&array, &data)?;
        let found = data.shape.first().copied().unwrap_or(0);
        if found != n_rows {
            return Err(StoreError::RowCount { array: name.to_owned(), found, expected: n_rows });
        }
        if let Some(run) = runs.clone().find(|run| run.end > array.n_rows()) {
            let index = run.start.max(array.n_rows());
            return Err(StoreError::IndexOutOfRange {
                array: name.to_owned(),
                index,
                n_rows: array.n_rows(),
            });
        }
        let row_len = array.row_len() as usize;
        let mut rest = data.data;
        for run in runs {
            let len = (run.end - run.start) as usize * row_len;
            let Some((rows, after)) = rest.split_at_checked(len) else { break };
            rest = after;
            if array.fortran_order() {
                write_fortran_rows(&array, run, rows)?;
            } else {
                array.write_bytes(run.start * array.row_len(), rows)?;
            }
        }
        if self.shared.is_durable() {
            self.shared.or_poison(self.shared.sync_all())?;
        }
        self.shared.tell_written(&guard, &array)
    }

    /// Drops the rows `rows` of each array: they are marked, and [`Store::compact`] gives their space back.
    /// Duplicate and out-of-range numbers are ignored, and so are missing arrays.
    ///
    /// # Errors
    /// `NoRows`; `ReadOnly`; `Locked`; `DataFile`; `Io`.
    pub fn drop_rows(&self, names: &[&str], rows: &[u64]) -> Result<(), StoreError> {
        let _guard = self.shared.lock_writers()?;
        let mut commit = Commit::default();
        let names: BTreeSet<&str> = names.iter().copied().collect();
        for name in names {
            let Ok(array) = self.record(name) else { continue };
            if array.shape().is_empty() {
                return Err(StoreError::NoRows { array: name.to_owned() });
            }
            let rows: BTreeSet<u64> = rows.iter().copied().filter(|row| *row < array.n_rows()).collect();
            if rows.is_empty() {
                continue;
            }
            if array.fortran_order() || !has_room_without(&array, rows.len() as u64)? {
                let kept = (0..array.n_rows()).filter(|row| !rows.contains(row)).collect::<Vec<_>>();
                commit.staged.push(self.shared.stage_rows(&array, &kept)?);
                commit.moves_rows = true;
                continue;
            }
            let live = array.live_rows()?;
            let stored: RoaringTreemap =
                rows.into_iter().map(|row| live.as_ref().map_or(row, |live| live.stored(row))).collect();
            commit.ops.push(Op::DropRows(Arc::clone(array.name()), DeletedRows(Arc::new(stored))));
        }
        self.shared.commit(commit)
    }

    /// Gives back the space of dropped rows, and returns when that is on the disk. Returns whether there were any.
    ///
    /// What others write in place while this runs, other than through a store, may be lost.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; `Locked`; `DataFile`; `Io`.
    pub fn compact(&self, name: &str) -> Result<bool, StoreError> {
        let _guard = self.shared.lock_writers()?;
        let array = self.record(name)?;
        if array.n_deleted() == 0 {
            return Ok(false);
        }
        let staged = self.shared.stage_copy(&array)?;
        self.shared.commit(Commit { staged: vec![staged], moves_rows: true, ..Commit::default() })?;
        Ok(true)
    }
}

impl Shared {
    fn is_durable(&self) -> bool {
        self.durable.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Writes rows behind the last stored one, and adds their commit to `commit`.
    fn append_rows(&self, array: &Array, new: &NewArray<'_>, commit: &mut Commit) -> Result<(), StoreError> {
        let record = array.record();
        let mut shape = record.layout.shape().to_vec();
        shape[0] = shape[0].saturating_add(new.shape[0]);
        let layout = Layout::new(&record.dtype, &shape, false)?;
        let has_header = npy::encode_within(&record.dtype, &layout, record.offset).is_some();
        if record.layout.fortran_order() || !has_header {
            // No room for the rows or for the header: the array moves to a new file.
            let mut staged = self.stage_copy(array)?;
            let mut shape = staged.layout.shape().to_vec();
            shape[0] += new.shape[0];
            let end = staged.offset + staged.layout.nbytes();
            staged.layout = Layout::new(&staged.dtype, &shape, false)?;
            let failed = |e| StoreError::io("write", self.storage.path(), &record.file, e);
            staged.file.write_at(new.data, end).map_err(failed)?;
            let header = npy::encode_within(&staged.dtype, &staged.layout, staged.offset);
            staged.file.write_at(&header.unwrap_or_default(), 0).map_err(failed)?;
            commit.staged.push(staged);
            commit.moves_rows = true;
            return Ok(());
        }
        let data = array.data()?;
        self.note_dirty(record);
        let failed = |action, e| StoreError::io(action, self.storage.path(), &record.file, e);
        data.file.write_at(new.data, record.data_end()).map_err(|e| failed("write", e))?;
        commit.ops.push(Op::Rows(Arc::clone(array.name()), shape[0]));
        commit.headers.push((Arc::clone(array.name()), Arc::clone(data)));
        Ok(())
    }

    /// Tells those who watch that elements of `array` were written in place.
    pub(super) fn tell_written(&self, guard: &WriteGuard<'_>, array: &Array) -> Result<(), StoreError> {
        let is_current = |record: &Arc<Record>| record.id == array.id();
        if !guard.is_watched() || !self.manifest().table.get(array.name()).is_some_and(is_current) {
            return Ok(());
        }
        self.commit(Commit { ops: vec![Op::Written(Arc::clone(array.name()))], ..Commit::default() })
    }

    /// Copies the rows that are not deleted into a new version, in C-order.
    fn stage_copy(&self, array: &Array) -> Result<Staged, StoreError> {
        let staged = self.stage_header(array, array.n_rows())?;
        let row_len = array.row_len();
        if row_len == 0 {
            return Ok(staged);
        }
        let rows_at_once = (COPY_LEN / row_len).max(1);
        let mut buf = Vec::new();
        let mut row = 0;
        while row < array.n_rows() {
            let end = array.n_rows().min(row + rows_at_once);
            buf.resize(((end - row) * row_len) as usize, 0);
            array.read_rows_into(row..end, &mut buf)?;
            self.write_staged(&staged, row * row_len, &buf)?;
            row = end;
        }
        Ok(staged)
    }

    /// Copies the rows with the numbers `rows` into a new version, in C-order.
    fn stage_rows(&self, array: &Array, rows: &[u64]) -> Result<Staged, StoreError> {
        let staged = self.stage_header(array, rows.len() as u64)?;
        let row_len = array.row_len();
        if row_len == 0 {
            return Ok(staged);
        }
        let mut offset = 0;
        let mut buf = Vec::new();
        for rows in rows.chunks((COPY_LEN / row_len).max(1) as usize) {
            buf.resize(rows.len() * row_len as usize, 0);
            array.gather_into(rows, &mut buf)?;
            self.write_staged(&staged, offset, &buf)?;
            offset += buf.len() as u64;
        }
        Ok(staged)
    }

    /// Starts a new version of `array` with `n_rows` rows that are still to be written.
    fn stage_header(&self, array: &Array, n_rows: u64) -> Result<Staged, StoreError> {
        let record = array.record();
        let mut shape = record.layout.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = n_rows;
        }
        let layout = Layout::new(&record.dtype, &shape, false)?;
        let header = npy::encode(&record.dtype, &layout)?;
        let failed = |action, e| StoreError::io(action, self.storage.path(), &record.file, e);
        let file = self.storage.create_unnamed().map_err(|e| failed("create a new version of", e))?;
        let offset = header.len() as u64;
        file.reserve(offset + layout.nbytes()).map_err(|e| failed("reserve space for", e))?;
        file.write_at(&header, 0).map_err(|e| failed("write a new version of", e))?;
        let name = Arc::clone(&record.name);
        Ok(Staged { name, file, dtype: record.dtype.clone(), layout, offset })
    }

    fn write_staged(&self, staged: &Staged, offset: u64, rows: &[u8]) -> Result<(), StoreError> {
        let failed = |e| StoreError::io("write a new version in", self.storage.path(), "", e);
        staged.file.write_at(rows, staged.offset + offset).map_err(failed)
    }
}

/// Checks that `new` has the dtype and the row shape of `array`, in C-order.
fn check_rows(array: &Array, new: &NewArray<'_>) -> Result<(), StoreError> {
    let name = array.name();
    if array.shape().is_empty() {
        return Err(StoreError::NoRows { array: name.to_string() });
    }
    if new.shape.len() != array.shape().len() || new.shape[1..] != array.shape()[1..] {
        return Err(StoreError::ShapeMismatch {
            array: name.to_string(),
            found: new.shape.clone(),
            expected: array.shape().to_vec(),
        });
    }
    if new.dtype != *array.dtype() {
        return Err(StoreError::DtypeMismatch {
            array: name.to_string(),
            found: new.dtype.clone(),
            expected: array.dtype().clone(),
        });
    }
    if new.layout(name)?.fortran_order() {
        let expected = "rows are given in C-order";
        return Err(crate::format::FormatError::Shape { shape: new.shape.clone(), what: expected }.into());
    }
    Ok(())
}

/// Whether the header in the file has room for the text of the shape with `n_dropped` rows less: that text may be
/// longer than the one that another program wrote.
fn has_room_without(array: &Array, n_dropped: u64) -> Result<bool, StoreError> {
    let mut shape = array.shape().to_vec();
    if let Some(rows) = shape.first_mut() {
        *rows -= n_dropped;
    }
    let layout = Layout::new(array.dtype(), &shape, false)?;
    Ok(npy::encode_within(array.dtype(), &layout, array.header_len()).is_some())
}

/// The runs of consecutive numbers in `rows`, in order.
fn consecutive_runs(rows: &[u64]) -> impl Iterator<Item = Range<u64>> + Clone {
    rows.chunk_by(|a, b| a.checked_add(1) == Some(*b))
        .map(|run| run[0]..run[0].saturating_add(run.len() as u64))
}

/// Writes consecutive rows of a Fortran-ordered array: each column is contiguous.
fn write_fortran_rows(array: &Array, rows: Range<u64>, data: &[u8]) -> Result<(), StoreError> {
    let layout = &array.record().layout;
    let itemsize = layout.itemsize() as usize;
    if itemsize == 0 {
        return Ok(());
    }
    let mut column = Vec::with_capacity((rows.end - rows.start) as usize * itemsize);
    for (item, offset) in layout.fortran_row_offsets(rows.start).enumerate() {
        column.clear();
        for row in data.chunks_exact(array.row_len() as usize) {
            column.extend_from_slice(&row[item * itemsize..][..itemsize]);
        }
        array.write_bytes(offset, &column)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_consecutive_numbers_in_the_order_given() {
        let runs = |rows: &[u64]| consecutive_runs(rows).collect::<Vec<_>>();
        assert_eq!(runs(&[3, 4, 5, 9, 9, 1, 0]), [3..6, 9..10, 9..10, 1..2, 0..1]);
        assert_eq!(runs(&[]), Vec::<Range<u64>>::new());
    }
}
