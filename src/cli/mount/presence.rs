//! How `npkfs umount` notices that the process behind a mount has ended.
//!
//! That process listens on a socket in a folder of its user's, named after the device number of its mount and its own
//! process number. It never answers: whoever connects learns from the end of the connection that the process, with all
//! it had to write, has ended. The kernel ends it even when the process is killed, so nothing here can be stale for long.

use std::cmp::Reverse;
use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::process;

use super::{preflight, status};

/// How long a connection may take: it takes none where the process lives and nobody floods its socket.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The sign of a living process; it goes with it.
#[derive(Debug)]
pub struct Presence {
    path: PathBuf,
    _listener: UnixListener,
}

impl Presence {
    /// Announces this process as the one that serves the mount with this device number.
    pub fn announce(dev: u64) -> io::Result<Presence> {
        let folder = own_folder()?;
        sweep(&folder);
        let path = folder.join(format!("{dev}-{}.sock", std::process::id()));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Presence { path, _listener: listener })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A process that serves a mount, seen from outside.
#[derive(Debug)]
pub struct Server {
    pub pid: u32,
    connection: UnixStream,
}

impl Server {
    /// Finds the process that serves the mount with this device number. A mount that was made by something else, or
    /// out of sight of this user, has none.
    pub fn find(dev: u64) -> Option<Server> {
        let mut sockets = sockets_of(dev, parse_name);
        // Older ones are of mounts that had the number before. Should the newest be of a process that was killed, it is
        // none of theirs, as long as they live.
        sockets.dedup_by(|older, newer| older.1.parent() == newer.1.parent());
        sockets.into_iter().find_map(|(pid, path)| {
            // Whoever can write to the folder could let us wait here.
            let connection = preflight::in_time(CONNECT_TIMEOUT, move || UnixStream::connect(path).ok())??;
            Some(Server { pid, connection })
        })
    }

    /// How the process is.
    pub fn health(&self) -> Health {
        // One that cannot be seen, as it is in a container, may be well: its socket is.
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return Health::Running };
        let threads: Vec<String> = fs::read_dir(format!("/proc/{}/task", self.pid))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
            .collect();
        // Any thread may be the one that waits in the kernel, the first one too.
        if is_zombie(&stat) || threads.iter().any(|status| is_to_die(status)) {
            Health::Killed
        } else if threads.iter().any(|status| is_stopped(status)) {
            Health::Stopped
        } else {
            Health::Running
        }
    }

    /// Ends the process.
    ///
    /// # Errors
    /// `PermissionDenied` if it is somebody else's.
    pub fn kill(&self) -> io::Result<()> {
        process::kill(self.pid)
    }

    /// Waits until the process has ended. `false` if it has not, in that time.
    pub fn wait(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        let left = || timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
        while let Some(left) = left() {
            if self.connection.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match (&self.connection).read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Closed, or reset because it was never accepted: only the last steps of its exit are left.
                Ok(_) | Err(_) => break,
            }
        }
        while !has_ended(self.pid) {
            if left().is_none() {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// How a process is that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Running,
    /// By SIGSTOP, the terminal or a debugger: it goes on when it is told to.
    Stopped,
    /// Some thread of it still waits for something in the kernel. It answers nothing any more.
    Killed,
}

/// Whether a thread has not died yet of a SIGKILL, as its `status` in `/proc` says.
fn is_to_die(status: &str) -> bool {
    const SIGKILL: u64 = 1 << 8;
    let pending = |line: &str| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|signals| signals & SIGKILL != 0)
}

/// Whether a thread is stopped, as its `status` in `/proc` says.
fn is_stopped(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("State:"))
        .is_some_and(|state| state.trim_start().starts_with(['T', 't']))
}

/// Whether a process has ended, even if its parent has not been told yet.
fn has_ended(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // It is that of the first thread: others may still be about to end, with the process's files open.
    is_zombie(&stat) && fs::read_dir(format!("/proc/{pid}/task")).map_or(true, |threads| threads.count() <= 1)
}

/// Whether a process, or its first thread, has ended, as its `stat` in `/proc` says.
fn is_zombie(stat: &str) -> bool {
    // The state follows the program's name, which is in parentheses and may have some itself.
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Removes the sockets of processes that were killed.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(pid_of);
        if pid.is_some_and(has_ended) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The sockets that belong to the mount with this device number by their name, and their processes: those of this user
/// first, and the newest first. The kernel uses device numbers again, and a process outlives its mount while it commits
/// what was written.
pub(super) fn sockets_of(dev: u64, parse_name: impl Fn(&str) -> Option<(u64, u32)>) -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    for (rank, folder) in visible_folders().into_iter().enumerate() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Some((of, pid)) = entry.file_name().to_str().and_then(&parse_name) else { continue };
            if of == dev
                && let Ok(made) = entry.metadata().and_then(|metadata| metadata.modified())
            {
                found.push((rank, Reverse(made), pid, entry.path()));
            }
        }
    }
    found.sort();
    found.into_iter().map(|(_, _, pid, path)| (pid, path)).collect()
}

/// The process number in the name of any socket of ours.
fn pid_of(name: &str) -> Option<u32> {
    parse_name(name).or_else(|| status::parse_name(name)).map(|(_, pid)| pid)
}

