//! Two threads that make commits of other processes seen through a running mount.
//!
//! The watcher blocks on inotify and says that the manifest changed. The notifier lets [`Fs`] take the change over and
//! tells the kernel what to drop. Telling the kernel can wait for a request of its own to be answered, so no thread
//! that answers requests ever does it: they queue a [`Job`]. The queue is in order, so an open that must not see old
//! pages is answered from it, behind their invalidation.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use log::{debug, info, warn};

use super::passthrough::Passthrough;
use super::worker::Tasks;
use crate::fs::{DecodedFiles, Fs, Invalidation};

/// Something for the notifier to do.
pub(super) enum Job {
    /// The manifest may have changed.
    Changed,
    /// The kernel must drop something.
    Invalidate(Invalidation),
    /// A file was opened through the page cache, and nobody looks after those.
    Cached,
    /// A file was written to, and nobody told, or it is not committed; or a version that is gone was closed.
    Written,
    /// What had to wait for the jobs before it.
    Then(Box<dyn FnOnce() + Send>),
    /// The mount is gone.
    Stop,
}

/// How often to look for what nobody tells: writes in place to files that are open, and the manifest where inotify
/// does not see every change of it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the notifier works with.
pub(super) struct Notice {
    pub(super) fs: Arc<Fs>,
    pub(super) passthrough: Arc<Passthrough>,
    pub(super) decoded: Arc<DecodedFiles>,
    pub(super) kernel: Notifier,
    pub(super) tasks: Tasks,
    /// Whether to look at the manifest, too.
    pub(super) poll: bool,
}

