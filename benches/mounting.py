"""Mounts: of npkfs, and of what it is measured against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from harness import CannotMeasure

NPKFS = Path(sys.executable).parent / "npkfs"
TOOLS = Path(__file__).resolve().parent.parent / "target" / "release" / "examples"


class CannotMount(CannotMeasure):
    """Mounting, or mounting in the way that a row wants, is not possible on this machine."""


def npkfs(*arguments):
    done = subprocess.run([NPKFS, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"npkfs {' '.join(map(str, arguments))}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def read_through(path, chunk=1 << 20):
    """Reads a file from start to end into one buffer, and returns its length."""
    buffer = bytearray(chunk)
    total = 0
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(buffer):
            total += n
    return total


def tool(name):
    """The path of one of the programs that are written for the benchmark alone."""
    path = TOOLS / name
    if not path.exists():
        raise CannotMeasure(f"{name} is not built; run: cargo build --release --example {name}")
    return path


def run(*command):
    """Runs a program to its end; what it says in vain is the error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotMount(f"{command[0]} is missing; sh .ci/setup.sh bench installs it") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotMount(f"{command[0]}: {said[-1] if said else f'exit code {done.returncode}'}")


class ServedMount:
    """A mount served by a process in the foreground."""

    def __init__(self, mountpoint, *command):
        self.path = Path(mountpoint)
        self.path.mkdir(exist_ok=True)
        self.log = tempfile.TemporaryFile()
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        except FileNotFoundError as error:
            raise CannotMount(f"{command[0]} is missing") from error
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                self.log.seek(0)
                said = self.log.read().decode(errors="replace").strip()
                raise CannotMount(said.splitlines()[-1] if said else f"{command[0]} said nothing")
            time.sleep(0.002)

    def raise_read_ahead(self, kib):
        """Lets the kernel read ahead as far as npkfs lets it. Without the right to do so, npkfs does not, either."""
        device = os.stat(self.path).st_dev
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        if os.access(setting, os.W_OK):
            setting.write_text(str(kib))

    def stop(self):
        if os.path.ismount(self.path):
            subprocess.run(["fusermount3", "-u", self.path], capture_output=True)
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if os.path.ismount(self.path):
            subprocess.run(["fusermount3", "-u", "-z", self.path], capture_output=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()


class KernelMount:
    """An image in a file, mounted read-only by the kernel. Each mount starts with nothing of it in its caches."""

    def __init__(self, kind, image, mountpoint):
        self.path = Path(mountpoint)
        self.path.mkdir(exist_ok=True)
        if kind not in Path("/proc/filesystems").read_text().split():
            raise CannotMount(f"this kernel has no {kind} (no line in /proc/filesystems)")
        if os.geteuid() != 0:
            raise CannotMount(f"mounting {kind} needs root")
        run("mount", "-t", kind, "-o", "loop,ro", image, self.path)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        run("umount", self.path)


class Mount(ServedMount):
    """A mount of npkfs, whose traffic and memory can be watched."""

    def __init__(self, store, mountpoint, *options):
        options = [word for option in options for word in ("-o", option)]
        super().__init__(mountpoint, NPKFS, "mount", "--foreground", store, mountpoint, *options)

    def bytes_sent(self):
        """How much the process has written so far, nearly all of it answers to the kernel."""
        for entry in Path(f"/proc/{self.process.pid}/io").read_text().splitlines():
            if entry.startswith("wchar:"):
                return int(entry.split()[1])
        raise RuntimeError("no wchar in /proc/PID/io")

    def passes_through(self, path):
        """Whether the kernel reads ``path`` without asking the process for its bytes."""
        before = self.bytes_sent()
        length = read_through(path)
        return self.bytes_sent() - before < length / 2

    def own_memory(self):
        """Resident bytes of the process that no file is behind."""
        total = 0
        for entry in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if entry.startswith(("RssAnon:", "RssShmem:")):
                total += int(entry.split()[1]) * 1024
        return total


class MemoryWatch:
    """Samples a process's own memory from a thread and keeps the highest figure."""

    def __init__(self, mount):
        self.mount = mount
        self.highest = mount.own_memory()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.over.wait(0.005):
            self.highest = max(self.highest, self.mount.own_memory())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()
        self.highest = max(self.highest, self.mount.own_memory())
