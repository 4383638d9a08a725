"""Processes that die, or are forked, while somebody has a lock: the others go on, and what was begun is ended."""

import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from arrays import assert_same

ROUNDS = 20

HOLD = """
import fcntl, os, struct, sys
lock = os.open(sys.argv[1] + "/metadata.npkm.lock", os.O_RDWR)
fcntl.fcntl(lock, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 2, 0))
print("has it", flush=True)
sys.stdin.read()
"""

# Whoever removes a superseded file dies at that.
OVERWRITE_AND_DIE = """
import os, signal, sys
import numpy as np
from numpack import NumPack
from numpack._pure.sys.storage import Directory
with NumPack(sys.argv[1]) as npk:
    Directory.remove = lambda self, name: os.kill(os.getpid(), signal.SIGKILL)
    npk.save({"a": np.arange(5)})
"""


def start(code, path, backend=None):
    environ = os.environ | ({} if backend is None else {"NUMPACK_BACKEND": backend})
    words = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def data_files(path):
    return sorted(file for file in os.listdir(path) if file.endswith(".npkd"))


def test_a_killed_lock_holder_blocks_nobody(npk, path):
    npk.save({"a": np.arange(3)})
    with start(HOLD, path) as holder:
        assert holder.stdout.readline() == b"has it\n"
        waiter = threading.Thread(target=npk.append, args=({"a": np.arange(2)},))
        waiter.start()
        # Reading goes on meanwhile.
        assert_same(npk.load("a"), np.arange(3))
        assert waiter.is_alive()
        holder.kill()
        waiter.join(20)
        assert not waiter.is_alive()
    assert_same(npk.load("a"), np.array([0, 1, 2, 0, 1]))


def test_what_the_dead_had_to_remove_is_removed_by_who_knows_their_commit(npk, path):
    """Regression: a writer told of its commit before it removed what that superseded. It died in between, and a writer
    that knew the commit by then looked for no leftovers, and wrote its own intent over the one that named them."""
    npk.save({"a": np.arange(3), "b": np.arange(3)})
    npk.append({"b": np.arange(2)})
    with start(OVERWRITE_AND_DIE, path, "python") as victim:
        assert victim.wait(60) == -signal.SIGKILL
    assert len(data_files(path)) == 3
    assert_same(npk.load("a"), np.arange(5))
    npk.save({"b": np.arange(4)})
    assert len(data_files(path)) == 2
    assert_same(npk.load("a"), np.arange(5))


def in_child(work):
    """Do something in a forked process, which says whether it could."""
    with warnings.catch_warnings():
        # That there are threads is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def busy(npk):
    """A thread that commits all the time."""
    npk.save({"a": np.zeros(1, int)})
    is_over = threading.Event()

    def append():
        while not is_over.is_set():
            npk.append({"a": np.ones(1, int)})

    thread = threading.Thread(target=append)
    thread.start()
    yield
    is_over.set()
    thread.join()


def test_forked_processes_write_while_threads_of_their_parent_do(npk, busy):
    """Regression: the child found the locks of the store as they were, taken by a thread that only its parent has, and
    waited for it forever."""
    for n in range(ROUNDS):
        assert in_child(lambda n=n: npk.append({"a": np.full(1, 2 + n)})) == 0
    rows = npk.load("a")
    assert rows[rows > 1].tolist() == list(range(2, 2 + ROUNDS))


@pytest.mark.parametrize("compress", [None, True, {"block": 4096, "level": 1}], ids=["plain", "compressed", "blocks"])
def test_forked_processes_read_what_their_parent_has_open(npk, busy, compress):
    array = np.arange(4000).reshape(-1, 4)
    npk.save({"b": array}, compress=compress)
    npk.append({"b": array})
    npk.drop("b", [0])
    lazy, stream = npk.load("b", lazy=True), npk.stream_load("b", buffer_size=100)
    expected = np.concatenate([array, array])[1:]

    def read():
        assert_same(np.asarray(lazy), expected)
        assert_same(lazy[5:9], expected[5:9])
        assert_same(next(stream), expected[:100])
        assert_same(npk.load("b"), expected)

    for _ in range(ROUNDS):
        assert in_child(read) == 0
    # Its end is not that of its parent.
    assert in_child(npk.close) == 0
    read()


def test_the_lock_stays_with_the_process_that_took_it(npk, path):
    """A child that was forked while its parent had the lock neither has it nor gives it back."""
    npk.save({"a": np.arange(3)})
    held = threading.Event()
    with start(HOLD, path) as holder:
        holder.stdout.readline()
        waiter = threading.Thread(target=lambda: (npk.append({"a": np.arange(1)}), held.set()))
        waiter.start()
        assert in_child(lambda: npk.load("a")) == 0
        assert not held.is_set()
        holder.kill()
        waiter.join(20)
    assert in_child(lambda: npk.append({"a": np.arange(1)})) == 0
    assert npk.load("a").tolist() == [0, 1, 2, 0, 0]
