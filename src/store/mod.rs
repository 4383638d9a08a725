//! Named arrays in a directory: opens and creates stores, looks arrays up, commits changes.
//!
//! The manifest is the truth and its frames are the only commit point; see `spec/npk-format.md`. Readers take no lock:
//! they follow the manifest. Writers exclude each other with the lock of the operating system, held for the commit.
//!
//! Lock order within a process: `Shared::writer`, then the storage's lock, then those on data files, then
//! `Shared::manifest`. The locks of
//! `DataFiles`, `Shared::dirty` and `Shared::changes` are leaves.

mod array;
mod block_writer;
mod blocks;
mod changed;
mod check;
mod compressed;
mod create;
mod data;
mod draft;
mod draft_blocks;
mod error;
mod in_turn;
mod intent;
mod log;
mod new_blocks;
mod plain;
mod regions;
mod repair;
mod resize;
mod rows;
mod stage;
mod turn;
mod update;
mod upstream;
mod writer;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

pub use array::{Array, ArrayMap};
pub use changed::BlocksState;
pub use check::{Depth, Problem, Report, verify, verify_storage, verify_storage_with, verify_with};
pub use compressed::Usage;
pub use draft::Draft;
pub use error::{BlockFault, DataFileFault, NotAStore, StoreError};
pub use plain::PlainFiles;
pub use repair::{LOST_ROWS, Mended, OLDER_ROWS, Outcome, Rebuilt, Repair, Repaired, TableSource, Unread};
pub use stage::NewArray;
pub use upstream::{Upgrade, Upgraded};
pub use writer::Changes;

pub use crate::format::manifest::{Change, ChangeKind};
pub use crate::format::upstream::TableLayout;
pub use crate::format::{
    ArrayId, Attrs, Codec, Compression, Descr, Dtype, Field, Filter, Generation, Subarray,
};

use crate::format::{FormatError, Table, names};
pub use crate::sys::MapMut;
use crate::sys::sync::{AtomicBool, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::sys::{DirStorage, FileAccess, FileStat, FsStat, LockGuard, Storage, StorageFile};
use data::{DataFiles, lock};
use log::ManifestLog;
use turn::Turn;

/// How long writers wait for each other, unless told otherwise.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// How often those who wait look whether they shall give up.
const INTERRUPT_PERIOD: Duration = Duration::from_millis(50);

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading. Needs no right to write, and works on read-only media.
    Read,
    /// Reading and writing.
    Write,
}

/// An open store. Threads may share it; clones are handles of the same one.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What the handles of one open store share.
struct Shared {
    storage: Box<dyn Storage>,
    access: Access,
    files: DataFiles,
    manifest: RwLock<ManifestLog>,
    /// Serializes the writers of this process.
    writer: Turn,
    /// Whether whoever waits for a lock shall give up.
    interrupted: OnceLock<fn() -> bool>,
    lock_timeout: Duration,
    durable: AtomicBool,
    /// Data files that were written since the last sync.
    dirty: Mutex<HashSet<Arc<str>>>,
    /// Whether names may have been given, by anybody, since the directory was synced.
    names_dirty: AtomicBool,
    /// The failure after which nothing is written any more.
    poison: OnceLock<Arc<StoreError>>,
    /// Whether leftovers of writers that died were looked for.
    swept: AtomicBool,
    /// What happened since the last `refresh`, for those who asked to be told.
    changes: Mutex<Option<Vec<Change>>>,
}

impl Store {
    /// Opens the store at `path`.
    ///
    /// # Errors
    /// `NotAStore`; `Format` if its manifest is damaged; `Io`.
    pub fn open(path: &Path, access: Access) -> Result<Self, StoreError> {
        Self::with_storage(Box::new(open_dir(path)?), access)
    }

