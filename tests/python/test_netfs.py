"""How far locks reach on file systems that cannot be had here, told from the table of mounts (Python backend; the Rust
backend has the same cases in `src/sys/netfs.rs`)."""

import pytest

from numpack._pure.sys.netfs import Place, place_from


@pytest.mark.parametrize(
    ("fs_type", "options", "kind", "has_far_locks"),
    [
        ("ext4", "rw", "local", True),
        ("tmpfs", "rw,nolock", "local", True),
        ("nfs4", "rw,vers=4.2,hard,proto=tcp,local_lock=none,addr=10.0.0.1", "NFS", True),
        ("nfs", "rw,vers=3,nolock,hard,local_lock=all", "NFS", False),
        ("nfs", "rw,vers=3,local_lock=flock", "NFS", True),
        ("nfs", "rw,vers=3,local_lock=posix", "NFS", False),
        ("cifs", "rw,vers=3.1.1,cache=strict", "SMB", True),
        ("smb3", "rw,vers=3.1.1,nobrl", "SMB", False),
        ("9p", "rw,sync,dirsync,access=client,trans=virtio,version=9p2000.L", "9P", True),
        ("9p", "rw,trans=fd,version=9p2000.u", "9P", False),
        ("lustre", "rw,flock,lazystatfs", "Lustre", True),
        ("lustre", "rw,localflock", "Lustre", False),
        ("lustre", "rw", "Lustre", False),
        ("gfs2", "rw,localflocks", "shared-disk", False),
        ("ocfs2", "rw,coherency=full", "shared-disk", True),
        ("fuse.sshfs", "rw,user_id=0", "FUSE", False),
        ("fuseblk", "rw", "FUSE", False),
        ("beegfs", "rw", "BeeGFS", False),
        ("ceph", "rw", "CephFS", True),
        ("gpfs", "rw", "GPFS", True),
    ],
)
def test_options_say_how_far_locks_reach(fs_type, options, kind, has_far_locks):
    assert place_from(fs_type, options) == Place(kind, has_far_locks)
