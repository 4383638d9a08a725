//! The table of mounts, read from `/proc/self/mountinfo` (man 5 proc_pid_mountinfo), and how to take a mount away.
//!
//! Asking the table, and not the files, also works for a mount whose daemon has died or does not answer.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};

/// Where the file system of all FUSE connections is mounted, if it is.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// How many symbolic links a path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is mounted, as seen from the root directory of this process.
    pub mount_point: PathBuf,
    /// Type of file system, such as `ext4` or `fuse.npkfs`.
    pub fs_type: String,
    /// What is mounted: a device, a remote path, or whatever the file system calls it.
    pub source: OsString,
    /// Device number, as in [`FileStat::dev`](super::FileStat::dev).
    pub dev: u64,
    /// Options of the mount and of the file system, with commas between.
    pub options: String,
}

/// All mounts, those on top of others last.
pub fn list() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount whose mount point is exactly `path`; where several are stacked, the topmost.
///
/// `path` may be relative and have symbolic links in it. No FUSE file system is asked for anything: its process may not
/// answer.
pub fn find(path: &Path) -> io::Result<Option<MountEntry>> {
    let mounts = list()?;
    let written = std::path::absolute(path)?;
    Ok(find_in(&mounts, &written).or_else(|| find_in(&mounts, &resolve(&mounts, &written).ok()?)).cloned())
}

/// As [`find`], of a path that is absolute and has no symbolic links in it. It is not touched.
pub fn find_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(find_in(&list()?, path).cloned())
}

/// Asks the file system at `path` something that no cache answers: how much room it has. Waits as long as it does.
///
/// # Errors
/// `NotConnected` if the process that serves it is gone.
pub fn probe(path: &Path) -> io::Result<()> {
    rustix::fs::statfs(path)?;
    Ok(())
}

/// Unmounts what is mounted at `mount_point`; symbolic links are not followed. `lazy` takes it out of sight at once,
/// and it ends with the last open file. What the kernel does not let this process unmount, fusermount3 unmounts, if
/// it is a FUSE mount of the same user.
///
/// # Errors
/// `ResourceBusy` if programs use it, and not `lazy`; `InvalidInput` if nothing is mounted there; `NotFound` if
/// fusermount3 is needed and not installed.
pub fn unmount(mount_point: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(mount_point, flags) {
        Err(Errno::PERM) => fusermount(mount_point, lazy),
        result => Ok(result?),
    }
}

/// Lets every request to a FUSE mount fail, those that wait for an answer too.
///
/// Of a process that was killed while it told the kernel of a change in a folder that a program was about to change, or
/// while it looked whether its own mount answers, the kernel lets nothing end before that.
///
/// # Errors
/// `PermissionDenied`, `NotFound` where no way to do it is open to this process.
pub fn abort(mount: &MountEntry) -> io::Result<()> {
    let file = format!("{}/abort", rustix::fs::minor(mount.dev));
    let shared = || OpenOptions::new().write(true).open(Path::new(CONNECTIONS).join(&file));
    if shared().or_else(|_| own_connections_file(&file)).and_then(|mut abort| abort.write_all(b"1")).is_ok() {
        return Ok(());
    }
    match rustix::mount::unmount(&mount.mount_point, UnmountFlags::NOFOLLOW | UnmountFlags::FORCE) {
        // It is aborted all the same.
        Err(Errno::BUSY) => Ok(()),
        result => Ok(result?),
    }
}

/// A file of the file system of [`CONNECTIONS`], where nobody mounted that, by a mount that only this process sees. Root may.
fn own_connections_file(file: &str) -> io::Result<File> {
    let context = rustix::mount::fsopen(c"fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let root =
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(root, file, flags, rustix::fs::Mode::empty())?.into())
}

fn fusermount(mount_point: &Path, lazy: bool) -> io::Result<()> {
    let run = |program| {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .arg("-u")
            .args(lazy.then_some("-z"))
            .arg("--")
            .arg(mount_point);
        command.output()
    };
    let result = run("fusermount3").or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => run("fusermount"),
        _ => Err(error),
    });
    let output = result.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            io::ErrorKind::NotFound,
            "fusermount3 is not installed, and only it unmounts for users who are not root; \"apt install fuse3\" \
             installs it",
        ),
        _ => error,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    let kind = if said.ends_with("Device or resource busy") {
        io::ErrorKind::ResourceBusy
    } else if said.contains("not found in /etc/mtab") {
        // Nothing is mounted there, or it is another user's.
        io::ErrorKind::PermissionDenied
    } else {
        io::ErrorKind::Other
    };
    Err(io::Error::new(kind, said))
}

fn find_in<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts.iter().rev().find(|mount| mount.mount_point == path)
}

/// What an absolute path leads to. What is below the mount of a FUSE file system stays as it is written.
fn resolve(mounts: &[MountEntry], path: &Path) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::from("/");
    let mut rest: Vec<OsString> = parts(path);
    let mut n_links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        resolved.push(part);
        if is_on_fuse(mounts, &resolved) {
            continue;
        }
        match fs::read_link(&resolved) {
            Ok(target) => {
                n_links += 1;
                if n_links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                // An absolute one takes the place of all before it.
                resolved = resolved.parent().unwrap_or(Path::new("/")).to_owned();
                if target.is_absolute() {
                    resolved = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
            // No link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return Err(error),
        }
    }
    Ok(resolved)
}

/// The names on a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).rev().collect()
}

