//! Everything that can be known to go wrong before anything is mounted.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::sys::mounts;

use super::{Choices, MountError};

/// How long a mount may take to answer before it counts as hanging.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The bit of `CAP_SYS_ADMIN` in capability sets, as in capability.h.
const CAP_SYS_ADMIN: u32 = 21;

/// Where a store can be mounted: both paths absolute, without symbolic links.
#[derive(Debug)]
pub struct Place {
    pub store: PathBuf,
    pub mountpoint: PathBuf,
}

/// Checks that `store`, which exists, can be mounted on `mountpoint`.
pub fn check(store: &Path, mountpoint: &Path, choices: &Choices) -> Result<Place, MountError> {
    let place = check_folder(store, mountpoint, choices)?;
    check_device()?;
    if !may_mount() {
        if !has_fusermount() {
            return Err(MountError::NoFusermount);
        }
        if choices.allow_other
            && !conf_allows_others(&fs::read_to_string("/etc/fuse.conf").unwrap_or_default())
        {
            return Err(MountError::AllowOtherDenied);
        }
    }
    Ok(place)
}

fn check_folder(store: &Path, mountpoint: &Path, choices: &Choices) -> Result<Place, MountError> {
    let shown = || mountpoint.to_owned();
    // The table is asked before the folder: a mount that hangs answers no question.
    if let Some(mount) =
        mounts::find(mountpoint).map_err(|source| MountError::Unreadable { mountpoint: shown(), source })?
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
        _ => MountError::Unreadable { mountpoint: shown(), source },
    };
    let place = Place {
        store: fs::canonicalize(store).map_err(unreadable)?,
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

fn check_device() -> Result<(), MountError> {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        // A device node without its driver: ENODEV, ENXIO.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(6 | 19)) =>
        {
            Err(MountError::NoDevice)
        }
        Err(source) => Err(MountError::DeviceDenied { source }),
    }
}

/// Whether this process may call mount(2) itself, without fusermount3.
pub fn may_mount() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| has_capability(&status, CAP_SYS_ADMIN))
}

fn has_capability(status: &str, bit: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> bit & 1 == 1)
}

/// Whether the FUSE library will find fusermount3: it asks this variable, then the search path, then two folders.
fn has_fusermount() -> bool {
    if std::env::var_os("FUSERMOUNT_PATH").is_some() {
        return true;
    }
    let mut folders = std::env::var_os("PATH").unwrap_or_default();
    folders.push(":/sbin:/bin");
    std::env::split_paths(&folders)
        .any(|folder| ["fusermount3", "fusermount"].iter().any(|program| folder.join(program).is_file()))
}

/// Whether fuse.conf lets users other than root use `allow_other`.
fn conf_allows_others(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

/// Whether the process that served the mount is gone. A mount that hangs is not dead.
fn is_dead(mountpoint: &Path) -> bool {
    answer(mountpoint).is_err_and(|error| is_not_connected(&error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000200000\n";
        assert!(has_capability(status, CAP_SYS_ADMIN));
        assert!(!has_capability(status, CAP_SYS_ADMIN - 1));
        assert!(!has_capability("CapEff:\t0000000000000000\n", CAP_SYS_ADMIN));
        assert!(!has_capability("", CAP_SYS_ADMIN));
    }

    #[test]
    fn fuse_conf_comments_allow_nothing() {
        assert!(conf_allows_others("mount_max = 10\n user_allow_other \n"));
        assert!(!conf_allows_others("#user_allow_other\n# user_allow_other - Using ...\n"));
    }
}
