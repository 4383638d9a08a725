//! Opening files: by the kernel alone, from the data file or from one that the array was decoded in, or through the
//! daemon.
//!
//! An array that is to be decoded first has its `open` answered when that is done, by the thread that did it. Whoever
//! opens the same array meanwhile waits for the same.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fuser::{Errno, INodeNo, Notifier, ReplyOpen};
use log::debug;

use super::convert::{answer_open, errno, ino};
use super::notify::Job;
use super::passthrough::{OpenAs, Passthrough, Source, Wish};
use super::worker::{Tasks, WriteAt};
use crate::fs::{
    Caller, DecodePolicy, DecodedFile, DecodedFiles, Fh, Found, Fs, FsError, Ino, Opened, Written,
};
use crate::sys::{memory, process};

/// Arrays of at most this many bytes are decoded when they are first opened, larger ones after much was read of them. On all cores that takes less time than to
/// read the whole array through the daemon, whatever its size (8 ms of 11 ms for 12 MiB, 2 cores); but who opens it may
/// want one row, and should not wait for long.
pub(super) const FIRST_OPEN_LEN: u64 = 32 << 20;
/// Arrays of fewer bytes are never decoded: to make a file takes longer than reading it saves.
const MIN_LEN: u64 = 512 << 10;
/// Decoded arrays have this part of the descriptors that this process may have.
const PART_OF_DESCRIPTORS: usize = 4;

/// Decoded arrays have this part of the memory at most, unless somebody says how much.
const PART_OF_MEMORY: u64 = 8;
/// And this part of what is free on the disk.
const PART_OF_DISK: u64 = 4;

/// An `open` that is not answered yet.
pub(super) struct Opening {
    pub(super) node: INodeNo,
    pub(super) caller: Caller,
    pub(super) write: bool,
    pub(super) opened: Opened,
    pub(super) reply: ReplyOpen,
}

/// Answers `open`.
pub(super) struct Opener {
    pub(super) fs: Arc<Fs>,
    pub(super) passthrough: Arc<Passthrough>,
    pub(super) decoded: Arc<DecodedFiles>,
    pub(super) jobs: Sender<Job>,
    pub(super) tasks: Tasks,
    /// Set once the kernel answers.
    pub(super) kernel: Arc<OnceLock<Notifier>>,
    /// Who waits for an array to be decoded.
    pub(super) waiting: Mutex<HashMap<Ino, Vec<Opening>>>,
}

/// The decoded files of a mount; `limit` is how many bytes they may have, if somebody says so.
pub(super) fn files(fs: &Fs, limit: Option<u64>) -> DecodedFiles {
    let default = || {
        let free =
            fs.store().stat_fs().map_or(0, |stat| stat.blocks_available.saturating_mul(stat.block_len));
        (memory::total_len().unwrap_or(0) / PART_OF_MEMORY).min(free / PART_OF_DISK)
    };
    DecodedFiles::new(DecodePolicy {
        limit: limit.unwrap_or_else(default),
        max_files: process::max_descriptors() / PART_OF_DESCRIPTORS,
        min_len: MIN_LEN,
        first_open_len: FIRST_OPEN_LEN,
    })
}

impl Opener {
    /// Answers at once, or when what is to be done before is done.
    pub(super) fn open(self: &Arc<Self>, opening: Opening) {
        let ino = ino(opening.node);
        if !self.fs.is_other_uncommitted(ino) {
            return self.open_committed(opening);
        }
        let this = Arc::clone(self);
        self.tasks.hand_over(move || match this.fs.commit(ino) {
            Ok(()) => this.open_committed(opening),
            Err(error) => {
                this.fs.release(opening.opened.fh);
                opening.reply.error(errno(&error));
            }
        });
    }

