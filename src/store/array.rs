//! One array at one committed state: reads it, maps it, and writes its elements in place.

use std::ops::{Deref, Range};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::blocks::Cursor;
use super::compressed::{self, Part};
use super::data::{DataFile, fault};
use super::error::{DataFileFault, StoreError};
use super::writer::WriteGuard;
use super::{Shared, Store};
use crate::format::npy::{self, NpyHeader};
use crate::format::{ArrayId, Attrs, Codec, Compression, Dtype, Layout, Record};
use crate::sys::process::{n_cores, share_out};
use crate::sys::{FileStat, Map, MapMut};

/// Reads of at least this many bytes are split among threads: one core does not reach the memory's speed.
const PARALLEL_LEN: usize = 8 << 20;
/// The same where they have to be decoded.
const PARALLEL_DECODED_LEN: usize = 512 << 10;
/// Decoded bytes that a thread takes at once.
const DECODED_CHUNK_LEN: usize = 1 << 20;
/// More threads than this gain nothing on the way from the page cache.
const MAX_THREADS: usize = 8;

/// One version of an array, at the state that was committed when it was looked up.
///
/// It stays readable when the array is overwritten or removed, once [`Array::pin`] or any read opened its file.
/// Elements that are written in place, by anyone, show in it; rows that are appended do not.
#[derive(Clone)]
pub struct Array {
    shared: Arc<Shared>,
    record: Arc<Record>,
    /// Without the deleted rows, where there are any.
    shape: Option<Arc<[u64]>>,
    data: OnceLock<Arc<DataFile>>,
}

/// The elements of an array, mapped: shared with the page cache and all other readers, read-only.
///
/// Valid for as long as it lives, also after the array is overwritten or removed and the store closed.
#[derive(Clone, Debug)]
pub struct ArrayMap {
    map: Map,
    range: Range<usize>,
}

impl Deref for ArrayMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl Array {
    pub(super) fn new(shared: Arc<Shared>, record: Arc<Record>) -> Self {
        let shape = (!record.deleted.is_empty()).then(|| record.shape().into());
        Self { shared, record, shape, data: OnceLock::new() }
    }

    /// The same, of this file, whatever its length.
    pub(super) fn of_file(shared: Arc<Shared>, record: Arc<Record>, data: Arc<DataFile>) -> Self {
        Self { data: OnceLock::from(data), ..Self::new(shared, record) }
    }

    /// The array for a process that was forked since its store was opened; see [`Store::after_fork`](super::Store).
    ///
    /// # Errors
    /// As [`Store::after_fork`](super::Store::after_fork).
    pub fn after_fork(&self) -> Result<Option<Self>, StoreError> {
        let Some(store) = (Store { shared: Arc::clone(&self.shared) }).after_fork()? else { return Ok(None) };
        let (shared, record) = (store.shared, Arc::clone(&self.record));
        Ok(Some(match self.data.get() {
            Some(data) => Self::of_file(shared, record, Arc::new(DataFile::new(Arc::clone(&data.file)))),
            None => Self::new(shared, record),
        }))
    }

    pub(super) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// The newest record of this version, whatever name it has by now, unless it is gone.
    pub(super) fn current(&self) -> Option<Arc<Record>> {
        self.shared.current(&self.record, self.data.get().map(|data| &**data))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether the other is the same version with the same rows, name and attributes. What is written in place changes
    /// the state of a compressed array, and of no other.
    pub fn is_same_state(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.record, &other.record) || self.record == other.record
    }

    /// The name.
    pub fn name(&self) -> &Arc<str> {
        &self.record.name
    }

    /// The identity of this version.
    pub fn id(&self) -> ArrayId {
        self.record.id
    }

    /// The dtype.
    pub fn dtype(&self) -> &Dtype {
        &self.record.dtype
    }

    /// The shape, without deleted rows.
    pub fn shape(&self) -> &[u64] {
        self.shape.as_deref().unwrap_or(self.record.layout.shape())
    }

