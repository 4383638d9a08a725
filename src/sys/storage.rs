//! The face of the operating system that `store` sees: a directory of flat file names.
//!
//! [`DirStorage`](super::DirStorage) is the real one; `tests/common` has one in memory and one that fails on demand.
//! Errors are `io::Error` as the system gave them, without the name of the file: the caller knows it, and says it.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::netfs::Place;
use super::{Map, MapMut, SharedWord};

/// What an opened file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileAccess {
    /// Reading and mapping.
    Read,
    /// Reading, mapping and writing.
    Write,
}

/// A lock on a file as a whole, for as long as a handle is open that was opened for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileLock {
    /// Together with others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

/// A directory of files, addressed by flat names.
///
/// A name is one path component: `/`, NUL, the empty name, `.` and `..` are refused with `InvalidInput`.
/// No call follows a symbolic link.
///
/// [`replace`](Self::replace), [`link_existing`](Self::link_existing) and
/// [`sweep_temporaries`](Self::sweep_temporaries) are for the holder of the writers' lock.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Opens an existing file.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if it is no regular file; `ELOOP` (`FilesystemLoop`) if it is a symbolic link.
    fn open(&self, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>>;

    /// Opens a file for writing, with a lock on it that ends when the handle that is returned is dropped, or its
    /// process dies. Excludes only those who lock as well: other processes, and other handles of this one.
    ///
    /// A storage that only one thread at a time writes to need not lock.
    ///
    /// # Errors
    /// As [`open`](Self::open); `WouldBlock` if somebody else has it locked for all of `timeout`.
    fn open_locked(&self, name: &str, lock: FileLock, timeout: Duration) -> io::Result<Arc<dyn StorageFile>> {
        let _ = (lock, timeout);
        self.open(name, FileAccess::Write)
    }

    /// Creates an empty file, open for reading and writing, that vanishes with its last handle unless
    /// [`link`](Self::link) or [`replace`](Self::replace) names it.
    fn create_unnamed(&self) -> io::Result<Arc<dyn StorageFile>>;

    /// Gives a file made by [`create_unnamed`](Self::create_unnamed) its name.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; the file then stays unnamed.
    fn link(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()>;

    /// Takes from a file the name that [`link`](Self::link) gave it, so that it can be given another one.
    ///
    /// For a storage whose files can be named again once they have lost their name, removing it is enough.
    fn unlink(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        let _ = file;
        self.remove(name)
    }

    /// As [`link`](Self::link), in the folder `folder` within this directory, which is made, for its owner alone, if
    /// it is missing. Returns when file and name are on the disk.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; `Unsupported` where there are no folders.
    fn link_apart(&self, file: &Arc<dyn StorageFile>, folder: &str, name: &str) -> io::Result<()> {
        let _ = (file, folder, name);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Gives the file `from` of this directory a second name in the folder `folder` within it, which is made as by
    /// [`link_apart`](Self::link_apart). Returns when the name is on the disk.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; `Unsupported` where there are no folders.
    fn keep_apart(&self, from: &str, folder: &str, name: &str) -> io::Result<()> {
        let _ = (from, folder, name);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// As [`open`](Self::open), of a file in the folder `folder` within this directory.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Unsupported` where there are no folders.
    fn open_apart(&self, folder: &str, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        let _ = (folder, name, access);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// As [`list`](Self::list), of the folder `folder` within this directory.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Unsupported` where there are no folders.
    fn list_apart(&self, folder: &str) -> io::Result<Vec<String>> {
        let _ = folder;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Renames a file in the folder `folder` within this directory, replacing what has the name. Returns when that is on
    /// the disk.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` where there are no folders.
    fn rename_apart(&self, folder: &str, from: &str, to: &str) -> io::Result<()> {
        let _ = (folder, from, to);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Takes the folder `folder` within this directory for oneself, until what is returned is dropped or the process dies.
    /// The folder is made if it is missing, as by [`link_apart`](Self::link_apart).
    ///
    /// # Errors
    /// `WouldBlock` if somebody has it; `Unsupported` where there are no folders.
    fn claim_apart(&self, folder: &str) -> io::Result<Box<dyn Any + Send + Sync>> {
        let _ = folder;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes the file `name` in the folder `folder` within this directory; without a name, the folder, if it is empty.
    ///
    /// # Errors
    /// `NotFound`; `DirectoryNotEmpty`; `Unsupported` where there are no folders.
    fn remove_apart(&self, folder: &str, name: Option<&str>) -> io::Result<()> {
        let _ = (folder, name);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes `to` a hard link to the file `from`, replacing what `to` was.
    fn link_existing(&self, from: &str, to: &str) -> io::Result<()>;

    /// Lets a file made by [`create_unnamed`](Self::create_unnamed) atomically become `name`, replacing what is there.
    fn replace(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()>;

    /// Renames `from` to `to`, replacing what `to` was.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name. Open handles and maps of the file stay valid.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Describes what is at `name`, be it a regular file or not; [`FileStat::is_file`] tells.
    fn stat(&self, name: &str) -> io::Result<FileStat>;

    /// All names that are UTF-8, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Returns when all names given, changed and removed so far are on the disk.
    fn sync_dir(&self) -> io::Result<()>;

    /// Takes the exclusive lock on the file `name`, which is created if it is missing.
    ///
    /// The lock excludes other processes and other threads, also those of the same storage, and other hosts. It ends when
    /// the guard is dropped or the process dies; but see [`Storage::has_far_locks`]. A `timeout` of zero tries once.
    ///
    /// # Errors
    /// `WouldBlock` if somebody else holds it for all of `timeout`; [`lock::holder`](super::lock::holder) finds who.
    fn lock(&self, name: &str, timeout: Duration) -> io::Result<Box<dyn LockGuard>>;

    /// Shares the watchers' lock on the file `name`: until the guard is dropped, every
    /// [`LockGuard::is_watched`] is true.
    ///
    /// # Errors
    /// `WouldBlock` if a writer keeps the lock for half a minute.
    fn watch(&self, name: &str) -> io::Result<Box<dyn LockGuard>>;

    /// Whether somebody shares the watchers' lock on the file `name`, asked without waiting; `true` where that cannot
    /// be known without the lock.
    fn is_watched(&self, name: &str) -> io::Result<bool> {
        let _ = name;
        Ok(true)
    }

    /// Whether locks keep out everybody. Where not, those of [`open_locked`](Self::open_locked) do nothing about other
    /// hosts, and [`lock`](Self::lock) makes a file to keep them out, which a process that dies leaves behind for the
    /// next one on the same host.
    fn has_far_locks(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Removes temporary files that their writers left behind, and says how many.
    fn sweep_temporaries(&self) -> io::Result<usize>;

    /// Describes the directory itself.
    fn stat_dir(&self) -> io::Result<FileStat>;

    /// Describes the file system that the directory is on.
    fn stat_fs(&self) -> io::Result<FsStat>;

    /// The directory, for messages.
    fn path(&self) -> &Path;

    /// The same directory for a process that was forked since the storage was opened: without what threads have locked
    /// that are not there any more. `None` in the process that opened it, and where that is nothing special.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn after_fork(&self) -> io::Result<Option<Box<dyn Storage>>> {
        Ok(None)
    }
}

/// An open file. All calls take absolute offsets, so threads may share it.
///
/// `Any` lets a storage recognise its own files in [`Storage::link`] and [`Storage::replace`].
pub trait StorageFile: Any + Send + Sync + fmt::Debug {
    /// Reads until `buf` is full or the file ends, and returns the number of bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `data`, extending the file where needed.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or extends it by zeros. Never cut what somebody may have mapped: that raises SIGBUS there.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Asks for disk space for the first `len` bytes, without changing the file's length.
    ///
    /// A file system that cannot do this is not an error.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Gives the disk space of `len` bytes from `offset` on back, as far as it is whole blocks of the file system; the
    /// bytes read as zeros from then on. Returns `false`, and changes nothing, where the file system cannot do this.
    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let _ = (offset, len);
        Ok(false)
    }

    /// Returns when the file's contents and length are on the disk.
    fn sync_data(&self) -> io::Result<()>;

    /// Describes the file.
    fn stat(&self) -> io::Result<FileStat>;

    /// Sets the times that are given and leaves the others alone.
    fn set_times(&self, atime: Option<SystemTime>, mtime: Option<SystemTime>) -> io::Result<()>;

    /// Sets the permission bits.
    ///
    /// # Errors
    /// `Unsupported` where files have none.
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        let _ = mode;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Sets the owner and the group, as far as they are given.
    ///
    /// # Errors
    /// `PermissionDenied`: only root gives files away; `Unsupported` where files have no owner.
    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let _ = (uid, gid);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Maps `len` bytes from `offset` (any value, aligned or not), shared and read-only.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file is shorter than `offset + len`.
    fn map(&self, offset: u64, len: usize) -> io::Result<Map>;

    /// As [`map`](Self::map), to be written to: what is written there is in the file.
    ///
    /// # Errors
    /// As [`map`](Self::map); `PermissionDenied` if the file was opened for reading; `Unsupported` where files are not
    /// mapped.
    fn map_mut(&self, offset: u64, len: usize) -> io::Result<MapMut> {
        let _ = (offset, len);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Copies `len` bytes from `src_offset` of `src` to `dst_offset` of this file, and returns the number copied,
    /// which is less than `len` only if `src` ends before. The ranges must not overlap in one file.
    fn copy_from(&self, src: BorrowedFd<'_>, src_offset: u64, dst_offset: u64, len: u64) -> io::Result<u64>;

    /// Maps the `u64` at `offset`, a multiple of 8, to be shared with other processes.
    ///
    /// # Errors
    /// `Unsupported` where processes do not share memory through files: in a network file system, in memory.
    fn word(&self, offset: usize, access: FileAccess) -> io::Result<Box<dyn SharedWord>> {
        let _ = (offset, access);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lets later calls see what other hosts wrote before this one, as far as the file system has an answer.
    fn forget_cached(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether anybody has the file open or mapped besides this handle; `false` where that cannot be asked.
    fn has_others(&self) -> bool {
        false
    }

    /// The descriptor, where there is one.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Holds the lock taken by [`Storage::lock`]; dropping it releases the lock.
pub trait LockGuard: Send {
    /// Whether the locked file is still the one that has the name.
    ///
    /// `false` means that the lock file was removed or replaced while this storage kept it open, so that this guard
    /// excludes nobody; the next [`Storage::lock`] opens the file of that name anew. Costs one or two system calls:
    /// worth asking when the manifest turns out to be another file than before.
    fn is_current(&self) -> io::Result<bool>;

    /// Whether somebody keeps copies of what is in the files, and wants to know what changes.
    fn is_watched(&self) -> bool;
}

/// What the system knows about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Inode number.
    pub ino: u64,
    /// Device of the file system.
    pub dev: u64,
    /// Length in bytes.
    pub len: u64,
    /// Bytes that the file occupies on the disk.
    pub allocated: u64,
    /// Time of the last access.
    pub atime: SystemTime,
    /// Time of the last change of the contents.
    pub mtime: SystemTime,
    /// Time of the last change of the inode.
    pub ctime: SystemTime,
    /// File type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u64,
}

/// What the system knows about a file system, as statvfs(3) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FsStat {
    /// Unit of the counts of blocks, in bytes.
    pub block_len: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Blocks that are free for everybody.
    pub blocks_available: u64,
    /// Files that there can be.
    pub files: u64,
    /// Files that there can still be.
    pub files_free: u64,
    /// Longest file name, in bytes.
    pub name_max: u64,
    /// What kind it is, and how far locks reach.
    pub place: Place,
}

impl FileStat {
    /// Read, write and execute bits, and those beside them.
    pub fn perm(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// Whether `other` is the same file, whatever its length and times.
    pub fn is_same_file(&self, other: &FileStat) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

impl From<rustix::fs::Stat> for FileStat {
    #[allow(
        clippy::unnecessary_cast,
        reason = "the fields have other, never larger types on other architectures"
    )]
    fn from(stat: rustix::fs::Stat) -> Self {
        FileStat {
            ino: stat.st_ino as u64,
            dev: stat.st_dev as u64,
            len: stat.st_size as u64,
            allocated: (stat.st_blocks as u64).saturating_mul(512), // st_blocks counts 512 bytes on every file system
            atime: system_time(stat.st_atime as i64, stat.st_atime_nsec as u32),
            mtime: system_time(stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: system_time(stat.st_ctime as i64, stat.st_ctime_nsec as u32),
            mode: stat.st_mode as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: stat.st_nlink as u64,
        }
    }
}

/// A time as the kernel gives it; nanoseconds count upwards also before 1970.
fn system_time(secs: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base = if secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(nanos)))).unwrap_or(UNIX_EPOCH)
}

/// Refuses a name that is not one path component.
pub(super) fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        let message = format!("{name:?} is not the name of a file inside a directory");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_components() {
        for name in ["a", "data_x~2.npkd", "...", "\u{e9}", ".hidden", " "] {
            check_name(name).expect(name);
        }
        for name in ["", ".", "..", "/", "a/b", "../a", "a\0b"] {
            let error = check_name(name).expect_err(name);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert_eq!(error.to_string(), format!("{name:?} is not the name of a file inside a directory"));
        }
    }

    #[test]
    fn times_before_1970_and_beyond_the_clock_do_not_panic() {
        assert_eq!(system_time(0, 5), UNIX_EPOCH + Duration::from_nanos(5));
        // -1 s + 0.75 s is a quarter of a second before the epoch.
        assert_eq!(system_time(-1, 750_000_000), UNIX_EPOCH - Duration::from_millis(250));
        let _ = system_time(i64::MAX, 999_999_999);
        let _ = system_time(i64::MIN, 0);
    }
}