    /// Creates a store at `path`, with the folders above it.
    ///
    /// # Errors
    /// `StoreExists`; `NotAStore` if something else is in the way; `Io`.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let storage = create_dir(path)?;
        match storage.stat(names::MANIFEST) {
            Ok(_) => Err(StoreError::StoreExists { path: path.to_owned() }),
            Err(_) => Self::create_in(Box::new(storage)),
        }
    }

    /// Opens the store at `path` for writing; creates it where nothing is.
    ///
    /// # Errors
    /// As [`Store::open`] and [`Store::create`].
    pub fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        match Self::open(path, Access::Write) {
            Err(StoreError::NotAStore { found: NotAStore::Missing | NotAStore::NoManifest, .. }) => {
                Self::create_in(Box::new(create_dir(path)?))
            }
            result => result,
        }
    }

    /// Opens the store in `storage`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn with_storage(storage: Box<dyn Storage>, access: Access) -> Result<Self, StoreError> {
        let file_access = match access {
            Access::Read => FileAccess::Read,
            Access::Write => FileAccess::Write,
        };
        let manifest = ManifestLog::load(&*storage, file_access)?;
        if manifest.access == FileAccess::Read {
            return Ok(Self::new(storage, Access::Read, FileAccess::Read, manifest));
        }
        Ok(Self::new(storage, access, file_access, manifest))
    }

    /// Creates a store in `storage`, or opens the one that somebody else was faster to create.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_in(storage: Box<dyn Storage>) -> Result<Self, StoreError> {
        let manifest = {
            let _lock = take_lock(&*storage, LOCK_TIMEOUT)?;
            match ManifestLog::load(&*storage, FileAccess::Write) {
                Err(StoreError::NotAStore { found: NotAStore::NoManifest, .. }) => {
                    ManifestLog::create(&*storage, new_store_id(&*storage)?, Table::default())?
                }
                result => result?,
            }
        };
        Ok(Self::new(storage, Access::Write, FileAccess::Write, manifest))
    }

    fn new(
        storage: Box<dyn Storage>,
        access: Access,
        file_access: FileAccess,
        manifest: ManifestLog,
    ) -> Self {
        let shared = Shared {
            storage,
            access,
            files: DataFiles::new(file_access),
            manifest: RwLock::new(manifest),
            writer: Turn::default(),
            interrupted: OnceLock::new(),
            lock_timeout: LOCK_TIMEOUT,
            durable: AtomicBool::new(false),
            dirty: Mutex::default(),
            names_dirty: AtomicBool::new(true),
            poison: OnceLock::new(),
            swept: AtomicBool::new(false),
            changes: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The store for a process that was forked since it was opened, to be used instead of this one, whose locks threads
    /// may have that are not there any more. `None` in the process that opened it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn after_fork(&self) -> Result<Option<Self>, StoreError> {
        let shared = &self.shared;
        let storage = shared.storage.after_fork().map_err(|e| StoreError::io("open", self.path(), "", e))?;
        let Some(storage) = storage else { return Ok(None) };
        let store = Self::with_storage(storage, shared.access)?;
        store.set_durable(shared.durable.load(Ordering::Relaxed));
        if let Some(interrupted) = shared.interrupted.get() {
            store.set_interrupt(*interrupted);
        }
        Ok(Some(store))
    }

    /// Deletes what is at `path`, if it is a store of any release, or a plain file: the store's own files, and the
    /// folder if it is empty then. Does nothing where nothing is.
    ///
    /// # Errors
    /// `Locked`; `Io`.
    pub fn remove_all(path: &Path) -> Result<(), StoreError> {
        writer::remove_all(path, LOCK_TIMEOUT)
    }

    /// The path that the store was opened with.
    pub fn path(&self) -> &Path {
        self.shared.storage.path()
    }

    /// What can be done with the store: what it was opened for, or, as of the last refresh, reading only.
    pub fn access(&self) -> Access {
        match self.old_layout() {
            Some(_) => Access::Read,
            None => self.shared.access,
        }
    }

    /// The layout of the store, as of the last refresh, if NumPack 0.1 to 0.7 wrote it: then it can only be read.
    pub fn old_layout(&self) -> Option<TableLayout> {
        self.shared.manifest().upstream
    }

    /// The version of the format that the store is in, or would be if [`Store::old_layout`] were `None`.
    pub fn format_version(&self) -> u32 {
        crate::format::frame::VERSION
    }

    /// Asks for the changes that [`Store::refresh`] returns; until then they are not collected.
    pub fn track_changes(&self) {
        lock(&self.shared.changes).get_or_insert_default();
    }

    /// Asks all writers to tell when they write elements in place, until the guard is dropped: for those who keep
    /// copies of elements. Writes through mappings are never told.
    ///
    /// # Errors
    /// `Locked`; `Io`.
    pub fn watch(&self) -> Result<Box<dyn LockGuard>, StoreError> {
        let watched = self.shared.storage.watch(names::LOCK);
        watched.map_err(|source| StoreError::io("watch", self.path(), names::LOCK, source))
    }

    /// The file that changes with every commit; a new file takes its place now and then.
    pub fn manifest_path(&self) -> PathBuf {
        self.path().join(names::MANIFEST)
    }

    /// What the system knows about the store's folder.
    ///
    /// # Errors
    /// `Io`.
    pub fn stat(&self) -> Result<FileStat, StoreError> {
        self.shared.storage.stat_dir().map_err(|source| StoreError::io("stat", self.path(), "", source))
    }

    /// What the system knows about the file system that the store is on.
    ///
    /// # Errors
    /// `Io`.
    pub fn stat_fs(&self) -> Result<FsStat, StoreError> {
        let stat = self.shared.storage.stat_fs();
        stat.map_err(|source| StoreError::io("stat the file system of", self.path(), "", source))
    }

    /// Picks up the commits of others, and returns all changes since the last call, our own too, in order, if
    /// [`Store::track_changes`] was called before.
    ///
    /// # Errors
    /// `NotAStore` if the store is gone; `Format`; `Io`.
    pub fn refresh(&self) -> Result<Vec<Change>, StoreError> {
        self.shared.catch_up(&mut self.shared.manifest_mut(), true)?;
        Ok(lock(&self.shared.changes).as_mut().map(std::mem::take).unwrap_or_default())
    }

    /// The number of commits so far, as of the last refresh.
    pub fn generation(&self) -> Generation {
        self.shared.manifest().table.generation()
    }

    /// Number of arrays, as of the last refresh.
    pub fn len(&self) -> usize {
        self.shared.manifest().table.len()
    }

    /// Whether there is no array, as of the last refresh.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The arrays' names in the order of their first save, as of the last refresh.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.shared.manifest().table.names().cloned().collect()
    }

    /// Whether there is an array of this name, as of the last refresh.
    pub fn contains(&self, name: &str) -> bool {
        self.shared.manifest().table.contains(name)
    }

    /// The store's own attributes, as of the last refresh.
    pub fn attrs(&self) -> Attrs {
        Attrs::clone(self.shared.manifest().table.attrs())
    }

    /// How arrays are compressed that are made where nobody says how, as through a mount; as of the last refresh.
    pub fn default_compression(&self) -> Option<Compression> {
        self.shared.manifest().table.compression()
    }

    /// Picks up the commits of others; costs next to nothing when there are none.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn refresh_quietly(&self) -> Result<(), StoreError> {
        if self.shared.manifest().is_fresh() {
            return Ok(());
        }
        self.shared.catch_up(&mut self.shared.manifest_mut(), false)
    }

    /// The newest state of an array. Its data file is open already.
    ///
    /// # Errors
    /// `NotFound`; `DataFile`; as [`Store::refresh`].
    pub fn array(&self, name: &str) -> Result<Array, StoreError> {
        self.refresh_quietly()?;
        let mut seen = None;
        loop {
            let array = self.record(name)?;
            match array.pin() {
                // Somebody may have overwritten the array since the refresh, and have removed its file.
                Err(StoreError::DataFile { what: DataFileFault::Missing, .. })
                    if seen != Some(array.id()) =>
                {
                    seen = Some(array.id());
                    self.shared.catch_up(&mut self.shared.manifest_mut(), true)?;
                }
                result => return result.map(|()| array),
            }
        }
    }

    /// All arrays in the order of their first save. Their data files are not opened.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn arrays(&self) -> Result<Vec<Array>, StoreError> {
        self.refresh_quietly()?;
        let manifest = self.shared.manifest();
        let records = self.shared.whole(manifest.table.records())?;
        Ok(records
            .into_iter()
            .map(|record| Array::new(Arc::clone(&self.shared), Arc::clone(record)))
            .collect())
    }

    /// An array as of the last refresh. Its data file is not opened.
    ///
    /// # Errors
    /// `NotFound`; `Format` if its record is damaged.
    pub fn record(&self, name: &str) -> Result<Array, StoreError> {
        let record = self.shared.whole(self.shared.manifest().table.get(name))?.cloned();
        match record {
            Some(record) => Ok(Array::new(Arc::clone(&self.shared), record)),
            None => Err(StoreError::NotFound { store: self.path().to_owned(), array: name.to_owned() }),
        }
    }

    /// An empty file in the store's folder, open for reading and writing, that is gone with its last handle: for copies
    /// that are made to be read fast.
    ///
    /// # Errors
    /// `Io`.
    pub fn scratch_file(&self) -> Result<Arc<dyn StorageFile>, StoreError> {
        self.shared.new_file()
    }

    /// Lets those who wait for a lock ask `interrupted` some times a second whether they shall give up, with
    /// [`StoreError::Interrupted`]. Only the first call counts.
    pub fn set_interrupt(&self, interrupted: fn() -> bool) {
        let _ = self.shared.interrupted.set(interrupted);
    }

    /// Lets every later operation return only when it is on the disk, with all before it through this handle.
    /// [`Array::write_npy_at`] is none: [`Store::sync`] follows it.
    pub fn set_durable(&self, durable: bool) {
        self.shared.durable.store(durable, Ordering::Relaxed);
    }
}

