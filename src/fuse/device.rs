//! Mounting: from a mountpoint to the open device through which the kernel asks.
//!
//! Done here and not by fuser, whose own mounts (as of 0.18) are unmounted once more when they are gone already, and
//! then take away whatever is mounted in their place. Who may not call mount(2) has fusermount3 do it, and is handed
//! the device through a socket.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use log::warn;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::MountError;
use crate::sys::mounts;

pub(super) const DEVICE: &str = "/dev/fuse";

/// The type of file system that the mount table shows is `fuse.npk`.
const SUBTYPE: &str = "npk";

/// Longest read in one request, in bytes. What the kernel reads ahead comes as two requests then, which two threads
/// decode at once, and who wants one page waits for half as much: mapped sums of compressed arrays take 0.9 times as
/// long as with requests of 512 KiB, 10,000 random rows 0.8 times.
const MAX_READ_LEN: u32 = 256 << 10;

/// What is told to the kernel of a mount.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// Shown in the mount table.
    pub(super) source: &'a str,
    pub(super) read_only: bool,
    pub(super) allow_other: bool,
    /// Further options, as mount(8) has them.
    pub(super) options: &'a [String],
}

/// A mount that is made, and not yet served. Dropping it unmounts.
#[derive(Debug)]
pub(super) struct Mount {
    mountpoint: Option<PathBuf>,
}

impl Mount {
    /// Leaves the mount alone from now on.
    pub(super) fn keep(mut self) {
        self.mountpoint = None;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(mountpoint) = &self.mountpoint
            && let Err(error) = mounts::unmount(mountpoint, true)
        {
            warn!("{} stays mounted, but nobody serves it: {error}", mountpoint.display());
        }
    }
}

/// Mounts on the folder `mountpoint`.
pub(super) fn mount(mountpoint: &Path, request: &Request<'_>) -> Result<(OwnedFd, Mount), MountError> {
    let failed = |source| MountError::Mountpoint { mountpoint: mountpoint.to_owned(), source };
    let mountpoint = fs::canonicalize(mountpoint).map_err(failed)?;
    let metadata = fs::metadata(&mountpoint).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(MountError::NotADirectory { mountpoint });
    }
    let device = open_device()?;
    let device = match mount_directly(&device, &mountpoint, metadata.mode(), request) {
        Ok(()) => device.into(),
        Err(Errno::PERM) => mount_by_helper(&mountpoint, request)?,
        Err(error) => {
            return Err(MountError::Refused { mountpoint, said: io::Error::from(error).to_string() });
        }
    };
    Ok((device, Mount { mountpoint: Some(mountpoint) }))
}

fn open_device() -> Result<File, MountError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|source| MountError::Device { source })
}

fn mount_directly(device: &File, mountpoint: &Path, mode: u32, request: &Request<'_>) -> Result<(), Errno> {
    // What a mount for users must not bring in, unless asked for.
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    flags.set(MountFlags::RDONLY, request.read_only);
    let mut data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},subtype={SUBTYPE},default_permissions,\
         max_read={MAX_READ_LEN}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if request.allow_other {
        data.push_str(",allow_other");
    }
    for option in request.options {
        match &**option {
            "dev" => flags.remove(MountFlags::NODEV),
            "nodev" => flags.insert(MountFlags::NODEV),
            "suid" => flags.remove(MountFlags::NOSUID),
            "nosuid" => flags.insert(MountFlags::NOSUID),
            "exec" => flags.remove(MountFlags::NOEXEC),
            "noexec" => flags.insert(MountFlags::NOEXEC),
            "atime" => flags.remove(MountFlags::NOATIME),
            "noatime" => flags.insert(MountFlags::NOATIME),
            "nodiratime" => flags.insert(MountFlags::NODIRATIME),
            "relatime" => flags.insert(MountFlags::RELATIME),
            "strictatime" => flags.insert(MountFlags::STRICTATIME),
            "sync" => flags.insert(MountFlags::SYNCHRONOUS),
            "async" => flags.remove(MountFlags::SYNCHRONOUS),
            "dirsync" => flags.insert(MountFlags::DIRSYNC),
            option => {
                data.push(',');
                data.push_str(option);
            }
        }
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(request.source, mountpoint, "fuse", flags, &*data)
}

/// Lets fusermount3, which may mount, do it. It tells on stderr what is wrong.
fn mount_by_helper(mountpoint: &Path, request: &Request<'_>) -> Result<OwnedFd, MountError> {
    let refused = |said: String| MountError::Refused { mountpoint: mountpoint.to_owned(), said };
    let failed = |source: io::Error| refused(format!("cannot talk to fusermount3: {source}"));
    // It splits its options at commas.
    let source = request.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!(
        "{},nosuid,nodev,fsname={source},subtype={SUBTYPE},default_permissions,max_read={MAX_READ_LEN}",
        if request.read_only { "ro" } else { "rw" }
    );
    if request.allow_other {
        options.push_str(",allow_other");
    }
    for option in request.options {
        options.push(',');
        options.push_str(option);
    }
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let theirs = OwnedFd::from(theirs);
    let spawn = |program: &str| {
        Command::new(program)
            .args(["-o", &options, "--"])
            .arg(mountpoint)
            // The socket is its standard input: no descriptor has to be made inheritable.
            .env("_FUSE_COMMFD", "0")
            .env("LC_ALL", "C")
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    let child = spawn("fusermount3").or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => spawn("fusermount"),
        _ => Err(error),
    });
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoHelper),
        Err(error) => return Err(failed(error)),
    };
    // So that its end is the end of the stream.
    drop(theirs);
    let device = receive(&ours);
    let output = child.wait_with_output().map_err(failed)?;
    match device.map_err(failed)? {
        Some(device) => Ok(device),
        None => {
            let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
            Err(refused(if said.is_empty() { "fusermount3 gave no reason".to_owned() } else { said }))
        }
    }
}

/// The descriptor that comes through a socket, or `None` if the other side ends without sending one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(device)
}