impl Notice {
    /// Carries out jobs until [`Job::Stop`].
    fn run(&self, jobs: &Receiver<Job>) {
        let mut next_look = Instant::now();
        loop {
            let looks = self.poll || self.passthrough.is_watched();
            let waits = self.fs.has_untold() || self.fs.has_uncommitted() || self.decoded.has_leftover();
            let job = if looks || waits {
                jobs.recv_timeout(next_look.saturating_duration_since(Instant::now()))
            } else {
                let job = jobs.recv().map_err(RecvTimeoutError::from);
                next_look = Instant::now() + LOOK_INTERVAL;
                job
            };
            match job {
                // `sync` has logged it, and what could be seen before can be seen still.
                Ok(Job::Changed) => drop(self.fs.sync()),
                Ok(Job::Invalidate(invalidation)) => {
                    debug!("{invalidation:?}");
                    if let Err(error) = invalidate(&self.fs, &self.decoded, &self.kernel, &invalidation) {
                        debug!("{invalidation:?}: {error}");
                    }
                }
                Ok(Job::Then(then)) => then(),
                Ok(Job::Cached) => {
                    let fs = Arc::clone(&self.fs);
                    self.tasks.hand_over(move || fs.watch());
                }
                // There is something to look for from now on.
                Ok(Job::Written) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    next_look = Instant::now() + LOOK_INTERVAL;
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&self) {
        if self.poll {
            drop(self.fs.sync());
        }
        for ino in self.passthrough.cached() {
            self.fs.revalidate(ino);
        }
        self.passthrough.end_watch();
        if self.decoded.has_leftover() {
            self.decoded.tidy(&self.fs);
        }
        if self.fs.has_untold() {
            let fs = Arc::clone(&self.fs);
            self.tasks.hand_over(move || fs.tell_written());
        }
        if self.fs.has_uncommitted() {
            let fs = Arc::clone(&self.fs);
            self.tasks.hand_over(move || fs.commit_due());
        }
    }
}

fn invalidate(
    fs: &Fs,
    decoded: &DecodedFiles,
    kernel: &Notifier,
    invalidation: &Invalidation,
) -> io::Result<()> {
    match invalidation {
        Invalidation::Removed { parent, name, child } => {
            kernel.delete(INodeNo(parent.0), INodeNo(child.0), OsStr::new(&**name))
        }
        Invalidation::Entry { parent, name } => kernel.inval_entry(INodeNo(parent.0), OsStr::new(&**name)),
        Invalidation::Attr { ino } => {
            // No name may lead to it any more.
            decoded.tidy(fs);
            kernel.inval_inode(INodeNo(ino.0), -1, 0)
        }
        Invalidation::Content { ino, header_len, from } => {
            let node = INodeNo(ino.0);
            let offset = i64::try_from(*from).unwrap_or(i64::MAX);
            let header_len = i64::try_from(*header_len).unwrap_or(i64::MAX);
            decoded.follow(fs, *ino);
            // All steps are taken even if one fails: length and header must not stay behind for ever.
            let elements = kernel.inval_inode(node, offset, 0);
            let length = match fs.show_length(*ino) {
                Some(last) => kernel.store(node, last.offset, &last.byte),
                None => Ok(()),
            };
            let attributes = kernel.inval_inode(node, -1, 0);
            fs.settle(*ino);
            decoded.show_header(fs, *ino);
            let header = kernel.inval_inode(node, 0, header_len);
            elements.and(length).and(attributes).and(header)
        }
        Invalidation::Pages { ino, block } => {
            let node = INodeNo(ino.0);
            fs.store_pages(*ino, *block, |offset, bytes| kernel.store(node, offset, bytes))
        }
    }
}

/// The thread that watches a store's manifest.
pub(super) struct Watcher {
    watches: Watches,
    directory: WatchDescriptor,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Starts to watch; each change queues a [`Job::Changed`].
    pub(super) fn start(manifest: PathBuf, jobs: Sender<Job>) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mut watches = inotify.watches();
        let directory = manifest.parent().unwrap_or(Path::new("."));
        // A new snapshot is a new file under the manifest's name.
        let mask = WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        let directory = watches.add(directory, mask | WatchMask::ONLYDIR)?;
        let stop_at = directory.clone();
        let mut watches_of_thread = inotify.watches();
        watch_manifest(&mut watches_of_thread, &manifest);
        let thread = thread::Builder::new()
            .name("npkfs-watch".into())
            .spawn(move || watch(inotify, watches_of_thread, &manifest, &stop_at, &jobs))?;
        Ok(Self { watches, directory, thread })
    }

    /// Ends the thread.
    pub(super) fn stop(mut self) {
        // Answered by an event that says so, which is what the thread ends at. An error means that it is gone already.
        let _ = self.watches.remove(self.directory);
        let _ = self.thread.join();
    }
}

fn watch_manifest(watches: &mut Watches, manifest: &Path) {
    if let Err(error) = watches.add(manifest, WatchMask::MODIFY) {
        debug!("cannot watch {}: {error}", manifest.display());
    }
}

fn watch(
    mut inotify: Inotify,
    mut watches: Watches,
    manifest: &Path,
    directory: &WatchDescriptor,
    jobs: &Sender<Job>,
) {
    let mut buffer = [0; 4096];
    loop {
        let events = match inotify.read_events_blocking(&mut buffer) {
            Ok(events) => events,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                warn!("commits of other processes are seen late from now on: {error}");
                return;
            }
        };
        let mut replaced = false;
        let mut ended = false;
        for event in events {
            let in_directory = event.wd == *directory;
            replaced |= in_directory && event.name.is_some() && event.name == manifest.file_name();
            replaced |= event.mask.contains(EventMask::Q_OVERFLOW);
            ended |= in_directory && event.mask.contains(EventMask::IGNORED);
            if in_directory && event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
                info!("{}: the store's folder was removed or moved", manifest.display());
            }
        }
        if replaced {
            watch_manifest(&mut watches, manifest);
        }
        if jobs.send(Job::Changed).is_err() || ended {
            return;
        }
    }
}

/// Hands the store's changes over when they come from a method of [`Fs`].
pub(super) fn queue(jobs: Sender<Job>) -> impl Fn(Invalidation) + Send + Sync + 'static {
    // A queue that nobody reads any more belongs to a mount that is gone.
    move |invalidation| drop(jobs.send(Job::Invalidate(invalidation)))
}

/// Starts the notifier.
pub(super) fn start(notice: Notice, jobs: Receiver<Job>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("npkfs-notify".into()).spawn(move || notice.run(&jobs))
}
