//! Writes a store of NumPack 0.1 to 0.7 as one of the npk format: in its place, or somewhere else.
//!
//! In its place, the rename of the new manifest over the table is the one moment at which the store turns from old to
//! new. Before it, new files are there besides, and the intent in the lock file names them; after it, old files are
//! there besides, and the copy of the table names them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::super::error::StoreError;
use super::super::log::ManifestLog;
use super::super::new_blocks::with_filter;
use super::super::writer::Commit;
use super::super::{Access, Array, LOCK_TIMEOUT, Shared, Store, open_dir, take_lock};
use super::read_start;
use crate::format::manifest::{DeletedRows, Op};
use crate::format::upstream::{self, OLD_TABLE, SAVE_LOCK, TableLayout, WRITE_AHEAD_LOG};
use crate::format::{ArrayId, Compression, Edit, Filter, Generation, Record, Table, names};
use crate::sys::{FileAccess, FileStat, Storage};

/// Longest table that is copied and read again.
const MAX_TABLE_LEN: u64 = 1 << 32;

/// How a store is upgraded.
pub struct Upgrade<'a> {
    /// How the arrays are compressed; `None`: not at all.
    pub compression: Option<Compression>,
    /// Is told the array that is being written, the bytes of elements so far, and how many there are.
    pub progress: &'a mut dyn FnMut(&str, u64, u64),
}

/// What an upgrade did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Upgraded {
    /// The store was written anew.
    From {
        /// The layout that it had.
        layout: TableLayout,
        /// Number of arrays.
        n_arrays: usize,
    },
    /// The store was new already; an upgrade that was interrupted had left its old files, and they are removed.
    Finished,
    /// The store was new already.
    Nothing,
}

