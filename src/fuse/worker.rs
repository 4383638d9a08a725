//! Threads for what may wait: for other writers, who may be at work for long, and for the disk. The threads that
//! answer requests never do, or a mount would stand still while another process appends.
//!
//! Changes of names have a thread of their own. The kernel keeps a folder locked until such a change is answered, so
//! it must not stand behind pages that wait to be written back, which they do for as long as it takes. Arrays are
//! decoded whole by two more.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::ReplyWrite;
use log::{info, warn};

use super::convert::errno;
use super::decoded::Opener;
use super::notify::Job;
use crate::fs::{Fh, FsError, Ino, Written};
use crate::store::StoreError;

/// How long a program's `write` or the like waits for another writer before it fails, as changes of names do.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The time between two attempts grows to this.
const MAX_PAUSE: Duration = Duration::from_millis(20);

type Task = Box<dyn FnOnce() + Send>;

/// Where tasks are handed over.
#[derive(Clone)]
pub(super) struct Tasks {
    elements: Sender<Option<Task>>,
    names: Sender<Option<Task>>,
    small: Sender<Option<Task>>,
    large: Sender<Option<Task>>,
}

impl Tasks {
    /// Has `task` done, after those before it. If the thread is gone, it is dropped: replies in it answer `EIO`.
    pub(super) fn hand_over(&self, task: impl FnOnce() + Send + 'static) {
        let _ = self.elements.send(Some(Box::new(task)));
    }

    /// As [`Tasks::hand_over`], for a change of names.
    pub(super) fn hand_over_names(&self, task: impl FnOnce() + Send + 'static) {
        let _ = self.names.send(Some(Box::new(task)));
    }

    /// As [`Tasks::hand_over`], for an array to be decoded: small ones do not wait for large ones.
    pub(super) fn hand_over_decoding(&self, is_small: bool, task: impl FnOnce() + Send + 'static) {
        let tasks = if is_small { &self.small } else { &self.large };
        let _ = tasks.send(Some(Box::new(task)));
    }

    /// Ends the threads when the tasks up to now are done.
    pub(super) fn stop(&self) {
        for tasks in [&self.elements, &self.names, &self.small, &self.large] {
            let _ = tasks.send(None);
        }
    }
}

/// Starts the threads.
pub(super) fn start() -> io::Result<(Tasks, [JoinHandle<()>; 4])> {
    let (elements, element_thread) = start_one("npkfs-worker")?;
    let (names, name_thread) = start_one("npkfs-names")?;
    let (small, small_thread) = start_one("npkfs-decode")?;
    let (large, large_thread) = start_one("npkfs-decode")?;
    Ok((Tasks { elements, names, small, large }, [element_thread, name_thread, small_thread, large_thread]))
}

fn start_one(name: &str) -> io::Result<(Sender<Option<Task>>, JoinHandle<()>)> {
    let (tasks, queue): (_, Receiver<Option<Task>>) = mpsc::channel();
    let thread = thread::Builder::new()
        .name(name.into())
        .spawn(move || queue.into_iter().map_while(|task| task).for_each(|task| task()))?;
    Ok((tasks, thread))
}

/// Whether an error means that another writer is at work.
fn is_locked(error: &FsError) -> bool {
    matches!(error, FsError::Store(StoreError::Locked { .. }))
}

/// Whether an operation fails only because it may not wait: for another writer, for a file that is copied first, or
/// for a commit.
pub(super) fn must_wait(error: &FsError) -> bool {
    is_locked(error) || matches!(error, FsError::Finished { .. } | FsError::Uncommitted { .. })
}

/// Tries an operation on an inode until no other writer is at work.
pub(super) fn waiting<T>(
    opener: &Opener,
    mut attempt: impl FnMut() -> Result<T, FsError>,
) -> Result<T, FsError> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match attempt() {
            Err(FsError::Finished { ino }) if start.elapsed() < WRITE_TIMEOUT => {
                opener.fs.detach_inode(ino)?;
                opener.drop_name(ino);
            }
            Err(FsError::Uncommitted { ino }) if start.elapsed() < WRITE_TIMEOUT => opener.fs.commit(ino)?,
            Err(error) if is_locked(&error) && start.elapsed() < WRITE_TIMEOUT => {
                thread::sleep(pause);
                pause = (2 * pause).min(MAX_PAUSE);
            }
            result => return result,
        }
    }
}

/// Where bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteAt {
    /// At an offset; `from_cache`: the kernel writes back pages.
    Offset { offset: u64, from_cache: bool },
    /// Behind all that is there.
    End,
}

impl WriteAt {
    fn is_from_cache(self) -> bool {
        matches!(self, Self::Offset { from_cache: true, .. })
    }
}

/// A write that met another writer, or a file that became an array, or found no room.
pub(super) struct WaitingWrite {
    pub(super) opener: Arc<Opener>,
    pub(super) ino: Ino,
    pub(super) fh: Fh,
    pub(super) at: WriteAt,
    pub(super) data: Vec<u8>,
    pub(super) reply: ReplyWrite,
}

impl WaitingWrite {
    /// Tries until the other writer is done. Pages that are written back have nobody who would try again, so they
    /// wait for as long as it takes.
    pub(super) fn finish(self, len: u32) {
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        let mut said = false;
        let result = loop {
            let result = self.write();
            let waited = start.elapsed();
            match &result {
                Err(error) if is_locked(error) && (self.at.is_from_cache() || waited < WRITE_TIMEOUT) => {
                    if waited > WRITE_TIMEOUT && !said {
                        warn!("pages wait to be written back: {error}");
                        said = true;
                    }
                }
                Err(FsError::Finished { .. }) => match self.opener.fs.detach(self.fh) {
                    Ok(()) => {
                        self.opener.drop_name(self.ino);
                        continue;
                    }
                    Err(error) => break Err(error),
                },
                Err(FsError::Uncommitted { .. }) => match self.opener.fs.commit_all() {
                    Ok(()) => continue,
                    Err(error)
                        if is_locked(&error) && (self.at.is_from_cache() || waited < WRITE_TIMEOUT) => {}
                    // There may be room for all that.
                    Err(error) => {
                        let again = self.write();
                        let is_full = matches!(again, Err(FsError::Uncommitted { .. }));
                        break if is_full { Err(error) } else { again };
                    }
                },
                _ => break result,
            }
            thread::sleep(pause);
            pause = (2 * pause).min(MAX_PAUSE);
        };
        if said {
            info!("pages were written back after {:.0} s", start.elapsed().as_secs_f64());
        }
        match result {
            Ok(written) => {
                if written == Written::First {
                    let _ = self.opener.jobs.send(Job::Written);
                }
                self.reply.written(len);
            }
            Err(error) => self.reply.error(errno(&error)),
        }
    }

    fn write(&self) -> Result<Written, FsError> {
        self.opener.write(self.ino, self.fh, self.at, &self.data)
    }
}
