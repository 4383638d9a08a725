"""fio: blocks of random sizes at random places, each with a checksum in it, written and read back by several engines.

The header of an array cannot be written: fio is told to begin behind it. Its engine `mmap` maps files from their first
byte on whatever it is told, and so sees arrays through behind_header.c.
"""

from __future__ import annotations

import behind_header
import numpy as np

from ways import Failed, Mount, tool

MIB = 2**20
SIZE = {False: 8 * MIB, True: 64 * MIB}

VERIFIED = ["--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_backlog=300", "--fsync=100"]
# What is asked of the kernel in each job. In the last two fio writes around the page cache.
ENGINES = {
    "psync": ["--ioengine=psync", "--bsrange=512-64k"],
    "mmap": ["--ioengine=mmap", "--bsrange=4k-64k"],
    "psync, O_DIRECT": ["--ioengine=psync", "--bsrange=4k-64k", "--direct=1"],
    "libaio, O_DIRECT, 8 at a time": ["--ioengine=libaio", "--bsrange=4k-64k", "--direct=1", "--iodepth=8"],
}


def prepare(report, scratch):
    global fio
    fio = tool("fio", "sh .ci/setup.sh proofs installs it")
    behind_header.build(scratch)


def run(report, scratch, way):
    array = np.zeros(SIZE[report.long], np.uint8)
    for compress in (False, True):
        what = "compressed array" if compress else "array"
        for engine, options in ENGINES.items():
            with Mount(scratch, way, {"a": array}, compress) as mount:
                file = mount.path / "a.npy"
                # Nothing is made, and no length is changed.
                options = [*options, f"--filename={file}", "--overwrite=1", "--allow_file_create=0", "--fallocate=none"]
                environment = {}
                if engine == "mmap":
                    environment = behind_header.environment(file)
                else:
                    options.append(f"--offset={behind_header.HEADER_LEN}")
                job(report, way, mount, f"{what}: {engine}", options, environment)
    for engine, options in ENGINES.items():
        with Mount(scratch, way) as mount:
            options = [*options, f"--directory={mount.path}", "--numjobs=2", "--fallocate=posix"]
            job(report, way, mount, f"two files that are no arrays: {engine}", options, {})


def job(report, way, mount, what, options, environment):
    command = [fio, "--name=job", f"--size={SIZE[report.long]}", *VERIFIED, *options]
    status, said = way.run(*command, env={"PATH": "/usr/bin:/bin"} | environment, cwd=mount.folder, seconds=1800)
    if status != 0 or "verify" in said and "error=" in said:
        raise Failed(f"fio: {what}: exit code {status}\n{said}")
    report.passed(f"{way.name}: {what}")
    n_files = 2 if "--numjobs=2" in options else 1
    print(f"covered: {n_files * SIZE[report.long] // MIB} MiB that fio wrote to mounts and read back")
