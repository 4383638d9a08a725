//! What `stat` shows and `chmod` and the like may change. Our own types: the layer is tested without a kernel.

use std::time::{Duration, SystemTime};

use super::inode::Inode;
use super::{Fh, Fs, FsError, Ino, read, write};
use crate::store::{Array, StoreError};
use crate::sys::FileStat;

/// What kind of inode it is: an array shows as a file, a group of arrays as a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A virtual `.npy` file.
    File,
    /// A folder.
    Directory,
}

/// The attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// File or folder.
    pub kind: FileKind,
    /// Length of the virtual file in bytes; 0 for a folder.
    pub size: u64,
    /// What the disk holds, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: SystemTime,
    /// Last change of the content.
    pub mtime: SystemTime,
    /// Last change of content or attributes.
    pub ctime: SystemTime,
    /// Permission bits.
    pub perm: u16,
    /// Names that lead here: 1 for a file, 0 once it is overwritten or removed; 2 and one per subfolder for a folder.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The permissions that a file shows, and that can be set: those of its data file to read and to write.
pub(super) const FILE_PERM: u16 = 0o666;
/// Those of a folder.
pub(super) const DIRECTORY_PERM: u16 = 0o777;

/// `st_blksize`: what programs such as `cp` take for a good size of one read.
pub const BLKSIZE: u32 = 4096;

/// Longest name of a file or folder, in bytes.
pub const NAME_MAX: usize = 255;

/// Which attributes `setattr` is to change.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SystemTime>,
    /// Last change of the content.
    pub mtime: Option<SystemTime>,
}

/// What a mount shows of all files and folders, whatever the store's have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Their owner.
    pub uid: Option<u32>,
    /// Their group.
    pub gid: Option<u32>,
    /// The permissions that they do not have; they have all others that there are here.
    pub umask: Option<u16>,
}

impl Attr {
    /// Of what is to be set, what is not as asked already. Refuses permissions other than those in `settable`.
    pub(super) fn changes(&self, set: SetAttr, settable: u16) -> Result<SetAttr, FsError> {
        if set.perm.is_some_and(|perm| (perm ^ self.perm) & 0o7777 & !settable != 0) {
            return Err(FsError::NotPermitted { what: "changing these permissions" });
        }
        Ok(SetAttr {
            perm: set.perm.filter(|perm| *perm != self.perm),
            uid: set.uid.filter(|uid| *uid != self.uid),
            gid: set.gid.filter(|gid| *gid != self.gid),
            ..set
        })
    }
}

impl Fs {
    /// Changes attributes: what is as asked already may be asked for; of the rest, the length can be set, of an array to
    /// that of whole rows, the owner, who may read and write a file, and times. Those of folders are forgotten when the
    /// mount ends.
    ///
    /// # Errors
    /// `ReadOnly`; `NotPermitted` for other permissions; `Invalid` for another length of an array; `Unsupported` if rows
    /// would have to move for it, and
    /// for an earlier time of a version that is gone; `Finished` for the length of a pending file that became one:
    /// [`Fs::detach_inode`] comes first; `Uncommitted` for times, if [`Fs::commit`] comes first; `Store` with `Locked` if
    /// another writer is at work, which is not waited for, or if the data file cannot be changed.
    pub fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, FsError> {
        self.setattr_of(ino, set, None)
    }

    /// As [`Fs::setattr`], of a file that is open, if `fh` is given: who alone has it open sees its new length, and may
    /// empty it.
    ///
    /// # Errors
    /// As [`Fs::setattr`]; `Busy` if a file is to be emptied that others have open.
    pub fn setattr_of(&self, ino: Ino, set: SetAttr, fh: Option<Fh>) -> Result<Attr, FsError> {
        if ino.is_pending() {
            return self.set_pending_attr(ino, set);
        }
        if ino.is_view() || ino.viewed().is_some() {
            return Err(FsError::ReadOnly);
        }
        let attr = self.getattr(ino)?;
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        if set.size.is_some() && attr.kind == FileKind::Directory {
            return Err(FsError::IsADirectory);
        }
        if attr.kind == FileKind::Directory {
            let set = attr.changes(set, DIRECTORY_PERM)?;
            write(&self.tree).set_attr(ino, set, SystemTime::now());
            return self.directory_attr(ino);
        }
        let inode = self.inodes.get(ino).ok_or(FsError::Stale { ino })?;
        if let Some(new) = self.instead_of(&inode) {
            let attr = self.set_pending_attr(new, set)?;
            return Ok(Attr { ino, ..attr });
        }
        let set = attr.changes(set, FILE_PERM)?;
        match set.size.filter(|size| *size != attr.size) {
            Some(0) => {
                self.empty_array(&inode, fh)?;
                return self.getattr(ino).map(|attr| Attr { size: 0, ..attr });
            }
            Some(size) => self.set_array_len(&inode, size, fh)?,
            None => {}
        }
        let (array, _) = inode.array();
        if set.uid.is_some() || set.gid.is_some() {
            array.set_owner(set.uid, set.gid)?;
        }
        if let Some(perm) = set.perm {
            array.set_mode(u32::from(perm))?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            if !inode.uncommitted.is_empty() {
                // Whose commit would set another time.
                return Err(FsError::Uncommitted { ino });
            }
            let set_times = || inode.set_times(&array, set.atime, set.mtime);
            inode.note_time(self.set_array_times(&array, set, set_times)?);
        }
        Ok(self.file_attr(&inode))
    }

