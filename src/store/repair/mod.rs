//! Makes of a damaged store one that can be used, of as much as is left: a manifest from its own good frames, its
//! backup, or the headers of the data files; arrays from what can be read of them.
//!
//! Nothing that is damaged is overwritten or removed: in its place, a store keeps it under a second name in the folder
//! `lost+found` before a commit takes the first one away. Whatever moment this ends at, the store is as damaged as
//! before or less, and another repair goes on.

mod elements;
mod files;
mod manifest;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use elements::{LOST_ROWS, OLDER_ROWS};
pub use manifest::{Rebuilt, TableSource};

use super::check::{self, Depth, Problem, Report};
use super::error::{DataFileFault, NotAStore, StoreError};
use super::intent::write_intent;
use super::log::ManifestLog;
use super::writer::Commit;
use super::{Access, Array, LOCK_TIMEOUT, Shared, Store, new_store_id, open_dir, take_lock};
use crate::format::npy::NpyHeader;
use crate::format::{Generation, Op, Record, names};
use crate::sys::{FileAccess, FileLock, Storage};
use elements::{Salvaged, salvage};
use manifest::Known;

/// Second names of one file that are tried.
const MAX_NUMBERS: u32 = 100_000;

/// How a store is repaired.
pub struct Repair<'a> {
    /// Is told the array that is looked at, the bytes of elements so far, and how many there are.
    pub progress: &'a mut dyn FnMut(&str, u64, u64),
}

/// What a repair found and did.
#[derive(Debug, Clone, Default)]
pub struct Repaired {
    /// The manifest, if it could not be used as it was.
    pub manifest: Option<Rebuilt>,
    /// Number of arrays that the repaired store has.
    pub n_arrays: u64,
    /// Arrays that were not as they should be.
    pub arrays: Vec<Mended>,
    /// Data files that nothing could be made of. They stay where they are.
    pub unread: Vec<Unread>,
    /// Data files that no record refers to, of a store whose manifest is whole. They stay where they are.
    pub leftovers: Vec<String>,
    /// Bytes behind the last commit in the manifest: of one that was interrupted, or damaged.
    pub n_torn: u64,
    /// The manifest was longer: its last commits are missing.
    pub has_lost_end: bool,
}

/// One array that was not as it should be.
#[derive(Debug, Clone)]
pub struct Mended {
    /// Its name in the repaired store.
    pub array: Arc<str>,
    /// The data file that it had.
    pub file: String,
    /// What was wrong.
    pub what: Vec<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// The damaged data file, in `lost+found`, if it was kept there.
    pub kept: Option<String>,
}

/// What became of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing is lost.
    Whole,
    /// It has what its data file says: what only the manifest knew, such as attributes and which rows were dropped, is
    /// that of an earlier commit, or lost.
    FromFile,
    /// Some rows are lost, or not those of the last commit.
    Partly {
        /// Rows of which elements are lost, and are zeros.
        lost: Vec<Range<u64>>,
        /// Rows of which elements are those of an earlier commit.
        older: Vec<Range<u64>>,
    },
    /// Its elements are those of its data file, which describes another array, without a checksum that could tell.
    InDoubt,
    /// Nothing of it can be read: it was left as it is.
    Lost,
}

/// A data file that nothing could be made of.
#[derive(Debug, Clone)]
pub struct Unread {
    /// The file.
    pub file: String,
    /// What is wrong with it.
    pub what: String,
}

impl Repaired {
    /// Whether nothing is lost, and nothing in doubt.
    pub fn is_whole(&self) -> bool {
        let is_whole = |array: &Mended| array.outcome == Outcome::Whole;
        let is_complete = self.manifest.as_ref().is_none_or(|rebuilt| rebuilt.is_complete);
        is_complete && !self.has_lost_end && self.unread.is_empty() && self.arrays.iter().all(is_whole)
    }

    /// Whether there was nothing to do.
    pub fn was_sound(&self) -> bool {
        self.manifest.is_none() && self.unread.is_empty() && self.arrays.is_empty()
    }
}

impl Mended {
    fn new(array: &Arc<str>, file: &str, what: String, outcome: Outcome) -> Self {
        Self { array: Arc::clone(array), file: file.to_owned(), what: vec![what], outcome, kept: None }
    }
}

