//! Why a store is not mounted, or not unmounted, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::cli::error::store_exit;
use crate::cli::exit::Exit;
use crate::fs::FsError;
use crate::fuse;
use crate::store::StoreError;

/// Why a store is not mounted. Nothing is left mounted then.
#[derive(Debug)]
#[non_exhaustive]
pub enum MountError {
    /// The store may be read, but not be written.
    StoreDenied { source: Box<StoreError> },
    /// There is no folder to mount on.
    Missing { mountpoint: PathBuf },
    /// It is a file.
    NotADirectory { mountpoint: PathBuf },
    /// It, or the store, cannot be looked at.
    Unreadable { path: PathBuf, source: io::Error },
    /// Something is mounted there.
    Busy { mountpoint: PathBuf, fs_type: String, source: String },
    /// A FUSE file system is mounted there, and its process is gone.
    Dead { mountpoint: PathBuf },
    /// It has contents, which the mount would hide.
    NotEmpty { mountpoint: PathBuf, first: String },
    /// The store would hide itself, or show itself within itself.
    Nested { mountpoint: PathBuf, store: PathBuf },
    /// What the mount itself says.
    Fuse { source: fuse::MountError },
    /// The mount was made, but does not answer.
    NoAnswer { mountpoint: PathBuf, source: io::Error },
    /// The background process cannot be started.
    Start { action: &'static str, source: io::Error },
    /// The background process ended without a report.
    Vanished { status: Option<std::process::ExitStatus> },
    /// The mount was served, and then ended with an error.
    Serving { mountpoint: PathBuf, source: io::Error },
}

impl MountError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            // Damage that shows only when all is looked at.
            Self::Fuse { source: fuse::MountError::Store { source: FsError::Store(source) } } => {
                store_exit(source)
            }
            _ => Exit::Failed,
        }
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreDenied { source } => write!(f, "{source}; mount it for reading with -o ro"),
            Self::Missing { mountpoint } => {
                let mountpoint = mountpoint.display();
                write!(f, "{mountpoint}: no such folder to mount on; create it with \"mkdir {mountpoint}\"")
            }
            Self::NotADirectory { mountpoint } => {
                write!(f, "{}: is not a folder, and a store is mounted on one", mountpoint.display())
            }
            Self::Unreadable { path, source } => write!(f, "cannot look at {}: {source}", path.display()),
            Self::Busy { mountpoint, fs_type, source } => {
                let mountpoint = mountpoint.display();
                write!(
                    f,
                    "{mountpoint}: is a mountpoint already, of {source} ({fs_type}); unmount that or choose another folder"
                )
            }
            Self::Dead { mountpoint } => {
                let mountpoint = mountpoint.display();
                write!(
                    f,
                    "{mountpoint}: has a dead mount on it, whose process is gone; remove it with \"npkfs umount {mountpoint}\""
                )
            }
            Self::NotEmpty { mountpoint, first } => write!(
                f,
                "{}: is not empty: the mount would hide {first:?}; choose an empty folder, or hide it with -o nonempty",
                mountpoint.display()
            ),
            Self::Nested { mountpoint, store } => write!(
                f,
                "{}: cannot mount {} here: neither may lie within the other; choose a folder outside the store",
                mountpoint.display(),
                store.display()
            ),
            Self::Fuse { source } => source.fmt(f),
            Self::NoAnswer { mountpoint, source } => {
                write!(f, "{}: mounted, but does not answer: {source}; unmounted again", mountpoint.display())
            }
            Self::Start { action, source } => write!(f, "cannot {action}: {source}"),
            Self::Vanished { status } => {
                f.write_str("the process that was to serve the mount ended without a word")?;
                if let Some(status) = status {
                    write!(f, " ({status})")?;
                }
                f.write_str("; --foreground shows what it does")
            }
            Self::Serving { mountpoint, source } => {
                write!(f, "{}: the mount ended with an error: {source}", mountpoint.display())
            }
        }
    }
}

