//! The writers' lock: an exclusive open-file-description lock on byte 0 of the lock file.
//!
//! It dies with its process and also excludes other descriptions in the same process, which plain `fcntl` locks do
//! not. The lock file stays open, so that taking and releasing the lock is one system call each. The pure-Python
//! backend takes the same lock: `F_OFD_SETLK`, `F_WRLCK`, `SEEK_SET`, start 0, length 1.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, major, minor, openat, statat};

use super::LockGuard;
use super::fork;

// A commit takes tens of microseconds, a folding of the manifest milliseconds.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// The lock files that one storage has open, by name. There is one in practice.
///
/// Lock order: the table's mutex is never held while waiting for a file's lock.
#[derive(Debug, Default)]
pub(super) struct LockTable(Mutex<Vec<Arc<LockFile>>>);

impl LockTable {
    /// Takes the lock on `name` in the directory `dir`; see [`Storage::lock`](super::Storage::lock).
    pub(super) fn lock(&self, dir: &Arc<OwnedFd>, name: &str, timeout: Duration) -> io::Result<OfdGuard> {
        let mut deadline = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let (file, opened) = self.file(dir, name)?;
            if file.try_lock()? {
                let waited = deadline.is_some();
                let guard = OfdGuard { file };
                // Whoever removes a store removes its lock file last: it may have gone while this one waited.
                if !(opened || waited) || guard.is_current()? {
                    return Ok(guard);
                }
                continue;
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
        // NONBLOCK: opening a FIFO of that name must not wait for its other end.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = rustix::io::retry_on_intr(|| openat(dir, name, flags, Mode::from_raw_mode(0o666)))?;
        Ok(LockFile {
            fd,
            dir: Arc::clone(dir),
            name: name.to_owned(),
            forks,
            held: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        })
    }

    fn try_lock(&self) -> io::Result<bool> {
        if self.held.swap(true, Ordering::Acquire) {
            return Ok(false);
        }
        let locked = set_lock(self.fd.as_fd(), libc::F_WRLCK);
        if !matches!(locked, Ok(true)) {
            self.held.store(false, Ordering::Release);
        }
        locked
    }

    fn unlock(&self) {
        // In a forked child the lock is still the parent's, and not ours to release.
        if fork::generation().is_ok_and(|forks| forks == self.forks) {
            // The whole lock of a description cannot fail to be released; were it to, closing the file would do it.
            if set_lock(self.fd.as_fd(), libc::F_UNLCK).is_err() {
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
}

impl LockGuard for OfdGuard {
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
        self.file.unlock();
    }
}

/// Sets or clears the lock; `false` if another description has it.
#[expect(unsafe_code, reason = "neither std nor rustix has open-file-description locks")]
fn set_lock(fd: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<bool> {
    let range = libc::flock {
        l_type: kind as libc::c_short, // F_RDLCK, F_WRLCK, F_UNLCK are 0, 1, 2
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0, // must be 0 for open-file-description locks
    };
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

/// Finds a process that holds the lock on the file at `path`, for an error message.
///
/// It looks through all of `/proc`, and sees other users' processes only as root. A holder elsewhere (another host,
/// another pid namespace) is not found.
pub fn holder(path: &Path) -> Option<u32> {
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
