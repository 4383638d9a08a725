//! What kind of file system a file is on, as far as locks, renames and maps behave differently there.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{fstat, fstatfs};

use super::mounts::{self, MountEntry};

/// Where files are, and whom a lock on one of them keeps out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The kind of file system.
    pub kind: FsKind,
    /// Whom locks keep out.
    pub locks: LockReach,
}

/// Whom a lock on a file (man 2 fcntl) keeps out, of those who can write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LockReach {
    /// Everybody.
    #[default]
    Everybody,
    /// Those who reach the file through the same mount of the same host. It may be that locks go further; nothing here
    /// says so.
    ThisMount,
}

impl fmt::Display for LockReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockReach::Everybody => "everybody",
            LockReach::ThisMount => "this mount",
        })
    }
}

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum FsKind {
    /// On a disk or in the memory of this host, or of a kind not listed here.
    #[default]
    Local,
    /// Network File System.
    Nfs,
    /// SMB or CIFS, a Windows share.
    Smb,
    /// 9P, of virtual machines and WSL.
    NineP,
    /// A process of this host serves it: sshfs, s3fs, virtiofs, `npkfs` itself.
    Fuse,
    /// Lustre.
    Lustre,
    /// IBM Storage Scale (GPFS).
    Gpfs,
    /// CephFS.
    Ceph,
    /// BeeGFS.
    BeeGfs,
    /// The Andrew File System.
    Afs,
    /// A disk shared by several hosts: GFS2 or OCFS2.
    SharedDisk,
    /// A folder of the host of a virtual machine: VirtualBox or VMware.
    HostFolder,
}

impl FsKind {
    /// Whether another host may change the files.
    pub fn is_shared(self) -> bool {
        self != FsKind::Local
    }

    /// Whom locks keep out there, given the options that it is mounted with, as `/proc/self/mountinfo` has them.
    fn lock_reach(self, options: &str) -> LockReach {
        let is_set = |wanted: &str| options.split(',').any(|option| option == wanted);
        let reach_everybody = match self {
            FsKind::Local | FsKind::Gpfs | FsKind::Ceph => true,
            // man 5 nfs: the options keep locks on this host.
            FsKind::Nfs => !["nolock", "local_lock=all", "local_lock=posix"].into_iter().any(is_set),
            // man 8 mount.cifs: "nobrl" sends no byte-range locks to the server.
            FsKind::Smb => !is_set("nobrl"),
            // Older dialects of the protocol have no locks.
            FsKind::NineP => is_set("version=9p2000.L"),
            // man 8 mount.lustre: without "flock" there are none, or those of this host ("localflock").
            FsKind::Lustre => is_set("flock"),
            // man 8 mount.gfs2, mount.ocfs2.
            FsKind::SharedDisk => !is_set("localflocks"),
            // The kernel keeps locks itself where the serving process has no use for them, and does not tell.
            FsKind::Fuse | FsKind::BeeGfs | FsKind::Afs | FsKind::HostFolder => false,
        };
        if reach_everybody { LockReach::Everybody } else { LockReach::ThisMount }
    }

    // Numbers from linux/magic.h, from statfs(2), and for those outside the kernel from coreutils' stat.c.
    fn of_magic(magic: u32) -> FsKind {
        match magic {
            0x6969 => FsKind::Nfs,
            0xFE53_4D42 | 0xFF53_4D42 | 0x517B => FsKind::Smb,
            0x0102_1997 => FsKind::NineP,
            0x6573_5546 => FsKind::Fuse,
            0x0BD0_0BD0 => FsKind::Lustre,
            0x4750_4653 => FsKind::Gpfs,
            0x00C3_6400 => FsKind::Ceph,
            0x1983_0326 => FsKind::BeeGfs,
            0x5346_414F | 0x6B41_4653 => FsKind::Afs,
            0x0116_1970 | 0x7461_636F => FsKind::SharedDisk,
            0x786F_4256 | 0xBACB_ACBC => FsKind::HostFolder,
            _ => FsKind::Local,
        }
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FsKind::Local => "local",
            FsKind::Nfs => "NFS",
            FsKind::Smb => "SMB",
            FsKind::NineP => "9P",
            FsKind::Fuse => "FUSE",
            FsKind::Lustre => "Lustre",
            FsKind::Gpfs => "GPFS",
            FsKind::Ceph => "CephFS",
            FsKind::BeeGfs => "BeeGFS",
            FsKind::Afs => "AFS",
            FsKind::SharedDisk => "shared-disk",
            FsKind::HostFolder => "host-folder",
        })
    }
}

