"""The ways in which a store is mounted for the programs, and the mounts themselves.

Root mounts with passthrough and without it; the user nobody mounts with the help of fusermount3. Who is not root mounts
in one way, as himself. What the user nobody has to read (the programs, the scratch folder) must be open to him: so
everything is made in a folder of its own below the folder for temporary files, and programs are copied there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Another one can be named by the environment, for example one that was just built.
NPKFS = Path(os.environ.get("NPKFS", Path(sys.executable).parent / "npkfs"))
TOOLS = Path(__file__).resolve().parent.parent.parent / "target" / "tools" / "bin"
SECONDS_TO_MOUNT = 20


class NotRun(Exception):
    """Something cannot be tried on this machine. Says what is missing, and how to get it."""


class Failed(Exception):
    """A program found a fault, or left one behind."""


class Report:
    """What is said of a run, line by line, and counted."""

    def __init__(self, long):
        self.long = long
        self.n_passed = self.n_failed = self.n_skipped = 0

    def passed(self, what):
        self.n_passed += 1
        print(f"passed          {what}", flush=True)

    def fail(self, what):
        self.n_failed += 1
        print(f"FAILED          {what}", flush=True)

    def skip(self, why):
        """Something that could be tried elsewhere."""
        self.n_skipped += 1
        self.last_reason = why
        print(f"SKIPPED {why}", flush=True)

    def has_done_nothing(self):
        return self.n_passed + self.n_failed == 0

    @staticmethod
    def does_not_apply(why):
        """Something that npkfs does not offer, or the program cannot ask of it."""
        print(f"does not apply  {why}", flush=True)

    def total(self, seconds):
        counts = f"{self.n_passed} passed, {self.n_failed} failed, {self.n_skipped} skipped"
        return f"{counts} in {seconds:.1f}s"


@dataclass(frozen=True)
class Way:
    """Who mounts, and with which options."""

    name: str
    options: str
    user: str | None = None  # None: whoever runs this

    @property
    def passes_through(self):
        """Whether the kernel serves arrays that are not compressed by itself."""
        return self is PASSED_THROUGH

    def popen(self, *command, **how):
        """Starts a program as the user of this way."""
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            how |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        # In a session of its own, so that what it starts can be ended with it.
        how |= {"stdin": subprocess.DEVNULL, "start_new_session": True}
        return subprocess.Popen([str(word) for word in command], **how)

    def run(self, *command, seconds=300, **how):
        """Runs a program to its end; returns its exit code and all that it said."""
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with self.popen(*command, **how) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                return None, f"{said}\nstopped after {seconds} s"
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return process.returncode, said


PASSED_THROUGH = Way("root, passed through", "passthrough=auto")
PLAIN = Way("root, cached", "passthrough=off")
UNPRIVILEGED = Way("nobody", "passthrough=auto", user="nobody")
MYSELF = Way("an ordinary user", "passthrough=auto")


def ways(scratch):
    """The ways that there are here, and why others are not."""
    if os.geteuid() != 0:
        return [MYSELF], ["mounts of root: they need root"]
    here, others = [PLAIN], []
    if passthrough_works(scratch):
        here.insert(0, PASSED_THROUGH)
    else:
        others.append("files that are passed through: Linux before 6.9, or the folder for temporary files is on a stack")
    missing = why_nobody_cannot_mount()
    if missing:
        others.append(f"mounts of the user nobody: {missing}")
    else:
        here.append(UNPRIVILEGED)
    return here, others


def passthrough_works(scratch):
    """Whether the kernel reads files by itself, so that the process has nothing to answer."""
    import numpy as np

    with Mount(scratch, PASSED_THROUGH, {"a": np.zeros(10)}) as mount:
        (mount.path / "a.npy").read_bytes()
        return mount.counters()["reads"] == 0


def why_nobody_cannot_mount():
    try:
        pwd.getpwnam("nobody")
    except KeyError:
        return "there is no user nobody"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing; sh .ci/setup.sh mount installs it"
    if not os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        return "he may not open /dev/fuse; as root: chmod 666 /dev/fuse"
    return None


def tool(name, how_to_get_it):
    """The path of a program: one that was built for the tests, or one of the machine."""
    found = TOOLS / name
    path = str(found) if found.exists() else shutil.which(name)
    if path is None:
        raise NotRun(f"{name} is missing; {how_to_get_it}")
    return Path(path)


class Scratch:
    """A folder that all users may enter."""

    numbers = itertools.count()

    def __enter__(self):
        self.path = Path(tempfile.mkdtemp(prefix="npkfs-proofs-"))
        self.path.chmod(0o755)
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            shutil.rmtree(self.path)

    def folder(self, name, way):
        """A new folder that belongs to the user of a way."""
        path = self.path / name
        path.mkdir()
        if way.user is not None:
            shutil.chown(path, way.user)
        return path

    def lend(self, program):
        """A copy of a program that all users may run."""
        copy = self.path / Path(program).name
        if not copy.exists():
            shutil.copy(program, copy)
            copy.chmod(0o755)
        return copy


class Mount:
    """A mounted store. Leaving it unmounts, and fails if that does not go well, or the store has damage then."""

    def __init__(self, scratch, way, arrays=None, compress=False, options=()):
        from numpack import NumPack

        self.way = way
        self.npkfs = scratch.lend(NPKFS)
        self.folder = scratch.folder(f"mount{next(scratch.numbers)}", way)
        self.store = self.folder / "data.npk"
        self.path = self.folder / "mnt"
        self.log = self.folder / "log"
        with NumPack(self.store) as npk:
            if arrays:
                npk.save(arrays, compress=compress)
        self.path.mkdir()
        if way.user is not None:
            for path in [self.path, self.store, *self.store.rglob("*")]:
                shutil.chown(path, way.user)
        options = [word for option in (way.options, *options) for word in ("-o", option)]
        command = [self.npkfs, "mount", "--foreground", self.store, self.path, *options]
        with open(self.log, "wb") as log:
            self.process = way.popen(*command, stdout=log, stderr=log)
        self.wait_until_mounted()

    def wait_until_mounted(self):
        deadline = time.monotonic() + SECONDS_TO_MOUNT
        while not self.is_mounted():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise NotRun(f"cannot mount as {self.way.name}: {self.said() or 'npkfs said nothing'}")
            time.sleep(0.002)

    def is_mounted(self):
        # The table of mounts: others than the user who mounted may not look at the folder.
        return any(line.split(" ")[1] == str(self.path) for line in Path("/proc/self/mounts").read_text().splitlines())

    def said(self):
        return self.log.read_text(errors="replace").strip()

    def counters(self):
        """What `npkfs status` counts. It answers a moment after the mount does."""
        deadline = time.monotonic() + SECONDS_TO_MOUNT
        while True:
            status, said = self.way.run(self.npkfs, "status", "--json", self.path)
            if status != 0 or time.monotonic() > deadline:
                raise Failed(f"npkfs status: exit code {status}: {said}")
            if counters := json.loads(said)[0].get("counters"):
                return counters

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.end()
        except Failed as failed:
            # The program's own complaint comes first.
            if error is None:
                raise
            print(f"and then: {failed}")
        finally:
            self.kill()
        if error is not None and self.said():
            print(f"the log of the mount:\n{self.said()}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self):
        """Unmounts, and looks at what is left."""
        if self.process.poll() is not None:
            raise Failed(f"npkfs ended during the run: exit code {self.process.returncode}\n{self.said()}")
        status, said = self.way.run("ls", "-la", self.path, seconds=30)
        if status != 0:
            raise Failed(f"the mount does not answer: ls: exit code {status}: {said}")
        status, said = self.way.run(self.npkfs, "umount", self.path, seconds=60)
        if status != 0:
            raise Failed(f"npkfs umount: exit code {status}: {said}")
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            raise Failed("npkfs does not end after umount") from None
        if status != 0 or "panicked" in self.said():
            raise Failed(f"npkfs: exit code {status}\n{self.said()}")
        status, said = self.way.run(self.npkfs, "verify", "--deep", self.store)
        if status != 0:
            raise Failed(f"npkfs verify --deep: exit code {status}: {said}")

    def kill(self):
        """Leaves nothing behind, whatever happened."""
        if self.is_mounted():
            subprocess.run(["umount" if os.geteuid() == 0 else "fusermount3", "-l" if os.geteuid() == 0 else "-uz", self.path])
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
