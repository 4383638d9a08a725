"""Writers on several hosts, where locks do not reach from one to the other.

Two mounts of one folder by bindfs are like that: each has locks of its own. So a store in that folder has two hosts, as
far as it can tell.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conftest import BACKEND
from numpack import NumPack

BACKENDS = ("rust", "python")

APPEND = """
import sys
import numpy as np
from numpack import NumPack

path, first, n_rows, compressed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with NumPack(path) as npk:
    for row in range(first, first + n_rows):
        npk.append({compressed or "a": np.full((1, 2), row)})
"""

WRITE_FOR_EVER = """
import sys
import numpy as np
from numpack import NumPack

with NumPack(sys.argv[1]) as npk:
    while True:
        npk.append({"a": np.zeros((1, 2), int)})
        print("one", flush=True)
"""


@pytest.fixture
def hosts(tmp_path):
    """The folder of a store, and the same as two hosts see it."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is missing, which shows a folder at two places")
    real = tmp_path / "real"
    real.mkdir()
    with contextlib.ExitStack() as mounts:
        seen = []
        for name in ("one", "two"):
            place = tmp_path / name
            place.mkdir()
            done = subprocess.run(["bindfs", real, place], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"bindfs cannot mount here: {done.stderr.strip()}")
            mounts.callback(subprocess.run, ["fusermount3", "-u", "-z", place], check=False)
            seen.append(place / "s.npk")
        yield real / "s.npk", *seen


def start(program, backend, *arguments, **options):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"NUMPACK_BACKEND": backend}, **options)


@pytest.mark.parametrize("other", BACKENDS)
def test_no_append_is_lost(hosts, other):
    """Both hosts took the lock at once, and a quarter of the rows that were appended were gone."""
    real, one, two = hosts
    with NumPack(real) as npk:
        npk.save({"a": np.zeros((0, 2), int)})
        npk.save({"z": np.zeros((0, 2), int)}, compress=True)
    writers = [
        start(APPEND, backend, path, first, 60, name)
        for path, first, backend, name in (
            (one, 1000, BACKEND, ""),
            (two, 2000, other, ""),
            (two, 3000, BACKEND, "z"),
            (one, 4000, other, "z"),
        )
    ]
    assert [writer.wait() for writer in writers] == [0] * len(writers)
    with NumPack(real) as npk:
        for name, firsts in (("a", (1000, 2000)), ("z", (3000, 4000))):
            rows = npk.load(name)[:, 0].tolist()
            assert sorted(rows) == [first + i for first in firsts for i in range(60)]
            # Those of one writer are in their order.
            assert all(sorted(some) == some for some in ([row for row in rows if row // 1000 == first // 1000] for first in firsts))
    assert not list(real.glob("*.host")), "a claim is left"


def test_who_serves_the_files_sees_what_is_written_elsewhere(hosts):
    """The one has the length of the manifest mapped, which the other cannot write through a mapping."""
    real, one, _ = hosts
    with NumPack(real) as served:
        served.save({"a": np.arange(3)})
        assert served.get_shape("a") == (3,)
        with NumPack(one) as far:
            for n_rows in range(4, 9):
                far.append({"a": np.array([n_rows])})
                assert served.get_shape("a") == (n_rows,)
                served.replace({"a": np.array([n_rows])}, 0)
            assert far.load("a")[-1] == 8


def test_a_host_goes_on_after_a_writer_of_its_own_was_killed(hosts):
    """The claim that it left is the host's, whose lock says that nobody has it."""
    real, one, _ = hosts
    with NumPack(real) as npk:
        npk.save({"a": np.zeros((0, 2), int)})
    for i in range(10):
        writer = start(WRITE_FOR_EVER, BACKEND, one, stdout=subprocess.PIPE, text=True)
        for _ in range(1 + i):
            assert writer.stdout.readline() == "one\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    with NumPack(one) as npk:
        npk.append({"a": np.ones((1, 2), int)})
        assert npk.load("a")[-1].tolist() == [1, 1]
    assert not list(real.glob("*.host"))


def test_another_host_waits_for_one_that_has_a_claim(hosts):
    """It cannot know whether that is still at work: only a person can, who removes the claim."""
    real, one, two = hosts
    with NumPack(real) as npk:
        npk.save({"a": np.zeros((0, 2), int)})
    claim = real / "metadata.npkm.lock.host"
    claim.write_text("another-boot 1 17 far-away\n")
    writer = start(APPEND, BACKEND, two, 1, 1, "")
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(timeout=1)
    with NumPack(real) as npk:
        assert npk.get_shape("a") == (0, 2)
    assert claim.exists()
    claim.unlink()
    assert writer.wait() == 0
    with NumPack(one) as npk:
        deadline = time.monotonic() + 30
        while npk.get_shape("a") != (1, 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert npk.load("a").tolist() == [[1, 1]]


@pytest.mark.skipif(BACKEND != "rust", reason="npkfs comes with the Rust backend")
def test_info_tells_how_far_locks_reach(hosts):
    real, one, _ = hosts
    NumPack(real).open()
    npkfs = os.path.join(os.path.dirname(sys.executable), "npkfs")
    far = subprocess.run([npkfs, "info", one], capture_output=True, text=True, check=True).stdout
    assert "on FUSE, which other hosts may share" in far and "locks keep out this mount only" in far
    near = subprocess.run([npkfs, "info", "--json", real], capture_output=True, text=True, check=True).stdout
    assert (json.loads(near)["file_system"], json.loads(near)["locks_keep_out"]) == ("local", "everybody")
