//! A storage that passes every call on to another one, until told to fail or to die at one of them.

use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use numpack::sys::{FileAccess, FileStat, FsStat, LockGuard, Map, SharedWord, Storage, StorageFile};

/// Counts the calls that change something, or make it durable, or lock; and can fail one, or die at one. Clones share
/// the count and the plan.
#[derive(Debug, Clone)]
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    faults: Faults,
}

/// What becomes of a write that its process does not survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastWrite {
    /// None of its bytes is written.
    Lost,
    /// The first half of its bytes is written.
    Torn,
}

/// What is to be done before and after a read.
type Around = Box<dyn FnOnce() + Send>;

#[derive(Clone, Default)]
struct Faults(Arc<Mutex<State>>);

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Faults").field(&self.state().plan).finish()
    }
}

#[derive(Default)]
struct State {
    calls: Vec<&'static str>,
    /// The call that failed, and its file.
    failed: Option<String>,
    plan: Plan,
    /// What is to be done around the next read of a file.
    around: Option<(String, [Around; 2])>,
    /// A file, and the part of it that the disk does not give any more.
    broken: Option<(String, Range<u64>)>,
}

#[derive(Debug, Default)]
enum Plan {
    #[default]
    Work,
    FailAt(usize, io::Error, LastWrite),
    FailNext(&'static str, io::Error),
    DieAt(usize, LastWrite),
    Dead,
}

/// What a counted call is to do.
enum Verdict {
    Do,
    /// Do the first half, and fail.
    Tear(io::Error),
}

impl FaultyStorage {
    /// Wraps `inner`; every call works.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        FaultyStorage { inner, faults: Faults::default() }
    }

    /// Names of the counted calls so far, the one that failed included.
    pub fn calls(&self) -> Vec<&'static str> {
        self.faults.state().calls.clone()
    }

    /// Lets the `n`-th counted call from the beginning (the first is 1) fail with `error` and do nothing.
    pub fn fail_at(&self, n: usize, error: io::Error) {
        self.faults.state().plan = Plan::FailAt(n, error, LastWrite::Lost);
    }

    /// Like [`FaultyStorage::fail_at`], but a write does its first half, as one that fills the disk may.
    pub fn fail_halfway_at(&self, n: usize, error: io::Error) {
        self.faults.state().plan = Plan::FailAt(n, error, LastWrite::Torn);
    }

    /// Lets the next call of this name fail with `error` and do nothing.
    pub fn fail_next(&self, call: &'static str, error: io::Error) {
        self.faults.state().plan = Plan::FailNext(call, error);
    }

    /// Lets the process die at the `n`-th counted call: it and all later calls, reading ones too, fail, and nothing
    /// more reaches the storage below.
    pub fn die_at(&self, n: usize, last_write: LastWrite) {
        self.faults.state().plan = Plan::DieAt(n, last_write);
    }

    /// Does things before and after the next read of the file `name` from behind its headers.
    pub fn around_next_read(
        &self,
        name: &str,
        before: impl FnOnce() + Send + 'static,
        after: impl FnOnce() + Send + 'static,
    ) {
        self.faults.state().around = Some((name.to_owned(), [Box::new(before), Box::new(after)]));
    }

    /// Lets reads of the file `name` fail that touch these bytes, as a disk with bad sectors does.
    pub fn break_sectors(&self, name: &str, bytes: Range<u64>) {
        self.faults.state().broken = Some((name.to_owned(), bytes));
    }

    /// The call that failed as planned, or was the last, and its file if that has a name: `write_at metadata.npkm`.
    pub fn failed_call(&self) -> Option<String> {
        self.faults.state().failed.clone()
    }

    /// Whether the planned death has happened.
    pub fn is_dead(&self) -> bool {
        matches!(self.faults.state().plan, Plan::Dead)
    }

    /// Whether the planned failure or death has happened, or there was none planned.
    pub fn is_done(&self) -> bool {
        let state = self.faults.state();
        matches!(state.plan, Plan::Work | Plan::Dead) && state.around.is_none()
    }

    fn file(&self, inner: Arc<dyn StorageFile>, name: &str) -> Arc<dyn StorageFile> {
        Arc::new(FaultyFile { inner, name: Mutex::new(name.to_owned()), faults: self.faults.clone() })
    }

    /// Counts a call that cannot be torn.
    fn count(&self, call: &'static str, name: &str) -> io::Result<()> {
        self.faults.count_whole(call, name)
    }
}