/// What was found so far. Of each array, one thing after the other may be said.
#[derive(Default)]
struct Findings {
    arrays: Vec<Mended>,
    places: HashMap<Arc<str>, usize>,
    unread: Vec<Unread>,
    leftovers: Vec<String>,
}

impl Findings {
    fn add(&mut self, new: Mended) {
        let Some(place) = self.places.get(&new.array) else {
            self.places.insert(Arc::clone(&new.array), self.arrays.len());
            self.arrays.push(new);
            return;
        };
        let old = &mut self.arrays[*place];
        old.what.extend(new.what);
        old.kept = new.kept.or(old.kept.take());
        // What its data file tells it has all the same.
        if new.outcome != Outcome::Whole {
            old.outcome = new.outcome;
        }
    }

    fn into_report(self, known: &Known, n_arrays: u64) -> Repaired {
        let Self { arrays, unread, leftovers, .. } = self;
        let Known { rebuilt, n_torn, has_lost_end, .. } = known;
        let manifest = rebuilt.clone();
        let (n_torn, has_lost_end) = (*n_torn, *has_lost_end);
        Repaired { manifest, n_arrays, arrays, unread, leftovers, n_torn, has_lost_end }
    }
}

impl Repair<'_> {
    /// Repairs the store at `path` in its place, and returns when it is on the disk.
    ///
    /// # Errors
    /// `NotAStore`, also if nothing is left of it; `OldLayout`; `Format` for a store of a later release; `Locked`;
    /// `Io`, after which another repair goes on.
    pub fn in_place(self, path: &Path) -> Result<Repaired, StoreError> {
        let open = || open_dir(path).map(|storage| Box::new(storage) as Box<dyn Storage>);
        self.in_storage(open()?)
    }

    /// Repairs the store in `storage`; see [`Repair::in_place`].
    ///
    /// # Errors
    /// As [`Repair::in_place`].
    pub fn in_storage(self, storage: Box<dyn Storage>) -> Result<Repaired, StoreError> {
        check_is_store(&*storage)?;
        let mut findings = Findings::default();
        let (known, ops) = {
            let _lock = take_lock(&*storage, LOCK_TIMEOUT)?;
            let mut known = Known::read(&*storage)?;
            let ops = files::complete(&*storage, &mut known, &mut findings)?;
            if known.rebuilt.is_some() {
                check_is_something(&*storage, &known)?;
                publish(&*storage, &mut known)?;
                (known, Vec::new())
            } else {
                (known, ops)
            }
        };
        let store = Store::with_storage(storage, Access::Write)?;
        store.set_durable(true);
        let shared = &store.shared;
        let _guard = shared.lock_writers()?;
        for (time, op) in ops {
            // Unless somebody else was here meanwhile.
            let Op::Put(record) = &op else { continue };
            if is_missing(&store, &record.name) {
                let id = record.id.max(shared.manifest().table.next_id());
                let op = Op::Put(Record { id, ..record.clone() });
                shared.commit(Commit { ops: vec![op], time: Some(time), ..Commit::default() })?;
            }
        }
        let arrays = store.arrays()?;
        let mut progress = Told::new(self.progress, &arrays);
        let mut files = HashSet::new();
        // By value: an array that was looked at keeps its data file open.
        for array in arrays {
            let array = &array;
            if !files.insert(array.file_name().to_owned()) {
                let what = "has the data file of another array, and may be that".to_owned();
                findings.add(Mended::new(array.name(), array.file_name(), what, Outcome::InDoubt));
            }
            if let Some(wrong) = Wrong::look(array, Depth::Elements, &mut progress)? {
                let (outcome, kept) = mend(shared, array, &known, &wrong, &mut progress)?;
                findings.add(wrong.mended(array, outcome, kept));
            }
            progress.end(array);
        }
        Ok(findings.into_report(&known, store.len() as u64))
    }

    /// Writes what is left of the store at `path` to a new one at `target`; nothing but an empty store may be there.
    /// Returns when it is on the disk. Nothing is written to the store at `path`, and arrays of which nothing can be
    /// read are left out.
    ///
    /// # Errors
    /// As [`Repair::in_place`]; `StoreExists`.
    pub fn to(self, path: &Path, target: &Path) -> Result<Repaired, StoreError> {
        let storage: Box<dyn Storage> = Box::new(open_dir(path)?);
        check_is_store(&*storage)?;
        let _lock = match take_lock(&*storage, LOCK_TIMEOUT) {
            Ok(lock) => Some(lock),
            // Nobody writes where nothing can be written.
            Err(StoreError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        let mut findings = Findings::default();
        let mut known = Known::read(&*storage)?;
        files::complete(&*storage, &mut known, &mut findings)?;
        check_is_something(&*storage, &known)?;
        let is_new = fs::symlink_metadata(target).is_err();
        let copied = self.copy_to(storage, &known, &mut findings, target);
        if copied.is_err() && is_new {
            // What was begun is nothing that anybody wants.
            let _ = Store::remove_all(target);
        }
        Ok(findings.into_report(&known, copied?))
    }

    /// Writes the arrays of `known`, whose data files are in `storage`, to a new store, and returns how many there are.
    fn copy_to(
        self,
        storage: Box<dyn Storage>,
        known: &Known,
        findings: &mut Findings,
        target: &Path,
    ) -> Result<u64, StoreError> {
        let exists = || StoreError::StoreExists { path: target.to_owned() };
        let new = Store::open_or_create(target)?;
        if new.old_layout().is_some() || new.generation() != Generation(0) {
            return Err(exists());
        }
        let detached = ManifestLog::detached(new.shared.new_file()?, known.table.clone());
        let detached = detached.map_err(|e| StoreError::io("stat", target, "", e))?;
        let old = Store::new(storage, Access::Read, FileAccess::Read, detached);
        new.set_attrs(None, old.attrs(), &[])?;
        new.set_default_compression(old.default_compression().as_ref())?;
        let arrays = old.arrays()?;
        let mut progress = Told::new(self.progress, &arrays);
        // By value: an array that was looked at keeps its data file open.
        for array in arrays {
            let array = &array;
            let wrong = Wrong::look(array, Depth::Index, &mut progress)?;
            if let Some(mended) = copy(&new.shared, array, known, wrong, &mut progress)? {
                findings.add(mended);
            }
            progress.end(array);
        }
        new.sync()?;
        Ok(new.len() as u64)
    }
}

/// Whom to tell how far it is.
struct Told<'a> {
    tell: &'a mut dyn FnMut(&str, u64, u64),
    done: u64,
    total: u64,
}