    /// Whether the first axis varies fastest.
    pub fn fortran_order(&self) -> bool {
        self.record.layout.fortran_order()
    }

    /// Length of axis 0; 1 for a 0-d array.
    pub fn n_rows(&self) -> u64 {
        self.record.n_rows()
    }

    /// Bytes of one row.
    pub fn row_len(&self) -> u64 {
        self.record.layout.row_len()
    }

    /// Bytes of all elements.
    pub fn nbytes(&self) -> u64 {
        self.n_rows() * self.row_len()
    }

    /// Bytes that the elements take in the data file, deleted rows and, where they are compressed, the index included.
    /// Reads nothing.
    pub fn stored_len(&self) -> u64 {
        self.record.blocks.as_ref().map_or_else(|| self.record.layout.nbytes(), |blocks| blocks.index.live)
    }

    /// Bytes in the data file of a compressed array that are in use no more. Reads nothing.
    pub fn dead_len(&self) -> u64 {
        self.record.blocks.as_ref().map_or(0, |blocks| blocks.index.dead(self.record.offset))
    }

    /// Bytes of the elements before they are compressed, deleted rows included.
    pub fn raw_len(&self) -> u64 {
        self.record.layout.nbytes()
    }

    /// Rows that are deleted but still stored; `Store::compact` gives their space back.
    pub fn n_deleted(&self) -> u64 {
        self.record.deleted.0.len()
    }

    /// The data file's name in the store's folder.
    pub fn file_name(&self) -> &str {
        &self.record.file
    }

    /// How the elements are compressed; `None` if they are not.
    pub fn codec(&self) -> Option<&Codec> {
        self.record.blocks.as_ref().map(|blocks| &blocks.codec)
    }

    /// What a new version is to be compressed as, to be like this one.
    pub fn compression(&self) -> Option<Compression> {
        self.codec().map(|codec| Compression {
            level: codec.level,
            block_len: codec.block_len,
            filter: Some(codec.filter),
        })
    }

    /// The user's attributes.
    pub fn attrs(&self) -> &Attrs {
        &self.record.attrs
    }

    /// The user's attributes, for those who keep them longer than the array.
    pub fn shared_attrs(&self) -> &Arc<Attrs> {
        &self.record.attrs
    }

    /// Length of the `.npy` header, in bytes: the offset of the first element in the virtual file.
    pub fn header_len(&self) -> u64 {
        self.record.offset
    }

    /// Length of the virtual `.npy` file, in bytes.
    pub fn npy_len(&self) -> u64 {
        self.header_len() + self.nbytes()
    }

    /// Opens the data file now, so that this version stays readable whatever happens to the store.
    ///
    /// # Errors
    /// `DataFile` if it is missing, short or no regular file; `Io`.
    pub fn pin(&self) -> Result<(), StoreError> {
        self.data().map(|_| ())
    }

    pub(super) fn data(&self) -> Result<&Arc<DataFile>, StoreError> {
        if let Some(data) = self.data.get() {
            return Ok(data);
        }
        let data = self.shared.files.get(&*self.shared.storage, &self.record)?;
        Ok(self.data.get_or_init(|| data))
    }

    /// What the system knows about the data file.
    ///
    /// # Errors
    /// `Io`, also if this version is gone and was not pinned.
    pub fn stat(&self) -> Result<FileStat, StoreError> {
        if self.record.is_segmented() {
            // If a segment is missing, all there is to tell about is their list.
            let _ = self.pin();
        }
        match self.data.get() {
            Some(data) => data.file.stat(),
            None => self.shared.storage.stat(&self.record.file),
        }
        .map_err(|source| self.io("stat", source))
    }