    fn open_committed(self: &Arc<Self>, opening: Opening) {
        let ino = ino(opening.node);
        let array = &opening.opened.array;
        if opening.write || array.codec().is_none() || self.decoded.limit() == 0 || !self.may_pass(&opening) {
            return self.answer(opening, None);
        }
        match self.decoded.find(&self.fs, ino, array) {
            Found::Nothing => self.answer(opening, None),
            Found::Current(file) => self.answer(opening, Some(file)),
            Found::Wanted => {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(others) = waiting.get_mut(&ino) {
                    others.push(opening);
                    return;
                }
                let array = array.clone();
                waiting.insert(ino, vec![opening]);
                drop(waiting);
                let this = Arc::clone(self);
                self.tasks.hand_over_decoding(array.nbytes() <= FIRST_OPEN_LEN, move || {
                    let file = this.decoded.bring(&this.fs, ino, &array);
                    let waiting = this.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
                    for opening in waiting.into_iter().flatten() {
                        this.answer(opening, file.clone());
                    }
                });
            }
        }
    }

    /// Whether the kernel takes files, which is found out before anything is decoded for it.
    fn may_pass(&self, opening: &Opening) -> bool {
        self.passthrough.is_available(|| {
            let scratch = self.fs.store().scratch_file().map_err(std::io::Error::other)?;
            let fd = scratch.fd().ok_or(std::io::ErrorKind::Unsupported)?;
            opening.reply.open_backing(fd)
        })
    }

    fn answer(&self, opening: Opening, decoded: Option<Arc<DecodedFile>>) {
        let Opening { node, caller, write, opened, reply } = opening;
        let ino = ino(node);
        let array = &opened.array;
        let may_pass = array.n_deleted() == 0 && array.codec().is_none();
        let source = match decoded {
            Some(file) => Source::Decoded(file),
            None => array.backing().ok().flatten().map_or(Source::Daemon, Source::DataFile),
        };
        let register = |fd: BorrowedFd<'_>| reply.open_backing(fd);
        let wish = Wish { fs: &self.fs, ino, caller, write, may_pass, source };
        let open_as = self.passthrough.open(wish, register);
        let settled = match open_as {
            OpenAs::Backed { decoded, .. } => {
                // Only of attributes, and for that the kernel needs no answer of ours.
                if let Some(kernel) = self.kernel.get()
                    && let Err(error) = kernel.inval_inode(node, -1, 0)
                {
                    debug!("attributes of inode {ino} are not dropped: {error}");
                }
                if decoded {
                    // What changes shows when the file has followed.
                    self.fs.revalidate(ino) && opened.settled
                } else {
                    self.fs.bypass(ino);
                    opened.settled
                }
            }
            OpenAs::Cached { unwatched, .. } => {
                if unwatched {
                    let _ = self.jobs.send(Job::Cached);
                }
                self.fs.revalidate(ino) && opened.settled
            }
            OpenAs::Aside => {
                self.fs.release(opened.fh);
                return reply.error(Errno::ESTALE);
            }
        };
        if settled {
            answer_open(reply, &opened, write, &open_as);
        } else {
            let answer = Box::new(move || answer_open(reply, &opened, write, &open_as));
            // If nobody reads the queue any more, the reply is dropped, which answers EIO.
            let _ = self.jobs.send(Job::Then(answer));
        }
    }

    /// As [`Fs::write`] and [`Fs::append`], to the file that the array is decoded in, too.
    pub(super) fn write(&self, ino: Ino, fh: Fh, at: WriteAt, data: &[u8]) -> Result<Written, FsError> {
        let WriteAt::Offset { offset, from_cache } = at else { return self.fs.append(fh, data) };
        let Some(file) = self.decoded.get(ino) else { return self.fs.write(fh, offset, data, from_cache) };
        let decoded = file.write();
        let result = self.fs.write(fh, offset, data, from_cache);
        if result.is_ok() {
            decoded.write(&self.fs, offset, data);
        }
        result
    }

    /// Lets the kernel look the name of an inode up again, now: what [`Fs`] tells has its turn later. Only for threads that
    /// answer no requests.
    pub(super) fn drop_name(&self, ino: Ino) {
        if let (Some(kernel), Some((parent, name))) = (self.kernel.get(), self.fs.place_of(ino))
            && let Err(error) = kernel.inval_entry(INodeNo(parent.0), OsStr::new(&*name))
        {
            debug!("{name:?} is not dropped: {error}");
        }
    }

    /// The kernel closed a file.
    pub(super) fn closed(&self, ino: Ino) {
        if self.passthrough.close(ino) {
            self.decoded.tidy(&self.fs);
            if self.decoded.has_leftover() {
                let _ = self.jobs.send(Job::Written);
            }
        }
    }
}