fn death() -> io::Error {
    io::Error::other("this process died, as planned")
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is locked")
    }

    fn check_alive(&self) -> io::Result<()> {
        if matches!(self.state().plan, Plan::Dead) { Err(death()) } else { Ok(()) }
    }

    fn count(&self, call: &'static str, name: &str) -> io::Result<Verdict> {
        let mut state = self.state();
        if matches!(state.plan, Plan::Dead) {
            return Err(death());
        }
        state.calls.push(call);
        let n = state.calls.len();
        let (error, last_write) = match mem::take(&mut state.plan) {
            Plan::FailAt(at, error, last_write) if at == n => (error, last_write),
            Plan::FailNext(of, error) if of == call => (error, LastWrite::Lost),
            Plan::DieAt(at, last_write) if at == n => {
                state.plan = Plan::Dead;
                (death(), last_write)
            }
            plan => {
                state.plan = plan;
                return Ok(Verdict::Do);
            }
        };
        state.failed = Some(format!("{call} {name}").trim_end().to_owned());
        if last_write == LastWrite::Torn { Ok(Verdict::Tear(error)) } else { Err(error) }
    }

    fn count_whole(&self, call: &'static str, name: &str) -> io::Result<()> {
        match self.count(call, name)? {
            Verdict::Do => Ok(()),
            Verdict::Tear(error) => Err(error),
        }
    }
}

/// The file of the storage below, after `f` gave it the name `name`.
fn give_name(
    file: &Arc<dyn StorageFile>,
    name: &str,
    f: impl FnOnce(&Arc<dyn StorageFile>) -> io::Result<()>,
) -> io::Result<()> {
    let any: &dyn std::any::Any = &**file;
    let file = any.downcast_ref::<FaultyFile>().expect("a file of a FaultyStorage");
    f(&file.inner)?;
    *file.name.lock().expect("no panic while it is locked") = name.to_owned();
    Ok(())
}

impl Storage for FaultyStorage {
    fn open(&self, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        self.faults.check_alive()?;
        Ok(self.file(self.inner.open(name, access)?, name))
    }

    fn create_unnamed(&self) -> io::Result<Arc<dyn StorageFile>> {
        self.count("create_unnamed", "")?;
        Ok(self.file(self.inner.create_unnamed()?, ""))
    }

    fn link(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        self.count("link", name)?;
        give_name(file, name, |file| self.inner.link(file, name))
    }

    fn unlink(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        self.count("unlink", name)?;
        give_name(file, "", |file| self.inner.unlink(file, name))
    }

    fn link_apart(&self, file: &Arc<dyn StorageFile>, folder: &str, name: &str) -> io::Result<()> {
        self.count("link_apart", name)?;
        give_name(file, name, |file| self.inner.link_apart(file, folder, name))
    }

    fn keep_apart(&self, from: &str, folder: &str, name: &str) -> io::Result<()> {
        self.count("keep_apart", name)?;
        self.inner.keep_apart(from, folder, name)
    }

    fn open_apart(&self, folder: &str, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        self.faults.check_alive()?;
        Ok(self.file(self.inner.open_apart(folder, name, access)?, name))
    }

    fn list_apart(&self, folder: &str) -> io::Result<Vec<String>> {
        self.faults.check_alive()?;
        self.inner.list_apart(folder)
    }

    fn rename_apart(&self, folder: &str, from: &str, to: &str) -> io::Result<()> {
        self.count("rename_apart", from)?;
        self.inner.rename_apart(folder, from, to)
    }

    fn claim_apart(&self, folder: &str) -> io::Result<Box<dyn std::any::Any + Send + Sync>> {
        self.count("claim_apart", folder)?;
        self.inner.claim_apart(folder)
    }

    fn remove_apart(&self, folder: &str, name: Option<&str>) -> io::Result<()> {
        self.count("remove_apart", name.unwrap_or(folder))?;
        self.inner.remove_apart(folder, name)
    }

    fn link_existing(&self, from: &str, to: &str) -> io::Result<()> {
        self.count("link_existing", to)?;
        self.inner.link_existing(from, to)
    }

