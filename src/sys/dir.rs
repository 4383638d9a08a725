//! The storage on disk: one directory, held open, so that it stays the same one when it is renamed.

use std::any::Any;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, fstatvfs, linkat, mkdirat,
    openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};

use super::claim::Host;
use super::file::{DirFile, Temporary};
use super::fork;
use super::lock::{self, LockTable};
use super::netfs::{LockReach, Place};
use super::storage::check_name;
use super::{FileAccess, FileLock, FileStat, FsStat, LockGuard, Storage, StorageFile, netfs, random_bytes};

const TEMPORARY_PREFIX: &str = "tmp_";
const TEMPORARY_SUFFIX: &str = ".npkd";
const TEMPORARY_ID_LEN: usize = 16; // hexadecimal digits

/// Where a lock does not tell whether the writer of a temporary is alive, it is after a day without a write.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// New files: what the umask leaves of it.
const NEW_FILE_MODE: u32 = 0o666;
/// New folders within: files that were never shown to others are in them.
const NEW_FOLDER_MODE: u32 = 0o700;

/// A [`Storage`] over a directory on disk.
///
/// Unnamed files are `O_TMPFILE`s, which vanish with their process. Where the file system has none, they are named
/// `tmp_<16 hexadecimal digits>.npkd` and locked (`flock`) by their writer;
/// [`sweep_temporaries`](Storage::sweep_temporaries) removes those that nobody locks.
#[derive(Debug)]
pub struct DirStorage {
    dir: Arc<OwnedFd>,
    path: PathBuf,
    /// [`fork::generation`] at the opening.
    forks: u64,
    locks: LockTable,
    /// The file system makes files without a name, as far as is known.
    has_unnamed: AtomicBool,
    /// Temporaries were swept before the first one was made.
    has_swept: AtomicBool,
    place: OnceLock<Place>,
    /// This host, where locks do not keep out the others.
    host: OnceLock<Host>,
}

/// Whether `/proc` is there, through which files without a name are given one.
fn has_proc() -> bool {
    static HAS_PROC: OnceLock<bool> = OnceLock::new();
    *HAS_PROC.get_or_init(|| Path::new("/proc/self/fd").exists())
}