impl Shared {
    fn manifest(&self) -> RwLockReadGuard<'_, ManifestLog> {
        self.manifest.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn manifest_mut(&self) -> RwLockWriteGuard<'_, ManifestLog> {
        self.manifest.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the commits of others into `manifest`. `thorough` asks the system instead of the shared word.
    fn catch_up(&self, manifest: &mut ManifestLog, thorough: bool) -> Result<(), StoreError> {
        if !thorough && manifest.is_fresh() {
            return Ok(());
        }
        if manifest.catch_up(&*self.storage, false, &mut |change| self.note_change(change))? {
            self.names_dirty.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Says which file it is that is damaged: a record is decoded, and found to be, only when it is asked for.
    fn whole<T>(&self, decoded: Result<T, FormatError>) -> Result<T, StoreError> {
        let path = || self.storage.path().join(names::MANIFEST);
        decoded.map_err(|source| StoreError::Format { path: path(), source })
    }

    /// An empty file that has no name yet.
    fn new_file(&self) -> Result<Arc<dyn StorageFile>, StoreError> {
        let file = self.storage.create_unnamed();
        file.map_err(|source| StoreError::io("create a file in", self.storage.path(), "", source))
    }

    /// Keeps a change for `refresh`, closes the files of versions that are gone, and forgets where there was room in
    /// those that others have written to.
    fn note_change(&self, change: Change) {
        match change.kind {
            ChangeKind::Removed => self.files.forget(change.id),
            ChangeKind::Resized | ChangeKind::Written if !change.is_own => {
                self.files.forget_space(change.id);
                if !self.storage.has_far_locks().unwrap_or(false)
                    && let Err(error) = self.files.forget_cached(change.id)
                {
                    ::log::warn!("{}: {error}", self.storage.path().join(&*change.name).display());
                }
            }
            _ => {}
        }
        if let Some(changes) = &mut *lock(&self.changes) {
            changes.push(change);
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path())
            .field("access", &self.access())
            .finish_non_exhaustive()
    }
}

fn open_dir(path: &Path) -> Result<DirStorage, StoreError> {
    DirStorage::open(path).map_err(|source| not_a_dir(path, "open", source))
}

fn create_dir(path: &Path) -> Result<DirStorage, StoreError> {
    DirStorage::create(path).map_err(|source| not_a_dir(path, "create", source))
}

fn not_a_dir(path: &Path, action: &'static str, source: io::Error) -> StoreError {
    let found = match source.kind() {
        io::ErrorKind::NotFound => NotAStore::Missing,
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => NotAStore::NotADirectory,
        _ => return StoreError::Io { action, path: path.to_owned(), source },
    };
    StoreError::NotAStore { path: path.to_owned(), found }
}

/// Takes the writers' lock of the store in `storage`.
fn take_lock(storage: &dyn Storage, timeout: Duration) -> Result<Box<dyn LockGuard>, StoreError> {
    wait_for_lock(storage, names::LOCK, timeout, None, |timeout| storage.lock(names::LOCK, timeout))
}

/// Takes a lock on `file` by `take`, which is told how long to wait, until `timeout` is over or `interrupted` says so.
fn wait_for_lock<T>(
    storage: &dyn Storage,
    file: &str,
    timeout: Duration,
    interrupted: Option<&fn() -> bool>,
    mut take: impl FnMut(Duration) -> io::Result<T>,
) -> Result<T, StoreError> {
    let mut left = timeout;
    loop {
        let now = if interrupted.is_some() { left.min(INTERRUPT_PERIOD) } else { left };
        let source = match take(now) {
            Ok(taken) => return Ok(taken),
            Err(source) => source,
        };
        if source.kind() != io::ErrorKind::WouldBlock {
            return Err(StoreError::io("lock", storage.path(), file, source));
        }
        left -= now;
        if left.is_zero() {
            return Err(StoreError::Locked {
                store: storage.path().to_owned(),
                waited: timeout,
                // To find it takes long; who does not wait comes again.
                holder: (!timeout.is_zero())
                    .then(|| crate::sys::lock::holder(&storage.path().join(file)))
                    .flatten(),
            });
        }
        if interrupted.is_some_and(|interrupted| interrupted()) {
            return Err(StoreError::Interrupted { store: storage.path().to_owned() });
        }
    }
}

/// A random identity, so that two stores are never taken for one.
fn new_store_id(storage: &dyn Storage) -> Result<[u8; crate::format::frame::STORE_ID_LEN], StoreError> {
    crate::sys::random_bytes()
        .map_err(|source| StoreError::io("draw an identity for", storage.path(), "", source))
}