impl Error for MountError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::StoreDenied { source } => Some(&**source),
            Self::Fuse { source } => Some(source),
            Self::Unreadable { source, .. }
            | Self::NoAnswer { source, .. }
            | Self::Start { source, .. }
            | Self::Serving { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why a store is not unmounted, or may still be served.
#[derive(Debug)]
#[non_exhaustive]
pub enum UmountError {
    /// There is no such folder.
    Missing { mountpoint: PathBuf },
    /// Nothing is mounted on it.
    NotMounted { mountpoint: PathBuf },
    /// What is mounted there is no store.
    Foreign { mountpoint: PathBuf, fs_type: String, source: String },
    /// Programs use it.
    Busy { mountpoint: PathBuf, users: Vec<String> },
    /// The table of mounts cannot be read.
    Table { source: io::Error },
    /// The kernel, or fusermount3, refused.
    Refused { mountpoint: PathBuf, source: io::Error },
    /// The process that serves it is stopped.
    Stopped { mountpoint: PathBuf, pid: u32 },
    /// The process that serves it does not take what programs wrote.
    NoAnswer { mountpoint: PathBuf, pid: Option<u32>, waited_secs: u64 },
    /// Unmounted, but the process that served the mount has not ended.
    Lingers { mountpoint: PathBuf, pid: u32, waited_secs: u64 },
}

impl UmountError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Busy { .. } => Exit::InUse,
            Self::Missing { .. }
            | Self::NotMounted { .. }
            | Self::Foreign { .. }
            | Self::Table { .. }
            | Self::Refused { .. }
            | Self::Stopped { .. }
            | Self::NoAnswer { .. }
            | Self::Lingers { .. } => Exit::Failed,
        }
    }
}

impl fmt::Display for UmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { mountpoint } => write!(f, "{}: no such folder", mountpoint.display()),
            Self::NotMounted { mountpoint } => {
                write!(
                    f,
                    "{}: nothing is mounted here; \"npkfs mount STORE MNT\" mounts",
                    mountpoint.display()
                )
            }
            Self::Foreign { mountpoint, fs_type, source } => write!(
                f,
                "{}: is the mountpoint of {source} ({fs_type}), not of a store; left mounted, umount(8) unmounts it",
                mountpoint.display()
            ),
            Self::Busy { mountpoint, users } => {
                write!(f, "{}: in use", mountpoint.display())?;
                if !users.is_empty() {
                    write!(f, " by {}", users.join(", "))?;
                }
                f.write_str("; still mounted. End what uses it, or take it out of sight with --lazy")
            }
            Self::Table { source } => write!(f, "cannot read the table of mounts: {source}"),
            Self::Refused { mountpoint, source } => {
                write!(f, "cannot unmount {}: {source}", mountpoint.display())?;
                if source.kind() == io::ErrorKind::PermissionDenied {
                    f.write_str("; only root and the user who mounted it can")?;
                }
                Ok(())
            }
            Self::Stopped { mountpoint, pid } => {
                let mountpoint = mountpoint.display();
                write!(
                    f,
                    "{mountpoint}: process {pid}, which serves it, is stopped; still mounted. Let it go on with \"kill \
                     -CONT {pid}\", or end the mount with \"npkfs umount --force {mountpoint}\", which loses what it \
                     has not written yet"
                )
            }
            Self::NoAnswer { mountpoint, pid, waited_secs } => {
                write!(
                    f,
                    "{}: the process that serves it has not taken within {waited_secs} s what programs wrote",
                    mountpoint.display()
                )?;
                match pid {
                    Some(pid) => write!(f, "; \"kill -9 {pid}\" ends it, and loses that"),
                    None => f.write_str("; look for it with \"pgrep npkfs\", and end it"),
                }
            }
            Self::Lingers { mountpoint, pid, waited_secs } => write!(
                f,
                "{}: unmounted, but process {pid}, which served it, has not ended within {waited_secs} s: it may still \
                 be writing, or the store is visible at another mountpoint or in a container",
                mountpoint.display()
            ),
        }
    }
}

impl Error for UmountError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Table { source } | Self::Refused { source, .. } => Some(source),
            _ => None,
        }
    }
}
