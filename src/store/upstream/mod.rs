//! Stores of NumPack 0.1 to 0.7: their tables become records whose elements begin at offset 0 of their files, and
//! everything that reads an array reads them too. See `spec/upstream-layouts.md`.

mod joined;
mod upgrade;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

pub use upgrade::{Upgrade, Upgraded};
pub(super) use upgrade::{remove_files_of, table_in};

use super::data::{fault_of, open_failed};
use super::error::{DataFileFault, NotAStore, StoreError};
use crate::format::manifest::{DeletedRows, Op};
use crate::format::npy;
use crate::format::upstream::{self, Entry, Fault, Source, TableLayout};
use crate::format::{ArrayId, Edit, Generation, Record, Table, names};
use crate::sys::{FileAccess, FileStat, Storage, StorageFile};

/// Makes the records of a store from the bytes of its `metadata.npkm`.
pub(super) fn load(storage: &dyn Storage, bytes: &[u8]) -> Result<(Table, TableLayout), StoreError> {
    let damaged = |source| StoreError::Format { path: storage.path().join(names::MANIFEST), source };
    let upstream::Table { layout, arrays } = upstream::parse_table(bytes).map_err(damaged)?;
    let files = storage.list().map_err(|e| StoreError::io("list", storage.path(), "", e))?;
    if arrays.is_empty() && files.iter().any(|file| upstream::is_data_file(file)) {
        let path = storage.path().to_owned();
        return Err(StoreError::NotAStore { path, found: NotAStore::TableLost });
    }
    let files: HashSet<&str> = files.iter().map(String::as_str).collect();
    let records =
        (first_id(bytes)..).zip(arrays).map(|(id, entry)| record_of(storage, ArrayId(id), entry, &files));
    let ops = records.map(|record| record.map(Op::Put)).collect::<Result<_, _>>()?;
    let mut table = Table::default();
    let edit = Edit { generation: Generation(1), time: 0, ops };
    table.apply(&edit, &mut |_| ()).map_err(damaged)?;
    Ok((table, layout))
}

/// The identity of the first array of a table. Who had the store open before it was changed or upgraded must not take
/// its arrays for others: identities depend on the table, and are not those of a new store.
fn first_id(table: &[u8]) -> u64 {
    (1 << 32 | u64::from(crc32fast::hash(table))) << 20
}

fn record_of(
    storage: &dyn Storage,
    id: ArrayId,
    entry: Entry,
    files: &HashSet<&str>,
) -> Result<Record, StoreError> {
    let Entry { name, file, dtype, layout, modified, fault } = entry;
    let mut fault = fault.map(|fault| (Arc::clone(&file), fault));
    let mut deleted = DeletedRows::default();
    let deleted_file = upstream::deleted_file(&name);
    if files.contains(&*deleted_file) {
        let n_rows = layout.shape().first().copied().unwrap_or(0);
        match read_deleted(storage, &deleted_file, n_rows)? {
            Ok(rows) => deleted = rows,
            Err(wrong) => fault = fault.or(Some((deleted_file.into(), wrong))),
        }
    }
    // As long as the header of all rows, which is no shorter than that of those that are left.
    let damaged = |source| StoreError::Format { path: storage.path().join(names::MANIFEST), source };
    let header = npy::encode(&dtype, &layout).map_err(damaged)?;
    Ok(Record {
        name,
        id,
        file,
        dtype,
        layout,
        offset: header.len() as u64,
        blocks: None,
        deleted,
        mtime: modified,
        attrs: Arc::default(),
        upstream: Some(Arc::new(Source { fault })),
    })
}

/// Reads a file of deleted rows. What is wrong with it keeps its array from being read, and no other.
fn read_deleted(
    storage: &dyn Storage,
    name: &str,
    n_rows: u64,
) -> Result<Result<DeletedRows, Fault>, StoreError> {
    let failed = |action, source| StoreError::io(action, storage.path(), name, source);
    let file = match storage.open(name, FileAccess::Read) {
        Ok(file) => file,
        // It was there a moment ago: what removes it now has removed the elements before.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(Fault::Missing)),
        Err(error)
            if error.kind() == io::ErrorKind::InvalidInput || error.raw_os_error() == Some(libc::ELOOP) =>
        {
            return Ok(Err(Fault::NotAFile));
        }
        Err(error) => return Err(failed("open", error)),
    };
    let len = file.stat().map_err(|e| failed("stat", e))?.len;
    let bytes = read_start(&*file, len.min(upstream::deleted_file_len(n_rows)));
    let bytes = bytes.map_err(|e| failed("read", e))?;
    Ok(upstream::parse_deleted(&bytes, len, n_rows).map(|rows| DeletedRows(Arc::new(rows))))
}

/// The first `len` bytes of a file, which has as many.
fn read_start(file: &dyn StorageFile, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Opens the elements of an array, which must be all that is in its files.
pub(super) fn open(
    storage: &dyn Storage,
    record: &Record,
    source: &Source,
) -> Result<Arc<dyn StorageFile>, StoreError> {
    if let Some((file, fault)) = &source.fault {
        return Err(fault_of(storage, record, file, fault.clone().into()));
    }
    let opened = storage.open(&record.file, FileAccess::Read);
    let file = opened.map_err(|source| open_failed(storage, record, &record.file, source))?;
    if record.is_segmented() {
        return joined::open(storage, record, &*file);
    }
    check_len(storage, record, &record.file, &*file, record.layout.nbytes())?;
    Ok(file)
}

/// Checks that a file is as long as it should be, and returns what the system knows about it.
fn check_len(
    storage: &dyn Storage,
    record: &Record,
    name: &str,
    file: &dyn StorageFile,
    expected: u64,
) -> Result<FileStat, StoreError> {
    let stat = file.stat().map_err(|e| StoreError::io("stat", storage.path(), name, e))?;
    if stat.len == expected {
        return Ok(stat);
    }
    Err(fault_of(storage, record, name, Fault::Len { found: stat.len, expected }.into()))
}

impl From<Fault> for DataFileFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing => Self::Missing,
            Fault::NotAFile => Self::NotAFile,
            Fault::Len { found, expected } if found < expected => Self::Short { found, expected },
            Fault::Len { found, expected } => Self::Long { found, expected },
            fault => Self::Upstream(fault),
        }
    }
}
