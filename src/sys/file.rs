//! An open file on disk, and the temporary name that some have until they are given their own.

use std::fs::{File, FileTimes};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    Advice, AtFlags, FallocateFlags, Gid, Mode, StatxFlags, Uid, copy_file_range, fadvise, fallocate, fchmod,
    fchown, fstat, statx, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};

use super::fork;
use super::{FileAccess, FileLock, FileStat, Map, MapMut, SharedWord, StorageFile, lease, lock, netfs, word};

const COPY_CHUNK_LEN: usize = 1 << 20;

/// A [`StorageFile`] over a file descriptor.
#[derive(Debug)]
pub(super) struct DirFile {
    file: File,
    temporary: Mutex<Option<Temporary>>,
    /// [`fork::generation`] of the process that has a lock on it, which ends with this handle.
    locked_in: Option<u64>,
}

/// The name of a file that could not be made without one. It is removed unless [`Temporary::keep`] is called.
#[derive(Debug)]
pub(super) struct Temporary {
    dir: Arc<OwnedFd>,
    name: String,
    /// [`fork::generation`] of the process that made it: dropping a forked copy must not remove the parent's file.
    forks: Option<u64>,
}

impl Temporary {
    pub(super) fn new(dir: Arc<OwnedFd>, name: String) -> io::Result<Self> {
        Ok(Temporary { dir, name, forks: Some(fork::generation()?) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The name is gone, or belongs to somebody else now.
    pub(super) fn keep(mut self) {
        self.forks = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.forks.is_some() && self.forks == fork::generation().ok() {
            // A name that cannot be removed is left to the next sweep.
            let _ = unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

impl DirFile {
    pub(super) fn new(fd: OwnedFd, temporary: Option<Temporary>) -> Self {
        DirFile { file: File::from(fd), temporary: Mutex::new(temporary), locked_in: None }
    }

    /// A file that is locked until this is dropped: waits for that no longer than `timeout`.
    pub(super) fn locked(fd: OwnedFd, kind: FileLock, timeout: Duration) -> io::Result<Self> {
        let mut file = DirFile::new(fd, None);
        let forks = fork::generation()?;
        lock::lock_file(file.as_fd(), kind, timeout)?;
        file.locked_in = Some(forks);
        Ok(file)
    }

    /// The name to be given up when the file gets its own.
    pub(super) fn temporary(&self) -> MutexGuard<'_, Option<Temporary>> {
        self.temporary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DirFile {
    fn drop(&mut self) {
        // A forked process may have the file open as well, which alone would keep it locked; and if this is that
        // process, the lock is its parent's.
        if self.locked_in.is_some() && self.locked_in == fork::generation().ok() {
            lock::unlock_file(self.as_fd());
        }
    }
}

impl AsFd for DirFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl StorageFile for DirFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        read_full_at(&self.file, buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset).map_err(|error| match Errno::from_io_error(&error) {
            // It is open, so it is open for reading: nothing else could be had.
            Some(Errno::BADF) => Errno::ROFS.into(),
            _ => error,
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(()); // fallocate(2) refuses empty ranges
        }
        match retry_on_intr(|| fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            result => Ok(result?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(&self.file, flags, offset, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            result => Ok(result.map(|()| true)?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn stat(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.file)?.into())
    }

    fn set_times(&self, atime: Option<SystemTime>, mtime: Option<SystemTime>) -> io::Result<()> {
        let mut times = FileTimes::new();
        if let Some(atime) = atime {
            times = times.set_accessed(atime);
        }
        if let Some(mtime) = mtime {
            times = times.set_modified(mtime);
        }
        self.file.set_times(times)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.file, Mode::from_raw_mode(mode))?)
    }

    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        Ok(fchown(&self.file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?)
    }

    fn map(&self, offset: u64, len: usize) -> io::Result<Map> {
        match Map::of_file(&self.file, offset, len) {
            // On a disk that went read-only, what is open for writing cannot even be mapped for reading.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::ROFS) => {
                let read_only = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
                Map::of_file(&read_only, offset, len)
            }
            mapped => mapped,
        }
    }

    fn map_mut(&self, offset: u64, len: usize) -> io::Result<MapMut> {
        MapMut::of_file(&self.file, offset, len)
    }

    fn copy_from(&self, src: BorrowedFd<'_>, src_offset: u64, dst_offset: u64, len: u64) -> io::Result<u64> {
        let (mut from, mut to) = (src_offset, dst_offset);
        let mut copied = 0;
        while copied < len {
            let chunk = usize::try_from(len - copied).unwrap_or(usize::MAX);
            match copy_file_range(src, Some(&mut from), &self.file, Some(&mut to), chunk) {
                // The end of the source; or one of the special files, such as those of /proc, that only read(2) knows.
                Ok(0) => break,
                Ok(n) => copied += n as u64,
                Err(Errno::INTR) => {}
                // Another file system, or one that cannot copy, or a source that is no regular file.
                Err(
                    Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::BADF,
                ) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let from = checked_offset(src_offset, copied)?;
        let to = checked_offset(dst_offset, copied)?;
        Ok(copied + copy_by_reading(src, from, &self.file, to, len - copied)?)
    }

    fn word(&self, offset: usize, access: FileAccess) -> io::Result<Box<dyn SharedWord>> {
        if netfs::kind(&self.file)?.is_shared() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Box::new(word::MappedWord::of_file(&self.file, offset, access == FileAccess::Write)?))
    }

    fn forget_cached(&self) -> io::Result<()> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        retry_on_intr(|| statx(&self.file, "", flags, StatxFlags::BASIC_STATS))?;
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    fn has_others(&self) -> bool {
        lease::has_others(self.file.as_fd())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// Copies up to `len` bytes with `pread` and `pwrite`; fewer only at the end of `src`.
fn copy_by_reading(
    src: BorrowedFd<'_>,
    src_offset: u64,
    dst: &File,
    dst_offset: u64,
    len: u64,
) -> io::Result<u64> {
    let mut copied = 0;
    let mut buf = Vec::new();
    while copied < len {
        let chunk = usize::try_from(len - copied).map_or(COPY_CHUNK_LEN, |left| left.min(COPY_CHUNK_LEN));
        buf.resize(chunk, 0);
        let from = checked_offset(src_offset, copied)?;
        let n = retry_on_intr(|| rustix::io::pread(src, &mut buf[..], from))?;
        if n == 0 {
            break;
        }
        dst.write_all_at(&buf[..n], checked_offset(dst_offset, copied)?)?;
        copied += n as u64;
    }
    Ok(copied)
}

fn checked_offset(offset: u64, len: u64) -> io::Result<u64> {
    offset.checked_add(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Reads until `buf` is full or the file ends.
fn read_full_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], checked_offset(offset, filled as u64)?) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn file_of(bytes: &[u8]) -> DirFile {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(bytes, 0).expect("writes");
        DirFile::new(file.into(), None)
    }

    fn contents(file: &DirFile) -> Vec<u8> {
        let mut bytes = vec![0; file.stat().expect("stat").len as usize];
        file.read_at(&mut bytes, 0).expect("reads");
        bytes
    }

    #[test]
    fn offsets_beyond_the_largest_file_are_errors() {
        let file = file_of(b"abc");
        for offset in [u64::MAX, u64::MAX - 1, i64::MAX as u64 + 1] {
            file.read_at(&mut [0; 4], offset).expect_err("no such offset");
            file.write_at(b"xy", offset).expect_err("no such offset");
            file.set_len(offset).expect_err("no such length");
            file.reserve(offset).expect_err("no such length");
        }
        let src = file_of(b"abc");
        file.copy_from(src.as_fd(), 0, u64::MAX, 2).expect_err("no such offset");
        assert_eq!(contents(&file), b"abc");
    }

    #[test]
    fn copy_needs_no_help_of_the_kernel() {
        let bytes: Vec<u8> = (0..COPY_CHUNK_LEN as u32 + 5000).map(|i| (i % 251) as u8).collect();
        let src = file_of(&bytes);
        let dst = file_of(b"..");
        let n = copy_by_reading(src.as_fd(), 3, &dst.file, 1, u64::MAX).expect("copies");
        assert_eq!(n, bytes.len() as u64 - 3);
        assert!(contents(&dst)[1..] == bytes[3..]);
        assert_eq!(copy_by_reading(src.as_fd(), 0, &dst.file, 0, 2).expect("copies"), 2);
        assert_eq!(contents(&dst)[..4], [0, 1, 4, 5]);
    }

    #[test]
    fn copy_reads_files_of_proc_whose_length_is_zero() {
        let src = File::open("/proc/self/mountinfo").expect("opens");
        let dst = file_of(b"");
        let n = dst.copy_from(src.as_fd(), 0, 0, 100).expect("copies");
        assert_eq!(n, 100);
        assert!(contents(&dst).is_ascii());
    }

    #[test]
    fn copy_whose_source_cannot_be_read_fails() {
        let dst = file_of(b"");
        let src = tempfile::NamedTempFile::new().expect("temporary file");
        let write_only = File::options().write(true).open(src.path()).expect("opens");
        let error = dst.copy_from(write_only.as_fd(), 0, 0, 1).expect_err("open for writing only");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn reserve_allocates_without_changing_the_length() {
        let file = file_of(b"abc");
        file.reserve(1 << 20).expect("reserves, or cannot");
        assert_eq!(file.stat().expect("stat").len, 3);
        file.reserve(1).expect("never cuts");
        assert_eq!(contents(&file), b"abc");
    }

    #[test]
    fn stat_has_what_the_system_says() {
        use std::os::unix::fs::MetadataExt as _;
        let file = file_of(&[1; 10_000]);
        file.set_times(None, Some(UNIX_EPOCH - Duration::from_millis(1500))).expect("sets");
        let (stat, metadata) = (file.stat().expect("stat"), file.file.metadata().expect("metadata"));
        assert_eq!((stat.ino, stat.dev, stat.len), (metadata.ino(), metadata.dev(), 10_000));
        assert_eq!((stat.mode, stat.uid, stat.gid), (metadata.mode(), metadata.uid(), metadata.gid()));
        assert_eq!((stat.allocated, stat.nlink), (metadata.blocks() * 512, 0));
        assert_eq!(stat.atime, metadata.accessed().expect("atime"));
        assert_eq!(stat.mtime, UNIX_EPOCH - Duration::from_millis(1500));
    }
}