impl<'a> Told<'a> {
    fn new(tell: &'a mut dyn FnMut(&str, u64, u64), arrays: &[Array]) -> Self {
        let total = arrays.iter().map(Array::raw_len).fold(0, u64::saturating_add);
        Self { tell, done: 0, total }
    }

    fn at(&mut self, array: &Array, len: u64) {
        (self.tell)(array.name(), self.done.saturating_add(len.min(array.raw_len())), self.total);
    }

    fn end(&mut self, array: &Array) {
        self.done = self.done.saturating_add(array.raw_len());
        self.at(array, 0);
    }
}

/// What is wrong with an array.
struct Wrong {
    what: Vec<String>,
    /// There is no data file to read.
    is_gone: bool,
    /// The data file describes another array, and nothing tells which is right.
    in_doubt: bool,
}

impl Wrong {
    /// Looks for damage, as far as `depth`.
    fn look(array: &Array, depth: Depth, progress: &mut Told<'_>) -> Result<Option<Self>, StoreError> {
        let mut report = Report::default();
        // A clone is dropped with the file that it opens: there may be more arrays than a process may have open files.
        let checked =
            check::check_array(&array.clone(), depth, &mut report, &mut |len| progress.at(array, len));
        let mut what: Vec<String> = report.problems.into_iter().map(|problem| problem.what).collect();
        let (mut is_gone, mut in_doubt) = (false, false);
        match checked {
            Ok(()) if what.is_empty() => return Ok(None),
            Ok(()) => {}
            Err(StoreError::DataFile { file, what: fault, .. }) => {
                is_gone = matches!(fault, DataFileFault::Missing | DataFileFault::NotAFile);
                in_doubt = matches!(fault, DataFileFault::Header(None)) && is_of_another(array);
                what.push(format!("data file {file} {fault}"));
            }
            Err(StoreError::Io { source, .. }) if manifest::is_of_media(&source) => {
                what.push(format!("cannot be read: {source}"));
            }
            Err(error @ StoreError::Io { .. }) => return Err(error),
            Err(error) => what.push(Problem::from_error(array, &error).what),
        }
        Ok(Some(Self { what, is_gone, in_doubt }))
    }

