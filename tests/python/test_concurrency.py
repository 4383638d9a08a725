"""Several handles, threads and processes on one store."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from arrays import assert_same, example

A = example("f4", (6, 4))
F_OFD_SETLK = 37


def run_threads(functions):
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def in_another_process(code, *arguments):
    """Run Python code with `npk`, an open store, in another process."""
    code = f"import sys, numpy as np, numpack\nwith numpack.NumPack(sys.argv[1]) as npk:\n    {code}"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def writers_lock(path):
    """Functions that take and release the lock which writers of the store take."""
    descriptors = []

    def set_lock(kind):
        if not descriptors:
            descriptors.append(os.open(path / "metadata.npkm.lock", os.O_RDWR | os.O_CREAT))
        fcntl.fcntl(descriptors[0], F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 1, 0))

    yield lambda: set_lock(fcntl.F_WRLCK), lambda: set_lock(fcntl.F_UNLCK)
    for descriptor in descriptors:
        os.close(descriptor)


def test_two_threads_append_to_one_array(npk):
    npk.save({"a": np.zeros((0, 2), "i8")})

    def append(thread):
        for n in range(300):
            npk.append({"a": np.array([[thread, n]])})

    run_threads([lambda: append(0), lambda: append(1)])
    rows = npk.load("a")
    assert rows.shape == (600, 2)
    for thread in (0, 1):
        assert rows[rows[:, 0] == thread, 1].tolist() == list(range(300))


def test_threads_do_everything_at_once(npk):
    def work(name):
        expected = example("i8", (50, 3))
        for n in range(40):
            npk.save({name: expected})
            npk.append({name: expected[:n]})
            expected = np.concatenate([expected, expected[:n]])
            npk.replace({name: expected[::-1][:5]}, [4, 0, 2, 1, 3])
            expected[[4, 0, 2, 1, 3]] = expected[::-1][:5].copy()
            npk.drop(name, slice(None, None, 2))
            expected = expected[1::2]
            assert_same(npk.load(name), np.ascontiguousarray(expected))
            assert_same(npk.load(name, lazy=True)[5:], expected[5:].copy())
            assert name in npk and npk.get_shape()[name] == expected.shape
            assert npk.get_metadata()["arrays"][name]["shape"] == list(expected.shape)

    run_threads([lambda name=f"a{n}": work(name) for n in range(4)])
    assert len(npk) == 4


def test_close_does_not_disturb_what_other_threads_have_begun(npk):
    npk.save({"a": np.arange(4 << 20, dtype="u1")})
    loaded = []

    def load():
        try:
            while True:
                loaded.append(npk.load("a"))
        except RuntimeError:
            pass

    def close():
        while len(loaded) < 5:
            pass
        npk.close()

    run_threads([load, close])
    for array in loaded[-2:]:
        assert_same(array, np.arange(4 << 20, dtype="u1"))


WRITES = {
    "save": lambda npk: npk.save({"b": A}),
    "append": lambda npk: npk.append({"a": A}),
    "replace": lambda npk: npk.replace({"a": A}, slice(None)),
    "drop rows": lambda npk: npk.drop("a", 0),
    "drop": lambda npk: npk.drop("a"),
    "reset": lambda npk: npk.reset(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_waiting_for_the_lock_keeps_other_threads_running(npk, writers_lock, write):
    take, release = writers_lock
    npk.save({"a": A})
    take()
    begun = threading.Event()

    def wait():
        begun.set()
        write(npk)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    # If the waiting thread held the GIL, this would not get on before the lock's timeout.
    for _ in range(200):
        assert_same(npk.load("a"), A)
        assert npk.get_member_list() == ["a"]
    assert thread.is_alive()
    release()
    thread.join()


class Alarm(Exception):
    """Raised by a signal handler, as Ctrl-C raises KeyboardInterrupt."""


def test_signals_end_the_wait_for_the_lock(npk, writers_lock):
    npk.save({"a": A})
    lock, unlock = writers_lock
    lock()

    def ring(*_):
        raise Alarm

    handler = signal.signal(signal.SIGALRM, ring)
    try:
        for write in (
            lambda: npk.save({"a": A + 1}),
            lambda: npk.append({"a": A}),
            lambda: npk.drop("a"),
            lambda: npk.flush(),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Alarm) as raised:
                write()
            assert raised.value.__context__ is None, "the wait was over"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    unlock()
    assert_same(npk.load("a"), A)
    npk.append({"a": A})


def test_handles_see_each_others_commits(npk, numpack, path):
    with numpack.NumPack(path) as other:
        npk.save({"a": A})
        assert_same(other.load("a"), A)
        other.append({"a": A})
        assert npk.get_shape("a") == (12, 4)
        lazy = npk.load("a", lazy=True)
        npk.drop("a", slice(1, None))
        assert_same(other.load("a"), A[:1])
        other.replace({"a": A[5:]}, -1)
        assert_same(npk.getitem("a", 0), A[5:])
        other.drop("a")
        assert not npk.has_array("a") and len(npk) == 0
        npk.save({"b": A})
        assert list(other) == ["b"]
        assert lazy.shape == (12, 4)
        # The first to close, or the last, takes nothing back.
    assert npk.get_shape() == {"b": (6, 4)}


def test_processes_see_each_others_commits(npk, path):
    npk.save({"a": A})
    code = "npk.append({'a': npk.load('a')}); npk.save({'b': np.ones(3)}); print(npk.get_shape('a'))"
    assert in_another_process(code, path) == "(12, 4)\n"
    assert_same(npk.load("a"), np.concatenate([A, A]))
    assert npk.get_member_list() == ["a", "b"]
    npk.append({"a": A})
    in_another_process("npk.drop('a', slice(0, 6)); npk.drop('b')", path)
    assert_same(npk.load("a"), np.concatenate([A, A]))
    assert npk.get_member_list() == ["a"]


def test_processes_append_to_one_array(npk, path):
    npk.save({"a": np.zeros(0, "i8")})
    code = "import sys, numpy as np, numpack\nwith numpack.NumPack(sys.argv[1]) as npk:\n"
    code += "    for n in range(200): npk.append({'a': np.array([int(sys.argv[2]) + n])})"
    processes = [subprocess.Popen([sys.executable, "-c", code, path, str(1000 * n)]) for n in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    rows = npk.load("a")
    for n in range(3):
        assert rows[rows // 1000 == n].tolist() == list(range(1000 * n, 1000 * n + 200))


def test_process_that_never_closes_loses_nothing(npk, path):
    npk.save({"a": A})
    in_another_process("npk.append({'a': npk['a']}); npk.save({'b': npk['a'][:2]}); import os; os._exit(0)", path)
    assert_same(npk.load("a"), np.concatenate([A, A]))
    assert_same(npk.load("b"), A[:2])


def test_changes_leave_the_files_of_other_arrays_alone(npk, path):
    def identity(name):
        stat = (path / npk.get_metadata()["arrays"][name]["data_file"]).stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    npk.save({"a": A, "b": A})
    before = identity("b")
    npk.append({"a": A})
    npk.replace({"a": A}, slice(0, 6))
    npk.drop("a", [1])
    npk.save({"c": A})
    npk.update("a")
    npk.drop("a")
    assert identity("b") == before
