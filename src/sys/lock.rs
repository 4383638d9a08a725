//! The writers' lock: an exclusive open-file-description lock on byte 0 of the lock file.
//!
//! Watchers, who keep copies of what is in the data files, share a lock on byte 1. A writer asks for both bytes at
//! once, and is content with byte 0 where it cannot have both: so it learns without a further call that it is
//! watched.
//!
//! It dies with its process and also excludes other descriptions in the same process, which plain `fcntl` locks do
//! not. The lock file stays open, so that taking and releasing the lock is one system call each. The pure-Python
//! backend takes the same lock: `F_OFD_SETLK`, `F_WRLCK`, `SEEK_SET`, start 0, length 2, or 1. Where it does not keep
//! out everybody, a [`claim`] goes with it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, major, minor, openat, statat};

pub use super::claim::name_of as claim_name;
use super::claim::{self, Host};
use super::fork;
use super::{FileLock, FileStat, LockGuard};

// A commit takes tens of microseconds, a folding of the manifest milliseconds.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// A watcher that a writer keeps waiting gives up after about 30 s.
const MAX_WATCH_ATTEMPTS: usize = 6000;

const WRITER_BYTE: libc::off_t = 0;
const WATCHER_BYTE: libc::off_t = 1;
const WRITER_AND_WATCHER_LEN: libc::off_t = 2;

/// The byte of any other file that stands for the whole of it.
const FILE_BYTE: libc::off_t = 0;

/// The lock files that one storage has open, by name. There is one in practice.
///
/// Lock order: the table's mutex is never held while waiting for a file's lock.
#[derive(Debug, Default)]
pub(super) struct LockTable(Mutex<Vec<Arc<LockFile>>>);

impl LockTable {
    /// Takes the lock on `name` in the directory `dir`; see [`Storage::lock`](super::Storage::lock). For `host`, if it
    /// does not keep out others.
    pub(super) fn lock(
        &self,
        dir: &Arc<OwnedFd>,
        name: &str,
        host: Option<&Host>,
        timeout: Duration,
    ) -> io::Result<OfdGuard> {
        let mut deadline = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let (file, opened) = self.file(dir, name)?;
            if let Some(is_watched) = file.try_lock()? {
                let waited = deadline.is_some();
                let mut guard = OfdGuard { file, is_watched, is_claimed: false };
                // Whoever removes a store removes its lock file last: it may have gone while this one waited.
                if (opened || waited || host.is_some()) && !guard.is_current()? {
                    continue;
                }
                let Some(host) = host else { return Ok(guard) };
                if host.claim(dir, name)? {
                    guard.is_claimed = true;
                    // Others watch as well, and are not seen.
                    guard.is_watched = true;
                    return Ok(guard);
                }
            }
            let now = Instant::now();
            let deadline = *deadline.get_or_insert_with(|| now.checked_add(timeout));
            let left = deadline.map_or(LONGEST_PAUSE, |deadline| deadline.saturating_duration_since(now));
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another writer holds the lock"));
            }
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether somebody has the watchers' lock on `name`; see [`Storage::is_watched`](super::Storage::is_watched).
    pub(super) fn is_watched(&self, dir: &Arc<OwnedFd>, name: &str) -> io::Result<bool> {
        let (file, _) = self.file(dir, name)?;
        // Of two that exclude each other, the kernel names the one that is there. A writer that has both bytes excludes
        // watchers; that this process is the writer excludes nothing here, and then it has asked for both.
        let found = test_lock(file.fd.as_fd(), libc::F_WRLCK, WATCHER_BYTE, 1)?;
        Ok(libc::c_int::from(found) == libc::F_RDLCK)
    }