    fn mended(self, array: &Array, outcome: Outcome, kept: Option<String>) -> Mended {
        let (array, file) = (Arc::clone(array.name()), array.file_name().to_owned());
        Mended { array, file, what: self.what, outcome, kept }
    }

    fn outcome(&self, lost: Vec<Range<u64>>, older: Vec<Range<u64>>) -> Outcome {
        match (lost.is_empty() && older.is_empty(), self.in_doubt) {
            (false, _) => Outcome::Partly { lost, older },
            (true, true) => Outcome::InDoubt,
            (true, false) => Outcome::Whole,
        }
    }
}

/// Whether the header in the data file of an array that is not compressed is that of another one.
fn is_of_another(array: &Array) -> bool {
    let record = array.record();
    let header = array.data().ok().and_then(|data| data.header(record).ok()?.1.ok());
    let is_like = |header: &NpyHeader| {
        header.dtype == record.dtype && header.shape.get(1..) == record.layout.shape().get(1..)
    };
    array.codec().is_none() && !header.as_ref().is_some_and(is_like)
}

/// Puts what can be read of a damaged array in its place, in one durable commit, and keeps the data file that it had.
fn mend(
    shared: &Arc<Shared>,
    array: &Array,
    known: &Known,
    wrong: &Wrong,
    progress: &mut Told<'_>,
) -> Result<(Outcome, Option<String>), StoreError> {
    if wrong.is_gone {
        return Ok((Outcome::Lost, None));
    }
    let locked = match array.codec() {
        None => vec![shared.lock_data(array, FileLock::Exclusive)?],
        Some(_) => Vec::new(),
    };
    let states = known.states_of(array.id());
    let salvaged = salvage(shared, shared, array, states, &mut |len| progress.at(array, len))?;
    let Some(Salvaged { staged, lost, older }) = salvaged else { return Ok((Outcome::Lost, None)) };
    let kept = keep(&*shared.storage, array.file_name())?;
    let staged = vec![staged];
    shared.commit(Commit { staged, moves_rows: true, locked, leaves_files: true, ..Commit::default() })?;
    Ok((wrong.outcome(lost, older), Some(kept)))
}

/// Copies what can be read of an array to another store, in one commit.
fn copy(
    new: &Shared,
    array: &Array,
    known: &Known,
    wrong: Option<Wrong>,
    progress: &mut Told<'_>,
) -> Result<Option<Mended>, StoreError> {
    if let Some(wrong) = wrong.as_ref().filter(|wrong| wrong.is_gone) {
        let Wrong { what, .. } = wrong;
        let lost = Wrong { what: what.clone(), is_gone: true, in_doubt: false };
        return Ok(Some(lost.mended(array, Outcome::Lost, None)));
    }
    let record = array.record();
    let whole = match (&wrong, array.codec()) {
        (None, None) => {
            let copied =
                new.stage_copy(&array.clone(), array.name(), None, &mut |len| progress.at(array, len));
            match copied {
                Err(StoreError::Io { source, .. }) if manifest::is_of_media(&source) => None,
                Err(StoreError::DataFile { .. }) => None,
                staged => Some(staged?),
            }
        }
        // Blocks are checked while they are read, each for itself.
        _ => None,
    };
    let (staged, mended) = match whole {
        Some(mut staged) => {
            staged.attrs = Some(Arc::clone(&record.attrs));
            (staged, None)
        }
        None => {
            let states = known.states_of(array.id());
            let read = salvage(array.shared(), new, array, states, &mut |len| progress.at(array, len))?;
            let was_sound = wrong.is_none();
            let wrong = wrong.unwrap_or_else(|| Wrong {
                what: vec!["has elements that cannot be read, or do not have their checksums".to_owned()],
                is_gone: false,
                in_doubt: false,
            });
            let Some(Salvaged { staged, lost, older }) = read else {
                return Ok(Some(wrong.mended(array, Outcome::Lost, None)));
            };
            let outcome = wrong.outcome(lost, older);
            let is_told = !(was_sound && outcome == Outcome::Whole);
            (staged, is_told.then(|| wrong.mended(array, outcome, None)))
        }
    };
    let _guard = new.lock_writers()?;
    new.commit(Commit { staged: vec![staged], time: Some(record.mtime), ..Commit::default() })?;
    Ok(mended)
}

