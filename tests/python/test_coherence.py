"""Writers of both backends in processes of their own, and three mounts of one store at a time: whatever one does, all see.

What is asserted is that it is seen, and right, not how soon; `benches/coherence.py` measures that.
"""

import importlib.util
import mmap
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from mounting import NPKFS, mounted

WRITER = """
import sys
import numpy as np
import numpack
npk = numpack.NumPack(sys.argv[1])
npk.open()
print(npk.__class__.__module__, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""
WAYS = ["passthrough=auto", "passthrough=off", "passthrough=off,threads=1"]
# Far longer than it takes, on a machine that is busy.
LIMIT = 20


class Writer:
    """A process that does what it is told."""

    def __init__(self, path, backend):
        env = dict(os.environ, NUMPACK_BACKEND=backend)
        env.pop("NUMPACK_FORCE_PYTHON_BACKEND", None)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WRITER, path], env=env, **pipes)
        self.process.stdout.readline()

    def do(self, line):
        """Returns when the call has returned."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", line

    def end(self):
        self.process.stdin.close()
        self.process.wait(LIMIT)
        self.process.stdout.close()


@pytest.fixture
def writers(path):
    """One of each backend."""
    backends = ["python"] + ["rust"] * (importlib.util.find_spec("numpack._native") is not None)
    writers = [Writer(path, backend) for backend in backends]
    yield writers
    for writer in writers:
        writer.end()


@pytest.fixture
def mounts(can_mount, tmp_path, path):
    """Three mounts of the store, whose files the kernel caches in different ways."""
    import numpack

    numpack.NumPack(path).open()
    with mounted(path, tmp_path, WAYS) as mounts:
        yield mounts


def seen(what, look):
    """Waits until ``look()`` is true."""
    start = time.monotonic()
    while not look():
        assert time.monotonic() - start < LIMIT, f"{what} is not seen"