    /// The open lock file, and whether it was opened just now.
    fn file(&self, dir: &Arc<OwnedFd>, name: &str) -> io::Result<(Arc<LockFile>, bool)> {
        let forks = fork::generation()?;
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| file.forks == forks && !file.stale.load(Ordering::Relaxed));
        if let Some(file) = files.iter().find(|file| file.name == name) {
            return Ok((Arc::clone(file), false));
        }
        let file = Arc::new(LockFile::open(dir, name, forks)?);
        files.push(Arc::clone(&file));
        Ok((file, true))
    }
}

/// Opens a lock file, which is created if it is missing. Locking works on pipes and devices as well, but they keep
/// nothing.
fn open_lock_file(dir: &OwnedFd, name: &str, access: OFlags) -> io::Result<OwnedFd> {
    // NONBLOCK: opening a FIFO of that name must not wait for its other end.
    let flags = access | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::io::retry_on_intr(|| openat(dir, name, flags, Mode::from_raw_mode(0o666)))?;
    if !FileStat::from(fstat(&fd)?).is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(fd)
}

/// One open description of a lock file.
#[derive(Debug)]
struct LockFile {
    fd: OwnedFd,
    dir: Arc<OwnedFd>,
    name: String,
    /// [`fork::generation`] at the opening. A later process shares the lock with its parent and opens its own.
    forks: u64,
    /// Some thread has the lock: the description is one owner to the kernel, so it would give it to two threads.
    held: AtomicBool,
    /// The name belongs to another file now.
    stale: AtomicBool,
}

impl LockFile {
    fn open(dir: &Arc<OwnedFd>, name: &str, forks: u64) -> io::Result<LockFile> {
        let fd = open_lock_file(dir, name, OFlags::RDWR)?;
        Ok(LockFile {
            fd,
            dir: Arc::clone(dir),
            name: name.to_owned(),
            forks,
            held: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        })
    }

    /// Takes the lock and says whether somebody watches; `None` if somebody else has it.
    fn try_lock(&self) -> io::Result<Option<bool>> {
        if self.held.swap(true, Ordering::Acquire) {
            return Ok(None);
        }
        let try_range = |len| set_lock(self.fd.as_fd(), libc::F_WRLCK, WRITER_BYTE, len);
        let locked = match try_range(WRITER_AND_WATCHER_LEN) {
            Ok(true) => Ok(Some(false)),
            Ok(false) => try_range(1).map(|locked| locked.then_some(true)),
            Err(error) => Err(error),
        };
        if !matches!(locked, Ok(Some(_))) {
            self.held.store(false, Ordering::Release);
        }
        locked
    }

    /// In a forked child the lock is still the parent's, and not ours to release.
    fn is_ours(&self) -> bool {
        fork::generation().is_ok_and(|forks| forks == self.forks)
    }

    fn unlock(&self) {
        if self.is_ours() {
            // The whole lock of a description cannot fail to be released; were it to, closing the file would do it.
            if set_lock(self.fd.as_fd(), libc::F_UNLCK, WRITER_BYTE, WRITER_AND_WATCHER_LEN).is_err() {
                self.stale.store(true, Ordering::Relaxed);
            }
            self.held.store(false, Ordering::Release);
        }
    }
}

/// The lock, until dropped.
#[derive(Debug)]
pub(super) struct OfdGuard {
    file: Arc<LockFile>,
    is_watched: bool,
    /// There is a claim to be ended before the lock.
    is_claimed: bool,
}

/// The watchers' lock, until dropped.
#[derive(Debug)]
pub(super) struct WatchGuard {
    _fd: OwnedFd,
}

impl LockGuard for WatchGuard {
    fn is_current(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn is_watched(&self) -> bool {
        true
    }
}

/// Takes the watchers' lock on `name` in the directory `dir`; see [`Storage::watch`](super::Storage::watch).
pub(super) fn watch(dir: &Arc<OwnedFd>, name: &str) -> io::Result<WatchGuard> {
    let fd = open_lock_file(dir, name, OFlags::RDONLY)?;
    // A writer has both bytes for the time of a commit.
    let mut pause = FIRST_PAUSE;
    for _ in 0..MAX_WATCH_ATTEMPTS {
        if set_lock(fd.as_fd(), libc::F_RDLCK, WATCHER_BYTE, 1)? {
            return Ok(WatchGuard { _fd: fd });
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "a writer holds the lock"))
}

impl LockGuard for OfdGuard {
    fn is_watched(&self) -> bool {
        self.is_watched
    }

