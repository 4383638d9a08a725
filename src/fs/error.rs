//! What a file operation can answer instead of doing what was asked, and the one table from there to errno.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use libc::c_int;

use super::{Fh, Ino};
use crate::store::StoreError;

/// An error of [`Fs`](super::Fs).
#[derive(Debug)]
#[non_exhaustive]
pub enum FsError {
    /// The folder has no such name.
    NoEntry,
    /// The inode's array version was overwritten or removed, or its folder is gone: the name must be looked up again.
    Stale {
        /// The inode.
        ino: Ino,
    },
    /// No open file has this handle.
    BadHandle {
        /// The handle.
        fh: Fh,
    },
    /// The inode is a file, and the operation is one of folders.
    NotADirectory,
    /// The inode is a folder, and the operation is one of files.
    IsADirectory,
    /// The folder is not empty.
    NotEmpty,
    /// The name is taken.
    Exists,
    /// There is no such extended attribute.
    NoAttribute,
    /// An attribute's value is longer than the kernel takes.
    AttributeTooLong,
    /// An inode has as many attributes as can be listed.
    TooManyAttributes,
    /// The name is over 255 bytes.
    NameTooLong,
    /// No array is shown under such a name: it is not UTF-8, or holds an escape that its array's name does not need.
    BadName,
    /// The mount is read-only.
    ReadOnly,
    /// Nothing that a mount offers, for good.
    NotPermitted {
        /// What was asked.
        what: &'static str,
    },
    /// Nothing that a mount offers now.
    Unsupported {
        /// What was asked.
        what: &'static str,
    },
    /// An argument that no file system takes.
    Invalid {
        /// What was asked.
        what: &'static str,
    },
    /// Nothing that can be done while others use the file.
    Busy {
        /// What was asked.
        what: &'static str,
    },
    /// The pending file became an array, and is to be changed: [`Fs::detach`](super::Fs::detach) comes first.
    Finished {
        /// The inode.
        ino: Ino,
    },
    /// So much was written that is not committed, or to what is asked for, that [`Fs::commit`](super::Fs::commit) or
    /// [`Fs::commit_all`](super::Fs::commit_all) comes first.
    Uncommitted {
        /// The inode.
        ino: Ino,
    },
    /// So much of a view has to be read for a checksum that [`Fs::prepare_view`](super::Fs::prepare_view) comes first.
    Unread {
        /// The handle.
        fh: Fh,
        /// How many bytes.
        len: u64,
    },
    /// A write that was answered before it was done has failed since, so the file is not what was written to it.
    WriteLost {
        /// Why it failed.
        first: Arc<StoreError>,
    },
    /// The store's answer.
    Store(StoreError),
}

impl FsError {
    /// The errno that the kernel hands to the calling program.
    pub fn errno(&self) -> c_int {
        match self {
            Self::NoEntry => libc::ENOENT,
            // The kernel answers ESTALE by looking the path up again, so programs see the name's present array.
            Self::Stale { .. } => libc::ESTALE,
            Self::BadHandle { .. } => libc::EBADF,
            Self::NotADirectory => libc::ENOTDIR,
            Self::IsADirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::Exists => libc::EEXIST,
            Self::NoAttribute => libc::ENODATA,
            // setxattr(2) has these for values and for file systems that have no room for them.
            Self::AttributeTooLong => libc::E2BIG,
            Self::TooManyAttributes => libc::ENOSPC,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::BadName | Self::Invalid { .. } => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            Self::NotPermitted { .. } => libc::EPERM,
            Self::Unsupported { .. } => libc::EOPNOTSUPP,
            Self::Busy { .. } => libc::EBUSY,
            // "Try again": who answers programs does so first.
            Self::Finished { .. } | Self::Uncommitted { .. } | Self::Unread { .. } => libc::EBUSY,
            Self::WriteLost { first } => store_errno(first),
            Self::Store(error) => store_errno(error),
        }
    }
}

/// The errno of a store's error. Judgements are marked.
fn store_errno(error: &StoreError) -> c_int {
    match error {
        StoreError::NotFound { .. } => libc::ENOENT,
        StoreError::Exists { .. } | StoreError::StoreExists { .. } => libc::EEXIST,
        StoreError::ReadOnly { .. } | StoreError::OldLayout { .. } => libc::EROFS,
        // The store was there when it was mounted, so its loss is a failure of the medium.
        StoreError::NotAStore { .. } => libc::EIO,
        StoreError::Format { .. } | StoreError::DataFile { .. } | StoreError::Block { .. } => libc::EIO,
        // Another writer is at work: "try again" in the words that unlink(2) and rename(2) have for it.
        StoreError::Locked { .. } | StoreError::ChangedMeanwhile { .. } => libc::EBUSY,
        StoreError::Interrupted { .. } => libc::EINTR,
        StoreError::ShapeMismatch { .. }
        | StoreError::DtypeMismatch { .. }
        | StoreError::RowCount { .. }
        | StoreError::IndexOutOfRange { .. }
        | StoreError::NoRows { .. }
        | StoreError::BufferLen { .. }
        | StoreError::Refused { .. } => libc::EINVAL,
        // EPERM as for a file with the immutable attribute: no permission bit will help.
        StoreError::HeaderWrite { .. } => libc::EPERM,
        // write(2): "a position past the maximum allowed offset". Not ENOSPC, which sends people to df.
        StoreError::OutOfBounds { .. } => libc::EFBIG,
        StoreError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        StoreError::Poisoned { first, .. } => store_errno(first),
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEntry => write!(f, "no such file or folder"),
            Self::Stale { ino } => {
                write!(f, "inode {ino} is of an array version that no name leads to any more")
            }
            Self::BadHandle { fh } => write!(f, "no open file has the handle {fh}"),
            Self::NotADirectory => write!(f, "not a folder"),
            Self::IsADirectory => write!(f, "is a folder"),
            Self::NotEmpty => write!(f, "the folder is not empty"),
            Self::Exists => write!(f, "the name is taken"),
            Self::NoAttribute => write!(f, "no such attribute"),
            Self::AttributeTooLong => write!(f, "the attribute takes over 64 KiB as JSON"),
            Self::TooManyAttributes => write!(f, "the names of all attributes take over 64 KiB"),
            Self::NameTooLong => write!(f, "the name is over 255 bytes"),
            Self::BadName => write!(f, "no array is shown under such a name"),
            Self::ReadOnly => write!(f, "the mount is read-only"),
            Self::NotPermitted { what } | Self::Unsupported { what } | Self::Invalid { what } => {
                write!(f, "a mount does not offer {what}")
            }
            Self::Busy { what } => write!(f, "a mount does not allow {what}"),
            Self::Finished { ino } => write!(f, "the file of inode {ino} is an array now"),
            Self::Uncommitted { ino } => {
                write!(f, "what was written to inode {ino} is to be committed first")
            }
            Self::Unread { fh, len } => {
                write!(f, "{len} bytes of the view with the handle {fh} are to be read first")
            }
            Self::WriteLost { first } => {
                write!(f, "a write to this file failed: {first}; empty it, and write it again")
            }
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl Error for FsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::WriteLost { first } => Some(&**first),
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