    /// Sets an array's times, those of the data file by `set_times`. Returns the array as it is then.
    pub(super) fn set_array_times(
        &self,
        array: &Array,
        set: SetAttr,
        set_times: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Array, FsError> {
        // The later of the two times is shown.
        let array = match set.mtime {
            Some(mtime) if mtime < array.committed() => {
                match self.store.set_committed(array, mtime, Duration::ZERO) {
                    Err(StoreError::NotFound { .. }) => {
                        return Err(FsError::Unsupported {
                            what: "setting an earlier time of an array that was overwritten or removed",
                        });
                    }
                    result => result?,
                }
            }
            _ => array.clone(),
        };
        set_times()?;
        Ok(array)
    }

    pub(super) fn directory_attr(&self, ino: Ino) -> Result<Attr, FsError> {
        let (mtime, n_subdirectories, own) = {
            let tree = read(&self.tree);
            let directory = tree.directory(ino.viewed().unwrap_or(ino)).ok_or(FsError::Stale { ino })?;
            (directory.mtime, directory.n_subdirectories, directory.own)
        };
        let there_are = if ino.viewed().is_some() { DIRECTORY_PERM & !0o222 } else { DIRECTORY_PERM };
        let stat = self.store.stat()?;
        Ok(Attr {
            ino,
            kind: FileKind::Directory,
            size: 0,
            blocks: 0,
            atime: own.atime.unwrap_or(mtime),
            mtime,
            ctime: own.ctime.map_or(mtime, |ctime| ctime.max(mtime)),
            perm: self.perm(own.perm.map_or(stat.mode, u32::from), there_are),
            nlink: n_subdirectories.saturating_add(2),
            uid: self.shown.uid.or(own.uid).unwrap_or(stat.uid),
            gid: self.shown.gid.or(own.gid).unwrap_or(stat.gid),
        })
    }

    pub(super) fn file_attr(&self, inode: &Inode) -> Attr {
        let (array, shown_len) = inode.array();
        let stat = self.data_file_stat(&array);
        let mtime = stat.mtime.max(array.committed()).max(inode.uncommitted.written().unwrap_or(stat.mtime));
        Attr {
            ino: inode.ino,
            kind: FileKind::File,
            size: shown_len.saturating_add(inode.tail.len()),
            blocks: stat.allocated / 512,
            atime: stat.atime,
            mtime,
            ctime: stat.ctime.max(mtime),
            perm: self.perm(stat.mode, FILE_PERM),
            nlink: u32::from(self.is_present(inode)),
            uid: self.shown.uid.unwrap_or(stat.uid),
            gid: self.shown.gid.unwrap_or(stat.gid),
        }
    }

    /// The data file's attributes. One that is missing shows as an empty file of the store's owner: the array is
    /// listed, and reading it is an error that tells what is wrong.
    fn data_file_stat(&self, array: &Array) -> FileStat {
        let time = array.committed();
        array.stat().unwrap_or_else(|_| {
            let store = self.store.stat().ok();
            FileStat {
                ino: 0,
                dev: 0,
                len: 0,
                allocated: 0,
                atime: time,
                mtime: time,
                ctime: time,
                mode: 0o444,
                uid: store.as_ref().map_or(0, |stat| stat.uid),
                gid: store.as_ref().map_or(0, |stat| stat.gid),
                nlink: 0,
            }
        })
    }

    /// The permissions that are shown of a file or folder that has these, as far as there are such.
    pub(super) fn perm(&self, mode: u32, there_are: u16) -> u16 {
        let writable = if self.read_only { !0o222 } else { !0 };
        let own = || u16::try_from(mode & 0o7777).unwrap_or_default();
        self.shown.umask.map_or_else(own, |umask| !umask) & there_are & writable
    }
}
