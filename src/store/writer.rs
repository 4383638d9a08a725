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
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::block_writer::Space;
use super::data::{DataFile, fault, lock, resemble};
use super::error::{DataFileFault, StoreError};
use super::in_turn::MAX_UNNAMED;
use super::log::ManifestLog;
use super::stage::{NewArray, Staged};
use super::turn::TurnGuard;
use super::{Access, Change, Shared, Store};
use crate::format::manifest::{Attrs, DeletedRows, check_attrs};
use crate::format::npy;
use crate::format::upstream::OLD_TABLE;
use crate::format::{ArrayId, Compression, Filter, Index, Op, Record, names};
use crate::sys::{FileAccess, LockGuard, Storage, StorageFile};

/// A version of an array, and its data file.
pub(super) type Version = (ArrayId, Arc<str>);

/// What a new version is called, and the attributes that its name has.
pub(super) struct Place {
    pub(super) id: ArrayId,
    pub(super) file: Arc<str>,
    attrs: Option<Arc<Attrs>>,
}

impl Place {
    /// The record of a new version.
    pub(super) fn record(self, new: &Staged, time: i64) -> Record {
        Record {
            name: Arc::clone(&new.name),
            id: self.id,
            file: self.file,
            dtype: new.dtype.clone(),
            layout: new.layout.clone(),
            offset: new.offset,
            blocks: new.blocks,
            deleted: DeletedRows::default(),
            mtime: time,
            // Attributes belong to the name: a new version keeps them.
            attrs: new.attrs.clone().or(self.attrs).unwrap_or_default(),
            upstream: None,
        }
    }
}

/// The writers' lock, in this process and among processes.
pub(super) struct WriteGuard<'a> {
    file: Box<dyn LockGuard>,
    _thread: TurnGuard<'a>,
}

impl WriteGuard<'_> {
    /// Whether somebody keeps copies of elements, and wants to know when they are written in place.
    pub(super) fn is_watched(&self) -> bool {
        self.file.is_watched()
    }
}

/// Changes of several kinds that [`Store::change`] makes in one commit.
#[derive(Default)]
pub struct Changes<'a> {
    /// Arrays that are saved, with the attributes of those that have their names.
    pub save: &'a [(&'a str, NewArray<'a>)],
    /// Arrays that are removed, unless they are saved. Missing ones are ignored.
    pub remove: &'a [&'a str],
    /// How arrays are compressed whose names no array has.
    pub compression: Option<Compression>,
    /// How these are compressed; others are like those that have their names.
    pub compressions: HashMap<&'a str, Option<Compression>>,
    /// Attributes of arrays, or of the store, that are set, and names of those that are removed before.
    pub attrs: Vec<(Option<&'a str>, Attrs, Vec<String>)>,
}

/// One commit in the making.
#[derive(Default)]
pub(super) struct Commit {
    pub(super) staged: Vec<Staged>,
    /// Operations that come before the new versions.
    pub(super) ops: Vec<Op>,
    /// Operations that come after them.
    pub(super) last_ops: Vec<Op>,
    /// Arrays whose headers are to be written after the commit.
    pub(super) headers: Vec<Arc<str>>,
    /// Where there is room in the files of compressed arrays, once the commit is made.
    pub(super) spaces: Vec<(Arc<DataFile>, Index, Space)>,
    /// When the change was made, if that is not now.
    pub(super) time: Option<i64>,
    /// Rows that are there already move to a new file: the commit is durable, since it removes the old one.
    pub(super) moves_rows: bool,
    /// The locks on the files that rows are moved from; see [`Shared::lock_data`].
    pub(super) locked: Vec<Arc<dyn StorageFile>>,
    /// The files of versions that go have other names, under which they are kept as they are.
    pub(super) leaves_files: bool,
    /// The versions that go, if the intent that names them and the files of new ones is written already.
    pub(super) begun: Option<Vec<Version>>,
}

