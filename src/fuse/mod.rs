//! The mount: [`mount`] hands a store to the kernel by way of `fuser`, and [`Mounted`] stands for what it gets.
//!
//! Four kinds of threads: fuser's answer requests (`adapter`), workers do what may wait (`worker`), the
//! notifier tells the kernel what changed, the watcher sees that something did (`notify`). Which files the kernel
//! serves by itself is decided in `passthrough`, and which arrays are decoded for that in `decoded`.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::{self, JoinHandle};

use fuser::{Session, SessionACL};
use log::{info, warn};

use crate::fs::{Counts, DecodedFiles, Fs, FsError, Ino, Shown};
use crate::store::{Compression, Store};

mod adapter;
mod convert;
mod decoded;
mod device;
mod notify;
mod passthrough;
mod readahead;
mod views;
mod worker;

use adapter::Adapter;
use decoded::Opener;
use device::DEVICE;
use notify::{Job, Notice, Watcher};
use passthrough::Passthrough;
use worker::Tasks;

/// Threads that answer requests. The kernel's copying into and out of them is what limits a mount without
/// passthrough, and more than two gain nothing there.
const DEFAULT_THREADS: usize = 2;
const MAX_THREADS: usize = 16;

/// How to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed. A store that is open for reading only is mounted so in any case.
    pub read_only: bool,
    /// Other users may use the mount, as far as the permissions shown in it let them.
    pub allow_other: bool,
    /// What is shown of all files and folders, whatever the store's have: the kernel decides by that who may do what.
    pub shown: Shown,
    /// Whether the kernel may serve files by itself.
    pub passthrough: PassthroughMode,
    /// How new arrays are compressed, or that they are not; `None`: as the store says.
    pub compression: Option<Option<Compression>>,
    /// How many bytes compressed arrays may have together that are decoded whole, for the kernel to serve them by itself;
    /// 0: none is. `None`: an eighth of the memory, or a quarter of what is free on the store's disk, if that is less.
    pub decoded: Option<u64>,
    /// Threads that answer requests; 0 for the default of 2.
    pub threads: usize,
    /// Further options for the kernel as mount(8) has them: `nodev`, `noatime` and so on.
    pub kernel: Vec<String>,
    /// What the mount table shows as the source; the store's path if empty.
    pub source_name: String,
}

/// Whether the kernel may serve files by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PassthroughMode {
    /// Wherever it can.
    #[default]
    Auto,
    /// Never: all goes through the daemon and the page cache.
    Off,
}

/// Why a store could not be mounted.
#[derive(Debug)]
#[non_exhaustive]
pub enum MountError {
    /// The mountpoint is missing, or cannot be looked at.
    Mountpoint {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The mountpoint is no folder.
    NotADirectory {
        /// The mountpoint.
        mountpoint: PathBuf,
    },
    /// The FUSE device cannot be opened.
    Device {
        /// What the system said.
        source: io::Error,
    },
    /// Only root may mount without fusermount3, and that is not installed.
    NoHelper,
    /// The store's arrays cannot be listed.
    Store {
        /// Why.
        source: FsError,
    },
    /// The kernel, or fusermount3 on behalf of a user who is not root, refused.
    Refused {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// Its words.
        said: String,
    },
    /// The kernel mounted, but does not speak with us; it is unmounted again.
    Handshake {
        /// What the system said.
        source: io::Error,
    },
    /// A thread could not be started.
    Thread {
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mountpoint { mountpoint, source } => {
                write!(
                    f,
                    "cannot mount at {}: {source}; the mountpoint must be an existing folder",
                    mountpoint.display()
                )
            }
            Self::NotADirectory { mountpoint } => {
                write!(f, "cannot mount at {}: not a folder", mountpoint.display())
            }
            Self::Device { source } => {
                write!(f, "cannot open {DEVICE}: {source}; ")?;
                match source.kind() {
                    io::ErrorKind::NotFound => {
                        write!(f, "load the kernel's FUSE module with \"modprobe fuse\"")
                    }
                    io::ErrorKind::PermissionDenied => {
                        write!(f, "mount as root, or let users open it with \"chmod 666 {DEVICE}\"")
                    }
                    _ => write!(f, "the kernel or the container must offer FUSE"),
                }
            }
            Self::NoHelper => write!(
                f,
                "cannot mount: only root can without fusermount3, which is not installed; install the package fuse3"
            ),
            Self::Store { source } => source.fmt(f),
            Self::Refused { mountpoint, said } => {
                write!(f, "cannot mount at {}: {said}", mountpoint.display())
            }
            Self::Handshake { source } => {
                write!(f, "the kernel's FUSE does not answer as it should: {source}")
            }
            Self::Thread { source } => write!(f, "cannot start a thread: {source}"),
        }
    }
}