    /// Bytes that the data file takes on the disk; 0 if it is missing.
    ///
    /// # Errors
    /// `Io`.
    pub fn on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.stat_if_there()?.map_or(0, |stat| stat.allocated))
    }

    /// Time of the last change: of the last commit, or of a later write in place, unless the data file is missing.
    ///
    /// # Errors
    /// `Io`.
    pub fn modified(&self) -> Result<SystemTime, StoreError> {
        Ok(self.stat_if_there()?.map_or(self.committed(), |stat| stat.mtime.max(self.committed())))
    }

    fn stat_if_there(&self) -> Result<Option<FileStat>, StoreError> {
        match self.stat() {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    /// Time of the last commit that changed the array.
    pub fn committed(&self) -> SystemTime {
        let nanos = Duration::from_nanos(self.record.mtime.unsigned_abs());
        let time = if self.record.mtime >= 0 {
            UNIX_EPOCH.checked_add(nanos)
        } else {
            UNIX_EPOCH.checked_sub(nanos)
        };
        time.unwrap_or(UNIX_EPOCH)
    }

    /// Reads all elements, in the order in which they are stored.
    ///
    /// `out.len()` must be [`Array::nbytes`]. Uses several threads where there is much to read.
    ///
    /// # Errors
    /// `BufferLen`; `DataFile`; `Io`.
    pub fn read_into(&self, out: &mut [u8]) -> Result<(), StoreError> {
        self.check_len(out.len(), self.nbytes())?;
        self.read_part(0, out)
    }

    /// As [`Array::read_into`], from byte `offset` of the elements on and as much as `out` takes.
    ///
    /// # Errors
    /// `BufferLen` if `out` takes more than there is; `DataFile`; `Block`; `Io`.
    pub fn read_elements_at(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let rest = self.nbytes().saturating_sub(offset);
        self.check_len(out.len(), rest.min(out.len() as u64))?;
        self.read_part(offset, out)
    }

    /// Reads the rows `rows`, in C-order.
    ///
    /// `out.len()` must be `rows` times [`Array::row_len`].
    ///
    /// # Errors
    /// `IndexOutOfRange`; `BufferLen`; `DataFile`; `Io`.
    pub fn read_rows_into(&self, rows: Range<u64>, out: &mut [u8]) -> Result<(), StoreError> {
        if rows.end > self.n_rows() || rows.start > rows.end {
            return Err(self.out_of_range(rows.end.max(rows.start)));
        }
        self.check_len(out.len(), (rows.end - rows.start) * self.row_len())?;
        if self.fortran_order() {
            return self.gather_fortran(rows, out);
        }
        self.read_part(rows.start * self.row_len(), out)
    }

    /// Reads the rows with the numbers `rows`, in that order, each in C-order.
    ///
    /// `out.len()` must be `rows.len()` times [`Array::row_len`].
    ///
    /// # Errors
    /// `IndexOutOfRange`; `BufferLen`; `DataFile`; `Io`.
    pub fn gather_into(&self, rows: &[u64], out: &mut [u8]) -> Result<(), StoreError> {
        let n_rows = self.n_rows();
        if let Some(row) = rows.iter().find(|row| **row >= n_rows) {
            return Err(self.out_of_range(*row));
        }
        self.check_len(out.len(), rows.len() as u64 * self.row_len())?;
        if self.row_len() == 0 || rows.is_empty() {
            return Ok(());
        }
        if self.fortran_order() {
            return self.gather_fortran(rows.iter().copied(), out);
        }
        let row_len = self.row_len() as usize;
        if self.codec().is_some() {
            let live = self.live_rows()?;
            let stored = |row| live.as_ref().map_or(row, |live| live.stored(row));
            let rows = rows.iter().zip(out.chunks_exact_mut(row_len));
            let rows = rows.map(|(row, out)| (stored(*row) * row_len as u64, out)).collect();
            return compressed::gather(&self.shared, &self.record, self.data()?, rows);
        }
        if self.record.is_segmented() {
            let mut rows = rows.iter().zip(out.chunks_exact_mut(row_len));
            return rows.try_for_each(|(row, out)| self.read_bytes(row * row_len as u64, out));
        }
        // From the page cache without a system call per row.
        let map = self.map_file()?;
        let elements = &map[self.record.elements_offset() as usize..];
        let live = self.live_rows()?;
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(row_len)) {
            let stored = live.as_ref().map_or(*row, |live| live.stored(*row)) as usize;
            out.copy_from_slice(&elements[stored * row_len..][..row_len]);
        }
        Ok(())
    }

    /// Reads from the virtual `.npy` file: the header, then the elements without deleted rows. Returns the number
    /// of bytes read, less than `buf.len()` only at the end.
    ///
    /// # Errors
    /// `DataFile`; `Io`.
    pub fn read_npy_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let len = self.npy_len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        let header_part = self.header_len().saturating_sub(offset).min(len as u64) as usize;
        if header_part > 0 {
            let header = self.npy_header()?;
            buf[..header_part].copy_from_slice(&header[offset as usize..][..header_part]);
        }
        if header_part < len {
            self.read_bytes(offset + header_part as u64 - self.header_len(), &mut buf[header_part..])?;
        }
        Ok(len)
    }

    /// The header of the virtual `.npy` file: the file's own bytes while they describe this state of the array.
    ///
    /// # Errors
    /// `DataFile` if no header of that length describes it; `Io`.
    pub fn npy_header(&self) -> Result<Vec<u8>, StoreError> {
        if self.record.deleted.is_empty() {
            let (bytes, header) = self.stored_header()?;
            if header.is_ok_and(|header| self.is_described_by(&header)) {
                return Ok(bytes);
            }
        }
        let record = &self.record;
        let layout = Layout::new(&record.dtype, self.shape(), self.fortran_order())?;
        npy::encode_within(&record.dtype, &layout, record.offset)
            .ok_or_else(|| fault(&*self.shared.storage, record, DataFileFault::Header(None)))
    }

    /// A header of this state of the array that is as short as those that NumPy writes, with at least `n_spaces` spaces
    /// before its newline.
    ///
    /// # Errors
    /// `Format` if it would be too long.
    pub fn short_npy_header(&self, n_spaces: usize) -> Result<Vec<u8>, StoreError> {
        let layout = Layout::new(self.dtype(), self.shape(), self.fortran_order())?;
        Ok(npy::encode_short(self.dtype(), &layout, n_spaces)?)
    }

    /// Writes into the virtual `.npy` file, in place. Visible to every reader at once.
    ///
    /// Header bytes may be written as they are, so that a page that holds header and elements can be written back.
    ///
    /// # Errors
    /// `ReadOnly`; `HeaderWrite`; `OutOfBounds`; `Locked`; `DataFile`; `Io`.
    pub fn write_npy_at(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        match self.write_locked(offset, data, self.shared.lock_timeout)? {
            Some(guard) => self.shared.tell_written(&guard, self),
            None => Ok(()),
        }
    }

    /// As [`Array::write_npy_at`], for those who write often: waits no longer than `wait` for other writers, and
    /// leaves it to the caller to tell others by [`Array::tell_written`] once in a while.
    ///
    /// # Errors
    /// As [`Array::write_npy_at`].
    pub fn write_npy_within(&self, wait: Duration, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write_locked(offset, data, wait).map(|_| ())
    }

    /// Whether bytes begin with a whole `.npy` header that says of the array what its own does, in whatever words.
    pub fn has_header_like(&self, bytes: &[u8]) -> bool {
        let header = usize::try_from(self.header_len()).ok().and_then(|len| bytes.get(..len));
        header.is_some_and(|header| npy::parse(header).is_ok_and(|header| self.is_described_by(&header)))
    }

    /// Tells those who asked by [`Store::watch`](super::Store::watch) that elements were written in place.
    ///
    /// # Errors
    /// `ReadOnly`; `Locked`; `Io`.
    pub fn tell_written(&self) -> Result<(), StoreError> {
        let guard = self.shared.lock_writers()?;
        self.shared.tell_written(&guard, self)
    }

    /// Writes into the virtual `.npy` file. Returns the lock, if it was needed.
    fn write_locked(
        &self,
        offset: u64,
        data: &[u8],
        wait: Duration,
    ) -> Result<Option<WriteGuard<'_>>, StoreError> {
        let end = offset.saturating_add(data.len() as u64);
        if end > self.npy_len() {
            return Err(StoreError::OutOfBounds {
                array: self.name().to_string(),
                range: offset..end,
                len: self.npy_len(),
            });
        }
        let header_part = self.header_len().saturating_sub(offset).min(data.len() as u64) as usize;
        if header_part > 0 && self.npy_header()?[offset as usize..][..header_part] != data[..header_part] {
            return Err(StoreError::HeaderWrite {
                array: self.name().to_string(),
                header_len: self.header_len(),
            });
        }
        let elements = &data[header_part..];
        if elements.is_empty() {
            return Ok(None);
        }
        let guard = self.shared.lock_writers_within(wait)?;
        let parts = self.parts(offset + header_part as u64 - self.header_len(), elements)?;
        self.write_elements(&guard, parts)?;
        Ok(Some(guard))
    }

    /// The elements as one shared mapping, without reading any. `None` where deleted rows lie between them, where they
    /// are compressed, and where they are in several files.
    ///
    /// # Errors
    /// `DataFile`; `Io`.
    pub fn map(&self) -> Result<Option<ArrayMap>, StoreError> {
        if !self.record.deleted.is_empty() || self.codec().is_some() || self.record.is_segmented() {
            return Ok(None);
        }
        let map = self.map_file()?;
        let range = self.record.elements_offset() as usize..self.record.data_end() as usize;
        Ok(Some(ArrayMap { map, range }))
    }

    /// The elements as one shared mapping that can be written to. `None` as for [`Array::map`]. What is written there
    /// is in the array at once, for every reader; [`Array::tell_mapped`] is called when it is done.
    ///
    /// # Errors
    /// `ReadOnly`; `DataFile`; `Io`.
    pub fn map_mut(&self) -> Result<Option<MapMut>, StoreError> {
        self.shared.check_writable()?;
        if !self.record.deleted.is_empty() || self.codec().is_some() {
            return Ok(None);
        }
        // So that a sync before that takes to the disk what is written by then.
        self.shared.note_dirty(&self.record);
        let map =
            self.data()?.file.map_mut(self.record.elements_offset(), self.record.layout.nbytes() as usize);
        map.map(Some).map_err(|source| self.map_failed(source))
    }

    /// The same array without a hold on its data file, which is opened again when it is needed.
    pub fn unpinned(&self) -> Self {
        Self::new(Arc::clone(&self.shared), Arc::clone(&self.record))
    }

    /// Lets others know that elements were written through a mapping: the time of change is set, those who asked by
    /// [`Store::watch`](super::Store::watch) are told, and what was written is on the disk if the store is durable, or
    /// else after the next sync.
    ///
    /// # Errors
    /// `ReadOnly`; `Locked`; `Io`.
    pub fn tell_mapped(&self) -> Result<(), StoreError> {
        let guard = self.shared.lock_writers()?;
        // Nobody reads a version that is gone, and its file may be, too.
        if self.current().is_none() {
            return Ok(());
        }
        let file = &self.data()?.file;
        // Not every file system sets it for a write through a mapping.
        file.set_times(None, Some(SystemTime::now())).map_err(|e| self.io("set the times of", e))?;
        self.shared.note_dirty(&self.record);
        if self.shared.is_durable() {
            self.shared.or_poison(self.shared.sync_all())?;
        }
        self.shared.tell_written(&guard, self)
    }

    /// The whole virtual `.npy` file as one shared mapping; `None` unless the data file's bytes are its bytes.
    ///
    /// # Errors
    /// `DataFile`; `Io`.
    pub fn map_npy(&self) -> Result<Option<ArrayMap>, StoreError> {
        if self.backing()?.is_none() {
            return Ok(None);
        }
        Ok(Some(ArrayMap { map: self.map_file()?, range: 0..self.npy_len() as usize }))
    }

    /// The data file's descriptor, if its bytes are those of the virtual `.npy` file: nothing is deleted or compressed,
    /// the header in the file describes this state of the array, and nothing follows the elements.
    ///
    /// # Errors
    /// `DataFile`; `Io`.
    pub fn backing(&self) -> Result<Option<BorrowedFd<'_>>, StoreError> {
        if !self.record.deleted.is_empty() || self.codec().is_some() || self.record.upstream.is_some() {
            return Ok(None);
        }
        let described = self.stored_header()?.1.is_ok_and(|header| self.is_described_by(&header));
        let is_whole = described && self.stat()?.len == self.record.data_end();
        Ok(if is_whole { self.data()?.file.fd() } else { None })
    }

    /// Finishes what a writer that died left of an append: rewrites a header that lags behind the record, cuts off
    /// rows that were never committed. Returns whether that was needed.
    ///
    /// # Errors
    /// `ReadOnly`; `Locked`; `DataFile` if no header of that length describes the array; `Io`.
    pub fn mend(&self) -> Result<bool, StoreError> {
        let _guard = self.shared.lock_writers()?;
        // Only the newest state may be written into the file.
        let Some(record) = self.current() else { return Ok(false) };
        let data = self.data()?;
        if self.codec().is_some() {
            // Taking the lock has mended it.
            return Ok(false);
        }
        let is_longer = self.stat()?.len > record.data_end();
        if is_longer {
            // Nobody has what follows mapped: it was never committed.
            data.file.set_len(record.data_end()).map_err(|source| self.io("truncate", source))?;
        }
        let (_, header) = self.stored_header()?;
        let is_current = header.is_ok_and(|header| header.describes(&record.dtype, &record.layout));
        if !is_current {
            self.shared.note_dirty(&record);
            self.shared.write_header(&record, data)?;
        }
        Ok(is_longer || !is_current)
    }

    /// Returns when the elements are on the disk.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.data()?.file.sync_data().map_err(|source| self.io("sync", source))
    }

    /// Sets the times of the data file.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_times(&self, atime: Option<SystemTime>, mtime: Option<SystemTime>) -> Result<(), StoreError> {
        self.data()?.file.set_times(atime, mtime).map_err(|source| self.io("set the times of", source))
    }

    /// Sets the permission bits of the data file.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_mode(&self, mode: u32) -> Result<(), StoreError> {
        self.data()?.file.set_mode(mode).map_err(|source| self.io("change the permissions of", source))
    }

    /// Sets the owner and the group of the data file, as far as they are given.
    ///
    /// # Errors
    /// `Io`: only root gives files away.
    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), StoreError> {
        self.data()?.file.set_owner(uid, gid).map_err(|source| self.io("change the owner of", source))
    }

    /// As [`Array::read_into`], from byte `offset` on and as much as `out` takes.
    pub(super) fn read_part(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let threads = n_cores().min(MAX_THREADS);
        let (parallel_len, chunk_len) = match self.codec() {
            None => (PARALLEL_LEN, out.len().div_ceil(threads).next_multiple_of(4096)),
            Some(codec) => {
                let block_len = codec.block_len as usize;
                (PARALLEL_DECODED_LEN, (DECODED_CHUNK_LEN / block_len).max(1) * block_len)
            }
        };
        if out.len() < parallel_len || threads < 2 {
            return self.read_bytes(offset, out);
        }
        self.pin()?;
        // The first chunk ends where a block does, so that no block is decoded for two of them.
        let first_len = match self.codec() {
            Some(_) => chunk_len - (offset % chunk_len as u64) as usize,
            None => chunk_len,
        };
        let (first, rest) = out.split_at_mut(first_len.min(out.len()));
        let rest = (0_u64..).zip(rest.chunks_mut(chunk_len));
        let rest = rest.map(|(i, chunk)| (offset + first_len as u64 + i * chunk_len as u64, chunk));
        let chunks = std::iter::once((offset, first)).chain(rest);
        share_out(threads, chunks, || (), |(), (offset, chunk)| self.read_bytes(offset, chunk))
    }

    /// Reads elements from byte `offset` of the live rows on, in stored order.
    fn read_bytes(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let data = self.data()?;
        let shared = &*self.shared;
        if let Some(view) = shared.newest_view(&self.record, data, false) {
            let mut cursor = Cursor::new(shared, &self.record, data, view);
            return self.for_each_extent(offset, out.len() as u64, |position, range| {
                cursor.read(position, &mut out[range])
            });
        }
        self.for_each_extent(offset, out.len() as u64, |position, range| {
            let (out, position) = (&mut out[range], self.record.elements_offset() + position);
            let read = data.file.read_at(out, position).map_err(|source| self.io("read", source))?;
            if read == out.len() {
                return Ok(());
            }
            let found = position + read as u64;
            Err(fault(
                &*self.shared.storage,
                &self.record,
                DataFileFault::Short { found, expected: self.record.data_end() },
            ))
        })
    }

    /// What `data`, written from byte `offset` of the live rows on, changes of the stored elements.
    pub(super) fn parts<'a>(&self, offset: u64, data: &'a [u8]) -> Result<Vec<Part<'a>>, StoreError> {
        let mut parts = Vec::new();
        self.for_each_extent(offset, data.len() as u64, |position, range| {
            parts.push((position, data[range].into()));
            Ok(())
        })?;
        Ok(parts)
    }

    /// Writes parts of the stored elements in place. The writers' lock is held. Those of an array that is not compressed
    /// are not told to anybody.
    pub(super) fn write_elements(
        &self,
        guard: &WriteGuard<'_>,
        parts: Vec<Part<'_>>,
    ) -> Result<(), StoreError> {
        if self.codec().is_some() {
            return self.write_parts(guard, parts, false);
        }
        let file = &self.data()?.file;
        self.shared.note_dirty(&self.record);
        for (position, bytes) in parts {
            let position = self.record.elements_offset() + position;
            file.write_at(&bytes, position).map_err(|source| self.io("write", source))?;
        }
        Ok(())
    }

    /// Calls `f` with the position in the stored elements and the range in the buffer of each contiguous part of the
    /// `len` bytes from `offset` of the live rows on.
    pub(super) fn for_each_extent(
        &self,
        offset: u64,
        len: u64,
        mut f: impl FnMut(u64, Range<usize>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(live) = self.live_rows()? else {
            return f(offset, 0..len as usize);
        };
        let row_len = self.row_len();
        if row_len == 0 || len == 0 {
            return Ok(());
        }
        let end = offset + len;
        let mut done = 0;
        for run in live.stored_runs(offset / row_len..end.div_ceil(row_len)) {
            let skip = if done == 0 { offset % row_len } else { 0 };
            let run_len = ((run.end - run.start) * row_len - skip).min(len - done);
            f(run.start * row_len + skip, done as usize..(done + run_len) as usize)?;
            done += run_len;
        }
        Ok(())
    }

    /// Reads rows of a Fortran-ordered array, which has no deleted rows.
    fn gather_fortran(&self, rows: impl IntoIterator<Item = u64>, out: &mut [u8]) -> Result<(), StoreError> {
        let layout = &self.record.layout;
        let itemsize = layout.itemsize() as usize;
        if self.row_len() == 0 {
            return Ok(());
        }
        // The elements of one row lie at the same distances from its first element as those of row 0.
        let offsets: Vec<usize> = layout.fortran_row_offsets(0).map(|offset| offset as usize).collect();
        let rows = rows.into_iter().zip(out.chunks_exact_mut(self.row_len() as usize));
        if self.codec().is_some() {
            let items = rows.flat_map(|(row, out)| {
                let first = row as usize * itemsize;
                offsets
                    .iter()
                    .zip(out.chunks_exact_mut(itemsize))
                    .map(move |(offset, out)| ((first + offset) as u64, out))
            });
            return compressed::gather(&self.shared, &self.record, self.data()?, items.collect());
        }
        let map = self.map_file()?;
        let elements = &map[self.record.elements_offset() as usize..];
        for (row, out) in rows {
            let first = row as usize * itemsize;
            for (offset, out) in offsets.iter().zip(out.chunks_exact_mut(itemsize)) {
                out.copy_from_slice(&elements[first + offset..][..itemsize]);
            }
        }
        Ok(())
    }

    pub(super) fn live_rows(&self) -> Result<Option<Arc<super::rows::LiveRows>>, StoreError> {
        if self.record.deleted.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.data()?.live_rows(&self.record.deleted.0)))
    }

    fn map_file(&self) -> Result<Map, StoreError> {
        self.data()?.map(self.record.data_end()).map_err(|source| self.map_failed(source))
    }

    fn map_failed(&self, source: std::io::Error) -> StoreError {
        if source.kind() != std::io::ErrorKind::UnexpectedEof {
            return self.io("map", source);
        }
        let found = self.stat().map_or(0, |stat| stat.len);
        let expected = self.record.data_end();
        fault(&*self.shared.storage, &self.record, DataFileFault::Short { found, expected })
    }

    /// The header that is in the file, and what it says.
    fn stored_header(&self) -> Result<(Vec<u8>, Result<NpyHeader, crate::format::FormatError>), StoreError> {
        self.data()?.header(&self.record).map_err(|source| self.io("read", source))
    }

    /// Checks that the header in the file is one of this array, maybe of an earlier number of rows.
    pub(super) fn check_stored_header(&self) -> Result<(), StoreError> {
        let wrong = |source| fault(&*self.shared.storage, &self.record, DataFileFault::Header(source));
        let header = self.stored_header()?.1.map_err(|source| wrong(Some(source)))?;
        let layout = &self.record.layout;
        // Rows are only ever appended in C-order.
        let is_same = if layout.fortran_order() {
            header.describes(&self.record.dtype, layout)
        } else {
            let is_c_order = Layout::new(&header.dtype, &header.shape, header.fortran_order)
                .is_ok_and(|own| !own.fortran_order());
            let same_rows = header.shape.get(1..) == layout.shape().get(1..);
            is_c_order && same_rows && header.dtype == self.record.dtype
        };
        if is_same && header.header_len == self.record.offset {
            return Ok(());
        }
        Err(wrong(None))
    }

    fn is_described_by(&self, header: &NpyHeader) -> bool {
        header.header_len == self.record.offset && header.describes(&self.record.dtype, &self.record.layout)
    }

    fn check_len(&self, found: usize, expected: u64) -> Result<(), StoreError> {
        if found as u64 == expected {
            return Ok(());
        }
        Err(StoreError::BufferLen { array: self.name().to_string(), found: found as u64, expected })
    }

    fn out_of_range(&self, index: u64) -> StoreError {
        StoreError::IndexOutOfRange { array: self.name().to_string(), index, n_rows: self.n_rows() }
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> StoreError {
        StoreError::io(action, self.shared.storage.path(), &self.record.file, source)
    }
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Array")
            .field("name", self.name())
            .field("id", &self.id())
            .field("dtype", &format_args!("{}", self.dtype()))
            .field("shape", &self.shape())
            .finish_non_exhaustive()
    }
}