    fn is_current(&self) -> io::Result<bool> {
        let file = &self.file;
        let ours = fstat(&file.fd)?;
        let current = match statat(&file.dir, &file.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino),
            Err(rustix::io::Errno::NOENT) => false,
            Err(error) => return Err(error.into()),
        };
        file.stale.store(!current, Ordering::Relaxed);
        Ok(current)
    }
}

impl Drop for OfdGuard {
    fn drop(&mut self) {
        // In a forked child it is the parent's.
        if self.is_claimed
            && self.file.is_ours()
            && let Err(error) = claim::unclaim(&self.file.dir, &self.file.name)
        {
            // Whoever writes next on this host takes it over; others wait until then.
            log::warn!("{} cannot be removed: {error}", claim::name_of(&self.file.name));
        }
        self.file.unlock();
    }
}

/// Locks a file as a whole, and waits for that no longer than `timeout`.
pub(super) fn lock_file(fd: BorrowedFd<'_>, kind: FileLock, timeout: Duration) -> io::Result<()> {
    let kind = match kind {
        FileLock::Shared => libc::F_RDLCK,
        FileLock::Exclusive => libc::F_WRLCK,
    };
    let mut deadline = None;
    let mut pause = FIRST_PAUSE;
    while !set_lock(fd, kind, FILE_BYTE, 1)? {
        let now = Instant::now();
        let deadline = *deadline.get_or_insert_with(|| now.checked_add(timeout));
        let left = deadline.map_or(LONGEST_PAUSE, |deadline| deadline.saturating_duration_since(now));
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "somebody else has the file locked"));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Ends the lock of [`lock_file`].
pub(super) fn unlock_file(fd: BorrowedFd<'_>) {
    // It cannot fail where the lock is; and closing the file ends it as well.
    let _ = set_lock(fd, libc::F_UNLCK, FILE_BYTE, 1);
}

/// The kind of a lock of another description that excludes this one; `F_UNLCK` if there is none.
#[expect(unsafe_code, reason = "neither std nor rustix has open-file-description locks")]
fn test_lock(fd: BorrowedFd<'_>, kind: libc::c_int, start: libc::off_t, len: libc::off_t) -> io::Result<i16> {
    let mut range = lock_range(kind, start, len);
    // SAFETY: `fd` is open while it is borrowed, and `range` outlives the call, which writes a lock there.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) } == 0 {
        return Ok(range.l_type);
    }
    Err(io::Error::last_os_error())
}

fn lock_range(kind: libc::c_int, start: libc::off_t, len: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short, // F_RDLCK, F_WRLCK, F_UNLCK are 0, 1, 2
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0, // must be 0 for open-file-description locks
    }
}

