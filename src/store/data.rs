//! Open data files: shared by all handles of one version of an array, the recent ones kept open.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use roaring::RoaringTreemap;

use super::block_writer::Space;
use super::blocks::BlockCache;
use super::error::{DataFileFault, StoreError};
use super::rows::LiveRows;
use crate::format::npy::{self, NpyHeader};
use crate::format::{ArrayId, FormatError, Record};
use crate::sys::sync::{AtomicBool, Mutex, MutexGuard};
use crate::sys::{FileAccess, FileStat, Map, Storage, StorageFile};

/// Data files that stay open after their last use: opening one costs as much as writing a few rows.
pub(super) const MAX_RECENT: usize = 64;

/// An open data file and what was computed from it.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) file: Arc<dyn StorageFile>,
    /// The file from its start, header included, as far as somebody wanted to see it mapped.
    map: Mutex<Option<Map>>,
    /// Which stored rows are live, for the bitmap that it was computed from.
    live: Mutex<Option<(Arc<RoaringTreemap>, Arc<LiveRows>)>>,
    /// Whether the version is gone: no record tells of it any more.
    is_gone: AtomicBool,
    /// Of a compressed array: what was read of it.
    pub(super) blocks: BlockCache,
    /// Of a compressed array: where there is room in it.
    pub(super) space: Mutex<Space>,
}

impl DataFile {
    pub(super) fn new(file: Arc<dyn StorageFile>) -> Self {
        Self {
            file,
            map: Mutex::new(None),
            live: Mutex::new(None),
            is_gone: AtomicBool::new(false),
            blocks: BlockCache::default(),
            space: Mutex::default(),
        }
    }

    /// Whether the version was seen to go. Its identity may be that of another one, of a store made anew.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Opens the data file of `record` and checks that it holds what is committed.
    fn open(storage: &dyn Storage, record: &Record, access: FileAccess) -> Result<Self, StoreError> {
        if let Some(source) = &record.upstream {
            return Ok(Self::new(super::upstream::open(storage, record, source)?));
        }
        let fault = |what| fault(storage, record, what);
        let opened = storage.open(&record.file, access);
        let file = opened.map_err(|source| open_failed(storage, record, &record.file, source))?;
        let failed = |e| StoreError::io("stat", storage.path(), &record.file, e);
        let mut stat = file.stat().map_err(failed)?;
        if stat.len < record.data_end() && !storage.has_far_locks().map_err(failed)? {
            // Another host has just made it longer.
            file.forget_cached().map_err(failed)?;
            stat = file.stat().map_err(failed)?;
        }
        if stat.len < record.data_end() {
            return Err(fault(DataFileFault::Short { found: stat.len, expected: record.data_end() }));
        }
        Ok(Self::new(file))
    }

    /// The `.npy` header that is in the file, or that it would have, and what it says.
    pub(super) fn header(&self, record: &Record) -> io::Result<(Vec<u8>, Result<NpyHeader, FormatError>)> {
        if record.upstream.is_some() {
            let header = npy::encode_within(&record.dtype, &record.layout, record.offset);
            let bytes = header.expect("the header was as long when the record was made, for no more rows");
            let header = npy::parse(&bytes);
            return Ok((bytes, header));
        }
        // At most 1 MiB: records with longer headers are refused.
        let mut bytes = vec![0; record.offset as usize];
        let read = self.file.read_at(&mut bytes, record.header_offset())?;
        bytes.truncate(read);
        let header = npy::parse(&bytes);
        Ok((bytes, header))
    }

    /// The file's first `len` bytes, mapped.
    pub(super) fn map(&self, len: u64) -> io::Result<Map> {
        let len = usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let mut cached = lock(&self.map);
        match &*cached {
            Some(map) if map.len() >= len => Ok(map.clone()),
            _ => Ok(cached.insert(self.file.map(0, len)?).clone()),
        }
    }

    /// Where the live rows are, given those that are deleted.
    pub(super) fn live_rows(&self, deleted: &Arc<RoaringTreemap>) -> Arc<LiveRows> {
        let mut cached = lock(&self.live);
        match &*cached {
            Some((of, live)) if Arc::ptr_eq(of, deleted) => Arc::clone(live),
            _ => {
                let live = Arc::new(LiveRows::new(deleted));
                *cached = Some((Arc::clone(deleted), Arc::clone(&live)));
                live
            }
        }
    }
}