/// Refuses what is no store, before anything is made there.
fn check_is_store(storage: &dyn Storage) -> Result<(), StoreError> {
    let is_there = |name| storage.stat(name).is_ok();
    if is_there(names::MANIFEST) || is_there(names::MANIFEST_BACKUP) {
        return Ok(());
    }
    let files = storage.list().map_err(|e| StoreError::io("list", storage.path(), "", e))?;
    if files.iter().any(|file| names::is_data_file(file)) {
        return Ok(());
    }
    Err(StoreError::NotAStore { path: storage.path().to_owned(), found: NotAStore::NoManifest })
}

/// Refuses to take a store without arrays for what is left, where nothing at all is.
fn check_is_something(storage: &dyn Storage, known: &Known) -> Result<(), StoreError> {
    let is_nothing = known.rebuilt.as_ref().is_some_and(|rebuilt| rebuilt.source == TableSource::DataFiles);
    if is_nothing && known.table.is_empty() {
        return Err(StoreError::NotAStore { path: storage.path().to_owned(), found: NotAStore::NothingLeft });
    }
    Ok(())
}

/// Whether the data file of an array is missing.
fn is_missing(store: &Store, name: &str) -> bool {
    let stat = store.record(name).map(|array| store.shared.storage.stat(array.file_name()));
    matches!(stat, Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound)
}

/// Publishes the table of `known` in place of a manifest that cannot be used, which is kept. The writers' lock is held.
fn publish(storage: &dyn Storage, known: &mut Known) -> Result<(), StoreError> {
    // A writer that died may have stated files that the new manifest does not need, and that somebody still may.
    write_intent(storage, "")?;
    let synced = storage.open(names::LOCK, FileAccess::Write).and_then(|file| file.sync_data());
    synced.map_err(|source| StoreError::io("sync", storage.path(), names::LOCK, source))?;
    let mut kept = Vec::new();
    let manifest = storage.stat(names::MANIFEST).ok();
    if manifest.is_some() {
        kept.push(keep(storage, names::MANIFEST)?);
    }
    let backup = storage.stat(names::MANIFEST_BACKUP).ok();
    if backup.is_some_and(|backup| manifest.is_none_or(|manifest| !backup.is_same_file(&manifest))) {
        kept.push(keep(storage, names::MANIFEST_BACKUP)?);
    }
    ManifestLog::retire_named(storage);
    let store_id = known.store_id.map_or_else(|| new_store_id(storage), Ok)?;
    ManifestLog::create(storage, store_id, known.table.clone())?;
    if let Some(rebuilt) = &mut known.rebuilt {
        rebuilt.kept = kept;
    }
    Ok(())
}

/// Gives a file a second name, under which it stays when the first one goes, and returns it.
fn keep(storage: &dyn Storage, file: &str) -> Result<String, StoreError> {
    let failed = |source| StoreError::io("keep in lost+found", storage.path(), file, source);
    let own = storage.stat(file).map_err(failed)?;
    let mut n = 0;
    loop {
        let name = names::kept_file(file, n);
        match storage.keep_apart(file, names::LOST_AND_FOUND, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && n < MAX_NUMBERS => {
                // A repair that was interrupted may have kept it already.
                let there = storage
                    .open_apart(names::LOST_AND_FOUND, &name, FileAccess::Read)
                    .and_then(|file| file.stat());
                if there.is_ok_and(|there| there.is_same_file(&own)) {
                    return Ok(format!("{}/{name}", names::LOST_AND_FOUND));
                }
                n += 1;
            }
            result => return result.map(|()| format!("{}/{name}", names::LOST_AND_FOUND)).map_err(failed),
        }
    }
}