impl Error for MountError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Mountpoint { source, .. }
            | Self::Device { source }
            | Self::Handshake { source }
            | Self::Thread { source } => Some(source),
            Self::Store { source } => Some(source),
            Self::NotADirectory { .. } | Self::NoHelper | Self::Refused { .. } => None,
        }
    }
}

/// Mounts `store` on the folder `mountpoint`. The mount answers when this returns.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(store: Store, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let (jobs, queue) = mpsc::channel();
    let manifest = store.manifest_path();
    let mut fs = Fs::new(store, options.read_only, notify::queue(jobs.clone()))
        .map_err(|source| MountError::Store { source })?;
    if let Some(compression) = options.compression {
        fs.set_compression(compression);
    }
    fs.set_shown(options.shown);
    let fs = Arc::new(fs);
    let passthrough = Arc::new(Passthrough::new(options.passthrough == PassthroughMode::Auto));
    let notifier = Arc::new(OnceLock::new());
    let thread = |source| MountError::Thread { source };
    let (tasks, workers) = worker::start().map_err(thread)?;
    let decoded = Arc::new(decoded::files(&fs, options.decoded));
    let opener = Arc::new(Opener {
        fs: Arc::clone(&fs),
        passthrough: Arc::clone(&passthrough),
        decoded: Arc::clone(&decoded),
        jobs: jobs.clone(),
        tasks: tasks.clone(),
        kernel: Arc::clone(&notifier),
        waiting: Mutex::default(),
    });
    let adapter = Adapter {
        fs: Arc::clone(&fs),
        passthrough: Arc::clone(&passthrough),
        opener,
        jobs: jobs.clone(),
        tasks: tasks.clone(),
    };

    // Watching starts before the mount, so that no commit falls between.
    let watcher = match Watcher::start(manifest, jobs.clone()) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(
                "commits of other processes are looked for once a second, as inotify is not available: {error}"
            );
            None
        }
    };
    let poll = watcher.is_none() || fs.store().stat_fs().is_ok_and(|stat| stat.place.kind.is_shared());
    let mut threads = Helpers {
        fs: Arc::clone(&fs),
        jobs,
        tasks: tasks.clone(),
        watcher,
        notifier: None,
        workers: workers.into(),
    };

    let path = fs.store().path().display().to_string();
    let request = device::Request {
        source: if options.source_name.is_empty() { &path } else { &options.source_name },
        read_only: fs.is_read_only(),
        allow_other: options.allow_other,
        options: &options.kernel,
    };
    let (device, mount) = device::mount(mountpoint, &request)?;
    let (acl, config) = config(options);
    let session =
        Session::from_fd(adapter, device, acl, config).map_err(|source| MountError::Handshake { source })?;
    let kernel = session.notifier();
    let _ = notifier.set(kernel.clone());
    let counted = Arc::downgrade(&fs);
    let (decoded_files, shown) = (Arc::downgrade(&decoded), Arc::downgrade(&passthrough));
    let notice = Notice { fs, passthrough, decoded, kernel, tasks, poll };
    threads.notifier = Some(notify::start(notice, queue).map_err(thread)?);
    let session = thread::Builder::new()
        .name("npkfs-session".into())
        .spawn(move || {
            let result = session.run();
            drop(threads);
            match result {
                // What a thread reads that asks just when the kernel takes the connection down: the end, as ENODEV is.
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {
                    info!("the kernel ended the connection");
                    Ok(())
                }
                result => result,
            }
        })
        .map_err(thread)?;
    mount.keep();
    readahead::raise(mountpoint);
    info!("mounted at {}", mountpoint.display());
    Ok(Mounted { session, fs: counted, decoded: decoded_files, passthrough: shown })
}

