"""Processes of both backends, with two threads each, and mounts on one store at once, one of which is killed: some order
of what they did explains what each of them saw.

`NUMPACK_TEST_SEED` brings the random choices of a failure back, though not its timing; `NUMPACK_TEST_CASES` says how many
rounds there are.
"""

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from both import BACKENDS, CLASSES
from clients import LISTS, OWN, REGISTERS, rows_of
from conftest import why_no_mount
from counting import covered
from histories import NEVER, Event, array, explain, register
from mounting import NPKFS, mounted

CLIENTS = Path(__file__).with_name("clients.py")
# What each client does in a round.
N_OPERATIONS = 60
WAYS = ("passthrough=auto", "passthrough=off")
# Operations after which a name leads to another file of a mount.
MOVES = ("save", "remove", "drop first", "compact")


def start(kind, place, number, seed, backend="rust"):
    environ = os.environ | {"NUMPACK_BACKEND": backend}
    environ.pop("NUMPACK_FORCE_PYTHON_BACKEND", None)
    words = [sys.executable, "-u", CLIENTS, kind, place, number, seed, N_OPERATIONS]
    return subprocess.Popen(list(map(str, words)), env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def events_of(output):
    """What clients said that they did."""
    begun, events = {}, []
    for line in output.decode().splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # It was killed while it said this.
        client, *words = json.loads(line)
        if client in begun:
            what, name, given, start = begun.pop(client)
            seen, end = words
            events.append((name, Event(client, what, given, seen, start, end)))
        else:
            begun[client] = words
    for client, (what, name, given, start) in begun.items():
        events.append((name, Event(client, what, given, None, start, NEVER)))
    return events


def of_lists(events, name, mounts):
    """The events of an array of rows, as far as they say something."""
    own = [event for of, event in events if of == name]
    for event in own:
        if event.end == NEVER and event.what == "read":
            continue
        if event.what == "read":
            event = replace(event, seen=None if event.seen is None else tuple(event.seen))
        elif event.given is not None:
            event = replace(event, given=tuple(event.given))
        if event.client in mounts:
            # Names that are not there may be so for some milliseconds more.
            if event.seen is None and event.what == "read":
                event = replace(event, start=0)
            elif event.what == "append" and event.seen is None or event.what == "remove" and not event.seen:
                continue
            elif event.what == "append" and any(
                other.what in MOVES and other.start < event.end and event.start < other.end
                for other in own
                if other.client != event.client
            ):
                event = replace(event, what="append to what may be gone")
        yield event


def of_registers(events, name, row, mounts):
    """The events of one row of an array of registers."""
    for of, event in events:
        if of == [name, row]:
            yield event
        elif of == name and event.what == "read registers" and event.end != NEVER:
            client, k = divmod(row, OWN)
            # A mount may show for a second what was there before.
            start = 0 if event.client in mounts else event.start
            yield replace(event, what="read", seen=event.seen[client][k], start=start)


def play(path, seed, mounts):
    """One round: the number of events."""
    rng = random.Random(seed)
    with CLASSES["rust"](path) as npk:
        npk.save({name: rows_of([-1, -2]) for name in LISTS})
        registers = np.zeros(12 * OWN, np.int64)
        npk.save({"plain": registers})
        npk.save({"compressed": registers}, compress={"block": 4096, "level": 1})
        npk.save({"one": np.zeros(1, np.uint8), "two": np.zeros(1, np.uint8)})
    # Numbers of clients: two for each process of the API.
    processes = [start("api", path, 2 * n, seed, backend) for n, backend in enumerate(BACKENDS)]
    victim = start("api", path, 2 * len(BACKENDS), seed, rng.choice(BACKENDS))
    first_mount = 2 * len(BACKENDS) + 2
    processes += [start("mount", mnt, first_mount + n, seed) for n, mnt in enumerate(mounts)]
    # It may be at anything, or not have begun.
    time.sleep(rng.uniform(0.2, 1.5))
    victim.kill()
    outputs = []
    for process in processes:
        output, complaint = process.communicate(timeout=100)
        assert process.returncode == 0, complaint.decode()
        outputs.append(output)
    outputs.append(victim.communicate()[0])
    events = [event for output in outputs for event in events_of(output)]
    numbers = range(first_mount, first_mount + len(mounts))
    for name in LISTS:
        happened = explain((-1, -2), list(of_lists(events, name, numbers)), array)
        assert happened is None, f"array {name}, NUMPACK_TEST_SEED={seed}:\n{happened}"
    for name in REGISTERS:
        for row in [client * OWN + k for client in range(first_mount + len(mounts)) for k in range(3)]:
            happened = explain(0, list(of_registers(events, name, row, numbers)), register)
            assert happened is None, f"row {row} of {name}, NUMPACK_TEST_SEED={seed}:\n{happened}"
    pair = [event for of, event in events if of == "pair" and not (event.what == "read" and event.end == NEVER)]
    happened = explain((1, 1), [tupled(event) for event in pair], register)
    assert happened is None, f"a pair, NUMPACK_TEST_SEED={seed}:\n{happened}"
    return len(events)


def tupled(event):
    """The event with values that can be told apart by a hash."""
    given, seen = (None if value is None else tuple(value) for value in (event.given, event.seen))
    return replace(event, given=given, seen=seen)


@pytest.fixture
def mounts(tmp_path, path):
    """The store, mounted in two ways; none where nothing can be mounted."""
    CLASSES["rust"](path).open()
    if why_no_mount():
        yield []
        return
    with mounted(path, tmp_path, WAYS) as mounts:
        yield mounts


def test_some_order_explains_what_processes_threads_and_mounts_saw(mounts, path):
    seed = int(os.environ.get("NUMPACK_TEST_SEED", time.time_ns()))
    n_rounds = int(os.environ.get("NUMPACK_TEST_CASES", 2))
    n_events = sum(play(path, seed + n, mounts) for n in range(n_rounds))
    covered(n_events, "operations of processes of both backends, threads and mounts at once")
    if mounts:
        subprocess.run([NPKFS, "verify", "--deep", "-q", path], check=True)


def test_a_history_that_nothing_explains_is_found():
    def events(*rows):
        return [Event(client, what, given, seen, start, end) for client, what, given, seen, start, end in rows]

    lost = events((1, "append", (5,), True, 0, 9), (2, "append", (6,), True, 1, 2), (2, "read", None, (5,), 10, 11))
    assert explain((), lost, array) is not None
    back = events((1, "save", (5,), True, 0, 9), (2, "read", None, (5,), 1, 2), (2, "read", None, (), 3, 4))
    assert explain((), back, array) is not None
    late = events((1, "append", (5,), None, 0, NEVER), (2, "read", None, (), 3, 4), (2, "read", None, (5,), 5, 6))
    assert explain((), late, array) is None, "who died may have done it"
