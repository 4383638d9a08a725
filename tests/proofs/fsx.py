"""fsx: random reads, writes, mapped reads and writes and all that changes a length, checked byte for byte.

An array has a header that fsx may not write, and a length that it may not change. So it is run in the mode for block
devices, on the bytes behind the header: behind_header.c shows them to it as a file. Files that are no arrays are
tested as they are.
"""

from __future__ import annotations

import random

import behind_header
import numpy as np

from ways import Failed, Mount, tool

# Neither whole pages nor whole blocks of a compressed array.
N_ELEMENTS = 5 * 65536 + 1234
N_OPERATIONS = {False: 4000, True: 10_000}

ON_ARRAYS = """
flen = {n_bytes}
blockmode = true
[opsize]
max = 65536
[weights]
truncate = 0
invalidate = 1
fsync = 0.3
fdatasync = 0.3
posix_fadvise = 1
sendfile = {sendfile}
copy_file_range = {sendfile}
"""

ON_OTHERS = """
flen = 400000
[opsize]
max = 65536
[weights]
close_open = 1
truncate = 5
invalidate = 1
fsync = 0.3
fdatasync = 0.3
posix_fallocate = 1
punch_hole = 0
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
"""


def prepare(report, scratch):
    global fsx
    fsx = scratch.lend(tool("fsx", "sh .ci/setup.sh proofs builds it"))
    behind_header.build(scratch)
    (scratch.path / "array.toml").write_text(ON_ARRAYS.format(n_bytes=N_ELEMENTS, sendfile=3))
    (scratch.path / "passed.toml").write_text(ON_ARRAYS.format(n_bytes=N_ELEMENTS, sendfile=0))
    (scratch.path / "other.toml").write_text(ON_OTHERS)
    report.does_not_apply("truncate and posix_fallocate of an array: its length is its shape's; rows are appended by the API")
    report.does_not_apply("punch_hole: refused with EOPNOTSUPP, as spec/npkfs-semantics.md says of fallocate")
    report.does_not_apply("sendfile and copy_file_range of an array that is passed through: EINVAL, because fsx opens it for writing")
    report.does_not_apply("close_open of an array: fsx does not offer it for files of fixed length")


def run(report, scratch, way):
    seed = random.randrange(2**32) if report.long else 42
    array = np.zeros(N_ELEMENTS, np.uint8)
    with Mount(scratch, way, {"a": array}) as mount:
        settings = "passed.toml" if way.passes_through else "array.toml"
        exercise(report, scratch, way, mount.path / "a.npy", settings, seed, "array")
    with Mount(scratch, way, {"a": array}, compress=True) as mount:
        exercise(report, scratch, way, mount.path / "a.npy", "array.toml", seed, "compressed array")
    with Mount(scratch, way) as mount:
        for name in ("notes.txt", "unfinished.npy"):
            exercise(report, scratch, way, mount.path / name, "other.toml", seed, name)


def exercise(report, scratch, way, file, settings, seed, what):
    artifacts = file.parent.parent / "fsx"
    artifacts.mkdir(exist_ok=True)
    artifacts.chmod(0o777)
    environment = {"PATH": "/usr/bin:/bin"}
    if settings != "other.toml":
        environment |= behind_header.environment(file)
    n = N_OPERATIONS[report.long]
    status, said = way.run(
        fsx, "-N", n, "-S", seed, "-P", artifacts, "-f", scratch.path / settings, file, env=environment, seconds=1800
    )
    if status != 0:
        raise Failed(f"fsx -S {seed} on {file.name}: exit code {status}\n{said}")
    report.passed(f"{way.name}: {what}: {n:,} operations, seed {seed}")
    print(f"covered: {n} operations of fsx on mounts")
