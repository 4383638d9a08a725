//! Commits: what happens between taking the writers' lock and releasing it, in the one order that a crash may cut
//! anywhere.
//!
//! A new version of an array is written whole into a file without a name before the lock is taken. Then, with the
//! lock: the intent (which files come and go), the names of new files, the frame (the commit), headers, the removal
//! of superseded files, the end of the intent. Whoever next takes the lock after a crash finds the intent, and
//! removes each file of it that no record refers to.

use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::fs;
use std::io;
use std::iter;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::data::{DataFile, fault, lock};
use super::error::{DataFileFault, StoreError};
use super::log::ManifestLog;
use super::{Access, Change, Shared, Store};
use crate::bytes::u32_at;
use crate::format::manifest::{Attrs, DeletedRows, check_attrs};
use crate::format::npy;
use crate::format::{ArrayId, Dtype, FormatError, Layout, Op, Record, names};
use crate::sys::{FileAccess, LockGuard, Storage, StorageFile};

/// Bytes copied at once, between two reports of progress.
const CHUNK_LEN: u64 = 8 << 20;

/// Arrays up to this length are written with their header in one call. For longer ones the header comes first: a
/// file system that gives one write one large piece of memory makes every later small write into it walk the whole.
const SMALL_LEN: usize = 16 << 10;

/// Elements to be stored: contiguous bytes in the order that `fortran_order` says.
#[derive(Debug, Clone)]
pub struct NewArray<'a> {
    /// The dtype.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<u64>,
    /// Whether the first axis varies fastest in `data`.
    pub fortran_order: bool,
    /// The elements.
    pub data: &'a [u8],
}

impl NewArray<'_> {
    /// The layout of the elements, after checking that `data` holds them.
    pub(super) fn layout(&self, name: &str) -> Result<Layout, StoreError> {
        let layout = Layout::new(&self.dtype, &self.shape, self.fortran_order)?;
        if self.data.len() as u64 == layout.nbytes() {
            return Ok(layout);
        }
        let (found, expected) = (self.data.len() as u64, layout.nbytes());
        Err(StoreError::BufferLen { array: name.to_owned(), found, expected })
    }
}

/// A new version of an array, complete in a file that has no name yet.
pub(super) struct Staged {
    pub(super) name: Arc<str>,
    pub(super) file: Arc<dyn StorageFile>,
    pub(super) dtype: Dtype,
    pub(super) layout: Layout,
    pub(super) offset: u64,
}

/// The writers' lock, in this process and among processes.
pub(super) struct WriteGuard<'a> {
    file: Box<dyn LockGuard>,
    _thread: MutexGuard<'a, ()>,
}

impl WriteGuard<'_> {
    /// Whether somebody keeps copies of elements, and wants to know when they are written in place.
    pub(super) fn is_watched(&self) -> bool {
        self.file.is_watched()
    }
}

/// One commit in the making.
#[derive(Default)]
pub(super) struct Commit {
    pub(super) staged: Vec<Staged>,
    /// Operations that come before the new versions.
    pub(super) ops: Vec<Op>,
    /// Arrays whose header is to be written after the commit.
    pub(super) headers: Vec<(Arc<str>, Arc<DataFile>)>,
    /// When the change was made, if that is not now.
    pub(super) time: Option<i64>,
    /// Rows that are there already move to a new file: the commit is durable, since it removes the old one.
    pub(super) moves_rows: bool,
}