impl Upgrade<'_> {
    /// Upgrades the store at `path` in its place. Returns when it is on the disk and the old files are gone.
    ///
    /// Whatever goes wrong, also if the machine loses power, the store is the old one or the new one, and a second
    /// upgrade does what is left to do.
    ///
    /// # Errors
    /// `NotAStore`; `DataFile` if an array cannot be read, and `ChangedMeanwhile`: the store is the old one then;
    /// `Format`; `Locked`; `Io`, after which the store is the one or the other.
    pub fn in_place(self, path: &Path) -> Result<Upgraded, StoreError> {
        self.in_storage(Box::new(open_dir(path)?))
    }

    /// Upgrades the store in `storage`; see [`Upgrade::in_place`].
    ///
    /// # Errors
    /// As [`Upgrade::in_place`].
    pub fn in_storage(mut self, storage: Box<dyn Storage>) -> Result<Upgraded, StoreError> {
        self.check()?;
        let store = Store::with_storage(storage, Access::Read)?;
        let shared = &*store.shared;
        let _lock = take_lock(&*shared.storage, LOCK_TIMEOUT)?;
        store.refresh()?;
        let Some(layout) = store.old_layout() else {
            return match remove_old_files(&*shared.storage, &shared.manifest())? {
                true => Ok(Upgraded::Finished),
                false => Ok(Upgraded::Nothing),
            };
        };
        shared.finish_intent(&shared.manifest());
        let arrays = store.arrays()?;
        let before = Look::at(&store)?;
        check_readable(&arrays)?;
        let (n_arrays, files) = (arrays.len(), free_files(&*shared.storage, &arrays)?);
        let intent: Vec<&str> = files.iter().map(|(_, file)| file.as_str()).collect();
        shared.intend(&intent)?;
        let written = self.write_all(shared, arrays, &files).and_then(|records| {
            shared.copy_table()?;
            before.check_unchanged(&store)?;
            Ok(records)
        });
        let records = match written {
            Ok(records) => records,
            Err(error) => {
                shared.end_intent(intent.into_iter());
                let _ = shared.storage.remove(OLD_TABLE); // the next upgrade makes it anew
                return Err(error);
            }
        };
        let mut manifest = shared.manifest_mut();
        manifest.table = table_of(records)?;
        manifest.publish(&*shared.storage)?;
        shared.sync_dir()?;
        shared.end_intent(std::iter::empty());
        remove_old_files(&*shared.storage, &manifest)?;
        Ok(Upgraded::From { layout, n_arrays })
    }

    /// Writes the store at `path` as a new one at `target`, in one commit; nothing but an empty store may be there.
    /// Returns when it is on the disk. Does nothing if the store at `path` is new already. Arrays that cannot be read
    /// are left out if `skip` is there to be told why.
    ///
    /// # Errors
    /// `NotAStore`; `StoreExists`; `DataFile` if an array cannot be read; `ChangedMeanwhile`; `Format`; `Locked`; `Io`.
    pub fn to(
        mut self,
        path: &Path,
        target: &Path,
        skip: Option<&mut dyn FnMut(&StoreError)>,
    ) -> Result<Upgraded, StoreError> {
        self.check()?;
        let store = Store::open(path, Access::Read)?;
        let Some(layout) = store.old_layout() else { return Ok(Upgraded::Nothing) };
        let mut arrays = store.arrays()?;
        let before = Look::at(&store)?;
        match skip {
            None => check_readable(&arrays)?,
            Some(skip) => arrays.retain(|array| array.clone().pin().inspect_err(&mut *skip).is_ok()),
        }
        let is_new = fs::symlink_metadata(target).is_err();
        let copied = self.copy_to(&store, &before, arrays, target);
        if copied.is_err() && is_new {
            // What was begun is nothing that anybody wants.
            let _ = Store::remove_all(target);
        }
        copied.map(|n_arrays| Upgraded::From { layout, n_arrays })
    }

    /// Writes arrays to a new store, and returns how many there are.
    fn copy_to(
        &mut self,
        store: &Store,
        before: &Look,
        arrays: Vec<Array>,
        target: &Path,
    ) -> Result<usize, StoreError> {
        let new = Store::open_or_create(target)?;
        let exists = || StoreError::StoreExists { path: target.to_owned() };
        if new.old_layout().is_some() {
            return Err(exists());
        }
        new.set_durable(true);
        let shared = &*new.shared;
        let _guard = shared.lock_writers()?;
        // An upgrade that was killed left it empty.
        if new.generation() != Generation(0) {
            return Err(exists());
        }
        let (n_arrays, files) = (arrays.len(), free_files(&*shared.storage, &arrays)?);
        let intent: Vec<&str> = files.iter().map(|(_, file)| file.as_str()).collect();
        shared.intend(&intent)?;
        let written = self.write_all(shared, arrays, &files);
        let records = match written.and_then(|records| before.check_unchanged(store).map(|()| records)) {
            Ok(records) => records,
            Err(error) => {
                shared.end_intent(intent.into_iter());
                return Err(error);
            }
        };
        shared.names_dirty.store(true, Ordering::Relaxed);
        let ops = records.into_iter().map(Op::Put).collect();
        shared.commit(Commit { ops, ..Commit::default() })?;
        shared.end_intent(std::iter::empty());
        Ok(n_arrays)
    }

    fn check(&self) -> Result<(), StoreError> {
        if let Some(compression) = &self.compression {
            compression.codec(Filter::None)?;
        }
        Ok(())
    }

    /// Writes arrays to `files` of another store, one after the other, and returns their records there.
    fn write_all(
        &mut self,
        to: &Shared,
        arrays: Vec<Array>,
        files: &[(ArrayId, String)],
    ) -> Result<Vec<Record>, StoreError> {
        let total = arrays.iter().map(Array::nbytes).fold(0, u64::saturating_add);
        let mut records = Vec::with_capacity(arrays.len());
        let mut done = 0_u64;
        for (array, (id, file)) in arrays.into_iter().zip(files) {
            let stat = array.stat()?;
            let read = |offset, out: &mut [u8]| array.read_elements_at(offset, out);
            let compression = self.compression.as_ref();
            let compression =
                compression.map(|how| with_filter(how, array.dtype(), array.nbytes(), read)).transpose()?;
            (self.progress)(array.name(), done, total);
            let staged = to.stage_copy(&array, array.name(), compression.as_ref(), &mut |len| {
                (self.progress)(array.name(), done.saturating_add(len), total);
            })?;
            let failed = |action, source| StoreError::io(action, to.storage.path(), file, source);
            let new = &staged.data.file;
            // For a file system without permissions or times, these are not worth failing.
            let kept = new
                .set_mode(stat.mode & !libc::S_IFMT)
                .and_then(|()| new.set_times(Some(stat.atime), Some(stat.mtime)));
            if let Err(error) = kept {
                log::debug!("{}: {error}", to.storage.path().join(file).display());
            }
            new.sync_data().map_err(|e| failed("sync", e))?;
            to.storage.link(new, file).map_err(|e| failed("create", e))?;
            done = done.saturating_add(array.nbytes());
            records.push(Record {
                name: Arc::clone(array.name()),
                id: *id,
                file: file.as_str().into(),
                dtype: staged.dtype,
                layout: staged.layout,
                offset: staged.offset,
                blocks: staged.blocks,
                deleted: DeletedRows::default(),
                mtime: array.record().mtime,
                attrs: Arc::default(),
                upstream: None,
            });
        }
        to.sync_dir()?;
        Ok(records)
    }
}

