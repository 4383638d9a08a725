//! `npkfs umount`: ends a mount, or removes what is left of one whose process was killed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use crate::cli::config::UmountConfig;
use crate::cli::error::CliError;
use crate::sys::mounts::{self, MountEntry};

use super::presence::{Health, Server};
use super::{UmountError, preflight};

/// The type of file system under which the table of mounts has ours.
pub(super) const FS_TYPE: &str = "fuse.npk";

/// How many programs a message names.
const MAX_NAMED_USERS: usize = 4;
/// How long it may take to find them, or to look at a folder.
const USERS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process may take to end that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

pub fn umount(config: &UmountConfig) -> Result<(), CliError> {
    let mount = find(&config.mountpoint)?;
    // Asked for now: later the mount is gone from the table.
    let server = Server::find(mount.dev);
    let health = server.as_ref().map(Server::health);
    match (health, &server) {
        _ if config.force => force(&mount, server.as_ref())
            .map_err(|source| UmountError::Refused { mountpoint: config.mountpoint.clone(), source })?,
        // It may wait in the kernel for a folder that a program holds which waits for its answer. Neither can be killed.
        (Some(Health::Killed), _) => {
            if let Err(error) = mounts::abort(&mount) {
                log::warn!("{}: programs may wait for it: {error}", config.mountpoint.display());
            }
        }
        // Programs may wait for it, with what they wrote, and so would this one. Nothing is lost if it goes on.
        (Some(Health::Stopped), Some(server)) => {
            return Err(
                UmountError::Stopped { mountpoint: config.mountpoint.clone(), pid: server.pid }.into()
            );
        }
        _ => {}
    }
    // Aborting may have unmounted it.
    if mounts::find_at(&mount.mount_point).is_ok_and(|found| found.is_none_or(|now| now.dev != mount.dev)) {
        return Ok(());
    }
    let is_lazy = config.lazy || config.force;
    let is_waited_for = !is_lazy || (config.force && health == Some(Health::Running));
    let server = server.filter(|_| is_waited_for);
    let server = if is_mounted_elsewhere(&mount)? { None } else { server };
    let mount_point = mount.mount_point.clone();
    // The kernel writes back what programs changed, and waits for the process with that.
    match preflight::in_time(config.timeout, move || mounts::unmount(&mount_point, is_lazy)) {
        None => {
            return Err(UmountError::NoAnswer {
                mountpoint: config.mountpoint.clone(),
                pid: server.map(|server| server.pid),
                waited_secs: config.timeout.as_secs(),
            }
            .into());
        }
        Some(Ok(())) => {}
        Some(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => {
            // The system lets nobody look at a process that is about to run another program and cannot, because it closes
            // a file of a mount that does not answer.
            let users =
                preflight::in_time(USERS_TIMEOUT, move || users(&mount.mount_point)).unwrap_or_default();
            return Err(UmountError::Busy { mountpoint: config.mountpoint.clone(), users }.into());
        }
        Some(Err(source)) => {
            return Err(UmountError::Refused { mountpoint: config.mountpoint.clone(), source }.into());
        }
    }
    match server {
        Some(server) if !server.wait(config.timeout) => Err(UmountError::Lingers {
            mountpoint: config.mountpoint.clone(),
            pid: server.pid,
            waited_secs: config.timeout.as_secs(),
        }
        .into()),
        _ => Ok(()),
    }
}

/// Ends the connection of a mount to the process that serves it: whatever waits for an answer fails.
fn force(mount: &MountEntry, server: Option<&Server>) -> io::Result<()> {
    match (mounts::abort(mount), server) {
        // Whoever may not do it there may end his own process, and the connection with it.
        (Err(_), Some(server)) => {
            server.kill()?;
            server.wait(KILL_TIMEOUT);
            Ok(())
        }
        (result, _) => result,
    }
}

/// The mount on this folder, if it can be one of ours.
fn find(mountpoint: &Path) -> Result<MountEntry, UmountError> {
    match mounts::find(mountpoint).map_err(|source| UmountError::Table { source })? {
        Some(mount) if mount.fs_type == FS_TYPE => Ok(mount),
        Some(MountEntry { fs_type, source, .. }) => Err(UmountError::Foreign {
            mountpoint: mountpoint.to_owned(),
            fs_type,
            source: source.to_string_lossy().into_owned(),
        }),
        None => {
            let path = mountpoint.to_owned();
            // It may be within a mount that does not answer.
            match preflight::in_time(USERS_TIMEOUT, move || fs::symlink_metadata(path)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                    Err(UmountError::Missing { mountpoint: mountpoint.to_owned() })
                }
                _ => Err(UmountError::NotMounted { mountpoint: mountpoint.to_owned() }),
            }
        }
    }
}

/// Whether the same file system is also mounted elsewhere (`mount --bind`): its process goes on then.
fn is_mounted_elsewhere(mount: &MountEntry) -> Result<bool, UmountError> {
    let all = mounts::list().map_err(|source| UmountError::Table { source })?;
    Ok(all.iter().filter(|other| other.dev == mount.dev).count() > 1)
}

/// The programs that use what is mounted here, as far as this user may see them.
fn users(mountpoint: &Path) -> Vec<String> {
    let mut named = Vec::new();
    let mut n_more = 0_usize;
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let file_name = process.file_name();
        let Some(pid) = file_name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        if !uses(&process.path(), mountpoint) {
            continue;
        }
        if named.len() == MAX_NAMED_USERS {
            n_more += 1;
            continue;
        }
        let program = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        named.push(format!("process {pid} ({})", program.trim_end()));
    }
    if n_more > 0 {
        named.push(format!("{n_more} more"));
    }
    named
}

/// Whether a process has its folder, an open file, or a mapping there.
fn uses(process: &Path, mountpoint: &Path) -> bool {
    let is_there = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    ["cwd", "root", "exe"].iter().any(|link| is_there(&process.join(link)))
        || fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|fd| is_there(&fd.path()))
        || fs::read(process.join("maps")).is_ok_and(|maps| {
            // Lines end with the path, after the last of its five fields and spaces.
            maps.split(|&byte| byte == b'\n').any(|line| {
                let path = line.iter().position(|&byte| byte == b'/').map_or(&[][..], |start| &line[start..]);
                Path::new(OsStr::from_bytes(path)).starts_with(mountpoint)
            })
        })
}
