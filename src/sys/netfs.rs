//! What kind of file system a file is on, as far as locks, renames and maps behave differently there.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::fstatfs;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FsKind {
    /// On a disk or in the memory of this host, or of a kind not listed here.
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
    fn proc_is_local() {
        let proc = std::fs::File::open("/proc").expect("/proc");
        assert_eq!(kind(&proc).expect("statfs"), FsKind::Local);
    }
}
