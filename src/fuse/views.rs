//! Requests about views. Opening one may open many data files, and reading one may take much to be read before:
//! neither is done by the threads that answer requests.

use std::sync::Arc;

use fuser::{FileHandle, FopenFlags, ReplyData, ReplyOpen};

use super::adapter::Adapter;
use super::convert::errno;
use super::decoded::FIRST_OPEN_LEN;
use crate::fs::{Caller, Fh, Fs, FsError, Ino, OpenFlags};

/// How a view is open: its pages never get old, and closing it is of no interest.
fn flags() -> FopenFlags {
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
}

pub(super) fn open(adapter: &Adapter, ino: Ino, how: OpenFlags, caller: Caller, reply: ReplyOpen) {
    let (fs, tasks) = (Arc::clone(&adapter.fs), adapter.tasks.clone());
    adapter.tasks.hand_over_decoding(true, move || match fs.open_view(ino, how, caller) {
        Ok(fh) => reply.opened(FileHandle(fh.0), flags()),
        Err(FsError::Uncommitted { .. }) => tasks.hand_over(move || {
            // What cannot be committed is not shown, and is logged.
            let _ = fs.commit_view(ino);
            reply.error(errno(&fs.look_again(ino, caller)));
        }),
        Err(error) => reply.error(errno(&error)),
    });
}

pub(super) fn read(adapter: &Adapter, fh: Fh, offset: u64, size: u32, reply: ReplyData) {
    let Some((error, reply)) = answer(&adapter.fs, fh, offset, size, reply) else { return };
    let FsError::Unread { len, .. } = error else { return reply.error(errno(&error)) };
    let fs = Arc::clone(&adapter.fs);
    adapter.tasks.hand_over_decoding(len <= FIRST_OPEN_LEN, move || {
        let failed = match fs.prepare_view(fh, offset, size) {
            Ok(()) => answer(&fs, fh, offset, size, reply),
            Err(error) => Some((error, reply)),
        };
        if let Some((error, reply)) = failed {
            reply.error(errno(&error));
        }
    });
}

/// Answers, or gives back what to answer with, and why it did not.
fn answer(fs: &Fs, fh: Fh, offset: u64, size: u32, reply: ReplyData) -> Option<(FsError, ReplyData)> {
    let mut reply = Some(reply);
    let result = fs.read(fh, offset, size, |bytes| {
        if let Some(reply) = reply.take() {
            reply.data(bytes);
        }
    });
    result.err().zip(reply)
}
