"""Stores of many arrays, arrays of a tebibyte, few descriptors, little memory."""

import errno
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_same
from conftest import BACKEND, why_no_mount
from counting import covered

NPKFS = Path(sys.executable).parent / "npkfs"
# The time goes into making and removing that many files.
N_ARRAYS = 100_000 if "NUMPACK_TEST_CASES" in os.environ else 20_000
TIB = 2**40
N_ROWS = TIB // 8192


class Mount:
    """A mounted store; skips the test, and says why, where nothing can be mounted."""

    def __init__(self, path, folder, options="rw", **how):
        if why := why_no_mount():
            pytest.skip(why)
        self.path = folder / "mnt"
        self.path.mkdir(exist_ok=True)
        subprocess.run([NPKFS, "mount", "-q", "-o", options, path, self.path], check=True, **how)

    def __enter__(self):
        return self.path

    def __exit__(self, *_exception):
        done = subprocess.run([NPKFS, "umount", self.path], capture_output=True, text=True)
        if done.returncode != 0:
            subprocess.run([NPKFS, "umount", "--lazy", self.path], check=True)
        assert done.returncode == 0, done.stderr


def run_limited(limits, code, *arguments):
    """Run Python code in a process that has these limits, of `resource`."""

    def limit():
        for kind, n in limits.items():
            resource.setrlimit(kind, (n, n))

    environment = os.environ | {"NUMPACK_BACKEND": BACKEND}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, env=environment)


@pytest.mark.timeout(600)
def test_a_store_of_many_arrays(numpack, path, tmp_path):
    names = [f"group{i // 1000}/a{i}" for i in range(N_ARRAYS)]
    with numpack.NumPack(path) as npk:
        npk.save({name: np.array([i]) for i, name in enumerate(names)})
        npk.append({names[7]: np.array([1])})
        # A commit costs what it changes, not what there is.
        before = (path / "metadata.npkm").stat().st_size
        npk.append({names[8]: np.array([1])})
        assert (path / "metadata.npkm").stat().st_size - before < 200
    with numpack.NumPack(path) as npk:
        assert len(npk) == N_ARRAYS
        assert_same(npk.load(names[-1]), np.array([N_ARRAYS - 1]))
        assert_same(npk.load(names[7]), np.array([7, 1]))
        npk.drop(names[9])
        assert names[9] not in npk
        assert len(npk.groups()) == N_ARRAYS // 1000
        assert len(npk.group("group3")) == 1000
    if NPKFS.exists():
        assert subprocess.run([NPKFS, "verify", path]).returncode == 0
        with Mount(path, tmp_path) as mnt:
            assert (mnt / f"{names[3005]}.npy").stat().st_size == 4096 + 8
            assert len(os.listdir(mnt)) == N_ARRAYS // 1000
            assert len(os.listdir(mnt / "group0")) == 999
            assert_same(np.load(mnt / f"{names[-1]}.npy"), np.array([N_ARRAYS - 1]))
    covered(N_ARRAYS, "arrays in one store")
    with numpack.NumPack(path) as npk:
        npk.reset()
        assert len(npk) == 0


@pytest.fixture
def holds_a_tebibyte(tmp_path):
    """Skips the test, and says why, where no file can be so long."""
    try:
        with open(tmp_path / "long", "wb") as file:
            file.truncate(2 * TIB)
    except OSError as error:
        pytest.skip(f"no file of 2 TiB can be made in {tmp_path}: {error.strerror}")
    (tmp_path / "long").unlink()


