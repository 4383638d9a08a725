//! The claim: which host writes, where locks keep out only those who come through the same mount of the same host.
//!
//! It is a symbolic link beside the lock file, made by who has the lock, and removed before the lock is released. Making
//! what must not be there yet is for the server to decide, and so tells hosts apart. Where it leads to is nowhere, but
//! says who made it:
//!
//! ```text
//! BOOT DEVICE PID HOST
//! ```
//!
//! A link is there with its text or not at all. Where there are no links, it is a file with this text.
//!
//! A writer that dies leaves it. Who next has the lock through the same mount of the same host (the same boot of its
//! kernel, the same device number there) takes it over: the lock says that nobody else is there. Whether a writer on
//! another host, or through another mount, still runs is not to be known; a person must say so, by removing the file.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, readlinkat, symlinkat, unlinkat};
use rustix::io::{Errno, retry_on_intr};

/// What is added to the name of the lock file.
const SUFFIX: &str = ".host";
/// Longest text that is read. Ours has less than 400 bytes.
const MAX_LEN: u64 = 4096;

/// Who makes claims: the processes of one boot of one host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    boot: String,
    name: String,
}

impl Host {
    /// This one.
    pub(super) fn this() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { boot, name })
    }

    /// Makes the claim beside the lock file `lock` in the directory `dir`, with that lock held; `false` if another host
    /// has it.
    pub(super) fn claim(&self, dir: &OwnedFd, lock: &str) -> io::Result<bool> {
        let name = name_of(lock);
        let ours = format!("{} {} ", self.boot, fstat(dir)?.st_dev);
        let text = format!("{ours}{} {}", std::process::id(), self.name);
        loop {
            let made = match symlinkat(&text, dir, &name) {
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    make_file(dir, &name, &text)
                }
                made => made.map_err(io::Error::from),
            };
            match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match read(dir, &name) {
                    // Whoever had it is done.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    found => return Ok(found?.starts_with(&ours)),
                },
                made => return made.map(|()| true),
            }
        }
    }
}

fn make_file(dir: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = retry_on_intr(|| openat(dir, name, flags, Mode::from_raw_mode(0o666)))?;
    fs::File::from(fd).write_all(text.as_bytes()).inspect_err(|_| {
        // Whoever comes next would wait for a person.
        let _ = unlinkat(dir, name, AtFlags::empty());
    })
}

/// Ends the claim beside the lock file `lock`.
pub(super) fn unclaim(dir: &OwnedFd, lock: &str) -> io::Result<()> {
    match retry_on_intr(|| unlinkat(dir, name_of(lock), AtFlags::empty())) {
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

/// The host that claims the lock on the file at `path`, for an error message; `None` if none does.
pub(super) fn holder(path: &Path) -> Option<String> {
    let folder = fs::File::open(path.parent()?).ok()?;
    let text = read(&folder.into(), &name_of(path.file_name()?.to_str()?)).ok()?;
    Some(text.split_whitespace().nth(3).unwrap_or("unknown").to_owned())
}

/// The name of the claim beside the lock file `lock`.
pub fn name_of(lock: &str) -> String {
    format!("{lock}{SUFFIX}")
}

fn read(dir: &OwnedFd, name: &str) -> io::Result<String> {
    match retry_on_intr(|| readlinkat(dir, name, Vec::new())) {
        Err(Errno::INVAL) => {} // no link
        found => return Ok(found?.to_string_lossy().into_owned()),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = retry_on_intr(|| openat(dir, name, flags, Mode::empty()))?;
    let mut text = Vec::new();
    fs::File::from(fd).take(MAX_LEN).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        Host { boot: format!("boot-of-{name}"), name: name.to_owned() }
    }

    fn folder() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = fs::File::open(folder.path()).expect("opens").into();
        (folder, dir)
    }

    #[test]
    fn one_host_at_a_time_has_it() {
        let (folder, dir) = folder();
        assert!(host("a").claim(&dir, "lock").expect("claims"));
        assert!(!host("b").claim(&dir, "lock").expect("looks"));
        assert_eq!(holder(&folder.path().join("lock")).as_deref(), Some("a"));
        unclaim(&dir, "lock").expect("ends");
        assert_eq!(holder(&folder.path().join("lock")), None);
        assert!(host("b").claim(&dir, "lock").expect("claims"));
        unclaim(&dir, "lock").expect("ends");
        unclaim(&dir, "lock").expect("has ended");
    }

    #[test]
    fn what_a_dead_process_of_the_same_mount_left_is_taken_over() {
        let (_folder, dir) = folder();
        assert!(host("a").claim(&dir, "lock").expect("claims"));
        assert!(host("a").claim(&dir, "lock").expect("takes over"));
        let other = Host { boot: "boot-of-a later".into(), name: "a".into() };
        assert!(
            !other.claim(&dir, "lock").expect("looks"),
            "a host that was started anew may be another one"
        );
    }

    #[test]
    fn what_is_no_claim_is_left_for_a_person() {
        let (folder, dir) = folder();
        for text in ["", "boot-of-a", "boot-of-a 1", "\0\u{fffd}"] {
            fs::write(folder.path().join("lock.host"), text).expect("writes");
            assert!(!host("a").claim(&dir, "lock").expect("looks"), "{text:?}");
            assert_eq!(holder(&folder.path().join("lock")).as_deref(), Some("unknown"));
        }
        fs::remove_file(folder.path().join("lock.host")).expect("removes");
        std::os::unix::fs::symlink("elsewhere", folder.path().join("lock.host")).expect("links");
        assert!(!host("a").claim(&dir, "lock").expect("looks"));
        assert!(!folder.path().join("elsewhere").exists(), "nothing is written elsewhere");
    }

    #[test]
    fn a_file_claims_as_a_link_does() {
        let (folder, dir) = folder();
        let text = "boot-of-a 1 17 a";
        make_file(&dir, "lock.host", text).expect("makes");
        let again = make_file(&dir, "lock.host", text).expect_err("is there");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(!host("b").claim(&dir, "lock").expect("looks"));
        assert_eq!(holder(&folder.path().join("lock")).as_deref(), Some("a"));
    }
}
