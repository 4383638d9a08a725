//! What is known to be wrong with a mountpoint before anything is mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::sys::mounts;

use super::{Choices, MountError};

/// How long our own mount may take for its first answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long somebody's mount that is in the way may take to tell whether it is dead.
const DEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a store can be mounted: both paths absolute, without symbolic links.
#[derive(Debug)]
pub struct Place {
    pub store: PathBuf,
    pub mountpoint: PathBuf,
}

/// Checks that `mountpoint` is a folder where `store`, which exists, can be mounted. What the system allows is known
/// only when it is asked to mount.
pub fn check(store: &Path, mountpoint: &Path, choices: &Choices) -> Result<Place, MountError> {
    let shown = || mountpoint.to_owned();
    // The table is asked before the folder: a mount that hangs answers no question.
    // Autofs mounts itself where others are to be mounted, and waits for them.
    if let Some(mount) = mounts::find(mountpoint)
        .map_err(|source| MountError::Unreadable { path: shown(), source })?
        .filter(|mount| mount.fs_type != "autofs")
    {
        if mount.fs_type.starts_with("fuse") && is_dead(mountpoint) {
            return Err(MountError::Dead { mountpoint: shown() });
        }
        let source = mount.source.to_string_lossy().into_owned();
        return Err(MountError::Busy { mountpoint: shown(), fs_type: mount.fs_type, source });
    }
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => MountError::Missing { mountpoint: shown() },
        io::ErrorKind::NotADirectory => MountError::NotADirectory { mountpoint: shown() },
        _ if is_not_connected(&source) => MountError::Dead { mountpoint: shown() },
        _ => MountError::Unreadable { path: shown(), source },
    };
    let place = Place {
        store: fs::canonicalize(store)
            .map_err(|source| MountError::Unreadable { path: store.to_owned(), source })?,
        mountpoint: fs::canonicalize(mountpoint).map_err(unreadable)?,
    };
    if !fs::metadata(&place.mountpoint).map_err(unreadable)?.is_dir() {
        return Err(MountError::NotADirectory { mountpoint: shown() });
    }
    if place.store.starts_with(&place.mountpoint) || place.mountpoint.starts_with(&place.store) {
        return Err(MountError::Nested { mountpoint: shown(), store: store.to_owned() });
    }
    if !choices.nonempty
        && let Some(first) = fs::read_dir(&place.mountpoint).map_err(unreadable)?.next()
    {
        let first = first.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        return Err(MountError::NotEmpty { mountpoint: shown(), first });
    }
    Ok(place)
}

/// Whether the process that served the mount is gone. A mount that hangs is not dead.
fn is_dead(mountpoint: &Path) -> bool {
    let path = mountpoint.to_owned();
    matches!(in_time(DEAD_TIMEOUT, move || mounts::probe(&path)), Some(Err(error)) if is_not_connected(&error))
}

/// ENOTCONN, "Transport endpoint is not connected".
fn is_not_connected(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected
}

/// Waits for the file system at `path` to answer a first question; `TimedOut` if it does not.
pub fn answer(path: &Path) -> io::Result<fs::Metadata> {
    let path = path.to_owned();
    let ask = move || mounts::probe(&path).and_then(|()| fs::metadata(path));
    in_time(ANSWER_TIMEOUT, ask).unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

/// What `ask` returns, if it returns in time: system calls wait without limit for processes that do not answer.
pub fn in_time<T: Send + 'static>(timeout: Duration, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (send, answer) = mpsc::sync_channel(1);
    // Not joined: it ends when the answer comes, or with this process.
    let asker = thread::Builder::new().name("npkfs-ask".to_owned()).spawn(move || drop(send.send(ask())));
    asker.ok()?;
    answer.recv_timeout(timeout).ok()
}