def is_shown(file, array):
    """Whether a file shows an array, read and mapped."""
    try:
        read, mapped = np.load(file), np.load(file, mmap_mode="r")
    except FileNotFoundError:
        return False
    return np.array_equal(read, array) and np.array_equal(mapped, array)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_what_the_api_does_is_seen_in_all_mounts(mounts, writers, compress):
    for n, writer in enumerate(writers):
        name, rows = f"g{n}/a", np.arange(40_000).reshape(-1, 4)
        files = [mnt / f"{name}.npy" for mnt in mounts]
        for file in files:
            assert not file.exists(), "the kernel remembers that"
        writer.do(f"npk.save({{{name!r}: np.arange(40_000).reshape(-1, 4)}}, compress={compress})")
        for file in files:
            seen("a new array", file.exists)
            assert os.listdir(file.parent) == ["a.npy"] and is_shown(file, rows)
        opened = [open(file, "rb") for file in files]
        maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in opened]
        held = [np.frombuffer(mapped, np.int64, offset=4096) for mapped in maps]
        assert all(array.sum() == rows.sum() for array in held)

        writer.do(f"npk.append({{{name!r}: np.full((5000, 4), -1)}})")
        rows = np.vstack([rows, np.full((5000, 4), -1)])
        for file, fd in zip(files, opened, strict=True):
            seen("the length, by name", lambda file=file: file.stat().st_size == 4096 + rows.nbytes)
            seen("the length, by descriptor", lambda fd=fd: os.fstat(fd.fileno()).st_size == 4096 + rows.nbytes)
            assert is_shown(file, rows)
            assert os.pread(fd.fileno(), 8, 4096 + rows.nbytes - 8) == (-1).to_bytes(8, "little", signed=True)

        writer.do(f"npk.replace({{{name!r}: np.full((3, 4), 7)}}, [0, 5000, 12_000])")
        rows[[0, 5000, 12_000]] = 7
        for file, fd, array in zip(files, opened, held, strict=True):
            seen("what was replaced, in a mapping", lambda array=array: array[0] == 7 and array[20_000] == 7)
            seven = (7).to_bytes(8, "little")
            seen("what was replaced, by read", lambda fd=fd: os.pread(fd.fileno(), 8, 4096) == seven)
            seen("what was replaced, by name", lambda file=file: is_shown(file, rows))

        before = [file.stat().st_ino for file in files]
        writer.do(f"npk.drop({name!r}, [1, 2])")
        rows = np.delete(rows, [1, 2], axis=0)
        for file, ino, array in zip(files, before, held, strict=True):
            seen("that rows are gone", lambda file=file, ino=ino: file.stat().st_ino != ino)
            assert is_shown(file, rows)
            assert array[4] == 4, "mappings of before go on"
        writer.do(f"npk.save({{{name!r}: np.arange(10)}}, compress={compress})")
        for file, array in zip(files, held, strict=True):
            seen("another version", lambda file=file: is_shown(file, np.arange(10)))
            assert array[0] == 7 and array[4] == 4
        writer.do(f"npk.drop({name!r})")
        for file in files:
            seen("that it is gone", lambda file=file: not file.exists())
            seen("that its folder is gone", lambda file=file: not file.parent.exists())
        del held, array
        [mapped.close() for mapped in maps], [file.close() for file in opened]


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_what_is_done_in_one_mount_is_seen_in_the_others_and_by_the_api(mounts, writers, compress):
    array = np.arange(40_000)
    for writer, mnt in zip(writers * 3, [mnt for mnt in mounts for _ in writers], strict=False):
        others = [other for other in mounts if other != mnt]
        writer.do(f"npk.save({{'a': np.arange(40_000)}}, compress={compress})")
        for other in mounts:
            seen("the array", lambda other=other: is_shown(other / "a.npy", array))
        opened = [open(other / "a.npy", "rb") for other in others]
        held = [np.memmap(file, np.int64, "r", 4096) for file in opened]
        assert all(other.sum() == array.sum() for other in held)

        # Through write, and through a mapping.
        changed = array.copy()
        with open(mnt / "a.npy", "r+b") as file:
            os.pwrite(file.fileno(), (77).to_bytes(8, "little"), 4096 + 8 * 10)
            os.fsync(file.fileno())
        mapped = np.load(mnt / "a.npy", mmap_mode="r+")
        mapped[30_000] = 78
        mapped.flush()
        del mapped
        changed[[10, 30_000]] = 77, 78
        for other, old in zip(others, held, strict=True):
            seen("what was written", lambda other=other: is_shown(other / "a.npy", changed))
            seen("it in a mapping", lambda old=old: old[10] == 77 and old[30_000] == 78)
        writer.do("assert npk.load('a')[[10, 30_000]].tolist() == [77, 78]")

        # Rows at the end, and other names.
        with open(mnt / "a.npy", "ab") as file:
            file.write(np.arange(7).tobytes())
        changed = np.concatenate([changed, np.arange(7)])
        for other, file in zip(others, opened, strict=True):
            length = 4096 + changed.nbytes
            seen("the rows", lambda file=file, length=length: os.fstat(file.fileno()).st_size == length)
            seen("their values", lambda other=other: is_shown(other / "a.npy", changed))
        writer.do("assert npk.load('a').shape == (40_007,)")
        np.save(mnt / "new.npy", array)
        os.rename(mnt / "a.npy", mnt / "b.npy")
        for other in others:
            seen("a new file", lambda other=other: is_shown(other / "new.npy", array))
            seen("another name", lambda other=other: is_shown(other / "b.npy", changed))
            seen("no name", lambda other=other: not (other / "a.npy").exists())
        writer.do("assert sorted(npk) == ['b', 'new']")
        os.remove(mnt / "new.npy")
        os.mkdir(mnt / "g")
        os.rename(mnt / "b.npy", mnt / "g/b.npy")
        os.rename(mnt / "g", mnt / "h")
        for other in others:
            seen("a folder", lambda other=other: is_shown(other / "h/b.npy", changed))
            seen("one file less", lambda other=other: sorted(os.listdir(other)) == ["h"])
        writer.do("assert sorted(npk) == ['h/b']")
        del held, old
        [file.close() for file in opened]
        os.remove(mnt / "h/b.npy")
        os.rmdir(mnt / "h")


def test_writers_through_two_mounts_and_the_api_do_not_corrupt_an_array(mounts, writers):
    """Each changes elements of its own, in pages and blocks that all of them change."""
    n, rounds = 20_000, 12
    for compress in (False, True):
        writers[0].do(f"npk.save({{'a': np.zeros({n}, np.int64)}}, compress={compress})")
        seen("the array", lambda: is_shown(mounts[1] / "a.npy", np.zeros(n, np.int64)))
        files = [open(mnt / "a.npy", "r+b") for mnt in mounts[:2]]
        expected = np.zeros(n, np.int64)
        rng = np.random.default_rng(5)
        own = rng.permutation(n).reshape(len(files) + len(writers) + (len(writers) == 1), -1) if n % 4 == 0 else None
        for turn in range(1, rounds):
            for i, file in enumerate(files):
                for at in own[i][:20]:
                    os.pwrite(file.fileno(), int(turn).to_bytes(8, "little"), 4096 + 8 * int(at))
                expected[own[i][:20]] = turn
            for i, writer in enumerate(writers, len(files)):
                rows = own[i][:20].tolist()
                writer.do(f"npk.replace({{'a': np.full(20, {turn})}}, {rows})")
                expected[rows] = turn
        for file in files:
            os.fsync(file.fileno())
            file.close()
        for mnt in mounts:
            seen("all that was written", lambda mnt=mnt: is_shown(mnt / "a.npy", expected))
        writers[-1].do(f"assert np.array_equal(npk.load('a'), np.load({str(mounts[2] / 'a.npy')!r}))")
        subprocess.run([NPKFS, "verify", "--deep", "-q", mounts[0].parent / "data.npk"], check=True)
