"""What kind of file system a file is on, as far as locks and mappings behave differently there."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

# The names that the kernel gives to file systems on which other hosts may change the files.
KINDS = {
    "nfs": "NFS",
    "nfs4": "NFS",
    "cifs": "SMB",
    "smb3": "SMB",
    "9p": "9P",
    "lustre": "Lustre",
    "gpfs": "GPFS",
    "ceph": "CephFS",
    "beegfs": "BeeGFS",
    "afs": "AFS",
    "gfs2": "shared-disk",
    "ocfs2": "shared-disk",
    "vboxsf": "host-folder",
    "vmhgfs": "host-folder",
}
# Options that keep locks on this host, and options without which they stay there.
NEAR = {"NFS": {"nolock", "local_lock=all", "local_lock=posix"}, "SMB": {"nobrl"}, "shared-disk": {"localflocks"}}
FAR = {"9P": {"version=9p2000.L"}, "Lustre": {"flock"}}
# Where locks reach everybody, whatever the options.
ALWAYS_FAR = {"local", "GPFS", "CephFS"}


@dataclass(frozen=True)
class Place:
    """Where files are: the kind of file system, and whether locks keep out everybody who can write there.

    If not, they keep out those who reach the file through the same mount of the same host.
    """

    kind: str
    has_far_locks: bool

    @property
    def is_shared(self) -> bool:
        """Whether another host may change the files."""
        return self.kind != "local"


def place_from(fs_type: str, options: str) -> Place:
    """What a line of the table of mounts tells."""
    kind = "FUSE" if fs_type.split(".")[0] in ("fuse", "fuseblk") else KINDS.get(fs_type, "local")
    given = set(options.split(","))
    if kind in ALWAYS_FAR:
        return Place(kind, True)
    if kind in NEAR:
        return Place(kind, not NEAR[kind] & given)
    return Place(kind, bool(FAR.get(kind, set()) & given))


def place_of(fd: int) -> Place:
    """Where an open file or directory is."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = Place("local", True)
    with contextlib.suppress(OSError), open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            words = line.split()
            if words[2] == wanted:
                # Some optional fields, a dash, the type, what is mounted, the options of the file system.
                fs_type, _, *of_fs = words[words.index("-") + 1 :]
                found = place_from(fs_type, ",".join([words[5], *of_fs]))
    return found
