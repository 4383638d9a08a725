//! Processes on one directory in memory, each with a storage of its own, between whose calls the model checker lets
//! others go on, and which can die at any of them.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use numpack::store::{Access, Store};
use numpack::sys::{
    FileAccess, FileLock, FileStat, FsStat, LockGuard, Map, SharedWord, Storage, StorageFile,
};
use shuttle::sync::{Condvar, Mutex};

use crate::common::MemStorage;

/// The directory, and what the kernel knows of it.
#[derive(Clone)]
pub struct Disk(Arc<Kernel>);

struct Kernel {
    files: MemStorage,
    /// Who has which locks: of lock files by name, of data files by inode.
    locks: Mutex<HashMap<String, Held>>,
    unlocked: Condvar,
    /// Loading it is where others may go on.
    turn: shuttle::sync::atomic::AtomicU64,
    clock: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Shared(u32),
    Alone,
}

/// One process: its storage. Clones are those of its threads.
#[derive(Clone)]
pub struct Process {
    disk: Disk,
    /// Calls that it survives.
    life: Arc<AtomicU64>,
}

impl Disk {
    pub fn new(files: MemStorage) -> Self {
        Disk(Arc::new(Kernel {
            files,
            locks: Mutex::default(),
            unlocked: Condvar::new(),
            turn: shuttle::sync::atomic::AtomicU64::new(0),
            clock: AtomicU64::new(0),
        }))
    }

    /// The time, which nobody has twice.
    pub fn now(&self) -> u64 {
        self.0.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub fn process(&self) -> Process {
        self.mortal(u64::MAX)
    }

    /// A process that is killed at its call number `n_calls`.
    pub fn mortal(&self, n_calls: u64) -> Process {
        Process { disk: self.clone(), life: Arc::new(AtomicU64::new(n_calls)) }
    }

    pub fn files(&self) -> &MemStorage {
        &self.0.files
    }

    fn take(&self, name: &str, lock: FileLock, wait: bool) -> io::Result<()> {
        let mut locks = self.0.locks.lock().unwrap();
        loop {
            let taken = match (locks.get(name), lock) {
                (None, FileLock::Exclusive) => Some(Held::Alone),
                (None, FileLock::Shared) => Some(Held::Shared(1)),
                (Some(Held::Shared(n)), FileLock::Shared) => Some(Held::Shared(n + 1)),
                _ => None,
            };
            if let Some(taken) = taken {
                locks.insert(name.to_owned(), taken);
                return Ok(());
            }
            if !wait {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // If nobody ever unlocks it, the model checker says that this is a deadlock.
            locks = self.0.unlocked.wait(locks).unwrap();
        }
    }

    fn release(&self, name: &str) {
        let mut locks = self.0.locks.lock().unwrap();
        match locks.remove(name).expect("it is locked") {
            Held::Shared(n) if n > 1 => drop(locks.insert(name.to_owned(), Held::Shared(n - 1))),
            _ => {}
        }
        drop(locks);
        self.0.unlocked.notify_all();
    }
}

impl Process {
    /// Opens the store for this process.
    pub fn open(&self, access: Access) -> Result<Store, numpack::store::StoreError> {
        Store::with_storage(Box::new(self.clone()), access)
    }

    pub fn is_dead(&self) -> bool {
        self.life.load(Ordering::SeqCst) == 0
    }

    /// Lets others go on, and maybe dies.
    fn step(&self) -> io::Result<()> {
        self.disk.0.turn.load(Ordering::SeqCst);
        let left =
            self.life.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1)));
        match left {
            Ok(0 | 1) => Err(io::Error::other("this process was killed")),
            _ => Ok(()),
        }
    }

    fn files(&self) -> io::Result<&MemStorage> {
        self.step()?;
        Ok(&self.disk.0.files)
    }

    fn file(&self, inner: Arc<dyn StorageFile>, locked: Option<String>) -> Arc<dyn StorageFile> {
        Arc::new(OpenFile { inner, process: self.clone(), locked })
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("life", &self.life).finish_non_exhaustive()
    }
}

fn inner(file: &Arc<dyn StorageFile>) -> &Arc<dyn StorageFile> {
    let any: &dyn std::any::Any = &**file;
    &any.downcast_ref::<OpenFile>().expect("a file of a Process").inner
}

