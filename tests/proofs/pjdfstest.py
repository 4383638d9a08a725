"""pjdfstest: what POSIX says of names, permissions, times and errors, call by call.

Much of it is about what a mount of arrays does not have. All tests are run all the same; one that fails must be explained
by one of the `REASONS`, and a reason that explains nothing any more is a failure, too.
"""

from __future__ import annotations

import re

from ways import Failed, Mount, tool

SETTINGS = """
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""

# Why tests fail, and which. Of "Changing names" and "Attributes" in spec/npkfs-semantics.md.
REASONS = {
    "fifos, sockets, devices and symbolic links cannot be made": (
        r"::(fifo|block|char|socket|symlink)$|^(mkfifo|mknod|symlink)::|::eloop_|::enoent_symlink$"
        r"|^open::(fifo_nonblock_wronly|open_nofollow|socket_error)$|^rename::preserve_metadata_symlink$"
        r"|^utimensat::follow_symlink$"
    ),
    "hard links cannot be made": (
        r"^link::|^rename::(preserve_metadata|to_multiply_linked)::regular$"
        r"|^unlink::(unchanged_ctime_failed|update_ctime_success)::regular$"
    ),
    "files have no execute bits, and nothing has the bits for set-id and for sticky folders": (
        r"::etxtbsy$|^chmod::(change_perm::(regular|dir)|clear_isgid_bit)$|^open::permission_bits_from_mode$"
        r"|::uid_gid_eq_euid_egid$"
    ),
}


def prepare(report, scratch):
    global pjdfstest
    pjdfstest = scratch.lend(tool("pjdfstest", "sh .ci/setup.sh proofs builds it"))
    (scratch.path / "pjdfstest.toml").write_text(SETTINGS)


def run(report, scratch, way):
    # Other users than root must come in for tests that become one; nobody needs a line in /etc/fuse.conf for that.
    options = ["allow_other"] if way.user is None else []
    elsewhere = scratch.folder(f"elsewhere-{way.options}-{way.user}", way)
    with Mount(scratch, way, options=options) as mount:
        command = [pjdfstest, "-c", scratch.path / "pjdfstest.toml", "-p", mount.path, "-s", elsewhere]
        status, said = way.run(*command, env={"RUST_BACKTRACE": "0", "PATH": "/usr/bin:/bin"})
    results = parse(said)
    if status not in (0, 1) or not any(result == "ok" for result, _ in results.values()):
        raise Failed(f"pjdfstest: exit code {status}\n{said}")
    failed = {name for name, (result, _) in results.items() if result == "FAILED"}
    explained, unexplained = {}, failed
    for reason, pattern in REASONS.items():
        explained[reason] = {name for name in unexplained if re.search(pattern, name)}
        unexplained = unexplained - explained[reason]
    if unexplained:
        raise Failed("pjdfstest: " + "\n".join(f"{name}: {results[name][1]}" for name in sorted(unexplained)))
    n_passed = sum(result == "ok" for result, _ in results.values())
    report.passed(f"{way.name}: {n_passed} of {len(results)} tests")
    for reason, names in explained.items():
        if names:
            report.does_not_apply(f"{way.name}: {len(names)} tests: {reason}")
        elif way.user is None:
            raise Failed(f"no test fails any more because {reason}: take that out of the REASONS")
    skipped = [detail for result, detail in results.values() if result == "skipped"]
    for reason in sorted(set(skipped)):
        report.does_not_apply(f"{way.name}: {skipped.count(reason)} tests: {reason}")


def parse(said):
    """What became of each test, and what was said of it."""
    found = re.split(r"^(\w+(?:::\w+)+) +(ok|skipped|FAILED)$", re.sub(r"\x1b\[[0-9;]*m", "", said), flags=re.MULTILINE)
    tests = zip(found[1::3], found[2::3], found[3::3], strict=True)
    return {name: (result, detail.strip().replace("\n\t", "; ")) for name, result, detail in tests}