/// Device number and process number of a socket's name.
fn parse_name(name: &str) -> Option<(u64, u32)> {
    let (dev, pid) = name.strip_suffix(".sock")?.split_once('-')?;
    Some((dev.parse().ok()?, pid.parse().ok()?))
}

/// The folder for this user's sockets, which nobody else can write to.
pub(super) fn own_folder() -> io::Result<PathBuf> {
    let uid = own_uid()?;
    let folder = candidates(uid, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
        .into_iter()
        .find(|folder| folder.parent().is_some_and(Path::is_dir))
        .ok_or(io::ErrorKind::NotFound)?;
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&folder)?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        // In /tmp anybody could have made it.
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} belongs to somebody else", folder.display()),
        ));
    }
    Ok(folder)
}

/// Where the sockets of a user may be, best first.
fn candidates(uid: u32, runtime_dir: Option<PathBuf>) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if uid == 0 {
        folders.push(PathBuf::from("/run/npkfs"));
    } else {
        folders.extend(runtime_dir.map(|dir| dir.join("npkfs")));
        folders.push(PathBuf::from(format!("/run/user/{uid}/npkfs")));
    }
    folders.push(PathBuf::from(format!("/tmp/npkfs-{uid}")));
    folders
}

/// The folders to look for a server in: one's own; for root, everybody's.
fn visible_folders() -> Vec<PathBuf> {
    let Ok(uid) = own_uid() else { return Vec::new() };
    let mut folders = candidates(uid, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
    if uid == 0 {
        let below =
            |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        folders.extend(below("/run/user").map(|folder| folder.join("npkfs")));
        folders.extend(below("/tmp").filter(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("npkfs-"))
        }));
    }
    folders
}

/// The effective user, whom `/proc/self` belongs to.
fn own_uid() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sockets_lead_back() {
        assert_eq!(parse_name("53-1234.sock"), Some((53, 1234)));
        for name in ["53.sock", "53-.sock", "-1.sock", "53-1234", "a-b.sock"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_server_is_seen_while_it_lives() {
        // No file system has this device number.
        let dev = u64::MAX - u64::from(std::process::id());
        let presence = Presence::announce(dev).expect("a folder for the socket");
        let server = Server::find(dev).expect("announced");
        assert_eq!(server.pid, std::process::id());
        assert!(!server.wait(Duration::from_millis(1)));
        drop(presence);
        assert!(Server::find(dev).is_none());
    }

    /// A process that was ending was taken for the one that served the next mount with its device number.
    #[test]
    fn of_two_servers_of_one_number_the_newer_one_is_found() {
        let dev = u64::MAX - 1 - (u64::from(std::process::id()) << 1);
        let folder = own_folder().expect("a folder for the socket");
        let older = folder.join(format!("{dev}-1.sock"));
        let _older = UnixListener::bind(&older).expect("a socket");
        let time = std::time::SystemTime::now() - Duration::from_secs(1);
        let stamps =
            rustix::fs::Timestamps { last_access: timespec(time), last_modification: timespec(time) };
        rustix::fs::utimensat(rustix::fs::CWD, &older, &stamps, rustix::fs::AtFlags::empty())
            .expect("is set");
        let presence = Presence::announce(dev).expect("a folder for the socket");
        assert_eq!(Server::find(dev).expect("announced").pid, std::process::id());
        // Not even when the newer one was killed: a test met one that was stopped, and was told so of its own.
        let killed = folder.join(format!("{dev}-2.sock"));
        drop(UnixListener::bind(&killed).expect("a socket"));
        assert!(Server::find(dev).is_none());
        fs::remove_file(killed).expect("is removed");
        drop(presence);
        assert_eq!(Server::find(dev).expect("the other one").pid, 1);
        fs::remove_file(older).expect("is removed");
    }

    fn timespec(time: std::time::SystemTime) -> rustix::fs::Timespec {
        let since = time.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        rustix::fs::Timespec { tv_sec: since.as_secs().try_into().expect("fits"), tv_nsec: 0 }
    }

    #[test]
    fn a_process_that_is_stopped_or_about_to_die_is_known_by_its_threads() {
        let status = |state, pending| {
            format!("Name:\tT (x)\nState:\t{state}\nSigPnd:\t{pending}\nShdPnd:\t0000000000000000\n")
        };
        assert!(is_stopped(&status("T (stopped)", "0000000000000000")));
        assert!(is_stopped(&status("t (tracing stop)", "0000000000000000")));
        assert!(!is_stopped(&status("S (sleeping)", "0000000000000000")));
        assert!(is_to_die(&status("D (disk sleep)", "0000000000000100")));
        assert!(!is_to_die(&status("D (disk sleep)", "0000000000004200")));
    }

    #[test]
    fn a_process_ends_before_its_parent_is_told() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat runs");
        assert!(!has_ended(child.id()));
        drop(child.stdin.take());
        let start = Instant::now();
        while !has_ended(child.id()) {
            assert!(start.elapsed() < Duration::from_secs(10), "cat does not end");
            thread::yield_now();
        }
        assert!(child.wait().expect("cat is waited for").success());
        assert!(has_ended(child.id()));
    }
}