/// Whether a FUSE file system answers for what is at a path without links.
fn is_on_fuse(mounts: &[MountEntry], path: &Path) -> bool {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
    // Of several with one mount point, the last is on top.
    above.max_by_key(|mount| mount.mount_point.components().count()).is_some_and(|mount| {
        mount.fs_type == "fuse" || mount.fs_type == "fuseblk" || mount.fs_type.starts_with("fuse.")
    })
}

/// Lines that are not understood are left out.
fn parse(mountinfo: &[u8]) -> Vec<MountEntry> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// A line such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: any number of
/// optional fields ends with `-`.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (major, minor) = str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let mount_point = fields.nth(1)?;
    let of_mount = fields.next()?;
    fields.find(|&field| field == b"-")?;
    let fs_type = fields.next()?;
    let source = fields.next()?;
    let of_fs = fields.next().unwrap_or_default();
    Some(MountEntry {
        mount_point: PathBuf::from(OsString::from_vec(unescape(mount_point))),
        fs_type: String::from_utf8_lossy(&unescape(fs_type)).into_owned(),
        source: OsString::from_vec(unescape(source)),
        dev: rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?),
        options: String::from_utf8_lossy(&[of_mount, of_fs].join(&b',')).into_owned(),
    })
}

/// Undoes the kernel's `\ooo` for space, tab, newline, backslash and, in some fields, `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] = rest {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"\
22 28 0:20 / /proc rw,relatime shared:14 - proc proc rw
36 35 98:3 /mnt1 /mnt\\0402/a\\134b\\011 rw,noatime master:1 shared:2 - ext3 /dev/my\\040root rw,errors=continue
40 28 0:45 / /data ro - fuse.npkfs /srv/data.npk ro,user_id=0
41 40 0:46 / /data rw shared:1 - tmpfs  rw
nonsense
50 28 0:x / /bad rw - tmpfs tmpfs rw
51 28 0:1 / /cut rw -
";

    #[test]
    fn lines_are_parsed_and_unescaped() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].mount_point, Path::new("/mnt 2/a\\b\t"));
        assert_eq!(mounts[1].fs_type, "ext3");
        assert_eq!(mounts[1].source, "/dev/my root");
        assert_eq!(mounts[1].dev, rustix::fs::makedev(98, 3));
        assert_eq!(mounts[1].options, "rw,noatime,rw,errors=continue");
        assert_eq!(mounts[2].source, "/srv/data.npk");
    }

    #[test]
    fn topmost_of_stacked_mounts_is_found_and_prefixes_are_not() {
        let mounts = parse(SAMPLE);
        assert_eq!(find_in(&mounts, Path::new("/data")).expect("mounted").fs_type, "tmpfs");
        assert_eq!(find_in(&mounts, Path::new("/data/")).expect("mounted").fs_type, "tmpfs");
        assert_eq!(find_in(&mounts, Path::new("/dat")), None);
        assert_eq!(find_in(&mounts, Path::new("/data/x")), None);
    }

    #[test]
    fn links_are_followed_and_what_is_on_fuse_is_not_touched() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = fs::canonicalize(folder.path()).expect("is there");
        fs::create_dir(base.join("mnt")).expect("a folder");
        std::os::unix::fs::symlink("mnt", base.join("link")).expect("a link");
        std::os::unix::fs::symlink(base.join("link"), base.join("far")).expect("a link");
        std::os::unix::fs::symlink("round", base.join("round")).expect("a link");
        let mount = |point: &Path, fs_type: &str| MountEntry {
            mount_point: point.to_owned(),
            fs_type: fs_type.to_owned(),
            source: OsString::new(),
            dev: 0,
            options: String::new(),
        };
        let mounts = [mount(Path::new("/"), "ext4"), mount(&base.join("mnt"), "fuse.npk")];
        for written in ["mnt", "link", "far", "link/../mnt", "mnt/../far"] {
            assert_eq!(resolve(&mounts, &base.join(written)).expect(written), base.join("mnt"), "{written}");
        }
        // There is no such file, which only the file system could tell.
        assert_eq!(resolve(&mounts, &base.join("far/x/..")).expect("not asked"), base.join("mnt"));
        assert_eq!(
            resolve(&mounts[..1], &base.join("far/x")).expect_err("asked").kind(),
            io::ErrorKind::NotFound
        );
        assert!(resolve(&mounts, &base.join("round")).is_err());
    }

    #[test]
    fn unescape_leaves_what_is_no_escape() {
        for (field, plain) in [
            (&b"a\\040b"[..], &b"a b"[..]),
            (b"\\", b"\\"),
            (b"\\04", b"\\04"),
            (b"\\400", b"\\400"),
            (b"\\043x", b"#x"),
            (b"", b""),
        ] {
            assert_eq!(unescape(field), plain);
        }
    }

    #[test]
    fn file_systems_without_a_process_answer() {
        assert!(probe(Path::new("/proc")).is_ok());
        assert_eq!(probe(Path::new("/no/such/place")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_not_mounted_cannot_be_unmounted() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(unmount(folder.path(), false).is_err());
        assert!(unmount(folder.path(), true).is_err());
        assert!(unmount(&folder.path().join("missing"), false).is_err());
    }

    #[test]
    fn proc_is_a_mount_point_and_a_directory_in_it_is_not() {
        assert_eq!(find(Path::new("/proc")).expect("mountinfo").expect("mounted").fs_type, "proc");
        assert_eq!(find(Path::new("/../proc/.")).expect("mountinfo").expect("mounted").fs_type, "proc");
        assert_eq!(find(Path::new("/proc/self")).expect("mountinfo"), None);
        assert_eq!(find(Path::new("/no/such/place")).expect("mountinfo"), None);
    }
}
