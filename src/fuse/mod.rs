//! The mount: [`mount`] hands a store to the kernel by way of `fuser`, and [`Mounted`] stands for what it gets.
//!
//! Three kinds of threads: fuser's answer requests ([`adapter`]), the notifier tells the kernel what changed, the
//! watcher sees that something did ([`notify`]). Which files the kernel serves by itself is decided in
//! [`passthrough`].

use std::error::Error;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use fuser::{MountOption, Session, SessionACL};
use log::{info, warn};

use crate::fs::{Fs, FsError};
use crate::store::Store;

mod adapter;
mod notify;
mod passthrough;

use adapter::Adapter;
use notify::{Job, Notice, Watcher};
use passthrough::Passthrough;

const DEVICE: &str = "/dev/fuse";

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
    /// Whether the kernel may serve files by itself.
    pub passthrough: PassthroughMode,
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
    /// Standard input, output or error are closed, and the FUSE device would take their place.
    StandardStreams,
    /// The store's arrays cannot be listed.
    Store {
        /// Why.
        source: FsError,
    },
    /// The kernel, or fusermount3 on behalf of a user who is not root, refused.
    Refused {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// What was said.
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
            Self::StandardStreams => write!(
                f,
                "cannot mount while standard input, output or error is closed; redirect it to /dev/null instead"
            ),
            Self::Store { source } => source.fmt(f),
            Self::Refused { mountpoint, source } => {
                write!(f, "cannot mount at {}: {}", mountpoint.display(), source.to_string().trim_end())
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
            | Self::Refused { source, .. }
            | Self::Thread { source } => Some(source),
            Self::Store { source } => Some(source),
            Self::NotADirectory { .. } | Self::StandardStreams => None,
        }
    }
}

/// Mounts `store` on the folder `mountpoint`. The mount answers when this returns.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(store: Store, mountpoint: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    check_mountpoint(mountpoint)?;
    let may_clone = check_device()?;
    let (jobs, queue) = mpsc::channel();
    let manifest = store.manifest_path();
    let fs = Fs::new(store, options.read_only, notify::queue(jobs.clone()))
        .map_err(|source| MountError::Store { source })?;
    let fs = Arc::new(fs);
    let passthrough = Arc::new(Passthrough::new(options.passthrough == PassthroughMode::Auto));
    let adapter = Adapter { fs: Arc::clone(&fs), passthrough: Arc::clone(&passthrough), jobs: jobs.clone() };
    let config = config(&fs, options, may_clone);

    // Watching starts before the mount, so that no commit falls between.
    let thread = |source| MountError::Thread { source };
    let watcher = match Watcher::start(manifest, jobs.clone()) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(
                "commits of other processes are looked for once a second, as inotify is not available: {error}"
            );
            None
        }
    };
    let poll = watcher.is_none() || fs.store().stat_fs().is_ok_and(|stat| stat.is_shared);
    let mut threads = Helpers { jobs, watcher, notifier: None };

    let session = Session::new(adapter, mountpoint, &config)
        .map_err(|source| MountError::Refused { mountpoint: mountpoint.to_owned(), source })?;
    let kernel = session.notifier();
    let notice = Notice { fs, passthrough, kernel, poll };
    threads.notifier = Some(notify::start(notice, queue).map_err(thread)?);
    let session = thread::Builder::new()
        .name("npkfs-session".into())
        .spawn(move || {
            let result = session.run();
            drop(threads);
            result
        })
        .map_err(thread)?;
    info!("mounted at {}", mountpoint.display());
    Ok(Mounted { session })
}

/// A store that is mounted, and the threads that serve it.
#[derive(Debug)]
pub struct Mounted {
    session: JoinHandle<io::Result<()>>,
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

    /// Whether the mount is gone.
    pub fn is_finished(&self) -> bool {
        self.session.is_finished()
    }
}

/// The threads beside fuser's. They end with the session.
struct Helpers {
    jobs: Sender<Job>,
    watcher: Option<Watcher>,
    notifier: Option<JoinHandle<()>>,
}

impl Drop for Helpers {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.stop();
        }
        let _ = self.jobs.send(Job::Stop);
        if let Some(notifier) = self.notifier.take() {
            let _ = notifier.join();
        }
    }
}

fn check_mountpoint(mountpoint: &Path) -> Result<(), MountError> {
    let owned = || mountpoint.to_owned();
    let metadata =
        fs::metadata(mountpoint).map_err(|source| MountError::Mountpoint { mountpoint: owned(), source })?;
    if metadata.is_dir() { Ok(()) } else { Err(MountError::NotADirectory { mountpoint: owned() }) }
}

/// Whether this process can open the device by itself, as each further thread must to have one of its own.
fn check_device() -> Result<bool, MountError> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        // fuser asserts this.
        Ok(device) if device.as_raw_fd() <= 2 => Err(MountError::StandardStreams),
        Ok(_) => Ok(true),
        Err(source) => Err(MountError::Device { source }),
    }
}

fn config(fs: &Fs, options: &MountOptions, may_clone: bool) -> fuser::Config {
    let mut source = options.source_name.clone();
    if source.is_empty() {
        source = fs.store().path().display().to_string();
    }
    // fusermount3, which mounts for users who are not root, splits its options at commas.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if !is_root {
        source = source.replace('\\', "\\\\").replace(',', "\\,");
    }
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName(source),
        // Not MountOption::Subtype, which fuser gives to fusermount3 alone.
        MountOption::CUSTOM("subtype=npk".into()),
        // Permissions are checked by the kernel, against what stat shows.
        MountOption::DefaultPermissions,
        if fs.is_read_only() { MountOption::RO } else { MountOption::RW },
    ];
    config.mount_options.extend(options.kernel.iter().map(|option| kernel_option(option)));
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let threads = if options.threads == 0 { DEFAULT_THREADS } else { options.threads.min(MAX_THREADS) };
    config.n_threads = Some(threads);
    config.clone_fd = may_clone && threads > 1;
    config
}

fn kernel_option(option: &str) -> MountOption {
    match option {
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "dirsync" => MountOption::DirSync,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        _ => MountOption::CUSTOM(option.to_owned()),
    }
}
