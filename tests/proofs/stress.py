"""stress-ng: many processes that do all kinds of things to one mount at once, and verify what comes of it."""

from __future__ import annotations

import re

from ways import Failed, Mount, tool

# One process of each, at the same time.
STRESSORS = """
aio aiol chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fcntl file-ioctl filename
flock fpunch fstat getdent handle hdd inode-flags inotify lease locka lockf lockofd mknod mmap msync msyncmany open
readahead rename revio seek sendfile splice sync-file touch utime
""".split()

# Those that do not apply, with the reason.
LEFT_OUT = {
    "access": "execute bits, which no file has",
    "link, symlink": "refused with EPERM",
    "xattr": "attributes that do not begin with user.npk., refused with EOPNOTSUPP",
    "fiemap, verity": "ioctls that file systems served by a process do not get",
    "io-uring": "stress-ng's own test of statx fails on every file system",
    "fanotify, io, iomix": "watch all mounts of the machine, sync all its disks, and empty all its caches",
}
SECONDS = {False: 10, True: 300}


def prepare(report, scratch):
    global stress_ng
    stress_ng = tool("stress-ng", "sh .ci/setup.sh proofs installs it")
    for stressors, why in LEFT_OUT.items():
        report.does_not_apply(f"{stressors}: {why}")


def run(report, scratch, way):
    seconds = SECONDS[report.long]
    with Mount(scratch, way) as mount:
        folder = mount.path / "stress"
        way.run("mkdir", folder)
        command = [stress_ng, "--temp-path", folder, "--timeout", f"{seconds}s", "--verify", "--metrics-brief"]
        command += ["--mmap-file", "--mmap-bytes", "2m"]
        for stressor in STRESSORS:
            command += [f"--{stressor}", "1"]
        # Some finish what they have begun, and remove what they have made, after the time is over.
        status, said = way.run(*command, cwd="/", seconds=seconds + 400)
        if status != 0 or re.search(r" fail: ", said):
            raise Failed(f"stress-ng: exit code {status}\n{said}")
        counts = re.findall(r"metrc: \[\d+\] ([\w-]+) +(\d+) ", said)
        counts = {stressor: int(count) for stressor, count in counts if stressor in STRESSORS}
    idle = [stressor for stressor in STRESSORS if not counts.get(stressor)]
    total = sum(counts.values())
    report.passed(f"{way.name}: {len(STRESSORS) - len(idle)} stressors at once for {seconds} s, {total:,} operations")
    if idle:
        report.does_not_apply(f"{way.name}: {', '.join(idle)}: had no time, or could do nothing here")