impl Store {
    /// Saves arrays under their names, all or none, replacing those that have these names; of arrays given the same
    /// name, the last counts. Readers of a replaced version keep it.
    ///
    /// # Errors
    /// `ReadOnly`; `Refused` for a name, dtype or shape that cannot be; `BufferLen`; `Locked`; `Io`.
    pub fn save(&self, arrays: &[(&str, NewArray<'_>)]) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        let mut staged = Vec::with_capacity(arrays.len());
        let mut places = HashMap::with_capacity(arrays.len());
        for (name, array) in arrays {
            let new = self.shared.stage(name, array)?;
            match places.entry(*name) {
                Entry::Vacant(place) => {
                    place.insert(staged.len());
                    staged.push(new);
                }
                Entry::Occupied(place) => staged[*place.get()] = new,
            }
        }
        if staged.is_empty() {
            return Ok(());
        }
        let _guard = self.shared.lock_writers()?;
        self.shared.commit(Commit { staged, ..Commit::default() })
    }

    /// Stores a `.npy` file under `name`, byte for byte, header included. `progress` is told the number of bytes
    /// copied so far.
    ///
    /// # Errors
    /// `Exists` unless `overwrite`; `Format` if the file is no `.npy` file that NumPy reads without pickle, or is
    /// truncated; `ReadOnly`; `Refused`; `Locked`; `Io`.
    pub fn import_npy(
        &self,
        name: &str,
        file: &Path,
        overwrite: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        names::check(name)?;
        self.refresh_quietly()?;
        self.shared.check_free(name, overwrite)?;
        let staged = self.shared.stage_npy(name, file, progress)?;
        let _guard = self.shared.lock_writers()?;
        self.shared.check_free(name, overwrite)?;
        self.shared.commit(Commit { staged: vec![staged], ..Commit::default() })
    }

    /// Removes arrays and returns how many there were. Missing ones are ignored.
    ///
    /// # Errors
    /// `ReadOnly`; `Locked`; `Io`.
    pub fn remove(&self, names: &[&str]) -> Result<usize, StoreError> {
        let _guard = self.shared.lock_writers()?;
        let ops: Vec<Op> = {
            let manifest = self.shared.manifest();
            let mut seen = HashSet::new();
            names
                .iter()
                .filter(|name| seen.insert(**name))
                .filter_map(|name| manifest.table.get(name))
                .map(|record| Op::Delete(Arc::clone(&record.name)))
                .collect()
        };
        let n_removed = ops.len();
        self.shared.commit(Commit { ops, ..Commit::default() })?;
        Ok(n_removed)
    }

    /// Removes all arrays.
    ///
    /// # Errors
    /// `ReadOnly`; `Locked`; `Io`.
    pub fn clear(&self) -> Result<(), StoreError> {
        let _guard = self.shared.lock_writers()?;
        let ops = self.shared.manifest().table.records().map(|r| Op::Delete(Arc::clone(&r.name))).collect();
        self.shared.commit(Commit { ops, ..Commit::default() })
    }

    /// Renames an array, which keeps its place in the order; `overwrite` removes one that has the new name.
    ///
    /// # Errors
    /// `NotFound`; `Exists` unless `overwrite`; `Refused`; `ReadOnly`; `Locked`; `Io`.
    pub fn rename(&self, from: &str, to: &str, overwrite: bool) -> Result<(), StoreError> {
        names::check(to)?;
        let _guard = self.shared.lock_writers()?;
        let array = self.record(from)?;
        if from == to {
            return Ok(());
        }
        self.shared.check_free(to, overwrite)?;
        let mut ops = Vec::new();
        if let Ok(old) = self.record(to) {
            ops.push(Op::Delete(Arc::clone(old.name())));
        }
        ops.push(Op::Rename(Arc::clone(array.name()), to.into()));
        self.shared.commit(Commit { ops, ..Commit::default() })
    }

    /// Sets and removes user attributes of an array, or, without a name, of the store.
    ///
    /// # Errors
    /// `NotFound`; `Refused` for values nested deeper than 64 levels; `ReadOnly`; `Locked`; `Io`.
    pub fn set_attrs(&self, name: Option<&str>, set: Attrs, remove: &[&str]) -> Result<(), StoreError> {
        check_attrs(&set)?;
        let _guard = self.shared.lock_writers()?;
        let name = name.map(|name| self.record(name)).transpose()?.map(|array| Arc::clone(array.name()));
        let remove = remove.iter().map(|&key| key.to_owned()).collect();
        self.shared.commit(Commit { ops: vec![Op::Attrs(name, set, remove)], ..Commit::default() })
    }

    /// Returns when everything that was written through this handle is on the disk: data, directory, manifest.
    ///
    /// # Errors
    /// `ReadOnly`; `Locked`; `Io`, after which the store takes no more writes.
    pub fn sync(&self) -> Result<(), StoreError> {
        let _guard = self.shared.lock_writers()?;
        self.shared.or_poison(self.shared.sync_all())
    }
}

impl Shared {
    /// Refuses to write where that is known to be in vain.
    pub(super) fn check_writable(&self) -> Result<(), StoreError> {
        if self.access == Access::Read {
            return Err(StoreError::ReadOnly { store: self.storage.path().to_owned() });
        }
        match self.poison.get() {
            Some(first) => {
                Err(StoreError::Poisoned { store: self.storage.path().to_owned(), first: Arc::clone(first) })
            }
            None => Ok(()),
        }
    }

    pub(super) fn check_free(&self, name: &str, overwrite: bool) -> Result<(), StoreError> {
        if overwrite || self.manifest().table.get(name).is_none() {
            return Ok(());
        }
        Err(StoreError::Exists { store: self.storage.path().to_owned(), array: name.to_owned() })
    }

    /// Takes the writers' lock, and knows everything that was committed before.
    pub(super) fn lock_writers(&self) -> Result<WriteGuard<'_>, StoreError> {
        self.lock_writers_within(self.lock_timeout)
    }

    /// As [`Shared::lock_writers`], but waits no longer than `timeout`; if that is zero, not for other threads either.
    pub(super) fn lock_writers_within(&self, timeout: Duration) -> Result<WriteGuard<'_>, StoreError> {
        self.check_writable()?;
        let thread = match self.writer.try_lock() {
            Ok(thread) => thread,
            Err(TryLockError::WouldBlock) if timeout.is_zero() => {
                let store = self.storage.path().to_owned();
                return Err(StoreError::Locked { store, waited: timeout, holder: None });
            }
            Err(_) => self.writer.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let mut file = super::take_lock(&*self.storage, timeout)?;
        if self.swept.load(Ordering::Relaxed) && self.manifest().is_fresh() {
            return Ok(WriteGuard { file, _thread: thread });
        }
        let mut manifest = self.manifest_mut();
        loop {
            let changed = manifest.catch_up(&*self.storage, true, &mut |change| self.note_change(change))?;
            // A store that was removed and created anew has another lock file.
            let is_current = |file: &dyn LockGuard| {
                file.is_current().map_err(|e| StoreError::io("stat", self.storage.path(), names::LOCK, e))
            };
            if changed {
                // Others give names without waiting for the disk.
                self.names_dirty.store(true, Ordering::Relaxed);
            }
            if !changed || is_current(&*file)? {
                break;
            }
            file = super::take_lock(&*self.storage, timeout)?;
        }
        // Somebody else was here, and may have died before a commit that could be seen.
        self.swept.store(true, Ordering::Relaxed);
        self.finish_intent(&manifest);
        self.mend_headers(&mut manifest);
        Ok(WriteGuard { file, _thread: thread })
    }

    /// Writes a new version of an array into a file without a name.
    pub(super) fn stage(&self, name: &str, array: &NewArray<'_>) -> Result<Staged, StoreError> {
        names::check(name)?;
        let layout = array.layout(name)?;
        let header = npy::encode(&array.dtype, &layout)?;
        let offset = header.len() as u64;
        let failed = |action, source| {
            StoreError::io(action, self.storage.path(), &names::data_file(name, ArrayId(0)), source)
        };
        let file = self.storage.create_unnamed().map_err(|e| failed("create", e))?;
        if array.data.len() <= SMALL_LEN {
            // One write for a small array; the copy costs less than a second call.
            let bytes = [&header, array.data].concat();
            file.write_at(&bytes, 0).map_err(|e| failed("write", e))?;
        } else {
            file.reserve(offset + layout.nbytes()).map_err(|e| failed("reserve space for", e))?;
            file.write_at(&header, 0).map_err(|e| failed("write", e))?;
            file.write_at(array.data, offset).map_err(|e| failed("write", e))?;
        }
        let dtype = array.dtype.clone();
        Ok(Staged { name: name.into(), file, dtype, layout, offset })
    }

    /// Copies a `.npy` file as it is.
    fn stage_npy(
        &self,
        name: &str,
        path: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Staged, StoreError> {
        let read = |action, source| StoreError::Io { action, path: path.to_owned(), source };
        let source = fs::File::open(path).map_err(|e| read("open", e))?;
        let metadata = source.metadata().map_err(|e| read("stat", e))?;
        if !metadata.is_file() {
            return Err(read("import", io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let malformed = |source| StoreError::Format { path: path.to_owned(), source };
        let header = read_npy_header(&source).map_err(|e| read("read", e))?.map_err(malformed)?;
        let layout = Layout::new(&header.dtype, &header.shape, header.fortran_order).map_err(malformed)?;
        let needed = header.header_len + layout.nbytes();
        if metadata.len() < needed {
            return Err(malformed(FormatError::Truncated {
                part: "the array",
                needed,
                found: metadata.len(),
            }));
        }
        let failed = |action, source| {
            StoreError::io(action, self.storage.path(), &names::data_file(name, ArrayId(0)), source)
        };
        let file = self.storage.create_unnamed().map_err(|e| failed("create", e))?;
        file.reserve(needed).map_err(|e| failed("reserve space for", e))?;
        let mut done = 0;
        while done < needed {
            let len = CHUNK_LEN.min(needed - done);
            let copied = file.copy_from(source.as_fd(), done, done, len).map_err(|e| failed("write", e))?;
            if copied < len {
                let found = done + copied;
                return Err(malformed(FormatError::Truncated { part: "the array", needed, found }));
            }
            done += copied;
            progress(done);
        }
        Ok(Staged { name: name.into(), file, dtype: header.dtype, layout, offset: header.header_len })
    }

    /// Commits, with the writers' lock held.
    pub(super) fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        let Commit { staged, mut ops, headers, time, moves_rows } = commit;
        if staged.is_empty() && ops.is_empty() {
            return Ok(());
        }
        let durable = moves_rows || self.durable.load(Ordering::Relaxed);
        if durable {
            for new in &staged {
                let failed = |e| {
                    StoreError::io("sync", self.storage.path(), &names::data_file(&new.name, ArrayId(0)), e)
                };
                self.or_poison(new.file.sync_data().map_err(failed))?;
            }
            // The commit takes earlier ones, that were not durable, to the disk with it: their elements go first.
            self.or_poison(self.sync_dirty())?;
        }
        let time = time.unwrap_or_else(now);
        let (records, superseded) = self.name_files(&staged, &ops, time);
        let is_intended = !(records.is_empty() && superseded.is_empty());
        if is_intended {
            // Should this process die, whoever comes next must look, also one that knows this state.
            self.manifest().retire();
            let files =
                records.iter().map(|record| &*record.file).chain(superseded.iter().map(|(_, file)| &**file));
            self.write_intent(&files.collect::<Vec<_>>().join("\n"))?;
        }
        for (record, new) in records.iter().zip(&staged) {
            self.link(&new.file, &record.file)?;
        }
        if !records.is_empty() {
            self.names_dirty.store(true, Ordering::Relaxed);
        }
        if durable {
            self.or_poison(self.sync_names())?;
        } else {
            records.iter().for_each(|record| self.note_dirty(record));
        }
        let placed: Vec<(ArrayId, Arc<str>)> =
            records.iter().map(|record| (record.id, Arc::clone(&record.file))).collect();
        ops.extend(records.into_iter().map(Op::Put));
        let mut manifest = self.manifest_mut();
        let appended = manifest.append(&*self.storage, time, ops, durable, &mut |change| {
            self.note_change(Change { is_own: true, ..change });
        });
        if let Err(error) = self.or_poison(appended) {
            if self.poison.get().is_none() {
                self.unlink(&staged, &placed);
            }
            return Err(error);
        }
        // Not before: had the commit failed, somebody else's would get these identities.
        for ((id, _), new) in placed.into_iter().zip(&staged) {
            self.files.insert(id, &Arc::new(DataFile::new(Arc::clone(&new.file))));
        }
        // The commit is made. What fails from here on is mended by the next writer.
        for (name, data) in &headers {
            let Some(record) = manifest.table.get(name).cloned() else { continue };
            if let Err(error) = self.write_header(&record, data) {
                log::warn!("{error}");
                manifest.lagging.push(Arc::clone(name));
            }
            if !durable {
                self.note_dirty(&record);
            }
        }
        if manifest.lagging.is_empty() {
            manifest.publish_length();
        }
        if is_intended {
            self.end_intent(superseded.iter().map(|(_, file)| &**file));
        }
        if manifest.wants_snapshot() {
            // The new file has a temporary name for a moment.
            let published = self.write_intent(names::MANIFEST).and_then(|()| {
                manifest.publish(&*self.storage)?;
                // Later commits go to the new file, and rest on its name.
                self.names_dirty.store(true, Ordering::Relaxed);
                self.or_poison(self.sync_names())
            });
            if let Err(error) = published {
                log::warn!("no new snapshot of the manifest: {error}");
            }
            self.end_intent(iter::empty());
        }
        Ok(())
    }

    /// Gives the new versions their identities and files, and finds the versions that `staged` and `ops` supersede.
    fn name_files(
        &self,
        staged: &[Staged],
        ops: &[Op],
        time: i64,
    ) -> (Vec<Record>, Vec<(ArrayId, Arc<str>)>) {
        let manifest = self.manifest();
        let mut superseded = Vec::new();
        let mut supersede = |name: &str| {
            if let Some(old) = manifest.table.get(name) {
                superseded.push((old.id, Arc::clone(&old.file)));
            }
        };
        for op in ops {
            if let Op::Delete(name) = op {
                supersede(name);
            }
        }
        let next_id = manifest.table.next_id().0;
        // Names without an id are for a store that still has every version it ever had. Later, such a name may have
        // been that of a version that is gone, and who did not see it go would take the new file for it: a reader
        // between looking up and opening, or the manifest, if the machine loses power before the newest frames and
        // after the directory reached the disk.
        let has_all = manifest.table.len() as u64 + 1 == next_id;
        let records = (next_id..).zip(staged).map(|(id, new)| {
            supersede(&new.name);
            let id = ArrayId(id);
            let is_first = has_all && manifest.table.get(&new.name).is_none();
            let file = names::first_data_file(&new.name)
                .filter(|file| is_first && self.storage.stat(file).is_err())
                .unwrap_or_else(|| names::data_file(&new.name, id));
            Record {
                name: Arc::clone(&new.name),
                id,
                file: file.into(),
                dtype: new.dtype.clone(),
                layout: new.layout.clone(),
                offset: new.offset,
                deleted: DeletedRows::default(),
                mtime: time,
                // Attributes belong to the name: a new version keeps them.
                attrs: manifest.table.get(&new.name).map(|old| Arc::clone(&old.attrs)).unwrap_or_default(),
            }
        });
        (records.collect(), superseded)
    }

    /// Names a new data file. A file of that name is not referred to by any record: ids are never used twice.
    fn link(&self, file: &Arc<dyn StorageFile>, name: &str) -> Result<(), StoreError> {
        let linked = self.storage.link(file, name).or_else(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            self.storage.remove(name)?;
            self.storage.link(file, name)
        });
        linked.map_err(|source| StoreError::io("create", self.storage.path(), name, source))
    }

    /// Takes the names of new versions away that were not committed, so that they can be committed again.
    fn unlink(&self, staged: &[Staged], placed: &[(ArrayId, Arc<str>)]) {
        for (new, (_, name)) in staged.iter().zip(placed) {
            if let Err(error) = self.storage.unlink(&new.file, name) {
                // The intent names the file: the next writer removes it.
                log::debug!("{}: {error}", self.storage.path().join(&**name).display());
            }
        }
    }

    /// Lets the header in the data file follow the record.
    pub(super) fn write_header(&self, record: &Record, data: &DataFile) -> Result<(), StoreError> {
        let header = npy::encode_within(&record.dtype, &record.layout, record.offset)
            .ok_or_else(|| fault(&*self.storage, record, DataFileFault::Header(None)))?;
        data.file
            .write_at(&header, 0)
            .map_err(|e| StoreError::io("write", self.storage.path(), &record.file, e))
    }

    /// Writes the headers that a writer that died did not get to write.
    fn mend_headers(&self, manifest: &mut ManifestLog) {
        for name in std::mem::take(&mut manifest.lagging) {
            let Some(record) = manifest.table.get(&name) else { continue };
            let mended = self.files.get(&*self.storage, record).and_then(|data| {
                let header = data.header(record.offset);
                let (_, header) =
                    header.map_err(|e| StoreError::io("read", self.storage.path(), &record.file, e))?;
                if header.is_ok_and(|header| header.describes(&record.dtype, &record.layout)) {
                    return Ok(());
                }
                self.note_dirty(record);
                self.write_header(record, &data)
            });
            if let Err(error) = mended {
                log::warn!("{error}");
            }
        }
    }

    /// Remembers that a data file has bytes that may not be on the disk.
    pub(super) fn note_dirty(&self, record: &Record) {
        let mut dirty = lock(&self.dirty);
        if !dirty.contains(&record.file) {
            dirty.insert(Arc::clone(&record.file));
        }
    }

    /// Lets everything that was written through this handle reach the disk: elements, names, commits.
    pub(super) fn sync_all(&self) -> Result<(), StoreError> {
        self.sync_dirty()?;
        self.sync_names()?;
        self.manifest_mut().sync(&*self.storage)
    }

    fn sync_dirty(&self) -> Result<(), StoreError> {
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        for file in &dirty {
            let synced = match self.storage.open(file, FileAccess::Write) {
                Ok(open) => open.sync_data(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            synced.map_err(|source| StoreError::io("sync", self.storage.path(), file, source))?;
        }
        Ok(())
    }

    fn sync_names(&self) -> Result<(), StoreError> {
        if self.names_dirty.swap(false, Ordering::Relaxed) {
            let failed = |e| StoreError::io("sync the directory of", self.storage.path(), names::MANIFEST, e);
            self.storage.sync_dir().map_err(failed)?;
        }
        Ok(())
    }

    /// After a failed write of the manifest, or a failed sync, nobody knows what is on the disk: writing stops.
    /// Only a full disk is known to have written nothing that counts.
    pub(super) fn or_poison<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let error = match result {
            Err(StoreError::Io { action, path, source }) => StoreError::Io { action, path, source },
            other => return other,
        };
        let StoreError::Io { action, path, source } = &error else { return Err(error) };
        let is_full = matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG));
        if is_full && *action == "write" {
            return Err(error);
        }
        let copy = match source.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(source.kind(), source.to_string()),
        };
        let first = StoreError::Io { action, path: path.clone(), source: copy };
        let _ = self.poison.set(Arc::new(first)); // the first failure stays
        Err(error)
    }

    /// Says in the lock file which data files come and go, or that the manifest is replaced, so that a crash leaves
    /// nothing that nobody knows of.
    fn write_intent(&self, files: &str) -> Result<(), StoreError> {
        let failed = |action, source| StoreError::io(action, self.storage.path(), names::LOCK, source);
        let bytes = encode_intent(files);
        let file = self.storage.open(names::LOCK, FileAccess::Write).map_err(|e| failed("open", e))?;
        file.write_at(&bytes, 0).map_err(|e| failed("write", e))
    }

    /// Finishes what a writer that died had begun: removes the files of its intent that no record refers to.
    fn finish_intent(&self, manifest: &ManifestLog) {
        let files = self.storage.open(names::LOCK, FileAccess::Read).and_then(|file| {
            let len = usize::try_from(file.stat()?.len).unwrap_or(0).min(MAX_INTENT_LEN);
            let mut bytes = vec![0; len];
            let read = file.read_at(&mut bytes, 0)?;
            Ok(decode_intent(bytes.get(..read).unwrap_or(&[])))
        });
        let files = match files {
            Ok(Some(files)) => files,
            Ok(None) => return,
            Err(error) => return log::warn!("{}: {error}", self.storage.path().join(names::LOCK).display()),
        };
        let live: HashSet<&str> = manifest.table.records().map(|record| &*record.file).collect();
        if let Err(error) = self.storage.sweep_temporaries() {
            log::warn!("{}: {error}", self.storage.path().display());
        }
        self.end_intent(files.iter().map(String::as_str).filter(|file| !live.contains(file)));
    }

    /// Removes the files that nobody needs any more, and then the intent that names them.
    fn end_intent<'a>(&self, files: impl Iterator<Item = &'a str>) {
        let mut all_gone = true;
        for file in files {
            match self.storage.remove(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {error}", self.storage.path().join(file).display());
                    all_gone = false;
                }
                _ => {}
            }
        }
        // What could not be removed stays in the intent, and is tried again with the next write.
        self.swept.store(all_gone, Ordering::Relaxed);
        if all_gone && let Err(error) = self.write_intent("") {
            log::warn!("{error}");
        }
    }
}