impl DirStorage {
    /// Opens an existing directory; `path` itself may be a symbolic link to one.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `PermissionDenied`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = retry_on_intr(|| openat(CWD, path, flags, Mode::empty()))?;
        DirStorage::of(Arc::new(dir), path.to_path_buf())
    }

    fn of(dir: Arc<OwnedFd>, path: PathBuf) -> io::Result<Self> {
        Ok(DirStorage {
            dir,
            path,
            forks: fork::generation()?,
            locks: LockTable::default(),
            has_unnamed: AtomicBool::new(true),
            has_swept: AtomicBool::new(false),
            place: OnceLock::new(),
            host: OnceLock::new(),
        })
    }

    /// Where the directory is.
    fn place(&self) -> io::Result<Place> {
        match self.place.get() {
            Some(place) => Ok(*place),
            None => netfs::place(&self.dir).map(|place| *self.place.get_or_init(|| place)),
        }
    }

    /// This host, if locks do not keep out the others.
    fn claiming_host(&self) -> io::Result<Option<&Host>> {
        if self.place()?.locks == LockReach::Everybody {
            return Ok(None);
        }
        if let Some(host) = self.host.get() {
            return Ok(Some(host));
        }
        let host = Host::this()?;
        Ok(Some(self.host.get_or_init(|| host)))
    }

    /// Opens a directory, making it and its parents where they are missing.
    pub fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        DirStorage::open(path)
    }

    fn create_temporary(&self) -> io::Result<DirFile> {
        loop {
            let name = temporary_name()?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = match openat(&self.dir, &name, flags, Mode::from_raw_mode(NEW_FILE_MODE)) {
                Ok(fd) => fd,
                Err(Errno::EXIST | Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let temporary = Temporary::new(Arc::clone(&self.dir), name)?;
            lock_whole(fd.as_fd(), FlockOperation::LockExclusive)?;
            // A sweep may have been faster than the lock, and have removed the name.
            if fstat(&fd)?.st_nlink > 0 {
                return Ok(DirFile::new(fd, Some(temporary)));
            }
            temporary.keep();
        }
    }

    /// Names a temporary file `name` in the folder `dir`, where it must be free.
    fn rename_new(&self, temporary: &str, dir: &OwnedFd, name: &str) -> io::Result<()> {
        match renameat_with(&self.dir, temporary, dir, name, RenameFlags::NOREPLACE) {
            // NFS and 9P know no flags of rename(2), but have hard links.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            result => return Ok(result?),
        }
        match linkat(&self.dir, temporary, dir, name, AtFlags::empty()) {
            Ok(()) => Ok(unlinkat(&self.dir, temporary, AtFlags::empty())?),
            // Neither: a look before the jump must do, and the writers' lock keeps others from jumping.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST.into()),
                    Err(Errno::NOENT) => Ok(renameat(&self.dir, temporary, dir, name)?),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a file of [`Storage::create_unnamed`] its name in the folder `dir`.
    fn link_in(&self, file: &Arc<dyn StorageFile>, dir: &OwnedFd, name: &str) -> io::Result<()> {
        let file = own_file(file)?;
        let mut temporary = file.temporary();
        match temporary.as_ref() {
            Some(named) => self.rename_new(named.name(), dir, name)?,
            None => link_unnamed(file, dir, name)?,
        }
        if let Some(named) = temporary.take() {
            named.keep();
        }
        Ok(())
    }

    /// Opens a folder within the directory, which is made if it is missing.
    fn make_folder(&self, folder: &str) -> io::Result<OwnedFd> {
        check_name(folder)?;
        match mkdirat(&self.dir, folder, Mode::from_raw_mode(NEW_FOLDER_MODE)) {
            Ok(()) => self.sync_dir()?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.open_folder(folder)
    }

    fn open_folder(&self, folder: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| openat(&self.dir, folder, flags, Mode::empty()))?)
    }

    /// Lets `make` give something a new temporary name, and renames that to `name`.
    fn replace_via(
        &self,
        name: &str,
        mut make: impl FnMut(&str) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        let temporary = loop {
            let candidate = temporary_name()?;
            match make(&candidate) {
                Ok(()) => break Temporary::new(Arc::clone(&self.dir), candidate)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        };
        renameat(&self.dir, temporary.name(), &self.dir, name)?;
        // Dropping `temporary` removes the name if it is still there: rename(2) between two names of one file does
        // nothing.
        Ok(())
    }
}

impl AsFd for DirStorage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Storage for DirStorage {
    fn open(&self, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(DirFile::new(open_file(&self.dir, name, access)?, None)))
    }

    fn open_locked(&self, name: &str, lock: FileLock, timeout: Duration) -> io::Result<Arc<dyn StorageFile>> {
        let fd = open_file(&self.dir, name, FileAccess::Write)?;
        Ok(Arc::new(DirFile::locked(fd, lock, timeout)?))
    }

    fn create_unnamed(&self) -> io::Result<Arc<dyn StorageFile>> {
        if self.has_unnamed.load(Ordering::Relaxed) && has_proc() {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            match retry_on_intr(|| openat(&self.dir, ".", flags, Mode::from_raw_mode(NEW_FILE_MODE))) {
                Ok(fd) => return Ok(Arc::new(DirFile::new(fd, None))),
                // What file systems and kernels without O_TMPFILE answer (man 2 open, "BUGS").
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !self.has_swept.swap(true, Ordering::Relaxed) {
            // Those of writers that died before they had the lock. What cannot be removed is in nobody's way.
            let _ = self.sweep_temporaries();
        }
        let file = self.create_temporary()?;
        // Remembered only after a success: a full or removed directory says nothing about the file system.
        self.has_unnamed.store(false, Ordering::Relaxed);
        Ok(Arc::new(file))
    }

    fn link(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.link_in(file, &self.dir, name)
    }

    fn unlink(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        check_name(name)?;
        let file = own_file(file)?;
        // A file that had a name and lost it can be given none any more (man 2 linkat). It gets a temporary one.
        lock_whole(file.as_fd(), FlockOperation::LockExclusive)?;
        let temporary = loop {
            let candidate = temporary_name()?;
            match renameat_with(&self.dir, name, &self.dir, &candidate, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    renameat(&self.dir, name, &self.dir, &candidate)?;
                    break candidate;
                }
                result => {
                    result?;
                    break candidate;
                }
            }
        };
        *file.temporary() = Some(Temporary::new(Arc::clone(&self.dir), temporary)?);
        Ok(())
    }

    fn link_apart(&self, file: &Arc<dyn StorageFile>, folder: &str, name: &str) -> io::Result<()> {
        check_name(name)?;
        let dir = self.make_folder(folder)?;
        file.sync_data()?;
        self.link_in(file, &dir, name)?;
        sync_folder(&dir)
    }

    fn keep_apart(&self, from: &str, folder: &str, name: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(name)?;
        let dir = self.make_folder(folder)?;
        linkat(&self.dir, from, &dir, name, AtFlags::empty())?;
        sync_folder(&dir)
    }

    fn open_apart(&self, folder: &str, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        check_name(folder)?;
        let fd = open_file(&self.open_folder(folder)?, name, access)?;
        Ok(Arc::new(DirFile::new(fd, None)))
    }

    fn list_apart(&self, folder: &str) -> io::Result<Vec<String>> {
        check_name(folder)?;
        names_in(&self.open_folder(folder)?)
    }

    fn rename_apart(&self, folder: &str, from: &str, to: &str) -> io::Result<()> {
        check_name(folder)?;
        check_name(from)?;
        check_name(to)?;
        let dir = self.open_folder(folder)?;
        renameat(&dir, from, &dir, to)?;
        sync_folder(&dir)
    }

    fn claim_apart(&self, folder: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        let dir = self.make_folder(folder)?;
        lock_whole(dir.as_fd(), FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(Claim { dir, process: std::process::id() }))
    }

    fn remove_apart(&self, folder: &str, name: Option<&str>) -> io::Result<()> {
        check_name(folder)?;
        let Some(name) = name else { return Ok(unlinkat(&self.dir, folder, AtFlags::REMOVEDIR)?) };
        check_name(name)?;
        Ok(unlinkat(&self.open_folder(folder)?, name, AtFlags::empty())?)
    }

    fn link_existing(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        match linkat(&self.dir, from, &self.dir, to, AtFlags::empty()) {
            Err(Errno::EXIST) => {}
            result => return Ok(result?),
        }
        self.replace_via(to, |temporary| linkat(&self.dir, from, &self.dir, temporary, AtFlags::empty()))
    }

    fn replace(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        check_name(name)?;
        let file = own_file(file)?;
        let mut temporary = file.temporary();
        match temporary.as_ref() {
            Some(named) => self.rename(named.name(), name)?,
            None => {
                // Keeps sweeps away from the name that it has for a moment.
                lock_whole(file.as_fd(), FlockOperation::LockExclusive)?;
                self.replace_via(name, |temporary| link_unnamed(file, &self.dir, temporary))?;
            }
        }
        if let Some(named) = temporary.take() {
            named.keep();
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        Ok(renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        Ok(unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn stat(&self, name: &str) -> io::Result<FileStat> {
        check_name(name)?;
        Ok(statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        names_in(&self.dir)
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_folder(&self.dir)
    }

    fn lock(&self, name: &str, timeout: Duration) -> io::Result<Box<dyn LockGuard>> {
        check_name(name)?;
        Ok(Box::new(self.locks.lock(&self.dir, name, self.claiming_host()?, timeout)?))
    }

    fn watch(&self, name: &str) -> io::Result<Box<dyn LockGuard>> {
        check_name(name)?;
        Ok(Box::new(lock::watch(&self.dir, name)?))
    }

    fn is_watched(&self, name: &str) -> io::Result<bool> {
        check_name(name)?;
        self.locks.is_watched(&self.dir, name)
    }

    fn has_far_locks(&self) -> io::Result<bool> {
        Ok(self.place()?.locks == LockReach::Everybody)
    }

    fn sweep_temporaries(&self) -> io::Result<usize> {
        let mut swept = 0;
        let has_far_locks = self.has_far_locks()?;
        for name in self.list()?.iter().filter(|name| is_temporary(name)) {
            // Of another host's, only its age tells.
            if !has_far_locks && !self.stat(name).is_ok_and(|stat| is_forgotten(&stat)) {
                continue;
            }
            // NFS needs a descriptor open for writing to lock exclusively.
            let Ok(file) = self.open(name, FileAccess::Write) else {
                continue;
            };
            let Some(fd) = file.fd() else { continue };
            if lock_whole(fd, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue; // its writer is at work
            }
            match self.remove(name) {
                Ok(()) => swept += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // its writer has named it meanwhile
                Err(error) => return Err(error),
            }
        }
        Ok(swept)
    }

    fn stat_dir(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.dir)?.into())
    }

    fn stat_fs(&self) -> io::Result<FsStat> {
        let stat = fstatvfs(&self.dir)?;
        Ok(FsStat {
            block_len: stat.f_frsize,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            name_max: stat.f_namemax,
            place: self.place()?,
        })
    }

    fn after_fork(&self) -> io::Result<Option<Box<dyn Storage>>> {
        if fork::generation()? == self.forks {
            return Ok(None);
        }
        Ok(Some(Box::new(DirStorage::of(Arc::clone(&self.dir), self.path.clone())?)))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// All names in a directory that are UTF-8.
fn names_in(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn open_file(dir: &OwnedFd, name: &str, access: FileAccess) -> io::Result<OwnedFd> {
    check_name(name)?;
    let access = match access {
        FileAccess::Read => OFlags::RDONLY,
        FileAccess::Write => OFlags::RDWR,
    };
    // NONBLOCK: opening a FIFO of that name must not wait for its other end. Regular files ignore it.
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = retry_on_intr(|| openat(dir, name, flags, Mode::empty()))?;
    if !FileStat::from(fstat(&fd)?).is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(fd)
}

fn sync_folder(dir: &OwnedFd) -> io::Result<()> {
    match retry_on_intr(|| rustix::fs::fsync(dir)) {
        // The file system has no way to sync a directory (man 2 fsync).
        Err(Errno::INVAL) => Ok(()),
        result => Ok(result?),
    }
}

/// The file as one of this storage.
fn own_file(file: &Arc<dyn StorageFile>) -> io::Result<&DirFile> {
    let any: &dyn Any = &**file;
    any.downcast_ref().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the file belongs to another kind of storage")
    })
}

/// Names an `O_TMPFILE` (man 2 open): without the right to link a descriptor, its link in `/proc` is followed.
fn link_unnamed(file: &DirFile, dir: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let by_fd = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    linkat(CWD, by_fd, dir, name, AtFlags::SYMLINK_FOLLOW)
}

/// A folder that is locked.
struct Claim {
    dir: OwnedFd,
    process: u32,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A child that was forked meanwhile has the descriptor, until it runs another program. In the child itself the
        // claim is its parent's.
        if self.process == std::process::id() {
            let _ = lock_whole(self.dir.as_fd(), FlockOperation::Unlock);
        }
    }
}

fn lock_whole(fd: BorrowedFd<'_>, operation: FlockOperation) -> rustix::io::Result<()> {
    retry_on_intr(|| flock(fd, operation))
}

fn temporary_name() -> io::Result<String> {
    let mut name = String::from(TEMPORARY_PREFIX);
    for byte in random_bytes::<{ TEMPORARY_ID_LEN / 2 }>()? {
        write!(name, "{byte:02x}").expect("a String takes any text");
    }
    name.push_str(TEMPORARY_SUFFIX);
    Ok(name)
}

/// Whether nobody has written to a temporary for so long that its writer must be gone.
fn is_forgotten(stat: &FileStat) -> bool {
    SystemTime::now().duration_since(stat.mtime).is_ok_and(|age| age > FORGOTTEN_AFTER)
}

/// Whether [`temporary_name`] can have made `name`; a user's `tmp_x.npkd` is none.
fn is_temporary(name: &str) -> bool {
    name.strip_prefix(TEMPORARY_PREFIX).and_then(|rest| rest.strip_suffix(TEMPORARY_SUFFIX)).is_some_and(
        |id| id.len() == TEMPORARY_ID_LEN && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use tempfile::TempDir;

    /// A storage whose unnamed files have no name, and one whose unnamed files have a temporary one.
    fn both_kinds() -> [(TempDir, DirStorage); 2] {
        [true, false].map(|has_unnamed| {
            let dir = tempfile::tempdir().expect("temporary directory");
            let storage = DirStorage::open(dir.path()).expect("opens");
            storage.has_unnamed.fetch_and(has_unnamed, Ordering::Relaxed);
            (dir, storage)
        })
    }

    fn put(storage: &DirStorage, name: &str, contents: &[u8]) {
        let file = storage.create_unnamed().expect("creates");
        file.write_at(contents, 0).expect("writes");
        storage.link(&file, name).expect("links");
    }

    #[test]
    fn create_makes_missing_parents_and_open_does_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a/b");
        assert_eq!(DirStorage::open(&path).expect_err("missing").kind(), io::ErrorKind::NotFound);
        assert_eq!(DirStorage::create(&path).expect("creates").path(), path);
        DirStorage::create(&path).expect("is there");
        let file = path.join("file");
        fs::write(&file, "").expect("writes");
        assert_eq!(DirStorage::open(&file).expect_err("no directory").kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn storage_stays_in_its_directory_when_that_is_renamed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let storage = DirStorage::create(&dir.path().join("old")).expect("creates");
        fs::rename(dir.path().join("old"), dir.path().join("new")).expect("renames");
        put(&storage, "a", b"");
        assert!(dir.path().join("new/a").exists());
    }

    #[test]
    fn only_regular_files_are_opened_and_links_are_not_followed() {
        for (dir, storage) in both_kinds() {
            put(&storage, "file", b"abc");
            symlink("file", dir.path().join("link")).expect("links");
            fs::create_dir(dir.path().join("dir")).expect("makes a directory");
            rustix::fs::mknodat(&storage, "fifo", rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .expect("makes a FIFO");
            for access in [FileAccess::Read, FileAccess::Write] {
                let error = storage.open("link", access).expect_err("a symbolic link");
                assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
                storage.open("dir", access).expect_err("a directory");
                let error = storage.open("fifo", access).expect_err("a FIFO");
                assert_eq!(error.to_string(), "not a regular file");
            }
            assert!(!storage.stat("link").expect("stat").is_file());
            let new = storage.create_unnamed().expect("creates");
            storage.replace(&new, "link").expect("replaces the link, not the file");
            assert_eq!(fs::read(dir.path().join("file")).expect("reads"), b"abc");
            storage.remove("dir").expect_err("a directory");
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_not_listed() {
        use std::os::unix::ffi::OsStrExt as _;
        let (dir, storage) = &both_kinds()[0];
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff")), "").expect("writes");
        put(storage, "b", b"");
        assert_eq!(storage.list().expect("lists"), ["b"]);
    }

    #[test]
    fn new_files_have_the_permissions_of_the_umask() {
        for (dir, storage) in both_kinds() {
            fs::write(dir.path().join("by_std"), "").expect("writes");
            put(&storage, "a", b"");
            drop(storage.lock("lock", Duration::ZERO).expect("locks"));
            let mode = |name| fs::metadata(dir.path().join(name)).expect("metadata").permissions().mode();
            assert_eq!(mode("a"), mode("by_std"));
            assert_eq!(mode("lock"), mode("by_std"));
        }
    }

    #[test]
    fn named_temporaries_behave_like_unnamed_files() {
        for (_dir, storage) in both_kinds() {
            let file = storage.create_unnamed().expect("creates");
            file.write_at(b"abc", 0).expect("writes");
            put(&storage, "a", b"old");
            assert_eq!(storage.link(&file, "a").expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
            storage.link(&file, "b").expect("links");
            let new = storage.create_unnamed().expect("creates");
            storage.replace(&new, "a").expect("replaces");
            drop((file, new));
            drop(storage.create_unnamed().expect("creates, and is dropped"));
            let mut names = storage.list().expect("lists");
            names.sort();
            assert_eq!(names, ["a", "b"]);
            assert_eq!(storage.stat("a").expect("stat").len, 0);
            assert_eq!(storage.stat("b").expect("stat").len, 3);
        }
    }

    #[test]
    fn a_file_whose_name_is_taken_away_can_be_named_again() {
        for (_dir, storage) in both_kinds() {
            let file = storage.create_unnamed().expect("creates");
            file.write_at(b"abc", 0).expect("writes");
            for name in ["a", "b", "c"] {
                storage.link(&file, name).expect("links");
                storage.unlink(&file, name).expect("takes the name away");
                assert_eq!(storage.sweep_temporaries().expect("sweeps"), 0);
            }
            storage.link(&file, "d").expect("links");
            assert_eq!(storage.list().expect("lists"), ["d"]);
            storage.unlink(&file, "d").expect("takes the name away");
            drop(file);
            assert!(storage.list().expect("lists").is_empty());
        }
    }

    #[test]
    fn files_are_put_into_a_folder_of_their_own() {
        for (dir, storage) in both_kinds() {
            for (contents, free) in [(b"abc", true), (b"def", false)] {
                let file = storage.create_unnamed().expect("creates");
                file.write_at(contents, 0).expect("writes");
                match storage.link_apart(&file, "kept", "a") {
                    Ok(()) => assert!(free),
                    Err(error) => assert!(!free && error.kind() == io::ErrorKind::AlreadyExists, "{error}"),
                }
            }
            assert_eq!(storage.list().expect("lists"), ["kept"]);
            assert_eq!(fs::read(dir.path().join("kept/a")).expect("reads"), b"abc");
            let mode = fs::metadata(dir.path().join("kept")).expect("metadata").permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
            symlink("/tmp", dir.path().join("link")).expect("links");
            let file = storage.create_unnamed().expect("creates");
            storage.link_apart(&file, "link", "a").expect_err("a link is not followed");
        }
    }

    #[test]
    fn files_in_folders_are_read_and_removed_and_links_are_not_followed() {
        let dir = TempDir::new().expect("temporary directory");
        let storage = DirStorage::open(dir.path()).expect("opens");
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).expect("is made");
        for name in ["a", "b"] {
            fs::write(folder.join(name), name).expect("writes");
        }
        symlink("a", folder.join("link")).expect("is made");
        symlink("folder", dir.path().join("linked")).expect("is made");
        let mut bytes = [0; 2];
        let file = storage.open_apart("folder", "a", FileAccess::Read).expect("opens");
        assert_eq!((file.read_at(&mut bytes, 0).expect("reads"), bytes), (1, *b"a\0"));
        let kind =
            |folder, name| storage.open_apart(folder, name, FileAccess::Read).expect_err("refused").kind();
        assert_eq!(kind("folder", "c"), io::ErrorKind::NotFound);
        assert_eq!(kind("nowhere", "a"), io::ErrorKind::NotFound);
        let link =
            storage.open_apart("folder", "link", FileAccess::Write).expect_err("a link is not followed");
        assert_eq!(link.raw_os_error(), Some(libc::ELOOP));
        assert_eq!(kind("linked", "a"), io::ErrorKind::NotADirectory);
        for (folder, name) in [("..", "a"), ("folder", ".."), ("folder", ""), ("folder/a", "a")] {
            assert_eq!(kind(folder, name), io::ErrorKind::InvalidInput);
            let refused = storage.remove_apart(folder, Some(name)).expect_err("refused").kind();
            assert_eq!(refused, io::ErrorKind::InvalidInput);
        }
        storage.remove_apart("linked", Some("a")).expect_err("a link is not followed");
        storage.remove_apart("linked", None).expect_err("is no folder");
        storage.remove_apart("folder", Some("a")).expect("removes");
        storage.remove_apart("folder", Some("link")).expect("removes");
        let full = storage.remove_apart("folder", None).expect_err("b is in it").kind();
        assert_eq!(full, io::ErrorKind::DirectoryNotEmpty);
        storage.remove_apart("folder", Some("b")).expect("removes");
        storage.remove_apart("folder", None).expect("removes");
        assert!(!folder.exists() && dir.path().join("linked").is_symlink());
    }

    #[test]
    fn who_makes_temporaries_removes_those_left_behind() {
        for (dir, storage) in both_kinds() {
            let left = dir.path().join("tmp_0123456789abcdef.npkd");
            fs::write(&left, "left behind").expect("writes");
            let has_unnamed = storage.has_unnamed.load(Ordering::Relaxed);
            drop(storage.create_unnamed().expect("creates"));
            assert_eq!(left.exists(), has_unnamed);
        }
    }

    #[test]
    fn sweep_removes_what_no_writer_has_open() {
        let [_, (dir, storage)] = both_kinds();
        let at_work = storage.create_unnamed().expect("creates");
        fs::write(dir.path().join("tmp_0123456789abcdef.npkd"), "left behind").expect("writes");
        for name in ["tmp_mine.npkd", "tmp_0123456789ABCDEF.npkd", "tmp_0123456789abcdef.npk", "data_a.npkd"]
        {
            fs::write(dir.path().join(name), "a user's").expect("writes");
        }
        assert_eq!(storage.sweep_temporaries().expect("sweeps"), 1);
        assert!(!dir.path().join("tmp_0123456789abcdef.npkd").exists());
        assert_eq!(storage.list().expect("lists").len(), 5);
        storage.link(&at_work, "b").expect("links");
        assert_eq!(storage.sweep_temporaries().expect("sweeps"), 0);
    }
}