/// Sets or clears the lock on `len` bytes from `start`; `false` if another description has it.
#[expect(unsafe_code, reason = "neither std nor rustix has open-file-description locks")]
fn set_lock(fd: BorrowedFd<'_>, kind: libc::c_int, start: libc::off_t, len: libc::off_t) -> io::Result<bool> {
    let range = lock_range(kind, start, len);
    loop {
        // SAFETY: `fd` is open while it is borrowed, and `range` outlives the call, which only reads it.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => return Ok(false),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Who holds a lock, for an error message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process of this host.
    Process(u32),
    /// Another host, or another mount of this one: its name, and the file that says so.
    Host(String, PathBuf),
}

/// Finds who holds the lock on the file at `path`.
pub fn holder(path: &Path) -> Option<Holder> {
    process_holding(path).map(Holder::Process).or_else(|| {
        let host = claim::holder(path)?;
        Some(Holder::Host(host, path.with_file_name(claim::name_of(path.file_name()?.to_str()?))))
    })
}

/// Finds a process that holds the lock on the file at `path`.
///
/// It looks through all of `/proc`, and sees other users' processes only as root. A holder elsewhere (another host,
/// another pid namespace) is not found.
fn process_holding(path: &Path) -> Option<u32> {
    let lock_file = fs::symlink_metadata(path).ok()?;
    let mut elsewhere = None;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // fdinfo, not fd: following a link there could wait for a file system that does not answer.
        let Ok(infos) = fs::read_dir(process.path().join("fdinfo")) else {
            continue;
        };
        for info in infos.flatten() {
            let Ok(text) = fs::read_to_string(info.path()) else {
                continue;
            };
            for (dev, ino) in text.lines().filter_map(write_lock) {
                if ino == lock_file.ino() {
                    if dev == (major(lock_file.dev()), minor(lock_file.dev())) {
                        return Some(pid);
                    }
                    elsewhere.get_or_insert(pid);
                }
            }
        }
    }
    // btrfs shows the device of the whole file system here, and stat(2) that of the subvolume.
    elsewhere
}

