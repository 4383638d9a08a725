//! Changes to the rows of arrays: append, replace, drop, compact. Each costs what it changes.
//!
//! Only a Fortran-ordered array is rewritten, in C-order, when rows are appended or dropped: its rows are not
//! contiguous. So is one whose header has no room for the new shape.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use roaring::RoaringTreemap;

use super::compressed::Part;
use super::data::MAX_RECENT;
use super::error::StoreError;
use super::new_blocks::with_filter;
use super::stage::{NewArray, Stage, Staged};
use super::writer::{Commit, WriteGuard, cut_uncommitted, nanos_of};
use super::{Array, Shared, Store};
use crate::format::manifest::DeletedRows;
use crate::format::{Compression, Filter, Layout, Op, npy};
use crate::sys::FileLock;

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
        let mut seen = HashSet::with_capacity(rows.len());
        for (name, new) in rows {
            let array = self.record(name)?;
            check_rows(&array, new)?;
            if !seen.insert(array.id()) {
                // The rows of the second would overwrite those of the first: each array once.
                return Err(StoreError::Exists {
                    store: self.path().to_owned(),
                    array: array.name().to_string(),
                });
            }
            arrays.push((array, new));
        }
        let mut commit = Commit::default();
        // By value: an array that was written to keeps its data file open.
        for (array, new) in arrays {
            if new.shape.first() != Some(&0) {
                self.shared.append_rows(&array, new, &mut commit)?;
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

    /// As [`Store::replace_range`] for the rows from `start` on, but of a compressed array only the blocks in which an
    /// element differs from what is stored are written anew; nothing is, if none does.
    ///
    /// # Errors
    /// As [`Store::replace`].
    pub fn replace_changed(&self, name: &str, start: u64, data: NewArray<'_>) -> Result<(), StoreError> {
        let guard = self.shared.lock_writers()?;
        let array = self.record(name)?;
        check_rows(&array, &data)?;
        let rows = start..start.saturating_add(data.shape[0]);
        check_range(&array, &rows)?;
        let parts = row_parts(&array, std::iter::once(rows), data.data)?;
        let parts = if array.codec().is_some() { array.changed_parts(&parts)? } else { parts };
        if parts.is_empty() {
            return Ok(());
        }
        array.write_elements(&guard, parts)?;
        if self.shared.is_durable() {
            self.shared.or_poison(self.shared.sync_all())?;
        }
        self.shared.tell_written(&guard, &array)
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
        runs.clone().try_for_each(|run| check_range(&array, &run))?;
        let parts = row_parts(&array, runs, data.data)?;
        array.write_elements(&guard, parts)?;
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
            if array.fortran_order() || !has_room_for(&array, array.n_rows() - rows.len() as u64)? {
                commit.locked.push(self.shared.lock_data(&array, FileLock::Exclusive)?);
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

    /// Gives back the space of dropped rows, and of blocks that were written anew, and returns when that is on the disk.
    /// Returns whether there were any.
    ///
    /// What others write in place while this runs, other than through a store, may be lost.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; `Locked`; `DataFile`; `Io`.
    pub fn compact(&self, name: &str) -> Result<bool, StoreError> {
        let _guard = self.shared.lock_writers()?;
        let array = self.record(name)?;
        if array.n_deleted() == 0 {
            if !self.has_dead_bytes(&array)? {
                return Ok(false);
            }
            if self.punch(&array)? {
                return Ok(true);
            }
        }
        let locked = vec![self.shared.lock_data(&array, FileLock::Exclusive)?];
        let compression = array.compression();
        let staged = self.shared.stage_copy(&array, array.name(), compression.as_ref(), &mut |_| ())?;
        let commit = Commit { staged: vec![staged], moves_rows: true, locked, ..Commit::default() };
        self.shared.commit(commit)?;
        Ok(true)
    }

    /// Stores an array anew, compressed as `to` says, or uncompressed; nothing of its elements changes. Returns, when
    /// it is on the disk, whether anything had to be done. `progress` is told the number of bytes of elements so far.
    ///
    /// What others write in place while this runs, other than through a store, may be lost.
    ///
    /// # Errors
    /// `NotFound`; `Refused` for a level or block length outside of its limits; `ReadOnly`; `Locked`; `Block`;
    /// `DataFile`; `Io`.
    pub fn recompress(
        &self,
        name: &str,
        to: Option<&Compression>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<bool, StoreError> {
        if let Some(to) = to {
            to.codec(Filter::None)?;
        }
        let _guard = self.shared.lock_writers()?;
        let array = self.record(name)?;
        let locked = vec![self.shared.lock_data(&array, FileLock::Exclusive)?];
        let read = |offset, out: &mut [u8]| array.read_elements_at(offset, out);
        let to = to.map(|to| with_filter(to, array.dtype(), array.nbytes(), read)).transpose()?;
        if array.compression() == to {
            return Ok(false);
        }
        let staged = self.shared.stage_copy(&array, array.name(), to.as_ref(), progress)?;
        let commit = Commit { staged: vec![staged], moves_rows: true, locked, ..Commit::default() };
        self.shared.commit(commit)?;
        Ok(true)
    }
}

impl Shared {
    /// Whether what is written must be on the disk before it counts. Of a host whose locks do not keep out others, these
    /// may see nothing earlier.
    pub(super) fn is_durable(&self) -> bool {
        self.durable.load(std::sync::atomic::Ordering::Relaxed)
            || !self.storage.has_far_locks().unwrap_or(false)
    }

    /// Writes rows behind the last stored one, and adds their commit to `commit`.
    pub(super) fn append_rows(
        &self,
        array: &Array,
        new: &NewArray<'_>,
        commit: &mut Commit,
    ) -> Result<(), StoreError> {
        let record = array.record();
        let mut shape = record.layout.shape().to_vec();
        shape[0] = shape[0].saturating_add(new.shape[0]);
        let layout = Layout::new(&record.dtype, &shape, false)?;
        let has_header = npy::encode_within(&record.dtype, &layout, record.offset).is_some();
        if record.layout.fortran_order() || !has_header {
            // No room for the rows or for the header: the array moves to a new file.
            commit.locked.push(self.lock_data(array, FileLock::Exclusive)?);
            let n_rows = array.n_rows() + new.shape[0];
            let mut stage = self.stage_header(array, array.name(), n_rows, array.compression().as_ref())?;
            copy_rows(array, &mut stage, &mut |_| ())?;
            stage.push(new.data)?;
            commit.staged.push(stage.finish()?);
            commit.moves_rows = true;
            return Ok(());
        }
        let data = array.data()?;
        if record.blocks.is_some() {
            let (index, space) = self.append_blocks(record, data, new.data)?;
            commit.ops.push(Op::Blocks(Arc::clone(array.name()), shape[0], index));
            // What is not kept is found again; what is keeps the file open.
            if commit.spaces.len() < MAX_RECENT {
                commit.spaces.push((Arc::clone(data), index, space));
            }
        } else {
            self.note_dirty(record);
            let failed = |action, e| StoreError::io(action, self.storage.path(), &record.file, e);
            data.file.write_at(new.data, record.data_end()).map_err(|e| {
                cut_uncommitted(record, data);
                failed("write", e)
            })?;
            commit.ops.push(Op::Rows(Arc::clone(array.name()), shape[0]));
        }
        commit.headers.push(Arc::clone(array.name()));
        Ok(())
    }

    /// Tells those who watch that elements of `array` were written in place.
    pub(super) fn tell_written(&self, guard: &WriteGuard<'_>, array: &Array) -> Result<(), StoreError> {
        // Of blocks, the commit itself tells.
        if array.codec().is_some() || !guard.is_watched() {
            return Ok(());
        }
        let Some(current) = array.current() else { return Ok(()) };
        self.commit(Commit { ops: vec![Op::Written(Arc::clone(&current.name))], ..Commit::default() })
    }

    /// Copies the rows that are not deleted into a new version, or into an array of another name, as they are: byte for
    /// byte, header included, if nothing is deleted.
    pub(super) fn stage_copy(
        &self,
        array: &Array,
        name: &Arc<str>,
        compression: Option<&Compression>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Staged, StoreError> {
        if array.n_deleted() > 0 {
            let mut stage = self.stage_header(array, name, array.n_rows(), compression)?;
            copy_rows(array, &mut stage, progress)?;
            return stage.finish();
        }
        let record = array.record();
        let (header, layout) = (array.npy_header()?, record.layout.clone());
        let mut stage = Stage::begin(self, name, &record.dtype, layout, header, compression)?;
        let file = &array.data()?.file;
        let source = file.fd().filter(|_| compression.is_none() && array.codec().is_none());
        let mut buf = Vec::new();
        let mut offset = 0;
        while offset < array.nbytes() {
            let len = COPY_LEN.min(array.nbytes() - offset);
            let copied = match source {
                Some(source) => stage.copy(source, record.elements_offset() + offset, len)?,
                None => 0,
            };
            if copied < len {
                // No descriptor, or the file ends early, which is an error.
                buf.resize((len - copied) as usize, 0);
                array.read_part(offset + copied, &mut buf)?;
                stage.push(&buf)?;
            }
            offset += len;
            progress(offset);
        }
        stage.finish()
    }

    /// Copies the rows with the numbers `rows` into a new version, in C-order.
    fn stage_rows(&self, array: &Array, rows: &[u64]) -> Result<Staged, StoreError> {
        let n_rows = rows.len() as u64;
        let mut stage = self.stage_header(array, array.name(), n_rows, array.compression().as_ref())?;
        let row_len = array.row_len();
        if row_len == 0 {
            return stage.finish();
        }
        let mut buf = Vec::new();
        for rows in rows.chunks((COPY_LEN / row_len).max(1) as usize) {
            buf.resize(rows.len() * row_len as usize, 0);
            array.gather_into(rows, &mut buf)?;
            stage.push(&buf)?;
        }
        stage.finish()
    }

    /// Starts a new version of `array`, to be called `name`, with `n_rows` rows in C-order still to be written.
    fn stage_header(
        &self,
        array: &Array,
        name: &Arc<str>,
        n_rows: u64,
        compression: Option<&Compression>,
    ) -> Result<Stage<'_>, StoreError> {
        let record = array.record();
        let mut shape = record.layout.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = n_rows;
        }
        let layout = Layout::new(&record.dtype, &shape, false)?;
        let header = npy::encode(&record.dtype, &layout)?;
        Stage::begin(self, name, &record.dtype, layout, header, compression)
    }
}

/// Copies the rows of `array` that are not deleted, in C-order.
fn copy_rows(array: &Array, stage: &mut Stage<'_>, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
    let row_len = array.row_len();
    if row_len == 0 {
        return Ok(());
    }
    let rows_at_once = (COPY_LEN / row_len).max(1);
    let mut buf = Vec::new();
    let mut row = 0;
    while row < array.n_rows() {
        let end = array.n_rows().min(row + rows_at_once);
        buf.resize(((end - row) * row_len) as usize, 0);
        array.read_rows_into(row..end, &mut buf)?;
        stage.push(&buf)?;
        row = end;
        progress(row * row_len);
    }
    Ok(())
}

/// Checks that `array` has these rows.
pub(super) fn check_range(array: &Array, rows: &Range<u64>) -> Result<(), StoreError> {
    let n_rows = array.n_rows();
    if rows.end <= n_rows {
        return Ok(());
    }
    let index = rows.start.max(n_rows);
    Err(StoreError::IndexOutOfRange { array: array.name().to_string(), index, n_rows })
}

/// Checks that `new` has the dtype and the row shape of `array`, in C-order.
pub(super) fn check_rows(array: &Array, new: &NewArray<'_>) -> Result<(), StoreError> {
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

/// Whether the header in the file has room for the text of the shape with so many rows: that text may be longer than the
/// one that another program wrote.
pub(super) fn has_room_for(array: &Array, n_rows: u64) -> Result<bool, StoreError> {
    let mut shape = array.shape().to_vec();
    if let Some(rows) = shape.first_mut() {
        *rows = n_rows;
    }
    let layout = Layout::new(array.dtype(), &shape, false)?;
    Ok(npy::encode_within(array.dtype(), &layout, array.header_len()).is_some())
}

/// The runs of consecutive numbers in `rows`, in order.
fn consecutive_runs(rows: &[u64]) -> impl Iterator<Item = Range<u64>> + Clone {
    rows.chunk_by(|a, b| a.checked_add(1) == Some(*b))
        .map(|run| run[0]..run[0].saturating_add(run.len() as u64))
}

/// Where the bytes `data` of rows, which are in C-order, go in the stored elements of `array`: those of `runs`.
pub(super) fn row_parts<'a>(
    array: &Array,
    runs: impl Iterator<Item = Range<u64>>,
    data: &'a [u8],
) -> Result<Vec<Part<'a>>, StoreError> {
    let row_len = array.row_len() as usize;
    let mut rest = data;
    let mut parts = Vec::new();
    for run in runs {
        let len = (run.end - run.start) as usize * row_len;
        let Some((rows, after)) = rest.split_at_checked(len) else { break };
        rest = after;
        if array.fortran_order() {
            push_fortran_rows(array, run, rows, &mut parts);
        } else {
            parts.extend(array.parts(run.start * array.row_len(), rows)?);
        }
    }
    Ok(parts)
}

/// Adds consecutive rows of a Fortran-ordered array, each of whose columns is contiguous, to `parts`.
fn push_fortran_rows(array: &Array, rows: Range<u64>, data: &[u8], parts: &mut Vec<Part<'_>>) {
    let layout = &array.record().layout;
    let itemsize = layout.itemsize() as usize;
    if itemsize == 0 {
        return;
    }
    for (item, offset) in layout.fortran_row_offsets(rows.start).enumerate() {
        let mut column = Vec::with_capacity((rows.end - rows.start) as usize * itemsize);
        for row in data.chunks_exact(array.row_len() as usize) {
            column.extend_from_slice(&row[item * itemsize..][..itemsize]);
        }
        parts.push((offset, column.into()));
    }
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