impl Shared {
    /// Says which files come, and returns when that is on the disk: they may be many, and long.
    fn intend(&self, files: &[&str]) -> Result<(), StoreError> {
        self.write_intent(&files.join("\n"))?;
        let synced = self.storage.open(names::LOCK, FileAccess::Write).and_then(|file| file.sync_data());
        synced.map_err(|source| StoreError::io("sync", self.storage.path(), names::LOCK, source))?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), StoreError> {
        self.storage.sync_dir().map_err(|source| StoreError::io("sync", self.storage.path(), "", source))
    }

    /// Keeps a copy of the table, which says what the old files are called.
    fn copy_table(&self) -> Result<(), StoreError> {
        let storage = &*self.storage;
        let failed = |action, source| StoreError::io(action, storage.path(), OLD_TABLE, source);
        let bytes = read_table(storage, names::MANIFEST)?;
        let file = storage.create_unnamed().map_err(|e| failed("create", e))?;
        file.write_at(&bytes, 0).map_err(|e| failed("write", e))?;
        file.sync_data().map_err(|e| failed("sync", e))?;
        storage.replace(&file, OLD_TABLE).map_err(|e| failed("replace", e))?;
        self.sync_dir()
    }
}

/// What the files of a store looked like, by their names; `None`: not there.
struct Look(Vec<(String, Option<FileLook>)>);

/// Inode, length and time of the last change.
type FileLook = (u64, u64, SystemTime);

impl Look {
    fn at(store: &Store) -> Result<Self, StoreError> {
        let shared = &*store.shared;
        let of = |stat: FileStat| (stat.ino, stat.len, stat.mtime);
        let named = |name: &str| (name.to_owned(), shared.storage.stat(name).ok().map(of));
        let mut files = vec![named(names::MANIFEST)];
        for array in store.arrays()? {
            files.push(named(&upstream::deleted_file(array.name())));
            files.push(named(array.file_name()));
            if array.record().is_segmented() {
                // Of segments, only who opens them knows.
                shared.files.forget(array.id());
                files.push((array.name().to_string(), array.stat().ok().map(of)));
            }
        }
        Ok(Self(files))
    }

    /// Refuses to go on if an old release has written to the store since.
    fn check_unchanged(&self, store: &Store) -> Result<(), StoreError> {
        let now = Self::at(store)?;
        let changed = self.0.iter().zip(&now.0).find(|(before, now)| before != now);
        match changed {
            None if self.0.len() == now.0.len() => Ok(()),
            changed => {
                let file = changed.map_or(names::MANIFEST, |((file, _), _)| file);
                Err(StoreError::ChangedMeanwhile { path: store.path().join(file) })
            }
        }
    }
}

fn read_table(storage: &dyn Storage, name: &str) -> Result<Vec<u8>, StoreError> {
    let bytes = storage
        .open(name, FileAccess::Read)
        .and_then(|file| read_start(&*file, file.stat()?.len.min(MAX_TABLE_LEN)));
    bytes.map_err(|source| StoreError::io("read", storage.path(), name, source))
}

/// Fails if an array cannot be read.
fn check_readable(arrays: &[Array]) -> Result<(), StoreError> {
    // A clone is dropped with the file that it opens: there may be more arrays than a process may have open files.
    arrays.iter().try_for_each(|array| array.clone().pin())
}

