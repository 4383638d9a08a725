//! What `stat` shows. Our own types, so that this module can be tested, and used, without a kernel.

use std::time::SystemTime;

use super::Ino;

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

/// `st_blksize`: what programs such as `cp` take for a good size of one read.
pub const BLKSIZE: u32 = 4096;

/// Longest name of a file or folder, in bytes.
pub const NAME_MAX: usize = 255;