const MAX_INTENT_LEN: usize = 64 << 20;
const INTENT_HEADER_LEN: usize = 2 * size_of::<u32>();

/// An intent on disk: length, crc32, and the files' names, one a line.
fn encode_intent(files: &str) -> Vec<u8> {
    let files = if files.len() > MAX_INTENT_LEN - INTENT_HEADER_LEN { "" } else { files };
    let mut bytes = Vec::with_capacity(INTENT_HEADER_LEN + files.len());
    bytes.extend_from_slice(&(files.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(files.as_bytes()).to_le_bytes());
    bytes.extend_from_slice(files.as_bytes());
    bytes
}

/// The data files that an intent names; `None` if there is no intent, or it is torn, and so was never acted upon.
fn decode_intent(bytes: &[u8]) -> Option<Vec<String>> {
    let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let files = bytes.get(INTENT_HEADER_LEN..INTENT_HEADER_LEN.checked_add(len)?)?;
    if crc32fast::hash(files) != u32_at(bytes, size_of::<u32>())? {
        return None;
    }
    let files = std::str::from_utf8(files).ok().filter(|files| !files.is_empty())?;
    Some(files.lines().filter(|file| names::is_data_file(file)).map(str::to_owned).collect())
}

/// Reads and parses the header of a `.npy` file.
fn read_npy_header(file: &fs::File) -> io::Result<Result<npy::NpyHeader, FormatError>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    file.take(npy::PREFIX_LEN as u64).read_to_end(&mut bytes)?;
    match npy::header_len(&bytes) {
        Ok(len) => file.take((len - bytes.len().min(len)) as u64).read_to_end(&mut bytes)?,
        Err(error) => return Ok(Err(error)),
    };
    Ok(npy::parse(&bytes))
}