/// The identities and files of new versions of all arrays, where no file is yet.
fn free_files(storage: &dyn Storage, arrays: &[Array]) -> Result<Vec<(ArrayId, String)>, StoreError> {
    let taken = storage.list().map_err(|e| StoreError::io("list", storage.path(), "", e))?;
    let taken: HashSet<&str> = taken.iter().map(String::as_str).collect();
    let mut ids = 1..;
    let files = arrays.iter().map(|array| {
        let mut files = ids.by_ref().map(|id| (ArrayId(id), names::data_file(array.name(), ArrayId(id))));
        files.find(|(_, file)| !taken.contains(&**file)).expect("a folder has fewer than 2^64 files")
    });
    Ok(files.collect())
}

fn table_of(records: Vec<Record>) -> Result<Table, StoreError> {
    let mut table = Table::default();
    let ops = records.into_iter().map(Op::Put).collect();
    table.apply(&Edit { generation: Generation(1), time: 0, ops }, &mut |_| ())?;
    Ok(table)
}

/// Removes the files of the store that `manifest` has taken the place of, if there are any, and returns whether there
/// were. What cannot be removed is left to another upgrade.
fn remove_old_files(storage: &dyn Storage, manifest: &ManifestLog) -> Result<bool, StoreError> {
    match storage.stat(OLD_TABLE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StoreError::io("stat", storage.path(), OLD_TABLE, error)),
        Ok(_) => {}
    }
    let bytes = read_table(storage, OLD_TABLE)?;
    let damaged = |source| StoreError::Format { path: storage.path().join(OLD_TABLE), source };
    let table = upstream::parse_table(&bytes).map_err(damaged)?;
    let live: HashSet<&str> =
        manifest.table.records().map_err(damaged)?.iter().map(|record| &*record.file).collect();
    remove_files_of(storage, &table, &live)?;
    remove(storage, OLD_TABLE)?;
    storage.sync_dir().map_err(|e| StoreError::io("sync", storage.path(), "", e))?;
    Ok(true)
}

/// Removes the files that belong to the arrays of `table`, but for those that are `live`.
pub(in super::super) fn remove_files_of(
    storage: &dyn Storage,
    table: &upstream::Table,
    live: &HashSet<&str>,
) -> Result<(), StoreError> {
    for array in &table.arrays {
        if !live.contains(&*array.file) {
            if upstream::is_segmented(&array.file) {
                remove_segments(storage, &array.file, array.layout.nbytes())?;
            }
            remove(storage, &array.file)?;
        }
        // After the elements: who reads them without it has rows that were deleted.
        remove(storage, &upstream::deleted_file(&array.name))?;
    }
    remove(storage, WRITE_AHEAD_LOG)?;
    remove(storage, SAVE_LOCK)
}

fn remove_segments(storage: &dyn Storage, list: &str, nbytes: u64) -> Result<(), StoreError> {
    let bytes = match read_table(storage, list) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    // What it lists was read by the upgrade; a list that cannot be read was changed since.
    let Ok(segments) = upstream::parse_segments(&bytes, nbytes) else { return Ok(()) };
    let mut folders = HashSet::new();
    for segment in &segments {
        let name = format!("{}/{}", segment.folder, segment.file);
        ignore_missing(storage, &name, storage.remove_apart(&segment.folder, Some(&segment.file)))?;
        folders.insert(&*segment.folder);
    }
    for folder in folders {
        match storage.remove_apart(folder, None) {
            // Somebody else's files.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => ignore_missing(storage, folder, result)?,
        }
    }
    Ok(())
}

fn remove(storage: &dyn Storage, name: &str) -> Result<(), StoreError> {
    ignore_missing(storage, name, storage.remove(name))
}

fn ignore_missing(storage: &dyn Storage, name: &str, removed: io::Result<()>) -> Result<(), StoreError> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // An array's name may be one that no file can have.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(()),
        result => result.map_err(|source| StoreError::io("remove", storage.path(), name, source)),
    }
}

/// The table of a store of NumPack 0.1 to 0.7, if that is what is in `storage`, and it can be read.
pub(in super::super) fn table_in(storage: &dyn Storage) -> Option<upstream::Table> {
    let bytes = read_table(storage, names::MANIFEST).ok().filter(|bytes| upstream::is_table(bytes))?;
    upstream::parse_table(&bytes).ok()
}