/// The kind of file system that an open file or directory is on.
pub fn kind(fd: impl AsFd) -> io::Result<FsKind> {
    let magic = fstatfs(fd)?.f_type;
    // The type is signed on some architectures, and the number has 32 bits on all.
    Ok(FsKind::of_magic(magic as u32))
}

/// Where an open file or directory is.
pub fn place(fd: impl AsFd) -> io::Result<Place> {
    let kind = kind(&fd)?;
    if !kind.is_shared() {
        return Ok(Place::default());
    }
    let dev = fstat(&fd)?.st_dev;
    let mounts = mounts::list().unwrap_or_default();
    Ok(Place { kind, locks: kind.lock_reach(&options_of(&mounts, dev)) })
}

/// The options of the mount with this device number. None if it cannot be seen: locks are then trusted the least.
fn options_of(mounts: &[MountEntry], dev: u64) -> String {
    let found = mounts.iter().rev().find(|mount| mount.dev == dev);
    found.map_or_else(|| "nolock,nobrl,localflocks".to_owned(), |mount| mount.options.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{NFS_SUPER_MAGIC, PROC_SUPER_MAGIC};

    #[test]
    fn magic_numbers_name_their_kind() {
        assert_eq!(FsKind::of_magic(NFS_SUPER_MAGIC as u32), FsKind::Nfs);
        assert_eq!(FsKind::of_magic(0xFE53_4D42_u32.cast_signed() as i64 as u32), FsKind::Smb);
        assert_eq!(FsKind::of_magic(PROC_SUPER_MAGIC as u32), FsKind::Local);
        assert_eq!(FsKind::of_magic(0xEF53), FsKind::Local); // ext4
        assert!(FsKind::NineP.is_shared() && !FsKind::Local.is_shared());
        assert_eq!(FsKind::NineP.to_string(), "9P");
    }

    #[test]
    fn options_say_how_far_locks_reach() {
        use LockReach::{Everybody, ThisMount};
        for (kind, options, reach) in [
            (FsKind::Local, "rw", Everybody),
            (FsKind::Nfs, "rw,vers=4.2,hard,proto=tcp,local_lock=none,addr=10.0.0.1", Everybody),
            (FsKind::Nfs, "rw,vers=3,nolock,hard,local_lock=all", ThisMount),
            (FsKind::Nfs, "rw,vers=3,local_lock=flock", Everybody),
            (FsKind::Nfs, "rw,vers=3,local_lock=posix", ThisMount),
            (FsKind::Smb, "rw,vers=3.1.1,cache=strict", Everybody),
            (FsKind::Smb, "rw,vers=3.1.1,nobrl", ThisMount),
            (FsKind::NineP, "rw,sync,dirsync,access=client,trans=virtio,version=9p2000.L", Everybody),
            (FsKind::NineP, "rw,trans=fd,version=9p2000.u", ThisMount),
            (FsKind::Lustre, "rw,flock,lazystatfs", Everybody),
            (FsKind::Lustre, "rw,localflock", ThisMount),
            (FsKind::Lustre, "rw", ThisMount),
            (FsKind::SharedDisk, "rw,localflocks", ThisMount),
            (FsKind::SharedDisk, "rw,coherency=full", Everybody),
            (FsKind::Fuse, "rw,user_id=0", ThisMount),
            (FsKind::BeeGfs, "rw", ThisMount),
        ] {
            assert_eq!(kind.lock_reach(options), reach, "{kind} {options}");
        }
    }

    #[test]
    fn locks_of_a_mount_that_cannot_be_seen_are_trusted_the_least() {
        let options = options_of(&[], 7);
        for kind in [FsKind::Nfs, FsKind::Smb, FsKind::NineP, FsKind::Lustre, FsKind::SharedDisk] {
            assert_eq!(kind.lock_reach(&options), LockReach::ThisMount, "{kind}");
        }
    }

    #[test]
    fn proc_is_local() {
        let proc = std::fs::File::open("/proc").expect("/proc");
        assert_eq!(place(&proc).expect("statfs"), Place::default());
    }
}