impl Storage for Process {
    fn open(&self, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(self.files()?.open(name, access)?, None))
    }

    fn open_locked(&self, name: &str, lock: FileLock, timeout: Duration) -> io::Result<Arc<dyn StorageFile>> {
        let file = self.files()?.open(name, FileAccess::Write)?;
        let key = file.stat()?.ino.to_string();
        self.disk.take(&key, lock, !timeout.is_zero())?;
        Ok(self.file(file, Some(key)))
    }

    fn create_unnamed(&self) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(self.files()?.create_unnamed()?, None))
    }

    fn link(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        self.files()?.link(inner(file), name)
    }

    fn link_existing(&self, from: &str, to: &str) -> io::Result<()> {
        self.files()?.link_existing(from, to)
    }

    fn replace(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        self.files()?.replace(inner(file), name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files()?.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files()?.remove(name)
    }

    fn stat(&self, name: &str) -> io::Result<FileStat> {
        self.files()?.stat(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.files()?.list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.files()?.sync_dir()
    }

    fn lock(&self, name: &str, timeout: Duration) -> io::Result<Box<dyn LockGuard>> {
        self.step()?;
        self.disk.take(name, FileLock::Exclusive, !timeout.is_zero())?;
        let guard = Guard { disk: self.disk.clone(), name: name.to_owned() };
        // The file that has the intent.
        if self.files()?.stat(name).is_err() {
            let file = self.disk.0.files.create_unnamed()?;
            self.disk.0.files.link(&file, name)?;
        }
        Ok(Box::new(guard))
    }

    fn watch(&self, _name: &str) -> io::Result<Box<dyn LockGuard>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn is_watched(&self, _name: &str) -> io::Result<bool> {
        Ok(false)
    }

    fn sweep_temporaries(&self) -> io::Result<usize> {
        self.files()?.sweep_temporaries()
    }

    fn stat_dir(&self) -> io::Result<FileStat> {
        self.files()?.stat_dir()
    }

    fn stat_fs(&self) -> io::Result<FsStat> {
        self.files()?.stat_fs()
    }

    fn path(&self) -> &Path {
        self.disk.0.files.path()
    }
}

/// The kernel unlocks what a dead process had locked: dropping this says so, whoever does it.
struct Guard {
    disk: Disk,
    name: String,
}

impl LockGuard for Guard {
    fn is_current(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn is_watched(&self) -> bool {
        false
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.disk.release(&self.name);
    }
}

struct OpenFile {
    inner: Arc<dyn StorageFile>,
    process: Process,
    locked: Option<String>,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(key) = &self.locked {
            self.process.disk.release(key);
        }
    }
}

/// Bytes that change at once.
const ATOMIC_LEN: usize = 8;

impl StorageFile for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.process.step()?;
        self.inner.read_at(buf, offset)
    }

    /// In two parts, between which others go on, or the process dies.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.process.step()?;
        let half = data.len() / 2 / ATOMIC_LEN * ATOMIC_LEN;
        self.inner.write_at(&data[..half], offset)?;
        if half > 0 {
            self.process.step()?;
        }
        self.inner.write_at(&data[half..], offset + half as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.process.step()?;
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.reserve(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.process.step()?;
        self.inner.punch(offset, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.process.step()?;
        self.inner.sync_data()
    }

    fn stat(&self) -> io::Result<FileStat> {
        self.process.step()?;
        self.inner.stat()
    }

    fn set_times(&self, atime: Option<SystemTime>, mtime: Option<SystemTime>) -> io::Result<()> {
        self.inner.set_times(atime, mtime)
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Map> {
        self.process.step()?;
        self.inner.map(offset, len)
    }

    fn copy_from(&self, src: BorrowedFd<'_>, src_offset: u64, dst_offset: u64, len: u64) -> io::Result<u64> {
        self.process.step()?;
        self.inner.copy_from(src, src_offset, dst_offset, len)
    }

    fn word(&self, offset: usize, _access: FileAccess) -> io::Result<Box<dyn SharedWord>> {
        // No step: the store asks for it with a cell locked that the model checker knows nothing of.
        Ok(Box::new(Word {
            file: Arc::clone(&self.inner),
            offset: offset as u64,
            process: self.process.clone(),
        }))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Eight bytes of a file, as if it were mapped.
#[derive(Debug)]
struct Word {
    file: Arc<dyn StorageFile>,
    offset: u64,
    process: Process,
}

impl SharedWord for Word {
    fn load(&self) -> u64 {
        let _ = self.process.step();
        let mut bytes = [0; 8];
        self.file.read_at(&mut bytes, self.offset).expect("a file in memory can be read");
        u64::from_le_bytes(bytes)
    }

    fn store(&self, value: u64) {
        if self.process.step().is_ok() {
            // Does nothing where the file is open for reading.
            let _ = self.file.write_at(&value.to_le_bytes(), self.offset);
        }
    }
}