@pytest.mark.parametrize("compress", [False, True])
def test_an_array_of_a_tebibyte(numpack, path, holds_a_tebibyte, compress):
    ones = np.ones((1, 1024))
    with numpack.NumPack(path) as npk:
        npk.create("a", (N_ROWS, 1024), np.float64, compress=compress)
        npk.replace({"a": ones}, [N_ROWS - 1])
        npk.write_rows("a", N_ROWS // 2, 2 * ones)
        npk.append({"a": 3 * ones})
    with numpack.NumPack(path) as npk:
        assert npk.get_shape("a") == (N_ROWS + 1, 1024)
        lazy = npk.load("a", lazy=True)
        assert lazy.nbytes == TIB + 8192
        assert [lazy[row][5] for row in (0, N_ROWS // 2, N_ROWS - 1, -1)] == [0, 2, 1, 3]
        assert_same(npk.getitem("a", [N_ROWS, 3])[:, 0], np.array([3.0, 0.0]))
        assert_same(npk.load("a", rows=slice(N_ROWS - 1, None))[:, 9], np.array([1.0, 3.0]))
        with pytest.raises(MemoryError):
            npk.load("a")
        if not compress:
            with npk.writable_batch_mode() as wb:
                wb.load("a")[-2] = 7
            assert npk.getitem("a", N_ROWS - 1)[0][0] == 7
    assert sum(file.stat().st_blocks for file in path.iterdir()) * 512 < 2 << 20
    if NPKFS.exists():
        assert subprocess.run([NPKFS, "verify", path]).returncode == 0


@pytest.mark.parametrize("options", ["passthrough=auto", "passthrough=off"])
@pytest.mark.parametrize("compress", [False, True])
def test_an_array_of_a_tebibyte_in_a_mount(numpack, path, tmp_path, holds_a_tebibyte, options, compress):
    with numpack.NumPack(path) as npk:
        npk.create("a", (N_ROWS, 1024), np.float64, compress=compress)
        with Mount(path, tmp_path, options) as mnt:
            mapped = np.load(mnt / "a.npy", mmap_mode="r+")
            assert mapped.shape == (N_ROWS, 1024)
            mapped[-1] = 5
            mapped.flush()
            assert npk.getitem("a", N_ROWS - 1)[0][0] == 5
            del mapped
            with open(mnt / "a.npy", "ab") as file:
                file.write(np.full((2, 1024), 6.0).tobytes())
            assert npk.get_shape("a") == (N_ROWS + 2, 1024)
            npk.append({"a": np.full((1, 1024), 7.0)})
            mapped = np.load(mnt / "a.npy", mmap_mode="r")
            assert [mapped[row, 9] for row in (0, N_ROWS - 1, N_ROWS, -1)] == [0, 5, 6, 7]
            del mapped
            if not compress:
                # As a program makes one that does not write all of it.
                made = np.lib.format.open_memmap(mnt / "made.npy", "w+", np.uint8, (N_ROWS, 8192))
                made[-1] = 8
                del made
        assert sum(file.stat().st_blocks for file in path.iterdir()) * 512 < 2 << 20
        if not compress:
            assert npk.getitem("made", [0, -1])[:, 3].tolist() == [0, 8]


@pytest.fixture
def few_descriptors():
    """Lets this process have 256 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("compress", [False, True])
def test_calls_about_more_arrays_than_descriptors(numpack, path, few_descriptors, compress):
    """They had a file open for each array that they saved or appended to, and so had `npkfs verify`."""
    names = [f"a{i}" for i in range(300)]
    model = {name: np.full((i % 4, 2), i) for i, name in enumerate(names)}
    with numpack.NumPack(path) as npk:
        npk.save({"first": np.ones(1)} | model, compress=compress)
        npk.attrs_of("a5")["unit"] = "s"
        npk.save({name: array + 1 for name, array in model.items()}, compress=compress)
        npk.append({name: np.full((2, 2), -1) for name in names})
        npk.replace({name: np.full((1, 2), -2) for name in names}, [0])
        expected = {name: np.vstack([array + 1, np.full((2, 2), -1)]) for name, array in model.items()}
        for array in expected.values():
            array[0] = -2
        for name, array in expected.items():
            assert_same(npk.load(name), array)
        assert dict(npk.attrs_of("a5")) == {"unit": "s"}
        for name in names[:1] if compress else names:
            # The Rust backend had each file open that was ever mapped.
            with npk.writable_batch_mode() as wb:
                wb.load(name)[-1] = 7
        assert_same(npk.load("a0")[-1], np.array([7, 7]))
    if NPKFS.exists():
        for command in (["verify", "--deep"], ["compact"], ["recompress", "-q"]):
            done = subprocess.run([NPKFS, *command, path], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_too_many_lazy_arrays_are_an_error_that_passes(numpack, path, few_descriptors):
    with numpack.NumPack(path) as npk:
        npk.save({f"a{i}": np.full(6_000, i) for i in range(300)}, compress=True)
        kept = []
        with pytest.raises(OSError) as raised:
            for name in npk.get_member_list():
                kept.append(npk.load(name, lazy=True))
                kept[-1][0]
        assert raised.value.errno == errno.EMFILE
        del raised
        kept = kept[:50]
        assert [array[0] for array in kept] == list(range(50))
        npk.save({"new": np.ones(3)})
        npk.append({"a7": np.array([1])})
        assert npk.get_shape("a7") == (6_001,)


def test_a_mount_with_few_descriptors_goes_on(numpack, path, tmp_path):
    if BACKEND != "rust":
        pytest.skip("it has the Rust backend, whichever this run has")
    names = [f"a{i}" for i in range(300)]
    with numpack.NumPack(path) as npk:
        npk.save({name: np.full(600, i) for i, name in enumerate(names)})
        limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))}
        with Mount(path, tmp_path, "passthrough=off", **limited) as mnt:
            files = []
            with pytest.raises(OSError) as raised:
                for name in names:
                    files.append(open(mnt / f"{name}.npy", "rb"))
                    files[-1].read(1)
            assert raised.value.errno in (errno.EMFILE, errno.EIO), raised.value
            # What is open is read, and there is room again when some of it is closed.
            files[3].seek(0)
            assert_same(np.load(files[3]), np.full(600, 3))
            for file in files:
                file.close()
            np.save(mnt / "new.npy", np.ones(3))
            assert all(np.load(mnt / f"{name}.npy")[0] == i for i, name in enumerate(names))
        assert_same(npk.load("new"), np.ones(3))


MEMORY = """
    import resource, sys
    import numpy as np, numpack
    with numpack.NumPack(sys.argv[1]) as npk:
        limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (60 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for call in (
            lambda: npk.load("a"),
            lambda: npk.load("a", lazy=True)[0],
            lambda: npk.load("z"),
            lambda: npk.getitem("z", slice(None)),
            lambda: npk.load("dropped"),
        ):
            try:
                call()
            except MemoryError:
                pass
            else:
                sys.exit("there was memory enough")
        # Each of these takes less memory than the array has bytes.
        npk.append({"z": np.ones((1, 1024)), "a": np.ones((1, 1024))})
        npk.replace({"z": np.ones((1, 1024))}, [5])
        print(npk.getitem("z", [5, -1]).sum(), npk.load("a", rows=slice(-1, None)).sum())
"""


def test_too_little_memory_is_a_memory_error(numpack, path):
    with numpack.NumPack(path) as npk:
        for name in ("a", "dropped"):
            npk.create(name, (16384, 1024), np.float64)
        npk.drop("dropped", [3])
        npk.create("z", (16384, 1024), np.float64, compress=True)
    done = run_limited({}, MEMORY, path)
    assert (done.returncode, done.stdout) == (0, "2048.0 1024.0\n"), done.stderr
    with numpack.NumPack(path) as npk:
        assert npk.get_shape() == {"a": (16385, 1024), "dropped": (16383, 1024), "z": (16385, 1024)}