impl Store {
    /// Saves arrays under their names, all or none, replacing those that have these names; of arrays given the same
    /// name, the last counts. Readers of a replaced version keep it.
    ///
    /// # Errors
    /// `ReadOnly`; `Refused` for a name, dtype or shape that cannot be; `BufferLen`; `Locked`; `Io`.
    pub fn save(&self, arrays: &[(&str, NewArray<'_>)]) -> Result<(), StoreError> {
        self.save_as(arrays, None)
    }

    /// As [`Store::save`], compressed as `compression` says.
    ///
    /// # Errors
    /// As [`Store::save`]; `Refused` for a level or block length outside of its limits.
    pub fn save_as(
        &self,
        arrays: &[(&str, NewArray<'_>)],
        compression: Option<&Compression>,
    ) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        if arrays.len() > MAX_UNNAMED {
            let _guard = self.shared.lock_writers()?;
            return self.shared.save_in_turn(arrays, |_| compression.copied(), Vec::new(), Vec::new());
        }
        let staged = self.shared.stage_all(arrays, |_| compression.copied())?;
        if staged.is_empty() {
            return Ok(());
        }
        let _guard = self.shared.lock_writers()?;
        self.shared.commit(Commit { staged, ..Commit::default() })
    }

    /// Saves arrays and removes others in one commit. Of names that have an array, the new version is compressed like
    /// that; the others as `compression` says. What is in both lists is saved, and missing names in `remove` are
    /// ignored.
    ///
    /// # Errors
    /// As [`Store::save_as`].
    pub fn save_and_remove(
        &self,
        save: &[(&str, NewArray<'_>)],
        remove: &[&str],
        compression: Option<&Compression>,
    ) -> Result<(), StoreError> {
        let compression = compression.copied();
        self.change(Changes { save, remove, compression, ..Changes::default() })
    }

    /// Makes changes of several kinds in one commit.
    ///
    /// # Errors
    /// As [`Store::save_as`]; `NotFound` for attributes of an array that is not there then; `Refused` for those that
    /// cannot be.
    pub fn change(&self, changes: Changes<'_>) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        let Changes { save, remove, compression, compressions, attrs } = changes;
        for (_, set, _) in &attrs {
            check_attrs(set)?;
        }
        self.refresh_quietly()?;
        let compression = |name: &str| match (compressions.get(name), self.record(name)) {
            (Some(wanted), _) => *wanted,
            (None, Ok(old)) => old.compression(),
            (None, Err(_)) => compression,
        };
        let in_turn = save.len() > MAX_UNNAMED;
        let staged = if in_turn { Vec::new() } else { self.shared.stage_all(save, compression)? };
        let saved: HashSet<&str> = save.iter().map(|(name, _)| *name).collect();
        let _guard = self.shared.lock_writers()?;
        let ops = self.shared.deletions(remove.iter().copied().filter(|name| !saved.contains(name)));
        let last_ops = attrs.into_iter().map(|(name, set, remove)| {
            if let Some(name) = name.filter(|name| !saved.contains(name)) {
                self.record(name)?;
            }
            Ok(Op::Attrs(name.map(Arc::from), set, remove))
        });
        let last_ops = last_ops.collect::<Result<_, StoreError>>()?;
        if in_turn {
            return self.shared.save_in_turn(save, compression, ops, last_ops);
        }
        self.shared.commit(Commit { staged, ops, last_ops, ..Commit::default() })
    }

    /// Stores a `.npy` file under `name`, compressed as `compression` says: it reads byte for byte as it was, header
    /// included. `progress` is told the number of bytes copied so far.
    ///
    /// # Errors
    /// `Exists` unless `overwrite`; `Format` if the file is no `.npy` file that NumPy reads without pickle, or is
    /// truncated; `ReadOnly`; `Refused`; `Locked`; `Io`.
    pub fn import_npy(
        &self,
        name: &str,
        file: &Path,
        overwrite: bool,
        compression: Option<&Compression>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        names::check(name)?;
        self.refresh_quietly()?;
        self.shared.check_free(name, overwrite)?;
        let staged = self.shared.stage_npy(name, file, compression, progress)?;
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
        let ops = self.shared.deletions(names.iter().copied());
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
        let ops = self.shared.manifest().table.names().cloned().map(Op::Delete).collect();
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

    /// Lets two arrays change names, and no more: each keeps its place in the order.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; `Locked`; `Io`.
    pub fn exchange(&self, a: &str, b: &str) -> Result<(), StoreError> {
        let _guard = self.shared.lock_writers()?;
        let (a, b) = (Arc::clone(self.record(a)?.name()), Arc::clone(self.record(b)?.name()));
        if a == b {
            return Ok(());
        }
        // Nobody sees what is between the operations of a commit.
        let between =
            (0_u64..).map(|n| format!("{n}")).find(|name| !self.shared.manifest().table.contains(name));
        let between: Arc<str> = between.expect("there are more numbers than arrays").into();
        let ops = [(&a, &between), (&b, &a), (&between, &b)];
        let ops = ops.map(|(from, to)| Op::Rename(Arc::clone(from), Arc::clone(to))).into();
        self.shared.commit(Commit { ops, ..Commit::default() })
    }

    /// Renames arrays, all or none: each to a name that no array has. Waits no longer than `wait` for other writers.
    ///
    /// # Errors
    /// As [`Store::rename`].
    pub fn rename_all(&self, names: &[(&str, &str)], wait: Duration) -> Result<(), StoreError> {
        names.iter().try_for_each(|(_, to)| names::check(to))?;
        let _guard = self.shared.lock_writers_within(wait)?;
        let mut ops = Vec::with_capacity(names.len());
        for (from, to) in names {
            let array = self.record(from)?;
            self.shared.check_free(to, false)?;
            ops.push(Op::Rename(Arc::clone(array.name()), (*to).into()));
        }
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

    /// Sets how arrays are compressed that are made where nobody says how, as through a mount; `None`: not at all.
    ///
    /// # Errors
    /// `Refused` for a level or block length outside of its limits; `ReadOnly`; `Locked`; `Io`.
    pub fn set_default_compression(&self, compression: Option<&Compression>) -> Result<(), StoreError> {
        if let Some(compression) = compression {
            compression.codec(Filter::None)?;
        }
        let _guard = self.shared.lock_writers()?;
        self.shared.commit(Commit { ops: vec![Op::Codec(compression.copied())], ..Commit::default() })
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
        let is_old = self.manifest().upstream.is_some();
        if is_old {
            // Unless it was upgraded since.
            self.catch_up(&mut self.manifest_mut(), true)?;
            let layout = self.manifest().upstream;
            if let Some(layout) = layout {
                return Err(StoreError::OldLayout { store: self.storage.path().to_owned(), layout });
            }
        }
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
        if overwrite || !self.manifest().table.contains(name) {
            return Ok(());
        }
        Err(StoreError::Exists { store: self.storage.path().to_owned(), array: name.to_owned() })
    }

    /// Writes new versions of arrays into files without names; of those given the same name, the last.
    fn stage_all(
        &self,
        arrays: &[(&str, NewArray<'_>)],
        compression: impl Fn(&str) -> Option<Compression>,
    ) -> Result<Vec<Staged>, StoreError> {
        let mut staged = Vec::with_capacity(arrays.len());
        let mut places = HashMap::with_capacity(arrays.len());
        for (name, array) in arrays {
            let new = self.stage(name, array, compression(name).as_ref())?;
            match places.entry(*name) {
                Entry::Vacant(place) => {
                    place.insert(staged.len());
                    staged.push(new);
                }
                Entry::Occupied(place) => staged[*place.get()] = new,
            }
        }
        Ok(staged)
    }

    /// The operations that remove those of these arrays that there are.
    fn deletions<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<Op> {
        let manifest = self.manifest();
        let mut seen = HashSet::new();
        names
            .filter(|name| seen.insert(*name))
            .filter(|name| manifest.table.contains(name))
            .map(|name| Op::Delete(name.into()))
            .collect()
    }

    /// Takes the writers' lock, and knows everything that was committed before.
    pub(super) fn lock_writers(&self) -> Result<WriteGuard<'_>, StoreError> {
        self.lock_writers_within(self.lock_timeout)
    }

    /// As [`Shared::lock_writers`], but waits no longer than `timeout`; if that is zero, not for other threads either.
    pub(super) fn lock_writers_within(&self, timeout: Duration) -> Result<WriteGuard<'_>, StoreError> {
        self.check_writable()?;
        let thread = match self.writer.try_take() {
            Some(thread) => thread,
            None if timeout.is_zero() => {
                let store = self.storage.path().to_owned();
                return Err(StoreError::Locked { store, waited: timeout, holder: None });
            }
            None => self.take_turn()?,
        };
        let take_lock =
            || self.wait_for_lock(names::LOCK, timeout, |timeout| self.storage.lock(names::LOCK, timeout));
        let mut file = take_lock()?;
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
            file = take_lock()?;
        }
        // Somebody else was here, and may have died before a commit that could be seen.
        self.swept.store(true, Ordering::Relaxed);
        self.finish_intent(&manifest);
        self.mend_headers(&mut manifest);
        if self.swept.load(Ordering::Relaxed) {
            manifest.publish_length();
        }
        Ok(WriteGuard { file, _thread: thread })
    }

    /// Waits until no other thread of this process writes, but for regions.
    pub(super) fn take_turn(&self) -> Result<TurnGuard<'_>, StoreError> {
        let taken = self.writer.take(self.interrupted.get());
        taken.ok_or_else(|| StoreError::Interrupted { store: self.storage.path().to_owned() })
    }

    /// See [`wait_for_lock`](super::wait_for_lock).
    pub(super) fn wait_for_lock<T>(
        &self,
        file: &str,
        timeout: Duration,
        take: impl FnMut(Duration) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        super::wait_for_lock(&*self.storage, file, timeout, self.interrupted.get(), take)
    }

    /// Commits, with the writers' lock held.
    pub(super) fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        // The locks on data files, of those that are moved, end with the commit.
        let Commit {
            staged,
            mut ops,
            last_ops,
            headers,
            spaces,
            time,
            moves_rows,
            locked: _locked,
            leaves_files,
            begun,
        } = commit;
        if staged.is_empty() && ops.is_empty() && last_ops.is_empty() {
            return Ok(());
        }
        if moves_rows {
            staged.iter().try_for_each(|new| self.hand_on_permissions(new))?;
        }
        let durable = moves_rows || self.is_durable();
        if durable {
            for new in &staged {
                let failed = |e| {
                    StoreError::io("sync", self.storage.path(), &names::data_file(&new.name, ArrayId(0)), e)
                };
                self.or_poison(new.data.file.sync_data().map_err(failed))?;
            }
            // The commit takes earlier ones, that were not durable, to the disk with it: their elements go first.
            self.or_poison(self.sync_dirty())?;
        }
        let time = time.unwrap_or_else(now);
        let is_begun = begun.is_some();
        let (places, superseded) = match begun {
            Some(superseded) => (Vec::new(), superseded),
            None => self.places(staged.iter().map(|new| &*new.name), &ops)?,
        };
        if !leaves_files {
            superseded.iter().for_each(|(id, _)| self.keep_last_state(*id));
        }
        let is_intended = is_begun || !(places.is_empty() && superseded.is_empty());
        if is_intended && !is_begun {
            self.begin_intent(&places, &superseded)?;
        }
        let records: Vec<Record> =
            places.into_iter().zip(&staged).map(|(place, new)| place.record(new, time)).collect();
        for (record, new) in records.iter().zip(&staged) {
            self.link(&new.data.file, &record.file)?;
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
        ops.extend(records.into_iter().map(Op::Put).chain(last_ops));
        let mut manifest = self.manifest_mut();
        let appended = manifest.append(&*self.storage, time, ops, durable, &mut |change| {
            self.note_change(Change { is_own: true, ..change });
        });
        if let Err(error) = self.or_poison(appended) {
            if self.poison.get().is_none() {
                self.unlink(&staged, &placed);
                for name in &headers {
                    if let Ok(Some(record)) = manifest.table.get(name)
                        && let Ok(data) = self.files.get(&*self.storage, record)
                    {
                        cut_uncommitted(record, &data);
                    }
                }
            }
            return Err(error);
        }
        // Not before: had the commit failed, somebody else's would get these identities.
        for ((id, _), new) in placed.into_iter().zip(&staged) {
            self.files.insert(id, &new.data);
        }
        // The commit is made. What fails from here on is mended by the next writer.
        for (data, index, space) in spaces {
            space.keep(&data, &index);
        }
        for name in &headers {
            let Ok(Some(record)) = manifest.table.get(name).map(Option::<&_>::cloned) else { continue };
            let data = self.files.get(&*self.storage, &record);
            if let Err(error) = data.and_then(|data| self.write_header(&record, &data)) {
                log::warn!("{error}");
                manifest.lagging.push(Arc::clone(name));
            }
            if !durable {
                self.note_dirty(&record);
            }
        }
        if is_intended {
            self.end_intent(superseded.iter().map(|(_, file)| &**file));
        }
        // Whoever finds the length that they know looks for nothing that is left to be done, so nothing may be.
        if manifest.lagging.is_empty() && self.swept.load(Ordering::Relaxed) {
            manifest.publish_length();
        }
        // A snapshot does not say whose headers lag behind.
        if manifest.wants_snapshot() && manifest.lagging.is_empty() {
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

    /// Says in the lock file which files come and go.
    pub(super) fn begin_intent(&self, places: &[Place], superseded: &[Version]) -> Result<(), StoreError> {
        // Should this process die, whoever comes next must look, also one that knows this state.
        self.manifest().retire(&*self.storage)?;
        let files = places.iter().map(|place| &*place.file).chain(superseded.iter().map(|(_, file)| &**file));
        self.write_intent(&files.collect::<Vec<_>>().join("\n"))
    }

    /// Gives new versions of these names their identities and files, and finds the versions that they and `ops`
    /// supersede.
    pub(super) fn places<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        ops: &[Op],
    ) -> Result<(Vec<Place>, Vec<Version>), StoreError> {
        let manifest = self.manifest();
        let mut superseded = Vec::new();
        let mut supersede = |name: &str| {
            let old = self.whole(manifest.table.get(name))?;
            if let Some(old) = old {
                superseded.push((old.id, Arc::clone(&old.file)));
            }
            Ok::<_, StoreError>(old)
        };
        for op in ops {
            if let Op::Delete(name) = op {
                supersede(name)?;
            }
        }
        let next_id = manifest.table.next_id().0;
        // Names without an id are for a store that still has every version it ever had. Later, such a name may have
        // been that of a version that is gone, and who did not see it go would take the new file for it: a reader
        // between looking up and opening, or the manifest, if the machine loses power before the newest frames and
        // after the directory reached the disk.
        let has_all = manifest.table.len() as u64 + 1 == next_id;
        let places = (next_id..).zip(names).map(|(id, name)| {
            let old = supersede(name)?;
            let id = ArrayId(id);
            let is_first = has_all && old.is_none();
            let file = names::first_data_file(name)
                .filter(|file| is_first && self.storage.stat(file).is_err())
                .unwrap_or_else(|| names::data_file(name, id));
            Ok(Place { id, file: file.into(), attrs: old.map(|old| Arc::clone(&old.attrs)) })
        });
        let places = places.collect::<Result<_, StoreError>>()?;
        Ok((places, superseded))
    }

    /// Lets the file of a new version have the permissions and the owner of the present one: who moves rows shows
    /// them to nobody else.
    fn hand_on_permissions(&self, new: &Staged) -> Result<(), StoreError> {
        let manifest = self.manifest();
        let Some(old) = self.whole(manifest.table.get(&new.name))? else { return Ok(()) };
        let failed = |e| StoreError::io("change the permissions of", self.storage.path(), &old.file, e);
        // By its name: that of a damaged array cannot be opened as one.
        let stat = self.storage.stat(&old.file).map_err(failed)?;
        resemble(&*new.data.file, &stat).map_err(failed)
    }

    /// Names a new data file. A file of that name is not referred to by any record: ids are never used twice.
    pub(super) fn link(&self, file: &Arc<dyn StorageFile>, name: &str) -> Result<(), StoreError> {
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
            if let Err(error) = self.storage.unlink(&new.data.file, name) {
                // The intent names the file: the next writer removes it.
                log::debug!("{}: {error}", self.storage.path().join(&**name).display());
            }
        }
    }

    /// Lets the data file of a version that is about to go say where its blocks are: nothing else will. It says so
    /// already, but for a commit that was lost with the power, while what it had written to the data file was not.
    fn keep_last_state(&self, id: ArrayId) {
        let record = self.manifest().table.by_id(id).map(Option::<&_>::cloned);
        let Ok(Some(record)) = record else { return };
        let Some(blocks) = record.blocks else { return };
        let kept = self.files.get(&*self.storage, &record).and_then(|data| {
            if self.is_slot_current(&record, &data) {
                return Ok(());
            }
            self.write_slot(&record, &data, record.layout.nbytes(), &blocks.index)
        });
        if let Err(error) = kept {
            log::debug!("{error}");
        }
    }

    /// Lets the headers in the data file follow the record.
    pub(super) fn write_header(&self, record: &Record, data: &DataFile) -> Result<(), StoreError> {
        if let Some(blocks) = &record.blocks {
            self.write_slot(record, data, record.layout.nbytes(), &blocks.index)?;
            // Elements that were written in place change no `.npy` header.
            if is_described(record, data) {
                return Ok(());
            }
        }
        let header = npy::encode_within(&record.dtype, &record.layout, record.offset)
            .ok_or_else(|| fault(&*self.storage, record, DataFileFault::Header(None)))?;
        data.file
            .write_at(&header, record.header_offset())
            .map_err(|e| StoreError::io("write", self.storage.path(), &record.file, e))
    }

    /// Writes the headers that a writer that died did not get to write.
    fn mend_headers(&self, manifest: &mut ManifestLog) {
        for name in std::mem::take(&mut manifest.lagging) {
            let record = match self.whole(manifest.table.get(&name)) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    log::warn!("{error}");
                    continue;
                }
            };
            let mended = self.files.get(&*self.storage, record).and_then(|data| {
                if is_described(record, &data) && self.is_slot_current(record, &data) {
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
}

/// Takes away what a failed append has left behind the last row: who reads the file itself, as a kernel does that it was
/// handed to, would take it for rows. What is mapped is what is committed.
pub(super) fn cut_uncommitted(record: &Record, data: &DataFile) {
    if record.blocks.is_none()
        && let Err(error) = data.file.set_len(record.data_end())
    {
        log::debug!("array {:?}: the end of its file stays: {error}", record.name);
    }
}

/// Whether the `.npy` header in the data file is that of `record`.
pub(super) fn is_described(record: &Record, data: &DataFile) -> bool {
    data.header(record)
        .is_ok_and(|(_, header)| header.is_ok_and(|header| header.describes(&record.dtype, &record.layout)))
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
        names::is_data_file(file)
            || [names::MANIFEST, names::MANIFEST_BACKUP, names::LOCK, OLD_TABLE].contains(&file)
    };
    if files.iter().any(|file| is_own(file)) {
        let _lock = super::take_lock(&storage, timeout)?;
        if let Ok(manifest) = ManifestLog::load(&storage, FileAccess::Write) {
            manifest.retire(&storage)?;
        }
        let old = super::upstream::table_in(&storage);
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
        if let Some(table) = old {
            super::upstream::remove_files_of(&storage, &table, &HashSet::new())?;
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