/// A store that is mounted, and the threads that serve it. Dropping it leaves both as they are: a mount ends when
/// somebody unmounts it, as [`mounts::unmount`](crate::sys::mounts::unmount) does.
#[derive(Debug)]
pub struct Mounted {
    session: JoinHandle<io::Result<()>>,
    fs: Weak<Fs>,
    decoded: Weak<DecodedFiles>,
    passthrough: Weak<Passthrough>,
}

impl Mounted {
    /// Serves until somebody unmounts. What is open by then stays served until it is closed.
    ///
    /// # Errors
    /// Why serving ended early; the mount is gone then.
    pub fn wait(self) -> io::Result<()> {
        // A panic is a bug; the hook has printed it.
        self.session
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread that serves the mount panicked")))
    }

    /// What tells how the mount is used, while [`Mounted::wait`] waits.
    pub fn monitor(&self) -> Monitor {
        Monitor { fs: Weak::clone(&self.fs), decoded: Weak::clone(&self.decoded) }
    }

    /// How many blocks of compressed arrays were decoded so far, for those who read them; 0 once the mount is gone.
    pub fn n_decoded_blocks(&self) -> u64 {
        self.fs.upgrade().map_or(0, |fs| fs.n_decoded_blocks())
    }

    /// How many bytes the arrays have that are decoded whole now, for the kernel to serve them; 0 once the mount is gone.
    pub fn decoded_len(&self) -> u64 {
        self.decoded.upgrade().map_or(0, |decoded| decoded.len())
    }

    /// How many they may have.
    pub fn decoded_limit(&self) -> u64 {
        self.decoded.upgrade().map_or(0, |decoded| decoded.limit())
    }

    /// Whether an inode is open, and the kernel serves it from a file that its array was decoded in.
    pub fn is_decoded(&self, ino: Ino) -> bool {
        self.passthrough.upgrade().is_some_and(|passthrough| passthrough.is_decoded(ino))
    }

    /// Whether the mount is gone.
    pub fn is_finished(&self) -> bool {
        self.session.is_finished()
    }
}

/// Tells how a mount is used.
#[derive(Debug, Clone)]
pub struct Monitor {
    fs: Weak<Fs>,
    decoded: Weak<DecodedFiles>,
}

impl Monitor {
    /// What was done up to now; `None` once the mount is gone.
    pub fn counts(&self) -> Option<Counts> {
        self.fs.upgrade().map(|fs| fs.counts())
    }

    /// How many bytes the arrays have that are decoded whole now.
    pub fn decoded_len(&self) -> u64 {
        self.decoded.upgrade().map_or(0, |decoded| decoded.len())
    }
}

/// The threads beside fuser's. They end with the session.
struct Helpers {
    fs: Arc<Fs>,
    jobs: Sender<Job>,
    tasks: Tasks,
    watcher: Option<Watcher>,
    notifier: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Drop for Helpers {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.stop();
        }
        self.fs.end_views();
        let _ = self.jobs.send(Job::Stop);
        if let Some(notifier) = self.notifier.take() {
            let _ = notifier.join();
        }
        self.tasks.stop();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        self.fs.commit_last();
        self.fs.tell_written();
        self.fs.end();
    }
}

/// What fuser has to know. It is handed a device that is mounted, so mount options are none of its business.
fn config(options: &MountOptions) -> (SessionACL, fuser::Config) {
    let mut config = fuser::Config::default();
    let threads = if options.threads == 0 { DEFAULT_THREADS } else { options.threads.min(MAX_THREADS) };
    config.n_threads = Some(threads);
    // Needs the device to be opened anew, which mounting did as well.
    config.clone_fd = threads > 1;
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    (acl, config)
}
