//! Between fuser's types and those of [`fs`](crate::fs).

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, INodeNo, OpenAccMode, ReplyEmpty, ReplyOpen,
    ReplyXattr,
};
use log::debug;

use super::passthrough::OpenAs;
use crate::fs::{Attr, BLKSIZE, Fh, FileKind, FsError, Ino, Opened};

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub(super) fn fh(handle: FileHandle) -> Fh {
    Fh(handle.0)
}

pub(super) fn errno(error: &FsError) -> Errno {
    debug!("answered with errno {}: {error}", error.errno());
    Errno::from_i32(error.errno())
}

/// The permissions in a mode.
pub(super) fn perm(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or_default()
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.ctime,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: BLKSIZE,
        flags: 0,
    }
}

pub(super) fn empty(reply: ReplyEmpty, result: Result<(), FsError>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Answers with an attribute, or, to who asks with a size of 0, with its length.
pub(super) fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(bytes) if size == 0 => reply.size(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
        Ok(bytes) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Answers an open.
pub(super) fn answer_open(reply: ReplyOpen, opened: &Opened, write: bool, open_as: &OpenAs) {
    let fh = FileHandle(opened.fh.0);
    match open_as {
        OpenAs::Backed { id, .. } => {
            // Through such a handle write() could reach past the array's end, and change its header, unseen. With
            // DIRECT_IO it comes to us, and only mappings go to the file.
            let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            // Closing one that was written to is when a part of a row is refused.
            let flags = if write { direct } else { FopenFlags::FOPEN_NOFLUSH };
            reply.opened_passthrough(fh, flags, id);
        }
        OpenAs::Cached { keep, .. } => {
            let mut flags = FopenFlags::empty();
            // Pages never change behind the kernel's back without it being told, so they outlive the open file.
            flags.set(FopenFlags::FOPEN_KEEP_CACHE, *keep);
            // Nothing of ours to flush; but closing a file that was written to must bring its pages here.
            flags.set(FopenFlags::FOPEN_NOFLUSH, !write);
            reply.opened(fh, flags);
        }
        OpenAs::Aside => reply.error(Errno::ESTALE),
    }
}

/// How a pending file is open: through the page cache, which outlives the open file, because nobody else changes it. Who
/// can only write cannot map it, and has no use for pages that would be filled on the way here.
pub(super) fn pending_flags(mode: OpenAccMode) -> FopenFlags {
    let mut flags = FopenFlags::FOPEN_KEEP_CACHE;
    flags.set(FopenFlags::FOPEN_DIRECT_IO, mode == OpenAccMode::O_WRONLY);
    // Closing one that was written to is when it becomes an array, or is refused.
    flags.set(FopenFlags::FOPEN_NOFLUSH, mode == OpenAccMode::O_RDONLY);
    flags
}