/// Gives a new file the permissions of another one, and its owner and group, as far as this process may.
pub(super) fn resemble(file: &dyn StorageFile, other: &FileStat) -> io::Result<()> {
    let own = file.stat()?;
    let given = |result: io::Result<()>| match result {
        // Only root gives files away; and some file systems know neither owners nor permissions.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    };
    if own.uid != other.uid {
        given(file.set_owner(Some(other.uid), None))?;
    }
    if own.gid != other.gid {
        given(file.set_owner(None, Some(other.gid)))?;
    }
    if own.perm() != other.perm() {
        given(file.set_mode(other.perm()))?;
    }
    Ok(())
}

/// The error that names the data file of `record`.
pub(super) fn fault(storage: &dyn Storage, record: &Record, what: DataFileFault) -> StoreError {
    fault_of(storage, record, &record.file, what)
}

/// The error that names a file of the array of `record`.
pub(super) fn fault_of(
    storage: &dyn Storage,
    record: &Record,
    file: &str,
    what: DataFileFault,
) -> StoreError {
    let (store, array) = (storage.path().to_owned(), record.name.to_string());
    StoreError::DataFile { store, array, file: file.to_owned(), what }
}

/// Why a file of the array of `record` could not be opened.
pub(super) fn open_failed(
    storage: &dyn Storage,
    record: &Record,
    file: &str,
    source: io::Error,
) -> StoreError {
    match source.kind() {
        ErrorKind::NotFound => fault_of(storage, record, file, DataFileFault::Missing),
        ErrorKind::InvalidInput => fault_of(storage, record, file, DataFileFault::NotAFile),
        _ if source.raw_os_error() == Some(libc::ELOOP) => {
            fault_of(storage, record, file, DataFileFault::NotAFile)
        }
        _ => StoreError::io("open", storage.path(), file, source),
    }
}

/// The data files that are open. Each version of an array is open once at the most.
#[derive(Debug)]
pub(super) struct DataFiles {
    access: FileAccess,
    open: Mutex<OpenFiles>,
}

#[derive(Debug, Default)]
struct OpenFiles {
    by_id: HashMap<ArrayId, Weak<DataFile>>,
    recent: VecDeque<(ArrayId, Arc<DataFile>)>,
    /// Size of `by_id` at which dead entries are looked for.
    prune_at: usize,
}

impl DataFiles {
    pub(super) fn new(access: FileAccess) -> Self {
        Self { access, open: Mutex::default() }
    }

    /// The open data file of `record`.
    pub(super) fn get(&self, storage: &dyn Storage, record: &Record) -> Result<Arc<DataFile>, StoreError> {
        let mut open = lock(&self.open);
        if let Some(file) = open.by_id.get(&record.id).and_then(Weak::upgrade) {
            return Ok(file);
        }
        match DataFile::open(storage, record, self.access) {
            // The disk went read-only since the store was opened, as it does after an error. What is there can be read; and
            // should it be writable again, the file is opened anew when nobody has it open any more.
            Err(StoreError::Io { source, .. })
                if self.access == FileAccess::Write && source.raw_os_error() == Some(libc::EROFS) =>
            {
                let file = Arc::new(DataFile::open(storage, record, FileAccess::Read)?);
                open.by_id.insert(record.id, Arc::downgrade(&file));
                Ok(file)
            }
            opened => {
                let file = Arc::new(opened?);
                open.insert(record.id, &file);
                Ok(file)
            }
        }
    }

    /// Remembers a file that was just written.
    pub(super) fn insert(&self, id: ArrayId, file: &Arc<DataFile>) {
        lock(&self.open).insert(id, file);
    }

    /// Forgets where there was room in the file of a version: somebody else may have used it. The state that the room
    /// was known for may come back, and look the same.
    pub(super) fn forget_space(&self, id: ArrayId) {
        let data = lock(&self.open).by_id.get(&id).and_then(Weak::upgrade);
        if let Some(data) = data {
            *lock(&data.space) = Space::default();
        }
    }

    /// Lets later reads of a version see what another host wrote.
    pub(super) fn forget_cached(&self, id: ArrayId) -> io::Result<()> {
        let data = lock(&self.open).by_id.get(&id).and_then(Weak::upgrade);
        data.map_or(Ok(()), |data| data.file.forget_cached())
    }

    /// Closes a version that is gone, unless somebody still uses it.
    pub(super) fn forget(&self, id: ArrayId) {
        let mut open = lock(&self.open);
        if let Some(data) = open.by_id.remove(&id).and_then(|data| data.upgrade()) {
            data.is_gone.store(true, Ordering::Relaxed);
        }
        open.recent.retain(|(recent, _)| *recent != id);
    }
}

impl OpenFiles {
    fn insert(&mut self, id: ArrayId, file: &Arc<DataFile>) {
        if self.by_id.len() >= self.prune_at {
            self.by_id.retain(|_, file| file.strong_count() > 0);
            self.prune_at = 2 * self.by_id.len() + 2 * MAX_RECENT;
        }
        self.by_id.insert(id, Arc::downgrade(file));
        self.recent.push_back((id, Arc::clone(file)));
        if self.recent.len() > MAX_RECENT {
            self.recent.pop_front();
        }
    }
}

/// Takes a lock whose holders cannot panic halfway through a change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