    fn replace(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        self.count("replace", name)?;
        give_name(file, name, |file| self.inner.replace(file, name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.count("rename", to)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.count("remove", name)?;
        self.inner.remove(name)
    }

    fn stat(&self, name: &str) -> io::Result<FileStat> {
        self.faults.check_alive()?;
        self.inner.stat(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.faults.check_alive()?;
        self.inner.list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.count("sync_dir", "")?;
        self.inner.sync_dir()
    }

    /// The guard releases the lock also after the death, as the kernel would.
    fn lock(&self, name: &str, timeout: Duration) -> io::Result<Box<dyn LockGuard>> {
        self.count("lock", name)?;
        self.inner.lock(name, timeout)
    }

    fn sweep_temporaries(&self) -> io::Result<usize> {
        self.count("sweep_temporaries", "")?;
        self.inner.sweep_temporaries()
    }

    fn watch(&self, name: &str) -> io::Result<Box<dyn LockGuard>> {
        self.inner.watch(name)
    }

    fn stat_dir(&self) -> io::Result<FileStat> {
        self.inner.stat_dir()
    }

    fn stat_fs(&self) -> io::Result<FsStat> {
        self.inner.stat_fs()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn StorageFile>,
    /// The name that it was opened by or given last; empty if it has none.
    name: Mutex<String>,
    faults: Faults,
}

impl FaultyFile {
    fn name(&self) -> String {
        self.name.lock().expect("no panic while it is locked").clone()
    }
}

impl StorageFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.faults.check_alive()?;
        let name = self.name();
        let end = offset + buf.len() as u64;
        let is_broken =
            |(of, bytes): &(String, Range<u64>)| *of == name && offset < bytes.end && bytes.start < end;
        if self.faults.state().broken.as_ref().is_some_and(is_broken) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let planned = self.faults.state().around.take_if(|(of, _)| *of == name && offset >= 8192);
        let [before, after] =
            planned.map_or_else(|| [Box::new(|| ()) as Around, Box::new(|| ())], |(_, both)| both);
        before();
        let read = self.inner.read_at(buf, offset);
        after();
        read
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        match self.faults.count("write_at", &self.name())? {
            Verdict::Do => self.inner.write_at(data, offset),
            Verdict::Tear(error) => {
                self.inner.write_at(&data[..data.len() / 2], offset)?;
                Err(error)
            }
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.count_whole("set_len", &self.name())?;
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.faults.count_whole("reserve", &self.name())?;
        self.inner.reserve(len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        match self.faults.count("punch", &self.name())? {
            Verdict::Do => self.inner.punch(offset, len),
            Verdict::Tear(error) => {
                self.inner.punch(offset, len / 2)?;
                Err(error)
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.count_whole("sync_data", &self.name())?;
        self.inner.sync_data()
    }

    fn stat(&self) -> io::Result<FileStat> {
        self.faults.check_alive()?;
        self.inner.stat()
    }

    fn set_times(&self, atime: Option<SystemTime>, mtime: Option<SystemTime>) -> io::Result<()> {
        self.faults.count_whole("set_times", &self.name())?;
        self.inner.set_times(atime, mtime)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.faults.count_whole("set_mode", &self.name())?;
        self.inner.set_mode(mode)
    }

    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.faults.count_whole("set_owner", &self.name())?;
        self.inner.set_owner(uid, gid)
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Map> {
        self.faults.check_alive()?;
        self.inner.map(offset, len)
    }

    fn copy_from(&self, src: BorrowedFd<'_>, src_offset: u64, dst_offset: u64, len: u64) -> io::Result<u64> {
        match self.faults.count("copy_from", &self.name())? {
            Verdict::Do => self.inner.copy_from(src, src_offset, dst_offset, len),
            Verdict::Tear(error) => {
                self.inner.copy_from(src, src_offset, dst_offset, len / 2)?;
                Err(error)
            }
        }
    }

    /// Stores to the word are not counted: they reach the page cache in no time.
    fn word(&self, offset: usize, access: FileAccess) -> io::Result<Box<dyn SharedWord>> {
        self.faults.check_alive()?;
        self.inner.word(offset, access)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.fd()
    }
}