/// See [`Store::remove_all`].
pub(super) fn remove_all(path: &Path, timeout: Duration) -> Result<(), StoreError> {
    let failed = |action, source| StoreError::Io { action, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("stat", error)),
        Ok(metadata) if metadata.is_file() => return fs::remove_file(path).map_err(|e| failed("remove", e)),
        Ok(_) => {}
    }
    let storage = super::open_dir(path)?;
    let files = storage.list().map_err(|e| failed("list", e))?;
    let is_own = |file: &str| {
        names::is_data_file(file) || [names::MANIFEST, names::MANIFEST_BACKUP, names::LOCK].contains(&file)
    };
    if files.iter().any(|file| is_own(file)) {
        let _lock = super::take_lock(&storage, timeout)?;
        if let Ok(manifest) = ManifestLog::load(&storage, FileAccess::Write) {
            manifest.retire();
        }
        // The manifest goes first, so that a crash leaves no store with missing files; the lock goes last.
        let mut doomed: Vec<&String> =
            files.iter().filter(|file| is_own(file) && *file != names::LOCK).collect();
        doomed.sort_by_key(|file| !file.starts_with(names::MANIFEST));
        for file in doomed {
            match storage.remove(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", path, file, error));
                }
                _ => {}
            }
        }
        storage.sweep_temporaries().map_err(|e| failed("clean", e))?;
        storage.remove(names::LOCK).map_err(|e| StoreError::io("remove", path, names::LOCK, e))?;
    }
    match fs::remove_dir(path) {
        // Foreign files stay, and the folder with them.
        Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            // A link to the folder, or a mount point, stays as well.
            log::debug!("{} stays: {error}", path.display());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The time, in nanoseconds since 1970.
pub(super) fn now() -> i64 {
    nanos_of(SystemTime::now())
}

/// A time in nanoseconds since 1970, or the nearest one that can be said so.
pub(super) fn nanos_of(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_survive_and_torn_ones_do_not_count() {
        let bytes = encode_intent("data_a.npkd\ndata_b~7.npkd");
        assert_eq!(decode_intent(&bytes).unwrap(), ["data_a.npkd", "data_b~7.npkd"]);
        for len in 0..bytes.len() {
            assert_eq!(decode_intent(&bytes[..len]), None);
        }
        assert_eq!(decode_intent(&encode_intent("")), None);
        assert_eq!(decode_intent(&encode_intent("../x\nmetadata.npkm")).unwrap(), Vec::<String>::new());
    }
}