/// Device and inode in a line such as `lock: 1: OFDLCK  ADVISORY  WRITE -1 08:01:1234 0 0` (man 5 proc, "fdinfo").
fn write_lock(line: &str) -> Option<((u32, u32), u64)> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
    if words.next()? != "OFDLCK" || words.nth(1)? != "WRITE" {
        return None;
    }
    let mut id = words.nth(1)?.split(':');
    let major = u32::from_str_radix(id.next()?, 16).ok()?;
    let minor = u32::from_str_radix(id.next()?, 16).ok()?;
    Some(((major, minor), id.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{DirStorage, Storage};
    use std::process;
    use tempfile::TempDir;

    const NO_WAIT: Duration = Duration::ZERO;
    const NAME: &str = "lock";

    fn storages() -> (TempDir, DirStorage, DirStorage) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = || DirStorage::open(dir.path()).expect("opens");
        let (one, other) = (open(), open());
        (dir, one, other)
    }

    fn is_held(storage: &DirStorage) -> bool {
        match storage.lock(NAME, NO_WAIT) {
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs `child` in a forked process, and returns its answer.
    #[expect(unsafe_code, reason = "std cannot fork")]
    fn in_fork(child: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child only makes system calls and allocates, which glibc allows after a fork, and leaves
        // without running anything of the test harness.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let answer = child();
            // SAFETY: ends this process and touches no memory.
            unsafe { libc::_exit(i32::from(answer)) }
        }
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status), "the child was killed");
        libc::WEXITSTATUS(status) == 1
    }

    #[test]
    fn two_storages_of_one_process_exclude_each_other() {
        let (_dir, one, other) = storages();
        let guard = one.lock(NAME, NO_WAIT).expect("locks");
        assert!(is_held(&other));
        assert!(is_held(&one));
        drop(guard);
        let guard = other.lock(NAME, NO_WAIT).expect("locks");
        assert!(is_held(&one));
        drop(guard);
        assert!(!is_held(&one));
    }

    #[test]
    fn timeout_is_waited_for_and_named() {
        let (_dir, one, other) = storages();
        let _guard = one.lock(NAME, NO_WAIT).expect("locks");
        let start = Instant::now();
        let error = other.lock(NAME, Duration::from_millis(30)).err().expect("held");
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(error.to_string(), "another writer holds the lock");
    }

    #[test]
    fn endless_timeout_ends_with_the_lock() {
        let (_dir, one, other) = storages();
        let guard = one.lock(NAME, Duration::MAX).expect("locks");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| other.lock(NAME, Duration::MAX).map(drop));
            drop(guard);
            waiting.join().expect("no panic").expect("locks");
        });
    }

    #[test]
    fn threads_take_turns() {
        let (_dir, one, other) = storages();
        let inside = AtomicBool::new(false);
        thread::scope(|scope| {
            for storage in [&one, &other, &one, &other] {
                let inside = &inside;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let guard = storage.lock(NAME, Duration::from_secs(60)).expect("locks");
                        assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
                        assert!(inside.swap(false, Ordering::SeqCst));
                        drop(guard);
                    }
                });
            }
        });
    }

    #[test]
    fn forked_child_is_another_writer() {
        let (_dir, one, _) = storages();
        let guard = one.lock(NAME, NO_WAIT).expect("locks");
        assert!(in_fork(|| is_held(&one)), "the child must not share its parent's lock");
        assert!(in_fork(|| {
            drop(guard);
            is_held(&one)
        }));
    }

    #[test]
    fn child_that_drops_an_inherited_guard_leaves_the_lock_alone() {
        let (_dir, one, other) = storages();
        let mut guard = Some(one.lock(NAME, NO_WAIT).expect("locks"));
        in_fork(|| guard.take().is_some());
        assert!(is_held(&other));
        drop(guard);
        assert!(!is_held(&other));
    }

    #[test]
    fn lock_ends_with_its_process() {
        let (_dir, one, other) = storages();
        assert!(!is_held(&one));
        assert!(in_fork(|| {
            std::mem::forget(one.lock(NAME, NO_WAIT));
            is_held(&other)
        }));
        assert!(!is_held(&other));
    }

    #[test]
    fn removed_lock_file_is_noticed() {
        let (dir, one, other) = storages();
        assert!(!is_held(&one));
        fs::remove_file(dir.path().join(NAME)).expect("removes");
        let stale = one.lock(NAME, NO_WAIT).expect("locks what nobody else can find");
        let _guard = other.lock(NAME, NO_WAIT).expect("locks the new file");
        assert!(!stale.is_current().expect("stat"));
        drop(stale);
        assert!(is_held(&one), "the next lock is on the new file");
    }

    #[test]
    fn whoever_waited_for_a_removed_lock_file_locks_the_new_one() {
        let (dir, one, other) = storages();
        assert!(!is_held(&other));
        let guard = one.lock(NAME, NO_WAIT).expect("locks");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let guard = other.lock(NAME, Duration::from_secs(60)).expect("locks");
                guard.is_current().expect("stat")
            });
            fs::remove_file(dir.path().join(NAME)).expect("removes");
            drop(guard);
            // Where the other thread came too late to wait, it has locked the removed file, and says so.
            let waited = waiting.join().expect("no panic");
            assert_eq!(waited, dir.path().join(NAME).exists());
        });
    }

    #[test]
    fn lock_file_is_never_a_link() {
        let (dir, one, _) = storages();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(NAME)).expect("links");
        let error = one.lock(NAME, NO_WAIT).err().expect("a symbolic link");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn holder_is_the_process_with_the_lock() {
        let (dir, one, _) = storages();
        let path = dir.path().join(NAME);
        assert_eq!(holder(&path), None);
        let guard = one.lock(NAME, NO_WAIT).expect("locks");
        assert_eq!(holder(&path), Some(Holder::Process(process::id())));
        drop(guard);
        assert_eq!(holder(&path), None);
    }

    #[test]
    fn only_write_locks_of_descriptions_are_read_from_fdinfo() {
        let lock = "lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:1f:18446744073709551615 0 0";
        assert_eq!(write_lock(lock), Some(((0xfe, 0x1f), u64::MAX)));
        for other in [
            "",
            "lock:",
            "pos:\t0",
            "lock:\t1: OFDLCK ADVISORY  READ -1 08:01:12 0 0",
            "lock:\t1: POSIX  ADVISORY  WRITE 77 08:01:12 0 EOF",
            "lock:\t1: FLOCK  ADVISORY  WRITE 77 08:01:12 0 EOF",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 08:01",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 x:01:12 0 0",
        ] {
            assert_eq!(write_lock(other), None, "{other:?}");
        }
    }
}
